//! An ingest server in this process, on the memory broker and store, or on whatever a test brings.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};
use vogeler::broker::memory::MemoryBroker;
use vogeler::broker::topology::{self, Exchange, QueueType};
use vogeler::broker::{Broker, Consumer, Delivery, Link, Message, Properties};
use vogeler::config::Config;
use vogeler::hash::content_hash;
use vogeler::ingest::{Drained, Server};
use vogeler::store::Store;
use vogeler::store::memory::MemoryStore;
use vogeler::telemetry::Ledger;
use vogeler::trace::TraceParent;
use vogeler::wire::{Content, Format, NodeName, Outcome, PluginResult, ReceiptBatch, RunId, Seq};

/// Longest wait for anything a test expects.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Runs `test` inside an actix system, as the server needs.
pub(crate) fn in_system<F: Future<Output = ()>>(test: F) {
    actix::System::new().block_on(test);
}

/// Waits until `condition` gives a value; fails the test, saying what was waited for, when it never does.
pub(crate) async fn eventually<T, F: AsyncFnMut() -> Option<T>>(what: &str, condition: F) -> T {
    eventually_within(PATIENCE, what, condition).await
}

/// Like [`eventually`], for what may take longer.
pub(crate) async fn eventually_within<T, F: AsyncFnMut() -> Option<T>>(
    patience: Duration,
    what: &str,
    mut condition: F,
) -> T {
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "never happened: {what}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A configuration for tests: everything quick.
pub(crate) fn quick_config() -> Config {
    let mut config = Config::default();
    config.broker.partitions = 4;
    config.server.linger = Duration::from_millis(5);
    config.server.receipt_linger = Duration::from_millis(5);
    config.server.retry_max = Duration::from_millis(50);
    config
}

/// A value of `plugin` as its client would send it.
pub(crate) fn value(node: &str, plugin: &str, seq: u64, value: &Value) -> PluginResult {
    let json = to_raw_value(value).unwrap();
    let hash = content_hash(&json, &[]).unwrap();
    result(node, plugin, seq, Content::Value { json, hash })
}

/// A result with whatever content.
pub(crate) fn result(node: &str, plugin: &str, seq: u64, content: Content) -> PluginResult {
    PluginResult {
        node: name(node),
        plugin: Some(plugin.parse().unwrap()),
        seq: Seq(seq),
        collected_at: Timestamp::now(),
        run: None,
        format: Format::Json,
        duration_ms: Some(1),
        content,
    }
}

/// A node's name.
pub(crate) fn name(node: &str) -> NodeName {
    node.parse().unwrap()
}

/// A message as a client would publish it.
pub(crate) fn message(routing_key: &str, body: Vec<u8>) -> Message {
    Message {
        exchange: Exchange::Results,
        routing_key: routing_key.to_owned(),
        body: body.into(),
        properties: Properties {
            content_type: Some("application/json".to_owned()),
            ..Properties::default()
        },
        persistent: true,
        mandatory: true,
    }
}

/// A value of `plugin` as a client of 2010 sends it.
pub(crate) fn of_2010(node: &str, plugin: &str, value: &Value) -> Vec<u8> {
    json!({"syskey": node, "format": "json", plugin: value.to_string()})
        .to_string()
        .into_bytes()
}

/// A server on the memory broker and store, and what a test does around it.
#[derive(Debug)]
pub(crate) struct Pipeline {
    pub(crate) config: Config,
    pub(crate) broker: Arc<MemoryBroker>,
    pub(crate) store: MemoryStore,
    pub(crate) ledger: Arc<Ledger>,
    server: Option<Server>,
}

impl Pipeline {
    /// A running server on an empty store.
    pub(crate) async fn start() -> Self {
        Self::start_with(quick_config(), MemoryStore::new()).await
    }

    /// A running server with this configuration and store.
    pub(crate) async fn start_with(config: Config, store: MemoryStore) -> Self {
        let broker = Arc::new(MemoryBroker::new());
        let mut pipeline = Self {
            config,
            broker,
            store,
            ledger: Arc::new(Ledger::default()),
            server: None,
        };
        pipeline.start_server().await;
        pipeline
    }

    /// Starts a server after [`stop`](Self::stop), with a ledger of its own.
    pub(crate) async fn start_server(&mut self) {
        self.ledger = Arc::new(Ledger::default());
        let (broker, store) = (
            Arc::clone(&self.broker) as Arc<dyn Broker>,
            Arc::new(self.store.clone()) as Arc<dyn Store>,
        );
        self.server = Some(
            Server::start(&self.config, broker, store, Arc::clone(&self.ledger))
                .await
                .unwrap(),
        );
    }

    /// Publishes a result as its client would.
    pub(crate) async fn publish(&self, result: &PluginResult) {
        let body = result.encode().unwrap();
        self.broker
            .publish(message(&topology::result_key(&result.node), body))
            .await
            .unwrap();
    }

    /// Publishes bytes that need not be a result.
    pub(crate) async fn publish_bytes(&self, body: &[u8]) {
        self.broker
            .publish(message("000", body.to_vec()))
            .await
            .unwrap();
    }

    /// Stops the server.
    pub(crate) async fn stop(&mut self) -> Drained {
        self.server.take().unwrap().stop().await
    }

    /// Whether results that belong into another queue can be forwarded.
    pub(crate) fn forwards(&self) -> Link {
        self.server
            .as_ref()
            .unwrap()
            .forward_link()
            .borrow()
            .clone()
    }

    /// How many nodes have an actor.
    pub(crate) fn active_nodes(&self) -> usize {
        self.server.as_ref().unwrap().active_nodes()
    }

    /// The node's document, or `null`.
    pub(crate) fn document(&self, node: &str) -> Value {
        let stored = self.store.document(&name(node));
        stored.map_or(Value::Null, |stored| {
            serde_json::from_str(stored.json.get()).unwrap()
        })
    }

    /// How many deliveries ended so.
    pub(crate) fn ended(&self, outcome: Outcome) -> u64 {
        self.ledger.counts().of(outcome)
    }

    /// Waits until so many deliveries were received and none is in flight.
    pub(crate) async fn settled(&self, received: u64) {
        eventually(
            &format!("{received} deliveries settled: {:?}", self.ledger.counts()),
            async || {
                let counts = self.ledger.counts();
                (counts.received >= received && counts.in_flight() == 0).then_some(())
            },
        )
        .await;
    }

    /// Takes the next dead letter.
    pub(crate) async fn dead_letter(&self) -> Delivery {
        let queue = topology::dead_queue(QueueType::Quorum);
        let mut consumer = self.broker.consume(&queue, 1).await.unwrap();
        tokio::time::timeout(PATIENCE, consumer.next())
            .await
            .expect("no dead letter")
            .unwrap()
    }

    /// Listens for the receipts of `run`.
    pub(crate) async fn receipts(&self, run: RunId) -> Consumer {
        self.broker
            .consume(&topology::receipts_queue(run), 100)
            .await
            .unwrap()
    }
}

/// The next batch of receipts.
pub(crate) async fn next_receipts(consumer: &mut Consumer) -> ReceiptBatch {
    let delivery = tokio::time::timeout(PATIENCE, consumer.next())
        .await
        .expect("no receipt")
        .unwrap();
    let batch: ReceiptBatch = serde_json::from_slice(&delivery.body).unwrap();
    let trace = TraceParent::of(&delivery.properties);
    assert_eq!(trace.map(|trace| trace.run), Some(batch.run));
    delivery.settler.ack();
    batch
}

/// A document as another program would write it.
pub(crate) fn foreign(document: &Value) -> Box<RawValue> {
    to_raw_value(document).unwrap()
}

/// Sets a key of somebody else's in a stored document, as a program that reads and writes it would.
pub(crate) fn edit(store: &MemoryStore, node: &str, key: &str, value: Value) {
    let stored = store.document(&name(node));
    let mut document: Value = stored.map_or_else(
        || json!({}),
        |stored| serde_json::from_str(stored.json.get()).unwrap(),
    );
    document[key] = value;
    store.overwrite(&name(node), foreign(&document));
}
