//! The node document: merging results into it. Pure: no clock, no I/O.
//!
//! A stored document (or none) and results come in; the JSON to write and one [`Applied`] for each result come out. The
//! values stay raw and are spliced at the top level. Invariants: an older result never replaces a newer one; a failed
//! plugin keeps its last good value; a member that is not ours, or that this version cannot read, is written back
//! unchanged, since other programs and later versions write the same documents.

mod states;

use std::collections::HashSet;
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
use states::{Newest, View};

/// What the design calls our documents; the views look for it.
const DOC_TYPE: &str = "SystemRecord";
const BOOKKEEPING: &str = "vogeler";
/// Members of the bookkeeping.
const PLUGINS: &str = "plugins";
const VERSION: &str = "v";
const FLOOR: &str = "floor";
const UNREADABLE: &str = "unreadable";
/// Version of the bookkeeping we write; bookkeeping without a version has version 1. A document of a later version keeps
/// its number: each state is read on its own, so our states are understood beside later ones.
const BOOKKEEPING_VERSION: u8 = 1;
/// A stored sequence further ahead of the server's clock than this came from a broken clock: any sane one replaces it.
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
    pub format: StateFormat,
    /// What the newest result reported in place of a value; none if it was a value.
    pub last_error: Option<PluginFailure>,
}

/// The format of a stored value. A later version may know more formats.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum StateFormat {
    /// One of ours.
    Known(Format),
    /// Another one.
    Other(Box<str>),
}

impl From<Format> for StateFormat {
    fn from(format: Format) -> Self {
        Self::Known(format)
    }
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
    /// Not applied: the stored order cannot be read, and this result is not newer than the document.
    Unordered,
}

/// `vogeler`: our bookkeeping. Members that this version does not know are kept.
#[derive(Debug, Clone, Default)]
struct Bookkeeping {
    plugins: PluginStates,
    /// Where the order of a plugin's results cannot be read, a sequence above this is newer than anything stored. It is the
    /// time of the last write before the order was lost, or the newest sequence of another plugin if that is later. None if
    /// no order was lost.
    floor: Option<Seq>,
    /// Whether none of it could be read.
    is_lost: bool,
    others: Members,
}

impl Bookkeeping {
    /// Reads the bookkeeping. `written` is the time of the document's last write: what was collected later is newer.
    fn read(raw: Option<&RawValue>, written: Option<Timestamp>) -> Self {
        let Some(raw) = raw.filter(|raw| raw.get() != "null") else {
            return Self::default();
        };
        let mut read = Self::read_members(raw).unwrap_or_else(|| {
            let mut others = Members::default();
            others.set(UNREADABLE, raw.to_owned());
            Self {
                is_lost: true,
                others,
                ..Self::default()
            }
        });
        let floor = read.others.get(FLOOR);
        read.floor = floor.and_then(|raw| serde_json::from_str(raw.get()).ok());
        if read.floor.is_some() {
            read.others.remove(FLOOR);
        }
        if read.floor.is_none() && (read.is_lost || read.plugins.has_unordered()) {
            read.floor = written.map(|written| read.newest(written));
        }
        read
    }

    /// The later of two: the last write by the server's clock, and the newest sequence of a plugin by the node's clock.
    /// Sequences of a broken clock do not count.
    fn newest(&self, written: Timestamp) -> Seq {
        let limit = sane_until(written);
        let sane = self.plugins.seqs().filter(|seq| *seq <= limit);
        sane.fold(Seq::after(Seq(0), written), Seq::max)
    }

    /// The sequence that a plugin's result must exceed if its state does not tell one. A plugin without a state had no
    /// result before, unless all states were lost.
    fn floor_of(&self, state: Option<View<'_>>) -> Option<Seq> {
        let is_all_lost = self.others.contains(UNREADABLE);
        self.floor.filter(|_| state.is_some() || is_all_lost)
    }

    fn read_members(raw: &RawValue) -> Option<Self> {
        let mut others: Members = serde_json::from_str(raw.get()).ok()?;
        let plugins = match others.remove(PLUGINS) {
            Some(plugins) => serde_json::from_str(plugins.get()).ok()?,
            None => PluginStates::default(),
        };
        Some(Self {
            plugins,
            others,
            ..Self::default()
        })
    }
}

