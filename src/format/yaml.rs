//! `yaml`: one YAML document, streamed into JSON text under a budget.
//!
//! Events in, text out, no tree. Before memory grows, an alias bomb meets the bound on the text or on the replayed events,
//! and deep nesting the bound on depth. Scalars follow YAML 1.2's core schema: `yes` and `0644` stay text, as every emitter
//! quotes them anyway. Mapping keys become strings as they are spelled. NaN and infinity, which JSON lacks, become the
//! strings `.nan`, `.inf`, `-.inf`. Integers up to 64 bits are exact; longer ones become doubles.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_saphyr::options::{DuplicateKeyPolicy, NonFiniteFloatPolicy};

use super::FormatError;
use super::bounded::Bounded;
use crate::wire::DEPTH_MAX;

/// Most events of the parser, at some 2 to 5 µs each: twice those of 8 MB of real facts, which have a node every 20 bytes.
const EVENTS_MAX: usize = 1_000_000;
/// Most nesting of flow collections in the scanner's look-ahead. It is above the 1,024 characters of look-ahead, so that
/// [`DEPTH_MAX`] is met first.
const FLOW_DEPTH_MAX: usize = 2_048;
/// Most events that aliases may add. Old tools share a handful of strings; in a bomb, aliases share other aliases.
const REPLAYED_EVENTS_MAX: usize = 250_000;

/// Reads one document; an empty one is `null`.
pub(super) fn value_of(text: &str, bytes_max: usize) -> Result<Box<RawValue>, FormatError> {
    let mut json = Json {
        text: Bounded::new(bytes_max),
        depth: 0,
        is_too_deep: false,
    };
    let read = serde_saphyr::with_deserializer_from_str_with_options(text, options(), |yaml| {
        Node(&mut json).deserialize(yaml)
    });
    if json.is_too_deep {
        return Err(FormatError::TooDeep { levels: None });
    }
    if json.text.is_full() {
        return Err(json.text.too_large());
    }
    read.map_err(|error| match error {
        serde_saphyr::Error::MultipleDocuments { location, .. } => FormatError::SeveralDocuments {
            line: location.line(),
        },
        serde_saphyr::Error::Budget {
            breach: serde_saphyr::budget::BudgetBreach::Depth { .. },
            ..
        } => FormatError::TooDeep { levels: None },
        error => Box::new(error).into(),
    })?;
    json.text.finish()
}

fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: EVENTS_MAX,
            max_nodes: EVENTS_MAX,
            // One more than we take, so that our own error names the bound.
            max_depth: DEPTH_MAX + 1,
            // The scanner looks ahead for a key's end; within that look-ahead its own bound must not stop it.
            flow_nesting_limit: FLOW_DEPTH_MAX,
            enforce_alias_anchor_ratio: false,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: REPLAYED_EVENTS_MAX,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        with_snippet: false,
    }
}

/// The JSON text so far, and which of our own bounds was met: serde's error type cannot say which.
#[derive(Debug)]
struct Json {
    text: Bounded,
    depth: usize,
    is_too_deep: bool,
}

impl Json {
    fn push<E: serde::de::Error>(&mut self, token: &str) -> Result<(), E> {
        self.text.push(token).map_err(E::custom)
    }

    fn push_value<E: serde::de::Error>(&mut self, value: impl serde::Serialize) -> Result<(), E> {
        self.text.push_value(&value).map_err(E::custom)
    }

    fn open<E: serde::de::Error>(&mut self, bracket: &str) -> Result<(), E> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            self.is_too_deep = true;
            return Err(E::custom("nested too deep"));
        }
        self.push(bracket)
    }

    fn close<E: serde::de::Error>(&mut self, bracket: &str) -> Result<(), E> {
        self.depth -= 1;
        self.push(bracket)
    }
}

/// Writes one node of whatever kind.
struct Node<'j>(&'j mut Json);

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.0.push("null")
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<(), E> {
        self.0.push("null")
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        self.0.push_value(value)
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.0.push_value(value)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.0.push_value(value)
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        self.0.push_value(value)
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<(), E> {
        self.0.push_value(value)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        self.0.open("[")?;
        let mut is_first = true;
        while items
            .next_element_seed(Item {
                json: self.0,
                is_first,
            })?
            .is_some()
        {
            is_first = false;
        }
        self.0.close("]")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        self.0.open("{")?;
        let mut is_first = true;
        while let Some(key) = members.next_key::<String>()? {
            if !is_first {
                self.0.push::<A::Error>(",")?;
            }
            is_first = false;
            self.0.push_value::<A::Error>(key)?;
            self.0.push::<A::Error>(":")?;
            members.next_value_seed(Node(self.0))?;
        }
        self.0.close("}")
    }
}

/// An item of a sequence. The comma before it is written only once the item is known to exist.
struct Item<'j> {
    json: &'j mut Json,
    is_first: bool,
}

