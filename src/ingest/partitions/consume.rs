//! One partition's consumer: active, standing by, or making room for the owner.
//!
//! The broker gives a partition to whoever consumed it first and never takes it away. So a server that is not the
//! owner (any more) waits until what it took is settled, closes the channel, lets the owner come first, and then stands by
//! behind it. If nobody came, it consumes again at once. Invariants: a partition is given up only after everything taken
//! from it is settled, or given up as a whole; and a partition that nobody consumes is taken, whatever others announce.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, info, warn};

use super::Downstream;
use super::agreement::{Agreement, ServerId};
use super::substitution::Substitution;
use crate::backoff::Backoff;
use crate::broker::topology::Queue;
use crate::broker::{Broker, BrokerError, Consumer};
use crate::ingest::CLOSE_TIMEOUT;

/// How long a server that is not the owner stays away, so that the owner comes first.
const STANDBY_AFTER: Duration = Duration::from_secs(2);
/// How often it checks meanwhile whether anybody came.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// First pause before a refused consume is tried again; the longest is the broker's `reconnect_max`.
const CONSUME_RETRY_BASE: Duration = Duration::from_millis(200);

/// Feeds one queue's deliveries to the intake.
#[derive(Debug)]
pub(super) struct PartitionConsumer {
    pub(super) broker: Arc<dyn Broker>,
    pub(super) queue: Queue,
    /// None for a queue of an earlier number of partitions: the server that the broker chooses drains it.
    pub(super) partition: Option<u16>,
    pub(super) agreement: watch::Receiver<Agreement>,
    pub(super) substitution: Substitution,
    /// Where owners that do not come are reported.
    pub(super) suspects: mpsc::Sender<ServerId>,
    pub(super) prefetch: u16,
    /// Bytes that may wait in front of the intake.
    pub(super) waiting_bytes_max: usize,
    pub(super) drain_timeout: Duration,
    pub(super) reconnect_max: Duration,
    pub(super) downstream: Downstream,
}

/// Why nothing more is taken from a consumer.
#[derive(Debug)]
enum Left {
    /// The server stops.
    Stopping,
    /// Somebody else should own the partition.
    Yielding,
    /// Results are let go: the store stays away, or some could not be forwarded.
    LettingGo,
    /// The broker's side ended it.
    Lost,
}

