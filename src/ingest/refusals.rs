//! What the broker refuses and this server holds, as one state.
//!
//! Held messages in, a link for readiness out. Invariant: a change of state is told and logged once, however many
//! messages are held and however often each is tried.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tracing::{error, info};

use crate::broker::Link;

/// What the log says of them.
#[derive(Debug)]
pub(super) struct Words {
    /// The first one is held.
    pub(super) refused: &'static str,
    /// None is held any more, and the last one was taken.
    pub(super) taken: &'static str,
    /// None is held any more, and the last one went back.
    pub(super) given_back: &'static str,
    /// Tells how many are held.
    pub(super) count: fn(usize),
}

/// The messages that are held because the broker refuses them. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Refusals(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    words: &'static Words,
    count: Mutex<usize>,
    link: watch::Sender<Link>,
}

impl Refusals {
    /// Nothing is held.
    pub(super) fn new(words: &'static Words) -> Self {
        Self(Arc::new(Inner {
            words,
            count: Mutex::new(0),
            link: watch::Sender::new(Link::Up),
        }))
    }

    /// Whether the broker takes them, and every change of that.
    pub(super) fn link(&self) -> watch::Receiver<Link> {
        self.0.link.subscribe()
    }

    /// One is held, as long as the answer lives.
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

/// One held message; no longer, when dropped.
#[must_use]
#[derive(Debug)]
pub(super) struct Held {
    refusals: Refusals,
    is_taken: bool,
}

impl Held {
    /// The broker took it.
    pub(super) fn taken(mut self) {
        self.is_taken = true;
    }
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
