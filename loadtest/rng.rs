//! Draws by lot that are the same for the same seed, on every machine and for ever.
//!
//! SplitMix64: `rand` promises no stable values between its versions, and the fingerprint of a plan must not move.

/// A source of draws by lot.
#[derive(Debug, Clone)]
pub(crate) struct Draws(u64);

impl Draws {
    /// The source of `seed`, for the thing that `path` names: sources of different things are independent.
    pub(crate) fn of(seed: u64, path: &[u64]) -> Self {
        let start = Self(seed);
        path.iter().fold(start, |mut draws, part| {
            let mixed = draws.next() ^ part.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            Self(Self(mixed).next())
        })
    }

    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// A number from `low` to `high`, both included.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below((high - low).saturating_add(1))
    }

    /// A share, 0 to 1.
    #[allow(clippy::cast_precision_loss, reason = "53 bits fit")]
    pub(crate) fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Whether something of this chance happens.
    pub(crate) fn happens(&mut self, chance: f64) -> bool {
        self.share() < chance
    }

    /// One of `items`, which are not empty.
    pub(crate) fn pick<'a, T: ?Sized>(&mut self, items: &[&'a T]) -> &'a T {
        items[self.index(items.len())]
    }

    /// An index below `length`.
    pub(crate) fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap_or(0)
    }

    /// A number from `low` to `high` whose order of magnitude is evenly spread.
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a size drawn by lot"
    )]
    pub(crate) fn magnitude(&mut self, low: usize, high: usize) -> usize {
        let ratio = high as f64 / low.max(1) as f64;
        ((low as f64 * ratio.powf(self.share())) as usize).clamp(low, high)
    }

    /// Puts `items` in another order.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.index(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the draws are those of SplitMix64 (first values of seed 1234567, from its reference implementation).
    #[test]
    fn draws_are_splitmix64() {
        let mut draws = Draws(1_234_567);
        assert_eq!(
            [draws.next(), draws.next()],
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]
        );
    }
}
