//! What operators ask of a store: the questions, and what they mean on every store alike.

use jiff::Timestamp;
use serde::Serialize;

use crate::hash::Pointer;
use crate::wire::{Group, NodeName, PluginName};

/// One line of `vogeler node list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeSummary {
    /// Whose document.
    pub node: NodeName,
    /// When the document last changed; none where another program made the document.
    pub updated_at: Option<Timestamp>,
    /// The plugins it holds, by name.
    pub plugins: Vec<PluginName>,
    /// The groups its client says it is in (`/client/groups`).
    pub groups: Vec<Group>,
}

/// A question whose answer is a list of nodes.
#[derive(Debug, Clone, PartialEq)]
pub enum Query {
    /// `--plugin P --contains TEXT`: the value of `P` has an *item* that contains the text, case counting.
    /// An item is a line of any string in it, any object key, and any other scalar as JSON spells it; only the
    /// first 256 characters of an item count.
    Contains {
        /// Which plugin.
        plugin: PluginName,
        /// The text looked for, not empty.
        text: String,
    },
    /// `--plugin P`: the document holds a value of `P`.
    Has {
        /// Which plugin.
        plugin: PluginName,
    },
    /// `--where /POINTER=VALUE`: the document has exactly this scalar there. A value that reads as a JSON number,
    /// `true`, `false` or `null` also matches the string of the same spelling.
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
