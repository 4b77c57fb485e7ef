//! Checks every `redeclare_every` that exchanges, queues and bindings are at the broker, and declares them again.
//!
//! An exchange that somebody deletes takes all its bindings with it, and no consumer notices: results would find no queue
//! for ever. The next publisher may create it anew, without them. So each look sends a probe through every exchange to
//! the server's own queue. What is gone is reported once, counted, and restored. AMQP cannot list bindings, so one that
//! goes alone is restored without anybody noticing. The exception is a dead letter that finds no queue: it asks for a
//! look at once. While something is wrong looks come more often, so that the server is ready soon after an operator
//! mended it. Invariant: a look that gets no answer leaves the report as it is.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::backoff::Backoff;
use crate::broker::topology::{self, Exchange, Queue};
use crate::broker::{Broker, BrokerError, Link, Message, Missing, Properties};
use crate::telemetry::catalogue;

/// Shortest pause between two looks, however many ask for one.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Upper bound of the random pause after the first look that finds something wrong; it doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_secs(2);
/// Upper bound of that pause, where `redeclare_every` is longer: an operator sees soon that the mend worked.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Pause before a probe that found no queue is sent again: our own queue may just have gone with a connection that broke.
const PROBE_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Lifetime of a probe: one that nobody took by then is of no use any more.
const PROBE_EXPIRES: Duration = Duration::from_secs(10);

/// Asks for a look at once. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct LookNow(Arc<Notify>);

impl LookNow {
    /// Something was missing.
    pub(super) fn ask(&self) {
        self.0.notify_one();
    }
}

/// The body of a probe; the consumer of our own queue ignores it.
const PROBE: &str = "probe";

/// What is known of exchanges and queues.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topology {
    /// What is missing and could not be restored.
    pub missing: Vec<String>,
    /// Why it could not be restored, or what is not as it should be.
    pub reason: Option<String>,
    /// What was restored last, and when.
    pub restored: Option<(Vec<String>, Timestamp)>,
}

impl Topology {
    /// Whether all is there.
    pub fn is_well(&self) -> bool {
        self.missing.is_empty() && self.reason.is_none()
    }
}

/// Looks until the stop.
#[derive(Debug)]
pub(super) struct Reconciler {
    pub(super) broker: Arc<dyn Broker>,
    /// What must be there.
    pub(super) queues: Vec<Queue>,
    /// The server's own queue, which lives as long as its connection, and the key that leads there from every exchange.
    pub(super) own_queue: Queue,
    pub(super) own_key: String,
    pub(super) every: Duration,
    pub(super) now: LookNow,
    pub(super) stop: CancellationToken,
}

impl Reconciler {
    /// Begins; the receiver has what is known.
    pub(super) fn start(self) -> (watch::Receiver<Topology>, JoinHandle<()>) {
        let (told, known) = watch::channel(Topology::default());
        (known, tokio::spawn(self.run(told)))
    }

