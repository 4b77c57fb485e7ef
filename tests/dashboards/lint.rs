//! What every board and rule must have, and that none asks for a metric that nobody exports.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde_json::Value;
use vogeler::telemetry::{Kind, LabelSpec, catalogue};

use super::expressions::{self, BOARDS, board, panels};
use super::promql::{Selector, selectors};

/// Grafana's unit ids that the boards use: a misspelt one is shown as text behind the figure.
const UNITS: [&str; 9] = [
    "none",
    "short",
    "s",
    "reqps",
    "wps",
    "bytes",
    "Bps",
    "percentunit",
    "dateTimeFromNow",
];
/// Labels that Prometheus itself puts to every series.
const TARGET_LABELS: [&str; 2] = ["job", "instance"];

/// Metrics that others export, from what their exporters were seen to say.
fn foreign() -> BTreeSet<String> {
    let read = |file: &str| fs::read_to_string(format!("tests/fixtures/exporters/{file}")).unwrap();
    let lines = [
        "couchdb-3.5.0.prom",
        "rabbitmq-3.10.8.names",
        "node-exporter-1.5.0.prom",
    ]
    .map(read)
    .join("\n");
    let names = lines.lines().filter(|line| !line.starts_with('#'));
    names
        .filter_map(|line| line.split([' ', '{']).next())
        .map(str::to_owned)
        .chain(["up".to_owned()])
        .collect()
}

/// Our series by name, with their labels: a histogram has three.
fn ours() -> BTreeMap<String, Vec<LabelSpec>> {
    let mut series = BTreeMap::new();
    for metric in catalogue::ALL {
        let name = metric.entry().name;
        if metric.kind() == Kind::Histogram {
            for suffix in ["_bucket", "_sum", "_count"] {
                series.insert(format!("{name}{suffix}"), metric.labels());
            }
        } else {
            series.insert(name.to_owned(), metric.labels());
        }
    }
    series
}

/// What is wrong with a selector, if anything.
fn fault(selector: &Selector, known: &BTreeMap<String, Vec<LabelSpec>>) -> Option<String> {
    let Some(labels) = known.get(&selector.metric) else {
        return Some(format!("nobody exports {}", selector.metric));
    };
    for (label, operator, value) in &selector.matchers {
        if TARGET_LABELS.contains(&label.as_str()) {
            continue;
        }
        let Some(spec) = labels.iter().find(|spec| spec.name == label) else {
            return Some(format!("{} has no label {label}", selector.metric));
        };
        let is_exact = operator == "=" || operator == "!=" || !value.contains(['*', '$', '.']);
        if is_exact && let Some(bad) = value.split('|').find(|word| !spec.allows(word)) {
            return Some(format!("{}: {label} is never {bad}", selector.metric));
        }
    }
    None
}

/// Goal: a metric, a label or a label's value that is renamed in the code leaves no empty panel and no silent alert.
#[test]
fn boards_and_rules_use_what_is_exported() {
    let (ours, foreign) = (ours(), foreign());
    let recorded: BTreeSet<_> = expressions::rules()
        .into_iter()
        .filter_map(|rule| rule.record)
        .collect();
    let mut faults = Vec::new();
    for expression in expressions::of_panels()
        .into_iter()
        .chain(expressions::of_rules())
    {
        let used = selectors(&expression.text);
        assert!(
            !used.is_empty(),
            "{}: {} asks for nothing",
            expression.place,
            expression.text
        );
        let own = used
            .iter()
            .filter(|used| !foreign.contains(&used.metric) && !recorded.contains(&used.metric));
        faults.extend(
            own.filter_map(|used| fault(used, &ours))
                .map(|fault| format!("{}: {fault}", expression.place)),
        );
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

/// The words in `text` between each `start` and the `end` that follows it.
fn words_between<'a>(text: &'a str, start: &str, end: &str) -> Vec<&'a str> {
    let lists = text
        .split(start)
        .skip(1)
        .filter_map(|rest| rest.split_once(end));
    lists.flat_map(|(list, _)| list.split(", ")).collect()
}

