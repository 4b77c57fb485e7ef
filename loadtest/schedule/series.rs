//! One plugin of one node: one result each interval, and what may go wrong on its way.

use super::{Kind, POISONS, Sending};
use crate::plan::Plan;
use crate::rng::Draws;

/// Fills in the results of one node's plugin.
pub(super) struct Series<'a> {
    pub(super) plan: &'a Plan,
    pub(super) node: u32,
    pub(super) plugin: u16,
    pub(super) interval: u64,
    pub(super) tick: u64,
    pub(super) draws: &'a mut Draws,
    pub(super) sendings: &'a mut Vec<Sending>,
}

impl Series<'_> {
    /// Adds results until `end`. The first falls into the interval after `start`, and has content `version`.
    pub(super) fn fill(&mut self, start: u64, end: u64, version: u32) {
        let mut version = version;
        let mut collected = start + self.draws.below(self.interval);
        let mut is_late = false;
        while collected < end {
            // The result after a late one is on time, so that it overtakes the late one.
            is_late = self.collect(collected, end, version, !is_late);
            collected += self.interval;
            version += u32::from(self.draws.happens(self.plan.change_rate));
        }
    }

    /// Adds one result, and what comes with it. Returns whether it is late.
    fn collect(&mut self, collected: u64, end: u64, version: u32, may_be_late: bool) -> bool {
        // All draws are made, even if unused, so that one rate does not change the draws of another.
        let is_late = self.draws.happens(self.plan.late_rate);
        let is_doubled = self.draws.happens(self.plan.duplicate_rate);
        let is_beside_poison = self.draws.happens(self.plan.poison_rate);
        let (delay, gap) = (
            self.draws.below(self.interval),
            self.draws.below(self.interval),
        );
        let form = self.draws.below(POISONS.into());
        let late = collected + self.interval + delay + 1;
        let is_late = is_late && may_be_late && late < end;
        let sending = Sending {
            at: if is_late { late } else { collected },
            collected,
            node: self.node,
            plugin: self.plugin,
            tick: u32::try_from(collected / self.tick).unwrap_or(u32::MAX),
            version,
            kind: if is_late { Kind::Late } else { Kind::Result },
        };
        self.sendings.push(sending);
        if is_doubled {
            let at = (sending.at + gap)
                .min(end.saturating_sub(1))
                .max(sending.at);
            let kind = Kind::Duplicate;
            self.sendings.push(Sending {
                at,
                kind,
                ..sending
            });
        }
        if is_beside_poison {
            let kind = Kind::Poison(u8::try_from(form).unwrap_or(0));
            self.sendings.push(Sending { kind, ..sending });
        }
        is_late
    }
}
