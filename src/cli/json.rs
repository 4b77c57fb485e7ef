//! JSON text for people: laid out in lines, and the part at a pointer. Works on the text itself, so that every digit stays
//! and nothing is built of it: both need no memory that grows with the value, however long or deep it is.
//!
//! Invariant: what is printed is the same JSON. What cannot go to a terminal is written as JSON writes it: `\u009b`.

use std::io::{self, Write};

use crate::terminal;

const INDENT: &str = "  ";
/// Levels that are indented; deeper ones stay on one line. 60,000 levels would be 7 GB of blanks.
const INDENTED_MAX: usize = 64;

/// Prints JSON with a line a member. Only white space outside of strings changes, and how characters are written that a
/// terminal would not show.
pub(super) fn print(json: &str, out: &mut impl Write) -> io::Result<()> {
    let mut depth = 0_usize;
    let mut characters = json.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '{' | '[' => {
                write_char(c, out)?;
                while characters.next_if(char::is_ascii_whitespace).is_some() {}
                if let Some(end) = characters.next_if(|c| matches!(c, '}' | ']')) {
                    write_char(end, out)?;
                } else {
                    depth = depth.saturating_add(1);
                    break_line(depth, out)?;
                }
            }
            '}' | ']' => {
                if depth <= INDENTED_MAX {
                    break_line(depth.saturating_sub(1), out)?;
                }
                depth = depth.saturating_sub(1);
                write_char(c, out)?;
            }
            ',' => {
                write_char(c, out)?;
                break_line(depth, out)?;
            }
            ':' => out.write_all(if depth > INDENTED_MAX { b":" } else { b": " })?,
            '"' => print_string(&mut characters, out)?,
            c if c.is_ascii_whitespace() => {}
            c => write_char(c, out)?,
        }
    }
    Ok(())
}

/// The rest of a string, from after its first quote.
fn print_string(
    characters: &mut impl Iterator<Item = char>,
    out: &mut impl Write,
) -> io::Result<()> {
    write_char('"', out)?;
    let mut is_escaped = false;
    for c in characters {
        if terminal::is_unsafe(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(out, "\\u{unit:04x}")?;
            }
        } else {
            write_char(c, out)?;
        }
        if c == '"' && !is_escaped {
            break;
        }
        is_escaped = c == '\\' && !is_escaped;
    }
    Ok(())
}

fn write_char(c: char, out: &mut impl Write) -> io::Result<()> {
    out.write_all(c.encode_utf8(&mut [0; 4]).as_bytes())
}

fn break_line(depth: usize, out: &mut impl Write) -> io::Result<()> {
    if depth > INDENTED_MAX {
        return Ok(());
    }
    out.write_all(b"\n")?;
    (0..depth).try_for_each(|_| out.write_all(INDENT.as_bytes()))
}

/// The part of a JSON value that `segments` lead to. Of members of one name the last counts, as in CouchDB.
pub(super) fn at<'a>(json: &'a str, segments: &[String]) -> Option<&'a str> {
    let mut part = json.trim();
    for segment in segments {
        let mut walk = Walk { rest: part };
        part = match part.as_bytes().first()? {
            b'[' => walk.item(segment.parse().ok()?),
            b'{' => walk.member(segment),
            _ => None,
        }?;
    }
    Some(part)
}

/// What of a value is not yet walked over. The text is JSON; of other text comes nothing, or a part of it.
struct Walk<'a> {
    rest: &'a str,
}

impl<'a> Walk<'a> {
    fn item(&mut self, index: usize) -> Option<&'a str> {
        self.skip(1);
        for _ in 0..index {
            self.value()?;
            self.comma()?;
        }
        self.value()
    }

    fn member(&mut self, name: &str) -> Option<&'a str> {
        self.skip(1);
        let mut found = None;
        while self.rest.starts_with('"') {
            let key = self.value()?;
            self.rest = self.rest.strip_prefix(':')?.trim_start();
            let value = self.value()?;
            if is_key(key, name) {
                found = Some(value);
            }
            if self.comma().is_none() {
                break;
            }
        }
        found
    }

    fn comma(&mut self) -> Option<()> {
        self.rest = self.rest.strip_prefix(',')?.trim_start();
        Some(())
    }

    fn skip(&mut self, bytes: usize) {
        self.rest = self.rest.get(bytes..).unwrap_or_default().trim_start();
    }

    /// Takes one value, and the white space behind it.
    fn value(&mut self) -> Option<&'a str> {
        let length = value_length(self.rest.as_bytes());
        let value = self.rest.get(..length).filter(|value| !value.is_empty())?;
        self.skip(length);
        Some(value)
    }
}

