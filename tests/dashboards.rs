//! Dashboards and alerts against the metrics: nothing is drawn or watched that the server does not export.

use std::collections::BTreeSet;
use std::fs;

/// Names starting with `vogeler_` in `text`, without the suffixes that a histogram's series have.
fn metrics_in(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("vogeler_"))
        .map(|word| word.trim_end_matches("_bucket").to_owned())
        .collect()
}

fn declared() -> BTreeSet<String> {
    let source = fs::read_to_string("src/telemetry/catalogue.rs").unwrap();
    metrics_in(&source)
}

/// Goal: a metric that is renamed in the code cannot leave an empty panel or a silent alert behind.
#[test]
fn dashboards_and_alerts_use_declared_metrics() {
    let declared = declared();
    for file in ["dashboards/ingest.json", "dashboards/alerts.yaml"] {
        let used = metrics_in(&fs::read_to_string(file).unwrap());
        assert!(!used.is_empty(), "{file} uses none");
        let unknown: Vec<_> = used.difference(&declared).collect();
        assert!(
            unknown.is_empty(),
            "{file} uses what the server does not export: {unknown:?}"
        );
    }
}

/// Goal: every alert's runbook link leads to a heading, and every panel says what it shows, in which unit.
#[test]
fn alerts_have_headings_and_panels_have_descriptions() {
    let runbook = fs::read_to_string("dashboards/RUNBOOK.md")
        .unwrap()
        .to_lowercase();
    let alerts = fs::read_to_string("dashboards/alerts.yaml").unwrap();
    let anchors: Vec<_> = alerts
        .lines()
        .filter_map(|line| line.split("RUNBOOK.md#").nth(1))
        .collect();
    assert_eq!(anchors.len(), alerts.matches("- alert:").count());
    for anchor in anchors {
        assert!(
            runbook.lines().any(|line| line == format!("## {anchor}")),
            "{anchor}"
        );
    }
    let board: serde_json::Value =
        serde_json::from_str(&fs::read_to_string("dashboards/ingest.json").unwrap()).unwrap();
    for panel in board["panels"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|panel| panel["type"] != "row")
    {
        assert!(
            panel["description"]
                .as_str()
                .is_some_and(|text| !text.is_empty()),
            "{}",
            panel["title"]
        );
        assert!(
            panel["fieldConfig"]["defaults"]["unit"].is_string(),
            "{}",
            panel["title"]
        );
        assert_eq!(
            panel["datasource"]["uid"], "${datasource}",
            "{}",
            panel["title"]
        );
    }
}
