//! Which runs were seen lately, so that each is counted once. Pure.

use std::collections::{HashSet, VecDeque};

use crate::wire::RunId;

/// Runs remembered. One that is older and still sends results is counted again.
const REMEMBERED_MAX: usize = 1_000;

/// The last runs seen.
#[derive(Debug, Default)]
pub(super) struct RecentRuns {
    known: HashSet<RunId>,
    order: VecDeque<RunId>,
}

impl RecentRuns {
    /// Remembers `run`; says whether it is new.
    pub(super) fn meet(&mut self, run: RunId) -> bool {
        if !self.known.insert(run) {
            return false;
        }
        self.order.push_back(run);
        if self.order.len() > REMEMBERED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a run is new once, and the memory is bounded whatever comes.
    #[test]
    fn a_run_is_new_once() {
        let mut runs = RecentRuns::default();
        let first = RunId::generate();
        assert!(runs.meet(first));
        assert!(!runs.meet(first));
        for _ in 0..REMEMBERED_MAX {
            assert!(runs.meet(RunId::generate()));
        }
        assert_eq!(
            (runs.known.len(), runs.order.len()),
            (REMEMBERED_MAX, REMEMBERED_MAX)
        );
        assert!(runs.meet(first), "it was forgotten");
    }
}
