//! The pace: how many documents a write may have, and how many writes may run at once, learned from how writes go. Pure.
//!
//! Additive increase, multiplicative decrease (AIMD): a write that fails or takes longer than the target halves both,
//! once for all writes that were under way then; each full write that goes well adds a part. Invariant: both stay between
//! 1 and the configured maximum, and slowness alone leaves at least an eighth of the documents: a store that is busy with
//! something else is slow whatever it is sent, and small writes would only make it slower.

use std::time::Duration;

use tokio::time::Instant;

/// Full writes that go well until a store that recovered has its full batches back: each adds this part of `count_max`.
const STEPS: usize = 16;
/// A store that is slow but does not fail gets at least this part of `count_max` documents in a write.
const SLOW_PART: usize = 8;

/// The bounds of the pace.
#[derive(Debug, Clone, Copy)]
pub(super) struct PaceBounds {
    /// Documents a write at most.
    pub(super) count_max: usize,
    /// Most writes at once.
    pub(super) writes_max: usize,
    /// A write that takes longer is too much for the store.
    pub(super) write_target: Duration,
}

/// How a commit's writes went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Went {
    /// How long its slowest write took.
    pub(super) slowest: Duration,
    /// Whether a write failed as a whole.
    pub(super) is_failed: bool,
}

/// How fast the store is written to.
#[derive(Debug)]
pub(super) struct Pace {
    bounds: PaceBounds,
    count: usize,
    writes: usize,
    slowed_at: Option<Instant>,
}

impl Pace {
    /// Begins with all that is allowed.
    pub(super) fn new(bounds: PaceBounds) -> Self {
        Self {
            bounds,
            count: bounds.count_max,
            writes: bounds.writes_max,
            slowed_at: None,
        }
    }

    /// Documents a write at most.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Most writes at once. A batch that is not full does with half of them: it waits for a write to end and gathers more
    /// meanwhile, and the store, which is not behind, answers each write sooner.
    pub(super) fn writes(&self, is_full: bool) -> usize {
        if is_full {
            self.writes
        } else {
            self.writes.div_ceil(2)
        }
    }

    /// A commit of `documents` that began at `started` has ended.
    pub(super) fn ended(&mut self, documents: usize, started: Instant, went: Went, now: Instant) {
        if went.is_failed || went.slowest > self.bounds.write_target {
            // A write that was under way at the slowdown says nothing about the slower pace.
            if self.slowed_at.is_none_or(|slowed| started >= slowed) {
                self.slowed_at = Some(now);
                let least = if went.is_failed {
                    1
                } else {
                    self.count.min(self.bounds.count_max.div_ceil(SLOW_PART))
                };
                self.count = (self.count / 2).max(least);
                self.writes = (self.writes / 2).max(1);
            }
        } else if documents >= self.count {
            let step = self.bounds.count_max.div_ceil(STEPS);
            self.count = (self.count + step).min(self.bounds.count_max);
            self.writes = (self.writes + 1).min(self.bounds.writes_max);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: PaceBounds = PaceBounds {
        count_max: 100,
        writes_max: 4,
        write_target: Duration::from_secs(1),
    };
    const GOOD: Went = Went {
        slowest: Duration::from_millis(40),
        is_failed: false,
    };
    const SLOW: Went = Went {
        slowest: Duration::from_millis(1_001),
        is_failed: false,
    };

    /// Goal: a slow store gets half, halved once for all that was under way, and everything again when it has recovered.
    #[test]
    fn it_halves_once_and_recovers() {
        let mut pace = Pace::new(BOUNDS);
        let start = Instant::now();
        let later = start + Duration::from_secs(2);
        for _ in 0..4 {
            pace.ended(100, start, SLOW, later);
        }
        assert_eq!((pace.count(), pace.writes(true)), (50, 2));
        let failed = Went {
            is_failed: true,
            ..GOOD
        };
        pace.ended(50, later, failed, later + Duration::from_secs(1));
        assert_eq!((pace.count(), pace.writes(true)), (25, 1));
        for _ in 0..STEPS {
            pace.ended(pace.count(), later, GOOD, later);
        }
        assert_eq!((pace.count(), pace.writes(true)), (100, 4));
        assert_eq!(pace.writes(false), 2);
    }

    /// Goal: slowness alone does not end in writes of one document, failures do.
    #[test]
    fn slow_is_not_failed() {
        let after = |is_failed| {
            let mut pace = Pace::new(BOUNDS);
            let mut now = Instant::now();
            for _ in 0..10 {
                let started = now;
                now += SLOW.slowest;
                pace.ended(100, started, Went { is_failed, ..SLOW }, now);
            }
            (pace.count(), pace.writes(true))
        };
        assert_eq!((after(false), after(true)), ((13, 1), (1, 1)));
    }

    /// Goal: writes that were not full say nothing about what a full one would do.
    #[test]
    fn only_full_writes_speed_it_up() {
        let mut pace = Pace::new(BOUNDS);
        let start = Instant::now();
        pace.ended(100, start, SLOW, start);
        pace.ended(49, start, GOOD, start);
        assert_eq!(pace.count(), 50);
        pace.ended(50, start, GOOD, start);
        assert_eq!(pace.count(), 57);
    }

    proptest! {
        /// Whatever happens, both stay within the bounds.
        #[test]
        fn bounds_hold(
            ends in prop::collection::vec((1..200_usize, any::<bool>(), 0..3_000_u64), 0..100),
            count_max in 1..300_usize,
            writes_max in 1..9_usize,
        ) {
            let mut pace = Pace::new(PaceBounds { count_max, writes_max, ..BOUNDS });
            let mut now = Instant::now();
            for (documents, is_failed, milliseconds) in ends {
                let started = now;
                let slowest = Duration::from_millis(milliseconds);
                now += slowest;
                pace.ended(documents, started, Went { slowest, is_failed }, now);
                prop_assert!((1..=count_max).contains(&pace.count()));
                prop_assert!((1..=writes_max).contains(&pace.writes(true)));
                prop_assert!((1..=pace.writes(true)).contains(&pace.writes(false)));
            }
        }
    }
}
