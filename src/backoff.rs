//! Back-off with full jitter: how long to wait before a try. Pure: the caller brings the randomness.
//!
//! Full jitter (a uniform share of the exponential bound) spreads many clients evenly; the bound and the rule are
//! those of "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.

use std::time::Duration;

/// A bound that doubles with each try, from a base up to a maximum.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    base: Duration,
    max: Duration,
    tries: u32,
}

impl Backoff {
    /// Starts at `base` and never exceeds `max`.
    pub fn new(base: Duration, max: Duration) -> Self {
        Self {
            base,
            max,
            tries: 0,
        }
    }

    /// The wait before the next try: `share` (0 to 1) of the bound, which doubles.
    pub fn next(&mut self, share: f64) -> Duration {
        let bound = self
            .base
            .saturating_mul(2_u32.saturating_pow(self.tries))
            .min(self.max);
        self.tries = self.tries.saturating_add(1);
        bound.mul_f64(share.clamp(0.0, 1.0))
    }

    /// Like [`next`](Self::next) with a random share.
    pub fn next_random(&mut self) -> Duration {
        self.next(rand::random::<f64>())
    }

    /// Number of waits since the start or the last [`reset`](Self::reset).
    pub fn tries(&self) -> u32 {
        self.tries
    }

    /// Starts again at the base: a try succeeded.
    pub fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the bound doubles up to the maximum, jitter takes a share of it, and nothing overflows.
    #[test]
    fn doubles_to_the_maximum_and_starts_again() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let waits: Vec<_> = (0..5).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1000]);
        assert_eq!(backoff.next(0.5).as_millis(), 500);
        for _ in 0..100 {
            assert_eq!(backoff.next(1.0).as_secs(), 1);
        }
        assert_eq!(backoff.next(0.0), Duration::ZERO);
        backoff.reset();
        assert_eq!(backoff.next(1.0).as_millis(), 100);
    }
}
