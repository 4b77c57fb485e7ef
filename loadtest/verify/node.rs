//! The judgement on one node: its entries in the ledger against its document. Pure.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use vogeler::document::{NodeDocument, PluginState, PluginStates};
use vogeler::hash::content_hash;
use vogeler::wire::{NodeName, Outcome, PluginName};

use super::fault_window::Excuses;
use crate::ledger::{Book, Entry, Hash};
use crate::verdict::{Finding, Verdict};

/// Makes the value of a node's plugin again; none if only a real client can make it.
pub(crate) type Remake<'a> = dyn Fn(&NodeName, &PluginName, u32) -> Option<String> + Sync + 'a;

/// What all judgements share.
pub(crate) struct NodeJudge<'a> {
    /// The ledger.
    pub(crate) book: &'a Book,
    /// Who sent which content.
    pub(crate) owners: &'a HashMap<Hash, u32>,
    /// What faults excuse.
    pub(crate) excuses: &'a Excuses,
    /// Makes values again.
    pub(crate) remake: &'a Remake<'a>,
}

/// A document, read.
struct Document<'a> {
    name: Option<String>,
    states: PluginStates,
    values: BTreeMap<String, &'a RawValue>,
}

#[derive(Deserialize)]
struct Named {
    system_name: Option<String>,
}

impl<'a> Document<'a> {
    fn read(node: &NodeName, json: &'a RawValue) -> Option<Self> {
        Some(Self {
            name: serde_json::from_str::<Named>(json.get()).ok()?.system_name,
            states: NodeDocument::parse(node, json).ok()?.plugins().clone(),
            values: serde_json::from_str(json.get()).ok()?,
        })
    }
}

/// The judgement on one node's plugin.
struct Series<'a> {
    scale: &'a NodeJudge<'a>,
    node: &'a NodeName,
    plugin: &'a PluginName,
    /// Entries sent since the node's document was deleted, or all if it never was; by sequence.
    live: Vec<&'a Entry>,
    /// The highest sequence sent before the document was deleted.
    deleted: Option<u64>,
    verdict: &'a mut Verdict,
}

impl NodeJudge<'_> {
    /// Judges one node by its document, or by the lack of one.
    pub(crate) fn judge(
        &self,
        node: &NodeName,
        document: Option<&RawValue>,
        verdict: &mut Verdict,
    ) {
        let document = document.map(|json| Document::read(node, json));
        let document = match document {
            Some(None) => {
                let what = "its document cannot be read".to_owned();
                verdict.unexplained.push(finding(node, None, None, what));
                return;
            }
            Some(Some(document)) => Some(document),
            None => None,
        };
        let number = self.book.nodes.find(node);
        let sent = number.and_then(|number| self.book.of_node.get(&number));
        let sent: Vec<&PluginName> = sent
            .into_iter()
            .flatten()
            .map(|plugin| self.book.plugins.name(*plugin))
            .collect();
        if let Some(document) = &document {
            self.judge_owner(node, document, &sent, verdict);
        }
        for plugin in sent {
            let deleted = number.and_then(|number| self.book.deleted.get(&number).copied());
            let mut series = Series::new(self, node, plugin, deleted, verdict);
            series.judge_receipts();
            series.judge_stored(document.as_ref());
        }
    }

    /// Whether everything in the document is this node's.
    fn judge_owner(
        &self,
        node: &NodeName,
        document: &Document<'_>,
        sent: &[&PluginName],
        verdict: &mut Verdict,
    ) {
        if document.name.as_deref() != Some(node.as_str()) {
            let what = format!("its document calls itself {:?}", document.name);
            verdict.mixed_up.push(finding(node, None, None, what));
        }
        for (plugin, state) in document.states.iter() {
            if sent.contains(&plugin) {
                continue;
            }
            let owner = state
                .hash
                .as_ref()
                .and_then(|hash| self.owners.get(&Hash::of_wire(hash)));
            let (found, what) = match owner.map(|owner| self.book.nodes.name(*owner)) {
                Some(owner) => {
                    let what = format!("it never sent this plugin; the content is of {owner}");
                    (&mut verdict.mixed_up, what)
                }
                None => (
                    &mut verdict.unexplained,
                    "nobody sent this plugin".to_owned(),
                ),
            };
            found.push(finding(node, Some(plugin), Some(state.seq.0), what));
        }
    }
}