impl<'de> DeserializeSeed<'de> for Item<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if !self.is_first {
            self.json.push::<D::Error>(",")?;
        }
        deserializer.deserialize_any(Node(self.json))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{error, value};
    use super::*;
    use crate::wire::Format;

    fn yaml(printed: &str) -> String {
        value(Format::Yaml, printed)
    }

    /// Goal: scalars become what their writer meant: versions, modes, `yes` and `no` stay text.
    #[test]
    fn scalars_follow_the_core_schema() {
        let printed = "---\na: 4.3.0\nb: 0644\nc: no\nd: true\ne: ~\nf: 1.5\ng: '1'\nh: -7\ni: 18446744073709551615\nj: 1_000\nk: 0x1F\n";
        assert_eq!(
            yaml(printed),
            r#"{"a":"4.3.0","b":"0644","c":"no","d":true,"e":null,"f":1.5,"g":"1","h":-7,"i":18446744073709551615,"j":"1_000","k":31}"#
        );
        assert_eq!(
            yaml("- a\n- [b, {c: d}]\n- |\n  x\n  y\n"),
            r#"["a",["b",{"c":"d"}],"x\ny\n"]"#
        );
        assert_eq!(yaml("a: [] # none\nb: {}\n"), r#"{"a":[],"b":{}}"#);
    }

    /// Goal: scalar keys become strings as spelled; a collection as a key is an error.
    #[test]
    fn keys_become_strings() {
        assert_eq!(
            yaml("80: http\ntrue: x\n1.50: y\n"),
            r#"{"80":"http","true":"x","1.50":"y"}"#
        );
        let error = error(Format::Yaml, "? [a, b]\n: c\n");
        assert!(matches!(error, FormatError::Yaml(_)), "{error}");
    }

    /// Goal: numbers that JSON lacks become their YAML spelling instead of costing the whole value.
    #[test]
    fn nan_and_infinity_become_strings() {
        assert_eq!(yaml("[.nan, .inf, -.inf]"), r#"[".nan",".inf","-.inf"]"#);
    }

    /// Goal: shared nodes, as Ruby's emitter writes them, are expanded.
    #[test]
    fn aliases_are_expanded() {
        assert_eq!(
            yaml("a: &1 {x: 1}\nb: *1\n"),
            r#"{"a":{"x":1},"b":{"x":1}}"#
        );
    }

    /// Goal: several documents in one stream are an error of their own; markers around one are not.
    #[test]
    fn several_documents_are_an_error() {
        let error = error(Format::Yaml, "a: 1\n---\nb: 2\n");
        assert!(
            matches!(error, FormatError::SeveralDocuments { line: 2 | 3 }),
            "{error}"
        );
        assert_eq!(yaml("---\na: 1\n...\n"), r#"{"a":1}"#);
    }

    /// Goal: errors say line and column; repeated keys, unknown aliases and broken syntax are errors.
    #[test]
    fn errors_name_the_place() {
        for (printed, line) in [
            ("a: 1\nb: [1, 2\n", "line"),
            ("a: 1\na: 2\n", "line 2"),
            ("a: *nowhere\n", "line 1"),
            ("a: 1\n\tb: 2\n", "line"),
        ] {
            let error = error(Format::Yaml, printed);
            assert!(matches!(error, FormatError::Yaml(_)), "{error}");
            assert!(error.to_string().contains(line), "{printed}: {error}");
            assert!(error.to_string().contains("column"), "{printed}: {error}");
        }
    }

    /// Goal: a "billion laughs" bomb is an error within bounded time and memory, by events or by bytes.
    #[test]
    fn an_alias_bomb_is_an_error() {
        let level = |n: usize| {
            format!(
                "l{n}: &l{n} [{}]\n",
                vec![format!("*l{}", n - 1); 10].join(",")
            )
        };
        let bomb: String = std::iter::once("l0: &l0 lol\n".to_owned())
            .chain((1..10).map(level))
            .collect();
        let events = error(Format::Yaml, &bomb);
        assert!(
            matches!(events, FormatError::Yaml(_) | FormatError::TooLarge { .. }),
            "{events}"
        );
        let fat = format!(
            "a: &a {}\nb: [{}]\n",
            "x".repeat(100_000),
            vec!["*a"; 1000].join(",")
        );
        assert!(matches!(
            error(Format::Yaml, &fat),
            FormatError::TooLarge { .. }
        ));
    }

    /// Goal: nesting is bounded in flow and in block form.
    #[test]
    fn nesting_is_bounded() {
        let nested = |depth: usize| format!("{}0{}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(yaml(&nested(DEPTH_MAX)), nested(DEPTH_MAX));
        assert!(matches!(
            error(Format::Yaml, &nested(DEPTH_MAX + 1)),
            FormatError::TooDeep { .. }
        ));
        assert!(matches!(
            error(Format::Yaml, &nested(100_000)),
            FormatError::TooDeep { .. }
        ));
        let block = "- ".repeat(50_000) + "x";
        assert!(matches!(
            error(Format::Yaml, &block),
            FormatError::TooDeep { .. }
        ));
    }
}
