//! The ledger of the accounting identity.
//!
//! Every delivery is counted in, and out by its outcome, under one lock. Invariant, at every scrape:
//! `received = stored + unchanged + superseded + stale + dead_lettered + requeued + in_flight`.

use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

use super::catalogue::{RESULTS, RESULTS_IN_FLIGHT, RESULTS_RECEIVED, RESULTS_REDELIVERED};
use crate::wire::Outcome;

/// How many deliveries came, and how they ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Deliveries received.
    pub received: u64,
    ended: [u64; Outcome::ALL.len()],
}

impl Counts {
    /// Deliveries that ended with this outcome.
    pub fn of(&self, outcome: Outcome) -> u64 {
        self.ended
            .get(outcome as usize)
            .copied()
            .unwrap_or_default()
    }

    /// Deliveries neither settled nor requeued.
    pub fn in_flight(&self) -> u64 {
        self.received - self.ended.iter().sum::<u64>()
    }
}

/// Counts every delivery in, and out by its outcome. One lock for all counts keeps every snapshot consistent.
#[derive(Debug, Default)]
pub struct Ledger {
    counts: Mutex<Counts>,
    /// Notified when the last delivery in flight ends.
    idle: Notify,
}

impl Ledger {
    /// A delivery arrived.
    pub fn receive(&self, redelivered: bool) {
        if redelivered {
            RESULTS_REDELIVERED.get().increment(1);
        }
        self.record(|counts| counts.received += 1);
    }

    /// A delivery ended.
    pub fn end(&self, outcome: Outcome) {
        self.record(|counts| {
            if let Some(count) = counts.ended.get_mut(outcome as usize) {
                *count += 1;
            }
        });
    }

    /// All counts at one moment.
    pub fn counts(&self) -> Counts {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nothing is in flight.
    pub async fn settled(&self) {
        loop {
            // Created before the check, so that a notification in between is not missed.
            let idle = self.idle.notified();
            if self.counts().in_flight() == 0 {
                return;
            }
            idle.await;
        }
    }

    fn record(&self, change: impl FnOnce(&mut Counts)) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut counts);
        let is_idle = counts.in_flight() == 0;
        drop(counts);
        if is_idle {
            self.idle.notify_waiters();
        }
    }

    /// Sets the exported counters to one snapshot.
    #[allow(clippy::cast_precision_loss, reason = "a gauge is a float")]
    pub fn export(&self) {
        let counts = self.counts();
        RESULTS_RECEIVED.get().absolute(counts.received);
        for outcome in Outcome::ALL {
            RESULTS.of(outcome).absolute(counts.of(outcome));
        }
        RESULTS_IN_FLIGHT.get().set(counts.in_flight() as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: every delivery is in exactly one count, whatever its outcome.
    #[tokio::test]
    async fn the_identity_holds() {
        let ledger = Ledger::default();
        for outcome in Outcome::ALL {
            ledger.receive(false);
            assert_eq!(ledger.counts().in_flight(), 1);
            ledger.end(outcome);
            assert_eq!(ledger.counts().of(outcome), 1);
        }
        assert_eq!(ledger.counts().received, 6);
        assert_eq!(ledger.counts().in_flight(), 0);
        ledger.settled().await;
    }
}
