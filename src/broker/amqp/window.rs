//! How many deliveries a session may have unsettled, by the sizes of those that come. Pure.
//!
//! RabbitMQ knows no prefetch by bytes, and a consumer keeps the prefetch it began with. So a session begins with few
//! deliveries. Its successor allows more when a full window of deliveries was small, and fewer when too many bytes wait.
//! Invariant: what is expected to come into a window fits its bytes, and sessions change seldom: growing takes a full
//! window and at least doubles it, and a window that shrank does not grow for a while.

use std::time::Duration;

use tokio::time::Instant;

use super::sizes::Sizes;

/// Assumed size of a delivery before the first one came, in bytes.
const FIRST_BYTES: usize = 1024 * 1024;
/// The next window is at most this many times as large.
const GROWTH_MAX: u16 = 16;
/// A window at least doubles when it grows: each growth replaces the session.
const GROWTH_MIN: u16 = 2;
/// After a window shrank it does not grow for this time.
const SHRUNK_FOR: Duration = Duration::from_mins(1);
/// After this many full windows the sizes seen before count half.
const WINDOWS_KEPT: usize = 4;
/// At most one in this many of the bytes may be passed on and not taken: those keep waiting when a session ends.
const PASSED_PART: usize = 4;

/// The window of one consumer, over all of its sessions.
#[derive(Debug)]
pub(super) struct Window {
    prefetch_max: u16,
    /// Bytes that may wait; none for a consumer with a fixed prefetch.
    bytes_max: Option<usize>,
    prefetch: u16,
    /// Sizes of recent deliveries.
    seen: Sizes,
    /// Whether the unsettled deliveries reached the prefetch: the window held something up.
    was_full: bool,
    no_growth_until: Option<Instant>,
}

impl Window {
    /// At most `prefetch_max` deliveries, and `bytes_max` of them waiting.
    pub(super) fn new(prefetch_max: u16, bytes_max: Option<usize>) -> Self {
        // AMQP takes a prefetch of 0 for no limit.
        let prefetch_max = prefetch_max.max(1);
        let first = bytes_max.map_or(usize::MAX, |bytes| bytes / FIRST_BYTES);
        Self {
            prefetch_max,
            bytes_max,
            prefetch: clamp(first, prefetch_max),
            seen: Sizes::default(),
            was_full: false,
            no_growth_until: None,
        }
    }

    /// Deliveries that the session may have unsettled.
    pub(super) fn prefetch(&self) -> u16 {
        self.prefetch
    }

    /// The most that [`prefetch`](Self::prefetch) may become.
    pub(super) fn prefetch_max(&self) -> u16 {
        self.prefetch_max
    }

    /// A delivery of `bytes` came, and `unsettled` deliveries are unsettled now.
    pub(super) fn received(&mut self, bytes: usize, unsettled: usize) {
        let seen = &mut self.seen;
        if seen.count >= WINDOWS_KEPT * usize::from(self.prefetch) {
            *seen = Sizes {
                count: seen.count / 2,
                bytes: seen.bytes / 2,
                largest: 0,
            };
        }
        seen.add(bytes);
        self.was_full |= unsettled >= usize::from(self.prefetch);
    }

    /// Whether `waiting` bytes are too many, and the prefetch can still shrink.
    pub(super) fn is_over(&self, waiting: usize) -> bool {
        self.prefetch > 1 && self.bytes_max.is_some_and(|bytes_max| waiting > bytes_max)
    }

    /// Whether a delivery of `bytes` is passed on while `passed` bytes are passed on and not taken.
    pub(super) fn passes(&self, passed: usize, bytes: usize) -> bool {
        let room = self.bytes_max.map_or(usize::MAX, |max| max / PASSED_PART);
        passed == 0 || passed.saturating_add(bytes) <= room
    }

    /// Allows fewer deliveries from now on, since `count` of them (`waiting` bytes) wait, beside `passed` bytes passed on.
    pub(super) fn shrink(&mut self, (waiting, count): (usize, usize), passed: usize, now: Instant) {
        let mean = (waiting / count.max(1)).max(1);
        let room = self.bytes_max.unwrap_or(usize::MAX);
        let fitting = room.saturating_sub(passed) / mean;
        self.prefetch = clamp(fitting, self.prefetch / 2);
        self.no_growth_until = Some(now + SHRUNK_FOR);
        self.begin();
    }

    /// Whether the next session should have more deliveries.
    pub(super) fn may_grow(&self, now: Instant) -> bool {
        let is_free = self.no_growth_until.is_none_or(|until| now >= until);
        is_free && self.fitting() >= self.prefetch.saturating_mul(GROWTH_MIN)
    }

    /// Allows more deliveries from now on.
    pub(super) fn grow(&mut self) {
        self.prefetch = self.fitting();
        self.begin();
    }