impl<'a> Series<'a> {
    fn new(
        scale: &'a NodeJudge<'a>,
        node: &'a NodeName,
        plugin: &'a PluginName,
        deleted: Option<u64>,
        verdict: &'a mut Verdict,
    ) -> Self {
        let numbers = scale
            .book
            .nodes
            .find(node)
            .zip(scale.book.plugins.find(plugin));
        let entries = numbers
            .into_iter()
            .flat_map(|(node, plugin)| scale.book.series_of(node, plugin));
        let live = entries.filter(|entry| deleted < Some(entry.seq)).collect();
        Self {
            scale,
            node,
            plugin,
            live,
            deleted,
            verdict,
        }
    }

    fn finding(&self, seq: u64, what: String) -> Finding {
        finding(self.node, Some(self.plugin), Some(seq), what)
    }

    /// Checks the number and the outcomes of each result's receipts.
    fn judge_receipts(&mut self) {
        // When the first of all newer results was tried: the loop goes from the newest back.
        let mut newer_at = None;
        for index in (0..self.live.len()).rev() {
            let entry = self.live[index];
            self.verdict.checked += 1;
            self.judge_count(entry);
            if let Some(what) = self.impossible_outcome(index, newer_at) {
                self.verdict.unexplained.push(self.finding(entry.seq, what));
            }
            newer_at = newer_at.into_iter().chain(entry.attempted_at).min();
        }
    }

    fn judge_count(&mut self, entry: &Entry) {
        let (receipts, seq) = (entry.receipts(), entry.seq);
        if entry.has_run && receipts < entry.confirmed {
            if self.scale.excuses.loses_receipt(entry) {
                self.verdict.receipts_lost_to_faults += u64::from(entry.confirmed - receipts);
            } else {
                let confirmed = entry.confirmed;
                let at = seconds(entry.attempted_at);
                let what =
                    format!("{receipts} receipts for {confirmed} confirmed messages, sent {at}");
                self.verdict.missing_receipt.push(self.finding(seq, what));
            }
        }
        if receipts > entry.attempts && !self.scale.excuses.delivers_again(entry) {
            let what = format!("settled {receipts} times, sent {} times", entry.attempts);
            self.verdict.unexplained.push(self.finding(seq, what));
        }
    }

    /// What is impossible about this result's outcomes, whatever the server does.
    fn impossible_outcome(&self, index: usize, newer_at: Option<u64>) -> Option<String> {
        let entry = self.live[index];
        let is = |outcome| entry.receipts_of(outcome) > 0;
        if is(Outcome::DeadLettered) {
            return Some("a good result is a dead letter".to_owned());
        }
        let mut older = self.live[..index].iter();
        if is(Outcome::Unchanged) && !older.any(|older| older.hash == entry.hash) {
            return Some("unchanged, but no older result has this content".to_owned());
        }
        let overtaken_at = entry.overtaken_at?;
        if newer_at.is_some_and(|newer_at| newer_at <= overtaken_at) || self.met_its_copy(entry) {
            return None;
        }
        let at = seconds(Some(overtaken_at));
        Some(format!("overtaken {at}, before anything newer was sent"))
    }

    /// Whether a copy may have come before. Then one of the two was settled by its own content (stored or unchanged),
    /// and its receipt says so unless a fault took it.
    fn met_its_copy(&self, entry: &Entry) -> bool {
        let excuses = self.scale.excuses;
        let is_told = [Outcome::Stored, Outcome::Unchanged]
            .into_iter()
            .any(|outcome| entry.receipts_of(outcome) > 0);
        (entry.attempts > 1 || excuses.delivers_again(entry))
            && (is_told || excuses.loses_receipt(entry))
    }

    /// Whether the store has what it must have.
    fn judge_stored(&mut self, document: Option<&Document<'_>>) {
        let state = document.and_then(|document| document.states.get(self.plugin.as_str()));
        let newest = self
            .live
            .iter()
            .rev()
            .find(|entry| entry.confirmed > 0)
            .copied();
        let Some(state) = state else {
            if let Some(newest) = newest {
                let what = format!(
                    "the store has no result of this plugin, {} were sent",
                    self.live.len()
                );
                self.verdict.lost.push(self.finding(newest.seq, what));
            }
            return;
        };
        let seq = state.seq.0;
        if self.deleted >= Some(seq) {
            let what = "deleted with the node's document, and back".to_owned();
            self.verdict.resurrected.push(self.finding(seq, what));
            return;
        }
        let Some(stored) = self.live.iter().find(|entry| entry.seq == seq).copied() else {
            let what = "the store has a sequence that was never sent".to_owned();
            self.verdict.unexplained.push(self.finding(seq, what));
            return;
        };
        let value =
            document.and_then(|document| document.values.get(self.plugin.as_str()).copied());
        self.judge_content(stored, state, value);
        if let Some(newest) = newest.filter(|newest| newest.seq > seq) {
            self.judge_older(stored, newest);
        }
    }

