//! What the ledger holds: an entry for every result that was sent, and where to find it.

use std::collections::HashMap;

use vogeler::wire::{ContentHash, NodeName, Outcome, PluginName, RunId};

/// Half of a BLAKE3 hash, as clients send it in 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Hash([u8; 16]);

impl Hash {
    /// The hash of a value's bytes.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let mut half = [0; 16];
        half.copy_from_slice(&blake3::hash(bytes).as_bytes()[..16]);
        Self(half)
    }

    /// A hash from the wire. One that is not 32 hexadecimal digits is hashed again: hashes are only compared.
    pub(crate) fn of_wire(hash: &ContentHash) -> Self {
        let text = hash.0.as_ref();
        let number = (text.len() == 32).then(|| u128::from_str_radix(text, 16).ok());
        number.flatten().map_or_else(
            || Self::of(text.as_bytes()),
            |number| Self(number.to_be_bytes()),
        )
    }

    /// The form that it has on the wire.
    pub(crate) fn to_wire(self) -> ContentHash {
        ContentHash(format!("{:032x}", u128::from_be_bytes(self.0)).into())
    }
}

/// A result as it is about to be sent.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    /// Which node.
    pub(crate) node: NodeName,
    /// Which plugin.
    pub(crate) plugin: PluginName,
    /// Its run; without one there is no receipt.
    pub(crate) run: Option<RunId>,
    /// Its sequence.
    pub(crate) seq: u64,
    /// Hash of its content.
    pub(crate) hash: Hash,
    /// Version of its content, for values that can be made again.
    pub(crate) version: Option<u32>,
    /// When it was due, in microseconds from the start.
    pub(crate) due: u64,
    /// Whether it is sent after a newer one on purpose.
    pub(crate) is_late: bool,
}

/// The place of an entry in the book.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct EntryId(pub(super) u32);

/// One result, and what became of it. Copies of the same bytes share an entry.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// Which node.
    pub(crate) node: u32,
    /// Whether a receipt is due.
    pub(crate) has_run: bool,
    /// Its sequence.
    pub(crate) seq: u64,
    /// Hash of its content.
    pub(crate) hash: Hash,
    /// Version of its content, for values that can be made again.
    pub(crate) version: Option<u32>,
    /// When the first copy was due, in microseconds from the start.
    pub(crate) due: u64,
    /// Whether it was sent after a newer one on purpose.
    pub(crate) is_late: bool,
    /// Tries to publish it, failed ones included: the broker has at most this many copies.
    pub(crate) attempts: u32,
    /// Copies that the broker confirmed: it has at least this many.
    pub(crate) confirmed: u32,
    /// Receipts by outcome, in the order of [`Outcome::ALL`].
    pub(crate) outcomes: [u16; Outcome::ALL.len()],
    /// When the first copy was first tried. All times are microseconds from the start; none means not yet.
    pub(crate) attempted_at: Option<u64>,
    /// When the last copy was confirmed.
    pub(crate) confirmed_at: Option<u64>,
    /// When the first receipt came.
    pub(crate) told_at: Option<u64>,
    /// When the first receipt came that says: overtaken by a newer one.
    pub(crate) overtaken_at: Option<u64>,
}

impl Entry {
    /// Receipts of this outcome.
    pub(crate) fn receipts_of(&self, outcome: Outcome) -> u32 {
        self.outcomes
            .get(outcome as usize)
            .copied()
            .map_or(0, u32::from)
    }

    /// All receipts.
    pub(crate) fn receipts(&self) -> u32 {
        self.outcomes.iter().copied().map(u32::from).sum()
    }

    /// A receipt came.
    pub(super) fn tell(&mut self, outcome: Outcome, at: u64) {
        if let Some(count) = self.outcomes.get_mut(outcome as usize) {
            *count = count.saturating_add(1);
        }
        self.told_at.get_or_insert(at);
        if matches!(outcome, Outcome::Superseded | Outcome::Stale) {
            self.overtaken_at.get_or_insert(at);
        }
    }

    /// Whether the broker may have it and never said so. For real clients only: a light client counts itself what it
    /// gives up.
    pub(crate) fn is_never_confirmed(&self) -> bool {
        self.version.is_none() && self.attempts > 0 && self.confirmed == 0
    }
}

/// Names, and the numbers that stand for them.
#[derive(Debug)]
pub(crate) struct Names<T> {
    numbers: HashMap<T, u32>,
    names: Vec<T>,
}

impl<T> Default for Names<T> {
    fn default() -> Self {
        Self {
            numbers: HashMap::new(),
            names: Vec::new(),
        }
    }
}

impl<T: Clone + Eq + std::hash::Hash> Names<T> {
    /// The number of `name`, a new one if it has none.
    pub(crate) fn number(&mut self, name: &T) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let number = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        self.names.push(name.clone());
        self.numbers.insert(name.clone(), number);
        number
    }

    /// The number of `name`, if it has one.
    pub(crate) fn find(&self, name: &T) -> Option<u32> {
        self.numbers.get(name).copied()
    }

    /// The name of a number that was given.
    pub(crate) fn name(&self, number: u32) -> &T {
        &self.names[number as usize]
    }

    /// All names, in the order of their numbers.
    pub(crate) fn all(&self) -> &[T] {
        &self.names
    }
}

/// A message that is no result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Poison {
    /// Tries to publish it.
    pub(crate) attempts: u32,
    /// Copies that the broker confirmed.
    pub(crate) confirmed: u32,
}

/// Everything that the ledger knows.
#[derive(Debug, Default)]
pub(crate) struct Book {
    /// All results.
    pub(crate) entries: Vec<Entry>,
    /// Node names.
    pub(crate) nodes: Names<NodeName>,
    /// Plugin names.
    pub(crate) plugins: Names<PluginName>,
    /// The entries of each node and plugin, by sequence.
    pub(crate) series: HashMap<(u32, u32), Vec<EntryId>>,
    /// The plugins of each node.
    pub(crate) of_node: HashMap<u32, Vec<u32>>,
    /// Nodes whose document was deleted, and the highest sequence sent before.
    pub(crate) deleted: HashMap<u32, u64>,
    /// Messages that are no results, by message id.
    pub(crate) poison: HashMap<String, Poison>,
    /// When the listener was away: from the last receipt before the gap to the first one after it, in microseconds from
    /// the start.
    pub(crate) listener_gaps: Vec<(u64, u64)>,
    /// Receipts of our runs that no entry explains.
    pub(crate) strays: Vec<(NodeName, PluginName, Outcome)>,
    pub(super) runs: Names<RunId>,
    pub(super) by_run: HashMap<(u32, u32, u32), EntryId>,
}

impl Book {
    /// An entry.
    pub(crate) fn entry(&self, id: EntryId) -> &Entry {
        &self.entries[id.0 as usize]
    }

    pub(super) fn entry_mut(&mut self, id: EntryId) -> &mut Entry {
        &mut self.entries[id.0 as usize]
    }

    /// The entries of a node and plugin, by sequence.
    pub(crate) fn series_of(&self, node: u32, plugin: u32) -> impl Iterator<Item = &Entry> {
        let ids = self
            .series
            .get(&(node, plugin))
            .map_or(&[][..], Vec::as_slice);
        ids.iter().map(|id| self.entry(*id))
    }
}
