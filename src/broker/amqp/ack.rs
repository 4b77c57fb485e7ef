//! Which deliveries of one channel are settled, and what to tell the broker about them. Pure.
//!
//! Acks leave as one `multiple` ack of the longest finished prefix, never past an unsettled delivery; requeues leave
//! one by one. Invariant: whatever is acked at the broker was settled with an ack here, and nothing is told twice.

use std::collections::VecDeque;

use crate::broker::Settlement;

/// What became of a delivery, with what it takes to tell the broker (`A`: its acker).
#[derive(Debug)]
enum Entry<A> {
    Held(A),
    Acked(A),
    Requeued,
}

/// The deliveries of one channel from the oldest unfinished on, by tag.
#[derive(Debug)]
pub(super) struct AckTracker<A> {
    entries: VecDeque<(u64, Entry<A>)>,
    held: usize,
}

impl<A> Default for AckTracker<A> {
    fn default() -> Self {
        Self {
            entries: VecDeque::new(),
            held: 0,
        }
    }
}

impl<A> AckTracker<A> {
    /// A delivery came. Tags of a channel only grow.
    pub(super) fn delivered(&mut self, tag: u64, acker: A) {
        debug_assert!(self.entries.back().is_none_or(|(last, _)| *last < tag));
        self.entries.push_back((tag, Entry::Held(acker)));
        self.held += 1;
    }

    /// Delivery `tag` was settled. Gives back the acker to requeue it through at once, before the next ack: an ack of
    /// many covers every tag below it that the broker still waits for. A tag that is not held changes nothing.
    pub(super) fn settle(&mut self, tag: u64, settlement: Settlement) -> Option<A> {
        let index = self
            .entries
            .binary_search_by_key(&tag, |(tag, _)| *tag)
            .ok()?;
        let entry = &mut self.entries.get_mut(index)?.1;
        self.held -= usize::from(matches!(entry, Entry::Held(_)));
        match std::mem::replace(entry, Entry::Requeued) {
            Entry::Held(acker) if settlement == Settlement::Requeue => Some(acker),
            Entry::Held(acker) | Entry::Acked(acker) => {
                *entry = Entry::Acked(acker);
                None
            }
            Entry::Requeued => None,
        }
    }

    /// Removes the finished prefix, and gives the acker of its last acked delivery: one ack through it, with
    /// `multiple`, settles all of them at the broker.
    pub(super) fn take_finished(&mut self) -> Option<A> {
        let mut last = None;
        while let Some((_, Entry::Acked(_) | Entry::Requeued)) = self.entries.front() {
            if let Some((_, Entry::Acked(acker))) = self.entries.pop_front() {
                last = Some(acker);
            }
        }
        last
    }

    /// How many are not settled.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// How many the broker counts as unsettled: up to the oldest unfinished one all are.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether every delivery is settled and taken off.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    /// What the broker believes: deliveries it waits for, and how the others ended.
    #[derive(Default)]
    struct Peer {
        waiting: BTreeSet<u64>,
        acked: Vec<u64>,
        requeued: Vec<u64>,
    }

    impl Peer {
        fn ack_up_to(&mut self, tag: u64) {
            assert!(
                self.waiting.contains(&tag),
                "tag {tag} is unknown: the channel dies"
            );
            let above = self.waiting.split_off(&(tag + 1));
            self.acked
                .extend(std::mem::replace(&mut self.waiting, above));
        }

        fn requeue(&mut self, tag: u64) {
            assert!(
                self.waiting.remove(&tag),
                "tag {tag} is unknown: the channel dies"
            );
            self.requeued.push(tag);
        }
    }

    /// Goal: out of order, the ack waits for the gap and then leaves as one.
    #[test]
    fn an_ack_waits_for_the_gap_below_it() {
        let mut tracker = AckTracker::default();
        (1..=3).for_each(|tag| tracker.delivered(tag, tag));
        assert_eq!(tracker.settle(3, Settlement::Ack), None);
        assert_eq!(tracker.settle(2, Settlement::Requeue), Some(2));
        assert_eq!(tracker.take_finished(), None);
        assert_eq!(tracker.settle(1, Settlement::Ack), None);
        assert_eq!(tracker.take_finished(), Some(3));
        assert!(tracker.is_empty());
    }

    proptest! {
        /// In any order of deliveries and settlements, repeated ones included, exactly what was acked is acked at the
        /// broker, exactly what was requeued is requeued, and no unknown tag is named.
        #[test]
        fn the_broker_learns_exactly_what_was_settled(
            count in 1..60_u64,
            choices in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>(), any::<bool>()), 1..200),
        ) {
            let (mut tracker, mut peer) = (AckTracker::default(), Peer::default());
            let mut wanted: BTreeMap<u64, Settlement> = BTreeMap::new();
            let mut delivered = 0;
            let rest: Vec<_> = (1..=count).map(|tag| (tag, true, true)).collect();
            let mixed = choices.iter().map(|(index, ack, flush)| (index.index(60) as u64, *ack, *flush));
            for (tag, ack, flush) in mixed.chain(rest) {
                if tag > delivered && delivered < count {
                    delivered += 1;
                    tracker.delivered(delivered, delivered);
                    peer.waiting.insert(delivered);
                }
                let settlement = if ack { Settlement::Ack } else { Settlement::Requeue };
                if tag >= 1 && tag <= delivered {
                    wanted.entry(tag).or_insert(settlement);
                }
                if let Some(acker) = tracker.settle(tag, settlement) {
                    peer.requeue(acker);
                }
                if flush && let Some(acker) = tracker.take_finished() {
                    peer.ack_up_to(acker);
                }
            }
            prop_assert!(tracker.is_empty() && peer.waiting.is_empty() && tracker.held() == 0);
            peer.requeued.sort_unstable();
            let of = |wish| wanted.iter().filter(|(_, s)| **s == wish).map(|(tag, _)| *tag).collect::<Vec<_>>();
            prop_assert_eq!(peer.acked, of(Settlement::Ack));
            prop_assert_eq!(peer.requeued, of(Settlement::Requeue));
        }
    }
}
