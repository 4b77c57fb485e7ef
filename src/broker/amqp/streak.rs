//! Whether the sessions of a queue break at the same head, one after the other. Pure, but for the flag that a session
//! sets while it runs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

/// From this many breaks on a queue is suspected: it gets a connection of its own, and no longer breaks others.
const SUSPECT_BREAKS: u32 = 2;
/// From this many breaks on it is stuck, and an operator learns of it.
const STUCK_BREAKS: u32 = 5;
/// A session that stands for this time holds, whether or not anything came: what breaks a session breaks it at once.
const HOLDS_AFTER: Duration = Duration::from_secs(30);

/// What came of one session's deliveries.
#[derive(Debug, Default)]
pub(super) struct Progress {
    is_settled: AtomicBool,
    settled: Notify,
}

impl Progress {
    /// The broker was told that deliveries are done.
    pub(super) fn settle(&self) {
        if !self.is_settled.swap(true, Ordering::Relaxed) {
            self.settled.notify_one();
        }
    }

    /// Waits until the session holds: its first delivery is settled, or it stood for `HOLDS_AFTER`.
    pub(super) async fn holds(&self) {
        tokio::select! {
            () = self.settled.notified() => {}
            () = tokio::time::sleep(HOLDS_AFTER) => {}
        }
    }
}

/// Sessions in a row that broke before they held.
#[derive(Debug, Default)]
pub(super) struct Streak {
    breaks: u32,
}

impl Streak {
    /// A session broke before it held. Says how many did in a row, if they are enough for the queue to be stuck.
    pub(super) fn broke(&mut self) -> Option<u32> {
        self.breaks += 1;
        (self.breaks >= STUCK_BREAKS).then_some(self.breaks)
    }

    /// A session holds.
    pub(super) fn end(&mut self) {
        self.breaks = 0;
    }

    /// Whether the queue is to have a connection of its own.
    pub(super) fn is_suspect(&self) -> bool {
        self.breaks >= SUSPECT_BREAKS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: sessions that break before they hold make a queue suspect, then stuck; one that holds ends it.
    #[test]
    fn breaks_in_a_row_are_counted() {
        let mut streak = Streak::default();
        for _ in 0..2 {
            let told: Vec<_> = (0..6)
                .map(|_| (streak.broke(), streak.is_suspect()))
                .collect();
            let stuck: Vec<_> = told.iter().filter_map(|(stuck, _)| *stuck).collect();
            assert_eq!(stuck, [5, 6]);
            assert_eq!(told.iter().filter(|(_, is_suspect)| *is_suspect).count(), 5);
            streak.end();
            assert!(!streak.is_suspect());
        }
    }
}
