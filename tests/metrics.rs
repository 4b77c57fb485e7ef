//! The metrics of a real server against the catalogue, and how they move when something goes wrong.

use std::collections::{BTreeMap, BTreeSet};

use reqwest::StatusCode;
use serde_json::json;
use vogeler::telemetry::{Declared, Kind, Role, catalogue};

use crate::harness::pipeline::{in_system, message, name, result, value};
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
    assert_eq!(status, StatusCode::OK.as_u16());
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
    for metric in catalogue::ALL.iter().copied() {
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

/// Goal: a server under load exports each metric that is declared for it, with help and type, and nothing else: no
/// metric, no label, no label value; and what it counted is what was done.
#[test]
fn a_server_exports_what_is_declared() {
    in_system(async {
        let scene = Scene::new(&[("STORE_CREATE", "true")]).await;
        scene
            .v
            .vogeler(&["admin", "setup", "--designs", "etc/vogeler/_design"])
            .ok();
        let mut in_a_run = value("web01", "facts", 1, &json!({"os": "Debian"}));
        in_a_run.run = Some(vogeler::wire::RunId::generate());
        let body = in_a_run.encode().unwrap();
        let mut published = message(&vogeler::broker::topology::result_key(&name("web01")), body);
        let ms = jiff::Timestamp::now().as_millisecond() - 2_000;
        published
            .properties
            .headers
            .insert(vogeler::wire::PUBLISHED_HEADER.to_owned(), ms.to_string());
        scene.broker.publish(published).await.unwrap();
        scene
            .publish_all(&["web01", "web02", "web03"], 1, &json!(["bash"]))
            .await;
        let failed = vogeler::wire::PluginError {
            kind: vogeler::wire::ErrorKind::Timeout,
            message: "slow".to_owned(),
            exit: None,
            stderr: None,
        };
        scene
            .publish(&result(
                "web03",
                "facts",
                2,
                vogeler::wire::Content::Error(failed),
            ))
            .await;
        scene
            .broker
            .publish(message("000", b"no result".to_vec()))
            .await
            .unwrap();
        scene.until_ended("stored", 5.0).await;
        scene.until_ended("dead_lettered", 1.0).await;
        // The looks at queues and nodes come every few seconds.
        until(&scene, &catalogue::DEAD_LETTERS_WAITING, |letters| {
            letters > 0.5
        })
        .await;

        let seen = scrape(&scene);
        hold_to_the_catalogue(&seen);
        for (metric, wanted) in [
            (&catalogue::PLUGIN_RESULTS as &dyn Declared, 5.0),
            (&catalogue::RUNS, 1.0),
            (&catalogue::DECODE_ERRORS, 1.0),
            (&catalogue::DEAD_LETTERS, 1.0),
            (&catalogue::PUBLISHED_TO_STORED_SECONDS, 1.0),
            (&catalogue::MAILBOX_WAIT_SECONDS, 5.0),
            (&catalogue::PARTITIONS, 2.0),
            (&catalogue::PARTITIONS_OWNED, 2.0),
            (&catalogue::PREFETCH_LIMIT, 4000.0),
            (&catalogue::SERVERS, 1.0),
            (&catalogue::DRAINING, 0.0),
            (&catalogue::NODE_ACTORS, 3.0),
            (&catalogue::QUEUE_CONSUMERS, 2.0),
            (&catalogue::QUEUE_MESSAGES_UNACKED, 0.0),
            (&catalogue::QUEUE_LAG_SECONDS, 0.0),
            (&catalogue::BYTES_IN_FLIGHT, 0.0),
            (&catalogue::WRITES_IN_FLIGHT, 0.0),
            (&catalogue::UP, 2.0),
        ] {
            let sum = seen.sum(metric);
            assert!(
                (sum - wanted).abs() < 0.5,
                "{metric:?} is {sum}, not {wanted}"
            );
        }
        let written = seen.sum(&catalogue::DOCUMENTS_WRITTEN);
        assert!((seen.sum(&catalogue::BATCH_BYTES) - 1.0) > -0.5 && written > 2.5);
        assert!(seen.sum(&catalogue::DOCUMENT_BYTES_WRITTEN) > 100.0 * written);
        let sum = |series: &str| scene.metric(series);
        assert!(
            (2.0..60.0).contains(&sum("vogeler_published_to_stored_seconds_sum")),
            "two seconds and more"
        );
        let error = r#"vogeler_plugin_results_total{plugin="facts",status="error"}"#;
        assert!((sum(error) - 1.0).abs() < 0.5);
        scene.end().await;
    });
}
