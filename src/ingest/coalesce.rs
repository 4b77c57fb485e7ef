//! The coalescer: what one node has pending, and what is known of it. Pure.
//!
//! Results come in one by one; either their outcome is known at once (stale, unchanged), or they pend until the
//! writer takes all of them as one document write. Invariants: at most one write per node at a time, one pending
//! result per plugin (the newest), and a ticket put in comes out exactly once.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use crate::document::{self, NodeDocument};
use crate::wire::{Content, ContentHash, Outcome, PluginName, PluginResult, Seq};

/// What is known of one plugin's stored result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mark {
    seq: Seq,
    /// Hash of the stored value; none if the newest result was an error, which never counts as unchanged here.
    hash: Option<ContentHash>,
    checked_at: Timestamp,
}

/// What is known of a node's stored results. It is a plain list, since a node has few plugins and there are many nodes.
#[derive(Debug, Default)]
pub(super) struct Marks(Box<[(PluginName, Mark)]>);

impl Marks {
    fn get(&self, plugin: &PluginName) -> Option<&Mark> {
        let found = self.0.iter().find(|(name, _)| name == plugin);
        found.map(|(_, mark)| mark)
    }

    fn get_mut(&mut self, plugin: &PluginName) -> Option<&mut Mark> {
        let found = self.0.iter_mut().find(|(name, _)| name == plugin);
        found.map(|(_, mark)| mark)
    }

    /// Whether nothing is known.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Keeps the sequences that unchanged results confirmed: the stored document does not have them.
    fn keep_confirmed(&mut self, before: &Self) {
        for (plugin, mark) in &mut self.0 {
            let old = before.get(plugin).filter(|old| old.hash == mark.hash);
            mark.seq = old.map_or(mark.seq, |old| mark.seq.max(old.seq));
        }
    }
}

/// The marks of a document as it was written or read.
pub(super) fn marks_of(document: &NodeDocument) -> Marks {
    let mark = |state: &document::PluginState| Mark {
        seq: state.seq,
        hash: state
            .last_error
            .is_none()
            .then(|| state.hash.clone())
            .flatten(),
        checked_at: state.checked_at,
    };
    let plugins = document.plugins().iter();
    Marks(
        plugins
            .map(|(plugin, state)| (plugin.clone(), mark(state)))
            .collect(),
    )
}

/// Remembers that the stored content was confirmed by a result of `seq`.
pub(super) fn raise(marks: &mut Marks, plugin: &PluginName, seq: Seq) {
    if let Some(mark) = marks.get_mut(plugin) {
        mark.seq = mark.seq.max(seq);
    }
}

/// A result that waits to be written, with the tickets of those it overtook.
#[derive(Debug)]
pub(super) struct Pending<T> {
    /// The newest result of its plugin.
    pub(super) result: PluginResult,
    /// Its own ticket.
    pub(super) ticket: T,
    /// Tickets of older results, and of copies: they share its fate.
    pub(super) overtaken: Vec<T>,
}

/// A ticket that shares another's fate from now on.
pub(super) trait Overtake {
    /// Lets go of what only the newest result needs.
    fn overtake(&mut self) {}
}

/// What became of a result that was offered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Offered<T> {
    /// It pends, or shares the fate of one that does.
    Pending,
    /// Nothing needs to be written for it.
    Settled(T, Outcome),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The writer does not know that anything pends.
    Idle,
    /// The writer knows, and will take what pends.
    Announced,
    /// A write is in flight.
    Writing,
}

/// What one node has pending. `T` is the ticket.
#[derive(Debug)]
pub(super) struct Coalescer<T> {
    pending: BTreeMap<Option<PluginName>, Pending<T>>,
    marks: Marks,
    /// Whether the marks were forgotten while a write was in flight: the marks that it brings may be outdated too.
    is_doubtful: bool,
    phase: Phase,
}

impl<T: Overtake> Coalescer<T> {
    /// Begins with nothing pending, and with the marks that were known when the node came to rest.
    pub(super) fn new(marks: Marks) -> Self {
        Self {
            pending: BTreeMap::new(),
            marks,
            is_doubtful: false,
            phase: Phase::Idle,
        }
    }

