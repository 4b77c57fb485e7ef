//! The store gate: whether the store can be used, and who may try it while it cannot.
//!
//! While the store is away, one caller at a time tries it, after a pause that all share, so that an outage or a revoked
//! password causes no storm of requests. Each change of state is logged once. Invariant: results are held no longer than
//! `hold_max`; then they are *let go*: all go back to the broker, once, and nothing is pulled until the store is back.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::backoff::Backoff;
use crate::broker::Link;
use crate::store::StoreError;
use crate::telemetry::{self, Part};

/// First pause after a failure; it doubles from there.
const RETRY_BASE: Duration = Duration::from_millis(50);

/// Shared by all commits, the node actors, the consumers and the keeper. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct StoreGate(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    link: watch::Sender<Link>,
    is_letting_go: watch::Sender<bool>,
    turn: tokio::sync::Mutex<()>,
    waiting: AtomicUsize,
    era: AtomicU64,
    /// A write failed since the gate was last open: until a write goes well, a read that works proves nothing.
    are_writes_failing: AtomicBool,
    pause: Mutex<Pause>,
    refused_pause: Duration,
}

/// When the store may be tried again.
#[derive(Debug)]
struct Pause {
    backoff: Backoff,
    until: Instant,
}

/// The right to try the store. While the store is away there is only one.
#[derive(Debug)]
pub(super) struct Turn<'a>(Option<tokio::sync::MutexGuard<'a, ()>>);

impl Turn<'_> {
    /// Whether the store was away when the turn came.
    pub(super) fn is_probe(&self) -> bool {
        self.0.is_some()
    }
}

impl StoreGate {
    /// Pauses grow to `retry_max`; while the store refuses our password, each is at least `refused_pause`.
    pub(super) fn new(retry_max: Duration, refused_pause: Duration) -> Self {
        Self(Arc::new(Inner {
            link: watch::Sender::new(Link::Unknown),
            is_letting_go: watch::Sender::new(false),
            turn: tokio::sync::Mutex::new(()),
            waiting: AtomicUsize::new(0),
            era: AtomicU64::new(0),
            are_writes_failing: AtomicBool::new(false),
            pause: Mutex::new(Pause {
                backoff: Backoff::new(RETRY_BASE, retry_max),
                until: Instant::now(),
            }),
            refused_pause,
        }))
    }

    /// Whether the store can be used, and every change of that.
    pub(super) fn link(&self) -> watch::Receiver<Link> {
        self.0.link.subscribe()
    }

    /// Whether results are let go.
    pub(super) fn letting_go(&self) -> watch::Receiver<bool> {
        self.0.is_letting_go.subscribe()
    }

    /// A counter that grows whenever knowledge of stored documents becomes doubtful: the store was away and may come back
    /// with less than it had, or a document that we knew is gone.
    pub(super) fn era(&self) -> u64 {
        self.0.era.load(Ordering::Relaxed)
    }

    /// Makes knowledge of stored documents from `era` and before doubtful. Returns the era of what was read just now: the
    /// next one, or still `era` if somebody else doubted in the meantime.
    pub(super) fn doubt(&self, era: u64) -> u64 {
        let (next, order) = (era + 1, Ordering::Relaxed);
        let doubted = self.0.era.compare_exchange(era, next, order, order);
        doubted.map_or(era, |_| next)
    }

    /// How many wait for their turn.
    pub(super) fn waiting(&self) -> usize {
        self.0.waiting.load(Ordering::Relaxed)
    }

    /// The store answered a read. While writes fail this changes nothing: a full disk can be read, and a gate that opened
    /// for a read would be closed again by the next write, a moment later and without a pause.
    pub(super) fn answered(&self) {
        if !self.0.are_writes_failing.load(Ordering::Relaxed) {
            self.open();
        }
    }

    /// The store can be used: it took a write, or a read went well and there is nothing to write.
    pub(super) fn open(&self) {
        self.0.are_writes_failing.store(false, Ordering::Relaxed);
        let was = self.0.link.send_replace(Link::Up);
        if was == Link::Up {
            return;
        }
        self.pause().backoff.reset();
        if matches!(was, Link::Down { .. }) {
            telemetry::record_reconnect(Part::Store);
            info!(target: "vogeler::ingest::gate", "the store is back");
        }
    }

    /// A write failed as a whole. Only a write that goes well opens the gate again, or the keeper's probe while nobody
    /// has a write.
    pub(super) fn close_to_writes(&self, error: &StoreError) {
        self.0.are_writes_failing.store(true, Ordering::Relaxed);
        self.close(error);
    }

