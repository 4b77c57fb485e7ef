//! Finds the results that a node's document can take when the store refuses it with all of them: it is too large, or one
//! of them is bad. Pure.
//!
//! Results are tried in one order, those first that are thought to make the document smallest; a culprit is found by
//! halving. Invariants: a result is given up only after the store refused the document with it alone, on top of what was
//! stored, or after [`MISSES_MAX`] others in a row were, which makes the rest hopeless; and the search ends. Nothing here
//! trusts the order.

/// Results given up in a row, each after it was tried alone, until all that are left are given up with the last one. Each
/// costs a request with the whole document.
const MISSES_MAX: u32 = 16;

/// The search for one document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fit {
    /// Most results to try next; 0 if the one that was tried alone is to be given up.
    count: usize,
    /// How many of the results that are left are known to be refused together; 0 if that is not known.
    refused: usize,
    /// Results given up in a row.
    misses: u32,
}

impl Fit {
    /// The document was refused with `count` results: the first time, or after `before`.
    pub(super) fn refused(before: Option<Self>, count: usize) -> Self {
        Self {
            // Most often one of them is too large, and all others fit.
            count: if before.is_none() {
                count.saturating_sub(1)
            } else {
                count / 2
            },
            refused: count,
            misses: before.map_or(0, |before| before.misses),
        }
    }

    /// The document was stored with `count` of the results: these leave the search.
    pub(super) fn stored(self, count: usize) -> Self {
        let refused = self.refused.saturating_sub(count);
        let doubled = count.saturating_mul(2).max(1);
        Self {
            count: if refused > 0 {
                refused.div_ceil(2)
            } else {
                doubled
            },
            refused,
            misses: 0,
        }
    }

    /// Whether what was tried alone is to be given up now.
    pub(super) fn gives_up(self) -> bool {
        self.count == 0
    }

    /// Whether all others are to be given up with it.
    pub(super) fn is_hopeless(self) -> bool {
        self.misses + 1 >= MISSES_MAX
    }

    /// What was tried alone was given up. Most often it was the only culprit.
    pub(super) fn given_up(self) -> Self {
        let misses = self.misses + 1;
        Self {
            count: if misses == 1 { usize::MAX } else { 1 },
            refused: 0,
            misses,
        }
    }

    /// How many of the `open` results to try next.
    pub(super) fn next(self, open: usize) -> usize {
        self.count.min(open)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A result: what it is thought to add to a document, and what it adds.
    type Growth = (i64, i64);

    /// Stores what fits. Returns what is given up, each with the document's size at that time, the final size, and the
    /// number of requests.
    fn run(base: i64, growths: &[Growth], limit: i64) -> (Vec<(i64, i64)>, i64, usize) {
        let (mut open, mut given_up) = (growths.to_vec(), Vec::new());
        let (mut size, mut requests, mut fit) = (base, 0, None::<Fit>);
        open.sort_unstable();
        while !open.is_empty() {
            if let Some(refused) = fit.filter(|fit| fit.gives_up()) {
                let count = if refused.is_hopeless() { open.len() } else { 1 };
                given_up.extend(open.drain(..count).map(|(_, growth)| (growth, size)));
                fit = Some(refused.given_up());
                continue;
            }
            let count = fit.map_or(open.len(), |fit| fit.next(open.len()));
            requests += 1;
            let tried = size + open[..count].iter().map(|(_, growth)| growth).sum::<i64>();
            if tried <= limit {
                size = tried;
                open.drain(..count);
                fit = fit.map(|fit| fit.stored(count));
            } else {
                fit = Some(Fit::refused(fit, count));
            }
        }
        (given_up, size, requests)
    }

    proptest! {
        /// However wrong the estimates are, what is given up did not fit alone on top of what was stored, or `MISSES_MAX`
        /// others did not; the rest are stored, and the search is short.
        #[test]
        fn only_what_does_not_fit_is_given_up(
            base in 1_000..3_000_i64,
            growths in prop::collection::vec((-900..2_000_i64, -900..2_000_i64), 1..60),
            is_exact: bool,
            limit in 500..6_000_i64,
        ) {
            let exact = |(told, growth): &Growth| if is_exact { (*growth, *growth) } else { (*told, *growth) };
            let growths: Vec<Growth> = growths.iter().map(exact).collect();
            let (given_up, size, requests) = run(base, &growths, limit);
            let misfits = given_up.iter().filter(|(growth, size)| size + growth > limit).count();
            prop_assert!(misfits == given_up.len() || misfits >= MISSES_MAX as usize, "{given_up:?}");
            let lost: i64 = given_up.iter().map(|(growth, _)| growth).sum();
            let all: i64 = growths.iter().map(|(_, growth)| growth).sum();
            prop_assert_eq!(size, base + all - lost);
            prop_assert!(requests <= 2 + 14 * (1 + given_up.len().min(60)), "{} requests", requests);
        }

        /// Results that are bad whatever their size are found one by one, and no other is given up.
        #[test]
        fn the_bad_ones_are_found(bad in prop::collection::vec(prop::bool::weighted(0.1), 1..60)) {
            let growths: Vec<Growth> = bad.iter().map(|bad| (0, i64::from(*bad))).collect();
            let (given_up, size, _) = run(0, &growths, 0);
            prop_assert_eq!((given_up.len(), size), (bad.iter().filter(|bad| **bad).count(), 0));
        }
    }

    /// Goal: one culprit among many costs three requests in all if it is the one that is thought to be largest.
    #[test]
    fn the_largest_is_found_at_once() {
        let mut growths = vec![(10, 10); 30];
        growths.push((5_000, 5_000));
        let given_up = vec![(5_000, 1_300)];
        assert_eq!(run(1_000, &growths, 2_000), (given_up, 1_300, 3));
    }

    /// Goal: a document that takes nothing at all costs a few requests.
    #[test]
    fn a_hopeless_document_costs_a_few_requests() {
        let growths = vec![(10, 10); 2_000];
        let (given_up, _, requests) = run(1_000, &growths, 1_000);
        assert_eq!(given_up.len(), 2_000);
        assert!(requests < 50, "{requests} requests");
    }
}
