//! A broker that notes the results which pass through it: how the ledger learns what real clients send.
//!
//! Invariant: a result is in the ledger before the broker can have it. It was due when it was collected: its wait in
//! the client's spool counts.

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::sync::watch;
use vogeler::broker::topology::{Binding, Exchange, Queue};
use vogeler::broker::{
    Broker, BrokerError, Consumer, Link, Message, Missing, QueueBrowser, QueueDepth,
};
use vogeler::wire::{Content, PluginResult};

use super::{Fleet, Start};
use crate::ledger::{EntryId, Hash, Sent};

/// Another broker, and the fleet whose ledger takes the notes.
#[derive(Debug)]
pub(super) struct RecordingBroker {
    pub(super) inner: Arc<dyn Broker>,
    pub(super) fleet: Fleet,
    pub(super) start: Start,
}

impl RecordingBroker {
    /// The result's entry, and when it was due.
    fn note(&self, message: &Message) -> Option<(EntryId, u64)> {
        if message.exchange != Exchange::Results {
            return None;
        }
        let body = match message.properties.content_encoding {
            Some(_) => zstd::decode_all(&message.body[..]).ok()?,
            None => message.body.to_vec(),
        };
        let result = PluginResult::decode(&body, Timestamp::now()).ok()?;
        let hash = match &result.content {
            Content::Value { hash, .. } => Hash::of_wire(hash),
            Content::Error(error) => Hash::of(error.message.as_bytes()),
        };
        let due = self.start.micros_at(result.collected_at);
        let entry = self.fleet.ledger.sending(&Sent {
            node: result.node,
            plugin: result.plugin?,
            run: result.run,
            seq: result.seq.0,
            hash,
            version: None,
            due,
            is_late: false,
        });
        Some((entry, due))
    }
}

#[async_trait]
impl Broker for RecordingBroker {
    async fn publish(&self, message: Message) -> Result<(), BrokerError> {
        let Some((entry, due)) = self.note(&message) else {
            return self.inner.publish(message).await;
        };
        let (stats, ledger) = (&self.fleet.stats, &self.fleet.ledger);
        if ledger.attempt(entry, self.start.micros()) {
            stats.due.add();
            stats.sent.add();
        }
        let published = self.inner.publish(message).await;
        if published.is_ok() {
            ledger.confirm(entry, self.start.micros());
            stats.confirmed.add();
            stats.publish_to_confirmed.record(self.start.since(due));
        } else {
            stats.failed_publishes.add();
        }
        published
    }

    async fn declare(&self, queues: &[Queue]) -> Result<(), BrokerError> {
        self.inner.declare(queues).await
    }

    async fn unbind(&self, queue: &str, bindings: &[Binding]) -> Result<(), BrokerError> {
        self.inner.unbind(queue, bindings).await
    }

    async fn consume(&self, queue: &Queue, prefetch: u16) -> Result<Consumer, BrokerError> {
        self.inner.consume(queue, prefetch).await
    }

    async fn browse(
        &self,
        queue: &Queue,
        turn: &Queue,
    ) -> Result<Box<dyn QueueBrowser>, BrokerError> {
        self.inner.browse(queue, turn).await
    }

    async fn depth(&self, queues: &[&str]) -> Result<Vec<Option<QueueDepth>>, BrokerError> {
        self.inner.depth(queues).await
    }

    async fn missing(&self, queues: &[&str]) -> Result<Vec<Missing>, BrokerError> {
        self.inner.missing(queues).await
    }

    fn link(&self) -> watch::Receiver<Link> {
        self.inner.link()
    }

    async fn about(&self) -> Result<String, BrokerError> {
        self.inner.about().await
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}
