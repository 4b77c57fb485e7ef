//! The batch buffer: nodes that have something to write, in the order they said so. Pure.
//!
//! The buffer holds nodes, not their results: these are taken from a node only when its batch is cut, so they go on
//! coalescing while the node waits. Callers pass the time in; the buffer has no clock.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::telemetry::FlushReason;

/// Bounds of a batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct BatchBounds {
    /// Most documents.
    pub(super) count_max: usize,
    /// Most bytes of results, as far as known when their nodes announced themselves; one node alone may exceed it.
    pub(super) bytes_max: usize,
    /// How long the first node waits for others.
    pub(super) linger: Duration,
    /// How long a full batch waits while results coalesce.
    pub(super) linger_max: Duration,
}

/// What goes on around the buffer.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Surroundings {
    /// The server is stopping.
    pub(super) is_draining: bool,
    /// Results join nodes that wait.
    pub(super) is_coalescing: bool,
}

/// Nodes waiting to be written. `N` is how to reach one.
#[derive(Debug)]
pub(super) struct BatchBuffer<N> {
    waiting: VecDeque<(N, usize, Instant)>,
    bytes: usize,
    bounds: BatchBounds,
}

impl<N> BatchBuffer<N> {
    /// An empty buffer.
    pub(super) fn new(bounds: BatchBounds) -> Self {
        Self {
            waiting: VecDeque::new(),
            bytes: 0,
            bounds,
        }
    }

    /// A node has about `bytes` to write.
    pub(super) fn push(&mut self, node: N, bytes: usize, now: Instant) {
        self.waiting.push_back((node, bytes, now));
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Whether a batch should be cut, and why. While results coalesce, a full batch waits up to `linger_max`: what it
    /// wrote now it would write again a moment later.
    pub(super) fn due(&self, now: Instant, around: Surroundings) -> Option<FlushReason> {
        let full = self.full();
        let linger = if full.is_some() && around.is_coalescing && !around.is_draining {
            self.bounds.linger_max
        } else if full.is_some() {
            return full;
        } else {
            self.bounds.linger
        };
        if self.waited(now)? >= linger {
            return full.or(Some(FlushReason::Linger));
        }
        around.is_draining.then_some(FlushReason::Drain)
    }

    /// The bound that the waiting nodes have reached, if any.
    pub(super) fn full(&self) -> Option<FlushReason> {
        if self.waiting.len() >= self.bounds.count_max {
            Some(FlushReason::Count)
        } else if self.bytes >= self.bounds.bytes_max && !self.waiting.is_empty() {
            Some(FlushReason::Bytes)
        } else {
            None
        }
    }

    /// Limits batches to `count_max` documents from now on.
    pub(super) fn limit_count(&mut self, count_max: usize) {
        self.bounds.count_max = count_max;
    }

    /// When the node that waits longest has lingered enough; none if none waits.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.waiting
            .front()
            .map(|(_, _, since)| *since + self.bounds.linger)
    }

    fn waited(&self, now: Instant) -> Option<Duration> {
        let (_, _, since) = self.waiting.front()?;
        Some(now.saturating_duration_since(*since))
    }

    /// Cuts a batch within the bounds from the front; empty only if none waits.
    pub(super) fn cut(&mut self) -> Vec<N> {
        let mut batch = Vec::new();
        let mut bytes = 0_usize;
        while let Some((_, size, _)) = self.waiting.front() {
            bytes = bytes.saturating_add(*size);
            let is_full = batch.len() >= self.bounds.count_max || bytes > self.bounds.bytes_max;
            if is_full && !batch.is_empty() {
                break;
            }
            if let Some((node, size, _)) = self.waiting.pop_front() {
                self.bytes = self.bytes.saturating_sub(size);
                batch.push(node);
            }
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bounds() -> BatchBounds {
        BatchBounds {
            count_max: 3,
            bytes_max: 100,
            linger: Duration::from_millis(20),
            linger_max: Duration::from_millis(500),
        }
    }

    const QUIET: Surroundings = Surroundings {
        is_draining: false,
        is_coalescing: false,
    };
    const DRAINING: Surroundings = Surroundings {
        is_draining: true,
        is_coalescing: true,
    };
    const COALESCING: Surroundings = Surroundings {
        is_draining: false,
        is_coalescing: true,
    };

    /// Goal: each bound cuts for its own reason, and none before.
    #[test]
    fn each_bound_cuts_for_its_reason() {
        let start = Instant::now();
        let mut buffer = BatchBuffer::new(bounds());
        assert_eq!(buffer.due(start, DRAINING), None, "nothing waits");
        buffer.push('a', 10, start);
        assert_eq!(buffer.due(start, QUIET), None);
        assert_eq!(buffer.due(start, DRAINING), Some(FlushReason::Drain));
        assert_eq!(
            buffer.due(start + Duration::from_millis(20), QUIET),
            Some(FlushReason::Linger)
        );
        buffer.push('b', 90, start);
        assert_eq!(buffer.due(start, QUIET), Some(FlushReason::Bytes));
        buffer.push('c', 0, start);
        assert_eq!(buffer.due(start, QUIET), Some(FlushReason::Count));
        assert_eq!(buffer.cut(), ['a', 'b', 'c']);
        assert_eq!(buffer.deadline(), None);
    }

    /// Goal: while results coalesce a full batch waits for its long linger, and one that is not full for its short one.
    #[test]
    fn a_full_batch_waits_while_results_coalesce() {
        let start = Instant::now();
        let after = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut buffer = BatchBuffer::new(bounds());
        buffer.push('a', 1, start);
        assert_eq!(buffer.due(after(20), COALESCING), Some(FlushReason::Linger));
        buffer.push('b', 1, after(10));
        buffer.push('c', 1, after(10));
        assert_eq!(buffer.due(after(499), COALESCING), None);
        assert_eq!(buffer.due(after(499), QUIET), Some(FlushReason::Count));
        assert_eq!(buffer.due(after(499), DRAINING), Some(FlushReason::Count));
        assert_eq!(buffer.due(after(500), COALESCING), Some(FlushReason::Count));
    }

    proptest! {
        /// Cutting keeps order, loses nothing, never exceeds the count, and exceeds the bytes only for one alone.
        #[test]
        fn cuts_keep_order_and_bounds(sizes in prop::collection::vec(0..150_usize, 0..40)) {
            let start = Instant::now();
            let mut buffer = BatchBuffer::new(bounds());
            for (index, size) in sizes.iter().enumerate() {
                buffer.push(index, *size, start);
            }
            let mut out = Vec::new();
            loop {
                let batch = buffer.cut();
                if batch.is_empty() {
                    break;
                }
                let bytes: usize = batch.iter().map(|index| sizes[*index]).sum();
                prop_assert!(batch.len() <= 3 && (bytes <= 100 || batch.len() == 1));
                out.extend(batch);
            }
            prop_assert_eq!(out, (0..sizes.len()).collect::<Vec<_>>());
            prop_assert_eq!(buffer.bytes, 0);
        }
    }
}
