//! Every expression asked of a real Prometheus that scrapes a server and a client at work, RabbitMQ's own exporter, and what
//! a real CouchDB and a real node_exporter were seen to say.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use serde_json::Value;

use super::expressions::{self, Expression, RULES, substituted};
use super::promql::selectors;
use crate::harness::installation::Installation;
use crate::harness::pipeline::in_system;
use crate::harness::prometheus::{Prometheus, Target};
use crate::harness::{pouch, rabbit::Rabbit};

/// How long all expressions together may take to have data, on two busy cores.
const PATIENCE: Duration = Duration::from_mins(3);
/// What no process records yet: such expressions must be understood, and need no data. It is the work of the branch `client`;
/// with that, `VOGELER_CLIENT_HTTP_LISTEN` is set, the client scraped, and this goes.
const NOT_RECORDED_YET: &str = "vogeler_client_";
const PLUGINS: &str = "
[clock]
command = date +%s.%N
result_format = output

[broken]
command = false
result_format = output
";

/// What a scrape of the real thing gave, served again: the tests have no CouchDB and no second machine.
async fn recorded() -> u16 {
    let couchdb = include_str!("../fixtures/exporters/couchdb-3.5.0.prom");
    let node = include_str!("../fixtures/exporters/node-exporter-1.5.0.prom");
    let routes = Router::new()
        .route("/couchdb", get(async move || couchdb))
        .route("/node", get(async move || node));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async { axum::serve(listener, routes).await });
    port
}

/// What is asked, by its place: the panels' and recording rules' expressions as they are; of alerts, which are empty
/// while all is well, what they select.
fn questions() -> BTreeMap<String, String> {
    let mut asked = BTreeMap::new();
    let mut ask = |place: &str, text: &str| {
        asked.insert(format!("{place}: {text}"), substituted(text));
    };
    for Expression { place, text } in expressions::of_panels() {
        ask(&place, &text);
    }
    for rule in expressions::rules() {
        match (rule.record, rule.alert) {
            (Some(record), _) => ask("recorded", &record),
            (_, Some(alert)) => {
                for selector in selectors(&rule.expr) {
                    ask(&alert, &selector.metric);
                }
            }
            (None, None) => panic!("neither record nor alert: {}", rule.expr),
        }
    }
    asked
}

/// Goal: on a system at work, Prometheus understands every expression of every board and rule, and each has data.
#[test]
fn every_expression_has_data_on_a_real_prometheus() {
    let rabbit = Rabbit::exporting();
    let v = Installation::new(rabbit.fresh_vhost().as_str(), &pouch::fresh_dsn());
    v.plugin_file("test.cfg", PLUGINS);
    v.vogeler(&["admin", "setup"]).ok();
    let _server = v.server();
    let _client = v.client("web01.example.com", "");
    in_system(async {
        let recorded = recorded().await;
        let targets = [
            ("vogeler", v.http_port(), "/metrics"),
            ("rabbitmq", rabbit.metrics_port(), "/metrics"),
            ("couchdb", recorded, "/couchdb"),
            ("couchdb-node", recorded, "/node"),
        ];
        let prometheus = Prometheus::start(
            &targets.map(|(job, port, path)| Target { job, port, path }),
            &RULES,
        );
        let mut open = questions();
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !open.is_empty() && tokio::time::Instant::now() < deadline {
            // One plugin that always has news and one that fails; the exit code says that not all answered well.
            v.vogeler(&["run", "clock", "-n", "all"]);
            v.vogeler(&["run", "broken", "-n", "all"]);
            tokio::time::sleep(Duration::from_secs(2)).await;
            let mut left = BTreeMap::new();
            for (place, text) in open {
                let answer = prometheus.query(&text).await;
                let series = answer.unwrap_or_else(|error| panic!("{place}: {error}"));
                let is_due = !text.contains(NOT_RECORDED_YET);
                if series.is_empty() && is_due {
                    left.insert(place, text);
                }
            }
            open = left;
        }
        assert!(
            open.is_empty(),
            "no data: {:#?}",
            open.keys().collect::<Vec<_>>()
        );
        for rule in prometheus.rules().await.unwrap() {
            assert_eq!(rule["health"], Value::from("ok"), "{rule}");
        }
    });
}
