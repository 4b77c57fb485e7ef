//! What this server holds of each partition: how many deliveries, and when the oldest was taken.
//!
//! Each delivery taken is noted and gives a token that lives until it is settled. Invariant: the list of a partition
//! begins with a delivery still held, so it is never longer than what one channel (and, after it broke, the one
//! before) may have unsettled.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::broker::ConsumerLoad;

/// All partitions. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Held(Arc<[Arc<Mutex<Line>>]>);

/// The deliveries of one partition, beginning with the oldest still held. Pure.
#[derive(Debug, Default)]
struct Line {
    /// The number of the first entry.
    base: u64,
    /// When each was taken; none once it is settled.
    entries: VecDeque<Option<Instant>>,
    count: usize,
    /// The consumer's load, while there is a consumer.
    load: Option<Arc<ConsumerLoad>>,
}

/// What is held of one partition.
#[derive(Debug, Clone, Copy)]
pub(super) struct PartitionHeld {
    /// Deliveries taken and not settled.
    pub(super) count: usize,
    /// When the oldest of them was taken.
    pub(super) oldest: Option<Instant>,
    /// Most deliveries that may be unsettled now.
    pub(super) prefetch: u16,
    /// Bytes of the deliveries that wait to be taken.
    pub(super) waiting_bytes: usize,
}

/// Says, when dropped, that a delivery is settled.
#[derive(Debug)]
pub(super) struct Taken {
    /// Tells the partition's consumer.
    _token: TaskTrackerToken,
    partition: Option<u16>,
    /// None for a queue of an earlier number of partitions.
    place: Option<(Arc<Mutex<Line>>, u64)>,
}

impl Held {
    /// Nothing is held.
    pub(super) fn new(partitions: u16) -> Self {
        Self((0..partitions).map(|_| Arc::default()).collect())
    }

    /// A delivery was taken from `partition`.
    pub(super) fn take(&self, partition: Option<u16>, token: TaskTrackerToken) -> Taken {
        let line = partition.and_then(|partition| self.0.get(usize::from(partition)));
        let place = line.map(|line| (Arc::clone(line), lock(line).take(Instant::now())));
        Taken {
            _token: token,
            partition,
            place,
        }
    }

    /// Sets the load of who consumes `partition` from now on; none if nobody does.
    pub(super) fn consumed(&self, partition: Option<u16>, load: Option<Arc<ConsumerLoad>>) {
        if let Some(line) = partition.and_then(|partition| self.0.get(usize::from(partition))) {
            lock(line).load = load;
        }
    }

    /// What is held of each partition.
    pub(super) fn all(&self) -> Vec<PartitionHeld> {
        let look = |line: &Arc<Mutex<Line>>| {
            let line = lock(line);
            let load = line.load.as_ref();
            PartitionHeld {
                count: line.count,
                oldest: line.oldest(),
                prefetch: load.map_or(0, |load| load.prefetch()),
                waiting_bytes: load.map_or(0, |load| load.waiting_bytes()),
            }
        };
        self.0.iter().map(look).collect()
    }
}

impl Taken {
    /// The partition whose queue it came by; none for a queue of an earlier number of partitions.
    pub(super) fn partition(&self) -> Option<u16> {
        self.partition
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some((line, number)) = &self.place {
            lock(line).settle(*number);
        }
    }
}

fn lock(line: &Mutex<Line>) -> MutexGuard<'_, Line> {
    line.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Line {
    fn take(&mut self, now: Instant) -> u64 {
        self.entries.push_back(Some(now));
        self.count += 1;
        self.base + self.entries.len() as u64 - 1
    }

    fn settle(&mut self, number: u64) {
        let index = usize::try_from(number.saturating_sub(self.base)).unwrap_or(usize::MAX);
        if let Some(entry) = self.entries.get_mut(index) {
            self.count -= usize::from(entry.take().is_some());
        }
        while let Some(None) = self.entries.front() {
            self.entries.pop_front();
            self.base += 1;
        }
    }

    fn oldest(&self) -> Option<Instant> {
        self.entries.front().copied().flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// In whatever order deliveries are settled, the count and the oldest are those of what is still held.
        #[test]
        fn the_oldest_is_the_oldest_held(
            choices in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..200),
        ) {
            let start = Instant::now();
            let (mut line, mut held) = (Line::default(), Vec::new());
            for (step, (is_take, index)) in choices.into_iter().enumerate() {
                if is_take || held.is_empty() {
                    let at = start + Duration::from_secs(step as u64);
                    held.push((line.take(at), at));
                } else {
                    line.settle(held.remove(index.index(held.len())).0);
                }
                prop_assert_eq!(line.count, held.len());
                prop_assert_eq!(line.oldest(), held.first().map(|(_, at)| *at));
            }
            for (number, _) in held {
                line.settle(number);
            }
            prop_assert!(line.entries.is_empty());
        }
    }
}
