//! `document`: results merged into a stored document that anybody may have written.
//!
//! The input's first line is the stored document. Each further line is a step: `PLUGIN SEQ VALUE` or `PLUGIN SEQ !MESSAGE`
//! is a result, `+SECONDS` and `-SECONDS` move the server's clock, `=` writes the document and reads it again.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::value::RawValue;

use super::{assert_text, now, raw};
use crate::document::{Applied, NodeDocument, PluginState};
use crate::hash::content_hash;
use crate::wire::{
    Content, ContentHash, ErrorKind, Format, NodeName, PluginError, PluginName, PluginResult, Seq,
};

const FRESHNESS: Duration = Duration::from_mins(15);
/// A stored sequence further ahead of the clock than this loses, by the design.
const AHEAD_MAX: SignedDuration = SignedDuration::from_hours(24);
const STEPS_MAX: usize = 64;
/// What the server sets itself at the top level.
const OWN: [&str; 6] = [
    "doc_type",
    "system_name",
    "created_at",
    "updated_at",
    "last_error",
    "vogeler",
];

/// A stale result never wins, nothing that is not ours is lost, and a copy changes nothing.
pub fn document(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let mut lines = text.lines();
    let Some(mut merge) = lines.next().and_then(Merge::start) else {
        return;
    };
    for line in lines.take(STEPS_MAX) {
        match line.as_bytes() {
            b"=" => merge.reread(),
            [b'+' | b'-', ..] => merge.wait(line),
            _ => {
                if let Some(result) = merge.result(line) {
                    merge.step(&result);
                }
            }
        }
    }
}

struct Merge {
    node: NodeName,
    document: NodeDocument,
    now: Timestamp,
}

impl Merge {
    fn start(line: &str) -> Option<Self> {
        let node: NodeName = "web01".parse().expect("a node name");
        if line.is_empty() {
            let document = NodeDocument::new(&node, now());
            return Some(Self {
                node,
                document,
                now: now(),
            });
        }
        let stored = raw(line)?;
        let document = match NodeDocument::parse(&node, &stored) {
            Ok(document) => document,
            Err(error) => {
                assert_text(&error);
                return None;
            }
        };
        let mut merge = Self {
            node,
            document,
            now: now(),
        };
        let written = merge.json();
        let before = Written::read(stored.get());
        Written::read(&written).assert_kept(&before, None);
        // Only now the document says when it was written. That time orders results whose state tells no sequence.
        merge.document = read(&merge.node, &written);
        merge.reread();
        Some(merge)
    }

    /// The document's JSON, as it would be written.
    fn json(&self) -> String {
        let mut document = self.document.clone();
        let json = document
            .to_json(&self.node, self.now)
            .expect("a document is JSON");
        json.get().to_owned()
    }

    /// Writing and reading changes nothing.
    fn reread(&mut self) {
        let json = self.json();
        self.document = read(&self.node, &json);
        assert_eq!(json, self.json());
        assert!(self.document.bytes() > 0);
    }

    fn wait(&mut self, line: &str) {
        let seconds = line.parse::<i32>().ok().map(i64::from);
        let then = seconds.map(|seconds| self.now.checked_add(SignedDuration::from_secs(seconds)));
        if let Some(Ok(then)) = then {
            self.now = then;
        }
    }

    fn result(&self, line: &str) -> Option<PluginResult> {
        let mut words = line.splitn(3, ' ');
        let plugin = PluginName::new(words.next()?).ok()?;
        let seq = Seq(words.next()?.parse().ok()?);
        let value = words.next()?;
        let content = if let Some(message) = value.strip_prefix('!') {
            Content::Error(PluginError {
                kind: ErrorKind::Failed,
                message: message.to_owned(),
                exit: None,
                stderr: None,
            })
        } else {
            let json = raw(value)?;
            let hash = content_hash(&json, &[]).ok()?;
            Content::Value { json, hash }
        };
        Some(PluginResult {
            node: self.node.clone(),
            plugin: Some(plugin),
            seq,
            collected_at: self.now,
            run: None,
            format: Format::Json,
            duration_ms: Some(1),
            content,
        })
    }

    fn state(&self, plugin: &PluginName) -> Option<PluginState> {
        self.document.plugins().get(plugin.as_str()).cloned()
    }

    fn step(&mut self, result: &PluginResult) {
        let plugin = result.plugin.clone().expect("the steps name plugins");
        let (old, json) = (self.state(&plugin), self.json());
        let applied = self.document.apply(result, self.now, FRESHNESS);
        let written = self.json();
        let is_newer = old
            .as_ref()
            .is_none_or(|old| self.is_newer(result.seq, old.seq));
        match applied {
            Applied::Changed => {
                assert!(is_newer, "a stale result won");
                let state = self.state(&plugin).expect("it was just merged");
                assert_eq!((state.seq, state.checked_at), (result.seq, self.now));
                let (before, after) = (Written::read(&json), Written::read(&written));
                after.assert_kept(&before, Some(&plugin));
                assert_merged(result, &plugin, (old, &before), (state, &after));
            }
            Applied::Unchanged => assert!(is_newer && written == json),
            // A state that can be read only in part can make a result stale, too.
            Applied::Stale | Applied::Present => {
                assert!((!is_newer || old.is_none()) && written == json);
            }
            Applied::Unordered => assert!(old.is_none() && written == json),
        }
        let again = self.document.apply(result, self.now, FRESHNESS);
        assert_ne!(again, Applied::Changed, "a copy changed something");
        assert_eq!(written, self.json());
    }