    /// Takes one result.
    pub(super) fn offer(
        &mut self,
        result: PluginResult,
        mut ticket: T,
        now: Timestamp,
        freshness: Duration,
    ) -> Offered<T> {
        if let Some(pending) = self.pending.get_mut(&result.plugin) {
            if document::supersedes(result.seq, pending.result.seq, now) {
                std::mem::swap(&mut pending.ticket, &mut ticket);
                pending.result = result;
            }
            ticket.overtake();
            pending.overtaken.push(ticket);
            return Offered::Pending;
        }
        if let Some(outcome) = self.known_outcome(&result, now, freshness) {
            if outcome == Outcome::Unchanged {
                self.raise(&result);
            }
            return Offered::Settled(ticket, outcome);
        }
        let pending = Pending {
            ticket,
            overtaken: Vec::new(),
            result,
        };
        self.pending.insert(pending.result.plugin.clone(), pending);
        Offered::Pending
    }

    /// Remembers an unchanged result, which leaves no trace in the store, so that older ones that come late are stale.
    fn raise(&mut self, result: &PluginResult) {
        if let Some(plugin) = &result.plugin {
            raise(&mut self.marks, plugin, result.seq);
        }
    }

    /// Whether a result is the newest one in the marks, delivered again: it is stale and changes nothing.
    pub(super) fn is_copy(&self, result: &PluginResult) -> bool {
        let mark = result.plugin.as_ref().and_then(|name| self.marks.get(name));
        let hash = match &result.content {
            Content::Value { hash, .. } => Some(hash),
            Content::Error(_) => None,
        };
        mark.is_some_and(|mark| mark.seq == result.seq && mark.hash.as_ref() == hash)
    }

    /// The outcome, if the marks decide it. While a write is in flight they decide nothing: what is being written may be
    /// newer than they are, or may fail.
    fn known_outcome(
        &self,
        result: &PluginResult,
        now: Timestamp,
        freshness: Duration,
    ) -> Option<Outcome> {
        if self.phase == Phase::Writing {
            return None;
        }
        let mark = self.marks.get(result.plugin.as_ref()?)?;
        if !document::supersedes(result.seq, mark.seq, now) {
            return Some(Outcome::Stale);
        }
        let Content::Value { hash, .. } = &result.content else {
            return None;
        };
        let is_same = mark.hash.as_ref() == Some(hash);
        (is_same && document::is_fresh(mark.checked_at, now, freshness))
            .then_some(Outcome::Unchanged)
    }

    /// Whether the writer should be told now; if so, it counts as told from here on.
    pub(super) fn announce(&mut self) -> bool {
        let is_due = self.phase == Phase::Idle && !self.pending.is_empty();
        if is_due {
            self.phase = Phase::Announced;
        }
        is_due
    }

    /// Hands out all that pends. If the first list is not empty, a write is in flight until [`finish`](Self::finish). The
    /// second list has results that are stale by the marks of now: they came while a write was in flight, when the marks
    /// decided nothing.
    pub(super) fn take(&mut self, now: Timestamp) -> (Vec<Pending<T>>, Vec<Pending<T>>) {
        let marks = &self.marks;
        let (pending, stale): (Vec<_>, Vec<_>) = std::mem::take(&mut self.pending)
            .into_values()
            .partition(|pending| {
                let plugin = pending.result.plugin.as_ref();
                let mark = plugin.and_then(|plugin| marks.get(plugin));
                mark.is_none_or(|mark| document::supersedes(pending.result.seq, mark.seq, now))
            });
        self.phase = if pending.is_empty() {
            Phase::Idle
        } else {
            Phase::Writing
        };
        (pending, stale)
    }

    /// The write ended: with the marks of the document as it stands, or with nothing known.
    pub(super) fn finish(&mut self, marks: Option<Marks>) {
        self.phase = Phase::Idle;
        // Marks from before a write of unknown outcome are as wrong as those of another server.
        let is_doubtful = std::mem::take(&mut self.is_doubtful);
        let mut marks = marks.filter(|_| !is_doubtful).unwrap_or_default();
        marks.keep_confirmed(&self.marks);
        self.marks = marks;
    }

    /// Forgets what is known of the stored document: another server may have written it.
    pub(super) fn forget(&mut self) {
        self.marks = Marks::default();
        self.is_doubtful = self.phase == Phase::Writing;
    }

    /// Gives away what is known of the stored document.
    pub(super) fn leave(&mut self) -> Marks {
        std::mem::take(&mut self.marks)
    }

