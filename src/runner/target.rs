//! The target of a run: all nodes, some by name, or a group.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::store::NodeSummary;
use crate::wire::{Group, NameError, NodeName};

/// Most names in one target, since each takes a message of its own. Beyond this, use a group or `all`.
pub const NAMES_MAX: usize = 10_000;

/// Whom a run asks. Its display form can be parsed again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// `all`
    All,
    /// `NAME[,NAME…]`, at least one.
    Nodes(BTreeSet<NodeName>),
    /// `@GROUP`
    Group(Group),
}

/// Why a text is not a target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// A name in it is not allowed.
    #[error("{0}; a target is all, NAME[,NAME…] or @GROUP")]
    Name(#[from] NameError),
    /// `all` or a group among other words.
    #[error("{0:?} must stand alone: a target is all, NAME[,NAME…] or @GROUP")]
    Mixed(String),
    /// More names than [`NAMES_MAX`].
    #[error("{0} names, at most {NAMES_MAX} are allowed: use @GROUP or all")]
    TooMany(usize),
}

impl FromStr for Target {
    type Err = TargetError;
    fn from_str(text: &str) -> Result<Self, TargetError> {
        let words: Vec<&str> = text.split(',').map(str::trim).collect();
        if let [word] = words[..] {
            if word == "all" {
                return Ok(Self::All);
            }
            if let Some(group) = word.strip_prefix('@') {
                return Ok(Self::Group(Group::new(group)?));
            }
        }
        let alone = |word: &&&str| **word == "all" || word.starts_with('@');
        if let Some(word) = words.iter().find(alone) {
            return Err(TargetError::Mixed((*word).to_owned()));
        }
        if words.len() > NAMES_MAX {
            return Err(TargetError::TooMany(words.len()));
        }
        let names = words.into_iter().map(NodeName::new);
        Ok(Self::Nodes(names.collect::<Result<_, _>>()?))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Group(group) => write!(f, "@{group}"),
            Self::Nodes(names) => {
                let names: Vec<_> = names.iter().map(NodeName::as_str).collect();
                f.write_str(&names.join(","))
            }
        }
    }
}

impl Serialize for Target {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Target {
    /// The nodes that the target means: those in `known` for `all` or a group, and the names themselves if it lists
    /// names.
    pub fn among(&self, known: &[NodeSummary]) -> BTreeSet<NodeName> {
        let of = |wanted: &dyn Fn(&&NodeSummary) -> bool| {
            let found = known.iter().filter(wanted);
            found.map(|summary| summary.node.clone()).collect()
        };
        match self {
            Self::All => of(&|_| true),
            Self::Group(group) => of(&|summary| summary.groups.contains(group)),
            Self::Nodes(names) => names.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn error(text: &str) -> String {
        text.parse::<Target>().unwrap_err().to_string()
    }

    /// Goal: the three forms are understood, and duplicates count once.
    #[test]
    fn the_three_forms_are_understood() {
        assert_eq!("all".parse(), Ok(Target::All));
        assert_eq!("@web".parse(), Ok(Target::Group("web".parse().unwrap())));
        let Ok(Target::Nodes(names)) = "b, a,b".parse() else {
            panic!("no names");
        };
        assert_eq!(
            names.iter().map(NodeName::as_str).collect::<Vec<_>>(),
            ["a", "b"]
        );
    }

    /// Goal: a text that is not a target is refused with the rule.
    #[test]
    fn other_texts_are_refused() {
        assert!(error("").contains("node name is empty; a target is all, NAME"));
        assert!(error("a,,b").contains("empty"));
        assert!(error("a,all").contains("\"all\" must stand alone"));
        assert!(error("@web,@db").contains("\"@web\" must stand alone"));
        assert!(error("@a.b").contains("group \"a.b\" is reserved"));
        assert!(error("_x").contains("may not start with '_'"));
        assert!(error(&"x,".repeat(10_001)).contains("at most 10000"));
    }

    /// Goal: all means every known node, a group its members, names themselves even if unknown.
    #[test]
    fn targets_choose_among_known_nodes() {
        let known = [("a", "web"), ("b", "db")].map(|(node, group)| NodeSummary {
            node: node.parse().unwrap(),
            updated_at: None,
            plugins: Vec::new(),
            groups: vec![group.parse().unwrap()],
        });
        for (target, expected) in [("all", "a,b"), ("@db", "b"), ("@x", ""), ("z", "z")] {
            let nodes = target.parse::<Target>().unwrap().among(&known);
            assert_eq!(Target::Nodes(nodes).to_string(), expected);
        }
    }

    proptest! {
        /// An accepted target parses again from its display form.
        #[test]
        fn targets_round_trip(text in "(all|@?[a-z.,]{1,12})") {
            if let Ok(target) = text.parse::<Target>() {
                prop_assert_eq!(target.to_string().parse::<Target>(), Ok(target));
            }
        }
    }
}
