//! What operators ask of a store: the questions, with the same meaning on every store.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use crate::hash::Pointer;
use crate::wire::{Group, NodeName, PluginName};

/// One line of `vogeler node list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeSummary {
    /// Whose document.
    pub node: NodeName,
    /// When the document last changed; none if another program made the document.
    pub updated_at: Option<Timestamp>,
    /// The plugins it holds, by name.
    pub plugins: Vec<PluginName>,
    /// The groups its client says it is in (`/client/groups`).
    pub groups: Vec<Group>,
}

/// A question whose answer is a list of nodes.
#[derive(Debug, Clone, PartialEq)]
pub enum Query {
    /// `--plugin P --contains TEXT`: the value of `P` has an *item* that contains the text; case matters. An item is a
    /// line of any string in it, any object key, and any other scalar as JSON spells it; only the first 256 characters
    /// of an item count.
    Contains {
        /// Which plugin.
        plugin: PluginName,
        /// The text to look for, not empty.
        text: String,
    },
    /// `--plugin P`: the document holds a value of `P`.
    Has {
        /// Which plugin.
        plugin: PluginName,
    },
    /// `--where /POINTER=VALUE`: the document has exactly this scalar at `POINTER`. A value that reads as a JSON
    /// number, `true`, `false` or `null` also matches the string of the same spelling.
    Where {
        /// Where in the document.
        pointer: Pointer,
        /// What is there, as text.
        value: String,
    },
    /// `--package NAME`: a package of exactly this name is installed, by any of the package plugins
    /// (`rpms`, `dpkg`, `pip`, `gem`, `npm`).
    Package {
        /// The package's name without version and architecture.
        name: String,
    },
}

/// One reading of the text behind `--where /pointer=`: a value as typed, or the string of that spelling.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct WhereValue(Value);

impl WhereValue {
    /// All readings of `text`, one or two: the string, and the number, boolean or null that it spells.
    pub(crate) fn candidates(text: &str) -> Vec<Self> {
        let typed = serde_json::from_str::<Value>(text)
            .ok()
            .filter(|value| value.is_number() || value.is_boolean() || value.is_null());
        let string = Value::from(text);
        [Some(string), typed]
            .into_iter()
            .flatten()
            .map(Self)
            .collect()
    }

    /// Whether `found` is this scalar. Numbers are compared by value: `1` equals `1.0`.
    pub(crate) fn is(&self, found: &Value) -> bool {
        match (&self.0, found) {
            (Value::Number(wanted), Value::Number(found)) => wanted.as_f64() == found.as_f64(),
            (wanted, found) => wanted == found,
        }
    }

    /// The scalar itself, for a store that does the comparison.
    pub(crate) fn json(&self) -> &Value {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a text is looked for as the string it is, and as the number, boolean or null that it spells.
    #[test]
    fn text_is_read_both_ways() {
        let finds = |text: &str, json: &str| {
            let found: Value = serde_json::from_str(json).unwrap();
            WhereValue::candidates(text).iter().any(|c| c.is(&found))
        };
        assert!(finds("Debian", r#""Debian""#));
        assert!(finds("12", "12") && finds("12", "12.0") && finds("12", r#""12""#));
        assert!(finds(
            "1.1234567890923457e+30",
            "1123456789092345678901234567890"
        ));
        assert!(finds("true", "true") && finds("null", "null") && finds("true", r#""true""#));
        assert!(
            !finds("12", r#""12.0""#) && !finds("[1]", "[1]") && !finds("debian", r#""Debian""#)
        );
        assert!(finds("\"x\"", r#""\"x\"""#));
    }
}
