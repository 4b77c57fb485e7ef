//! Looks through the queue of dead letters without changing it: what is not taken out goes back when the look ends.
//!
//! A queue gives no more than its prefetch to one consumer, so each consumer is left after its share of letters and the
//! next one opened, and the bodies are let go one by one: memory stays flat however many letters there are.
//! Invariants: one reader at a time (the turn, an exclusive queue); every letter is acked, or goes back; and a look
//! whose connection broke is an error, not half an answer.

use std::time::Duration;

use futures::future::join_all;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::DeadError;
use crate::backoff::Backoff;
use crate::broker::topology::{self, DEAD_QUEUE, Queue, QueueType};
use crate::broker::{Broker, BrokerError, Consumer, Delivery, Settler};

/// Letters of one consumer, its prefetch. A channel of RabbitMQ passes a quorum queue 32 commands at once (its
/// `quorum_commands_soft_limit`) and keeps later ones back; when the channel is closed then, acks among them are lost.
/// (Measured on 3.10: of 98 acks among 900 requeues, 97.) So a channel settles fewer letters than that in its life.
const LETTERS_PER_CONSUMER: u16 = 24;
/// Letters that one look goes through: a connection of RabbitMQ has 2,047 channels, each of which costs memory there.
pub const LETTERS_MAX: u64 = 20_000;
/// How long to wait for another reader's end.
const TURN_TIMEOUT: Duration = Duration::from_secs(30);
const TURN_RETRY_BASE: Duration = Duration::from_millis(50);
const TURN_RETRY_MAX: Duration = Duration::from_secs(1);
/// A delivery that takes longer makes us ask whether there is any.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a broker may say that there are letters and deliver none.
const STUCK_TIMEOUT: Duration = Duration::from_secs(30);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long, and how often, to see whether the letters are back.
const BACK_TIMEOUT: Duration = Duration::from_secs(5);
const BACK_EVERY: Duration = Duration::from_millis(20);

/// A look at the dead letters. End it with [`close`](Self::close).
#[derive(Debug)]
pub(super) struct Reader<'a> {
    broker: &'a dyn Broker,
    queue: Queue,
    stop: CancellationToken,
    current: Option<Current>,
    /// Consumers that had their share; each ends its channel when its last letter is settled.
    left: Vec<Consumer>,
    held: Vec<Settler>,
    /// To be acked when the current consumer is left: until then its prefetch lets no further letter come.
    done: Vec<Settler>,
    looked: u64,
    /// Letters that must be in the queue after the look.
    back: u64,
    /// Letters to look at before asking whether there are more.
    expected: u64,
}

#[derive(Debug)]
struct Current {
    consumer: Consumer,
    taken: u16,
    session: Option<u64>,
}

impl<'a> Reader<'a> {
    /// Waits for the turn and begins. A queue that does not exist has no letters.
    pub(super) async fn open(
        broker: &'a dyn Broker,
        queue_type: QueueType,
        stop: CancellationToken,
    ) -> Result<Self, DeadError> {
        tokio::select! {
            turn = take_turn(broker) => turn?,
            () = stop.cancelled() => return Err(DeadError::Stopped),
        }
        let mut reader = Self {
            broker,
            queue: topology::dead_queue(queue_type),
            stop,
            current: None,
            left: Vec::new(),
            held: Vec::new(),
            done: Vec::new(),
            looked: 0,
            back: 0,
            expected: 0,
        };
        reader.expected = reader.ready().await?;
        reader.back = reader.expected;
        Ok(reader)
    }

    /// Letters looked at so far.
    pub(super) fn looked(&self) -> u64 {
        self.looked
    }

    /// The next letter, in the order of the queue; none after the last. Settle it with
    /// [`take_out`](Self::take_out) or [`hold`](Self::hold).
    pub(super) async fn next(&mut self) -> Result<Option<Delivery>, DeadError> {
        let asked = Instant::now();
        loop {
            if self.stop.is_cancelled() {
                return Err(DeadError::Stopped);
            }
            if self.looked >= self.expected {
                let more = self.ready().await?;
                self.expected = self.looked + more;
                if more == 0 {
                    return self.check_sessions().map(|()| None);
                }
            }
            if self.looked >= LETTERS_MAX {
                return self.check_sessions().map(|()| None);
            }
            if let Some(delivery) = self.receive().await? {
                return Ok(Some(delivery));
            }
            let ready = self.ready().await?;
            self.expected = self.looked + ready;
            if ready > 0 && asked.elapsed() > STUCK_TIMEOUT {
                return Err(DeadError::Stuck { ready });
            }
        }
    }

