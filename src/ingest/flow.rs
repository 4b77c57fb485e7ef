//! Whether results are coalescing just now. Node actors count, the writer looks.
//!
//! While most results that need a write join a node that waits for one anyway, a write now costs another one for the same
//! node a moment later. Invariant: silence counts as not coalescing, so that no batch waits for results that do not come.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Pause between two looks: long enough to see some hundred results of a backlog, short beside any write.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Counts the results that need a write. Shared by all node actors.
#[derive(Debug, Default)]
pub(super) struct Flow {
    all: AtomicU64,
    joined: AtomicU64,
}

/// Results that need a write, and those of them that joined a node which waits or is being written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct FlowCounts {
    all: u64,
    joined: u64,
}

impl Flow {
    /// A result needs a write; `is_joining` if its node waits for one already.
    pub(super) fn note(&self, is_joining: bool) {
        self.all.fetch_add(1, Ordering::Relaxed);
        if is_joining {
            self.joined.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The counts so far. They need not be of the same moment: they only show a tendency.
    pub(super) fn counts(&self) -> FlowCounts {
        FlowCounts {
            all: self.all.load(Ordering::Relaxed),
            joined: self.joined.load(Ordering::Relaxed),
        }
    }
}

/// Tells whether results coalesce, from counts that it gets every [`LOOK_EVERY`]. Pure.
#[derive(Debug)]
pub(super) struct Tendency {
    looked_at: Instant,
    seen: FlowCounts,
    is_coalescing: bool,
}

impl Tendency {
    /// Nothing is coalescing yet.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            looked_at: now,
            seen: FlowCounts::default(),
            is_coalescing: false,
        }
    }

    /// Whether at least half of the results since the last look joined. A look before [`LOOK_EVERY`] has passed changes
    /// nothing.
    pub(super) fn is_coalescing(&mut self, counts: FlowCounts, now: Instant) -> bool {
        if now.duration_since(self.looked_at) >= LOOK_EVERY {
            let all = counts.all.saturating_sub(self.seen.all);
            let joined = counts.joined.saturating_sub(self.seen.joined);
            self.is_coalescing = all > 0 && joined >= all.div_ceil(2);
            self.looked_at = now;
            self.seen = counts;
        }
        self.is_coalescing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: batches wait while results join nodes that wait, and not while every result has a new node or none comes.
    #[test]
    fn the_tendency_follows_what_comes() {
        let flow = Flow::default();
        let mut now = Instant::now();
        let mut tendency = Tendency::new(now);
        let mut after = |joining: u64, others: u64| {
            (0..joining).for_each(|_| flow.note(true));
            (0..others).for_each(|_| flow.note(false));
            now += LOOK_EVERY;
            tendency.is_coalescing(flow.counts(), now)
        };
        assert!(!after(0, 100));
        assert!(after(50, 50));
        assert!(!after(49, 51));
        assert!(after(3, 0));
        assert!(!after(0, 0), "silence");
    }

    /// Goal: between two looks the answer stands, however much comes.
    #[test]
    fn a_look_too_soon_changes_nothing() {
        let (flow, now) = (Flow::default(), Instant::now());
        let mut tendency = Tendency::new(now);
        flow.note(true);
        assert!(!tendency.is_coalescing(flow.counts(), now));
        assert!(tendency.is_coalescing(flow.counts(), now + LOOK_EVERY));
    }
}
