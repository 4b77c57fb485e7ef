//! What a node document says: its plugins, the items of a value, the packages it lists. Pure.
//!
//! The one definition behind [`Query`]: the memory and sqlite stores ask it, the CouchDB views under
//! `etc/vogeler/_design` say the same in JavaScript, and the contract suite holds all stores to one answer.

use std::collections::{BTreeSet, HashMap};

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::query::{NodeSummary, Query, WhereValue};
use crate::hash::Pointer;
use crate::wire::{CLIENT_PLUGIN, Group, NodeName, PluginName};

/// Longest prefix of an item that counts, in UTF-16 units (JavaScript's unit): a view's key must stay small.
pub(crate) const ITEM_UNITS_MAX: usize = 256;
/// The `doc_type` of a node document. Other documents in the same database are not ours and are never found.
pub(crate) const NODE_DOC_TYPE: &str = "SystemRecord";
/// The plugins whose values list packages.
const PACKAGE_PLUGINS: [&str; 5] = ["rpms", "dpkg", "pip", "gem", "npm"];
/// Above this many digits JavaScript writes a whole number with an exponent.
const JS_WHOLE_DIGITS_MAX: i32 = 21;
/// Below this power of ten JavaScript writes a fraction with an exponent.
const JS_FRACTION_ZEROS_MAX: i32 = 6;

/// A node document, read one level deep.
pub(crate) struct Facts<'a>(HashMap<String, &'a RawValue>);

impl<'a> Facts<'a> {
    /// Reads a document; none if it is not a node document.
    pub(crate) fn read(json: &'a str) -> Option<Self> {
        let members: HashMap<String, &'a RawValue> = serde_json::from_str(json).ok()?;
        let doc_type: Option<String> = members.get("doc_type").and_then(|raw| parse(raw));
        (doc_type.as_deref() == Some(NODE_DOC_TYPE)).then_some(Self(members))
    }

    /// The plugins whose value the document holds: those of the bookkeeping. A document of 2010 has no bookkeeping:
    /// there every member whose name can be a plugin's is one.
    pub(crate) fn plugins(&self) -> BTreeSet<PluginName> {
        #[derive(Deserialize)]
        struct Bookkeeping<'a> {
            #[serde(borrow)]
            plugins: HashMap<String, &'a RawValue>,
        }
        let booked: Option<Bookkeeping<'_>> = self.0.get("vogeler").and_then(|raw| parse(raw));
        let is_held = |name: &&String| match &booked {
            Some(booked) => booked.plugins.contains_key(name.as_str()),
            None => true,
        };
        let names = self.0.keys().filter(is_held);
        names
            .filter_map(|name| PluginName::new(name).ok())
            .collect()
    }

    /// The document's line in the list of nodes.
    pub(crate) fn summary(&self, node: NodeName) -> NodeSummary {
        #[derive(Deserialize)]
        struct Client {
            groups: Vec<Value>,
        }
        let updated_at: Option<String> = self.0.get("updated_at").and_then(|raw| parse(raw));
        let client: Option<Client> = self.0.get(CLIENT_PLUGIN).and_then(|raw| parse(raw));
        let groups = client.map_or_else(Vec::new, |client| client.groups);
        NodeSummary {
            node,
            updated_at: updated_at.and_then(|text| text.parse().ok()),
            plugins: self.plugins().into_iter().collect(),
            groups: groups
                .iter()
                .filter_map(|group| Group::new(group.as_str()?).ok())
                .collect(),
        }
    }

    /// Whether `query` finds the document.
    pub(crate) fn matches(&self, query: &Query) -> bool {
        match query {
            Query::Has { plugin } => self.plugins().contains(plugin),
            Query::Contains { plugin, text } => {
                self.plugins().contains(plugin)
                    && self.value(plugin.as_str()).is_some_and(|value| {
                        items(&value)
                            .iter()
                            .any(|item| item.contains(text.as_str()))
                    })
            }
            Query::Where { pointer, value } => self
                .at(pointer)
                .is_some_and(|found| WhereValue::candidates(value).iter().any(|c| c.is(&found))),
            Query::Package { name } => PACKAGE_PLUGINS.iter().any(|plugin| {
                PluginName::new(plugin).is_ok_and(|plugin| self.plugins().contains(&plugin))
                    && self
                        .value(plugin)
                        .is_some_and(|value| packages(plugin, &value).contains(name.as_str()))
            }),
        }
    }

    fn value(&self, key: &str) -> Option<Value> {
        self.0.get(key).and_then(|raw| parse(raw))
    }

    /// What `pointer` points at. Parses only the top-level member on the way.
    fn at(&self, pointer: &Pointer) -> Option<Value> {
        let (first, rest) = pointer.segments().split_first()?;
        let mut value = self.value(first)?;
        for segment in rest {
            value = match &mut value {
                Value::Object(members) => members.get_mut(segment)?.take(),
                Value::Array(items) => items.get_mut(segment.parse::<usize>().ok()?)?.take(),
                _ => return None,
            };
        }
        Some(value)
    }
}