    /// Keeps a letter to the end of the look, when it goes back.
    pub(super) fn hold(&mut self, settler: Settler) {
        self.held.push(settler);
    }

    /// Takes a letter out of the queue for good, unless its session is gone and it is in the queue again.
    pub(super) fn take_out(&mut self, settler: Settler) -> Result<(), DeadError> {
        if settler.is_void() {
            return Err(DeadError::Interrupted);
        }
        self.done.push(settler);
        self.back = self.back.saturating_sub(1);
        Ok(())
    }

    /// Gives back what is held, and waits until it is in the queue again, for whoever looks next.
    pub(super) async fn close(mut self) {
        self.leave();
        self.held.clear();
        let left = std::mem::take(&mut self.left);
        join_all(
            left.into_iter()
                .map(|consumer| consumer.close(CLOSE_TIMEOUT)),
        )
        .await;
        let is_back = async {
            while self.ready().await.is_ok_and(|ready| ready < self.back) {
                tokio::time::sleep(BACK_EVERY).await;
            }
        };
        // Where somebody else took letters meanwhile, they never are; nothing depends on it.
        tokio::time::timeout(BACK_TIMEOUT, is_back).await.ok();
    }

    async fn ready(&self) -> Result<u64, DeadError> {
        let depths = self.broker.depth(&[DEAD_QUEUE]).await?;
        let depth = depths.into_iter().next().flatten();
        Ok(depth.map_or(0, |depth| depth.ready))
    }

    /// The next delivery, or none if it takes too long.
    async fn receive(&mut self) -> Result<Option<Delivery>, DeadError> {
        self.leave_when_done()?;
        let current = match &mut self.current {
            Some(current) => current,
            None => self.current.insert(Current {
                consumer: self
                    .broker
                    .consume(&self.queue, LETTERS_PER_CONSUMER)
                    .await?,
                taken: 0,
                session: None,
            }),
        };
        let next = tokio::select! {
            next = tokio::time::timeout(DELIVERY_TIMEOUT, current.consumer.next()) => next,
            () = self.stop.cancelled() => return Err(DeadError::Stopped),
        };
        let delivery = match next {
            Ok(Some(delivery)) => delivery,
            Ok(None) => return Err(DeadError::Interrupted),
            Err(_) => return Ok(None),
        };
        // Another session: what the first one held is in the queue again.
        if *current.session.get_or_insert(delivery.session) != delivery.session {
            return Err(DeadError::Interrupted);
        }
        current.taken += 1;
        self.looked += 1;
        Ok(Some(delivery))
    }

    /// Leaves the current consumer when it has had its share.
    fn leave_when_done(&mut self) -> Result<(), DeadError> {
        let current = self.current.as_ref();
        if current.is_some_and(|current| current.taken >= LETTERS_PER_CONSUMER) {
            self.leave();
            self.check_sessions()?;
        }
        Ok(())
    }

    fn leave(&mut self) {
        if let Some(mut current) = self.current.take() {
            current.consumer.cancel();
            self.left.push(current.consumer);
        }
        self.done.drain(..).for_each(Settler::ack);
    }

    /// Whether all that is held is held still: otherwise it comes again, and a look would not end.
    fn check_sessions(&self) -> Result<(), DeadError> {
        if self.held.iter().any(Settler::is_void) {
            return Err(DeadError::Interrupted);
        }
        Ok(())
    }
}

/// Waits until no other command reads dead letters. The turn ends with the broker's connection.
async fn take_turn(broker: &dyn Broker) -> Result<(), DeadError> {
    let turn = [topology::dead_turn_queue()];
    let mut backoff = Backoff::new(TURN_RETRY_BASE, TURN_RETRY_MAX);
    let deadline = Instant::now() + TURN_TIMEOUT;
    loop {
        match broker.declare(&turn).await {
            Ok(()) => return Ok(()),
            Err(BrokerError::Locked { .. }) if Instant::now() < deadline => {
                tokio::time::sleep(backoff.next_random()).await;
            }
            Err(BrokerError::Locked { .. }) => {
                return Err(DeadError::Busy {
                    waited: TURN_TIMEOUT,
                });
            }
            Err(error) => return Err(error.into()),
        }
    }
}
