//! Names: node, plugin, group and run. Each constructor checks what the broker, the store and the document need.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Longest node name, in bytes: the queue `vogeler.node.<node>` must fit AMQP's 255-byte short string.
pub const NODE_NAME_BYTES_MAX: usize = 240;
/// Longest plugin name, in bytes; far longer than any real one, and short enough for a routing key or a metric label.
pub const PLUGIN_NAME_BYTES_MAX: usize = 128;
/// Longest group name, in bytes: the routing key `groups.<group>` must fit AMQP's 255-byte short string.
pub const GROUP_BYTES_MAX: usize = 128;

/// Top-level members of a node document (and of a 2010 result). No plugin may have one of these names.
pub const OWN_KEYS: [&str; 8] = [
    "doc_type",
    "system_name",
    "created_at",
    "updated_at",
    "last_error",
    "vogeler",
    "syskey",
    "format",
];

/// Why a name is refused. The message names the rule and, where it is short, the name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The name has no characters.
    #[error("{what} is empty")]
    Empty {
        /// Which kind of name: "node name", "plugin name", "group".
        what: &'static str,
    },
    /// The name is longer than its bound.
    #[error("{what} is {bytes} bytes long, at most {max} are allowed")]
    TooLong {
        /// Which kind of name.
        what: &'static str,
        /// Length found, in bytes.
        bytes: usize,
        /// Length allowed, in bytes.
        max: usize,
    },
    /// The name starts with a character that has a meaning elsewhere (`_` is CouchDB's, `@` marks a group).
    #[error("{what} {name:?} may not start with {first:?}")]
    BadStart {
        /// Which kind of name.
        what: &'static str,
        /// The name found.
        name: String,
        /// The offending first character.
        first: char,
    },
    /// The name holds a character that is not allowed anywhere in it.
    #[error(
        "{what} {name:?} holds {character:?}, which is not allowed (no white space, control characters, '*', '#', ',')"
    )]
    BadCharacter {
        /// Which kind of name.
        what: &'static str,
        /// The name found.
        name: String,
        /// The first offending character.
        character: char,
    },
    /// The name is one that Vogeler itself uses.
    #[error("{what} {name:?} is reserved")]
    Reserved {
        /// Which kind of name.
        what: &'static str,
        /// The name found.
        name: String,
    },
}

fn check(what: &'static str, name: &str, bytes_max: usize) -> Result<(), NameError> {
    let Some(first) = name.chars().next() else {
        return Err(NameError::Empty { what });
    };
    if name.len() > bytes_max {
        return Err(NameError::TooLong {
            what,
            bytes: name.len(),
            max: bytes_max,
        });
    }
    if first == '_' || first == '@' {
        return Err(NameError::BadStart {
            what,
            name: name.to_owned(),
            first,
        });
    }
    let forbidden = |c: char| c.is_control() || c.is_whitespace() || matches!(c, '*' | '#' | ',');
    if let Some(character) = name.chars().find(|c| forbidden(*c)) {
        return Err(NameError::BadCharacter {
            what,
            name: name.to_owned(),
            character,
        });
    }
    Ok(())
}