fn parse<'a, T: Deserialize<'a>>(raw: &'a RawValue) -> Option<T> {
    serde_json::from_str(raw.get()).ok()
}

/// The items of a value: the lines of its strings, its object keys, and its other scalars as JavaScript writes them;
/// each cut to [`ITEM_UNITS_MAX`]. Empty lines are not items.
pub(crate) fn items(value: &Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![value];
    while let Some(value) = open.pop() {
        match value {
            Value::Null => _ = found.insert("null".to_owned()),
            Value::Bool(truth) => _ = found.insert(truth.to_string()),
            Value::Number(number) => _ = found.insert(number_text(number.as_f64().unwrap_or(0.0))),
            Value::String(text) => found.extend(lines(text).map(cut)),
            Value::Array(members) => open.extend(members),
            Value::Object(members) => {
                found.extend(members.keys().flat_map(|key| lines(key)).map(cut));
                open.extend(members.values());
            }
        }
    }
    found
}

/// The names of the packages that a package plugin's value lists.
pub(crate) fn packages(plugin: &str, value: &Value) -> BTreeSet<String> {
    let name_of: fn(&str) -> Option<&str> = match plugin {
        "rpms" => rpm_name,
        "dpkg" => dpkg_name,
        "pip" | "gem" => word_name,
        "npm" => {
            let listed = value.get("dependencies").and_then(Value::as_object);
            return listed.map_or_else(BTreeSet::new, |listed| listed.keys().cloned().collect());
        }
        _ => return BTreeSet::new(),
    };
    let texts: Vec<&str> = match value {
        Value::String(text) => vec![text],
        Value::Array(members) => members.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let names = texts.into_iter().flat_map(lines).filter_map(name_of);
    names.map(str::to_owned).collect()
}

/// `name-version-release.arch`; a text with one dash is taken for `name-version`.
fn rpm_name(line: &str) -> Option<&str> {
    let name = match line.rsplit_once('-') {
        None => line,
        Some((rest, _)) => rest.rsplit_once('-').map_or(rest, |(name, _)| name),
    };
    (!name.is_empty()).then_some(name)
}

/// `name:arch version`.
fn dpkg_name(line: &str) -> Option<&str> {
    line.split([' ', '\t', ':'])
        .next()
        .filter(|name| !name.is_empty())
}

/// `name==version` (pip) and `name (versions)` (gem): the leading characters that a package index allows in a name.
fn word_name(line: &str) -> Option<&str> {
    let is_inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let starts = line.starts_with(|c: char| c.is_ascii_alphanumeric());
    starts.then(|| &line[..line.find(|c| !is_inner(c)).unwrap_or(line.len())])
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.split('\n')
        .map(|line| line.strip_suffix('\r').unwrap_or(line))
        .filter(|line| !line.is_empty())
}

fn cut(line: &str) -> String {
    let mut units = 0;
    let fits = |c: &char| {
        units += c.len_utf16();
        units <= ITEM_UNITS_MAX
    };
    line.chars().take_while(fits).collect()
}

/// A number as JavaScript's `String(number)` writes it.
fn number_text(number: f64) -> String {
    if number == 0.0 {
        return "0".to_owned();
    }
    let sign = if number < 0.0 { "-" } else { "" };
    // Rust and JavaScript agree on the digits (the shortest that read back), but not on when to write an exponent.
    let scientific = format!("{:e}", number.abs());
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let digits = mantissa.replace('.', "");
    let point = exponent.parse::<i32>().unwrap_or(0) + 1;
    let count = i32::try_from(digits.len()).unwrap_or(i32::MAX);
    let zeros = |n: i32| "0".repeat(usize::try_from(n).unwrap_or(0));
    if count <= point && point <= JS_WHOLE_DIGITS_MAX {
        return format!("{sign}{digits}{}", zeros(point - count));
    }
    if 0 < point && point <= JS_WHOLE_DIGITS_MAX {
        let (whole, fraction) = digits.split_at(usize::try_from(point).unwrap_or(0));
        return format!("{sign}{whole}.{fraction}");
    }
    if -JS_FRACTION_ZEROS_MAX < point && point <= 0 {
        return format!("{sign}0.{}{digits}", zeros(-point));
    }
    let exponent_sign = if point > 0 { "+" } else { "-" };
    format!("{sign}{mantissa}e{exponent_sign}{}", (point - 1).abs())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn finds(document: &Value, query: &Query) -> bool {
        Facts::read(&document.to_string()).is_some_and(|facts| facts.matches(query))
    }

    /// Goal: numbers are spelled as JavaScript spells them; the right side is what node prints.
    #[test]
    fn numbers_are_spelled_like_in_javascript() {
        let cases = [
            (0.0, "0"),
            (-0.0, "0"),
            (1000.0, "1000"),
            (-1.5, "-1.5"),
            (123_456.789, "123456.789"),
            (1e21, "1e+21"),
            (1e20, "100000000000000000000"),
            (1.5e300, "1.5e+300"),
            (0.000_001, "0.000001"),
            (0.000_000_15, "1.5e-7"),
            (9_007_199_254_740_993.0, "9007199254740992"),
        ];
        for (number, expected) in cases {
            assert_eq!(number_text(number), expected);
        }
    }

    /// Goal: items are lines, keys and other scalars, cut where JavaScript would cut.
    #[test]
    fn items_are_lines_keys_and_scalars() {
        let value = json!({"a key": ["one\r\ntwo\n\n", 5, true, null], "n": 1.0});
        let found: Vec<_> = items(&value).into_iter().collect();
        assert_eq!(
            found,
            ["1", "5", "a key", "n", "null", "one", "true", "two"]
        );
        let long = json!("x".repeat(ITEM_UNITS_MAX - 1) + "😀");
        assert_eq!(items(&long).first().unwrap().len(), ITEM_UNITS_MAX - 1);
    }

    /// Goal: each package manager's spelling yields the bare name.
    #[test]
    fn package_names_are_bare() {
        let cases = [
            ("rpms", json!(["bash-5.1.8-6.el9.x86_64"]), "bash"),
            (
                "rpms",
                json!(["java-17-openjdk-17.0.1-2.el9.x86_64"]),
                "java-17-openjdk",
            ),
            ("rpms", json!(["bash-5.1.8"]), "bash"),
            ("dpkg", json!(["libssl3:amd64 3.0.11"]), "libssl3"),
            ("dpkg", json!("g++\t12.2"), "g++"),
            ("pip", json!(["zope.interface==5.0"]), "zope.interface"),
            ("gem", json!(["rake (13.0.6, 12.3)"]), "rake"),
            (
                "npm",
                json!({"dependencies": {"@types/node": {}}}),
                "@types/node",
            ),
        ];
        for (plugin, value, name) in cases {
            assert_eq!(
                packages(plugin, &value),
                BTreeSet::from([name.to_owned()]),
                "{value}"
            );
        }
        assert!(packages("pip", &json!(["-e git+x", "# note"])).is_empty());
        assert!(packages("facter", &json!(["bash-5-1"])).is_empty());
    }

    /// Goal: only node documents are found, and only values that the bookkeeping names are plugins.
    #[test]
    fn only_plugins_of_node_documents_are_found() {
        let has = |plugin: &str| Query::Has {
            plugin: plugin.parse().unwrap(),
        };
        let own = json!({"doc_type": NODE_DOC_TYPE, "rpms": [], "note": 1,
            "vogeler": {"plugins": {"rpms": {}, "gone": {}}}});
        assert!(finds(&own, &has("rpms")));
        assert!(!finds(&own, &has("note")) && !finds(&own, &has("gone")));
        let of_2010 =
            json!({"doc_type": NODE_DOC_TYPE, "_id": "a", "system_name": "a", "rpms": []});
        assert!(finds(&of_2010, &has("rpms")));
        assert!(!finds(&json!({"rpms": []}), &has("rpms")));
        assert!(Facts::read("[]").is_none() && Facts::read("{").is_none());
    }

    /// Goal: a pointer leads through objects and arrays; only a scalar of that spelling is found.
    #[test]
    fn pointers_lead_through_objects_and_arrays() {
        let document = json!({"doc_type": NODE_DOC_TYPE, "os": {"a.b": [{"n": 1}]}});
        let at = |pointer: &str, value: &str| Query::Where {
            pointer: Pointer::parse(pointer).unwrap(),
            value: value.to_owned(),
        };
        assert!(finds(&document, &at("/os/a.b/0/n", "1")));
        assert!(!finds(&document, &at("/os/a.b/1/n", "1")));
        assert!(!finds(&document, &at("", "1")) && !finds(&document, &at("/os", "1")));
    }

    proptest! {
        /// The spelling of any number reads back as the same number.
        #[test]
        fn number_texts_read_back(number in proptest::num::f64::NORMAL) {
            prop_assert_eq!(number_text(number).parse::<f64>().unwrap().to_bits(), number.to_bits());
        }
    }
}