impl PartitionConsumer {
    /// Consumes until the server stops or the broker is closed. If anything else ends a consumer, the queue is consumed
    /// again.
    pub(super) async fn run(mut self) {
        let stop = self.downstream.stop.clone();
        let mut backoff = Backoff::new(CONSUME_RETRY_BASE, self.reconnect_max);
        let mut told = None;
        loop {
            let mut letting_go = self.downstream.letting_go.clone();
            // Results given back from here on may have come through the next subscription.
            self.downstream.given_back.mark_unchanged();
            let consumed = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                consumed = async {
                    // The router keeps the sender as long as this runs, so waiting cannot fail.
                    drop(letting_go.wait_for(|is| !*is).await);
                    let bytes_max = self.waiting_bytes_max;
                    self.broker
                        .consume_bounded(&self.queue, self.prefetch, bytes_max)
                        .await
                } => consumed,
            };
            let pause = match consumed {
                Ok(consumer) => match self.serve(consumer).await {
                    Left::Stopping => return,
                    Left::LettingGo => continue,
                    Left::Yielding => {
                        self.substitution.yields(Instant::now());
                        let is_stood_by = self.stay_away().await;
                        self.substitution.returns(is_stood_by);
                        continue;
                    }
                    Left::Lost => {
                        warn!(target: "vogeler::ingest", queue = self.queue.name, "the consumer ended; consuming again");
                        backoff.next_random()
                    }
                },
                Err(BrokerError::Closed) => return,
                Err(error) => {
                    let kind = Some(std::mem::discriminant(&error));
                    if std::mem::replace(&mut told, kind) == kind {
                        debug!(target: "vogeler::ingest", queue = self.queue.name, %error, "this partition is still not consumed");
                    } else {
                        error!(target: "vogeler::ingest", queue = self.queue.name, %error, "this partition is not consumed; trying again");
                    }
                    backoff.next_random()
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Serves one subscription to its end, and says why it ended.
    async fn serve(&mut self, mut consumer: Consumer) -> Left {
        let load = consumer.load();
        info!(target: "vogeler::ingest", queue = self.queue.name, prefetch = load.prefetch(), is_owner = self.is_owner(), "consuming");
        let held = self.downstream.held.clone();
        held.consumed(self.partition, Some(load));
        let taken = TaskTracker::new();
        let left = self.take(&mut consumer, &taken).await;
        taken.close();
        tokio::select! {
            () = taken.wait() => {}
            () = self.downstream.give_up.cancelled() => {}
            // A server that stops has a deadline of its own.
            () = tokio::time::sleep(self.drain_timeout), if matches!(left, Left::Yielding) => {}
            () = std::future::ready(()), if matches!(left, Left::LettingGo | Left::Lost) => {}
        }
        consumer.cancel();
        if matches!(left, Left::Yielding) {
            info!(target: "vogeler::ingest", queue = self.queue.name, is_settled = taken.is_empty(), "left to another server");
        }
        held.consumed(self.partition, None);
        if !consumer.close(CLOSE_TIMEOUT).await {
            warn!(target: "vogeler::ingest", queue = self.queue.name, "not all could be settled in time; the broker delivers the rest again");
        }
        left
    }

    /// Takes deliveries until something ends that.
    async fn take(&mut self, consumer: &mut Consumer, taken: &TaskTracker) -> Left {
        let Downstream {
            intake,
            held,
            mut letting_go,
            mut given_back,
            stop,
            give_up,
        } = self.downstream.clone();
        // A server that owns it when we come gets its turn only once the first results come to us.
        self.substitution.owned_by(self.other_owner());
        loop {
            let delivery = tokio::select! {
                biased;
                () = stop.cancelled() => return Left::Stopping,
                Ok(_) = letting_go.wait_for(|is| *is) => return Left::LettingGo,
                Ok(()) = given_back.changed() => return Left::LettingGo,
                Ok(()) = self.agreement.changed() => {
                    if self.substitution.owned_by(self.other_owner()) {
                        return Left::Yielding;
                    }
                    continue;
                }
                delivery = consumer.next() => delivery,
            };
            let Some(delivery) = delivery else {
                return Left::Lost;
            };
            let taken = held.take(self.partition, taken.token());
            tokio::select! {
                () = intake.accept(delivery, taken) => {}
                () = give_up.cancelled() => return Left::Stopping,
            }
            let now = Instant::now();
            if let Some(owner) = self.substitution.suspect(now) {
                // If there is no room, the listener has as many suspects as it can look into.
                self.suspects.try_send(owner).ok();
            }
            if self.substitution.is_due(now) {
                return Left::Yielding;
            }
        }
    }

    /// Waits until the owner had its time to come first, we are the owner, or nobody came. Says whether anybody came.
    async fn stay_away(&self) -> bool {
        let mut agreement = self.agreement.clone();
        let partition = self.partition;
        let is_mine = |agreed: &Agreement| partition.is_none_or(|p| agreed.is_mine(p));
        tokio::select! {
            () = self.downstream.stop.cancelled() => true,
            () = tokio::time::sleep(STANDBY_AFTER) => true,
            Ok(_) = agreement.wait_for(is_mine) => true,
            () = self.until_nobody_consumes() => {
                info!(target: "vogeler::ingest", queue = self.queue.name, "no other server came; taking it again");
                false
            }
        }
    }

    async fn until_nobody_consumes(&self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let depths = self.broker.depth(&[&self.queue.name]).await;
            if let Ok([Some(depth)]) = depths.as_deref()
                && depth.consumers == 0
            {
                return;
            }
        }
    }

    /// The owner, where that is another server.
    fn other_owner(&self) -> Option<ServerId> {
        let agreed = self.agreement.borrow();
        let partition = self.partition.filter(|p| !agreed.is_mine(*p))?;
        Some(agreed.owner(partition))
    }

    fn is_owner(&self) -> bool {
        let agreed = self.agreement.borrow();
        self.partition.is_none_or(|p| agreed.is_mine(p))
    }
}
