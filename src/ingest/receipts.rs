//! Receipts on their way to the runners: gathered for a moment, then one message a run and flush.
//!
//! Receipts never hold up an ack: when the queue is full or the broker away they are dropped and counted in the
//! log, and the runner finds the result in the store instead.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use super::runs::Runs;
use crate::backoff::Backoff;
use crate::broker::topology::Exchange;
use crate::broker::{Broker, Message, Properties};
use crate::telemetry;
use crate::trace::TraceParent;
use crate::wire::{Receipt, ReceiptBatch, RunId};

/// Receipts waiting at most; a run on 10,000 nodes fits.
const WAITING_MAX: usize = 16_384;
/// Receipts one message carries at most: about 256 KiB.
const BATCH_MAX: usize = 2_048;
/// Tries to publish one batch; an outage that is longer outlasts most runs.
const TRIES_MAX: u32 = 4;
const RETRY_BASE: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// Where tickets leave their receipts. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct ReceiptSender {
    queue: mpsc::Sender<(RunId, Receipt)>,
    runs: Runs,
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
            telemetry::record_receipts_failed(1);
            debug!(target: "vogeler::ingest::receipts", %run, "receipt dropped: the queue is full or closed");
        }
    }
}

/// Starts the publisher. It ends, after a last flush, when all senders are gone.
pub(super) fn start(broker: Arc<dyn Broker>, linger: Duration) -> (ReceiptSender, JoinHandle<()>) {
    let (queue, receiver) = mpsc::channel(WAITING_MAX);
    (
        ReceiptSender {
            queue,
            runs: Runs::default(),
        },
        tokio::spawn(publish_all(broker, receiver, linger)),
    )
}

async fn publish_all(
    broker: Arc<dyn Broker>,
    mut receiver: mpsc::Receiver<(RunId, Receipt)>,
    linger: Duration,
) {
    let mut gathered = Vec::new();
    while receiver.recv_many(&mut gathered, BATCH_MAX).await > 0 {
        if !receiver.is_closed() && gathered.len() < BATCH_MAX {
            tokio::time::sleep(linger).await;
            while gathered.len() < BATCH_MAX {
                let Ok(more) = receiver.try_recv() else { break };
                gathered.push(more);
            }
        }
        let mut runs: HashMap<RunId, Vec<Receipt>> = HashMap::new();
        for (run, receipt) in gathered.drain(..) {
            runs.entry(run).or_default().push(receipt);
        }
        for (run, receipts) in runs {
            publish(broker.as_ref(), run, receipts).await;
        }
    }
}

async fn publish(broker: &dyn Broker, run: RunId, receipts: Vec<Receipt>) {
    let count = receipts.len();
    let Ok(body) = serde_json::to_vec(&ReceiptBatch::new(run, receipts)) else {
        return;
    };
    let mut properties = Properties {
        content_type: Some("application/json".to_owned()),
        ..Properties::default()
    };
    // It is about many results: of their trace, and below none of their spans.
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
    let published = loop {
        match broker.publish(message.clone()).await {
            Err(error) if error.is_retryable() && backoff.tries() + 1 < TRIES_MAX => {
                tokio::time::sleep(backoff.next_random()).await;
            }
            published => break published,
        }
    };
    match published {
        Ok(()) => {
            debug!(target: "vogeler::ingest::receipts", %run, count, "receipts published");
            telemetry::record_receipts(count);
        }
        Err(error) => {
            telemetry::record_receipts_failed(count);
            warn!(target: "vogeler::ingest::receipts", %run, count, %error, "receipts lost; the runner will look in the store");
        }
    }
}
