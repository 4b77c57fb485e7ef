//! The node document: merging results into it. Pure: no clock, no I/O.
//!
//! A stored document (or none) and results come in, the JSON to write and one [`Applied`] a result come out. The
//! values stay raw and are spliced at the top level. Invariants: no result is replaced by an older one, a failed
//! plugin keeps its last good value, and every member that is not ours leaves as it came.

mod states;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::{RawValue, to_raw_value};

use crate::wire::{
    Content, ContentHash, Format, NodeName, PluginError, PluginName, PluginResult, RunId, Seq,
};
pub use states::PluginStates;

/// What the design calls our documents; the views look for it.
const DOC_TYPE: &str = "SystemRecord";
const BOOKKEEPING: &str = "vogeler";
/// A stored sequence further ahead of the server's clock than this came from a broken clock, and loses.
const CLOCK_AHEAD_MAX: SignedDuration = SignedDuration::from_hours(24);

/// What is known of one plugin of a node: kept in the document under `vogeler.plugins`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginState {
    /// Sequence of the newest result, value or error.
    pub seq: Seq,
    /// When that result was collected, by the node's clock.
    pub collected_at: Timestamp,
    /// When the server last wrote that the content is as stored, by the server's clock.
    pub checked_at: Timestamp,
    /// The run that asked for it.
    pub run: Option<RunId>,
    /// Hash of the stored value; none before the first value.
    pub hash: Option<ContentHash>,
    /// How long the plugin took, in milliseconds.
    pub duration_ms: Option<u64>,
    /// What its output looked like.
    pub format: Format,
    /// What the newest result reported in place of a value; none if it was a value.
    pub last_error: Option<PluginFailure>,
}

/// A plugin's error as the document keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginFailure {
    /// When, by the node's clock.
    pub timestamp: Timestamp,
    /// What.
    #[serde(flatten)]
    pub error: PluginError,
}

/// The node's last error of any plugin, at the top level as in 2010.
#[derive(Serialize)]
struct LastError<'a> {
    plugin: Option<&'a PluginName>,
    timestamp: Timestamp,
    message: &'a str,
}

/// What merging one result did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// The document must be written.
    Changed,
    /// The stored content is the same and was checked recently: nothing to write.
    Unchanged,
    /// A newer result is stored.
    Stale,
    /// This very result is stored already: a redelivered copy, or our own write whose answer got lost.
    Present,
}

/// `vogeler`: our bookkeeping. Members that this version does not know are kept.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Bookkeeping {
    #[serde(default)]
    plugins: PluginStates,
    #[serde(flatten)]
    others: BTreeMap<String, serde_json::Value>,
}

/// A node document being merged.
#[derive(Debug, Clone)]
pub struct NodeDocument {
    members: Members,
    bookkeeping: Bookkeeping,
}

/// A document that cannot be merged into.
#[derive(Debug, thiserror::Error)]
#[error("the stored document of {node} is no JSON object")]
pub struct DocumentError {
    /// Whose document.
    pub node: NodeName,
    /// Why.
    #[source]
    pub source: serde_json::Error,
}

impl NodeDocument {
    /// A document for a node that has none yet.
    pub fn new(node: &NodeName, now: Timestamp) -> Self {
        let mut members = Members::default();
        members.set_json("doc_type", &DOC_TYPE);
        members.set_json("system_name", node);
        members.set_json("created_at", &now);
        members.set_json("updated_at", &now);
        Self {
            members,
            bookkeeping: Bookkeeping::default(),
        }
    }

    /// Reads a stored document. Bookkeeping that somebody broke counts as none: the values are collected again,
    /// and everything else in the document survives.
    pub fn parse(node: &NodeName, json: &RawValue) -> Result<Self, DocumentError> {
        let mut members: Members =
            serde_json::from_str(json.get()).map_err(|source| DocumentError {
                node: node.clone(),
                source,
            })?;
        members.0.retain(|(key, _)| key != "_id" && key != "_rev");
        let bookkeeping = members
            .remove(BOOKKEEPING)
            .and_then(|raw| serde_json::from_str(raw.get()).ok())
            .unwrap_or_default();
        Ok(Self {
            members,
            bookkeeping,
        })
    }

    /// What is known of each plugin.
    pub fn plugins(&self) -> &PluginStates {
        &self.bookkeeping.plugins
    }

    /// About how much memory it takes, in bytes.
    pub fn bytes(&self) -> usize {
        /// What an allocator adds to two small pieces.
        const PIECES: usize = 32;
        /// Of a member of the bookkeeping that this version does not know.
        const OTHER: usize = 512;
        let Bookkeeping { plugins, others } = &self.bookkeeping;
        let member = |(key, value): &(String, Box<RawValue>)| {
            size_of::<(String, Box<RawValue>)>() + key.len() + value.get().len() + PIECES
        };
        let members: usize = self.members.0.iter().map(member).sum();
        let pieces = PIECES * (1 + plugins.iter().len());
        size_of::<Self>() + members + plugins.bytes() + pieces + OTHER * others.len()
    }

