//! The content hash: equal JSON has one hash, whatever its key order, white space and spelling of numbers.
//!
//! JSON text in, 32 hexadecimal digits out (BLAKE3, first 128 bits: clients are not trusted not to collide).
//! The canonical form: objects sorted by key, the last of repeated keys, strings unescaped, numbers as sign,
//! digits and exponent, so that `1`, `1.0` and `1e0` are one number while integers keep every digit.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::wire::{ContentHash, DEPTH_MAX};

/// Most times that a value's text may be read; each level of nesting reads its text once more. To read 8 MB inside 64
/// levels would take seconds. Most bytes of real facts are 3 to 8 levels deep.
const READS_MAX: usize = 16;
/// Bytes that may be read in addition, so that a small value may nest as deep as [`DEPTH_MAX`].
const READS_FREE_BYTES: usize = 1024 * 1024;
const HASH_HEX_DIGITS: usize = 32;

/// Why a value has no hash.
#[derive(Debug, thiserror::Error)]
pub enum HashError {
    /// Nested deeper than [`DEPTH_MAX`].
    #[error("nested deeper than {DEPTH_MAX} levels")]
    TooDeep,
    /// Both so large and so deeply nested that reading it level by level takes too long.
    #[error("too much of it is nested too deep: it would be read more than {READS_MAX} times")]
    TooLong,
    /// A string or key in it is not Unicode (a lone surrogate escape).
    #[error("not JSON text: {0}")]
    NotJson(#[from] serde_json::Error),
}

/// A JSON pointer (RFC 6901), parsed once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pointer(Vec<String>);

/// A text that is no JSON pointer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a JSON pointer: it must be empty or start with '/', with '~' only as \"~0\" or \"~1\""
)]
pub struct PointerError(String);

impl Pointer {
    /// Parses `text`; the empty text points at the whole value.
    pub fn parse(text: &str) -> Result<Self, PointerError> {
        let error = || PointerError(text.to_owned());
        if text.is_empty() {
            return Ok(Self(Vec::new()));
        }
        let path = text.strip_prefix('/').ok_or_else(error)?;
        let is_escaped = |segment: &str| {
            segment
                .split('~')
                .skip(1)
                .all(|rest| rest.starts_with('0') || rest.starts_with('1'))
        };
        path.split('/')
            .map(|segment| {
                is_escaped(segment)
                    .then(|| segment.replace("~1", "/").replace("~0", "~"))
                    .ok_or_else(error)
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// The keys, the outermost first.
    pub fn segments(&self) -> &[String] {
        &self.0
    }
}

/// Hashes `value` without the parts that `volatile` points at.
pub fn content_hash(value: &RawValue, volatile: &[Pointer]) -> Result<ContentHash, HashError> {
    let mut hasher = blake3::Hasher::new();
    let paths: Vec<&[String]> = volatile.iter().map(Pointer::segments).collect();
    let mut left = value
        .get()
        .len()
        .saturating_mul(READS_MAX)
        .saturating_add(READS_FREE_BYTES);
    feed(&mut hasher, &mut left, value, &paths, 0)?;
    let mut hex = hasher.finalize().to_hex().to_string();
    hex.truncate(HASH_HEX_DIGITS);
    Ok(ContentHash(hex.into()))
}

/// Feeds one value. `volatile` holds the rest of each pointer that leads here, `left` the bytes that may still be read.
fn feed(
    hasher: &mut blake3::Hasher,
    left: &mut usize,
    value: &RawValue,
    volatile: &[&[String]],
    depth: usize,
) -> Result<(), HashError> {
    if depth > DEPTH_MAX {
        return Err(HashError::TooDeep);
    }
    let text = value.get();
    *left = left.checked_sub(text.len()).ok_or(HashError::TooLong)?;
    match text.as_bytes().first() {
        Some(b'{') => feed_object(hasher, left, text, volatile, depth),
        Some(b'[') => feed_array(hasher, left, text, volatile, depth),
        Some(b'"') => feed_string(hasher, b"s", &Text::parse(text)?),
        Some(b'-' | b'0'..=b'9') => {
            let number = canonical_number(text);
            feed_string(hasher, b"n", &number)
        }
        _ => feed_string(hasher, b"w", text),
    }
}

fn feed_object(
    hasher: &mut blake3::Hasher,
    left: &mut usize,
    text: &str,
    volatile: &[&[String]],
    depth: usize,
) -> Result<(), HashError> {
    let members: BTreeMap<Text<'_>, &RawValue> = serde_json::from_str(text)?;
    hasher.update(b"{");
    for (key, member) in members {
        if let Some(rest) = below(volatile, &key.0) {
            feed_string(hasher, b"k", &key.0)?;
            feed(hasher, left, member, &rest, depth + 1)?;
        }
    }
    hasher.update(b"}");
    Ok(())
}

fn feed_array(
    hasher: &mut blake3::Hasher,
    left: &mut usize,
    text: &str,
    volatile: &[&[String]],
    depth: usize,
) -> Result<(), HashError> {
    let items: Vec<&RawValue> = serde_json::from_str(text)?;
    hasher.update(b"[");
    for (index, item) in items.into_iter().enumerate() {
        let rest = if volatile.is_empty() {
            Some(Vec::new())
        } else {
            below(volatile, &index.to_string())
        };
        if let Some(rest) = rest {
            feed(hasher, left, item, &rest, depth + 1)?;
        }
    }
    hasher.update(b"]");
    Ok(())
}

/// The rest of the pointers that lead below `key`; none if one of them ends there: then the member is volatile.
fn below<'a>(volatile: &[&'a [String]], key: &str) -> Option<Vec<&'a [String]>> {
    let mut rest = Vec::new();
    for path in volatile {
        match path.split_first() {
            Some((first, [])) if first == key => return None,
            Some((first, tail)) if first == key => rest.push(tail),
            _ => {}
        }
    }
    Some(rest)
}

