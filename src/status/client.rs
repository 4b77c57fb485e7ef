//! What a client's status page shows: the spool, publishing, and its plugins.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{Column, Figure, Report, Seen, Table, Watched, text};
use crate::config::{Config, span};
use crate::telemetry::{Snapshot, catalogue as c};

/// Counters whose rates are shown.
pub static WATCHED: Watched = &[
    ("Commands heard", &c::CLIENT_COMMANDS),
    ("Plugins run", &c::CLIENT_PLUGIN_RUNS),
    ("Tries to publish", &c::CLIENT_PUBLISHED),
];

/// The settings that the page shows. The DSN shows no password.
pub fn settings(config: &Config) -> Vec<(&'static str, String)> {
    let client = &config.client;
    let groups: Vec<_> = client.groups.iter().map(ToString::to_string).collect();
    vec![
        ("broker.dsn", config.broker.dsn.to_string()),
        ("client.groups", groups.join(", ")),
        ("client.plugins", client.plugins.display().to_string()),
        ("client.state", client.state.display().to_string()),
        ("client.concurrency", client.concurrency.to_string()),
        ("client.timeout", span::format(client.timeout)),
    ]
}

/// Reports spool and plugins from the metrics.
pub fn report(seen: &Seen<'_>) -> Report {
    let metrics = seen.metrics;
    let used = text::bytes(metrics.sum(&c::CLIENT_SPOOL_BYTES));
    let limit = text::bytes(metrics.sum(&c::CLIENT_SPOOL_BYTES_LIMIT));
    let figure = Figure::new;
    let figures = vec![
        figure(
            "In the spool",
            text::count(metrics.sum(&c::CLIENT_SPOOL_MESSAGES)),
            "results that wait for the broker",
        ),
        figure(
            "Spool size",
            used,
            &format!(
                "of {limit}; when it is full, results go that newer ones supersede, then the oldest"
            ),
        ),
        figure(
            "Dropped",
            text::count(metrics.sum(&c::CLIENT_SPOOL_DROPPED)),
            "results lost before the broker had them",
        ),
        figure(
            "Last publish",
            last_publish(metrics, seen.now),
            "when the broker confirmed a result",
        ),
    ];
    Report {
        figures,
        tables: vec![plugins(metrics)],
    }
}

#[allow(clippy::cast_possible_truncation, reason = "seconds of Unix time fit")]
fn last_publish(metrics: &Snapshot, now: Timestamp) -> String {
    let at = metrics.sum(&c::CLIENT_LAST_PUBLISH_TIMESTAMP_SECONDS);
    match Timestamp::from_millisecond((at * 1000.0) as i64) {
        Ok(at) if at.as_second() > 0 => text::ago(at, now),
        _ => "never".to_owned(),
    }
}

fn plugins(metrics: &Snapshot) -> Table {
    // Per plugin: successful runs, and failed runs by outcome.
    let mut plugins: BTreeMap<&str, (f64, Vec<String>)> = BTreeMap::new();
    for series in metrics.all(&c::CLIENT_PLUGIN_RUNS) {
        let [plugin, outcome] = series.labels.as_slice() else {
            continue;
        };
        let (ok, failed) = plugins.entry(plugin).or_default();
        if outcome == "ok" {
            *ok += series.value;
        } else if series.value > 0.0 {
            failed.push(format!("{} {outcome}", text::count(series.value)));
        }
    }
    let rows = plugins.into_iter().map(|(plugin, (ok, failed))| {
        let failed = if failed.is_empty() {
            "0".to_owned()
        } else {
            failed.join(", ")
        };
        vec![plugin.to_owned(), text::count(ok), failed]
    });
    Table {
        title: "Plugins",
        note: "Executions since the start.",
        head: vec![
            Column::Text("Plugin"),
            Column::Number("Ok"),
            Column::Text("Failed"),
        ],
        rows: rows.collect(),
        empty: "No plugin ran yet.",
    }
}
