//! Isolation: finds the document that makes whole writes fail. Pure.
//!
//! The input is one group of documents, and the failures of its write as a whole. The output is what to try next: the
//! same group, or its halves, down to one document. Invariant: halving makes no dead letter. Only the committer blames a
//! document's results, after it failed alone [`BLAMES_MAX`] times in a row and the store took it without its results each
//! time. An outage, of the whole store or of the document's shard, cannot do that.

/// Failed writes of one group, each after a read that went well, before it is halved: an outage is more likely than a
/// document that no store can take.
pub(super) const WHOLE_TRIES: u32 = 3;
/// Failures of one document in a row, after each of which the store took it without its results, until these are given
/// up. A store that fails every other time by chance gets here once in some ten thousand such documents.
pub(super) const BLAMES_MAX: u32 = 5;

/// Documents that are written together.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Group<W> {
    pub(super) works: Vec<W>,
    /// Failed writes of the whole group since a part of it last went well.
    failures: u32,
}

impl<W> Group<W> {
    /// Documents of which nothing is known.
    pub(super) fn new(works: Vec<W>) -> Self {
        Self { works, failures: 0 }
    }

    /// Whether it is one document that failed often enough to ask what the store has against it.
    pub(super) fn is_suspect(&self) -> bool {
        self.works.len() == 1 && self.failures >= WHOLE_TRIES
    }

    /// Counts a write that failed as a whole.
    pub(super) fn count_failure(&mut self) {
        self.failures = self.failures.saturating_add(1);
    }

    /// What to write next: the group again, or its halves once it failed too often. A half is halved at its first failure:
    /// there is one culprit in it, or the store is away and nothing helps.
    pub(super) fn next(mut self) -> Vec<Self> {
        if self.failures < WHOLE_TRIES || self.works.len() < 2 {
            return vec![self];
        }
        let right = self.works.split_off(self.works.len() / 2);
        [self.works, right]
            .map(|works| Self {
                works,
                failures: WHOLE_TRIES - 1,
            })
            .into()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Writes until only suspects are left. Returns them, what was written, and how many writes it took.
    fn isolate(count: usize, poison: &BTreeSet<usize>) -> (Vec<usize>, BTreeSet<usize>, usize) {
        let (mut open, mut suspects) = (vec![Group::new((0..count).collect())], Vec::new());
        let (mut written, mut writes) = (BTreeSet::new(), 0);
        while let Some(mut group) = open.pop() {
            writes += 1;
            if !group.works.iter().any(|work| poison.contains(work)) {
                written.extend(group.works);
                continue;
            }
            group.count_failure();
            if group.is_suspect() {
                suspects.extend(group.works);
            } else {
                open.extend(group.next());
            }
        }
        (suspects, written, writes)
    }

    proptest! {
        /// Whichever documents make whole writes fail, exactly these are left, the others are written, and it takes a
        /// bounded number of writes.
        #[test]
        fn the_culprits_are_found(count in 1..120_usize, poison in prop::collection::btree_set(0..120_usize, 0..6)) {
            let poison: BTreeSet<usize> = poison.into_iter().filter(|p| *p < count).collect();
            let (suspects, written, writes) = isolate(count, &poison);
            prop_assert_eq!(suspects.iter().copied().collect::<BTreeSet<_>>(), poison.clone());
            prop_assert_eq!(suspects.len(), poison.len());
            prop_assert_eq!(written.len(), count - poison.len());
            prop_assert!(written.is_disjoint(&poison));
            prop_assert!(writes <= 3 + poison.len() * 2 * 8, "{} writes", writes);
        }
    }

    /// Goal: one failure is no reason to take a batch apart.
    #[test]
    fn an_outage_is_waited_for_first() {
        let mut group = Group::new(vec![1, 2, 3]);
        for _ in 1..WHOLE_TRIES {
            group.count_failure();
            let again = group.next();
            assert_eq!(again.len(), 1);
            group = again.into_iter().next().unwrap();
        }
        group.count_failure();
        assert_eq!(group.next().len(), 2);
    }
}
