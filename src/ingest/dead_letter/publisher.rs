//! Publishes dead letters, and holds those that the broker refuses: its queue is full, its exchange or binding is gone,
//! a permission is missing, the message is too large.
//!
//! Each letter is tried again on its own, with full jitter, and few at a time. So no refusal, of one letter or of all,
//! becomes a storm, and the other letters go on. A change of state is reported and logged once. Invariants: a letter is
//! tried no longer than `hold_max`, then it goes back to the broker, once; a delivery that the broker already has again is
//! not held here.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::super::reconcile::LookNow;
use super::super::refusals::{Refusals, Words};
use super::Handed;
use super::message::message;
use crate::backoff::Backoff;
use crate::broker::{Broker, BrokerError, Link};
use crate::telemetry::{self, catalogue};
use crate::wire::Outcome;

/// Most letters published at once on their first try.
const PUBLISHES_MAX: usize = 64;
/// Most refused letters tried again at once, even if a thousand are held.
const RETRIES_MAX: usize = 4;
const RETRY_BASE: Duration = Duration::from_millis(100);
/// Longest pause between two tries of a letter: once the trouble is over, it leaves at most this late, plus its turn.
const RETRY_MAX: Duration = Duration::from_secs(30);

static WORDS: Words = Words {
    refused: "the broker refuses dead letters: they are held and tried again until it takes them",
    taken: "the broker takes dead letters again; none is held any more",
    given_back: "no dead letter is held any more: what the broker refused went back to its queue",
    count: set_gauge,
};

#[derive(Debug)]
pub(super) struct Publisher {
    broker: Arc<dyn Broker>,
    hold_max: Duration,
    stop: CancellationToken,
    publishes: Semaphore,
    retries: Semaphore,
    refusals: Refusals,
}

impl Publisher {
    pub(super) fn new(
        broker: Arc<dyn Broker>,
        hold_max: Duration,
        stop: CancellationToken,
        look: LookNow,
    ) -> Self {
        Self {
            broker,
            hold_max,
            stop,
            publishes: Semaphore::new(PUBLISHES_MAX),
            retries: Semaphore::new(RETRIES_MAX),
            refusals: Refusals::new(&WORDS, look),
        }
    }

    /// Whether the broker takes dead letters, and every change of that.
    pub(super) fn link(&self) -> watch::Receiver<Link> {
        self.refusals.link()
    }

    /// Publishes a letter, or gives its delivery back.
    pub(super) async fn publish(&self, handed: Handed) {
        let message = message(&handed.letter);
        let mut tries = self.refusals.tries(Backoff::new(RETRY_BASE, RETRY_MAX));
        let mut turn = self.publishes.acquire().await.ok();
        while let Some(permit) = turn.take() {
            let published = self.broker.publish(message.clone()).await;
            drop(permit);
            let Err(error) = published else {
                tries.taken();
                return settle(handed);
            };
            if matches!(error, BrokerError::Closed) || handed.letter.ticket.is_void() {
                return;
            }
            let pause = tries.failed(&error);
            let run = handed.letter.ticket.run().map(tracing::field::display);
            debug!(target: "vogeler::ingest::dead_letter", run, %error, tries = tries.count(), "a dead letter is not published");
            turn = self.next_turn(&handed, pause).await;
        }
        let run = handed.letter.ticket.run().map(tracing::field::display);
        debug!(target: "vogeler::ingest::dead_letter", run, "a dead letter is not published; its delivery goes back to the broker");
    }

    /// Waits until the letter may be tried again; none if it is to go back.
    async fn next_turn(&self, handed: &Handed, pause: Duration) -> Option<SemaphorePermit<'_>> {
        let turn = async {
            tokio::time::sleep(pause).await;
            self.retries.acquire().await.ok()
        };
        tokio::select! {
            biased;
            () = self.stop.cancelled() => None,
            () = tokio::time::sleep_until(handed.since + self.hold_max) => None,
            turn = turn => turn,
        }
    }
}

fn settle(handed: Handed) {
    let letter = handed.letter;
    telemetry::record_dead_letter(&letter.reason);
    let why = format!("{}: {}", letter.reason, letter.detail);
    letter
        .ticket
        .settle_because(Outcome::DeadLettered, Some(why));
}

#[allow(clippy::cast_precision_loss, reason = "a gauge is a float")]
fn set_gauge(count: usize) {
    catalogue::DEAD_LETTERS_HELD.get().set(count as f64);
}