    /// How many deliveries fit, by the sizes seen; the prefetch unchanged until a whole window was seen.
    fn fitting(&self) -> u16 {
        let Some(bytes_max) = self.bytes_max else {
            return self.prefetch;
        };
        let seen = &self.seen;
        if !self.was_full || seen.count < usize::from(self.prefetch) {
            return self.prefetch;
        }
        let fitting = bytes_max.saturating_sub(seen.largest) / seen.mean();
        clamp(fitting, self.prefetch_max).min(self.prefetch.saturating_mul(GROWTH_MAX))
    }

    fn begin(&mut self) {
        self.seen = Sizes::default();
        self.was_full = false;
    }
}

/// `count`, from 1 to `most`.
fn clamp(count: usize, most: u16) -> u16 {
    u16::try_from(count).unwrap_or(u16::MAX).min(most).max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: usize = 1024 * 1024;

    /// Takes deliveries of these sizes, each waiting until the window is full; says which windows there were.
    fn run(window: &mut Window, sizes: impl IntoIterator<Item = usize>, now: Instant) -> Vec<u16> {
        let (mut windows, mut waiting) = (vec![window.prefetch()], Vec::new());
        for size in sizes {
            waiting.push(size);
            window.received(size, waiting.len());
            let bytes = waiting.iter().sum();
            if window.is_over(bytes) {
                window.shrink((bytes, waiting.len()), 0, now);
            } else if window.may_grow(now) {
                window.grow();
            } else if waiting.len() < usize::from(window.prefetch()) {
                continue;
            }
            if windows.last() != Some(&window.prefetch()) {
                windows.push(window.prefetch());
            }
            waiting.clear();
        }
        windows
    }

    /// Goal: small results reach the full prefetch in a few steps; large ones never get more than their bytes.
    #[test]
    fn windows_follow_the_sizes() {
        let now = Instant::now();
        let mut small = Window::new(2000, Some(16 * MIB));
        assert_eq!(run(&mut small, [2_000; 1_000], now), [16, 256, 2000]);
        let mut large = Window::new(2000, Some(2 * MIB));
        assert_eq!(run(&mut large, [MIB; 1_000], now), [2]);
        let mut middle = Window::new(2000, Some(2 * MIB));
        let windows = run(&mut middle, [20_000; 1_000], now);
        assert_eq!(windows, [2, 32, 103]);
    }

    /// Goal: a window that was right for small ones shrinks when large ones wait, and grows again only after a while.
    #[test]
    fn windows_shrink_and_stay_so_for_a_while() {
        let mut now = Instant::now();
        let mut window = Window::new(2000, Some(16 * MIB));
        run(&mut window, [2_000; 1_000], now);
        assert_eq!(run(&mut window, [MIB; 17], now), [2000, 16]);
        assert_eq!(run(&mut window, [2_000; 1_000], now), [16]);
        now += SHRUNK_FOR;
        assert_eq!(run(&mut window, [2_000; 1_000], now), [16, 256, 2000]);
    }

    /// Goal: few bytes are passed on before they are taken, but always one delivery.
    #[test]
    fn what_is_passed_on_is_bounded() {
        let window = Window::new(2000, Some(16 * MIB));
        assert!(window.passes(0, 100 * MIB) && window.passes(3 * MIB, MIB));
        assert!(!window.passes(4 * MIB, 1));
        assert!(Window::new(64, None).passes(100 * MIB, MIB));
    }

    /// Goal: a window that is never full keeps its size, however small the deliveries are; so does a fixed one.
    #[test]
    fn nothing_changes_without_need() {
        let now = Instant::now();
        let mut idle = Window::new(2000, Some(16 * MIB));
        for _ in 0..1_000 {
            idle.received(2_000, 3);
        }
        assert!(!idle.may_grow(now));
        let mut fixed = Window::new(64, None);
        assert_eq!(run(&mut fixed, [100 * MIB; 1_000], now), [64]);
    }

    proptest! {
        /// Whatever comes, what waits fits the window's bytes, unless the window is down to one delivery.
        #[test]
        fn what_waits_is_bounded(
            sizes in prop::collection::vec(prop_oneof![1..5_000_usize, 1..MIB, MIB..8 * MIB], 1..2_000),
            bytes_max in 64 * 1024..64 * MIB, prefetch_max in 1..=2_000_u16, passed in 0..16 * MIB,
        ) {
            let now = Instant::now();
            let mut window = Window::new(prefetch_max, Some(bytes_max));
            let mut waiting = Vec::new();
            for size in sizes {
                waiting.push(size);
                window.received(size, waiting.len());
                let bytes: usize = waiting.iter().sum();
                if window.is_over(bytes) {
                    let before = window.prefetch();
                    window.shrink((bytes, waiting.len()), passed, now);
                    prop_assert!(window.prefetch() <= before / 2);
                    waiting.clear();
                } else if window.may_grow(now) {
                    window.grow();
                    waiting.clear();
                }
                prop_assert!(window.prefetch() >= 1 && window.prefetch() <= prefetch_max);
                let bytes: usize = waiting.iter().sum();
                prop_assert!(bytes <= bytes_max || window.prefetch() == 1);
                if waiting.len() >= usize::from(window.prefetch()) {
                    waiting.clear();
                }
            }
        }
    }
}
