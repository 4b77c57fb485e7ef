//! What is known of each plugin of a node, by name. Pure.
//!
//! A sorted list, since there are documents in memory by the ten thousands with a few plugins each: a tree's smallest
//! leaf has room for eleven. Invariant: names are distinct and in order.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, Serializer};

use super::PluginState;
use crate::wire::PluginName;

/// The state of each plugin of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "BTreeMap<PluginName, PluginState>")]
pub struct PluginStates(Vec<(PluginName, PluginState)>);

impl PluginStates {
    /// What is known of one plugin.
    pub fn get(&self, plugin: &str) -> Option<&PluginState> {
        let index = self.index(plugin).ok()?;
        self.0.get(index).map(|(_, state)| state)
    }

    /// All, in the order of their names.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&PluginName, &PluginState)> {
        self.0.iter().map(|(plugin, state)| (plugin, state))
    }

    pub(super) fn insert(&mut self, plugin: PluginName, state: PluginState) {
        match self.index(plugin.as_str()) {
            Ok(index) => {
                if let Some((_, slot)) = self.0.get_mut(index) {
                    *slot = state;
                }
            }
            Err(index) => {
                self.0.reserve_exact(1);
                self.0.insert(index, (plugin, state));
            }
        }
    }

    /// The memory it takes on the heap, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let heap = |(plugin, state): &(PluginName, PluginState)| {
            let hash = state.hash.as_ref().map_or(0, |hash| hash.0.len());
            let error = state.last_error.as_ref();
            let error = error.map_or(0, |failure| failure.error.message.len());
            plugin.as_str().len() + hash + error
        };
        self.0.capacity() * size_of::<(PluginName, PluginState)>()
            + self.0.iter().map(heap).sum::<usize>()
    }

    fn index(&self, plugin: &str) -> Result<usize, usize> {
        self.0
            .binary_search_by(|(name, _)| name.as_str().cmp(plugin))
    }
}

impl From<BTreeMap<PluginName, PluginState>> for PluginStates {
    fn from(states: BTreeMap<PluginName, PluginState>) -> Self {
        Self(states.into_iter().collect())
    }
}

impl Serialize for PluginStates {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
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
            format: Format::Json,
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
            prop_assert_eq!(serde_json::from_str::<PluginStates>(&json).unwrap(), states);
        }
    }
}
