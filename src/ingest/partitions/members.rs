//! The members: which servers are there, by their announcements. Pure.
//!
//! Silence is measured in our own announcements that came back to us, not in time: while the broker is away we hear
//! nobody, not even ourselves, and so nobody counts as gone.

use std::collections::BTreeMap;

use super::agreement::{Agreement, ServerId};

/// A peer is gone when more of our own announcements than this came back since we last heard it.
const SILENT_BEATS_MAX: u64 = 3;
/// Peers at most; more than there can be partitions are of no use. Others are not listened to.
const PEERS_MAX: usize = 255;

/// What one announcement told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// Somebody we did not know.
    Newcomer,
    /// Somebody we knew, or ourselves.
    Known,
}

/// The servers that are there.
#[derive(Debug)]
pub(super) struct Members {
    me: ServerId,
    partitions: u16,
    /// The last of our own beats that came back.
    beat: u64,
    /// How many came back.
    echo: u64,
    /// Peers, and the echo at which each was last heard.
    peers: BTreeMap<ServerId, u64>,
}

impl Members {
    /// Nobody but ourselves.
    pub(super) fn new(me: ServerId, partitions: u16) -> Self {
        Self {
            me,
            partitions,
            beat: 0,
            echo: 0,
            peers: BTreeMap::new(),
        }
    }

    /// `server` is there. If it is ourselves, peers that were silent for too long are gone.
    pub(super) fn hear(&mut self, server: ServerId, beat: u64) -> Heard {
        if server == self.me {
            self.echo += u64::from(beat > self.beat);
            self.beat = self.beat.max(beat);
            let echo = self.echo;
            self.peers
                .retain(|_, heard| echo.saturating_sub(*heard) <= SILENT_BEATS_MAX);
            return Heard::Known;
        }
        if self.peers.len() >= PEERS_MAX && !self.peers.contains_key(&server) {
            return Heard::Known;
        }
        match self.peers.insert(server, self.echo) {
            Some(_) => Heard::Known,
            None => Heard::Newcomer,
        }
    }

    /// `server` stops.
    pub(super) fn leave(&mut self, server: ServerId) {
        self.peers.remove(&server);
    }

    /// What those that are there agree on.
    pub(super) fn agreement(&self) -> Agreement {
        Agreement::new(self.me, self.peers.keys().copied(), self.partitions)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    /// Goal: a silent peer is gone after our beats came back often enough, and never while we do not hear ourselves.
    #[test]
    fn silence_counts_only_while_we_hear_ourselves() {
        let (me, peer) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let mut members = Members::new(me, 8);
        members.hear(me, 5);
        assert_eq!(members.hear(peer, 1), Heard::Newcomer);
        assert_eq!(members.hear(peer, 2), Heard::Known);
        // Beats 7 to 98 were lost with the broker.
        for beat in [6, 99, 100] {
            members.hear(me, beat);
            // An answer to a newcomer repeats its beat, and is no further silence.
            members.hear(me, beat);
        }
        assert_eq!(members.agreement().servers(), 2);
        members.hear(me, 101);
        assert_eq!(members.agreement().servers(), 1);
        assert_eq!(members.agreement().owned().len(), 8);
    }

    /// Goal: who says that it stops is gone at once, and is new when it comes again.
    #[test]
    fn leaving_is_at_once() {
        let (me, peer) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let mut members = Members::new(me, 8);
        members.hear(peer, 1);
        members.leave(peer);
        assert_eq!(members.agreement().servers(), 1);
        assert_eq!(members.hear(peer, 2), Heard::Newcomer);
    }

    /// Goal: however many announce themselves, what is remembered is bounded.
    #[test]
    fn members_are_bounded() {
        let mut members = Members::new(Uuid::from_u128(0), 8);
        for server in 1..1000 {
            members.hear(Uuid::from_u128(server), 1);
        }
        assert_eq!(members.agreement().servers(), PEERS_MAX + 1);
    }
}
