//! `hash`: equal content has one hash however it is spelled, and other content has another.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use super::raw;
use crate::hash::{Pointer, content_hash};
use crate::wire::{ContentHash, DEPTH_MAX};

/// JSON text keeps its hash when respelled and gets another when changed. Volatile members do not count.
pub fn hash(data: &[u8]) {
    let Some(value) = std::str::from_utf8(data).ok().and_then(raw) else {
        return;
    };
    let Ok(hash) = content_hash(&value, &[]) else {
        return;
    };
    assert_eq!(
        of(&respelled(&value)),
        hash,
        "another spelling has another hash"
    );
    let wrapped = format!("[{}]", value.get());
    if super::depth(&wrapped) <= DEPTH_MAX {
        assert_ne!(of(&wrapped), hash, "a list of one item is the item");
    }
    number(value.get(), &hash);
    volatile(&value);
}

fn of(json: &str) -> ContentHash {
    content_hash(&raw(json).expect("it is JSON"), &[]).expect("it is no deeper than before")
}

/// The same value with keys in reverse order, everything escaped, numbers with other exponents, and white space.
fn respelled(value: &RawValue) -> String {
    let text = value.get();
    match text.as_bytes().first() {
        Some(b'{') => {
            let members: BTreeMap<String, &RawValue> = serde_json::from_str(text).expect("object");
            let members = members.iter().rev();
            let members =
                members.map(|(key, member)| format!("{} :\t{}", escaped(key), respelled(member)));
            format!("{{ {} }}", members.collect::<Vec<_>>().join(" ,\n"))
        }
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(text).expect("array");
            let items = items.into_iter().map(respelled);
            format!("[ {} ]", items.collect::<Vec<_>>().join(" , "))
        }
        Some(b'"') => escaped(&serde_json::from_str::<String>(text).expect("string")),
        Some(b'-' | b'0'..=b'9') => respelled_number(text),
        _ => text.to_owned(),
    }
}

fn escaped(text: &str) -> String {
    let units = text.encode_utf16().map(|unit| format!("\\u{unit:04x}"));
    format!("\"{}\"", units.collect::<String>())
}

/// Longest exponent that is respelled, in characters: far below the range of an `i64`.
const EXPONENT_DIGITS_MAX: usize = 15;

fn respelled_number(text: &str) -> String {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    if exponent.len() > EXPONENT_DIGITS_MAX {
        return text.to_owned();
    }
    let exponent: i64 = exponent.parse().expect("JSON's exponent is an integer");
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    format!("{whole}.{fraction}00E{exponent:+}")
}

/// Unless a number is zero, ten times it and its negative have other hashes.
fn number(text: &str, hash: &ContentHash) {
    let text = text.trim();
    let is_number = text.starts_with(|c: char| c.is_ascii_digit() || c == '-');
    let mantissa = text.split(['e', 'E']).next().unwrap_or_default();
    let is_zero = !mantissa.contains(|c: char| ('1'..='9').contains(&c));
    if !is_number || is_zero {
        return;
    }
    let negated = text
        .strip_prefix('-')
        .map_or_else(|| format!("-{text}"), str::to_owned);
    assert_ne!(of(&negated), *hash, "a number is its negative");
    let tenfold = match mantissa.split_once('.') {
        // 1.25 -> 12.5, on the text alone.
        Some((whole, fraction)) => {
            let (first, rest) = fraction.split_at(1);
            let rest = if rest.is_empty() { "0" } else { rest };
            let digits = format!("{whole}{first}");
            let sign = if digits.starts_with('-') { "-" } else { "" };
            let digits = digits.trim_start_matches('-').trim_start_matches('0');
            let digits = if digits.is_empty() { "0" } else { digits };
            format!("{sign}{digits}.{rest}{}", &text[mantissa.len()..])
        }
        None => format!("{mantissa}0{}", &text[mantissa.len()..]),
    };
    assert_ne!(of(&tenfold), *hash, "{text} and {tenfold}");
}

/// A volatile member does not count: the hash is that of the value without it.
fn volatile(value: &RawValue) {
    let Ok(members) = serde_json::from_str::<BTreeMap<String, &RawValue>>(value.get()) else {
        return;
    };
    let Some(key) = members.keys().next() else {
        return;
    };
    let pointer = format!("/{}", key.replace('~', "~0").replace('/', "~1"));
    let pointer = Pointer::parse(&pointer).expect("a pointer");
    let rest: BTreeMap<_, _> = members.iter().skip(1).collect();
    let rest = serde_json::to_string(&rest).expect("a map is JSON");
    let hash = content_hash(value, std::slice::from_ref(&pointer)).expect("it had a hash");
    assert_eq!(hash, of(&rest));
}