    async fn run(self, told: watch::Sender<Topology>) {
        // Servers that start together do not look together.
        let mut pause = self.every.mul_f64(rand::random::<f64>());
        let mut after_failure = Backoff::new(RETRY_MIN, RETRY_MAX.min(self.every));
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                () = self.now.0.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
            if *self.broker.link().borrow() == Link::Up {
                self.look(&told).await;
            }
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(PAUSE_MIN) => {}
            }
            pause = if told.borrow().is_well() {
                after_failure.reset();
                self.every.saturating_sub(PAUSE_MIN)
            } else {
                after_failure.next_random()
            };
        }
    }

    async fn look(&self, told: &watch::Sender<Topology>) {
        let missing = match self.missing().await {
            Ok(missing) => missing,
            // A publisher declares exchanges too, so a probe may be the first to hear that one is of another kind.
            Err(error) => return note_refused(told, &error),
        };
        note_missing(told, &missing);
        let all = [
            self.queues.as_slice(),
            std::slice::from_ref(&self.own_queue),
        ]
        .concat();
        match self.broker.declare(&all).await {
            Ok(()) => note_restored(told, missing),
            Err(error) => note_refused(told, &error),
        }
    }

    /// Names the exchanges, queues and bindings that are gone.
    async fn missing(&self) -> Result<Vec<String>, BrokerError> {
        let names: Vec<_> = self
            .queues
            .iter()
            .map(|queue| queue.name.as_str())
            .collect();
        let missing = self.broker.missing(&names).await?;
        let mut all: Vec<_> = missing.iter().map(ToString::to_string).collect();
        for exchange in topology::PROBED {
            let is_there = !missing.contains(&Missing::Exchange(exchange));
            if is_there && self.has_lost_bindings(exchange).await? {
                all.push(format!("bindings of {}", Missing::Exchange(exchange)));
            }
        }
        Ok(all)
    }

    /// Whether our own queue is there, but the exchange does not lead to it.
    async fn has_lost_bindings(&self, exchange: Exchange) -> Result<bool, BrokerError> {
        for pause in [Some(PROBE_AGAIN_AFTER), None] {
            if self.probe(exchange).await? || !self.is_heard().await? {
                return Ok(false);
            }
            if let Some(pause) = pause {
                tokio::time::sleep(pause).await;
            }
        }
        Ok(true)
    }

    /// Whether our own queue is there; a connection that broke takes it away for a while.
    async fn is_heard(&self) -> Result<bool, BrokerError> {
        let depths = self.broker.depth(&[&self.own_queue.name]).await?;
        Ok(depths.iter().any(Option::is_some))
    }

    /// Whether a message for our own queue finds it.
    async fn probe(&self, exchange: Exchange) -> Result<bool, BrokerError> {
        let probe = Message {
            exchange,
            routing_key: self.own_key.clone(),
            body: PROBE.into(),
            properties: Properties {
                expiration: Some(PROBE_EXPIRES),
                ..Properties::default()
            },
            persistent: false,
            mandatory: true,
        };
        match self.broker.publish(probe).await {
            Ok(()) => Ok(true),
            Err(BrokerError::Unroutable { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Reports what is missing, once.
fn note_missing(told: &watch::Sender<Topology>, missing: &Vec<String>) {
    if !missing.is_empty() && told.borrow().missing != *missing {
        warn!(target: "vogeler::ingest::reconcile", ?missing, "gone from the broker; declaring it again. What else was bound to an exchange that is gone must be bound again: clients do so within 15 minutes");
        told.send_modify(|known| known.missing.clone_from(missing));
        export(&told.borrow());
    }
}

/// Reports that all is there again. What an earlier look found missing and could not fully restore counts as well.
fn note_restored(told: &watch::Sender<Topology>, missing: Vec<String>) {
    let mut restored = told.borrow().missing.clone();
    restored.extend(missing);
    restored.sort_unstable();
    restored.dedup();
    if restored.is_empty() && told.borrow().is_well() {
        return;
    }
    catalogue::TOPOLOGY_RESTORED
        .get()
        .increment(restored.len() as u64);
    info!(target: "vogeler::ingest::reconcile", ?restored, "all exchanges and queues are at the broker");
    told.send_modify(|known| {
        known.missing.clear();
        known.reason = None;
        if !restored.is_empty() {
            known.restored = Some((restored, Timestamp::now()));
        }
    });
    export(&told.borrow());
}

/// Reports that the broker refuses the declaration. A broker that is merely away is reported elsewhere.
fn note_refused(told: &watch::Sender<Topology>, refused: &BrokerError) {
    if refused.is_retryable() {
        debug!(target: "vogeler::ingest::reconcile", error = %refused, "exchanges and queues cannot be looked at now");
        return;
    }
    let reason = refused.to_string();
    if told.borrow().reason.as_ref() != Some(&reason) {
        error!(target: "vogeler::ingest::reconcile", error = %refused, "exchanges and queues are not as they should be");
        told.send_modify(|known| known.reason = Some(reason));
        export(&told.borrow());
    }
}

#[allow(clippy::cast_precision_loss, reason = "a gauge is a float")]
fn export(known: &Topology) {
    let wrong = usize::from(known.reason.is_some());
    let count = known.missing.len().max(wrong);
    catalogue::TOPOLOGY_MISSING.get().set(count as f64);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::memory::MemoryBroker;
    use crate::broker::topology::{QueueType, dead_queue};

    /// Goal: after an operator mended what was wrong, the next look comes within seconds, not after the usual hour.
    #[tokio::test(start_paused = true)]
    async fn what_is_wrong_is_looked_at_again_soon() {
        let broker = Arc::new(MemoryBroker::new());
        let wrong = Queue {
            bindings: Vec::new(),
            ..dead_queue(QueueType::Classic)
        };
        broker.declare(std::slice::from_ref(&wrong)).await.unwrap();
        let stop = CancellationToken::new();
        let now = LookNow::default();
        let reconciler = Reconciler {
            broker: Arc::<MemoryBroker>::clone(&broker),
            queues: vec![dead_queue(QueueType::Quorum)],
            own_queue: topology::server_queue("me"),
            own_key: "me".to_owned(),
            every: Duration::from_hours(1),
            now: now.clone(),
            stop: stop.clone(),
        };
        let (mut known, task) = reconciler.start();
        now.ask();
        known
            .wait_for(|known| known.reason.is_some())
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_secs(10)).await;
        broker.delete(&wrong.name);
        let mended = tokio::time::Instant::now();
        known.wait_for(Topology::is_well).await.unwrap();
        assert!(
            mended.elapsed() < Duration::from_secs(7),
            "{:?}",
            mended.elapsed()
        );
        stop.cancel();
        task.await.unwrap();
    }
}
