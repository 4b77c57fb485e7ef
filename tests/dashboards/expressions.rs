//! Every expression of every board and rule, with its place, as Prometheus would be asked it.

use std::fs;

use serde::Deserialize;
use serde_json::Value;

pub(super) const BOARDS: [&str; 3] = [
    "dashboards/ingest.json",
    "dashboards/fleet.json",
    "dashboards/clients.json",
];
pub(super) const RULES: [&str; 2] = ["dashboards/recording.yaml", "dashboards/alerts.yaml"];

/// One expression.
#[derive(Debug, Clone)]
pub(super) struct Expression {
    /// File and panel or rule: what a failing test names.
    pub(super) place: String,
    /// As it is written.
    pub(super) text: String,
}

/// A recording or alerting rule.
#[derive(Debug, Deserialize)]
pub(super) struct Rule {
    pub(super) record: Option<String>,
    pub(super) alert: Option<String>,
    pub(super) expr: String,
    #[serde(default, rename = "for")]
    pub(super) lasting: Option<String>,
    #[serde(default)]
    pub(super) labels: std::collections::BTreeMap<String, String>,
    #[serde(default)]
    pub(super) annotations: std::collections::BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct RuleFile {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    rules: Vec<Rule>,
}

/// A board as its file has it.
pub(super) fn board(file: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap()
}

/// The panels of a board that are no rows.
pub(super) fn panels(board: &Value) -> impl Iterator<Item = &Value> {
    let panels = board["panels"].as_array().unwrap();
    panels.iter().filter(|panel| panel["type"] != "row")
}

/// All expressions of all panels.
pub(super) fn of_panels() -> Vec<Expression> {
    let mut found = Vec::new();
    for file in BOARDS {
        for panel in panels(&board(file)) {
            let title = panel["title"].as_str().unwrap();
            for target in panel["targets"].as_array().unwrap() {
                found.push(Expression {
                    place: format!("{file}: {title}"),
                    text: target["expr"].as_str().unwrap().to_owned(),
                });
            }
        }
    }
    found
}

/// All rules.
pub(super) fn rules() -> Vec<Rule> {
    let read = |file: &&str| -> RuleFile {
        let text = fs::read_to_string(file).unwrap();
        serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{file}: {error}"))
    };
    let files = RULES.iter().map(read);
    files
        .flat_map(|file| file.groups)
        .flat_map(|group| group.rules)
        .collect()
}

/// All expressions of all rules.
pub(super) fn of_rules() -> Vec<Expression> {
    let expression = |rule: Rule| Expression {
        place: rule.record.or(rule.alert).unwrap_or_default(),
        text: rule.expr,
    };
    rules().into_iter().map(expression).collect()
}

/// The values that Grafana gives the variables when "All" is chosen and an hour is shown.
pub(super) fn substituted(text: &str) -> String {
    let mut text = text.replace("$__rate_interval", "1m");
    for variable in ["$job", "$instance", "$partition", "$rabbitmq", "$couchdb"] {
        text = text.replace(variable, ".*");
    }
    text
}

/// Goal: every variable that an expression uses is one that the test puts a value in for.
#[test]
fn no_variable_is_left() {
    for Expression { place, text } in of_panels() {
        assert!(!substituted(&text).contains('$'), "{place}: {text}");
    }
}
