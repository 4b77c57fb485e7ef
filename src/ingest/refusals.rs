//! The messages that the broker refuses and this server holds, as one state.
//!
//! Tries of messages in, a link for readiness out. Invariant: a change of state is reported and logged once, however many
//! messages are held and however often each is tried.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tracing::{error, info};

use super::reconcile::LookNow;
use crate::backoff::Backoff;
use crate::broker::{BrokerError, Link};

/// Failures in a row from which a message counts as refused: a connection that breaks fails each message under way once.
const FAILURES_MIN: u32 = 2;

/// What the log says of such messages.
#[derive(Debug)]
pub(super) struct Words {
    /// The first one is held.
    pub(super) refused: &'static str,
    /// None is held any more, and the last one was taken.
    pub(super) taken: &'static str,
    /// None is held any more, and the last one went back.
    pub(super) given_back: &'static str,
    /// Takes the number of messages that are held.
    pub(super) count: fn(usize),
}

/// The messages that are held because the broker refuses them. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Refusals(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    words: &'static Words,
    look: LookNow,
    count: Mutex<usize>,
    link: watch::Sender<Link>,
}

impl Refusals {
    /// Nothing is held. A message that finds no queue asks for a `look`.
    pub(super) fn new(words: &'static Words, look: LookNow) -> Self {
        Self(Arc::new(Inner {
            words,
            look,
            count: Mutex::new(0),
            link: watch::Sender::new(Link::Up),
        }))
    }

    /// Whether the broker takes them, and every change of that.
    pub(super) fn link(&self) -> watch::Receiver<Link> {
        self.0.link.subscribe()
    }

    /// Begins the tries of one message, with pauses by `backoff`.
    pub(super) fn tries(&self, backoff: Backoff) -> Tries {
        Tries {
            refusals: self.clone(),
            backoff,
            held: None,
        }
    }

    /// Counts one message as held for as long as the returned value lives.
    pub(super) fn hold(&self, reason: String) -> Held {
        let mut count = self.count();
        *count += 1;
        (self.0.words.count)(*count);
        if *count == 1 {
            error!(target: "vogeler::ingest", reason, "{}", self.0.words.refused);
            self.0.link.send_replace(Link::Down { reason });
        }
        Held {
            refusals: self.clone(),
            is_taken: false,
        }
    }

    fn count(&self) -> MutexGuard<'_, usize> {
        self.0.count.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One message that is tried until the broker takes it. If it is dropped before that, the message went back and is held
/// no longer.
#[derive(Debug)]
pub(super) struct Tries {
    refusals: Refusals,
    backoff: Backoff,
    held: Option<Held>,
}

impl Tries {
    /// The broker did not take it. Says how long to wait before the next try.
    pub(super) fn failed(&mut self, error: &BrokerError) -> Duration {
        if matches!(error, BrokerError::Unroutable { .. }) {
            self.refusals.0.look.ask();
        }
        let pause = self.backoff.next_random();
        if self.count() >= FAILURES_MIN && self.held.is_none() {
            self.held = Some(self.refusals.hold(error.to_string()));
        }
        pause
    }

    /// How many failed.
    pub(super) fn count(&self) -> u32 {
        self.backoff.tries()
    }

    /// The broker took it.
    pub(super) fn taken(self) {
        if let Some(mut held) = self.held {
            held.is_taken = true;
        }
    }
}

/// One held message; when this is dropped, it is held no longer.
#[must_use]
#[derive(Debug)]
pub(super) struct Held {
    refusals: Refusals,
    is_taken: bool,
}

impl Drop for Held {
    fn drop(&mut self) {
        let Inner { words, link, .. } = &*self.refusals.0;
        let mut count = self.refusals.count();
        *count -= 1;
        (words.count)(*count);
        if *count > 0 {
            return;
        }
        link.send_replace(Link::Up);
        let what = if self.is_taken {
            words.taken
        } else {
            words.given_back
        };
        info!(target: "vogeler::ingest", "{what}");
    }
}