    /// Merges one result. `now` is the server's clock; an equal value checked less than `freshness` ago is not
    /// written again.
    pub fn apply(&mut self, result: &PluginResult, now: Timestamp, freshness: Duration) -> Applied {
        let Some(plugin) = &result.plugin else {
            self.note_error(None, result);
            return Applied::Changed;
        };
        let state = self.bookkeeping.plugins.get(plugin.as_str());
        if let Some(state) = state {
            if !supersedes(result.seq, state.seq, now) {
                let is_present = result.seq == state.seq && is_content_of(result, state);
                return if is_present {
                    Applied::Present
                } else {
                    Applied::Stale
                };
            }
            let has_value = state.hash.is_none() || self.members.contains(plugin.as_str());
            if has_value
                && is_content_of(result, state)
                && is_fresh(state.checked_at, now, freshness)
            {
                return Applied::Unchanged;
            }
        }
        let hash = state.and_then(|state| state.hash.clone());
        let mut next = PluginState {
            seq: result.seq,
            collected_at: result.collected_at,
            checked_at: now,
            run: result.run,
            hash,
            duration_ms: result.duration_ms,
            format: result.format,
            last_error: None,
        };
        match &result.content {
            Content::Value { json, hash } => {
                next.hash = Some(hash.clone());
                self.members.set(plugin.as_str(), json.clone());
            }
            Content::Error(error) => {
                let timestamp = result.collected_at;
                next.last_error = Some(PluginFailure {
                    timestamp,
                    error: error.clone(),
                });
                self.note_error(Some(plugin), result);
            }
        }
        self.bookkeeping.plugins.insert(plugin.clone(), next);
        Applied::Changed
    }

    fn note_error(&mut self, plugin: Option<&PluginName>, result: &PluginResult) {
        if let Content::Error(error) = &result.content {
            let timestamp = result.collected_at;
            self.members.set_json(
                "last_error",
                &LastError {
                    plugin,
                    timestamp,
                    message: &error.message,
                },
            );
        }
    }

    /// The JSON to write, without `_id` and `_rev`.
    pub fn to_json(
        &mut self,
        node: &NodeName,
        now: Timestamp,
    ) -> Result<Box<RawValue>, serde_json::Error> {
        self.members.set_json("doc_type", &DOC_TYPE);
        self.members.set_json("system_name", node);
        if !self.members.contains("created_at") {
            self.members.set_json("created_at", &now);
        }
        self.members.set_json("updated_at", &now);
        self.members
            .set(BOOKKEEPING, to_raw_value(&self.bookkeeping)?);
        let json = to_raw_value(&self.members);
        self.members.remove(BOOKKEEPING);
        json
    }
}

/// Whether a result of sequence `new` is newer than one of `old`, which loses if it came from a broken clock.
pub fn supersedes(new: Seq, old: Seq, now: Timestamp) -> bool {
    let limit = now
        .checked_add(CLOCK_AHEAD_MAX)
        .map_or(Seq(u64::MAX), |limit| Seq::after(Seq(0), limit));
    let is_old_broken = old > limit && new <= limit;
    new > old || is_old_broken
}

/// Whether a check made at `checked_at` still counts. One from the future (a clock was set back) does not.
pub fn is_fresh(checked_at: Timestamp, now: Timestamp, freshness: Duration) -> bool {
    let age = now.duration_since(checked_at);
    !age.is_negative() && age.unsigned_abs() < freshness
}

fn is_content_of(result: &PluginResult, state: &PluginState) -> bool {
    match (&result.content, &state.last_error) {
        (Content::Value { hash, .. }, None) => state.hash.as_ref() == Some(hash),
        (Content::Error(error), Some(failure)) => is_same_error(error, &failure.error),
        _ => false,
    }
}

fn is_same_error(left: &PluginError, right: &PluginError) -> bool {
    left.kind == right.kind && left.message == right.message && left.exit == right.exit
}

/// A JSON object's members, raw and in order. The last of repeated keys counts, as in CouchDB.
#[derive(Debug, Clone, Default)]
struct Members(Vec<(String, Box<RawValue>)>);

impl Members {
    fn contains(&self, key: &str) -> bool {
        self.0.iter().any(|(name, _)| name == key)
    }

    fn set<K: AsRef<str> + Into<String>>(&mut self, key: K, value: Box<RawValue>) {
        let mut members = self.0.iter_mut();
        match members.find(|(name, _)| name == key.as_ref()) {
            Some((_, slot)) => *slot = value,
            None => self.0.push((key.into(), value)),
        }
    }

    /// Sets a member to a value of ours, which always has a JSON form.
    fn set_json<T: Serialize>(&mut self, key: &str, value: &T) {
        if let Ok(raw) = to_raw_value(value) {
            self.set(key, raw);
        }
    }

    fn remove(&mut self, key: &str) -> Option<Box<RawValue>> {
        let index = self.0.iter().position(|(name, _)| name == key)?;
        Some(self.0.remove(index).1)
    }
}

impl Serialize for Members {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in &self.0 {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Members;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Members::default();
                while let Some((key, value)) = map.next_entry::<String, Box<RawValue>>()? {
                    members.set(key, value);
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

#[cfg(test)]
mod tests;
