//! The runs seen lately: each is counted once, and the last few are followed.
//!
//! Intake says which run a result belongs to, settlement how it ended. Invariant: at most [`REMEMBERED_MAX`] runs are
//! remembered, and the last [`TOLD_MAX`] of them are reported.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use crate::wire::{Outcome, PluginName, Receipt, RunId};

/// Runs remembered. One that is older and still sends results is counted again.
const REMEMBERED_MAX: usize = 1_000;
/// Runs that are reported: how many results each had, and how they ended.
const TOLD_MAX: usize = 20;

/// The last runs seen. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Runs(Arc<Mutex<RecentRuns>>);

/// A run, as far as this server saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunSeen {
    /// Its id.
    pub run: RunId,
    /// The plugin of its first result.
    pub plugin: Option<PluginName>,
    /// Results that say that the plugin failed.
    pub failed: u64,
    /// When its first result came.
    pub first_seen: Timestamp,
    /// When a result of it came or was settled last.
    pub last_seen: Timestamp,
    ended: [u64; Outcome::ALL.len()],
}

impl RunSeen {
    /// Results with this outcome.
    pub fn of(&self, outcome: Outcome) -> u64 {
        self.ended
            .get(outcome as usize)
            .copied()
            .unwrap_or_default()
    }

    /// Results settled.
    pub fn results(&self) -> u64 {
        self.ended.iter().sum()
    }
}

impl Runs {
    /// A result of `run` came; says whether the run is new.
    pub(super) fn meet(&self, run: RunId, plugin: Option<&PluginName>) -> bool {
        self.lock().meet(run, plugin, Timestamp::now())
    }

    /// A result of `run` was settled.
    pub(super) fn settled(&self, run: RunId, receipt: &Receipt) {
        self.lock().settled(run, receipt, Timestamp::now());
    }

    /// The last runs, the newest first.
    pub fn newest_first(&self) -> Vec<RunSeen> {
        self.lock().told.iter().rev().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, RecentRuns> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The last runs. Pure.
#[derive(Debug, Default)]
struct RecentRuns {
    known: HashSet<RunId>,
    order: VecDeque<RunId>,
    told: VecDeque<RunSeen>,
}

impl RecentRuns {
    fn meet(&mut self, run: RunId, plugin: Option<&PluginName>, now: Timestamp) -> bool {
        if !self.known.insert(run) {
            return false;
        }
        self.order.push_back(run);
        if self.order.len() > REMEMBERED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        if self.told.len() == TOLD_MAX {
            self.told.pop_front();
        }
        self.told.push_back(RunSeen {
            run,
            plugin: plugin.cloned(),
            failed: 0,
            first_seen: now,
            last_seen: now,
            ended: [0; Outcome::ALL.len()],
        });
        true
    }

    fn settled(&mut self, run: RunId, receipt: &Receipt, now: Timestamp) {
        // Results mostly come from current runs, which are at the end.
        let Some(seen) = self.told.iter_mut().rev().find(|seen| seen.run == run) else {
            return;
        };
        seen.last_seen = now;
        seen.failed += u64::from(receipt.error.is_some());
        if let Some(count) = seen.ended.get_mut(receipt.outcome as usize) {
            *count += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{ErrorKind, NodeName, PluginError};

    /// Goal: a run is new once, and the memory is bounded whatever comes.
    #[test]
    fn a_run_is_new_once() {
        let mut runs = RecentRuns::default();
        let mut meet = |run| runs.meet(run, None, Timestamp::UNIX_EPOCH);
        let first = RunId::generate();
        assert!(meet(first));
        assert!(!meet(first));
        for _ in 0..REMEMBERED_MAX {
            assert!(meet(RunId::generate()));
        }
        assert!(meet(first), "it was forgotten");
        assert_eq!(
            (runs.known.len(), runs.order.len(), runs.told.len()),
            (REMEMBERED_MAX, REMEMBERED_MAX, TOLD_MAX)
        );
    }

    /// Goal: the report of a run says how its results ended and how many failed; a run that is not known changes nothing.
    #[test]
    fn a_run_tells_how_it_went() {
        let runs = Runs::default();
        let [old, new] = [RunId::generate(), RunId::generate()];
        let plugin = PluginName::new("rpms").unwrap();
        assert!(runs.meet(old, Some(&plugin)) && runs.meet(new, None));
        let mut receipt = Receipt {
            node: NodeName::new("web01").unwrap(),
            plugin: plugin.clone(),
            outcome: Outcome::Stored,
            error: None,
            reason: None,
            copy: None,
        };
        runs.settled(old, &receipt);
        receipt.error = Some(PluginError {
            kind: ErrorKind::Timeout,
            message: "slow".to_owned(),
            exit: None,
            stderr: None,
        });
        receipt.outcome = Outcome::Unchanged;
        runs.settled(old, &receipt);
        runs.settled(RunId::generate(), &receipt);
        let told = runs.newest_first();
        assert_eq!((told.len(), told[0].run, told[0].results()), (2, new, 0));
        let of = [Outcome::Stored, Outcome::Unchanged, Outcome::Stale]
            .map(|outcome| told[1].of(outcome));
        assert_eq!((of, told[1].results(), told[1].failed), ([1, 1, 0], 2, 1));
        assert_eq!(told[1].plugin, Some(plugin));
    }
}