    /// Whether anything is known of the stored document.
    pub(super) fn is_known(&self) -> bool {
        !self.marks.is_empty()
    }

    /// Whether nothing pends and nothing is in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.phase == Phase::Idle && self.pending.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::value::to_raw_value;

    use super::*;
    use crate::wire::{Format, NodeName};

    const FRESHNESS: Duration = Duration::from_mins(15);

    impl Overtake for char {}
    impl Overtake for usize {}

    fn node() -> NodeName {
        "web01".parse().unwrap()
    }

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    fn result(plugin: &str, seq: u64, content: u8) -> PluginResult {
        PluginResult {
            node: node(),
            plugin: Some(plugin.parse().unwrap()),
            seq: Seq(seq),
            collected_at: now(),
            run: None,
            format: Format::Json,
            duration_ms: None,
            content: Content::Value {
                json: to_raw_value(&content).unwrap(),
                hash: ContentHash(content.to_string().into()),
            },
        }
    }

    /// Goal: results of one plugin become one write of the newest; the others' tickets travel with it.
    #[test]
    fn the_newest_pends_and_carries_the_others() {
        let mut coalescer = Coalescer::new(Marks::default());
        for (seq, ticket) in [(2, 'b'), (1, 'a'), (3, 'c'), (3, 'd')] {
            assert_eq!(
                coalescer.offer(result("rpms", seq, 0), ticket, now(), FRESHNESS),
                Offered::Pending
            );
        }
        assert!(coalescer.announce());
        assert!(!coalescer.announce(), "the writer is told once");
        let (taken, _) = coalescer.take(now());
        assert_eq!(taken.len(), 1);
        assert_eq!((taken[0].result.seq, taken[0].ticket), (Seq(3), 'c'));
        assert_eq!(taken[0].overtaken, ['a', 'b', 'd']);
    }

    /// Goal: what is known settles at once, but not while a write that may change it is in flight.
    #[test]
    fn marks_settle_only_while_no_write_is_in_flight() {
        let mut document = NodeDocument::new(&node(), now());
        document.apply(&result("rpms", 5, 1), now(), FRESHNESS);
        let mut coalescer = Coalescer::new(Marks::default());
        coalescer.finish(Some(marks_of(&document)));
        let unchanged = coalescer.offer(result("rpms", 6, 1), 'u', now(), FRESHNESS);
        assert_eq!(unchanged, Offered::Settled('u', Outcome::Unchanged));
        // Older than the unchanged one, though newer than the stored one: it comes late.
        // The same once more, or another one of its sequence: only the first is a copy.
        assert!(coalescer.is_copy(&result("rpms", 6, 1)));
        assert!(!coalescer.is_copy(&result("rpms", 6, 2)));
        assert!(!coalescer.is_copy(&result("rpms", 5, 1)));
        let late = coalescer.offer(result("rpms", 6, 2), 'l', now(), FRESHNESS);
        assert_eq!(late, Offered::Settled('l', Outcome::Stale));
        let stale = coalescer.offer(result("rpms", 5, 2), 's', now(), FRESHNESS);
        assert_eq!(stale, Offered::Settled('s', Outcome::Stale));

        assert_eq!(
            coalescer.offer(result("rpms", 7, 2), 'a', now(), FRESHNESS),
            Offered::Pending
        );
        coalescer.take(now());
        // Content 1 is what the marks know, and content 2 is on its way to the store.
        assert_eq!(
            coalescer.offer(result("rpms", 8, 1), 'b', now(), FRESHNESS),
            Offered::Pending
        );
        assert!(!coalescer.announce(), "one write at a time");
        coalescer.finish(None);
        assert!(coalescer.announce());
    }

