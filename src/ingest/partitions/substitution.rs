//! When a substitute makes room: a server that the broker gave a partition which another server owns. Pure.
//!
//! It makes room at once for a new owner, and soon for one that it fills in for. If the owner does not come, it makes room
//! less and less often; once another server took the results for a while, room was not made in vain. Invariant: however
//! often the broker gives it the partition, it makes room for an owner that never comes only a few times in the first
//! minutes, and every ten minutes after that.

use std::time::Duration;

use tokio::time::Instant;

use super::agreement::ServerId;

/// How long it fills in before it makes room. Enough for an owner that only opened its channel anew.
const FIRST_AFTER: Duration = Duration::from_millis(200);
/// How long it fills in once room was made in vain; each further time four times as long, up to the maximum.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
const AGAIN_FACTOR: u32 = 4;
const AGAIN_AFTER_MAX: Duration = Duration::from_mins(10);
/// Somebody took the results if none came to us for this many times our own wait, and for `CAME_AFTER_MIN` at least.
const CAME_AFTER_FACTOR: u32 = 4;
const CAME_AFTER_MIN: Duration = Duration::from_secs(5);
/// An owner that was filled in for this long may not be there at all.
const SUSPECT_AFTER: Duration = Duration::from_secs(5);

/// One partition, as one server sees it.
#[derive(Debug, Clone, Default)]
pub(super) struct Substitution {
    /// The owner, where that is another server.
    owner: Option<ServerId>,
    /// How often room was made for the owner in vain, and when last.
    yields: u32,
    yielded_at: Option<Instant>,
    /// Whether somebody else consumed when we came back.
    is_stood_by: bool,
    /// Since when we fill in for the owner.
    since: Option<Instant>,
    suspected_at: Option<Instant>,
}

impl Substitution {
    /// Who owns the partition now; none if we do. Says whether room is to be made at once.
    pub(super) fn owned_by(&mut self, owner: Option<ServerId>) -> bool {
        if owner == self.owner {
            return false;
        }
        *self = Self {
            owner,
            ..Self::default()
        };
        owner.is_some()
    }

    /// A delivery came to us. Says whether room is to be made.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        if self.owner.is_none() {
            return false;
        }
        if self.since.is_none() && self.somebody_came(now) {
            self.yields = 0;
        }
        now.duration_since(*self.since.get_or_insert(now)) >= self.wait()
    }

    /// Whether, after we made room, another server took the results until `now`.
    fn somebody_came(&self, now: Instant) -> bool {
        let enough = self.wait().saturating_mul(CAME_AFTER_FACTOR);
        let enough = enough.max(CAME_AFTER_MIN);
        self.is_stood_by
            && self
                .yielded_at
                .is_some_and(|at| now.duration_since(at) >= enough)
    }

    /// How long we fill in before we make room.
    fn wait(&self) -> Duration {
        match self.yields.checked_sub(1) {
            None => FIRST_AFTER,
            Some(again) => AGAIN_AFTER
                .saturating_mul(AGAIN_FACTOR.saturating_pow(again))
                .min(AGAIN_AFTER_MAX),
        }
    }

    /// We are back from making room; `is_stood_by` tells whether somebody else consumes.
    pub(super) fn returns(&mut self, is_stood_by: bool) {
        self.is_stood_by = is_stood_by;
    }

    /// The owner, if we fill in for it longer than `SUSPECT_AFTER`: it may not be there. Named once per `SUSPECT_AFTER`.
    pub(super) fn suspect(&mut self, now: Instant) -> Option<ServerId> {
        let since = self.suspected_at.or(self.since)?;
        if now.duration_since(since) < SUSPECT_AFTER {
            return None;
        }
        self.suspected_at = Some(now);
        self.owner
    }

    /// Room is made.
    pub(super) fn yields(&mut self, now: Instant) {
        self.yields = self.yields.saturating_add(1);
        self.yielded_at = Some(now);
        self.since = None;
        self.suspected_at = None;
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn owner() -> ServerId {
        Uuid::from_u128(7)
    }

    /// Goal: room is made at once for a new owner, never by the owner, and not twice for the same.
    #[test]
    fn a_new_owner_gets_room_at_once() {
        let mut ours = Substitution::default();
        assert!(!ours.owned_by(None) && !ours.is_due(Instant::now()));
        assert!(ours.owned_by(Some(owner())) && !ours.owned_by(Some(owner())));
        assert!(!ours.owned_by(None));
    }

    /// Goal: a substitute serves for a moment from its first delivery on; an owner that never comes gets room a few times,
    /// then hardly ever, and is suspected.
    #[test]
    fn an_owner_that_never_comes_gets_room_seldom() {
        let mut now = Instant::now();
        let mut ours = Substitution::default();
        ours.owned_by(Some(owner()));
        let (start, mut yields, mut suspicions) = (now, Vec::new(), 0);
        while now.duration_since(start) < Duration::from_hours(2) {
            if ours.is_due(now) {
                ours.yields(now);
                yields.push(now.duration_since(start).as_secs());
            }
            suspicions += usize::from(ours.suspect(now).is_some());
            now += Duration::from_millis(100);
        }
        let seldom = AGAIN_AFTER_MAX.as_secs() - 5;
        assert!(yields.len() <= 6 + 13, "{yields:?}");
        assert!(
            yields
                .iter()
                .skip(7)
                .zip(&yields[6..])
                .all(|(next, last)| next - last > seldom),
            "{yields:?}"
        );
        assert!(suspicions > 100, "{suspicions}");
    }

    /// Goal: once another server took the results for a while, its next absence is short again; while nobody came it is not.
    #[test]
    fn an_owner_that_came_gets_room_soon_again() {
        let start = Instant::now();
        let mut ours = Substitution::default();
        ours.owned_by(Some(owner()));
        for _ in 0..5 {
            ours.yields(start);
        }
        let early = start + Duration::from_mins(15);
        let mut in_vain = ours.clone();
        in_vain.returns(false);
        let long = Duration::from_hours(2);
        assert!(!in_vain.is_due(start + long) && !in_vain.is_due(start + long + FIRST_AFTER));
        ours.returns(true);
        let mut too_early = ours.clone();
        assert!(!too_early.is_due(early) && !too_early.is_due(early + FIRST_AFTER));
        assert!(!ours.is_due(start + long) && ours.is_due(start + long + FIRST_AFTER));
    }
}
