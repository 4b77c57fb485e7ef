//! The survey: asks broker and store at intervals for what the gauges show.
//!
//! Reads queue depths and node counts; changes nothing. Invariant: a question that is not answered leaves the gauges
//! as they were, and the store is asked only while it can be used.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::debug;

use crate::broker::{Broker, BrokerError, Link, topology};
use crate::config::Config;
use crate::store::{Store, StoreError};
use crate::telemetry::{NodeState, Partition, catalogue};

/// Pause between two looks at the queues.
const QUEUES_EVERY: Duration = Duration::from_secs(5);
/// Shortest pause between two counts of the nodes.
const NODES_EVERY: Duration = Duration::from_mins(1);
/// The pause is at least this multiple of the last count's duration: CouchDB reads all documents for a count, and the
/// ingest needs that time.
const NODES_REST: u32 = 50;

/// What is asked, and of whom.
#[derive(Debug)]
struct Survey {
    broker: Arc<dyn Broker>,
    store: Arc<dyn Store>,
    store_link: watch::Receiver<Link>,
    partitions: u16,
    stale_after: Duration,
}

/// Asks until the task is aborted.
pub(super) fn start(
    config: &Config,
    broker: &Arc<dyn Broker>,
    store: &Arc<dyn Store>,
    store_link: watch::Receiver<Link>,
) -> JoinHandle<()> {
    let survey = Survey {
        broker: Arc::clone(broker),
        store: Arc::clone(store),
        store_link,
        partitions: config.broker.partitions,
        stale_after: config.server.stale_after.max(config.server.freshness),
    };
    tokio::task::spawn_local(async move {
        tokio::join!(survey.watch_queues(), survey.watch_nodes());
    })
}

impl Survey {
    async fn watch_queues(&self) {
        loop {
            if let Err(error) = self.look_at_queues().await {
                debug!(target: "vogeler::ingest::survey", %error, "the queues cannot be looked at");
            }
            tokio::time::sleep(QUEUES_EVERY).await;
        }
    }

    async fn look_at_queues(&self) -> Result<(), BrokerError> {
        let partitions = 0..self.partitions;
        let mut names: Vec<_> = partitions.map(topology::results_queue_name).collect();
        names.push(topology::DEAD_QUEUE.to_owned());
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let mut depths = self.broker.depth(&names).await?;
        if let Some(dead) = depths.pop().flatten() {
            catalogue::DEAD_LETTERS_WAITING.get().set(float(dead.ready));
        }
        for (partition, depth) in (0..).map(Partition).zip(depths) {
            // A queue that is not there holds nothing, and nobody consumes it.
            let (ready, consumers) = depth.map_or((0, 0), |depth| (depth.ready, depth.consumers));
            catalogue::QUEUE_MESSAGES_READY
                .of(partition)
                .set(float(ready));
            catalogue::QUEUE_CONSUMERS
                .of(partition)
                .set(float(consumers));
        }
        Ok(())
    }

    async fn watch_nodes(&self) {
        let mut link = self.store_link.clone();
        // The sender lives as long as the server; without it there is nothing to ask.
        while link.wait_for(|link| *link == Link::Up).await.is_ok() {
            let started = Instant::now();
            if let Err(error) = self.count_nodes().await {
                debug!(target: "vogeler::ingest::survey", %error, "the nodes cannot be counted");
            }
            tokio::time::sleep(NODES_EVERY.max(started.elapsed() * NODES_REST)).await;
        }
    }

    async fn count_nodes(&self) -> Result<(), StoreError> {
        let since = Timestamp::now()
            .checked_sub(self.stale_after)
            .unwrap_or(Timestamp::MIN);
        let census = self.store.census(since).await?;
        let stale = census.nodes.saturating_sub(census.recent);
        let gauge = |state| catalogue::NODES.of(state);
        gauge(NodeState::Reporting).set(float(census.recent));
        gauge(NodeState::Stale).set(float(stale));
        Ok(())
    }
}

#[allow(clippy::cast_precision_loss, reason = "a gauge is a float")]
fn float(count: u64) -> f64 {
    count as f64
}
