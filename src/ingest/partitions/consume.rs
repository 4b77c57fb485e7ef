//! One partition's consumer: active, standing by, or making room for the owner.
//!
//! The broker gives a partition to whoever consumed it first and never takes it away. So a server that is not the
//! owner (any more) lets what it took be settled, cancels, lets the owner come first, and stands by behind it.
//! Invariant: a partition is given up only after everything taken from it is settled, or given up as a whole.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::agreement::Agreement;
use crate::backoff::Backoff;
use crate::broker::topology::Queue;
use crate::broker::{Broker, BrokerError, Consumer, Delivery};
use crate::ingest::CLOSE_TIMEOUT;
use crate::ingest::intake::Intake;

/// How long one that is not the owner stays away, so that the owner comes before it.
const STANDBY_AFTER: Duration = Duration::from_secs(2);
/// How long one that is not the owner serves a partition that the broker gave it. More than it takes to notice that
/// the owner is gone: then it goes on, and nothing stands still meanwhile.
const SUBSTITUTE_MAX: Duration = Duration::from_secs(5);
/// First pause before a refused consume is tried again; the longest is the broker's `reconnect_max`.
const CONSUME_RETRY_BASE: Duration = Duration::from_millis(200);

/// Feeds one queue's deliveries to the intake.
#[derive(Debug)]
pub(super) struct PartitionConsumer {
    pub(super) broker: Arc<dyn Broker>,
    pub(super) queue: Queue,
    /// None for a queue of an earlier number of partitions: it is drained by whom the broker chooses.
    pub(super) partition: Option<u16>,
    pub(super) agreement: watch::Receiver<Agreement>,
    pub(super) prefetch: u16,
    pub(super) intake: Intake,
    pub(super) drain_timeout: Duration,
    pub(super) reconnect_max: Duration,
    pub(super) stop: CancellationToken,
    pub(super) give_up: CancellationToken,
}

/// Why a consumer is cancelled.
#[derive(Debug)]
enum Left {
    /// The server stops, or the broker was closed.
    Stopped,
    /// Somebody else should own the partition. What came for it meanwhile goes back.
    Yielded(Option<Box<Delivery>>),
}

impl PartitionConsumer {
    /// Consumes until the server stops.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new(CONSUME_RETRY_BASE, self.reconnect_max);
        loop {
            let consumed = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                consumed = self.broker.consume(&self.queue, self.prefetch) => consumed,
            };
            match consumed {
                Ok(consumer) => {
                    backoff.reset();
                    if self.serve(consumer).await {
                        return;
                    }
                    self.stay_away(STANDBY_AFTER).await;
                }
                Err(BrokerError::Closed) => return,
                Err(error) => {
                    tracing::error!(target: "vogeler::ingest", queue = self.queue.name, %error, "this partition is not consumed; trying again");
                    let pause = tokio::time::sleep(backoff.next_random());
                    tokio::select! {
                        () = self.stop.cancelled() => return,
                        () = pause => {}
                    }
                }
            }
        }
    }

    /// Serves one subscription to its end; says whether that is the end of all.
    async fn serve(&mut self, mut consumer: Consumer) -> bool {
        info!(target: "vogeler::ingest", queue = self.queue.name, prefetch = self.prefetch, is_owner = self.is_owner(), "consuming");
        let taken = TaskTracker::new();
        let left = self.take(&mut consumer, &taken).await;
        taken.close();
        let is_settled = tokio::select! {
            () = taken.wait() => true,
            () = self.give_up.cancelled() => false,
            // A server that stops has a deadline of its own.
            () = tokio::time::sleep(self.drain_timeout), if matches!(left, Left::Yielded(_)) => false,
        };
        consumer.cancel();
        let is_stopped = match left {
            Left::Stopped => true,
            Left::Yielded(delivery) => {
                drop(delivery);
                info!(target: "vogeler::ingest", queue = self.queue.name, is_settled, "left to another server");
                false
            }
        };
        if !consumer.close(CLOSE_TIMEOUT).await && !is_stopped {
            warn!(target: "vogeler::ingest", queue = self.queue.name, "not all could be settled in time; the broker delivers the rest again");
        }
        is_stopped
    }

    /// Takes deliveries until the server stops or somebody else should have them.
    async fn take(&mut self, consumer: &mut Consumer, taken: &TaskTracker) -> Left {
        let mut substitute_since = None;
        let mut owner = self.owner();
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Left::Stopped,
                Ok(()) = self.agreement.changed() => {
                    if std::mem::replace(&mut owner, self.owner()) != owner && !self.is_owner() {
                        return Left::Yielded(None);
                    }
                }
                delivery = consumer.next() => {
                    let Some(delivery) = delivery else { return Left::Stopped };
                    if is_overdue(&mut substitute_since, self.is_owner(), Instant::now()) {
                        return Left::Yielded(Some(Box::new(delivery)));
                    }
                    tokio::select! {
                        () = self.intake.accept(delivery, taken.token()) => {}
                        () = self.give_up.cancelled() => return Left::Stopped,
                    }
                }
            }
        }
    }

    /// Waits until the owner had its time to come first, or we are the owner.
    async fn stay_away(&mut self, pause: Duration) {
        let mut agreement = self.agreement.clone();
        let partition = self.partition;
        let is_mine = |agreed: &Agreement| partition.is_none_or(|p| agreed.is_mine(p));
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
            Ok(_) = agreement.wait_for(is_mine) => {}
        }
    }

    fn owner(&self) -> Option<super::agreement::ServerId> {
        self.partition.map(|p| self.agreement.borrow().owner(p))
    }

    fn is_owner(&self) -> bool {
        let agreed = self.agreement.borrow();
        self.partition.is_none_or(|p| agreed.is_mine(p))
    }
}

/// Whether one that is not the owner has served for long enough. `since` remembers its first delivery.
fn is_overdue(since: &mut Option<Instant>, is_owner: bool, now: Instant) -> bool {
    if is_owner {
        *since = None;
        return false;
    }
    now.duration_since(*since.get_or_insert(now)) > SUBSTITUTE_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: who is not the owner fills in for a while from its first delivery on, and no longer; the owner stays.
    #[test]
    fn a_substitute_serves_for_a_while() {
        let start = Instant::now();
        let late = start + SUBSTITUTE_MAX + Duration::from_millis(1);
        let mut since = None;
        assert!(!is_overdue(&mut since, false, start));
        assert!(!is_overdue(&mut since, false, start + SUBSTITUTE_MAX));
        assert!(is_overdue(&mut since, false, late));
        assert!(!is_overdue(&mut since, true, late));
        assert!(!is_overdue(&mut since, false, late), "counted from anew");
    }
}
