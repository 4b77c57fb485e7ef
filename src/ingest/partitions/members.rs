//! The members: which servers are there, by their announcements and by their queues. Pure.
//!
//! Anybody who may publish can announce servers. So a server counts only once its own queue took a greeting of ours: that
//! queue exists as long as the server is connected, and nobody else can have one of that name. Silence is measured in our
//! own announcements that came back to us, not in time: while the broker is away we hear nobody, not even ourselves, so
//! nobody counts as gone. Invariant: whatever is announced, servers that are there count, and memory is bounded.

use std::collections::BTreeMap;

use super::agreement::{Agreement, ServerId};

/// A peer is gone when more than this many of our own announcements came back since we last heard it.
const SILENT_BEATS_MAX: u64 = 3;
/// Most peers; more servers than there can be partitions are of no use. A peer that is there takes the place of one that is
/// not.
const PEERS_MAX: usize = 255;
/// A peer that is not there is greeted again after this many of our announcements: it may have been reconnecting.
const GREET_AGAIN_BEATS: u64 = 10;
/// How often a peer's stop is believed. A peer that is heard again after its stop was announced did not announce it itself.
const LEAVES_MAX: u8 = 1;

/// What to do about one announcement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// Greet it, and report what came of it: it is not known whether it is there.
    Greet,
    /// Nothing: it is known, or ourselves, or one too many.
    Known,
}

/// One other server.
#[derive(Debug, Clone, Copy)]
struct Peer {
    /// [`Members::echo`] when it was last heard.
    heard: u64,
    proof: Proof,
    leaves: u8,
}

/// Whether it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Proof {
    /// Its queue takes messages.
    There,
    /// It was greeted at this echo, and what came of it is not known yet.
    Greeted(u64),
    /// At this echo it had no queue.
    Missing(u64),
    /// It said that it stops.
    Left,
}

/// The servers that are there.
#[derive(Debug)]
pub(super) struct Members {
    me: ServerId,
    partitions: u16,
    /// The last of our own beats that came back.
    beat: u64,
    /// How many of our beats came back.
    echo: u64,
    peers: BTreeMap<ServerId, Peer>,
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

    /// Our own announcement `beat` came back; `said` is the last that we made. Peers that were silent for too long are gone.
    pub(super) fn hear_self(&mut self, beat: u64, said: u64) {
        if beat <= self.beat || beat > said {
            return;
        }
        self.beat = beat;
        self.echo += 1;
        let echo = self.echo;
        self.peers
            .retain(|_, peer| echo.saturating_sub(peer.heard) <= SILENT_BEATS_MAX);
    }

    /// Another server announced itself.
    pub(super) fn hear(&mut self, server: ServerId) -> Heard {
        let echo = self.echo;
        if !self.peers.contains_key(&server) && !self.make_room() {
            return Heard::Known;
        }
        let peer = self.peers.entry(server).or_insert(Peer {
            heard: echo,
            proof: Proof::Left,
            leaves: 0,
        });
        peer.heard = echo;
        let is_greeted_late = |at: u64| echo.saturating_sub(at) >= GREET_AGAIN_BEATS;
        match peer.proof {
            Proof::There => Heard::Known,
            Proof::Greeted(at) | Proof::Missing(at) if !is_greeted_late(at) => Heard::Known,
            Proof::Greeted(_) | Proof::Missing(_) | Proof::Left => {
                // A missing peer stays missing until a greeting shows that it is there.
                if !matches!(peer.proof, Proof::Missing(_)) {
                    peer.proof = Proof::Greeted(echo);
                }
                Heard::Greet
            }
        }
    }

    /// Our greeting reached the queue of `server`, or it has no queue.
    pub(super) fn greeted(&mut self, server: ServerId, is_there: bool) {
        let echo = self.echo;
        if let Some(peer) = self.peers.get_mut(&server) {
            peer.proof = if is_there {
                Proof::There
            } else {
                Proof::Missing(echo)
            };
        } else if is_there && self.make_room() {
            // Others took its place before the outcome was known.
            let peer = Peer {
                heard: echo,
                proof: Proof::There,
                leaves: 0,
            };
            self.peers.insert(server, peer);
        }
    }

    /// `server` could not be greeted; its next announcement tries again.
    pub(super) fn not_greeted(&mut self, server: ServerId) {
        if let Some(peer) = self.peers.get_mut(&server)
            && let Proof::Greeted(_) = peer.proof
        {
            peer.proof = Proof::Left;
        }
    }

    /// `server` says that it stops.
    pub(super) fn leave(&mut self, server: ServerId) {
        if let Some(peer) = self.peers.get_mut(&server)
            && peer.leaves < LEAVES_MAX
        {
            peer.leaves += 1;
            peer.proof = Proof::Left;
        }
    }

    /// What the servers that are there agree on.
    pub(super) fn agreement(&self) -> Agreement {
        Agreement::new(self.me, self.there(), self.partitions).leaving_out(self.missing())
    }

