//! Receipts on their way to the runners: gathered for a moment, then sent as one message per run and flush.
//!
//! Receipts never hold up an ack: when the queue is full or the broker away they are dropped and counted. As soon as
//! possible the runner learns how many of its run were lost: it then asks the store, and calls no node silent.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use super::runs::Runs;
use crate::backoff::Backoff;
use crate::broker::topology::Exchange;
use crate::broker::{Broker, BrokerError, Message, Properties};
use crate::telemetry;
use crate::trace::TraceParent;
use crate::wire::{Receipt, ReceiptBatch, RunId};

/// Most receipts that wait; a run on 10,000 nodes fits.
const WAITING_MAX: usize = 16_384;
/// Most receipts in one message: about 256 KiB.
const BATCH_MAX: usize = 2_048;
/// Tries to publish one batch; a longer outage outlasts most runs.
const TRIES_MAX: u32 = 4;
/// Most runs at once whose lost receipts are counted; further runs do not learn of theirs.
const LOST_RUNS_MAX: usize = 1_000;
/// Pause between two tries to inform these runs.
const LOST_EVERY: Duration = Duration::from_secs(1);
const RETRY_BASE: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// Where tickets leave their receipts. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct ReceiptSender {
    queue: mpsc::Sender<(RunId, Receipt)>,
    runs: Runs,
    lost: Lost,
}

/// Counts, by run, the dropped receipts that the run does not know about yet. Cheap to clone.
#[derive(Debug, Clone, Default)]
struct Lost(Arc<Mutex<HashMap<RunId, u64>>>);

impl Lost {
    fn lock(&self) -> MutexGuard<'_, HashMap<RunId, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, run: RunId, count: u64) {
        let mut lost = self.lock();
        if count > 0 && (lost.len() < LOST_RUNS_MAX || lost.contains_key(&run)) {
            let sum = lost.entry(run).or_default();
            *sum = sum.saturating_add(count);
        }
    }

    fn take(&self, run: RunId) -> u64 {
        self.lock().remove(&run).unwrap_or_default()
    }

    fn runs(&self) -> Vec<RunId> {
        self.lock().keys().copied().collect()
    }

    fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }
}

impl ReceiptSender {
    /// The runs that the results belong to.
    pub(super) fn runs(&self) -> &Runs {
        &self.runs
    }

    /// Takes a receipt, without waiting.
    pub(super) fn send(&self, run: RunId, receipt: Receipt) {
        self.runs.settled(run, &receipt);
        if self.queue.try_send((run, receipt)).is_err() {
            self.lost.add(run, 1);
            telemetry::record_receipts_failed(1);
            debug!(target: "vogeler::ingest::receipts", %run, "receipt dropped: the queue is full or closed");
        }
    }
}

/// Starts the publisher. It ends, after a last flush, when all senders are gone.
pub(super) fn start(broker: Arc<dyn Broker>, linger: Duration) -> (ReceiptSender, JoinHandle<()>) {
    let (queue, receiver) = mpsc::channel(WAITING_MAX);
    let lost = Lost::default();
    let publisher = Publisher {
        broker,
        lost: lost.clone(),
    };
    (
        ReceiptSender {
            queue,
            runs: Runs::default(),
            lost,
        },
        tokio::spawn(publisher.run(receiver, linger)),
    )
}

struct Publisher {
    broker: Arc<dyn Broker>,
    lost: Lost,
}

impl Publisher {
    async fn run(self, mut receiver: mpsc::Receiver<(RunId, Receipt)>, linger: Duration) {
        let mut gathered = Vec::new();
        loop {
            let received = if self.lost.is_empty() {
                Ok(receiver.recv_many(&mut gathered, BATCH_MAX).await)
            } else {
                let next = receiver.recv_many(&mut gathered, BATCH_MAX);
                tokio::time::timeout(LOST_EVERY, next).await
            };
            if matches!(received, Ok(1..)) {
                if !receiver.is_closed() && gathered.len() < BATCH_MAX {
                    tokio::time::sleep(linger).await;
                    while gathered.len() < BATCH_MAX {
                        let Ok(more) = receiver.try_recv() else { break };
                        gathered.push(more);
                    }
                }
                self.publish_gathered(&mut gathered).await;
            }
            self.tell_lost().await;
            if received == Ok(0) {
                return;
            }
        }
    }

