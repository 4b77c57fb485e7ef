//! What is known of each plugin of a node, by name. Pure.
//!
//! A sorted list, since memory holds tens of thousands of documents with a few plugins each, and a tree's smallest leaf
//! has room for eleven. Invariants: names are distinct and in order; a state that was read and not replaced is written
//! byte for byte as it was read, whatever is in it.

use jiff::Timestamp;
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::{RawValue, to_raw_value};

use super::{Members, PluginFailure, PluginState};
use crate::wire::{ContentHash, PluginName, Seq};

/// The state of each plugin of a node.
#[derive(Debug, Clone, Default)]
pub struct PluginStates {
    states: Vec<(PluginName, Kept)>,
    /// States whose name is not a plugin's name to this version.
    others: Members,
}

/// One state.
#[derive(Debug, Clone)]
enum Kept {
    /// All of it is known, and it is written as it was read.
    Known(PluginState),
    /// It has a part that this version does not know, or would write differently.
    Raw(Box<(Box<RawValue>, Read)>),
}

/// What can be read of a raw state.
#[derive(Debug, Clone)]
enum Read {
    /// All that this version knows of.
    Whole(PluginState),
    /// Some of it.
    Part(Part),
}

/// The members that decide about the next result.
#[derive(Debug, Clone)]
struct Part {
    seq: Option<Seq>,
    hash: Option<ContentHash>,
    checked_at: Option<Timestamp>,
    is_value: bool,
}

/// What is known of a plugin when its next result comes.
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'a> {
    /// Sequence of the newest result, where it can be read.
    pub(super) seq: Option<Seq>,
    /// Hash of the stored value.
    pub(super) hash: Option<&'a ContentHash>,
    pub(super) checked_at: Option<Timestamp>,
    pub(super) newest: Newest<'a>,
}

/// What the newest result was.
#[derive(Debug, Clone, Copy)]
pub(super) enum Newest<'a> {
    Value,
    Failure(&'a PluginFailure),
    Unreadable,
}

impl PluginStates {
    /// What is known of one plugin; none if there is no state or it cannot be read as a whole.
    pub fn get(&self, plugin: &str) -> Option<&PluginState> {
        self.kept(plugin)?.whole()
    }

    /// All states that can be read as a whole, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&PluginName, &PluginState)> {
        let states = self.states.iter();
        states.filter_map(|(plugin, kept)| Some((plugin, kept.whole()?)))
    }

    /// Number of states that cannot be read as a whole.
    pub fn unreadable(&self) -> usize {
        let states = self.states.iter();
        let unreadable = states.filter(|(_, kept)| kept.whole().is_none()).count();
        unreadable + self.others.0.len()
    }

    /// Whether there is a state that does not tell its sequence.
    pub(super) fn has_unordered(&self) -> bool {
        self.states
            .iter()
            .any(|(_, kept)| kept.view().seq.is_none())
    }

    /// The sequences that can be read.
    pub(super) fn seqs(&self) -> impl Iterator<Item = Seq> {
        self.states.iter().filter_map(|(_, kept)| kept.view().seq)
    }

    pub(super) fn view(&self, plugin: &str) -> Option<View<'_>> {
        self.kept(plugin).map(Kept::view)
    }

    pub(super) fn insert(&mut self, plugin: PluginName, state: PluginState) {
        self.put(plugin, Kept::Known(state));
    }

    fn put(&mut self, plugin: PluginName, kept: Kept) {
        match self.index(plugin.as_str()) {
            Ok(index) => {
                if let Some((_, slot)) = self.states.get_mut(index) {
                    *slot = kept;
                }
            }
            Err(index) => {
                self.states.reserve_exact(1);
                self.states.insert(index, (plugin, kept));
            }
        }
    }

    /// The memory it takes on the heap, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let heap = |(plugin, kept): &(PluginName, Kept)| plugin.as_str().len() + kept.heap();
        self.states.capacity() * size_of::<(PluginName, Kept)>()
            + self.states.iter().map(heap).sum::<usize>()
            + self.others.bytes()
    }

    fn kept(&self, plugin: &str) -> Option<&Kept> {
        let index = self.index(plugin).ok()?;
        self.states.get(index).map(|(_, kept)| kept)
    }

    fn index(&self, plugin: &str) -> Result<usize, usize> {
        self.states
            .binary_search_by(|(name, _)| name.as_str().cmp(plugin))
    }
}

impl Kept {
    fn read(raw: Box<RawValue>) -> Self {
        let Ok(state) = serde_json::from_str::<PluginState>(raw.get()) else {
            let part = Part::read(&raw);
            return Self::Raw(Box::new((raw, Read::Part(part))));
        };
        let is_same = to_raw_value(&state).is_ok_and(|written| written.get() == raw.get());
        if is_same {
            Self::Known(state)
        } else {
            Self::Raw(Box::new((raw, Read::Whole(state))))
        }
    }

    fn whole(&self) -> Option<&PluginState> {
        match self {
            Self::Known(state) => Some(state),
            Self::Raw(raw) => match &raw.1 {
                Read::Whole(state) => Some(state),
                Read::Part(_) => None,
            },
        }
    }

