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
use crate::harness::process::free_port;
use crate::harness::prometheus::{Prometheus, Target};
use crate::harness::{pouch, rabbit::Rabbit};

/// How long all expressions together may take to have data, on two busy cores.
const PATIENCE: Duration = Duration::from_mins(3);
const PLUGINS: &str = "
[clock]
command = date +%s.%N
result_format = output

[broken]
command = false
result_format = output
";

/// What a scrape of the real thing gave, served again: the tests have no CouchDB and no second machine.
async fn recorded() -> String {
    let couchdb = include_str!("../fixtures/exporters/couchdb-3.5.0.prom");
    let node = include_str!("../fixtures/exporters/node-exporter-1.5.0.prom");
    let routes = Router::new()
        .route("/couchdb", get(async move || couchdb))
        .route("/node", get(async move || node));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async { axum::serve(listener, routes).await });
    address
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
    let client_address = format!("127.0.0.1:{}", free_port());
    let mut v = Installation::new(rabbit.fresh_vhost().as_str(), &pouch::fresh_dsn());
    v.set("VOGELER_CLIENT_HTTP_LISTEN", &client_address);
    v.plugin_file("test.cfg", PLUGINS);
    v.vogeler(&["admin", "setup"]).ok();
    let _server = v.server();
    let _client = v.client("web01.example.com", "");
    in_system(async {
        let recorded = recorded().await;
        let exporter = format!("127.0.0.1:{}", rabbit.metrics_port());
        let targets = [
            ("vogeler", v.http_address(), "/metrics"),
            ("clients", client_address, "/metrics"),
            ("rabbitmq", exporter, "/metrics"),
            ("couchdb", recorded.clone(), "/couchdb"),
            ("couchdb-node", recorded, "/node"),
        ];
        let targets = targets.map(|(job, address, path)| Target { job, address, path });
        let prometheus = Prometheus::start(&targets, &RULES);
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
                if series.is_empty() {
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
