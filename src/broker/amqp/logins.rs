//! Logins that the broker refuses: no more than one is tried at a time, after pauses that grow.
//!
//! A changed password is refused to a whole fleet at once, again and again, and RabbitMQ hashes a password for each.
//! Both connections of a broker ask here before they connect. Invariant: after a refusal nobody connects before its
//! pause is over, and then one alone. No clock of its own: the caller brings time and chance.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;

/// The first pause is this part of the longest: some 5 s of 5 min.
const FIRST_PAUSE_PART: u32 = 64;

/// What is known of the broker's refusals.
#[derive(Debug)]
pub(super) struct Logins {
    pause_max: Duration,
    /// How long one try may take.
    try_max: Duration,
    refusal: Mutex<Option<Refusal>>,
}

#[derive(Debug)]
struct Refusal {
    reason: String,
    pauses: Backoff,
    next_at: Instant,
}

impl Logins {
    /// Pauses of at most `pause_max` between two tries, each of which takes at most `try_max`.
    pub(super) fn new(pause_max: Duration, try_max: Duration) -> Self {
        Self {
            pause_max,
            try_max,
            refusal: Mutex::new(None),
        }
    }

    /// Asks for a try at `now`; the error is why the broker refused the last one. Whoever may try reports how it went.
    pub(super) fn ask(&self, now: Instant) -> Result<(), String> {
        self.with(|refusal| match refusal {
            Some(refusal) if now < refusal.next_at => Err(refusal.reason.clone()),
            Some(refusal) => {
                // Others wait for the outcome of this one.
                refusal.next_at = now + self.try_max;
                Ok(())
            }
            None => Ok(()),
        })
    }

    /// The broker refused a login. The pause is half its bound plus `share` (0 to 1) of the other half: a fleet is
    /// spread, and nobody tries again at once. Says whether that is news.
    pub(super) fn refused(&self, reason: String, now: Instant, share: f64) -> bool {
        self.with(|refusal| {
            let is_news = refusal.is_none();
            let refusal = refusal.get_or_insert_with(|| Refusal {
                reason: String::new(),
                pauses: Backoff::new(self.pause_max / FIRST_PAUSE_PART, self.pause_max),
                next_at: now,
            });
            refusal.reason = reason;
            refusal.next_at = now + refusal.pauses.next(0.5 + share / 2.0);
            is_news
        })
    }

    /// The broker took a login.
    pub(super) fn accepted(&self) {
        self.with(|refusal| *refusal = None);
    }

    fn with<T>(&self, f: impl FnOnce(&mut Option<Refusal>) -> T) -> T {
        f(&mut self.refusal.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE_MAX: Duration = Duration::from_mins(5);
    const TRY_MAX: Duration = Duration::from_secs(10);

    /// Goal: a refused login is tried some 15 times in an hour, whoever asks and however often, and by one at a time.
    #[test]
    fn refused_logins_are_bounded() {
        for share in [0.0, 0.5, 1.0] {
            let logins = Logins::new(PAUSE_MAX, TRY_MAX);
            let start = Instant::now();
            let mut tries = 0;
            for second in 0..3600 {
                let now = start + Duration::from_secs(second);
                if logins.ask(now).is_ok() {
                    tries += 1;
                    assert_eq!(logins.refused("no".to_owned(), now, share), tries == 1);
                    assert_eq!(logins.ask(now), Err("no".to_owned()));
                }
            }
            assert!((12..=35).contains(&tries), "{tries} tries");
        }
    }

    /// Goal: while one tries after a refusal the others wait, and all go on at once when it was accepted.
    #[test]
    fn one_tries_for_all() {
        let logins = Logins::new(PAUSE_MAX, TRY_MAX);
        let start = Instant::now();
        assert!(logins.ask(start).is_ok() && logins.ask(start).is_ok());
        assert!(logins.refused("no".to_owned(), start, 1.0));
        let later = start + PAUSE_MAX;
        assert!(logins.ask(later).is_ok());
        assert!(logins.ask(later).is_err());
        assert!(logins.ask(later + TRY_MAX).is_ok(), "it was never told");
        logins.accepted();
        assert!(logins.ask(later).is_ok() && logins.ask(later).is_ok());
    }
}
