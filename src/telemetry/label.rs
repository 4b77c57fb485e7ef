//! Labels: types whose values are the values that a label may have.
//!
//! Most are enums. Three are open and bounded: partitions, plugin names (the first [`PLUGINS_MAX`] of this process;
//! others are `other`) and our own version. Invariant: `index() < COUNT`, and no two values share an index.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use metrics::SharedString;

use super::metric::Role;
use crate::broker::topology::SLOTS;
use crate::wire::{Outcome, PluginName};

/// Plugins that have a label value of their own.
pub const PLUGINS_MAX: usize = 100;
/// The value for anything that has no value of its own.
pub(super) const OTHER: &str = "other";

/// Which values a label may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Values {
    /// These and no others.
    Closed(Vec<&'static str>),
    /// Numbers of partitions, from 0.
    Partitions,
    /// Names of plugins, at most [`PLUGINS_MAX`], and `other`.
    Plugins,
    /// The version of this program.
    Version,
}

/// A label as it is declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelSpec {
    /// Its name.
    pub name: &'static str,
    /// The values that it may have.
    pub values: Values,
}

impl LabelSpec {
    /// Whether the label may have this value.
    pub fn allows(&self, value: &str) -> bool {
        match &self.values {
            Values::Closed(values) => values.contains(&value),
            Values::Partitions => value.parse().is_ok_and(|partition: u16| partition < SLOTS),
            Values::Plugins => value == OTHER || PluginName::new(value).is_ok(),
            Values::Version => value == env!("CARGO_PKG_VERSION"),
        }
    }
}

/// One label's value.
pub trait Label: Copy + 'static {
    /// The label's name.
    const NAME: &'static str;
    /// How many values there can be.
    const COUNT: usize;

    /// Which values there can be.
    fn values() -> Values;

    /// Its number among these values.
    fn index(&self) -> usize;

    /// As it is exported.
    fn text(&self) -> SharedString;

    /// The values that a process of this role exports before anything happens.
    fn at_start(role: Role) -> Vec<Self>;
}

/// All labels of one series: none, one or two.
pub trait Labels: Copy + 'static {
    /// How many series there can be.
    const COUNT: usize;

    /// Their declarations.
    fn specs() -> Vec<LabelSpec>;

    /// The number of the series, below [`COUNT`](Self::COUNT).
    fn index(&self) -> usize;

    /// Names and values.
    fn texts(&self) -> Vec<(&'static str, SharedString)>;

    /// The series that a process of this role exports before anything happens.
    fn at_start(role: Role) -> Vec<Self>;
}

impl Labels for () {
    const COUNT: usize = 1;

    fn specs() -> Vec<LabelSpec> {
        Vec::new()
    }

    fn index(&self) -> usize {
        0
    }

    fn texts(&self) -> Vec<(&'static str, SharedString)> {
        Vec::new()
    }

    fn at_start(_: Role) -> Vec<Self> {
        vec![()]
    }
}

impl<A: Label> Labels for A {
    const COUNT: usize = A::COUNT;

    fn specs() -> Vec<LabelSpec> {
        vec![spec::<A>()]
    }

    fn index(&self) -> usize {
        Label::index(self)
    }

    fn texts(&self) -> Vec<(&'static str, SharedString)> {
        vec![(A::NAME, self.text())]
    }

    fn at_start(role: Role) -> Vec<Self> {
        <A as Label>::at_start(role)
    }
}

impl<A: Label, B: Label> Labels for (A, B) {
    const COUNT: usize = <A as Label>::COUNT * <B as Label>::COUNT;

    fn specs() -> Vec<LabelSpec> {
        vec![spec::<A>(), spec::<B>()]
    }

    fn index(&self) -> usize {
        Label::index(&self.0) * <B as Label>::COUNT + Label::index(&self.1)
    }

    fn texts(&self) -> Vec<(&'static str, SharedString)> {
        vec![(A::NAME, self.0.text()), (B::NAME, self.1.text())]
    }

    fn at_start(role: Role) -> Vec<Self> {
        let pairs = |a| move |b| (a, b);
        let first = <A as Label>::at_start(role).into_iter();
        first
            .flat_map(|a| <B as Label>::at_start(role).into_iter().map(pairs(a)))
            .collect()
    }
}

fn spec<A: Label>() -> LabelSpec {
    LabelSpec {
        name: A::NAME,
        values: A::values(),
    }
}

