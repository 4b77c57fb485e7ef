//! Which results of a node go into its document when the store finds it too large with all of them. Pure.
//!
//! Results are tried in the order of their growth, those that make the document smaller first; the largest number of them
//! that fits is looked for by halves. Invariant: it ends, after about as many requests as the number of results has
//! binary digits; what is left out would be refused on top of what was stored.

/// The search for one document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fit {
    /// The document was refused with so many of the results.
    refused: usize,
    is_first: bool,
}

impl Fit {
    /// It was refused with `count` results: the first time, or after `before`.
    pub(super) fn refused(before: Option<Self>, count: usize) -> Self {
        Self {
            refused: count,
            is_first: before.is_none(),
        }
    }

    /// With `count` of the results it was stored: they are results no more.
    pub(super) fn stored(self, count: usize) -> Self {
        Self {
            refused: self.refused.saturating_sub(count),
            ..self
        }
    }

    /// How many to try next, where the first `shrinking` do not make the document larger. None if no more will fit.
    pub(super) fn next(self, shrinking: usize) -> Option<usize> {
        let (least, most) = (shrinking.max(1), self.refused.saturating_sub(1));
        if least > most {
            return None;
        }
        // Most often one of them is too large, and all others fit.
        let middle = least + (most - least) / 2;
        Some(if self.is_first { most } else { middle })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Stores what fits; gives what is left out, the size then, and the number of requests.
    fn run(base: i64, growths: &[i64], limit: i64) -> (Vec<i64>, i64, usize) {
        let mut open = growths.to_vec();
        let (mut size, mut requests, mut fit) = (base, 0, None::<Fit>);
        while !open.is_empty() {
            open.sort_unstable();
            let shrinking = open.iter().filter(|growth| **growth <= 0).count();
            let count = match fit {
                None => open.len(),
                Some(fit) => match fit.next(shrinking) {
                    Some(count) => count,
                    None => break,
                },
            };
            requests += 1;
            let tried = size + open[..count].iter().sum::<i64>();
            if tried <= limit {
                size = tried;
                open.drain(..count);
                fit = fit.map(|fit| fit.stored(count));
            } else {
                fit = Some(Fit::refused(fit, count));
            }
        }
        (open, size, requests)
    }

    proptest! {
        /// Whatever is left out does not fit on top of what was stored, as many as can be are stored, and the search is
        /// short.
        #[test]
        fn only_what_does_not_fit_is_left_out(
            base in 1_000..3_000_i64,
            growths in prop::collection::vec(-900..2_000_i64, 1..60),
            limit in 500..6_000_i64,
        ) {
            let (left, size, requests) = run(base, &growths, limit);
            prop_assert!(left.iter().all(|growth| size + growth > limit), "{:?} {}", left, size);
            let mut sorted = growths.clone();
            sorted.sort_unstable();
            let sums = sorted.iter().scan(base, |sum, growth| { *sum += growth; Some(*sum) });
            let most = sums.enumerate().filter(|(_, sum)| *sum <= limit).map(|(i, _)| i + 1).max();
            prop_assert_eq!(growths.len() - left.len(), most.unwrap_or(0));
            prop_assert!(requests <= 10, "{} requests for {}", requests, growths.len());
        }
    }

    /// Goal: one culprit among many costs two more requests.
    #[test]
    fn one_culprit_is_found_at_once() {
        let mut growths = vec![10; 30];
        growths.push(5_000);
        assert_eq!(run(1_000, &growths, 2_000), (vec![5_000], 1_300, 2));
    }
}
