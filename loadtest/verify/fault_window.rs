//! Which results a fault excuses: what the faults of a run may have lost or delivered again, and when. Pure.
//!
//! Invariant: a fault excuses what was under way when it was, and nothing before or after. Faults of the store lose no receipt
//! and deliver nothing again; what the server knew of a document any fault may make it forget.

use crate::faults::FaultRecord;
use crate::ledger::{Book, Entry};
use crate::plan::FaultKind;
use crate::schedule::micros;

/// Receipts that came so shortly before a fault show what was being settled then; what was settled with it and has no
/// receipt may have been sent so much earlier.
const BEFORE: u64 = 2_000_000;
/// A server that is killed takes nothing more so long after the fault began: the kill itself takes a moment.
const DYING: u64 = 3_000_000;
/// Server and listener are connected again so long after the broker is back, and receipts are heard.
const BACK: u64 = 15_000_000;
/// What a fault makes the server forget is forgotten so long after its end: it may have to be started first.
const FORGETTING: u64 = 60_000_000;

/// What the faults of a run excuse. All times are microseconds from the start.
#[derive(Debug, Default)]
pub(super) struct Excuses {
    /// Receipts of what was under way then may be lost.
    losing: Vec<Window>,
    /// What was sent until then may have been delivered again.
    delivered_again: Option<u64>,
    /// From the begin of each fault until all is forgotten that it makes the server forget.
    forgotten: Vec<Window>,
}

/// A time in which a fault has its effect.
#[derive(Debug)]
struct Window {
    from: u64,
    until: u64,
}

impl Excuses {
    /// Of these faults, as they were.
    pub(super) fn of(faults: &[FaultRecord], book: &Book) -> Self {
        let losing = faults.iter().filter_map(|fault| {
            let (began, ended) = (micros(fault.began), micros(fault.ended));
            let until = match fault.kind()? {
                // The one that is started next has no excuse.
                FaultKind::KillServer => began + DYING,
                kind if kind.redelivers() => ended + BACK,
                _ => return None,
            };
            let from = under_way_since(book, began).saturating_sub(BEFORE);
            Some(Window { from, until })
        });
        // A server gives back what it settled, too, if the acknowledgement had to wait for an older delivery: no matter how
        // long ago that was.
        let again = faults.iter().filter_map(|fault| {
            let is_again = fault.kind()?.redelivers();
            is_again.then(|| micros(fault.ended) + BACK)
        });
        let delivered_again = again.max();
        // A listener that is cut off in a run without such a fault is not the plan's doing.
        let deaf = book
            .listener_gaps
            .iter()
            .filter(|_| delivered_again.is_some());
        let deaf = deaf.map(|(from, until)| Window {
            from: under_way_since(book, *from).saturating_sub(BEFORE),
            until: *until,
        });
        Self {
            losing: losing.chain(deaf).collect(),
            delivered_again,
            forgotten: faults.iter().map(forgotten).collect(),
        }
    }

    /// Whether a fault may have lost a receipt of this result.
    pub(super) fn loses_receipt(&self, entry: &Entry) -> bool {
        let (Some(attempted), Some(confirmed)) = (entry.attempted_at, entry.confirmed_at) else {
            return false;
        };
        let meets = |window: &Window| attempted <= window.until && confirmed >= window.from;
        self.losing.iter().any(meets)
    }

    /// Whether a fault may have made the server forget `unchanged` before it settled `older`, which came later.
    pub(super) fn forgets(&self, unchanged: &Entry, older: &Entry) -> bool {
        let settled = older.told_at.unwrap_or(u64::MAX);
        let is_between = |window: &Window| {
            window.from <= settled && unchanged.attempted_at <= Some(window.until)
        };
        self.forgotten.iter().any(is_between)
    }

    /// Whether a fault may have made the broker deliver this result again.
    pub(super) fn delivers_again(&self, entry: &Entry) -> bool {
        entry.attempted_at.is_some() && entry.attempted_at <= self.delivered_again
    }
}

fn forgotten(fault: &FaultRecord) -> Window {
    Window {
        from: micros(fault.began),
        until: micros(fault.ended) + FORGETTING,
    }
}

/// When the oldest of the results was sent that were being settled when a fault began, or later.
fn under_way_since(book: &Book, began: u64) -> u64 {
    let told_late = book.entries.iter().filter(|entry| {
        let told = entry.told_at.unwrap_or(0);
        told >= began.saturating_sub(BEFORE)
    });
    let since = told_late.filter_map(|entry| entry.attempted_at).min();
    since.unwrap_or(began).min(began)
}