/// Bytes of the value that the text begins with.
fn value_length(text: &[u8]) -> usize {
    let mut depth = 0_usize;
    let mut in_string = false;
    let mut is_escaped = false;
    for (index, byte) in text.iter().enumerate() {
        if in_string {
            in_string = *byte != b'"' || is_escaped;
            is_escaped = *byte == b'\\' && !is_escaped;
            if !in_string && depth == 0 {
                return index + 1;
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth <= 1 => return if depth == 1 { index + 1 } else { index },
            b'}' | b']' => depth -= 1,
            b',' | b':' if depth == 0 => return index,
            byte if depth == 0 && byte.is_ascii_whitespace() => return index,
            _ => {}
        }
    }
    text.len()
}

/// Whether `key`, a string as JSON has it, is `name`.
fn is_key(key: &str, name: &str) -> bool {
    let bare = key.strip_prefix('"').and_then(|key| key.strip_suffix('"'));
    match bare {
        Some(bare) if !bare.contains('\\') => bare == name,
        _ => serde_json::from_str::<String>(key).is_ok_and(|key| key == name),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::hash::Pointer;

    fn printed(json: &str) -> String {
        let mut out = Vec::new();
        print(json, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    /// Goal: what is printed looks as people expect, and every digit is there.
    #[test]
    fn documents_are_indented_and_keep_their_digits() {
        let text =
            r#"{ "z":123456789012345678901234567890,"a":[ ],"s":"{,:\"\\","n":[1.10,{"x":{}}]}"#;
        let expected = "{\n  \"z\": 123456789012345678901234567890,\n  \"a\": [],\n  \"s\": \"{,:\\\"\\\\\",\n  \
            \"n\": [\n    1.10,\n    {\n      \"x\": {}\n    }\n  ]\n}";
        assert_eq!(printed(text), expected);
    }

    /// Goal: what a terminal would obey or hide is written as JSON writes it, in keys too, and means the same.
    #[test]
    fn nothing_reaches_the_terminal_as_it_is() {
        let value = json!({"a\u{9b}": "\u{1b}[2J\u{7f}\u{202e}\u{e0041}ü"});
        let text = printed(&value.to_string());
        let expected = "{\n  \"a\\u009b\": \"\\u001b[2J\\u007f\\u202e\\udb40\\udc41ü\"\n}";
        assert_eq!(text, expected);
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
    }

    /// Goal: a bomb of nested arrays is printed in a few bytes a level.
    #[test]
    fn depth_costs_nothing() {
        let bomb = "[".repeat(60_000) + &"]".repeat(60_000);
        let text = printed(&bomb);
        assert!(text.len() < bomb.len() + 20_000, "{}", text.len());
        assert_eq!(text.replace(char::is_whitespace, ""), bomb);
        let deep = r#"{"a":"#.repeat(60_000) + r#"[1,{"b":2}]"# + &"}".repeat(60_000);
        assert_eq!(printed(&deep).replace(char::is_whitespace, ""), deep);
        assert_eq!(
            at(&bomb, &vec!["0".to_owned(); 100]),
            bomb.get(100..119_900)
        );
    }

    /// Goal: a pointer leads to its part, and to nothing where there is none.
    #[test]
    fn pointers_lead_to_parts() {
        let json = r#" {"a":0,"a":{"b/c":[1 , {"d":2.0}, "x\"]"],"\u0065":[]}} "#;
        let part = |text: &str| at(json, Pointer::parse(text).unwrap().segments());
        assert_eq!(part("/a/b~1c/1/d"), Some("2.0"));
        assert_eq!(part("/a/b~1c/2"), Some(r#""x\"]""#));
        assert_eq!(part("/a/e"), Some("[]"));
        assert_eq!(part(""), Some(json.trim()));
        for nothing in ["/x", "/a/b~1c/3", "/a/b~1c/0/x", "/a/b~1c/-", "/a/e/0"] {
            assert_eq!(part(nothing), None, "{nothing}");
        }
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<i64>().prop_map(Value::from),
            any::<bool>().prop_map(Value::from),
            Just(Value::Null),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 30, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map(any::<String>(), inner, 0..5)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    /// Every pointer into a value, with what is there.
    fn parts(value: &Value, path: &[String], found: &mut Vec<(Vec<String>, Value)>) {
        found.push((path.to_vec(), value.clone()));
        let below = |segment: String| [path, &[segment]].concat();
        match value {
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    parts(item, &below(index.to_string()), found);
                }
            }
            Value::Object(members) => {
                for (key, member) in members {
                    parts(member, &below(key.clone()), found);
                }
            }
            _ => {}
        }
    }

    proptest! {
        /// Whatever the value, printing changes nothing of what it means, and nothing unsafe is printed.
        #[test]
        fn printing_keeps_the_meaning(value in values(), is_spaced in any::<bool>()) {
            let json = if is_spaced { format!("{value:#}") } else { value.to_string() };
            let text = printed(&json);
            prop_assert!(!text.contains(|c| terminal::is_unsafe(c) && c != '\n'));
            prop_assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
        }

        /// Whatever the value, every pointer into it leads to what is there.
        #[test]
        fn every_pointer_leads_somewhere(value in values(), is_spaced in any::<bool>()) {
            let json = if is_spaced { format!("{value:#}") } else { value.to_string() };
            let mut expected = Vec::new();
            parts(&value, &[], &mut expected);
            for (segments, part) in expected {
                let found = at(&json, &segments);
                prop_assert!(found.is_some(), "{:?} in {}", segments, json);
                prop_assert_eq!(serde_json::from_str::<Value>(found.unwrap_or_default()).unwrap(), part);
            }
        }

        /// Whatever the text, walking through it comes to an end, without a panic.
        #[test]
        fn no_text_is_too_odd(text in "[\\[\\]{}\",:\\\\a0 ü]{0,40}", path in prop::collection::vec("[0a]", 0..4)) {
            at(&text, &path);
            printed(&text);
        }
    }
}