    /// Whether the stored content is that of the stored sequence.
    fn judge_content(&mut self, stored: &Entry, state: &PluginState, value: Option<&RawValue>) {
        if let Some(failure) = &state.last_error {
            // The value, if there is one, is an earlier result's.
            if stored.hash != Hash::of(failure.error.message.as_bytes()) {
                let what = "the store has an error that was never sent".to_owned();
                self.verdict
                    .unexplained
                    .push(self.finding(stored.seq, what));
            }
            return;
        }
        let hash = state.hash.as_ref().map(Hash::of_wire);
        if hash != Some(stored.hash) {
            let owner = hash.and_then(|hash| self.scale.owners.get(&hash)).copied();
            let what = "the stored hash is not the one that was sent".to_owned();
            self.content_finding(stored, owner, what);
            return;
        }
        let Some(value) = value else {
            let what = "the bookkeeping is there, the value is not".to_owned();
            self.verdict.lost.push(self.finding(stored.seq, what));
            return;
        };
        if !self.is_value(stored, value) {
            let owner = self
                .scale
                .owners
                .get(&Hash::of(value.get().as_bytes()))
                .copied();
            let what = "the stored value is not the one of the stored hash".to_owned();
            self.content_finding(stored, owner, what);
        }
    }

    fn content_finding(&mut self, stored: &Entry, owner: Option<u32>, what: String) {
        let owner = owner.filter(|owner| *owner != stored.node);
        match owner.map(|owner| self.scale.book.nodes.name(owner)) {
            Some(owner) => {
                let what = format!("{what}; it is of {owner}");
                self.verdict.mixed_up.push(self.finding(stored.seq, what));
            }
            None => self
                .verdict
                .unexplained
                .push(self.finding(stored.seq, what)),
        }
    }

    fn is_value(&self, stored: &Entry, value: &RawValue) -> bool {
        let remade = stored
            .version
            .and_then(|version| (self.scale.remake)(self.node, self.plugin, version));
        let Some(remade) = remade else {
            // A real client's hash is the canonical one.
            return content_hash(value, &[]).is_ok_and(|hash| Hash::of_wire(&hash) == stored.hash);
        };
        // Most stores give the very text back; some order keys or spell numbers anew.
        if remade == value.get() {
            return true;
        }
        let remade = serde_json::from_str::<&RawValue>(&remade).ok();
        let remade = remade.and_then(|remade| content_hash(remade, &[]).ok());
        remade.is_some() && remade == content_hash(value, &[]).ok()
    }

    /// Judges a store that has an older result than the newest confirmed one.
    fn judge_older(&mut self, stored: &Entry, newest: &Entry) {
        let newer = self.live.iter().filter(|entry| entry.seq > stored.seq);
        let told = newer
            .filter(|entry| entry.receipts_of(Outcome::Stored) > 0)
            .copied()
            .next_back();
        if let Some(told) = told {
            let what = format!("it was stored, and the store has the older {}", stored.seq);
            self.verdict
                .stale_over_newer
                .push(self.finding(told.seq, what));
            return;
        }
        if newest.hash == stored.hash {
            // Unchanged: it leaves no trace.
            return;
        }
        let what = format!("the store has the older {}", stored.seq);
        let finding = self.finding(newest.seq, what);
        let receipts = newest.receipts();
        let is_unchanged = receipts > 0 && newest.receipts_of(Outcome::Unchanged) == receipts;
        if receipts == 0 && !stored.is_late {
            self.verdict.lost.push(finding);
        } else if is_unchanged && stored.is_late && self.scale.excuses.forgets(newest, stored) {
            self.verdict.unchanged_forgotten += 1;
        } else {
            self.verdict.stale_over_newer.push(finding);
        }
    }
}

/// A time of the ledger as text for findings: it leads to the place in the server's log.
fn seconds(at: Option<u64>) -> String {
    let at = Duration::from_micros(at.unwrap_or(0));
    format!("at {:.3} s", at.as_secs_f64())
}

pub(super) fn finding(
    node: &NodeName,
    plugin: Option<&PluginName>,
    seq: Option<u64>,
    what: String,
) -> Finding {
    Finding {
        node: node.to_string(),
        plugin: plugin.map(ToString::to_string),
        seq,
        what,
    }
}
