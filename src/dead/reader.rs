//! One look through the queue of dead letters, from its head to what was its end when the look began.
//!
//! The broker holds the letters until the look ends, so memory here stays flat however many there are. Invariants:
//! only one look runs at a time (the turn, an exclusive queue). Every letter is taken out, or is in its old place
//! after the look. A look whose connection broke gives an error, not half an answer.

use std::time::Duration;

use tokio::time::Instant;

use super::{DeadError, DeadLetters, Progress};
use crate::backoff::Backoff;
use crate::broker::{BrokerError, Browsed, Place, QueueBrowser, topology};

/// Longest wait for another look to end.
const TURN_TIMEOUT: Duration = Duration::from_secs(30);
const TURN_RETRY_BASE: Duration = Duration::from_millis(50);
const TURN_RETRY_MAX: Duration = Duration::from_secs(1);
/// Longest wait for one delivery before the reader checks [`STUCK_TIMEOUT`].
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the broker may deliver nothing. If its queue is empty after that, others took the letters. A letter on its
/// way to us counts neither as ready nor as delivered; on a busy broker that takes seconds.
const STUCK_TIMEOUT: Duration = Duration::from_secs(30);
/// RabbitMQ also calls a quorum queue empty if the queue does not answer within 250 ms, so the reader asks this many
/// times.
const EMPTY_ASKS: u32 = 4;
const EMPTY_ASK_EVERY: Duration = Duration::from_millis(200);
/// How long, and how often, the reader checks whether the letters are back.
const BACK_TIMEOUT: Duration = Duration::from_secs(30);
const BACK_EVERY: Duration = Duration::from_millis(50);

/// A look at the dead letters. End it with [`close`](Self::close).
#[derive(Debug)]
pub(super) struct Reader<'a> {
    dead: &'a DeadLetters<'a>,
    browser: Box<dyn QueueBrowser>,
    /// Letters in the queue when the look began. Later ones are left to the next look.
    total: u64,
    looked: u64,
    taken_out: u64,
}

impl<'a> Reader<'a> {
    /// Waits for the turn and begins. A queue that does not exist has no letters.
    pub(super) async fn open(dead: &'a DeadLetters<'a>) -> Result<Self, DeadError> {
        let mut browser = tokio::select! {
            browser = take_turn(dead) => browser?,
            () = dead.stop.cancelled() => return Err(DeadError::Stopped),
        };
        let mut ready = browser.ready().await;
        for _ in 1..EMPTY_ASKS {
            if !matches!(ready, Ok(0)) {
                break;
            }
            tokio::time::sleep(EMPTY_ASK_EVERY).await;
            ready = browser.ready().await;
        }
        let reader = Self {
            dead,
            browser,
            total: 0,
            looked: 0,
            taken_out: 0,
        };
        match ready {
            Ok(total) => Ok(Self { total, ..reader }),
            Err(error) => {
                reader.browser.close().await;
                Err(error.into())
            }
        }
    }

    /// Letters looked at so far.
    pub(super) fn looked(&self) -> u64 {
        self.looked
    }

    /// Letters in the queue that this look did not reach, because it can hold no more.
    pub(super) fn left_over(&self) -> u64 {
        if self.browser.is_full() {
            self.total.saturating_sub(self.looked)
        } else {
            0
        }
    }

    /// Whether letters that are to be taken out must be taken out before the next one is read.
    pub(super) fn must_settle(&self) -> bool {
        self.browser.is_share_full()
    }

    /// The next letter, in the order of the queue; none after the last. It stays in the queue unless it is
    /// [taken out](Self::take_out).
    pub(super) async fn next(&mut self) -> Result<Option<Browsed>, DeadError> {
        let asked = Instant::now();
        while self.looked < self.total && !self.browser.is_full() {
            if self.dead.stop.is_cancelled() {
                return Err(DeadError::Stopped);
            }
            let next = tokio::select! {
                next = self.browser.next(DELIVERY_TIMEOUT) => next.map_err(interrupted)?,
                () = self.dead.stop.cancelled() => return Err(DeadError::Stopped),
            };
            if let Some(browsed) = next {
                self.looked += 1;
                let (looked, total) = (self.looked, self.total);
                self.dead.progress.send_replace(Progress { looked, total });
                return Ok(Some(browsed));
            }
            if asked.elapsed() < STUCK_TIMEOUT {
                continue;
            }
            match self.browser.ready().await.map_err(interrupted)? {
                0 => break,
                ready => return Err(DeadError::Stuck { ready }),
            }
        }
        Ok(None)
    }

    /// Takes letters out of the queue for good.
    pub(super) async fn take_out(&mut self, places: Vec<Place>) -> Result<(), DeadError> {
        let count = places.len() as u64;
        self.browser.take_out(places).await.map_err(interrupted)?;
        self.taken_out += count;
        Ok(())
    }

    /// Gives the letters back, and waits until they are in the queue again, for the next look. Fails if letters were
    /// taken out and the connection broke: some of them may be in the queue again.
    pub(super) async fn close(mut self) -> Result<(), DeadError> {
        let given_back = self.browser.give_back().await;
        let back = self.total.saturating_sub(self.taken_out);
        if given_back.is_ok() {
            let is_back = async {
                while self.browser.ready().await.is_ok_and(|ready| ready < back) {
                    tokio::time::sleep(BACK_EVERY).await;
                }
            };
            // If somebody else took letters meanwhile, they are never all back; nothing depends on it.
            tokio::time::timeout(BACK_TIMEOUT, is_back).await.ok();
        }
        self.browser.close().await;
        match given_back {
            Err(_) if self.taken_out > 0 => Err(DeadError::Interrupted),
            _ => Ok(()),
        }
    }
}

/// Translates an error in the middle of a look.
fn interrupted(error: BrokerError) -> DeadError {
    match error {
        BrokerError::Away { .. } | BrokerError::Closed => DeadError::Interrupted,
        error => DeadError::Broker(error),
    }
}

/// Waits until nobody else looks at the dead letters. The turn ends with the browser.
async fn take_turn(dead: &DeadLetters<'_>) -> Result<Box<dyn QueueBrowser>, DeadError> {
    let queue = topology::dead_queue(dead.queue_type);
    let turn = topology::dead_turn_queue();
    let mut backoff = Backoff::new(TURN_RETRY_BASE, TURN_RETRY_MAX);
    let deadline = Instant::now() + TURN_TIMEOUT;
    loop {
        match dead.broker.browse(&queue, &turn).await {
            Ok(browser) => return Ok(browser),
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