    /// The store did not answer.
    pub(super) fn close(&self, error: &StoreError) {
        self.0.era.fetch_add(1, Ordering::Relaxed);
        self.postpone(error);
        let reason = error.to_string();
        let was = self.0.link.send_replace(Link::Down { reason });
        if matches!(was, Link::Down { .. }) {
            return;
        }
        match error {
            StoreError::Away { .. } => {
                warn!(target: "vogeler::ingest::gate", %error, "paused: results wait until the store is back");
            }
            _ => {
                error!(target: "vogeler::ingest::gate", %error, "paused: results wait until somebody mends this");
            }
        }
    }

    /// Results were held long enough: they go back to the broker.
    pub(super) fn let_go(&self) {
        if !self.0.is_letting_go.send_replace(true) {
            warn!(target: "vogeler::ingest::gate", "the store stays away: results go back to the broker, and nothing is pulled until it is back");
        }
    }

    /// Results may be pulled again.
    pub(super) fn resume(&self) {
        if self.0.is_letting_go.send_replace(false) {
            info!(target: "vogeler::ingest::gate", "pulling results again");
        }
    }

    /// Waits until the store may be tried. Returns at once while the store can be used; otherwise when it is back, or
    /// when the pause is over and nobody else tries.
    pub(super) async fn turn(&self) -> Turn<'_> {
        let mut link = self.link();
        let is_down = |link: &Link| matches!(link, Link::Down { .. });
        if !is_down(&link.borrow_and_update()) {
            return Turn(None);
        }
        let _waiting = Waiting::new(&self.0.waiting);
        let own_turn = async {
            let turn = self.0.turn.lock().await;
            // What is in flight elsewhere may fail in the meantime, and make the pause longer.
            loop {
                let until = self.pause().until;
                if until <= Instant::now() {
                    return turn;
                }
                tokio::time::sleep_until(until).await;
            }
        };
        tokio::select! {
            biased;
            _ = link.wait_for(|link| !is_down(link)) => Turn(None),
            turn = own_turn => Turn(Some(turn)),
        }
    }

    /// Sets the next pause. Failures of one round (requests in flight when the store went away) count once.
    fn postpone(&self, error: &StoreError) {
        let now = Instant::now();
        let mut pause = self.pause();
        let mut wait = error.retry_after().unwrap_or_default();
        if pause.until <= now {
            wait = wait.max(pause.backoff.next_random());
        }
        if matches!(error, StoreError::Unauthorized { .. }) {
            // CouchDB locks an address out after five refusals in a row.
            wait = wait.max(self.0.refused_pause);
        }
        pause.until = pause.until.max(now + wait);
    }

    fn pause(&self) -> MutexGuard<'_, Pause> {
        self.0.pause.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts one waiter for as long as it waits.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn away(retry_after: Option<Duration>) -> StoreError {
        StoreError::Away {
            store: "test".to_owned(),
            reason: "test".to_owned(),
            retry_after,
            is_answer: false,
        }
    }

    fn gate() -> StoreGate {
        StoreGate::new(Duration::from_secs(1), Duration::from_secs(30))
    }

    /// Goal: the pause is at least what the store asks for, even if it asks while somebody waits already.
    #[tokio::test(start_paused = true)]
    async fn retry_after_is_honoured() {
        let gate = gate();
        let start = Instant::now();
        assert!(!gate.turn().await.is_probe(), "nothing is known yet: try");
        gate.close(&away(None));
        let later = gate.clone();
        tokio::spawn(async move { later.close(&away(Some(Duration::from_secs(7)))) });
        assert!(gate.turn().await.is_probe());
        assert!(start.elapsed() >= Duration::from_secs(7));
    }

    /// Goal: reads that work do not open a gate that a write closed; a write does, and reads open any other.
    #[tokio::test(start_paused = true)]
    async fn reads_say_nothing_of_writes() {
        let gate = gate();
        gate.close_to_writes(&away(None));
        gate.answered();
        assert!(matches!(*gate.link().borrow(), Link::Down { .. }));
        gate.open();
        assert_eq!(*gate.link().borrow(), Link::Up);
        gate.close(&away(None));
        gate.answered();
        assert_eq!(*gate.link().borrow(), Link::Up);
    }

    /// Goal: one at a time tries a store that refuses us, after the long pause; all go when it is back.
    #[tokio::test(start_paused = true)]
    async fn one_tries_and_the_others_follow() {
        let gate = gate();
        gate.close(&StoreError::Unauthorized {
            store: "test".to_owned(),
            reason: "test".to_owned(),
        });
        let start = Instant::now();
        let turn = gate.turn().await;
        assert!(turn.is_probe() && start.elapsed() >= Duration::from_secs(30));
        let second = gate.clone();
        let follower = tokio::spawn(async move { second.turn().await.is_probe() });
        tokio::task::yield_now().await;
        assert_eq!(gate.waiting(), 1);
        gate.open();
        assert!(!follower.await.unwrap(), "it needs no turn any more");
        drop(turn);
        assert_eq!(gate.waiting(), 0);
    }
}