    /// Whether the members agree on `agreement`. Comparing costs less than working out a new one.
    pub(super) fn agree_on(&self, agreement: &Agreement) -> bool {
        let others = agreement.servers() - 1;
        self.missing() == agreement.left_out()
            && self.there().count() == others
            && self.there().all(|server| agreement.counts(server))
    }

    fn there(&self) -> impl Iterator<Item = ServerId> {
        let there = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.proof == Proof::There);
        there.map(|(server, _)| *server)
    }

    fn missing(&self) -> usize {
        let is_missing = |peer: &&Peer| matches!(peer.proof, Proof::Missing(_));
        self.peers.values().filter(is_missing).count()
    }

    /// Makes room for one more, if need be in place of a peer that is not there: the one not heard for longest. Says whether
    /// there is room.
    fn make_room(&mut self) -> bool {
        if self.peers.len() < PEERS_MAX {
            return true;
        }
        let absent = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.proof != Proof::There);
        let first = absent.min_by_key(|(_, peer)| peer.heard);
        first
            .map(|(server, _)| *server)
            .is_some_and(|server| self.peers.remove(&server).is_some())
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn id(number: u128) -> ServerId {
        Uuid::from_u128(number)
    }

    fn members() -> Members {
        Members::new(id(0), 8)
    }

    /// A server that is there, as its first announcement shows.
    fn meet(members: &mut Members, server: ServerId) {
        assert_eq!(members.hear(server), Heard::Greet);
        members.greeted(server, true);
    }

    /// Goal: a silent peer is gone after enough of our beats came back, and never while we do not hear ourselves; beats that
    /// we never made, or that came back before, do not count.
    #[test]
    fn silence_counts_only_while_we_hear_ourselves() {
        let (mut members, peer) = (members(), id(2));
        members.hear_self(5, 5);
        meet(&mut members, peer);
        assert_eq!(members.hear(peer), Heard::Known);
        // Beats 7 to 98 were lost with the broker.
        for beat in [6, 99, 100] {
            for copy in [beat, beat, 1, beat + 1, u64::MAX] {
                members.hear_self(copy, beat);
            }
        }
        assert_eq!(members.agreement().servers(), 2);
        members.hear_self(101, 101);
        assert_eq!(members.agreement().servers(), 1);
        assert_eq!(members.agreement().owned().len(), 8);
    }

    /// Goal: a server that says that it stops is gone at once; whoever says so in its name is believed once.
    #[test]
    fn leaving_is_at_once_and_believed_once() {
        let (mut members, peer) = (members(), id(2));
        meet(&mut members, peer);
        members.leave(peer);
        assert_eq!(members.agreement().servers(), 1);
        assert_eq!(members.agreement().left_out(), 0);
        meet(&mut members, peer);
        members.leave(peer);
        assert_eq!(members.agreement().servers(), 2);
    }

    /// Goal: a server that announces itself and has no queue owns nothing, is reported, and is greeted again after a while.
    #[test]
    fn who_has_no_queue_is_left_out() {
        let (mut members, peer) = (members(), id(2));
        assert_eq!(members.hear(peer), Heard::Greet);
        assert_eq!(members.hear(peer), Heard::Known);
        assert_eq!(members.agreement().servers(), 1);
        members.greeted(peer, false);
        assert_eq!(members.agreement().left_out(), 1);
        for beat in 1..=GREET_AGAIN_BEATS {
            assert_eq!(members.hear(peer), Heard::Known);
            members.hear_self(beat, beat);
        }
        meet(&mut members, peer);
        assert_eq!(members.agreement().servers(), 2);
        assert_eq!(members.agreement().left_out(), 0);
    }

    /// Goal: however many servers are announced, memory is bounded, and servers that are there still count.
    #[test]
    fn forged_members_are_bounded_and_hide_nobody() {
        let mut members = members();
        meet(&mut members, id(500));
        for server in 1..500 {
            if members.hear(id(server)) == Heard::Greet {
                members.greeted(id(server), false);
            }
        }
        // The answer of one that is there comes late, after more forgeries than there is room for.
        assert_eq!(members.hear(id(501)), Heard::Greet);
        for server in 1_000..1_000 + 2 * PEERS_MAX as u128 {
            members.hear(id(server));
        }
        members.greeted(id(501), true);
        assert_eq!(members.peers.len(), PEERS_MAX);
        assert_eq!(members.agreement().servers(), 3);
        members.greeted(id(1), true);
        assert_eq!(members.agreement().servers(), 4);
    }

    /// Goal: members tell their own agreement from another one without working it out.
    #[test]
    fn an_agreement_is_compared() {
        let mut members = members();
        let alone = members.agreement();
        assert!(members.agree_on(&alone));
        meet(&mut members, id(2));
        assert!(!members.agree_on(&alone) && members.agree_on(&members.agreement()));
        let with_two = members.agreement();
        members.leave(id(2));
        meet(&mut members, id(3));
        assert!(!members.agree_on(&with_two));
        let with_three = members.agreement();
        members.hear(id(4));
        assert!(members.agree_on(&with_three));
        members.greeted(id(4), false);
        assert!(!members.agree_on(&with_three) && members.agree_on(&members.agreement()));
    }
}