    async fn publish_gathered(&self, gathered: &mut Vec<(RunId, Receipt)>) {
        let mut runs: HashMap<RunId, Vec<Receipt>> = HashMap::new();
        for (run, receipt) in gathered.drain(..) {
            runs.entry(run).or_default().push(receipt);
        }
        for (run, receipts) in runs {
            self.publish(run, receipts).await;
        }
    }

    /// Informs the runs whose receipts were lost; the first failure ends this until later.
    async fn tell_lost(&self) {
        for run in self.lost.runs() {
            if !self.publish(run, Vec::new()).await {
                return;
            }
        }
    }

    /// Publishes one message and returns whether the broker has it. If not, its receipts are lost, and the run learns of
    /// that later.
    async fn publish(&self, run: RunId, receipts: Vec<Receipt>) -> bool {
        let (count, lost) = (receipts.len(), self.lost.take(run));
        let batch = ReceiptBatch {
            lost,
            ..ReceiptBatch::new(run, receipts)
        };
        let Ok(body) = serde_json::to_vec(&batch) else {
            return true;
        };
        let published = publish(self.broker.as_ref(), run, body).await;
        match &published {
            Ok(()) => {
                debug!(target: "vogeler::ingest::receipts", %run, count, lost, "receipts published");
                telemetry::record_receipts(count);
            }
            Err(error) => {
                self.lost.add(run, lost.saturating_add(count as u64));
                if count > 0 {
                    telemetry::record_receipts_failed(count);
                    warn!(target: "vogeler::ingest::receipts", %run, count, %error, "receipts lost; the runner will look in the store");
                }
            }
        }
        published.is_ok()
    }
}

async fn publish(broker: &dyn Broker, run: RunId, body: Vec<u8>) -> Result<(), BrokerError> {
    let mut properties = Properties {
        content_type: Some("application/json".to_owned()),
        ..Properties::default()
    };
    // The message is about many results: it belongs to their trace, below none of their spans.
    TraceParent::generate(run).put(&mut properties);
    let message = Message {
        exchange: Exchange::Receipts,
        routing_key: run.to_string(),
        body: body.into(),
        properties,
        persistent: false,
        // A runner that did not wait, or left, is no error.
        mandatory: false,
    };
    let mut backoff = Backoff::new(RETRY_BASE, RETRY_MAX);
    loop {
        match broker.publish(message.clone()).await {
            Err(error) if error.is_retryable() && backoff.tries() + 1 < TRIES_MAX => {
                tokio::time::sleep(backoff.next_random()).await;
            }
            published => return published,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::memory::MemoryBroker;
    use crate::broker::{Link, topology};
    use crate::wire::Outcome;

    fn receipt() -> Receipt {
        Receipt {
            node: "web01".parse().unwrap(),
            plugin: "rpms".parse().unwrap(),
            outcome: Outcome::Unchanged,
            error: None,
            reason: None,
            copy: None,
        }
    }

    /// Goal: a run whose receipts were lost is told how many, once the broker is back, though no further receipt comes.
    #[tokio::test(start_paused = true)]
    async fn a_run_is_told_what_was_lost() {
        let broker = MemoryBroker::new();
        let (run, other) = (RunId::generate(), RunId::generate());
        let (sender, publisher) = start(Arc::new(broker.clone()), Duration::from_millis(10));
        let down = Link::Down {
            reason: "a test".to_owned(),
        };
        broker.set_link(down);
        sender.send(run, receipt());
        sender.send(run, receipt());
        while sender.lost.is_empty() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        broker.set_link(Link::Up);
        let queue = topology::receipts_queue(run);
        let mut consumer = broker.consume(&queue, 10).await.unwrap();
        let delivery = consumer.next().await.unwrap();
        let batch: ReceiptBatch = serde_json::from_slice(&delivery.body).unwrap();
        assert_eq!((batch.run, batch.lost, batch.receipts.len()), (run, 2, 0));
        delivery.settler.ack();
        assert!(sender.lost.is_empty(), "told once");
        sender.lost.add(other, 0);
        assert!(sender.lost.is_empty());
        drop(sender);
        publisher.await.unwrap();
    }
}
