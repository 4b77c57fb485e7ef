//! A load for tests that break things under it: nodes that publish results in order, and a look at what the store has
//! of them in the end.
//!
//! In a thread of its own, beside the test, and by way of the library: the load tester proper has tests of its own.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use serde_json::json;
use vogeler::backoff::Backoff;
use vogeler::broker::{self, Broker, topology};
use vogeler::config;
use vogeler::document::NodeDocument;
use vogeler::store::{self, Store};
use vogeler::wire::{NodeName, Seq};

use super::installation::Installation;
use super::pipeline::{message, name, value};

/// Publishes under way at once.
const PUBLISHES_MAX: usize = 512;
/// Documents read at once.
const CHECK_CHUNK: usize = 200;
const PAUSE: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// Longest time for all of it, on a slow machine with the server killed in between.
const PATIENCE: Duration = Duration::from_secs(90);
const PLUGIN: &str = "loadtest";

/// A load under way.
#[derive(Debug)]
pub(crate) struct Load(JoinHandle<Vec<NodeName>>);

impl Load {
    /// `nodes` nodes publish `results` results each.
    pub(crate) fn start(v: &Installation, nodes: u64, results: u64) -> Self {
        let broker = config::Broker {
            dsn: v.broker().parse().unwrap(),
            ..config::Broker::default()
        };
        let store = config::Store {
            dsn: v.store().parse().unwrap(),
            ..config::Store::default()
        };
        Self(std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.unwrap().block_on(async {
                let (broker, store) = (broker::open(&broker), store::open(&store).unwrap());
                let deadline = Instant::now() + PATIENCE;
                let sent = publish_all(&broker, nodes, results, deadline).await;
                let lost = lost(store.as_ref(), &sent, deadline).await;
                broker.close().await;
                store.close().await;
                lost
            })
        }))
    }

    /// Waits for its end: the nodes whose newest result the store has not.
    pub(crate) fn lost(self) -> Vec<NodeName> {
        self.0.join().unwrap()
    }
}

/// Publishes each node's results in order, many nodes at once. Returns the newest of each.
async fn publish_all(
    broker: &Arc<dyn Broker>,
    nodes: u64,
    results: u64,
    deadline: Instant,
) -> HashMap<NodeName, Seq> {
    let base = u64::try_from(jiff::Timestamp::now().as_microsecond()).unwrap();
    let publish = async |number: u64| {
        let node = name(&format!("load{number:06}.example.com"));
        for seq in base..base + results {
            let filler = json!(format!("{seq:0>2000}"));
            let body = value(node.as_str(), PLUGIN, seq, &filler).encode().unwrap();
            let message = message(&topology::result_key(&node), body);
            let mut backoff = Backoff::new(PAUSE, RETRY_MAX);
            // An outage of the broker delays the load and loses nothing, as with a client.
            while let Err(error) = broker.publish(message.clone()).await {
                assert!(error.is_retryable() && Instant::now() < deadline, "{error}");
                tokio::time::sleep(backoff.next_random()).await;
            }
        }
        (node, Seq(base + results - 1))
    };
    futures::stream::iter(0..nodes)
        .map(publish)
        .buffer_unordered(PUBLISHES_MAX)
        .collect()
        .await
}

/// The nodes whose newest result is not in the store when time is up. The store may be away for a while.
async fn lost(
    store: &dyn Store,
    sent: &HashMap<NodeName, Seq>,
    deadline: Instant,
) -> Vec<NodeName> {
    let mut missing: Vec<NodeName> = sent.keys().cloned().collect();
    loop {
        let mut still = Vec::new();
        for chunk in missing.chunks(CHECK_CHUNK) {
            let documents = store.load(chunk).await.unwrap_or_default();
            let newest = |node: &NodeName| {
                let document = NodeDocument::parse(node, &documents.get(node)?.json).ok()?;
                document.plugins().get(PLUGIN).map(|state| state.seq)
            };
            still.extend(
                chunk
                    .iter()
                    .filter(|node| newest(node) != sent.get(*node).copied())
                    .cloned(),
            );
        }
        missing = still;
        if missing.is_empty() || Instant::now() >= deadline {
            return missing;
        }
        tokio::time::sleep(PAUSE).await;
    }
}
