//! The list of all keys, and the key nearest to a misspelt one. The list comes from the default configuration, so there is
//! only one.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Config;

/// Variables start with this.
pub(super) const VARIABLE_PREFIX: &str = "VOGELER_";

/// All keys by section, each with its default as JSON (`null` where there is none).
pub(super) struct Keys(BTreeMap<String, BTreeMap<String, Value>>);

impl Keys {
    /// The keys of the default configuration.
    pub(super) fn new() -> Self {
        Self(sections(&Config::default()))
    }

    /// Whether a section has this name.
    pub(super) fn has_section(&self, section: &str) -> bool {
        self.0.contains_key(section)
    }

    /// The default of `section.key`, if there is such a key.
    pub(super) fn default_of(&self, section: &str, key: &str) -> Option<&Value> {
        self.0.get(section)?.get(key)
    }

    /// All keys as section and key.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .flat_map(|(section, keys)| keys.keys().map(|key| (section.as_str(), key.as_str())))
    }

    /// The key whose variable is called `name`.
    pub(super) fn of_variable(&self, name: &str) -> Option<(&str, &str)> {
        self.iter()
            .find(|(section, key)| variable(section, key) == name)
    }

    /// "did you mean `server.prefetch`?", or what there is instead.
    pub(super) fn hint(&self, wrong: &str) -> String {
        let (section, key) = wrong.split_once('.').unwrap_or(("", wrong));
        let elsewhere = self.iter().find(|(_, other)| *other == key);
        let names = self.iter().map(|(section, key)| format!("{section}.{key}"));
        if let Some((section, key)) = elsewhere {
            return format!("did you mean {section}.{key}?");
        }
        if let Some(name) = nearest(wrong, names) {
            return format!("did you mean {name}?");
        }
        if let Some(keys) = self.0.get(section) {
            let keys: Vec<_> = keys.keys().map(String::as_str).collect();
            return format!("[{section}] has {}", keys.join(", "));
        }
        let sections: Vec<_> = self.0.keys().map(|name| format!("[{name}]")).collect();
        format!("the sections are {}", sections.join(", "))
    }

    /// The same for a variable.
    pub(super) fn variable_hint(&self, wrong: &str) -> String {
        let names = self.iter().map(|(section, key)| variable(section, key));
        nearest(wrong, names).map_or_else(
            || {
                "variables are called VOGELER_<SECTION>_<KEY>, such as VOGELER_BROKER_DSN"
                    .to_owned()
            },
            |name| format!("did you mean {name}?"),
        )
    }
}

/// All leaves of a configuration as JSON.
pub(super) fn sections(config: &Config) -> BTreeMap<String, BTreeMap<String, Value>> {
    // Both steps always succeed on our own plain structs; a test would notice if they did not.
    serde_json::to_value(config)
        .and_then(serde_json::from_value)
        .unwrap_or_default()
}

/// The variable of a key: `VOGELER_SERVER_PREFETCH`.
pub(super) fn variable(section: &str, key: &str) -> String {
    format!("{VARIABLE_PREFIX}{section}_{key}").to_uppercase()
}

/// The candidate that `wrong` is most likely a slip for, if any is near enough.
fn nearest(wrong: &str, candidates: impl Iterator<Item = String>) -> Option<String> {
    let slips_max = (wrong.len() / 4).max(2);
    candidates
        .map(|candidate| (strsim::damerau_levenshtein(wrong, &candidate), candidate))
        .min()
        .filter(|(slips, _)| *slips <= slips_max)
        .map(|(_, candidate)| candidate)
}