impl Serialize for Bookkeeping {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if !self.others.contains(VERSION) {
            map.serialize_entry(VERSION, &BOOKKEEPING_VERSION)?;
        }
        for (key, value) in &self.others.0 {
            map.serialize_entry(key, value)?;
        }
        if let Some(floor) = self.floor
            && !self.others.contains(FLOOR)
        {
            map.serialize_entry(FLOOR, &floor)?;
        }
        map.serialize_entry(PLUGINS, &self.plugins)?;
        map.end()
    }
}

/// How much of a document's bookkeeping this version cannot read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unreadable {
    /// All of it.
    pub is_all: bool,
    /// Number of plugins whose state cannot be read.
    pub plugins: usize,
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

    /// Reads a stored document. Bookkeeping that cannot be read stays in it. If the order of a plugin's results cannot be
    /// read, only a result collected after the document's last write counts as newer.
    pub fn parse(node: &NodeName, json: &RawValue) -> Result<Self, DocumentError> {
        let mut members: Members =
            serde_json::from_str(json.get()).map_err(|source| DocumentError {
                node: node.clone(),
                source,
            })?;
        members.0.retain(|(key, _)| key != "_id" && key != "_rev");
        let written = members.get("updated_at");
        let written = written.and_then(|raw| serde_json::from_str(raw.get()).ok());
        let bookkeeping = members.remove(BOOKKEEPING);
        let bookkeeping = Bookkeeping::read(bookkeeping.as_deref(), written);
        Ok(Self {
            members,
            bookkeeping,
        })
    }

    /// What this version cannot read of the bookkeeping.
    pub fn unreadable(&self) -> Unreadable {
        Unreadable {
            is_all: self.bookkeeping.is_lost,
            plugins: self.bookkeeping.plugins.unreadable(),
        }
    }

    /// What is known of each plugin.
    pub fn plugins(&self) -> &PluginStates {
        &self.bookkeeping.plugins
    }

    /// About how much memory it takes, in bytes.
    pub fn bytes(&self) -> usize {
        let Bookkeeping {
            plugins, others, ..
        } = &self.bookkeeping;
        let pieces = PIECES_BYTES * (1 + plugins.iter().count() + plugins.unreadable());
        size_of::<Self>() + self.members.bytes() + plugins.bytes() + pieces + others.bytes()
    }

    /// About how many bytes this result adds to the document.
    pub fn growth(&self, result: &PluginResult) -> i64 {
        /// About the bytes of a new state, its name and the JSON around them.
        const STATE: usize = 300;
        let signed = |bytes: usize| i64::try_from(bytes).unwrap_or(i64::MAX);
        let old = |member: &str| self.members.get(member).map_or(0, |old| old.get().len());
        let state = match &result.plugin {
            Some(plugin) if self.bookkeeping.plugins.view(plugin.as_str()).is_none() => STATE,
            _ => 0,
        };
        match (&result.content, &result.plugin) {
            (Content::Value { json, .. }, Some(plugin)) => {
                signed(json.get().len() + state) - signed(old(plugin.as_str()))
            }
            (Content::Value { .. }, None) => 0,
            // The plugin's state repeats the message.
            (Content::Error(error), plugin) => {
                let stderr = error.stderr.as_ref().map_or(0, String::len);
                let in_state = plugin.as_ref().map_or(0, |_| error.message.len() + stderr);
                signed(error.message.len() + in_state + state) - signed(old("last_error"))
            }
        }
    }

    /// What merging one result would do. `now` is the server's clock; an equal value checked less than `freshness` ago
    /// is not written again.
    pub fn judge(&self, result: &PluginResult, now: Timestamp, freshness: Duration) -> Applied {
        let Some(plugin) = &result.plugin else {
            return Applied::Changed;
        };
        let state = self.bookkeeping.plugins.view(plugin.as_str());
        if let Some(seq) = state.and_then(|state| state.seq) {
            if !supersedes(result.seq, seq, now) {
                let is_content = state.is_some_and(|state| is_content_of(result, &state));
                return if result.seq == seq && is_content {
                    Applied::Present
                } else {
                    Applied::Stale
                };
            }
        } else if let Some(floor) = self.bookkeeping.floor_of(state)
            && !supersedes(result.seq, floor, now)
        {
            return Applied::Unordered;
        }
        if let Some(state) = state {
            let has_value = state.hash.is_none() || self.members.contains(plugin.as_str());
            let is_fresh = state
                .checked_at
                .is_some_and(|checked_at| is_fresh(checked_at, now, freshness));
            if state.seq.is_some() && has_value && is_fresh && is_content_of(result, &state) {
                return Applied::Unchanged;
            }
        }
        Applied::Changed
    }

    /// Merges one result. Returns what [`judge`](Self::judge) says of it.
    pub fn apply(&mut self, result: &PluginResult, now: Timestamp, freshness: Duration) -> Applied {
        let applied = self.judge(result, now, freshness);
        if applied == Applied::Changed {
            self.merge(result, now);
        }
        applied
    }

    fn merge(&mut self, result: &PluginResult, now: Timestamp) {
        let Some(plugin) = &result.plugin else {
            return self.note_error(None, result);
        };
        let state = self.bookkeeping.plugins.view(plugin.as_str());
        let hash = state.and_then(|state| state.hash.cloned());
        let mut next = PluginState {
            seq: result.seq,
            collected_at: result.collected_at,
            checked_at: now,
            run: result.run,
            hash,
            duration_ms: result.duration_ms,
            format: result.format.into(),
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

/// Whether a result of sequence `new` replaces one of `old`: it is newer, or only `old` came from a broken clock.
pub fn supersedes(new: Seq, old: Seq, now: Timestamp) -> bool {
    let limit = sane_until(now);
    let is_old_broken = old > limit && new <= limit;
    new > old || is_old_broken
}

/// The largest sequence at `now` that does not come from a broken clock.
fn sane_until(now: Timestamp) -> Seq {
    now.checked_add(CLOCK_AHEAD_MAX)
        .map_or(Seq(u64::MAX), |limit| Seq::after(Seq(0), limit))
}

/// Whether a check made at `checked_at` still counts. A check from the future does not: a clock was set back.
pub fn is_fresh(checked_at: Timestamp, now: Timestamp, freshness: Duration) -> bool {
    let age = now.duration_since(checked_at);
    !age.is_negative() && age.unsigned_abs() < freshness
}

fn is_content_of(result: &PluginResult, state: &View<'_>) -> bool {
    match (&result.content, state.newest) {
        (Content::Value { hash, .. }, Newest::Value) => state.hash == Some(hash),
        (Content::Error(error), Newest::Failure(failure)) => is_same_error(error, &failure.error),
        _ => false,
    }
}

fn is_same_error(left: &PluginError, right: &PluginError) -> bool {
    left.kind == right.kind && left.message == right.message && left.exit == right.exit
}

/// A JSON object's members, raw and in order. Of repeated keys the last counts, as in CouchDB.
#[derive(Debug, Clone, Default)]
struct Members(Vec<(String, Box<RawValue>)>);

/// Bytes that an allocator adds to two small pieces of memory.
const PIECES_BYTES: usize = 32;

impl Members {
    fn get(&self, key: &str) -> Option<&RawValue> {
        let mut members = self.0.iter();
        let found = members.find(|(name, _)| name == key);
        found.map(|(_, value)| &**value)
    }

    /// About how much memory it takes on the heap.
    fn bytes(&self) -> usize {
        let member = |(key, value): &(String, Box<RawValue>)| {
            size_of::<(String, Box<RawValue>)>() + key.len() + value.get().len() + PIECES_BYTES
        };
        self.0.iter().map(member).sum()
    }

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

    /// Keeps the last of repeated keys. Anybody may write documents of many thousand members, so this uses a set instead of
    /// comparing each key with all others.
    fn drop_repeats(&mut self) {
        let mut seen = HashSet::with_capacity(self.0.len());
        let members = self.0.iter().rev();
        let mut are_last: Vec<bool> = members.map(|(key, _)| seen.insert(key)).collect();
        self.0.retain(|_| are_last.pop().unwrap_or(true));
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
                while let Some(member) = map.next_entry()? {
                    members.0.push(member);
                }
                members.drop_repeats();
                Ok(members)
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

#[cfg(test)]
mod tests;
