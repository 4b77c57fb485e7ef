//! Which results a fault excuses: what the faults of a run may have lost or delivered again, and when. Pure.
//!
//! Invariant: a fault excuses what was under way during it, and nothing before or after. Faults of the store lose no
//! receipt and redeliver nothing. Any fault may make the server forget what it knew of a document.

use crate::faults::FaultRecord;
use crate::ledger::{Book, Entry};
use crate::plan::FaultKind;
use crate::schedule::micros;

/// A margin in microseconds, used twice. Receipts that came at most this long before a fault show what was being
/// settled then. A result that was settled along with that and has no receipt may have been sent this much earlier.
const BEFORE: u64 = 2_000_000;
/// Microseconds from the begin of a kill until the server takes nothing more: the kill itself takes a moment.
const DYING: u64 = 3_000_000;
/// Microseconds from the broker's return until server and listener are connected again, and receipts are heard.
const BACK: u64 = 15_000_000;
/// Microseconds from the end of a fault until the server has forgotten what the fault makes it forget: it may have to
/// be started first.
const FORGETTING: u64 = 60_000_000;

/// What the faults of a run excuse. All times are microseconds from the start.
#[derive(Debug, Default)]
pub(super) struct Excuses {
    /// Receipts of results that were under way in one of these windows may be lost.
    losing: Vec<Window>,
    /// Results that were sent up to this time may have been redelivered.
    delivered_again: Option<u64>,
    /// One window a fault: from its begin until the server has forgotten all that the fault makes it forget.
    forgotten: Vec<Window>,
}

/// A time in which a fault has its effect.
#[derive(Debug)]
struct Window {
    from: u64,
    until: u64,
}

impl Excuses {
    /// What these faults excuse, by the times that they really had.
    pub(super) fn of(faults: &[FaultRecord], book: &Book) -> Self {
        let losing = faults.iter().filter_map(|fault| {
            let (began, ended) = (micros(fault.began), micros(fault.ended));
            let until = match fault.kind()? {
                // The server that is started next has no excuse.
                FaultKind::KillServer => began + DYING,
                kind if kind.redelivers() => ended + BACK,
                _ => return None,
            };
            let from = under_way_since(book, began).saturating_sub(BEFORE);
            Some(Window { from, until })
        });
        // A settled result is redelivered, too, if its acknowledgement had to wait for an older delivery, no matter how
        // long ago it was settled.
        let again = faults.iter().filter_map(|fault| {
            let is_again = fault.kind()?.redelivers();
            is_again.then(|| micros(fault.ended) + BACK)
        });
        let delivered_again = again.max();
        // In a run without such a fault the plan does not explain why the listener was cut off.
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

/// When the oldest of the results was sent that were settled around the begin of a fault or later; at most `began`.
fn under_way_since(book: &Book, began: u64) -> u64 {
    let told_late = book.entries.iter().filter(|entry| {
        let told = entry.told_at.unwrap_or(0);
        told >= began.saturating_sub(BEFORE)
    });
    let since = told_late.filter_map(|entry| entry.attempted_at).min();
    since.unwrap_or(began).min(began)
}