/// Goal: no legend and no grouping names a label that the metric does not have: Grafana would show one line without a name.
#[test]
fn legends_and_groups_name_labels_that_exist() {
    let ours = ours();
    for file in BOARDS {
        for panel in panels(&board(file)) {
            for target in panel["targets"].as_array().unwrap() {
                let text = target["expr"].as_str().unwrap();
                let used = selectors(text);
                let Some(labels) = used
                    .iter()
                    .map(|used| ours.get(&used.metric))
                    .collect::<Option<Vec<_>>>()
                else {
                    continue;
                };
                let mut named = words_between(text, "by (", ")");
                named.extend(words_between(
                    target["legendFormat"].as_str().unwrap(),
                    "{{",
                    "}}",
                ));
                for label in named {
                    let is_known = TARGET_LABELS.contains(&label)
                        || (label == "le" && text.contains("_bucket{"))
                        || labels
                            .iter()
                            .any(|labels| labels.iter().any(|spec| spec.name == label));
                    assert!(
                        is_known,
                        "{file}: {}: no label {label} in {text}",
                        panel["title"]
                    );
                }
            }
        }
    }
}

/// Goal: whoever adds a metric thinks of where it is seen: each is on a board or in a rule.
#[test]
fn every_metric_is_looked_at() {
    /// Said once for all of them: no operator draws these.
    const NOT_DRAWN: [&str; 2] = [
        "process_virtual_memory_bytes",
        "process_virtual_memory_max_bytes",
    ];
    let all = expressions::of_panels()
        .into_iter()
        .chain(expressions::of_rules());
    let used: BTreeSet<_> = all
        .flat_map(|expression| selectors(&expression.text))
        .map(|used| used.metric)
        .collect();
    let is_used = |name: &str| {
        ["", "_bucket", "_sum", "_count"]
            .iter()
            .any(|suffix| used.contains(&format!("{name}{suffix}")))
    };
    let names = catalogue::ALL.iter().map(|metric| metric.entry().name);
    let unseen: Vec<_> = names
        .filter(|name| !NOT_DRAWN.contains(name) && !is_used(name))
        .collect();
    assert!(unseen.is_empty(), "{unseen:#?}");
}

/// Goal: every panel says what it shows and in which unit, asks the data source that was chosen, and has an id of its own.
#[test]
fn panels_are_complete() {
    for file in BOARDS {
        let board = board(file);
        let mut ids = BTreeSet::new();
        for panel in board["panels"].as_array().unwrap() {
            assert!(
                ids.insert(panel["id"].as_u64().unwrap()),
                "{file}: {} twice",
                panel["id"]
            );
        }
        for panel in panels(&board) {
            let what = format!("{file}: {}", panel["title"]);
            assert!(
                panel["title"].as_str().is_some_and(|text| !text.is_empty()),
                "{what}"
            );
            assert!(
                panel["description"]
                    .as_str()
                    .is_some_and(|text| text.len() > 5),
                "{what}"
            );
            let unit = panel["fieldConfig"]["defaults"]["unit"]
                .as_str()
                .unwrap_or_default();
            assert!(UNITS.contains(&unit), "{what}: unit {unit}");
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{what}");
            let targets = panel["targets"].as_array().unwrap();
            assert!(!targets.is_empty(), "{what}");
            let refs: BTreeSet<_> = targets
                .iter()
                .map(|target| target["refId"].as_str())
                .collect();
            assert_eq!(refs.len(), targets.len(), "{what}");
            for target in targets {
                assert_eq!(target["datasource"]["uid"], "${datasource}", "{what}");
                assert!(
                    target["legendFormat"]
                        .as_str()
                        .is_some_and(|text| !text.is_empty()),
                    "{what}"
                );
            }
        }
    }
}

/// Goal: no panel lies over another one, or outside Grafana's 24 columns.
#[test]
fn panels_do_not_overlap() {
    for file in BOARDS {
        let board = board(file);
        let mut taken = BTreeMap::new();
        for panel in board["panels"].as_array().unwrap() {
            let of = |key: &str| panel["gridPos"][key].as_u64().unwrap();
            assert!(of("x") + of("w") <= 24, "{file}: {}", panel["title"]);
            for (x, y) in (of("x")..of("x") + of("w"))
                .flat_map(|x| (of("y")..of("y") + of("h")).map(move |y| (x, y)))
            {
                let other = taken.insert((x, y), &panel["title"]);
                assert!(
                    other.is_none(),
                    "{file}: {} lies over {}",
                    panel["title"],
                    other.unwrap_or(&Value::Null)
                );
            }
        }
    }
}
