//! The boards as a typed program: rows of panels in the order of the flow go in, Grafana's JSON comes out.
//!
//! `make dashboards` writes `dashboards/*.json` from here; a test fails when a file says something else. A panel's
//! place follows from its order, so nothing overlaps.

mod clients;
mod fleet;
mod ingest;
mod panel;
mod query;
mod services;

use serde_json::{Value, json};

use panel::{Panel, data_source, link};

/// Columns of Grafana's grid.
const COLUMNS: u32 = 24;
const RUNBOOK_URL: &str = "https://github.com/lusis/vogeler/blob/main/dashboards/RUNBOOK.md";

/// A heading and what stands under it.
#[derive(Debug)]
pub(crate) struct Row {
    title: &'static str,
    /// What `@` stands for in its panels' expressions.
    filter: &'static str,
    panels: Vec<Panel>,
}

/// A choice at the top of the board.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Choice {
    name: &'static str,
    label: &'static str,
    values: &'static str,
}

/// What `@` stands for: the servers chosen.
const SERVERS: &str = r#"job=~"$job",instance=~"$instance""#;
/// The servers' job in Prometheus.
const JOB: Choice = Choice {
    name: "job",
    label: "Job",
    values: "label_values(vogeler_results_received_total, job)",
};
/// A server of it.
const INSTANCE: Choice = Choice {
    name: "instance",
    label: "Server",
    values: r#"label_values(vogeler_results_received_total{job=~"$job"}, instance)"#,
};

/// A board.
#[derive(Debug)]
pub(crate) struct Board {
    uid: &'static str,
    title: &'static str,
    description: &'static str,
    choices: &'static [Choice],
    rows: Vec<Row>,
}

/// Every board, with its file.
pub(crate) fn all() -> [(&'static str, Board); 3] {
    [
        ("dashboards/ingest.json", ingest::board()),
        ("dashboards/fleet.json", fleet::board()),
        ("dashboards/clients.json", clients::board()),
    ]
}

impl Board {
    /// As Grafana imports it.
    pub(crate) fn json(&self) -> Value {
        json!({
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["vogeler"],
            "schemaVersion": 39,
            "version": 1,
            "editable": true,
            "graphTooltip": 1,
            "refresh": "10s",
            "time": {"from": "now-1h", "to": "now"},
            "timezone": "browser",
            "templating": {"list": self.variables()},
            "annotations": {"list": []},
            "links": [link("Runbook", "${runbook}"), other_boards()],
            "panels": self.panels(),
        })
    }

    fn variables(&self) -> Vec<Value> {
        let mut variables = vec![json!({
            "name": "datasource", "type": "datasource", "label": "Data source", "query": "prometheus",
        })];
        variables.extend(self.choices.iter().map(Choice::json));
        variables.push(json!({
            "name": "runbook", "type": "textbox", "label": "Runbook", "hide": 2, "query": RUNBOOK_URL,
            "current": {"text": RUNBOOK_URL, "value": RUNBOOK_URL},
        }));
        variables
    }

    fn panels(&self) -> Vec<Value> {
        let mut placed = Vec::new();
        let (mut id, mut y) = (0, 0);
        for row in &self.rows {
            id += 1;
            placed.push(json!({
                "id": id, "type": "row", "title": row.title, "collapsed": false, "panels": [],
                "gridPos": {"h": 1, "w": COLUMNS, "x": 0, "y": y},
            }));
            y += 1;
            let (mut x, mut line) = (0, 0);
            for panel in &row.panels {
                let (width, height) = panel.size();
                if x + width > COLUMNS {
                    y += line;
                    (x, line) = (0, 0);
                }
                id += 1;
                placed.push(panel.json(id, x, y, row.filter));
                x += width;
                line = line.max(height);
            }
            y += line;
        }
        placed
    }
}

impl Choice {
    fn json(&self) -> Value {
        json!({
            "name": self.name, "type": "query", "label": self.label, "datasource": data_source(),
            "query": {"query": self.values, "refId": self.name}, "refresh": 2, "sort": 1,
            "includeAll": true, "multi": true, "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
        })
    }
}

fn other_boards() -> Value {
    json!({
        "type": "dashboards", "title": "Vogeler", "icon": "external link", "tooltip": "The other boards",
        "tags": ["vogeler"], "asDropdown": false, "includeVars": false, "keepTime": true, "targetBlank": false,
    })
}
