//! The rules: valid, unit-tested by promtool, complete, and each alert with its heading in the runbook.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use serde::Deserialize;

use super::expressions::{self, BOARDS, RULES};

const TESTS: &str = "dashboards/alerts_test.yaml";
const RUNBOOK: &str = "dashboards/RUNBOOK.md";

fn promtool(arguments: &[&str]) {
    crate::harness::install_services();
    let output = Command::new("promtool").args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "promtool {arguments:?}: {text}");
}

/// Goal: Prometheus takes the rules, and each alert fires and keeps silent as its tests say.
#[test]
fn the_rules_pass_their_own_tests() {
    promtool(
        &[
            &["check", "rules", "--lint=all", "--lint-fatal"],
            &RULES[..],
        ]
        .concat(),
    );
    promtool(&["test", "rules", TESTS]);
}

/// Goal: each alert says how bad it is, how long it lasts, what is the matter, and where to read on.
#[test]
fn alerts_are_complete() {
    for rule in expressions::rules() {
        let Some(name) = rule.alert else { continue };
        assert!(rule.lasting.is_some(), "{name}: for");
        let severity = rule.labels.get("severity").map(String::as_str);
        assert!(
            matches!(severity, Some("critical" | "warning")),
            "{name}: severity"
        );
        for key in ["summary", "description"] {
            assert!(
                rule.annotations
                    .get(key)
                    .is_some_and(|text| !text.is_empty()),
                "{name}: {key}"
            );
        }
        let anchor = format!("RUNBOOK.md#{}", name.to_lowercase());
        assert_eq!(
            rule.annotations.get("runbook"),
            Some(&anchor),
            "{name}: runbook"
        );
    }
}

/// Goal: every alert has its heading with what to do, and no heading outlives its alert.
#[test]
fn the_runbook_has_a_heading_an_alert() {
    let runbook = fs::read_to_string(RUNBOOK).unwrap();
    let sections: BTreeMap<&str, &str> = (runbook.split("\n## ").skip(1))
        .filter_map(|section| section.split_once('\n'))
        .collect();
    let headings: BTreeSet<_> = sections
        .keys()
        .map(|heading| (*heading).to_owned())
        .collect();
    let alerts: BTreeSet<_> = expressions::rules()
        .into_iter()
        .filter_map(|rule| rule.alert)
        .collect();
    assert_eq!(headings, alerts);
    for (heading, text) in sections {
        for part in ["**Means:**", "**First look:**", "**Fix:**"] {
            assert!(text.contains(part), "{heading}: {part}");
        }
    }
}

/// Goal: a panel's link to the runbook leads to a heading.
#[test]
fn panels_link_to_headings() {
    let runbook = fs::read_to_string(RUNBOOK).unwrap().to_lowercase();
    let mut links = 0;
    for file in BOARDS {
        let board = expressions::board(file);
        for panel in expressions::panels(&board) {
            for link in panel["links"].as_array().into_iter().flatten() {
                let url = link["url"].as_str().unwrap();
                let anchor = url.strip_prefix("${runbook}#").unwrap();
                assert!(
                    runbook.lines().any(|line| line == format!("## {anchor}")),
                    "{file}: {url}"
                );
                links += 1;
            }
        }
    }
    assert!(links > 10, "only {links} panels link to the runbook");
}

#[derive(Deserialize)]
struct TestFile {
    tests: Vec<Scenario>,
}

#[derive(Deserialize)]
struct Scenario {
    name: String,
    #[serde(default)]
    alert_rule_test: Vec<Check>,
}

#[derive(Deserialize)]
struct Check {
    alertname: String,
    #[serde(default)]
    exp_alerts: Vec<serde_json::Value>,
}

/// Goal: no alert goes untested: it fires; it is silent without traffic and under a healthy load; and at its edge.
#[test]
fn every_alert_has_its_tests() {
    let file: TestFile = serde_saphyr::from_str(&fs::read_to_string(TESTS).unwrap()).unwrap();
    let has = |alert: &str, scenario: &str, fires: bool| {
        let scenarios = file
            .tests
            .iter()
            .filter(|test| test.name.contains(scenario));
        scenarios
            .flat_map(|test| &test.alert_rule_test)
            .any(|check| check.alertname == alert && check.exp_alerts.is_empty() != fires)
    };
    for alert in expressions::rules()
        .into_iter()
        .filter_map(|rule| rule.alert)
    {
        assert!(has(&alert, "", true), "{alert} is never seen to fire");
        assert!(
            has(&alert, "a healthy load is silent", false),
            "{alert}: healthy"
        );
        assert!(
            has(&alert, "no traffic is silent", false),
            "{alert}: no traffic"
        );
        assert!(
            has(&alert, &format!("{alert}: edge"), false),
            "{alert}: no silent edge"
        );
        assert!(
            has(&alert, &format!("{alert}: edge"), true),
            "{alert}: no firing edge"
        );
    }
}