impl Label for Outcome {
    const NAME: &'static str = "outcome";
    const COUNT: usize = Self::ALL.len();

    fn values() -> Values {
        Values::Closed(Self::ALL.map(Self::as_str).to_vec())
    }

    fn index(&self) -> usize {
        *self as usize
    }

    fn text(&self) -> SharedString {
        self.as_str().into()
    }

    fn at_start(_: Role) -> Vec<Self> {
        Self::ALL.to_vec()
    }
}

/// A partition, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition(pub u16);

impl Label for Partition {
    const NAME: &'static str = "partition";
    const COUNT: usize = SLOTS as usize;

    fn values() -> Values {
        Values::Partitions
    }

    fn index(&self) -> usize {
        usize::from(self.0)
    }

    fn text(&self) -> SharedString {
        self.0.to_string().into()
    }

    fn at_start(_: Role) -> Vec<Self> {
        Vec::new()
    }
}

/// The version of this program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version;

impl Label for Version {
    const NAME: &'static str = "version";
    const COUNT: usize = 1;

    fn values() -> Values {
        Values::Version
    }

    fn index(&self) -> usize {
        0
    }

    fn text(&self) -> SharedString {
        env!("CARGO_PKG_VERSION").into()
    }

    fn at_start(_: Role) -> Vec<Self> {
        vec![Self]
    }
}

/// A plugin, by its number in the order in which this process met them; [`PLUGINS_MAX`] stands for all later ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plugin(usize);

/// Plugins met so far. Grows to [`PLUGINS_MAX`] and no further.
static PLUGINS: RwLock<Option<HashMap<PluginName, usize>>> = RwLock::new(None);

impl Plugin {
    /// A plugin without a value of its own, or no plugin at all.
    pub const OTHER: Self = Self(PLUGINS_MAX);

    /// The label of this plugin.
    pub fn of(name: &PluginName) -> Self {
        let known = PLUGINS.read().unwrap_or_else(PoisonError::into_inner);
        let (number, count) = known
            .as_ref()
            .map_or((None, 0), |known| (known.get(name).copied(), known.len()));
        drop(known);
        match number {
            Some(number) => Self(number),
            None if count >= PLUGINS_MAX => Self::OTHER,
            None => Self::meet(name),
        }
    }

    fn meet(name: &PluginName) -> Self {
        let mut known = PLUGINS.write().unwrap_or_else(PoisonError::into_inner);
        let known = known.get_or_insert_default();
        let next = known.len();
        if next >= PLUGINS_MAX && !known.contains_key(name) {
            return Self::OTHER;
        }
        Self(*known.entry(name.clone()).or_insert(next))
    }
}

impl Label for Plugin {
    const NAME: &'static str = "plugin";
    const COUNT: usize = PLUGINS_MAX + 1;

    fn values() -> Values {
        Values::Plugins
    }

    fn index(&self) -> usize {
        self.0
    }

    fn text(&self) -> SharedString {
        let known = PLUGINS.read().unwrap_or_else(PoisonError::into_inner);
        let mut names = known.iter().flatten();
        match names.find(|(_, number)| **number == self.0) {
            Some((name, _)) => name.to_string().into(),
            None => OTHER.into(),
        }
    }

    fn at_start(_: Role) -> Vec<Self> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: however many plugins a fleet has, the label has a bounded number of values, and a plugin keeps its value.
    #[test]
    fn plugins_are_bounded() {
        let name = |number: usize| PluginName::new(&format!("bound{number}")).unwrap();
        let first = Plugin::of(&name(0));
        for number in 0..3 * PLUGINS_MAX {
            assert!(Label::index(&Plugin::of(&name(number))) < <Plugin as Label>::COUNT);
        }
        assert_eq!(Plugin::of(&name(0)), first);
        assert_eq!(first.text().as_ref(), "bound0");
        assert_eq!(Plugin::of(&name(3 * PLUGINS_MAX)).text().as_ref(), OTHER);
    }

    /// Goal: every pair of labels has a place of its own.
    #[test]
    fn pairs_have_places_of_their_own() {
        type Pair = (Outcome, Outcome);
        let mut places: Vec<_> = <Pair as Labels>::at_start(Role::Server)
            .iter()
            .map(Labels::index)
            .collect();
        places.dedup();
        assert_eq!(places, (0..<Pair as Labels>::COUNT).collect::<Vec<_>>());
    }
}