    /// Goal: nothing is known after a write of unknown outcome, nor after a write that began before the marks were
    /// forgotten.
    #[test]
    fn doubtful_writes_leave_nothing_known() {
        let mut document = NodeDocument::new(&node(), now());
        document.apply(&result("rpms", 5, 1), now(), FRESHNESS);
        let offer = |coalescer: &mut Coalescer<char>, seq| {
            coalescer.offer(result("rpms", seq, 1), 't', now(), FRESHNESS)
        };
        for is_forgotten in [false, true] {
            let mut coalescer = Coalescer::new(Marks::default());
            coalescer.finish(Some(marks_of(&document)));
            let changed = coalescer.offer(result("rpms", 6, 2), 'c', now(), FRESHNESS);
            assert_eq!(changed, Offered::Pending);
            coalescer.take(now());
            if is_forgotten {
                coalescer.forget();
                coalescer.finish(Some(marks_of(&document)));
            } else {
                coalescer.finish(None);
            }
            assert!(!coalescer.is_known());
            assert_eq!(offer(&mut coalescer, 7), Offered::Pending);
            coalescer.take(now());
            coalescer.finish(Some(marks_of(&document)));
            assert!(coalescer.is_known(), "the next write tells again");
        }
    }

    /// Goal: after another server may have written, nothing is known.
    #[test]
    fn forgetting_makes_results_pend() {
        let mut document = NodeDocument::new(&node(), now());
        document.apply(&result("rpms", 5, 1), now(), FRESHNESS);
        let mut coalescer = Coalescer::new(Marks::default());
        coalescer.finish(Some(marks_of(&document)));
        coalescer.forget();
        assert_eq!(
            coalescer.offer(result("rpms", 6, 1), 'u', now(), FRESHNESS),
            Offered::Pending
        );
        // Another server may have overwritten what a write from before then brings.
        coalescer.take(now());
        coalescer.forget();
        coalescer.finish(Some(marks_of(&document)));
        assert_eq!(
            coalescer.offer(result("rpms", 7, 1), 'v', now(), FRESHNESS),
            Offered::Pending
        );
    }

    /// Goal: what an unchanged result confirmed is remembered across writes of other plugins, so that an older result
    /// that comes late, even while a write is in flight, is stale.
    #[test]
    fn confirmed_content_is_not_taken_back() {
        let mut document = NodeDocument::new(&node(), now());
        document.apply(&result("rpms", 1, 1), now(), FRESHNESS);
        let mut coalescer = Coalescer::new(Marks::default());
        coalescer.finish(Some(marks_of(&document)));
        let confirmed = coalescer.offer(result("rpms", 3, 1), 'c', now(), FRESHNESS);
        assert_eq!(confirmed, Offered::Settled('c', Outcome::Unchanged));
        assert_eq!(
            coalescer.offer(result("dpkg", 4, 1), 'd', now(), FRESHNESS),
            Offered::Pending
        );
        coalescer.take(now());
        assert_eq!(
            coalescer.offer(result("rpms", 2, 2), 'o', now(), FRESHNESS),
            Offered::Pending
        );
        document.apply(&result("dpkg", 4, 1), now(), FRESHNESS);
        coalescer.finish(Some(marks_of(&document)));
        let (pending, stale) = coalescer.take(now());
        assert!(pending.is_empty() && stale[0].ticket == 'o');
        assert!(coalescer.is_idle());
    }

    proptest! {
        /// Every ticket put in comes out exactly once, and the last write of a plugin carries its newest result.
        #[test]
        fn no_ticket_is_lost_or_doubled(
            steps in prop::collection::vec((0..3_u8, 1..30_u64, 0..3_u8, any::<bool>()), 1..60),
        ) {
            let mut coalescer = Coalescer::new(Marks::default());
            let mut document = NodeDocument::new(&node(), now());
            let mut out = Vec::new();
            let mut write = |coalescer: &mut Coalescer<usize>, out: &mut Vec<usize>| {
                let (pending, stale) = coalescer.take(now());
                for pending in pending.into_iter().chain(stale) {
                    document.apply(&pending.result, now(), FRESHNESS);
                    out.push(pending.ticket);
                    out.extend(pending.overtaken);
                }
                coalescer.finish(Some(marks_of(&document)));
            };
            for (ticket, (plugin, seq, content, is_write)) in steps.iter().enumerate() {
                let offered = coalescer.offer(result(&format!("p{plugin}"), *seq, *content), ticket, now(), FRESHNESS);
                if let Offered::Settled(ticket, _) = offered {
                    out.push(ticket);
                }
                if *is_write {
                    write(&mut coalescer, &mut out);
                }
            }
            write(&mut coalescer, &mut out);
            out.sort_unstable();
            prop_assert_eq!(out, (0..steps.len()).collect::<Vec<_>>());
            prop_assert!(coalescer.is_idle());
        }
    }
}
