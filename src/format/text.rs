//! `output`, `kv` and `csv`: text that tools print for people, as arrays and objects of strings.
//!
//! Values stay strings: what looks like a number may be a version, a serial or a mode.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use super::FormatError;
use super::bounded::Bounded;
use crate::wire::brief;

/// Lines without trailing white space; empty last lines are dropped, empty lines between stay.
pub(super) fn lines(text: &str) -> Vec<&str> {
    text.trim_end().lines().map(str::trim_end).collect()
}

/// `key=value` or `key: value` a line, whichever sign comes first; empty lines and `#` comments are skipped.
///
/// A value in quotes loses them as in `/etc/os-release`. Of repeated keys the last counts, as in a shell.
pub(super) fn key_values(text: &str) -> Result<BTreeMap<&str, String>, FormatError> {
    let mut members = BTreeMap::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let error = FormatError::KeyValue { line: index + 1 };
        let Some((key, value)) = line.split_once(['=', ':']) else {
            return Err(error);
        };
        let key = key.trim_end();
        if key.is_empty() {
            return Err(error);
        }
        members.insert(key, unquoted(value.trim()));
    }
    Ok(members)
}

/// Removes one pair of quotes, and within double quotes the backslashes that a shell would remove.
fn unquoted(value: &str) -> String {
    let inside = |quote| value.strip_prefix(quote)?.strip_suffix(quote);
    if let Some(text) = inside('\'') {
        return text.to_owned();
    }
    let Some(text) = inside('"') else {
        return value.to_owned();
    };
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let escaped = (character == '\\')
            .then(|| characters.next_if(|next| matches!(next, '"' | '\\' | '$' | '`')))
            .flatten();
        out.push(escaped.unwrap_or(character));
    }
    out
}

/// One object for each record, keyed by the heading. A heading alone is an empty array.
///
/// It is written record by record under the bound: each object repeats the heading, so a few bytes of empty records could
/// become gigabytes.
pub(super) fn records(text: &str, bytes_max: usize) -> Result<Box<RawValue>, FormatError> {
    if text.trim().is_empty() {
        return Err(FormatError::Empty);
    }
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(true)
        .flexible(false)
        .from_reader(text.as_bytes());
    let heading = reader.headers()?.clone();
    if let Some(column) = repeated(heading.iter()) {
        return Err(FormatError::CsvColumn {
            column: brief(column),
        });
    }
    let keys: Vec<String> = heading
        .iter()
        .map(serde_json::to_string)
        .collect::<Result<_, _>>()?;
    let mut json = Bounded::new(bytes_max);
    let mut record = csv::StringRecord::new();
    let mut before_record = "[";
    while reader.read_record(&mut record)? {
        json.push(before_record)?;
        before_record = ",";
        let mut before_field = "{";
        for (key, field) in keys.iter().zip(&record) {
            json.push(before_field)?;
            before_field = ",";
            json.push(key)?;
            json.push(":")?;
            json.push_value(field)?;
        }
        json.push("}")?;
    }
    json.push(if before_record == "[" { "[]" } else { "]" })?;
    json.finish()
}

fn repeated<'a>(names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let mut seen = std::collections::BTreeSet::new();
    names.into_iter().find(|name| !seen.insert(*name))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{error, value};
    use super::*;
    use crate::wire::Format;

    /// Goal: files that every Linux has are read correctly: os-release with quotes, meminfo with colons.
    #[test]
    fn key_values_read_os_release_and_meminfo() {
        let printed = "# comment\nNAME=\"Debian \\\"12\\\" \\x\"\nID=debian\nURL='https://x/?a=b'\n\nEMPTY=\nMemTotal:       24683772 kB\nID=last\n";
        assert_eq!(
            value(Format::Kv, printed),
            r#"{"EMPTY":"","ID":"last","MemTotal":"24683772 kB","NAME":"Debian \"12\" \\x","URL":"https://x/?a=b"}"#
        );
        assert_eq!(value(Format::Kv, "A=\""), r#"{"A":"\""}"#);
    }

    /// Goal: the error for a line without key and value gives the line's number.
    #[test]
    fn a_line_without_key_or_sign_is_an_error() {
        for printed in ["A=1\nnonsense\n", "A=1\n=x\n"] {
            let error = error(Format::Kv, printed);
            assert!(
                matches!(error, FormatError::KeyValue { line: 2 }),
                "{error}"
            );
        }
    }

    /// Goal: records become objects of strings; quoted commas and line breaks stay inside.
    #[test]
    fn csv_records_are_keyed_by_the_heading() {
        assert_eq!(
            value(Format::Csv, "name,version\nbash,5.10\n\"a,b\",\"1\n2\"\n"),
            r#"[{"name":"bash","version":"5.10"},{"name":"a,b","version":"1\n2"}]"#
        );
        assert_eq!(value(Format::Csv, "name,version\n"), "[]");
    }

    /// Goal: a heading that is repeated in a million records is an error before memory grows, not gigabytes.
    #[test]
    fn csv_records_are_bounded_while_they_are_written() {
        let printed = format!("{}\n{}", "h".repeat(1_000_000), "1\n".repeat(1_000_000));
        assert!(matches!(
            error(Format::Csv, &printed),
            FormatError::TooLarge { .. }
        ));
    }

    /// Goal: a ragged record and a repeated column are errors that say where and which.
    #[test]
    fn csv_that_would_lose_a_field_is_an_error() {
        let ragged = error(Format::Csv, "a,b\n1,2\n3\n");
        assert!(matches!(ragged, FormatError::Csv(_)));
        assert!(ragged.to_string().contains("line: 3"), "{ragged}");
        let twice = error(Format::Csv, "a,b,a\n1,2,3\n");
        assert!(
            matches!(&twice, FormatError::CsvColumn { column } if column == "a"),
            "{twice}"
        );
    }
}
