//! One partition's consumer: active, standing by, or making room for the owner.
//!
//! The broker gives a partition to whoever consumed it first and never takes it away. So a server that is not the
//! owner (any more) lets what it took be settled, cancels, lets the owner come first, and stands by behind it.
//! Invariant: a partition is given up only after everything taken from it is settled, or given up as a whole.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, info, warn};

use super::Downstream;
use super::agreement::{Agreement, ServerId};
use crate::backoff::Backoff;
use crate::broker::topology::Queue;
use crate::broker::{Broker, BrokerError, Consumer, Delivery};
use crate::ingest::CLOSE_TIMEOUT;

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
    pub(super) drain_timeout: Duration,
    pub(super) reconnect_max: Duration,
    pub(super) downstream: Downstream,
}

/// Why nothing more is taken from a consumer.
#[derive(Debug)]
enum Left {
    /// The server stops.
    Stopping,
    /// Somebody else should own the partition. What came for it meanwhile goes back.
    Yielding(Option<Box<Delivery>>),
    /// Results are let go: the store stays away.
    LettingGo,
    /// The broker's side ended it.
    Lost,
}

impl PartitionConsumer {
    /// Consumes until the server stops or the broker is closed; whatever else ends a consumer, the queue is consumed
    /// again.
    pub(super) async fn run(mut self) {
        let stop = self.downstream.stop.clone();
        let mut backoff = Backoff::new(CONSUME_RETRY_BASE, self.reconnect_max);
        let mut told = None;
        loop {
            let mut letting_go = self.downstream.letting_go.clone();
            let consumed = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                consumed = async {
                    // The sender lives in the router as long as this does, so waiting cannot fail.
                    drop(letting_go.wait_for(|is| !*is).await);
                    self.broker.consume(&self.queue, self.prefetch).await
                } => consumed,
            };
            let pause = match consumed {
                Ok(consumer) => match self.serve(consumer).await {
                    Left::Stopping => return,
                    Left::LettingGo => continue,
                    Left::Yielding(_) => {
                        self.stay_away().await;
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
        info!(target: "vogeler::ingest", queue = self.queue.name, prefetch = self.prefetch, is_owner = self.is_owner(), "consuming");
        let taken = TaskTracker::new();
        let mut left = self.take(&mut consumer, &taken).await;
        taken.close();
        tokio::select! {
            () = taken.wait() => {}
            () = self.downstream.give_up.cancelled() => {}
            // A server that stops has a deadline of its own.
            () = tokio::time::sleep(self.drain_timeout), if matches!(left, Left::Yielding(_)) => {}
            () = std::future::ready(()), if matches!(left, Left::LettingGo | Left::Lost) => {}
        }
        consumer.cancel();
        if let Left::Yielding(delivery) = &mut left {
            info!(target: "vogeler::ingest", queue = self.queue.name, is_settled = taken.is_empty(), "left to another server");
            drop(delivery.take());
        }
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
            stop,
            give_up,
        } = self.downstream.clone();
        let mut substitute_since = None;
        let mut owner = self.owner();
        loop {
            let delivery = tokio::select! {
                biased;
                () = stop.cancelled() => return Left::Stopping,
                Ok(_) = letting_go.wait_for(|is| *is) => return Left::LettingGo,
                Ok(()) = self.agreement.changed() => {
                    if std::mem::replace(&mut owner, self.owner()) != owner && !self.is_owner() {
                        return Left::Yielding(None);
                    }
                    continue;
                }
                delivery = consumer.next() => delivery,
            };
            let Some(delivery) = delivery else {
                return Left::Lost;
            };
            if is_overdue(&mut substitute_since, self.is_owner(), Instant::now()) {
                return Left::Yielding(Some(Box::new(delivery)));
            }
            let taken = held.take(self.partition, taken.token());
            tokio::select! {
                () = intake.accept(delivery, taken) => {}
                () = give_up.cancelled() => return Left::Stopping,
            }
        }
    }

    /// Waits until the owner had its time to come first, or we are the owner.
    async fn stay_away(&self) {
        let mut agreement = self.agreement.clone();
        let partition = self.partition;
        let is_mine = |agreed: &Agreement| partition.is_none_or(|p| agreed.is_mine(p));
        tokio::select! {
            () = self.downstream.stop.cancelled() => {}
            () = tokio::time::sleep(STANDBY_AFTER) => {}
            Ok(_) = agreement.wait_for(is_mine) => {}
        }
    }

    fn owner(&self) -> Option<ServerId> {
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