    fn view(&self) -> View<'_> {
        if let Some(state) = self.whole() {
            return View {
                seq: Some(state.seq),
                hash: state.hash.as_ref(),
                checked_at: Some(state.checked_at),
                newest: state
                    .last_error
                    .as_ref()
                    .map_or(Newest::Value, Newest::Failure),
            };
        }
        let part = match self {
            Self::Raw(raw) => match &raw.1 {
                Read::Part(part) => Some(part),
                Read::Whole(_) => None,
            },
            Self::Known(_) => None,
        };
        View {
            seq: part.and_then(|part| part.seq),
            hash: part.and_then(|part| part.hash.as_ref()),
            checked_at: part.and_then(|part| part.checked_at),
            newest: if part.is_some_and(|part| part.is_value) {
                Newest::Value
            } else {
                Newest::Unreadable
            },
        }
    }

    /// Memory on the heap, beside the value itself, in bytes.
    fn heap(&self) -> usize {
        let of_state = |state: &PluginState| {
            let hash = state.hash.as_ref().map_or(0, |hash| hash.0.len());
            let error = state.last_error.as_ref();
            let text = error.map_or(0, |failure| {
                let stderr = failure.error.stderr.as_ref();
                failure.error.message.len() + stderr.map_or(0, String::len)
            });
            hash + text
        };
        match self {
            Self::Known(state) => of_state(state),
            Self::Raw(raw) => {
                let read = match &raw.1 {
                    Read::Whole(state) => of_state(state),
                    Read::Part(part) => part.hash.as_ref().map_or(0, |hash| hash.0.len()),
                };
                size_of::<(Box<RawValue>, Read)>() + raw.0.get().len() + read
            }
        }
    }
}

impl Part {
    /// Reads each member on its own. If the sequence cannot be read, `collected_at` stands in for it: a client's sequence
    /// counts microseconds.
    fn read(raw: &RawValue) -> Self {
        fn member<T: serde::de::DeserializeOwned>(members: &Members, name: &str) -> Option<T> {
            serde_json::from_str(members.get(name)?.get()).ok()
        }
        let members: Members = serde_json::from_str(raw.get()).unwrap_or_default();
        let collected = || {
            let collected_at = member::<Timestamp>(&members, "collected_at")?;
            Some(Seq::after(Seq(0), collected_at))
        };
        let last_error = members.get("last_error").map(RawValue::get);
        Self {
            seq: member(&members, "seq").or_else(collected),
            hash: member::<Option<ContentHash>>(&members, "hash").flatten(),
            checked_at: member(&members, "checked_at"),
            is_value: last_error.is_none_or(|error| error == "null"),
        }
    }
}

impl Serialize for Kept {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Known(state) => state.serialize(serializer),
            Self::Raw(raw) => raw.0.serialize(serializer),
        }
    }
}

impl Serialize for PluginStates {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.states.len() + self.others.0.len()))?;
        for (plugin, kept) in &self.states {
            map.serialize_entry(plugin, kept)?;
        }
        for (name, raw) in &self.others.0 {
            map.serialize_entry(name, raw)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for PluginStates {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (mut states, mut others) = (Vec::new(), Members::default());
        // `Members` has distinct names.
        for (name, raw) in Members::deserialize(deserializer)?.0 {
            match PluginName::new(&name) {
                Ok(plugin) => states.push((plugin, Kept::read(raw))),
                Err(_) => others.0.push((name, raw)),
            }
        }
        states.sort_unstable_by(|(left, _), (right, _)| left.as_str().cmp(right.as_str()));
        states.shrink_to_fit();
        Ok(Self { states, others })
    }
}

/// Compares the JSON that would be written.
impl PartialEq for PluginStates {
    fn eq(&self, other: &Self) -> bool {
        let text = |states: &Self| serde_json::to_string::<Self>(states).ok();
        text(self) == text(other)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::wire::{Format, Seq};

    fn state(seq: u64) -> PluginState {
        PluginState {
            seq: Seq(seq),
            collected_at: Timestamp::UNIX_EPOCH,
            checked_at: Timestamp::UNIX_EPOCH,
            run: None,
            hash: None,
            duration_ms: None,
            format: Format::Json.into(),
            last_error: None,
        }
    }

    proptest! {
        /// It behaves as a map sorted by name, and is written and read as one.
        #[test]
        fn it_is_a_sorted_map(inserts in prop::collection::vec(("[a-e]{1,2}", any::<u64>()), 0..40)) {
            let mut states = PluginStates::default();
            let mut model = BTreeMap::new();
            for (name, seq) in inserts {
                let plugin: PluginName = name.parse().unwrap();
                states.insert(plugin.clone(), state(seq));
                model.insert(plugin, state(seq));
            }
            prop_assert!(states.iter().eq(model.iter()));
            for name in ["a", "bb", "zz"] {
                prop_assert_eq!(states.get(name), model.get(name));
            }
            let json = serde_json::to_string(&states).unwrap();
            prop_assert_eq!(&json, &serde_json::to_string(&model).unwrap());
            let read = serde_json::from_str::<PluginStates>(&json).unwrap();
            prop_assert!(read.states.iter().all(|(_, kept)| matches!(kept, Kept::Known(_))));
            prop_assert_eq!(read, states);
        }
    }
}