/// A tag and a length before the bytes keep neighbours apart: `["ab"]` is not `["a","b"]`.
#[allow(clippy::unnecessary_wraps, reason = "the arms of `feed` are alike")]
fn feed_string(hasher: &mut blake3::Hasher, tag: &[u8], text: &str) -> Result<(), HashError> {
    hasher.update(tag);
    hasher.update(&(text.len() as u64).to_le_bytes());
    hasher.update(text.as_bytes());
    Ok(())
}

/// A JSON string, borrowed if it has no escapes.
#[derive(PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'a> Text<'a> {
    fn parse(text: &'a str) -> Result<Cow<'a, str>, serde_json::Error> {
        serde_json::from_str::<Self>(text).map(|text| text.0)
    }
}

/// Sign, digits without outer zeros, and exponent: `-120` is `-12e1`, `1.50` is `15e-1`, every zero is `0`.
fn canonical_number(text: &str) -> Cow<'_, str> {
    let (sign, magnitude) = text
        .strip_prefix('-')
        .map_or(("", text), |rest| ("-", rest));
    let (mantissa, exponent) = magnitude.split_once(['e', 'E']).unwrap_or((magnitude, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    let significant = digits.trim_start_matches('0').trim_end_matches('0');
    if significant.is_empty() {
        return Cow::Borrowed("0");
    }
    let trailing = digits.len() - digits.trim_end_matches('0').len();
    let shift = i64::try_from(trailing).unwrap_or(0) - i64::try_from(fraction.len()).unwrap_or(0);
    let exponent = exponent.parse::<i64>().ok();
    // No program means a number whose exponent exceeds an i64: such a text stays as it is spelled.
    exponent
        .and_then(|exponent| exponent.checked_add(shift))
        .map_or(Cow::Borrowed(text), |exponent| {
            Cow::Owned(format!("{sign}{significant}e{exponent}"))
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn hash(json: &str) -> ContentHash {
        hash_without(json, &[])
    }

    fn hash_without(json: &str, volatile: &[&str]) -> ContentHash {
        let volatile: Vec<_> = volatile
            .iter()
            .map(|text| Pointer::parse(text).unwrap())
            .collect();
        content_hash(&RawValue::from_string(json.to_owned()).unwrap(), &volatile).unwrap()
    }

    /// Goal: spelling does not matter: key order, white space, escapes, numbers, repeated keys.
    #[test]
    fn equal_content_has_one_hash() {
        let pairs = [
            (
                r#"{"a":1,"b":[true,null]}"#,
                r#"{ "b" : [ true, null ], "a" : 1 }"#,
            ),
            (r#"["é"]"#, r#"["\u00e9"]"#),
            ("[1,1000,0.5,0]", "[1.0,1e3,5E-1,-0.0]"),
            (r#"{"z":1,"z":3}"#, r#"{"z":3}"#),
        ];
        for (left, right) in pairs {
            assert_eq!(hash(left), hash(right), "{left} {right}");
        }
    }

    /// Goal: what differs for a reader differs for the hash, above all long integers and string edges.
    #[test]
    fn different_content_has_different_hashes() {
        let pairs = [
            (
                "123456789012345678901234567890",
                "123456789012345678901234567891",
            ),
            (r#"["ab"]"#, r#"["a","b"]"#),
            (r#"{"a":"b"}"#, r#"["a","b"]"#),
            ("1", r#""1""#),
            ("null", r#""null""#),
            ("[]", "{}"),
            ("1", "-1"),
            ("[[1],2]", "[[1,2]]"),
            ("1e9223372036854775807", "10e9223372036854775807"),
            ("0.1e-9223372036854775808", "0.01e-9223372036854775808"),
        ];
        for (left, right) in pairs {
            assert_ne!(hash(left), hash(right), "{left} {right}");
        }
    }

    /// Goal: volatile parts do not count, at any depth, in arrays too; their neighbours do.
    #[test]
    fn volatile_parts_do_not_count() {
        let volatile = ["/uptime", "/os/0/load", "/a~1b"];
        let one = r#"{"uptime":1,"os":[{"load":1,"n":1}],"a/b":1,"c":1}"#;
        let two = r#"{"uptime":2,"os":[{"load":2,"n":1}],"a/b":2,"c":1}"#;
        let three = r#"{"uptime":1,"os":[{"load":1,"n":1}],"a/b":1,"c":2}"#;
        assert_eq!(hash_without(one, &volatile), hash_without(two, &volatile));
        assert_ne!(hash_without(one, &volatile), hash_without(three, &volatile));
    }

    /// Goal: hostile nesting is an error, not a stack overflow.
    #[test]
    fn deep_nesting_is_an_error() {
        let deep = format!("{}{}", "[".repeat(2_000), "]".repeat(2_000));
        let raw = RawValue::from_string(deep);
        // serde_json may refuse it before we see it; both are errors, neither is a crash.
        if let Ok(raw) = raw {
            assert!(content_hash(&raw, &[]).is_err());
        }
    }

    /// Goal: a value that is both large and deep is an error before it is read 64 times; a value that is only one of
    /// them is not.
    #[test]
    fn large_and_deep_at_once_is_an_error() {
        let nested = |depth: usize, bytes: usize| {
            let inside = "x".repeat(bytes);
            let text = format!("{}\"{inside}\"{}", "[".repeat(depth), "]".repeat(depth));
            RawValue::from_string(text).unwrap()
        };
        for (depth, bytes) in [(8, 2_000_000), (64, 10_000), (15, 500_000)] {
            assert!(
                content_hash(&nested(depth, bytes), &[]).is_ok(),
                "{depth} {bytes}"
            );
        }
        let error = content_hash(&nested(64, 1_000_000), &[]).unwrap_err();
        assert!(matches!(error, HashError::TooLong), "{error}");
    }

    /// Goal: pointers follow RFC 6901, and any other text is refused with an error that shows it.
    #[test]
    fn pointers_follow_the_rfc() {
        assert_eq!(Pointer::parse("/a~1b/~0").unwrap().segments(), ["a/b", "~"]);
        assert!(
            Pointer::parse("uptime")
                .unwrap_err()
                .to_string()
                .contains("\"uptime\"")
        );
        assert!(Pointer::parse("/a~2").is_err());
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>()
                .prop_filter("finite", |f| f.is_finite())
                .prop_map(Value::from),
            "\\PC*".prop_map(Value::from),
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
        /// Two values have one hash exactly if they are equal, and pretty printing changes nothing.
        #[test]
        fn hash_follows_equality(left in json(), right in json()) {
            let compact = hash(&left.to_string());
            prop_assert_eq!(&compact, &hash(&serde_json::to_string_pretty(&left).unwrap()));
            let numbers_differ_only_in_kind = left.to_string().replace(".0", "") == right.to_string().replace(".0", "");
            if !numbers_differ_only_in_kind && left != right {
                prop_assert_ne!(compact, hash(&right.to_string()));
            }
        }
    }
}
