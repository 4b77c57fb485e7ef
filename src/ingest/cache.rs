//! Documents as this server wrote them last, so that the next write of a warm node needs no read. Pure.
//!
//! A document is taken out to be merged, and put back only when its own verdict confirms it. After a conflict, an
//! ambiguous failure or a panic it is simply not there, and is read. Invariants: a document that is handed out was
//! confirmed in the same subscription, during which no other server wrote the node, and in the same era of the store; the
//! bytes held are bounded.

use std::collections::{BTreeMap, HashMap};

use crate::document::NodeDocument;
use crate::store::Revision;
use crate::wire::NodeName;

/// A document that the store is known to hold, or was found not to (no revision).
#[derive(Debug)]
pub(super) struct Known {
    pub(super) document: NodeDocument,
    pub(super) revision: Option<Revision>,
}

/// When something was known, by subscription and era. Knowledge from any other time is of no use any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Times {
    /// The subscription: once it changed, another server may have written.
    pub(super) session: u64,
    /// The store gate's era: once it changed, the store may have lost what it had.
    pub(super) era: u64,
}

#[derive(Debug)]
struct Entry {
    known: Known,
    times: Times,
    bytes: usize,
    turn: u64,
}

/// The documents written last, by node.
#[derive(Debug)]
pub(super) struct DocumentCache {
    entries: HashMap<NodeName, Entry>,
    /// Nodes by when they were put in, the oldest first.
    turns: BTreeMap<u64, NodeName>,
    next_turn: u64,
    bytes: usize,
    bytes_max: usize,
}

impl DocumentCache {
    /// An empty cache of at most `bytes_max`; 0 keeps nothing.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            entries: HashMap::new(),
            turns: BTreeMap::new(),
            next_turn: 0,
            bytes: 0,
            bytes_max,
        }
    }

    /// Takes a node's document out, if it was known at `times`; one from other times is thrown away.
    pub(super) fn take(&mut self, node: &NodeName, times: Times) -> Option<Known> {
        let entry = self.remove(node)?;
        (entry.times == times).then_some(entry.known)
    }

    /// Puts in a document that equals the stored one; the oldest documents make room.
    pub(super) fn put(&mut self, node: NodeName, times: Times, known: Known) {
        self.remove(&node);
        let bytes = known.document.bytes();
        if bytes > self.bytes_max {
            return;
        }
        let turn = self.next_turn;
        self.next_turn += 1;
        self.bytes += bytes;
        self.turns.insert(turn, node.clone());
        let entry = Entry {
            known,
            times,
            bytes,
            turn,
        };
        self.entries.insert(node, entry);
        while self.bytes > self.bytes_max {
            let Some((_, oldest)) = self.turns.pop_first() else {
                return;
            };
            self.remove(&oldest);
        }
    }

    fn remove(&mut self, node: &NodeName) -> Option<Entry> {
        let entry = self.entries.remove(node)?;
        self.turns.remove(&entry.turn);
        self.bytes -= entry.bytes;
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use proptest::prelude::*;

    use super::*;

    fn node(number: usize) -> NodeName {
        format!("node{number}").parse().unwrap()
    }

    fn known(number: usize) -> Known {
        Known {
            document: NodeDocument::new(&node(number), Timestamp::UNIX_EPOCH),
            revision: Some(Revision(format!("1-{number}").into())),
        }
    }

    fn at(session: u64, era: u64) -> Times {
        Times { session, era }
    }

    /// Goal: a document is handed out once, and only while its subscription and the store's era last.
    #[test]
    fn a_document_is_for_its_times_and_once() {
        let mut cache = DocumentCache::new(1 << 20);
        cache.put(node(1), at(7, 1), known(1));
        assert!(cache.take(&node(1), at(7, 1)).is_some());
        assert!(cache.take(&node(1), at(7, 1)).is_none(), "it was taken out");
        for later in [at(8, 1), at(7, 2)] {
            cache.put(node(1), at(7, 1), known(1));
            assert!(cache.take(&node(1), later).is_none());
            assert_eq!((cache.bytes, cache.turns.len()), (0, 0));
        }
    }

    proptest! {
        /// The bytes are bounded and add up, and what was put in last stays longest.
        #[test]
        fn bytes_are_bounded(
            steps in prop::collection::vec((0..12_usize, any::<bool>()), 1..80),
            room in 0..8_usize,
        ) {
            let one = known(1).document.bytes();
            let mut cache = DocumentCache::new(one * room + room);
            let mut model: Vec<usize> = Vec::new();
            for (number, is_put) in steps {
                model.retain(|other| *other != number);
                if is_put {
                    cache.put(node(number), at(1, 1), known(number));
                    model.push(number);
                } else {
                    cache.take(&node(number), at(1, 1));
                }
                let sum: usize = cache.entries.values().map(|entry| entry.bytes).sum();
                prop_assert!(cache.bytes == sum && sum <= cache.bytes_max);
                prop_assert_eq!(cache.turns.len(), cache.entries.len());
                let kept: Vec<_> = cache.turns.values().cloned().collect();
                let newest: Vec<_> = model.iter().map(|number| node(*number)).collect();
                prop_assert!(newest.ends_with(&kept), "{:?} {:?}", newest, kept);
            }
        }
    }
}
