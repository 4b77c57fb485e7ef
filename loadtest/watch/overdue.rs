//! Results that should have a receipt by now: "lost so far" is calculated from them while the load runs.
//!
//! Invariant: each look goes through what came due since the last one and what was still open then, not through the
//! whole ledger.

use std::time::Duration;

use crate::ledger::{Entry, Ledger};

/// No receipt is missed before this time: receipts wait for company, and loops for their turn.
const GRACE: Duration = Duration::from_secs(10);

/// The results that were due more than [`GRACE`] ago and are not settled.
#[derive(Debug, Default)]
pub(super) struct Overdue {
    /// The first entry that was not looked at.
    next: usize,
    open: Vec<usize>,
}

impl Overdue {
    /// How many of the overdue results the broker confirmed, `elapsed` after the begin of the load.
    pub(super) fn count(&mut self, ledger: &Ledger, elapsed: Duration) -> u64 {
        let before = elapsed.saturating_sub(GRACE).as_micros();
        let book = ledger.book();
        let new = book.entries.iter().skip(self.next);
        let new = new
            .take_while(|entry| u128::from(entry.due) <= before)
            .count();
        self.open.extend(self.next..self.next + new);
        self.next += new;
        self.open.retain(|index| !is_settled(&book.entries[*index]));
        let is_missed = |index: &&usize| book.entries[**index].confirmed > 0;
        self.open.iter().filter(is_missed).count() as u64
    }
}

/// Whether all expected receipts came. A result without a run gets none.
fn is_settled(entry: &Entry) -> bool {
    !entry.has_run || (entry.confirmed > 0 && entry.receipts() >= entry.confirmed)
}

#[cfg(test)]
mod tests {
    use vogeler::wire::{Outcome, Receipt, RunId};

    use super::*;
    use crate::ledger::{EntryId, Hash, Sent};

    fn send(ledger: &Ledger, run: Option<RunId>, seq: u64, due: Duration) -> EntryId {
        ledger.sending(&Sent {
            node: "web1".parse().unwrap(),
            plugin: "facter".parse().unwrap(),
            run,
            seq,
            hash: Hash::of(b"x"),
            version: None,
            due: u64::try_from(due.as_micros()).unwrap(),
            is_late: false,
        })
    }

    /// Goal: a confirmed result without a receipt is overdue after a while, until its receipt comes. One that waits in
    /// a client, or has no run, never is.
    #[test]
    fn what_has_no_receipt_is_overdue_in_time() {
        let ledger = Ledger::default();
        let second = Duration::from_secs;
        let runs: Vec<RunId> = (0..3).map(|_| RunId::generate()).collect();
        for (seq, run) in (1..).zip([Some(runs[0]), Some(runs[1]), None]) {
            let id = send(&ledger, run, seq, second(1));
            ledger.attempt(id, 1);
            ledger.confirm(id, 1);
        }
        let waits = send(&ledger, Some(runs[2]), 4, second(1));
        let mut overdue = Overdue::default();
        assert_eq!(overdue.count(&ledger, second(10)), 0);
        assert_eq!(overdue.count(&ledger, second(12)), 2);
        ledger.confirm(waits, 1);
        assert_eq!(overdue.count(&ledger, second(13)), 3);
        let receipt = Receipt {
            node: "web1".parse().unwrap(),
            plugin: "facter".parse().unwrap(),
            outcome: Outcome::Stored,
            error: None,
            reason: None,
            copy: None,
        };
        ledger.receipt(runs[0], &receipt, 1);
        assert_eq!(overdue.count(&ledger, second(14)), 2);
    }
}
