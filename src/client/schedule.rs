//! The schedule: when the plugins that set `every` run without a command.
//!
//! Goes in: the time. Comes out: the plugins that are due. There is no clock inside. Invariant: a plugin runs on a
//! grid of `every`, shifted by a splay that depends on its node and its name. So a fleet spreads evenly, a restart
//! changes nothing, and nobody catches up in a burst. A plugin first runs within `every` after the start.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;

use super::plugin::Plugin;
use crate::wire::{NodeName, PluginName};

/// The plugins that run on schedule, and when each is next due.
#[derive(Debug)]
pub(super) struct Schedule {
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    plugin: PluginName,
    grid: Grid,
    /// In microseconds since the epoch, like all times here.
    next: i64,
}

/// The moments that are `splay` past a multiple of `every`.
#[derive(Debug, Clone, Copy)]
struct Grid {
    every: i64,
    splay: i64,
}

impl Grid {
    fn new(node: &NodeName, plugin: &PluginName, every: Duration) -> Self {
        let every = i64::try_from(every.as_micros()).unwrap_or(i64::MAX).max(1);
        let mut hasher = blake3::Hasher::new();
        // Names hold no control characters, so a NUL keeps the two apart.
        hasher.update(node.as_str().as_bytes());
        hasher.update(b"\0");
        hasher.update(plugin.as_str().as_bytes());
        let mut share = [0; 8];
        hasher.finalize_xof().fill(&mut share);
        let splay = i64::from_le_bytes(share).rem_euclid(every);
        Self { every, splay }
    }

    /// The first moment of the grid after `now`.
    fn after(self, now: i64) -> i64 {
        let since = now.saturating_sub(self.splay).rem_euclid(self.every);
        now.saturating_add(self.every - since)
    }
}

impl Schedule {
    /// The schedule of `node`, from `now` on, for those of `plugins` that set `every`.
    pub(super) fn new<'p>(
        node: &NodeName,
        plugins: impl IntoIterator<Item = &'p Plugin>,
        now: Timestamp,
    ) -> Self {
        let entry = |plugin: &Plugin| {
            let grid = Grid::new(node, &plugin.name, plugin.every?);
            Some(Entry {
                plugin: plugin.name.clone(),
                grid,
                next: grid.after(now.as_microsecond()),
            })
        };
        Self {
            entries: plugins.into_iter().filter_map(entry).collect(),
        }
    }

    /// Takes over the plugins that were due by the schedule `before` and have not started.
    pub(super) fn with_due_of(mut self, before: &Self, now: Timestamp) -> Self {
        let now = now.as_microsecond();
        let due = before.entries.iter().filter(|entry| entry.next <= now);
        let due: HashMap<_, _> = due.map(|entry| (&entry.plugin, entry.next)).collect();
        for entry in &mut self.entries {
            entry.next = due.get(&entry.plugin).copied().unwrap_or(entry.next);
        }
        self
    }

    /// The plugins that are due, each at most once however long it has been due. Each is next due after `now`.
    pub(super) fn due(&mut self, now: Timestamp) -> Vec<PluginName> {
        let now = now.as_microsecond();
        let mut due = Vec::new();
        for entry in &mut self.entries {
            let is_due = entry.next <= now;
            // More than one interval away: the clock stepped back.
            if is_due || entry.next.saturating_sub(now) > entry.grid.every {
                entry.next = entry.grid.after(now);
            }
            if is_due {
                due.push(entry.plugin.clone());
            }
        }
        due
    }

    /// How long until the next plugin is due; none if no plugin ever is.
    pub(super) fn wait(&self, now: Timestamp) -> Option<Duration> {
        let next = self.entries.iter().map(|entry| entry.next).min()?;
        let wait = next.saturating_sub(now.as_microsecond());
        Some(Duration::from_micros(u64::try_from(wait).unwrap_or(0)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    fn grid(node: &str, every: Duration) -> Grid {
        Grid::new(&node.parse().unwrap(), &"rpms".parse().unwrap(), every)
    }

    fn schedule(every: Duration, now: i64) -> Schedule {
        let grid = grid("web01", every);
        let plugin = "rpms".parse().unwrap();
        let next = grid.after(now);
        Schedule {
            entries: vec![Entry { plugin, grid, next }],
        }
    }

    fn at(microsecond: i64) -> Timestamp {
        Timestamp::from_microsecond(microsecond).unwrap()
    }

    proptest! {
        /// The next moment is after now, within one interval, on the grid, and the same whenever it is computed.
        #[test]
        fn the_next_moment_is_on_the_grid(node in "[a-z]{1,9}", seconds in 1..3_000_000_u64, now in 0..4_000_000_000_000_000_i64) {
            let grid = grid(&node, Duration::from_secs(seconds));
            let next = grid.after(now);
            prop_assert!(now < next && next <= now + grid.every);
            prop_assert_eq!(next.rem_euclid(grid.every), grid.splay);
            prop_assert_eq!(grid.after(next - 1), next);
        }

        /// However the clock moves, a plugin is due at most once per reading and waits at most one interval.
        #[test]
        fn a_plugin_is_due_once_an_interval(steps in prop::collection::vec(-10_000_000_000..10_000_000_000_i64, 1..40)) {
            let mut now = 1_700_000_000_000_000;
            let mut schedule = schedule(HOUR, now);
            for step in steps {
                now += step;
                prop_assert!(schedule.due(at(now)).len() <= 1);
                prop_assert!(schedule.due(at(now)).is_empty());
                prop_assert!(schedule.wait(at(now)).unwrap() <= HOUR);
            }
        }
    }

    /// Goal: a fleet does not run a plugin at one moment but spread over the interval.
    #[test]
    fn nodes_are_spread_over_the_interval() {
        let minutes: BTreeSet<_> = (0..1000)
            .map(|n| grid(&format!("node{n}"), HOUR).splay / 60_000_000)
            .collect();
        assert_eq!(minutes.len(), 60);
    }

    /// Goal: a plugin is due exactly when the wait is over, and a plugin without `every` never is.
    #[test]
    fn due_when_waited_for() {
        let now = 1_700_000_000_000_000;
        let mut one = schedule(HOUR, now);
        let wait = i64::try_from(one.wait(at(now)).unwrap().as_micros()).unwrap();
        assert!(one.due(at(now + wait - 1)).is_empty());
        assert_eq!(one.due(at(now + wait)).len(), 1);
        let none = Schedule::new(&"web01".parse().unwrap(), [], at(now));
        assert_eq!(none.wait(at(now)), None);
    }
}