fn reserved(what: &'static str, name: &str) -> NameError {
    NameError::Reserved {
        what,
        name: name.to_owned(),
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $type:ident, $what:literal, $max:expr, $reserved:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(Arc<str>);

        impl $type {
            /// Checks `name` and takes it. Errors say which rule it breaks.
            pub fn new(name: &str) -> Result<Self, NameError> {
                check($what, name, $max)?;
                let is_reserved: fn(&str) -> bool = $reserved;
                if is_reserved(name) {
                    return Err(reserved($what, name));
                }
                Ok(Self(Arc::from(name)))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = NameError;
            fn from_str(name: &str) -> Result<Self, NameError> {
                Self::new(name)
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(name: String) -> Result<Self, NameError> {
                Self::new(&name)
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0.as_ref().to_owned()
            }
        }
    };
}

name_type!(
    /// Name of a machine of the fleet, and the id of its document: 1 to 240 bytes, no white space, control
    /// characters, `*`, `#` or `,`, not starting with `_` or `@`, and none of the words of the routing keys
    /// (`all`, `broadcasts.…`, `groups.…`). Cheap to clone.
    NodeName, "node name", NODE_NAME_BYTES_MAX,
    |name| name == "all" || name.starts_with("broadcasts.") || name.starts_with("groups.")
);
name_type!(
    /// Name of a plugin, and the key of its value in the node document: 1 to 128 bytes, no white space, control
    /// characters, `*`, `#` or `,`, not starting with `_` or `@`, and none of [`OWN_KEYS`]. Cheap to clone.
    PluginName, "plugin name", PLUGIN_NAME_BYTES_MAX, |name| OWN_KEYS.contains(&name)
);
name_type!(
    /// Name of a group of nodes, written `@web` as a target: 1 to 128 bytes, one word of a routing key, so no `.`.
    Group, "group", GROUP_BYTES_MAX, |name| name.contains('.')
);

impl NodeName {
    /// The slot of this node's results: `crc32(node) % 256`, the routing key in three digits.
    pub fn slot(&self) -> u8 {
        let [lowest, ..] = crc32fast::hash(self.0.as_bytes()).to_le_bytes();
        lowest
    }
}

/// Identity of a run: a UUIDv7, so ids sort by the time the run began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(Uuid);

impl RunId {
    /// A new id, made from the clock and randomness.
    pub fn generate() -> Self {
        Self(Uuid::now_v7())
    }

    /// The run whose trace has this id (W3C Trace Context).
    pub fn of_trace(trace: u128) -> Self {
        Self(Uuid::from_u128(trace))
    }

    /// The id of the run's trace.
    pub fn trace(self) -> u128 {
        self.0.as_u128()
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for RunId {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        text.parse().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Goal: each kind of bad node name of the issue gets an error that says what is wrong.
    #[test]
    fn bad_node_names_are_refused_by_name() {
        let cases = [
            ("", "empty"),
            ("_design/x", "may not start with '_'"),
            ("@web", "may not start with '@'"),
            ("a\u{0}b", "not allowed"),
            ("a b", "not allowed"),
            ("web#", "not allowed"),
            ("all", "reserved"),
            ("groups.web", "reserved"),
        ];
        for (name, expected) in cases {
            let error = NodeName::new(name).unwrap_err().to_string();
            assert!(error.contains(expected), "{name:?}: {error}");
        }
        let long = "x".repeat(10 * 1024);
        let error = NodeName::new(&long).unwrap_err().to_string();
        assert_eq!(
            error,
            "node name is 10240 bytes long, at most 240 are allowed"
        );
    }

    /// Goal: no plugin can overwrite a member that is ours or CouchDB's.
    #[test]
    fn plugin_names_cannot_collide_with_own_keys() {
        for key in OWN_KEYS.into_iter().chain(["_id", "_rev"]) {
            assert!(PluginName::new(key).is_err(), "{key}");
        }
        assert!(PluginName::new("rpms").is_ok());
    }

    /// Goal: slots are crc32 (IEEE) modulo 256, as every client computes them; value from `python3 -c "import zlib…"`.
    #[test]
    fn slot_is_crc32_modulo_256() {
        assert_eq!(NodeName::new("web01.example.com").unwrap().slot(), 203);
    }

    proptest! {
        /// A name that is accepted travels through JSON unchanged.
        #[test]
        fn accepted_names_round_trip(text in "\\PC{1,300}") {
            if let Ok(name) = NodeName::new(&text) {
                let json = serde_json::to_string(&name).unwrap();
                prop_assert_eq!(serde_json::from_str::<NodeName>(&json).unwrap(), name);
            }
        }
    }
}
