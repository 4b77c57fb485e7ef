//! `json`: checks one JSON text and drops its white space, and nothing else.
//!
//! The text is never parsed into a tree: numbers keep every digit, repeated keys stay, memory use is that of the text.

use serde_json::value::RawValue;

use super::FormatError;
use crate::wire::{DEPTH_MAX, levels};

/// Checks that `text` is one JSON text that nests at most [`DEPTH_MAX`] levels, and compacts it.
pub(super) fn value_of(text: &str, bytes_max: usize) -> Result<Box<RawValue>, FormatError> {
    let levels = levels(text.as_bytes());
    if levels > DEPTH_MAX {
        return Err(FormatError::TooDeep {
            levels: Some(levels),
        });
    }
    let checked: &RawValue = serde_json::from_str(text)?;
    let compact = compact(checked.get());
    if compact.len() > bytes_max {
        return Err(FormatError::TooLarge { max: bytes_max });
    }
    Ok(RawValue::from_string(compact)?)
}

/// Drops white space between tokens. `text` is valid JSON, so a quote that is not escaped ends a string.
fn compact(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut is_string = false;
    let mut is_escaped = false;
    for character in text.chars() {
        if is_string {
            is_string = is_escaped || character != '"';
            is_escaped = !is_escaped && character == '\\';
        } else if matches!(character, ' ' | '\t' | '\n' | '\r') {
            continue;
        } else {
            is_string = character == '"';
        }
        out.push(character);
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::super::tests::{error, value};
    use super::*;
    use crate::hash::content_hash;
    use crate::wire::Format;

    /// Goal: digits, escapes and order survive; white space does not.
    #[test]
    fn a_value_is_kept_as_printed() {
        let printed = "{ \"b\" : 12345678901234567890.10,\n\t\"a\": [ 1e400, \"x \\\" \\\\\" ] }\n";
        assert_eq!(
            value(Format::Json, printed),
            r#"{"b":12345678901234567890.10,"a":[1e400,"x \" \\"]}"#
        );
    }

    /// Goal: what is not one JSON text is an error with line and column.
    #[test]
    fn errors_name_the_place() {
        for (printed, place) in [
            ("{\"a\":\n1,}", "line 2 column 3"),
            ("[1] [2]", "line 1 column 5"),
            ("[1", "line 1 column 2"),
            ("None", "line 1 column 1"),
        ] {
            let error = error(Format::Json, printed);
            assert!(matches!(error, FormatError::Json(_)));
            assert!(error.to_string().contains(place), "{printed}: {error}");
        }
    }

    /// Goal: nesting is bounded by what can be hashed, and a hundred thousand levels do not crash.
    #[test]
    fn nesting_is_bounded() {
        let nested = |depth: usize| format!("{}0{}", "[".repeat(depth), "]".repeat(depth));
        let deepest = RawValue::from_string(value(Format::Json, &nested(DEPTH_MAX))).unwrap();
        assert!(content_hash(&deepest, &[]).is_ok());
        for depth in [DEPTH_MAX + 1, 100_000] {
            let error = error(Format::Json, &nested(depth)).to_string();
            assert_eq!(
                error,
                format!("64 levels of nesting at most, this has {depth}")
            );
        }
    }

    fn tree() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "\\PC*".prop_map(Value::from),
            "[\\\\\" \n\t{}\\[\\]]{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::hash_map("\\PC{0,4}", inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// Pretty or compact, JSON comes out as the compact text of the same value.
        #[test]
        fn json_round_trips(tree in tree()) {
            let compact = tree.to_string();
            prop_assert_eq!(&value(Format::Json, &compact), &compact);
            prop_assert_eq!(&value(Format::Json, &serde_json::to_string_pretty(&tree).unwrap()), &compact);
        }
    }
}
