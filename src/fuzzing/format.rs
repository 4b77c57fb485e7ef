//! `format_json`, `format_yaml` and `format_text`: what a plugin printed, as a JSON value.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{assert_text, depth, raw};
use crate::format::{FormatError, VALUE_BYTES_MAX, value_of};
use crate::hash::{HashError, content_hash};
use crate::wire::{DEPTH_MAX, Format};

/// Checks what every format promises. Returns the value's text, if there is a value.
fn check(format: Format, output: &[u8]) -> Option<String> {
    let value = match value_of(format, output) {
        Ok(value) => value,
        Err(error) => {
            assert_text(&error);
            return None;
        }
    };
    let json = value.get();
    assert!(json.len() <= VALUE_BYTES_MAX);
    assert!(depth(json) <= DEPTH_MAX);
    let again = value_of(Format::Json, json.as_bytes()).expect("a value is JSON");
    assert_eq!(json, again.get(), "a value is compact");
    match content_hash(&value, &[]) {
        Ok(_) => {}
        // A lone surrogate escape: only JSON can print one.
        Err(HashError::NotJson(_)) => assert!(json.contains("\\u") && is_json(format)),
        Err(HashError::TooDeep) => panic!("deeper than the hash takes"),
        // Large and deep at once: at least 64 levels of 16 KiB.
        Err(HashError::TooLong) => assert!(json.len() > 16 * 1024),
    }
    Some(json.to_owned())
}

fn is_json(format: Format) -> bool {
    matches!(format, Format::Json | Format::Pylist | Format::Pydict)
}

fn read<T: DeserializeOwned>(json: &str) -> T {
    serde_json::from_str(json).expect("the format's shape")
}

/// JSON in any of its three names: the same value, without white space.
pub fn format_json(data: &[u8]) {
    let json = check(Format::Json, data);
    for other in [Format::Pylist, Format::Pydict] {
        assert_eq!(json, check(other, data));
    }
    let (Some(json), Ok(printed)) = (json, serde_json::from_slice::<Value>(data)) else {
        return;
    };
    assert_eq!(
        printed,
        read::<Value>(&json),
        "another value than was printed"
    );
    assert!(json.len() <= data.len(), "compacting made it longer");
}

/// YAML: a value read from YAML stays the same when read as YAML again, and JSON has the same meaning as YAML.
pub fn format_yaml(data: &[u8]) {
    let Some(json) = check(Format::Yaml, data) else {
        return;
    };
    if let Ok(again) = value_of(Format::Yaml, json.as_bytes()) {
        assert_eq!(json, again.get(), "read back as another value");
    }
    if let Ok(printed) = value_of(Format::Json, data)
        && !has_long_number(printed.get())
    {
        let hash = |json: &str| raw(json).and_then(|raw| content_hash(&raw, &[]).ok());
        assert_eq!(
            hash(printed.get()),
            hash(&json),
            "{} is not {json}",
            printed.get()
        );
    }
}

/// Whether there is a number that a double may not hold: JSON keeps its digits; YAML, as documented, does not.
fn has_long_number(json: &str) -> bool {
    const DIGITS: usize = 15;
    let mut run = 0;
    json.bytes().any(|byte| {
        run = if byte.is_ascii_digit() || b".eE+-".contains(&byte) {
            run + 1
        } else {
            0
        };
        run > DIGITS || matches!(byte, b'e' | b'E') && run > 1
    })
}

/// The formats of plain text; the first byte chooses which.
pub fn format_text(data: &[u8]) {
    let Some((kind, output)) = data.split_first() else {
        return;
    };
    let text = String::from_utf8_lossy(output);
    match kind % 5 {
        0 => {
            let json = check(Format::Raw, output).expect("any bytes are a raw text");
            assert_eq!(read::<String>(&json), text);
        }
        1 => {
            let json = check(Format::String, output).expect("any bytes are a text");
            assert_eq!(read::<String>(&json), text.trim_end());
        }
        2 => {
            let json = check(Format::Output, output).expect("any bytes are lines");
            lines(&read::<Vec<String>>(&json), &text);
        }
        3 => check(Format::Kv, output)
            .into_iter()
            .for_each(|json| key_values(&json)),
        _ => check(Format::Csv, output)
            .into_iter()
            .for_each(|json| records(&json)),
    }
}

fn lines(lines: &[String], text: &str) {
    assert!(
        lines.last().is_none_or(|last| !last.is_empty()),
        "an empty last line"
    );
    assert!(
        lines
            .iter()
            .all(|line| line.trim_end() == line && !line.contains('\n'))
    );
    let words = |text: &str| {
        text.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(words(&lines.join("\n")), words(text), "words got lost");
}

/// Members written with single quotes are read back unchanged.
fn key_values(json: &str) {
    let members: BTreeMap<String, String> = read(json);
    let mut text = String::new();
    for (key, value) in &members {
        assert!(!key.is_empty() && key.trim() == key && !key.contains(['=', ':', '\n']));
        assert!(!value.contains('\n'));
        text.extend([key, "='", value, "'\n"]);
    }
    let again = value_of(Format::Kv, text.as_bytes()).expect("they were read before");
    assert_eq!(json, again.get());
}

/// All records have the same keys, and are the same after being written as CSV and read again.
fn records(json: &str) {
    let records: Vec<BTreeMap<String, String>> = read(json);
    let Some(first) = records.first() else { return };
    assert!(records.iter().all(|record| record.keys().eq(first.keys())));
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(first.keys()).expect("to memory");
    for record in &records {
        writer.write_record(record.values()).expect("to memory");
    }
    let text = writer.into_inner().expect("to memory");
    // The reader drops a byte order mark at the start of the text.
    if text.starts_with("\u{feff}".as_bytes()) {
        return;
    }
    match value_of(Format::Csv, &text) {
        // Compared as maps: the first heading may have had another order.
        Ok(again) => assert_eq!(records, read::<Vec<BTreeMap<String, String>>>(again.get())),
        Err(error) => assert!(matches!(error, FormatError::Empty), "{error}"),
    }
}
