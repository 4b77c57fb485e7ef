//! The ledger: every message that was sent, and its fate as the broker and the server tell it.
//!
//! Whoever publishes notes a message before its first try, each try, and the confirm; the listener notes the receipts.
//! Invariant: every message is in the ledger before it reaches the broker, so that everything in the store can be
//! explained.

pub(crate) mod book;

use std::sync::{Mutex, MutexGuard, PoisonError};

use vogeler::wire::{NodeName, Outcome, Receipt, RunId};

pub(crate) use book::{Book, Entry, EntryId, Hash, Sent};

/// Most receipts without an entry that are kept; a single one is a finding already.
const STRAYS_MAX: usize = 1_000;

/// The ledger of one load. One lock: a few thousand short calls a second.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    book: Mutex<Book>,
}

impl Ledger {
    /// The book, for the verifier. Nothing can be noted meanwhile.
    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A message is about to be sent; copies of it get the same entry.
    pub(crate) fn sending(&self, sent: &Sent) -> EntryId {
        let mut book = self.book();
        let book = &mut *book;
        let (node, plugin) = (
            book.nodes.number(&sent.node),
            book.plugins.number(&sent.plugin),
        );
        let series = book.series.entry((node, plugin)).or_default();
        let seq_of = |id: &EntryId| book.entries[id.0 as usize].seq;
        let place = match series.binary_search_by_key(&sent.seq, seq_of) {
            Ok(copy) => return series[copy],
            Err(place) => place,
        };
        let id = EntryId(u32::try_from(book.entries.len()).unwrap_or(u32::MAX));
        if series.is_empty() {
            book.of_node.entry(node).or_default().push(plugin);
        }
        series.insert(place, id);
        if let Some(run) = &sent.run {
            let run = book.runs.number(run);
            book.by_run.insert((run, node, plugin), id);
        }
        book.entries.push(Entry {
            node,
            has_run: sent.run.is_some(),
            seq: sent.seq,
            hash: sent.hash,
            version: sent.version,
            due: sent.due,
            is_late: sent.is_late,
            attempts: 0,
            confirmed: 0,
            outcomes: [0; Outcome::ALL.len()],
            attempted_at: None,
            confirmed_at: None,
            told_at: None,
            overtaken_at: None,
        });
        id
    }

    /// The message is handed to the broker at this time (microseconds from the start, as all times here). Returns
    /// whether this is its first time.
    pub(crate) fn attempt(&self, id: EntryId, at: u64) -> bool {
        let mut book = self.book();
        let entry = book.entry_mut(id);
        entry.attempts += 1;
        entry.attempted_at.get_or_insert(at);
        entry.attempts == 1
    }

    /// The broker confirmed a copy.
    pub(crate) fn confirm(&self, id: EntryId, at: u64) {
        let mut book = self.book();
        let entry = book.entry_mut(id);
        entry.confirmed += 1;
        entry.confirmed_at = Some(at);
    }

    /// A message that is no result is handed to the broker.
    pub(crate) fn attempt_poison(&self, message_id: &str) {
        self.book()
            .poison
            .entry(message_id.to_owned())
            .or_default()
            .attempts += 1;
    }

    /// The broker confirmed such a message.
    pub(crate) fn confirm_poison(&self, message_id: &str) {
        self.book()
            .poison
            .entry(message_id.to_owned())
            .or_default()
            .confirmed += 1;
    }

    /// A receipt came. Returns when the result was due if it is the first one; receipts of runs that the ledger does
    /// not know are somebody else's.
    pub(crate) fn receipt(&self, run: RunId, receipt: &Receipt, at: u64) -> Noted {
        let mut book = self.book();
        let Some(run) = book.runs.find(&run) else {
            return Noted::Foreign;
        };
        let node = book.nodes.find(&receipt.node);
        let plugin = book.plugins.find(&receipt.plugin);
        let key = node.zip(plugin).map(|(node, plugin)| (run, node, plugin));
        let Some(id) = key.and_then(|key| book.by_run.get(&key).copied()) else {
            if book.strays.len() < STRAYS_MAX {
                let stray = (
                    receipt.node.clone(),
                    receipt.plugin.clone(),
                    receipt.outcome,
                );
                book.strays.push(stray);
            }
            return Noted::Foreign;
        };
        let entry = book.entry_mut(id);
        let is_first = entry.receipts() == 0;
        entry.tell(receipt.outcome, at);
        if is_first {
            Noted::First { due: entry.due }
        } else {
            Noted::Again
        }
    }

    /// The listener had to subscribe anew between these receipts; whatever came in between was lost with its queue.
    pub(crate) fn listener_gap(&self, from: u64, until: u64) {
        self.book().listener_gaps.push((from, until));
    }

    /// Whether each copy that the broker confirmed is settled, and none is under way.
    pub(crate) fn is_settled(&self, node: &NodeName) -> bool {
        let book = self.book();
        let Some(number) = book.nodes.find(node) else {
            return true;
        };
        let plugins = book.of_node.get(&number).map_or(&[][..], Vec::as_slice);
        let mut entries = plugins
            .iter()
            .flat_map(|plugin| book.series_of(number, *plugin));
        entries
            .all(|entry| entry.attempts == entry.confirmed && entry.receipts() >= entry.confirmed)
    }

    /// The document of this node was deleted, after everything that it had sent was settled.
    pub(crate) fn deleted(&self, node: &NodeName) {
        let mut book = self.book();
        let Some(number) = book.nodes.find(node) else {
            return;
        };
        let newest = book.entries.iter().filter(|entry| entry.node == number);
        if let Some(seq) = newest.map(|entry| entry.seq).max() {
            book.deleted.insert(number, seq);
        }
    }

    /// Results that the broker confirmed and that still wait for a receipt; those that get none do not count.
    pub(crate) fn unsettled(&self) -> usize {
        let book = self.book();
        let is_open = |entry: &&Entry| entry.has_run && entry.receipts() < entry.confirmed;
        book.entries.iter().filter(is_open).count()
    }

    /// Results that real clients tried to publish and that the broker never confirmed.
    pub(crate) fn never_confirmed(&self) -> usize {
        let book = self.book();
        let entries = book.entries.iter();
        entries.filter(|entry| entry.is_never_confirmed()).count()
    }
}

/// What a receipt was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Noted {
    /// The first one of a result.
    First {
        /// When the result was due, in microseconds from the start.
        due: u64,
    },
    /// A further one, of a copy.
    Again,
    /// One that is not of our results.
    Foreign,
}
