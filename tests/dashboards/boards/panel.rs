//! One panel: what it asks, in which unit, when it turns red. Flows out as the JSON that Grafana keeps.
//!
//! A panel cannot be made without title, unit and description; it always asks the data source variable.

use serde_json::{Value, json};

/// Where the runbook's headings are: a variable of every board, so that a company can point it at its own copy.
const RUNBOOK: &str = "${runbook}";

/// How a panel draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// One figure of now.
    Stat,
    /// Lines over the time.
    Graph,
    /// One row a series, of now.
    Table,
}

/// What one panel shows.
#[derive(Debug, Clone)]
pub(crate) struct Panel {
    kind: Kind,
    title: &'static str,
    unit: &'static str,
    description: &'static str,
    width: u32,
    queries: Vec<(String, &'static str)>,
    steps: Vec<(&'static str, f64)>,
    words: Vec<(&'static str, &'static str, &'static str)>,
    runbook: Option<&'static str>,
}

/// One figure, with the course of the last hours behind it.
pub(crate) fn stat(title: &'static str, unit: &'static str, description: &'static str) -> Panel {
    Panel::new(Kind::Stat, title, unit, description, 4)
}

/// Lines over the time.
pub(crate) fn graph(title: &'static str, unit: &'static str, description: &'static str) -> Panel {
    Panel::new(Kind::Graph, title, unit, description, 6)
}

/// A table of now, the largest value first.
pub(crate) fn table(title: &'static str, unit: &'static str, description: &'static str) -> Panel {
    Panel::new(Kind::Table, title, unit, description, 8)
}

impl Panel {
    fn new(
        kind: Kind,
        title: &'static str,
        unit: &'static str,
        description: &'static str,
        width: u32,
    ) -> Self {
        Self {
            kind,
            title,
            unit,
            description,
            width,
            queries: Vec::new(),
            steps: Vec::new(),
            words: Vec::new(),
            runbook: None,
        }
    }

    /// Asks `expression` (`@` in it stands for the board's filter), and calls the answer `legend`.
    pub(crate) fn ask(mut self, expression: impl Into<String>, legend: &'static str) -> Self {
        self.queries.push((expression.into(), legend));
        self
    }

    /// Orange from the first value on, red from the second.
    pub(crate) fn worse_from(mut self, orange: f64, red: f64) -> Self {
        self.steps = vec![("orange", orange), ("red", red)];
        self
    }

    /// Red from this value on.
    pub(crate) fn red_from(mut self, red: f64) -> Self {
        self.steps = vec![("red", red)];
        self
    }

    /// 1 is a good thing and 0 a bad one, with a word for each.
    pub(crate) fn good_or_bad(mut self, good: &'static str, bad: &'static str) -> Self {
        self.words = vec![("1", good, "green"), ("0", bad, "red")];
        self
    }

    /// Links to a heading of the runbook.
    pub(crate) fn runbook(mut self, alert: &'static str) -> Self {
        self.runbook = Some(alert);
        self
    }

    /// So many of the board's 24 columns.
    pub(crate) fn columns(mut self, width: u32) -> Self {
        self.width = width;
        self
    }

    /// Columns and lines of the grid that it takes.
    pub(super) fn size(&self) -> (u32, u32) {
        let height = if self.kind == Kind::Stat { 4 } else { 8 };
        (self.width, height)
    }

    /// As Grafana keeps it, at this place.
    pub(super) fn json(&self, id: u32, x: u32, y: u32, filter: &str) -> Value {
        let (width, height) = self.size();
        let mut panel = json!({
            "id": id,
            "type": match self.kind { Kind::Stat => "stat", Kind::Graph => "timeseries", Kind::Table => "table" },
            "title": self.title,
            "description": self.description,
            "datasource": data_source(),
            "gridPos": {"h": height, "w": width, "x": x, "y": y},
            "fieldConfig": {"defaults": self.defaults(), "overrides": []},
            "options": self.options(),
            "targets": self.targets(filter),
        });
        if let Some(alert) = self.runbook {
            panel["links"] = json!([link(
                &format!("Runbook: {alert}"),
                &format!("{RUNBOOK}#{}", alert.to_lowercase())
            )]);
        }
        if self.kind == Kind::Table {
            panel["transformations"] =
                json!([{"id": "organize", "options": {"excludeByName": {"Time": true}}}]);
        }
        panel
    }

    fn defaults(&self) -> Value {
        let mut steps = vec![json!({"color": "green", "value": null})];
        steps.extend(
            self.steps
                .iter()
                .map(|(color, value)| json!({"color": color, "value": value})),
        );
        let mut defaults = json!({
            "unit": self.unit,
            "min": 0,
            "color": {"mode": if self.kind == Kind::Graph { "palette-classic" } else { "thresholds" }},
            "thresholds": {"mode": "absolute", "steps": steps},
        });
        if !self.words.is_empty() {
            let words: serde_json::Map<String, Value> = (self.words.iter())
                .map(|(value, text, color)| {
                    ((*value).to_owned(), json!({"text": text, "color": color}))
                })
                .collect();
            defaults["mappings"] = json!([{"type": "value", "options": words}]);
        }
        if self.kind == Kind::Graph {
            let shown = if self.steps.is_empty() {
                "off"
            } else {
                "dashed"
            };
            defaults["custom"] = json!({
                "lineWidth": 1, "fillOpacity": 10, "showPoints": "never", "spanNulls": false,
                "thresholdsStyle": {"mode": shown},
            });
        }
        defaults
    }

    fn options(&self) -> Value {
        match self.kind {
            Kind::Stat => json!({
                "colorMode": "value", "graphMode": "area", "justifyMode": "auto", "textMode": "auto",
                "orientation": "auto", "percentChangeColorMode": "standard", "showPercentChange": false,
                "wideLayout": true, "reduceOptions": {"calcs": ["lastNotNull"], "values": false},
            }),
            Kind::Graph => json!({
                "legend": {"displayMode": "list", "placement": "bottom", "showLegend": true, "calcs": []},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }),
            Kind::Table => json!({
                "frameIndex": 0, "showHeader": true, "cellHeight": "sm",
                "sortBy": [{"displayName": "Value", "desc": true}],
            }),
        }
    }

    fn targets(&self, filter: &str) -> Vec<Value> {
        let is_table = self.kind == Kind::Table;
        let target = |(ref_id, (expression, legend)): (char, &(String, &str))| {
            json!({
                "refId": ref_id.to_string(),
                "datasource": data_source(),
                "expr": expression.replace('@', filter),
                "legendFormat": legend,
                "instant": is_table,
                "range": !is_table,
                "format": if is_table { "table" } else { "time_series" },
            })
        };
        ('A'..).zip(&self.queries).map(target).collect()
    }
}

/// The data source that the board's variable names.
pub(super) fn data_source() -> Value {
    json!({"type": "prometheus", "uid": "${datasource}"})
}

/// A link that opens beside the board.
pub(super) fn link(title: &str, url: &str) -> Value {
    json!({
        "type": "link", "title": title, "url": url, "icon": "doc", "tooltip": title, "tags": [],
        "asDropdown": false, "includeVars": false, "keepTime": false, "targetBlank": true,
    })
}
