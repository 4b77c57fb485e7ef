//! The metrics of a real server against the catalogue, and how they move when something goes wrong.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::json;
use vogeler::broker::topology;
use vogeler::telemetry::{Declared, Kind, Role, catalogue as c};
use vogeler::wire::{Content, ErrorKind, PUBLISHED_HEADER, PluginError, RunId};

use crate::harness::pipeline::{in_system, message, result, value};
use crate::harness::proxy::{Fault, Rule};
use crate::harness::scene::Scene;

/// One line of a scrape: the metric's name, its labels, its value.
type Sample = (String, BTreeMap<String, String>, f64);

/// What a scrape says.
#[derive(Debug, Default)]
struct Scrape {
    help: BTreeMap<String, String>,
    kinds: BTreeMap<String, String>,
    samples: Vec<Sample>,
}

impl Scrape {
    fn read(text: &str) -> Self {
        let mut scrape = Self::default();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap();
                scrape.help.insert(name.to_owned(), help.to_owned());
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                scrape.kinds.insert(name.to_owned(), kind.to_owned());
            } else {
                scrape.samples.push(sample(line));
            }
        }
        scrape
    }

    /// The samples of a metric; of a histogram, its counts.
    fn of(&self, metric: &dyn Declared) -> Vec<&Sample> {
        let name = metric.entry().name;
        let sampled = match metric.kind() {
            Kind::Histogram => format!("{name}_count"),
            Kind::Counter | Kind::Gauge => name.to_owned(),
        };
        self.samples
            .iter()
            .filter(|(name, ..)| *name == sampled)
            .collect()
    }

    /// The sum over all label values.
    fn sum(&self, metric: &dyn Declared) -> f64 {
        self.of(metric).iter().map(|(.., value)| value).sum()
    }
}

fn sample(line: &str) -> Sample {
    let (series, value) = line.rsplit_once(' ').unwrap();
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    let labels = labels.trim_end_matches('}').split(',');
    let labels = labels.filter_map(|label| {
        let (name, value) = label.split_once('=')?;
        Some((name.to_owned(), value.trim_matches('"').to_owned()))
    });
    (name.to_owned(), labels.collect(), value.parse().unwrap())
}

fn scrape(scene: &Scene) -> Scrape {
    let (status, text) = scene.v.get("/metrics").unwrap();
    assert_eq!(status, 200);
    Scrape::read(&text)
}

/// Waits until the sum of a metric is as wanted.
async fn until(scene: &Scene, metric: &dyn Declared, wanted: impl Fn(f64) -> bool) {
    let what = format!("{}: {}", metric.entry().name, scrape(scene).sum(metric));
    scene
        .until(&what, || wanted(scrape(scene).sum(metric)))
        .await;
}

/// Fails if the scrape differs from what the catalogue declares for a server.
fn hold_to_the_catalogue(scrape: &Scrape) {
    let mut declared = BTreeSet::new();
    for metric in c::ALL.iter().copied() {
        let entry = metric.entry();
        if !Role::Server.exports(entry.role) {
            continue;
        }
        declared.insert(entry.name.to_owned());
        assert_eq!(
            scrape.kinds.get(entry.name).map(String::as_str),
            Some(metric.kind().as_str()),
            "{}",
            entry.name
        );
        assert_eq!(
            scrape.help.get(entry.name).map(String::as_str),
            Some(entry.help),
            "{}",
            entry.name
        );
        let samples = scrape.of(metric);
        assert!(!samples.is_empty(), "{} has no series", entry.name);
        let labels = metric.labels();
        for (name, values, _) in samples {
            let names: BTreeSet<_> = values.keys().map(String::as_str).collect();
            assert_eq!(
                names,
                labels.iter().map(|label| label.name).collect(),
                "{name}"
            );
            for label in &labels {
                assert!(label.allows(&values[label.name]), "{name} {values:?}");
            }
        }
    }
    let exported: BTreeSet<_> = scrape.kinds.keys().cloned().collect();
    assert_eq!(exported, declared, "exported and declared");
}

/// Publishes five results of three nodes, one of them in a run and published two seconds ago, one of a plugin that
/// failed; and a message that is no result.
async fn publish_some(scene: &Scene) {
    let mut in_a_run = value("web01", "facts", 1, &json!({"os": "Debian"}));
    in_a_run.run = Some(RunId::generate());
    let key = topology::result_key(&in_a_run.node);
    let mut old = message(&key, in_a_run.encode().unwrap());
    let then = Timestamp::now().as_millisecond() - 2_000;
    let headers = &mut old.properties.headers;
    headers.insert(PUBLISHED_HEADER.to_owned(), then.to_string());
    scene.broker.publish(old).await.unwrap();
    let nodes = ["web01", "web02", "web03"];
    scene.publish_all(&nodes, 1, &json!(["bash"])).await;
    let failed = Content::Error(PluginError {
        kind: ErrorKind::Timeout,
        message: "slow".to_owned(),
        exit: None,
        stderr: None,
    });
    scene.publish(&result("web03", "facts", 2, failed)).await;
    let no_result = message("000", b"no result".to_vec());
    scene.broker.publish(no_result).await.unwrap();
}

