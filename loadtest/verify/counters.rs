//! The server's own counters against the ledger. Pure.

use vogeler::wire::Outcome;

use crate::ledger::Book;
use crate::stats::ServerCounts;
use crate::verdict::{Finding, Verdict};

/// What the ledger says about all deliveries together.
#[derive(Debug, Clone, Copy, Default)]
struct Totals {
    /// Messages that the broker confirmed: it has at least this many from us.
    confirmed: u64,
    /// Tries to publish: the broker has at most this many messages from us.
    attempts: u64,
    /// Copies whose outcome no receipt reports.
    untold: u64,
    receipts: [u64; Outcome::ALL.len()],
    poison: u64,
}

impl Totals {
    fn of(book: &Book) -> Self {
        let mut totals = Self::default();
        for poison in book.poison.values() {
            totals.confirmed += u64::from(poison.confirmed);
            totals.attempts += u64::from(poison.attempts);
            totals.poison += u64::from(poison.confirmed);
            totals.untold += u64::from(poison.attempts);
        }
        for entry in &book.entries {
            totals.confirmed += u64::from(entry.confirmed);
            totals.attempts += u64::from(entry.attempts);
            totals.untold += u64::from(entry.attempts.saturating_sub(entry.receipts()));
            for (total, receipts) in totals.receipts.iter_mut().zip(entry.outcomes) {
                *total += u64::from(receipts);
            }
        }
        totals
    }
}

/// Lists the disagreements. If a fault made the broker redeliver, possibly without saying so, more deliveries than were
/// sent are no disagreement. A server that is not the run's own may hold deliveries of others.
pub(super) fn judge(
    book: &Book,
    counts: Option<&ServerCounts>,
    (is_own, redelivers): (bool, bool),
) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut hold = |is_good: bool, what: String| {
        if !is_good {
            found.push(Finding {
                node: "-".to_owned(),
                plugin: None,
                seq: None,
                what,
            });
        }
    };
    let Some(counts) = counts else {
        hold(false, "the server does not answer".to_owned());
        return found;
    };
    let ended: u64 = counts.ended.iter().sum();
    let ServerCounts {
        received,
        in_flight,
        ..
    } = *counts;
    // This holds over all lives of a server, too: what a killed one held counts as given back.
    hold(
        received == ended + in_flight,
        format!("the identity: {received} received, {ended} ended, {in_flight} in flight"),
    );
    hold(
        in_flight == 0 || !is_own,
        format!("{in_flight} deliveries are still in flight"),
    );
    if !counts.is_complete {
        return found;
    }
    let totals = Totals::of(book);
    let finally = ended - counts.of(Outcome::Requeued);
    // A redelivery came a second time, and its first delivery may have been settled.
    let again = if redelivers {
        u64::MAX / 2
    } else {
        counts.redelivered
    };
    let (low, high) = (totals.confirmed, totals.attempts + again);
    hold(
        (low..=high).contains(&finally),
        format!("{finally} deliveries ended for good, the broker had {low} to {high}"),
    );
    for outcome in Outcome::ALL
        .into_iter()
        .filter(|outcome| *outcome != Outcome::Requeued)
    {
        let told = totals.receipts[outcome as usize];
        let least = told
            + if outcome == Outcome::DeadLettered {
                totals.poison
            } else {
                0
            };
        let most = told + totals.untold + again;
        let counted = counts.of(outcome);
        hold(
            (least..=most).contains(&counted),
            format!(
                "{counted} {}, by the ledger {least} to {most}",
                outcome.as_str()
            ),
        );
    }
    found
}

/// Excuses all missing receipts if the server gave up at least as many, and else none: its counter does not say which
/// ones it gave up.
pub(super) fn excuse_given_up(counts: &ServerCounts, verdict: &mut Verdict) {
    let missing = verdict.missing_receipt.len() as u64;
    if missing <= counts.receipts_failed {
        verdict.receipts_given_up = missing;
        verdict.missing_receipt.clear();
    }
}
