//! How deep a JSON text nests, found without parsing it. Pure.
//!
//! Bytes in, a number of levels out, in one pass and without recursion, so it is safe to count before anything else reads
//! the text. Invariant: for valid JSON it is the depth of the tree; for any other bytes it is some number, never a crash.

/// Most levels that a value may nest: arrays and objects inside one another. Real facts nest 6 to 10 levels. Programs that
/// read our values break far above this (SQLite at 1,000, recursive readers each at its own depth), and the content hash
/// reads a level at a time.
pub const DEPTH_MAX: usize = 64;

/// Levels of arrays and objects in `text`; a number, a string or `null` has none.
pub fn levels(text: &[u8]) -> usize {
    let (mut open, mut deepest) = (0_usize, 0_usize);
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'[' | b'{' => {
                open += 1;
                deepest = deepest.max(open);
            }
            b']' | b'}' => open = open.saturating_sub(1),
            b'"' => skip_string(&mut bytes),
            _ => {}
        }
    }
    deepest
}

/// Advances past the quote that ends the string.
fn skip_string(bytes: &mut std::slice::Iter<'_, u8>) {
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => return,
            // An escaped character, such as a quote, does not end the string.
            b'\\' => _ = bytes.next(),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    /// Goal: only brackets outside of strings count, escaped quotes do not end a string, and depth is not length.
    #[test]
    fn only_brackets_outside_of_strings_count() {
        let cases = [
            ("7", 0),
            (r#""[[[""#, 0),
            ("[]", 1),
            ("[[],[],{}]", 2),
            (r#"{"[\"[":["\\",[1]]}"#, 3),
            (r#"["\\\"[[",{"a":"]]"}]"#, 2),
        ];
        for (text, expected) in cases {
            assert_eq!(levels(text.as_bytes()), expected, "{text}");
        }
        assert_eq!(levels(&b"[".repeat(1_000_000)), 1_000_000);
        assert_eq!(levels(b"\"\\"), 0, "cut off inside an escape");
    }

    fn depth(value: &Value) -> usize {
        match value {
            Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
            Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
            _ => 0,
        }
    }

    fn tree() -> impl Strategy<Value = Value> {
        let leaf = "[\\\\\"\\[\\]{}a\u{e9}]{0,6}".prop_map(Value::from);
        leaf.prop_recursive(6, 40, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map("[\\\\\"\\[\\]a]{0,3}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// For valid JSON, compact or pretty, it is the depth of the tree; for any bytes it is some number.
        #[test]
        fn it_is_the_depth_of_the_tree(tree in tree(), bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            prop_assert_eq!(levels(tree.to_string().as_bytes()), depth(&tree));
            prop_assert_eq!(levels(serde_json::to_string_pretty(&tree).unwrap().as_bytes()), depth(&tree));
            prop_assert!(levels(&bytes) <= bytes.len());
        }
    }
}