/// What [`publish_some`] makes of a fresh server's metrics, summed over their labels.
fn expected() -> Vec<(&'static dyn Declared, f64)> {
    vec![
        (&c::PLUGIN_RESULTS, 5.0),
        (&c::RUNS, 1.0),
        (&c::DECODE_ERRORS, 1.0),
        (&c::DEAD_LETTERS, 1.0),
        (&c::DEAD_LETTERS_WAITING, 1.0),
        (&c::PUBLISHED_TO_STORED_SECONDS, 1.0),
        (&c::MAILBOX_WAIT_SECONDS, 5.0),
        (&c::PARTITIONS, 2.0),
        (&c::PARTITIONS_OWNED, 2.0),
        (&c::PREFETCH_LIMIT, 256.0),
        (&c::SERVERS, 1.0),
        (&c::DRAINING, 0.0),
        (&c::NODE_ACTORS, 0.0),
        (&c::KNOWN_NODES, 3.0),
        (&c::QUEUE_CONSUMERS, 2.0),
        (&c::QUEUE_MESSAGES_READY, 0.0),
        (&c::QUEUE_MESSAGES_UNACKED, 0.0),
        (&c::QUEUE_LAG_SECONDS, 0.0),
        (&c::BYTES_IN_FLIGHT, 0.0),
        (&c::WRITES_IN_FLIGHT, 0.0),
        (&c::BATCH_DOCUMENTS_LIMIT, 100.0),
        (&c::WRITES_IN_FLIGHT_LIMIT, 4.0),
        (&c::UP, 2.0),
        (&c::RECONNECTS, 0.0),
    ]
}

/// Goal: what the server allows itself follows the store: half of it after a write that fails, all of it again when full
/// writes go well.
#[test]
fn the_limits_of_writes_follow_the_store() {
    in_system(async {
        let scene = Scene::new(&[
            ("SERVER_WRITE_TARGET", "1min"),
            ("SERVER_BATCH_COUNT_MAX", "2"),
            ("SERVER_WRITES_IN_FLIGHT", "2"),
        ])
        .await;
        let limits = async |wanted: f64| {
            for metric in [&c::BATCH_DOCUMENTS_LIMIT, &c::WRITES_IN_FLIGHT_LIMIT] {
                until(&scene, metric, |limit| (limit - wanted).abs() < 0.5).await;
            }
        };
        limits(2.0).await;
        let busy = Fault::Answer(503, "", r#"{"error":"busy"}"#.to_owned());
        scene.store.rule(Rule::new("_bulk_docs", busy).times(1));
        scene.publish_all(&["web01"], 1, &json!(1)).await;
        limits(1.0).await;
        scene.until_ended("stored", 1.0).await;
        scene.publish_all(&["web02"], 1, &json!(1)).await;
        limits(2.0).await;
        scene.end().await;
    });
}

/// Goal: a server under load exports each metric that is declared for it, with help and type, and nothing else: no
/// metric, no label, no label value; and what it counted is what was done.
#[test]
fn a_server_exports_what_is_declared() {
    in_system(async {
        let mut scene = Scene::new(&[
            ("SERVER_NODE_IDLE", "1s"),
            // No write is too slow, however busy the machine is.
            ("SERVER_WRITE_TARGET", "1min"),
        ])
        .await;
        let designs = ["admin", "setup", "--designs", "etc/vogeler/_design"];
        scene.v.vogeler(&designs).ok();
        publish_some(&scene).await;
        scene.until_ended("stored", 5.0).await;
        scene.until_ended("dead_lettered", 1.0).await;
        until(&scene, &c::NODE_PASSIVATIONS, |ended| ended >= 3.0).await;
        until(&scene, &c::DEAD_LETTERS_WAITING, |letters| letters > 0.5).await;
        let seen = scrape(&scene);
        let written = seen.sum(&c::DOCUMENTS_WRITTEN);
        assert!(written >= 3.0, "{written}");
        assert!(seen.sum(&c::BATCH_BYTES) >= 1.0);
        assert!(seen.sum(&c::DOCUMENT_BYTES_WRITTEN) > 100.0 * written);
        assert!(seen.sum(&c::LAST_WRITE_TIMESTAMP_SECONDS) > 1.7e9);
        let took = scene.metric("vogeler_published_to_stored_seconds_sum");
        assert!((2.0..60.0).contains(&took), "{took}");
        let failed = r#"vogeler_plugin_results_total{plugin="facts",status="error"}"#;
        assert!((scene.metric(failed) - 1.0).abs() < 0.5);
        hold_to_the_catalogue(&seen);
        for (metric, wanted) in expected() {
            let sum = seen.sum(metric);
            assert!(
                (sum - wanted).abs() < 0.5,
                "{metric:?}: {sum}, not {wanted}"
            );
        }
        // A server counts the nodes when it starts.
        assert_eq!(scene.server.take().unwrap().stop().code(), Some(0));
        scene.server = Some(scene.v.server());
        let reporting = r#"vogeler_nodes{state="reporting"}"#;
        until(&scene, &c::NODES, |nodes| nodes > 2.5).await;
        assert_eq!(scene.metric(reporting).to_string(), "3");
        scene.end().await;
    });
}
