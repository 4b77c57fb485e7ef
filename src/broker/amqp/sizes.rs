//! The sizes of messages that came, to judge how many more to ask for. Pure.

/// How many messages, and how large.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sizes {
    pub(super) count: usize,
    pub(super) bytes: usize,
    /// Bytes of the largest one.
    pub(super) largest: usize,
}

impl Sizes {
    /// One more came.
    pub(super) fn add(&mut self, bytes: usize) {
        self.count += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        self.largest = self.largest.max(bytes);
    }

    /// Bytes of one on average, rounded up; 1 at least.
    pub(super) fn mean(&self) -> usize {
        self.bytes.div_ceil(self.count.max(1)).max(1)
    }
}
