//! When one that is not the owner makes room for the owner of a partition that the broker gave it. Pure.
//!
//! It makes room at once for a new owner, and soon for one that it fills in for. If the owner does not come, it makes room
//! less and less often. Invariant: however often the broker gives it the partition, for an owner that never comes room
//! is made a few times in the first minutes and every ten minutes then.

use std::time::Duration;

use tokio::time::Instant;

use super::agreement::ServerId;

/// How long it fills in before it makes room. Enough for an owner that only opened its channel anew.
const FIRST_AFTER: Duration = Duration::from_millis(200);
/// The same, once room was made in vain; then four times as long each time.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
const AGAIN_FACTOR: u32 = 4;
const AGAIN_AFTER_MAX: Duration = Duration::from_mins(10);
/// Room that was made so long ago was not in vain.
const FORGOTTEN_AFTER: Duration = Duration::from_mins(20);
/// One that has to be filled in for so long may not be there at all.
const SUSPECT_AFTER: Duration = Duration::from_secs(5);

/// One partition, as one server sees it.
#[derive(Debug, Default)]
pub(super) struct Substitution {
    /// The owner, where that is another server.
    owner: Option<ServerId>,
    /// How often room was made for it, and when last.
    yields: u32,
    yielded_at: Option<Instant>,
    /// Since when it is filled in for.
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
        if self
            .yielded_at
            .is_some_and(|at| now.duration_since(at) > FORGOTTEN_AFTER)
        {
            self.yields = 0;
        }
        let wait = match self.yields.checked_sub(1) {
            None => FIRST_AFTER,
            Some(again) => AGAIN_AFTER
                .saturating_mul(AGAIN_FACTOR.saturating_pow(again))
                .min(AGAIN_AFTER_MAX),
        };
        now.duration_since(*self.since.get_or_insert(now)) >= wait
    }

    /// The owner, if it has been filled in for so long that it may not be there; not again for a while.
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

    fn owner() -> Option<ServerId> {
        Some(Uuid::from_u128(7))
    }

    /// Goal: room is made at once for a new owner, never by the owner, and not twice for the same.
    #[test]
    fn a_new_owner_gets_room_at_once() {
        let mut ours = Substitution::default();
        assert!(!ours.owned_by(None) && !ours.is_due(Instant::now()));
        assert!(ours.owned_by(owner()) && !ours.owned_by(owner()));
        assert!(!ours.owned_by(None));
    }

    /// Goal: a substitute serves for a moment from its first delivery on; an owner that never comes gets room a few times
    /// and then hardly ever, and is suspected.
    #[test]
    fn an_owner_that_never_comes_gets_room_seldom() {
        let mut now = Instant::now();
        let mut ours = Substitution::default();
        ours.owned_by(owner());
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

    /// Goal: room made long ago does not hold up the next hand-over.
    #[test]
    fn old_yields_are_forgotten() {
        let start = Instant::now();
        let mut ours = Substitution::default();
        ours.owned_by(owner());
        for _ in 0..5 {
            ours.yields(start);
        }
        let later = start + FORGOTTEN_AFTER + Duration::from_secs(1);
        assert!(!ours.is_due(later) && ours.is_due(later + FIRST_AFTER));
    }
}
