//! The real server between a real RabbitMQ and a real store, with proxies on both sides that a test breaks.
//!
//! The store is pouchdb-server, or the CouchDB that `VOGELER_TEST_COUCH` names. Whenever a scene waits for something, it
//! scrapes the metrics, and fails if the accounting identity does not hold.

use std::sync::Arc;
use std::time::Duration;

use reqwest::Method;
use serde_json::Value;
use url::Url;
use vogeler::broker::{self, Broker, topology};
use vogeler::config;
use vogeler::wire::PluginResult;

use super::installation::{Installation, Running};
use super::pipeline::{eventually, message, value};
use super::proxy::Proxy;
use super::rabbit::Rabbit;
use crate::store::place::{Http, Other, Place};

/// A server, what it talks to, and what stands in between.
#[derive(Debug)]
pub(crate) struct Scene {
    pub(crate) v: Installation,
    pub(crate) server: Option<Running>,
    pub(crate) store: Proxy,
    pub(crate) rabbit: Proxy,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) vhost: Url,
    place: Place,
}

impl Scene {
    /// A running server on the shared RabbitMQ, with these settings (`SERVER_HOLD_MAX`, …).
    pub(crate) async fn new(settings: &[(&str, &str)]) -> Self {
        Self::on(Rabbit::shared().fresh_vhost(), settings).await
    }

    /// A running server on this virtual host.
    pub(crate) async fn on(vhost: Url, settings: &[(&str, &str)]) -> Self {
        let place = match Place::couchdb().await {
            Some(place) => place,
            None => Place::pouchdb().await.unwrap(),
        };
        let Other::Couch(http) = &place.other else {
            panic!("not an HTTP store");
        };
        let mut database = http.database.clone();
        let store = Proxy::http(database.port().unwrap());
        database.set_port(Some(store.port())).unwrap();
        let rabbit = Proxy::tcp(vhost.port().unwrap());
        let mut through = vhost.clone();
        through.set_port(Some(rabbit.port())).unwrap();
        let dsn = database.as_str().replacen("http", "couch", 1);
        let mut v = Installation::new(through.as_str(), &dsn);
        v.set("VOGELER_BROKER_PARTITIONS", "2");
        v.set("VOGELER_BROKER_QUEUE_TYPE", "classic");
        // Long enough that what a test publishes together is written together.
        v.set("VOGELER_SERVER_LINGER", "300ms");
        for (name, value) in settings {
            v.set(&format!("VOGELER_{name}"), value);
        }
        let broker_config = config::Broker {
            dsn: vhost.as_str().parse().unwrap(),
            ..config::Broker::default()
        };
        let server = v.server();
        Self {
            v,
            server: Some(server),
            store,
            rabbit,
            broker: broker::open(&broker_config),
            vhost,
            place,
        }
    }

    /// Ends it all, and checks that nothing was left half way.
    pub(crate) async fn end(mut self) {
        self.store.clear();
        if let Some(server) = self.server.take() {
            assert_eq!(server.stop().code(), Some(0));
        }
        self.broker.close().await;
        self.place.tear_down().await;
    }

    /// Publishes a result as its client would.
    pub(crate) async fn publish(&self, result: &PluginResult) {
        let body = result.encode().unwrap();
        let message = message(&topology::result_key(&result.node), body);
        self.broker.publish(message).await.unwrap();
    }

    /// Publishes the value `json` of plugin `rpms` for each of these nodes.
    pub(crate) async fn publish_all(&self, nodes: &[&str], seq: u64, json: &Value) {
        let publish = nodes.iter().map(async |node| {
            self.publish(&value(node, "rpms", seq, json)).await;
        });
        futures::future::join_all(publish).await;
    }

    /// The other program, which talks to the store itself.
    pub(crate) fn other(&self) -> &Http {
        match &self.place.other {
            Other::Couch(http) => http,
            _ => panic!("not an HTTP store"),
        }
    }

    /// The node's document, or `null`.
    pub(crate) async fn document(&self, node: &str) -> Value {
        self.other().get(node).await.unwrap_or(Value::Null)
    }

    /// Deletes the database behind the server's back, or makes it again.
    pub(crate) async fn database(&self, method: Method) {
        let (status, body) = self.other().send(method, &[], None).await;
        assert!(status.is_success(), "{status}: {body}");
    }

    /// A metric; 0 if it was never recorded.
    pub(crate) fn metric(&self, series: &str) -> f64 {
        self.v.metric(series).unwrap_or(0.0)
    }

    /// A metric of both partitions, added up.
    pub(crate) fn of_partitions(&self, name: &str) -> f64 {
        let of = |partition| self.metric(&format!("{name}{{partition=\"{partition}\"}}"));
        of(0) + of(1)
    }

    /// How many deliveries ended so.
    pub(crate) fn ended(&self, outcome: &str) -> f64 {
        self.metric(&format!("vogeler_results_total{{outcome=\"{outcome}\"}}"))
    }

    /// Waits for `condition`; every look checks the accounting.
    pub(crate) async fn until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        eventually(what, async || {
            self.check_accounts();
            condition().then_some(())
        })
        .await;
    }

    /// Waits until so many deliveries ended so.
    pub(crate) async fn until_ended(&self, outcome: &str, count: f64) {
        let what = format!("{count} deliveries {outcome}");
        self.until(&what, || self.ended(outcome) >= count).await;
    }

    /// The identity, as one scrape shows it.
    pub(crate) fn check_accounts(&self) {
        if let Some([received, ended, in_flight]) = self.v.accounts() {
            assert!(
                (received - ended - in_flight).abs() < 0.5,
                "{received} received, {ended} ended, {in_flight} in flight"
            );
        }
    }

    /// Waits until the server is ready, or says that it is not.
    pub(crate) async fn until_ready(&self, is_ready: bool) {
        let status = if is_ready { 200 } else { 503 };
        let what = format!("/readyz answers {status}");
        let mut said = None;
        self.until(&what, || {
            let answer = self.v.get("/readyz");
            let is_so = answer.as_ref().is_some_and(|(now, _)| *now == status);
            if said != answer {
                println!("/readyz: {answer:?}");
                said = answer;
            }
            is_so
        })
        .await;
    }

    /// How often the server's log holds this.
    pub(crate) fn logged(&self, text: &str) -> usize {
        self.server
            .as_ref()
            .map_or(0, |server| server.log().matches(text).count())
    }

    /// Messages that wait in the partition queues.
    pub(crate) async fn waiting(&self) -> u64 {
        let queues = ["vogeler.results.0", "vogeler.results.1"];
        let depths = self.broker.depth(&queues).await.unwrap();
        depths.iter().flatten().map(|depth| depth.ready).sum()
    }

    /// Lets time pass in which something must not happen.
    pub(crate) async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
        self.check_accounts();
    }
}
