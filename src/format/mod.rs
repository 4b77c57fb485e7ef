//! Turns what a plugin printed into the JSON value of its result, as the plugin's format says.
//!
//! Bytes in, JSON text out. The client uses it for its plugins, the server for results of 2010, whose values
//! travel as printed. Invariant: the text is valid compact JSON of at most [`VALUE_BYTES_MAX`] bytes that nests no
//! deeper than [`DEPTH_MAX`]; hostile output (invalid UTF-8, a YAML alias bomb, a CSV whose heading is repeated a million
//! times, deep nesting) is an error before memory grows, never a crash.

mod bounded;
mod json;
mod text;
mod yaml;

use serde::Serialize;
use serde_json::value::RawValue;

use crate::hash::HashError;
use crate::wire::{DEPTH_MAX, Format, brief};
use bounded::Bounded;

/// Largest value, in bytes of JSON text: CouchDB's `max_document_size`. A larger one could never be stored, and
/// a few kilobytes of YAML aliases could grow to gigabytes without a bound.
pub const VALUE_BYTES_MAX: usize = 8_000_000;

/// Why output is not what its format says.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The value cannot be hashed (nested too deep, or a string in it is not Unicode).
    #[error(transparent)]
    Hash(#[from] HashError),
    /// Empty output where JSON, YAML or CSV was announced. A tool that fails often prints nothing, and empty output must not
    /// overwrite the last good value.
    #[error("the output is empty")]
    Empty,
    /// JSON and YAML are UTF-8; other bytes cannot be repaired without changing keys.
    #[error("the output is not UTF-8: byte {offset} (counted from 0) is the first bad one")]
    NotUtf8 {
        /// Where the first bad byte stands, from 0.
        offset: usize,
    },
    /// Not one JSON text.
    #[error("not JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// Not one YAML document, or one that exceeds the reader's budget (aliases, nodes). Names line and column.
    #[error("not YAML: {}", brief(.0))]
    Yaml(#[from] Box<serde_saphyr::Error>),
    /// Several YAML documents in one stream: which one is the value is not ours to guess.
    #[error("more than one YAML document: the second starts in line {line}")]
    SeveralDocuments {
        /// Where the second starts, from 1.
        line: u64,
    },
    /// Not comma-separated values with as many fields in each record as in the heading.
    #[error("not CSV: {0}")]
    Csv(#[from] csv::Error),
    /// A column name stands twice in the heading: one of the two would be lost.
    #[error("the heading of the CSV names column {column:?} twice")]
    CsvColumn {
        /// The repeated name.
        column: String,
    },
    /// A line that is neither empty, a comment, nor a key and a value.
    #[error("line {line} is neither \"key=value\" nor \"key: value\"")]
    KeyValue {
        /// The line's number, from 1.
        line: usize,
    },
    /// Nested deeper than values are hashed and stored.
    #[error("{DEPTH_MAX} levels of nesting at most, this has {}", counted(*levels))]
    TooDeep {
        /// Levels found; none if reading stopped at the first level too many.
        levels: Option<usize>,
    },
    /// The value is larger than a document may be, or than the small message that it came in may become.
    #[error("the value has more than {max} bytes as JSON")]
    TooLarge {
        /// Size allowed, in bytes.
        max: usize,
    },
}

fn counted(levels: Option<usize>) -> String {
    levels.map_or_else(|| "more".to_owned(), |levels| levels.to_string())
}

/// The JSON value of `output`, of at most [`VALUE_BYTES_MAX`] bytes.
///
/// | format | value | bytes that are not UTF-8 |
/// |---|---|---|
/// | `json`, `pylist`, `pydict` | as printed, every digit kept, white space dropped | an error |
/// | `yaml` | one document, as `yaml.rs` reads it | an error |
/// | `output` | array of lines, without trailing white space and empty last lines | U+FFFD |
/// | `string` | one string without trailing white space | U+FFFD |
/// | `raw` | one string | U+FFFD |
/// | `kv` | object of strings, as `text.rs` reads it | U+FFFD |
/// | `csv` | array of objects of strings, keyed by the heading | U+FFFD |
///
/// Text formats take U+FFFD because one odd file or user name must not cost all the others.
pub fn value_of(format: Format, output: &[u8]) -> Result<Box<RawValue>, FormatError> {
    value_within(format, output, VALUE_BYTES_MAX)
}

/// Like [`value_of`], with a bound on the value's size in bytes. A bound above [`VALUE_BYTES_MAX`] has no effect.
pub fn value_within(
    format: Format,
    output: &[u8],
    bytes_max: usize,
) -> Result<Box<RawValue>, FormatError> {
    let max = bytes_max.min(VALUE_BYTES_MAX);
    let text = || String::from_utf8_lossy(output);
    match format {
        Format::Json | Format::Pylist | Format::Pydict => json::value_of(utf8(output)?, max),
        Format::Yaml => yaml::value_of(utf8(output)?, max),
        Format::Output => to_json(&text::lines(&text()), max),
        Format::String => to_json(text().trim_end(), max),
        Format::Raw => to_json(&text(), max),
        Format::Kv => to_json(&text::key_values(&text())?, max),
        Format::Csv => text::records(&text(), max),
    }
}

fn utf8(output: &[u8]) -> Result<&str, FormatError> {
    let text = std::str::from_utf8(output).map_err(|error| FormatError::NotUtf8 {
        offset: error.valid_up_to(),
    })?;
    if text.trim().is_empty() {
        return Err(FormatError::Empty);
    }
    Ok(text)
}

fn to_json<T: Serialize + ?Sized>(value: &T, max: usize) -> Result<Box<RawValue>, FormatError> {
    let mut json = Bounded::new(max);
    json.push_value(value)?;
    json.finish()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::hash::content_hash;

    const ALL: [Format; 9] = [
        Format::Json,
        Format::Yaml,
        Format::Output,
        Format::String,
        Format::Raw,
        Format::Kv,
        Format::Csv,
        Format::Pylist,
        Format::Pydict,
    ];

    pub(super) fn value(format: Format, output: &str) -> String {
        value_of(format, output.as_bytes())
            .unwrap()
            .get()
            .to_owned()
    }

    pub(super) fn error(format: Format, output: &str) -> FormatError {
        value_of(format, output.as_bytes()).unwrap_err()
    }

    /// Goal: the three text formats differ exactly in what they trim.
    #[test]
    fn text_formats_trim_as_documented() {
        let printed = " a \t\n\nb\r\n\n \n";
        assert_eq!(value(Format::Output, printed), r#"[" a","","b"]"#);
        assert_eq!(value(Format::String, printed), r#"" a \t\n\nb""#);
        assert_eq!(value(Format::Raw, printed), r#"" a \t\n\nb\r\n\n \n""#);
        assert_eq!(value(Format::Output, ""), "[]");
    }

    /// Goal: bad UTF-8 is an error that names its place in structured formats, and is replaced in plain text.
    #[test]
    fn invalid_utf8_is_an_error_or_replaced() {
        let printed = b"\"ab\xff\"";
        for format in [Format::Json, Format::Yaml] {
            let error = value_of(format, printed).unwrap_err();
            assert!(
                matches!(error, FormatError::NotUtf8 { offset: 3 }),
                "{error}"
            );
            assert!(error.to_string().contains("byte 3"), "{error}");
        }
        assert_eq!(
            value_of(Format::Raw, b"a\xffb").unwrap().get(),
            "\"a\u{fffd}b\""
        );
        assert_eq!(
            value_of(Format::Output, b"a\xff\nb").unwrap().get(),
            "[\"a\u{fffd}\",\"b\"]"
        );
    }

    /// Goal: empty output of a structured format is an error, so that it cannot replace the last good value.
    #[test]
    fn nothing_is_an_error_where_structure_was_announced() {
        for format in [Format::Json, Format::Yaml, Format::Csv] {
            assert!(
                matches!(error(format, " \n"), FormatError::Empty),
                "{format}"
            );
        }
    }

    /// Goal: a value that no document could hold is refused, in whatever format it came.
    #[test]
    fn a_value_larger_than_a_document_is_refused() {
        let printed = "x".repeat(VALUE_BYTES_MAX);
        assert!(matches!(
            error(Format::Raw, &printed),
            FormatError::TooLarge { .. }
        ));
    }

    /// Goal: a lone surrogate escape passes JSON's grammar but is no text: hashing names it, nothing crashes.
    #[test]
    fn a_lone_surrogate_cannot_be_hashed() {
        let value = value_of(Format::Json, br#"["\ud800"]"#).unwrap();
        let error = FormatError::from(content_hash(&value, &[]).unwrap_err());
        assert!(matches!(error, FormatError::Hash(_)), "{error}");
    }

    /// Goal: real facter output in either format gives the same facts (between the two runs only volatile facts may differ).
    #[test]
    fn facter_prints_the_same_facts_as_json_and_yaml() {
        let json = include_str!("../../tests/fixtures/facter-4.3.0.json");
        let yaml = include_str!("../../tests/fixtures/facter-4.3.0.yaml");
        let parse = |text: String| serde_json::from_str::<serde_json::Value>(&text).unwrap();
        let (json, yaml) = (
            parse(value(Format::Json, json)),
            parse(value(Format::Yaml, yaml)),
        );
        for stable in ["disks", "facterversion", "kernelmajversion", "os", "ruby"] {
            assert_eq!(json[stable], yaml[stable], "{stable}");
            assert!(!json[stable].is_null(), "{stable}");
        }
        let keys = |value: &serde_json::Value| {
            value
                .as_object()
                .unwrap()
                .keys()
                .cloned()
                .collect::<Vec<_>>()
        };
        assert_eq!(keys(&json), keys(&yaml));
    }

    proptest! {
        /// Any bytes give a value or an error, and a value is JSON.
        #[test]
        fn any_bytes_are_a_value_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            for format in ALL {
                if let Ok(value) = value_of(format, &bytes) {
                    prop_assert!(serde_json::from_str::<&RawValue>(value.get()).is_ok());
                }
            }
        }

        /// The same for text made of characters that have a meaning in the formats.
        #[test]
        fn any_syntax_is_a_value_or_an_error(text in "[\\[\\]{}:,\"'#&*!|>\\-=%@?<~.0-9eE+a-c \n\t\\\\]{0,120}") {
            for format in ALL {
                if let Ok(value) = value_of(format, text.as_bytes()) {
                    prop_assert!(serde_json::from_str::<&RawValue>(value.get()).is_ok(), "{format}: {text:?}");
                }
            }
        }
    }
}
