//! Hears the receipts of all runs, and so learns the fate of each result without asking the store.
//!
//! Invariant: it listens before the first message is sent. Its queue ends with its connection. If a fault cuts the
//! connection, the receipts under way are lost with the queue: these are the ones that a fault explains.

use std::time::Duration;

use anyhow::Context as _;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use vogeler::broker::Consumer;
use vogeler::broker::topology::{Binding, Consumers, Exchange, Lifetime, Queue, QueueType};
use vogeler::wire::ReceiptBatch;

use super::{Fleet, Start, Target};
use crate::ledger::Noted;

/// Receipt messages unsettled at once; each is a batch already.
const PREFETCH: u16 = 256;
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The listener's task.
#[derive(Debug)]
pub(super) struct Listener(JoinHandle<()>);

impl Listener {
    /// Listens until `stop`.
    pub(super) async fn start(
        fleet: &Fleet,
        target: &Target,
        start: Start,
        stop: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let broker = target.brokers.open();
        let consumer = broker.consume(&queue(), PREFETCH).await;
        let mut consumer = consumer.context("the receipts cannot be heard")?;
        let (fleet, stop) = (fleet.clone(), stop.clone());
        Ok(Self(tokio::spawn(async move {
            stop.run_until_cancelled(hear(&fleet, &mut consumer, start))
                .await;
            consumer.close(CLOSE_TIMEOUT).await;
            broker.close().await;
        })))
    }

    /// Waits for its end.
    pub(super) async fn stop(self) {
        self.0.await.unwrap_or_default();
    }
}

fn queue() -> Queue {
    Queue {
        name: format!("vogeler.receipts.loadtest-{}", Uuid::now_v7()),
        lifetime: Lifetime::Exclusive,
        queue_type: QueueType::Classic,
        consumers: Consumers::Shared,
        bindings: vec![Binding {
            exchange: Exchange::Receipts,
            key: "#".to_owned(),
        }],
    }
}

async fn hear(fleet: &Fleet, consumer: &mut Consumer, start: Start) {
    let mut heard: Option<(u64, u64)> = None;
    while let Some(delivery) = consumer.next().await {
        let now = start.micros();
        if let Some((session, at)) = heard
            && session != delivery.session
        {
            fleet.ledger.listener_gap(at, now);
        }
        heard = Some((delivery.session, now));
        match serde_json::from_slice::<ReceiptBatch>(&delivery.body) {
            Ok(batch) => {
                for receipt in &batch.receipts {
                    let noted = fleet.ledger.receipt(batch.run, receipt, now);
                    if let Noted::First { due } = noted {
                        fleet.stats.published_to_stored.record(start.since(due));
                    }
                    if noted != Noted::Foreign {
                        fleet.stats.settle(receipt.outcome);
                    }
                }
            }
            Err(error) => tracing::error!(%error, "a message that is no receipts"),
        }
        delivery.settler.ack();
    }
}