    /// Newer by the design's words: above the stored sequence, or the stored one came from a broken clock.
    fn is_newer(&self, new: Seq, old: Seq) -> bool {
        let limit = self
            .now
            .checked_add(AHEAD_MAX)
            .map_or(i64::MAX, Timestamp::as_microsecond);
        let limit = u64::try_from(limit).unwrap_or(0);
        new > old || (old.0 > limit.max(1) && new.0 <= limit.max(1))
    }
}

fn read(node: &NodeName, written: &str) -> NodeDocument {
    NodeDocument::parse(node, &raw(written).expect("it is JSON"))
        .expect("what we wrote can be read")
}

/// A value stands in the document with its hash; an error leaves the last good value alone.
fn assert_merged(
    result: &PluginResult,
    plugin: &PluginName,
    (old, before): (Option<PluginState>, &Written<'_>),
    (state, after): (PluginState, &Written<'_>),
) {
    let value = |written: &Written<'_>| {
        written
            .members
            .get(plugin.as_str())
            .map(|value| value.get().to_owned())
    };
    match &result.content {
        Content::Value { json, hash } => {
            assert_eq!(value(after).as_deref(), Some(json.get()));
            assert_eq!(state.hash.as_ref(), Some(hash));
            assert!(state.last_error.is_none());
        }
        Content::Error(error) => {
            assert_eq!(
                value(after),
                value(before),
                "an error took the last good value"
            );
            // If a state cannot be read as a whole, its hash may still be readable.
            let hash = old.map_or_else(|| before.hash(plugin), |old| old.hash);
            assert_eq!(state.hash, hash);
            assert_eq!(
                state.last_error.map(|failure| failure.error),
                Some(error.clone())
            );
        }
    }
}

/// A document's text, read without the code under test.
struct Written<'a> {
    members: BTreeMap<String, &'a RawValue>,
    bookkeeping: BTreeMap<String, &'a RawValue>,
    plugins: BTreeMap<String, &'a RawValue>,
}

impl<'a> Written<'a> {
    fn read(json: &'a str) -> Self {
        let object = |json: &'a str| -> BTreeMap<String, &'a RawValue> {
            serde_json::from_str(json).unwrap_or_default()
        };
        let members = object(json);
        let bookkeeping = members
            .get("vogeler")
            .map(|raw| object(raw.get()))
            .unwrap_or_default();
        let plugins = bookkeeping
            .get("plugins")
            .map(|raw| object(raw.get()))
            .unwrap_or_default();
        Self {
            members,
            bookkeeping,
            plugins,
        }
    }

    /// The hash in a plugin's state, if it is a valid one.
    fn hash(&self, plugin: &PluginName) -> Option<ContentHash> {
        let state = same(self.plugins.get(plugin.as_str())?);
        serde_json::from_value(state.get("hash")?.clone()).ok()
    }

    /// Asserts that everything that is not ours is unchanged, and so is the state of every plugin but `merged`.
    fn assert_kept(&self, before: &Self, merged: Option<&PluginName>) {
        let is_merged = |name: &String| merged.is_some_and(|merged| merged.as_str() == name);
        for (name, value) in &before.members {
            if OWN.contains(&name.as_str())
                || ["_id", "_rev"].contains(&name.as_str())
                || is_merged(name)
            {
                continue;
            }
            let kept = self.members.get(name).map(|kept| kept.get());
            assert_eq!(kept, Some(value.get()), "member {name:?}");
        }
        for (name, value) in &before.bookkeeping {
            if name != "plugins" {
                let kept = self.bookkeeping.get(name).map(|kept| same(kept));
                assert_eq!(kept, Some(same(value)), "bookkeeping {name:?}");
            }
        }
        for (name, state) in &before.plugins {
            if !is_merged(name) {
                let kept = self.plugins.get(name).expect("the state of another plugin");
                let (kept, state) = (same(kept), same(state));
                // A state that was read is written with all members; those it had stay.
                assert!(
                    is_part(&state, &kept),
                    "state of {name:?}: {state} became {kept}"
                );
            }
        }
    }
}

fn same(raw: &RawValue) -> serde_json::Value {
    serde_json::from_str(raw.get()).unwrap_or_default()
}

fn is_part(part: &serde_json::Value, whole: &serde_json::Value) -> bool {
    match (part.as_object(), whole.as_object()) {
        (Some(part), Some(whole)) => part
            .iter()
            .all(|(key, value)| whole.get(key).is_some_and(|kept| is_part(value, kept))),
        _ => part == whole,
    }
}
