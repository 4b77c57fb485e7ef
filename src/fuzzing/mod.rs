//! The checks of fuzzing (`fuzz/`), one function for each target: bytes from outside in, a panic if a promise is broken.
//!
//! `cargo test` runs the same functions over the committed seeds, so a seed keeps its meaning without cargo-fuzz.
//! Compiled for tests and with the feature `fuzzing` only; not part of the program. Each check asserts what the module
//! promises, since "it does not crash" alone would let wrong answers pass.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a check fails by panicking"
)]

mod amqp;
mod couch;
mod dead;
mod document;
mod facts;
mod format;
mod hash;
mod plugin;
mod receipts;
#[cfg(test)]
mod tests;
mod wire;

use jiff::Timestamp;
use serde_json::value::RawValue;

pub use amqp::amqp;
pub use couch::couch;
pub use dead::dead_letter;
pub use document::document;
pub use facts::facts;
pub use format::{format_json, format_text, format_yaml};
pub use hash::hash;
pub use plugin::plugin_file;
pub use receipts::receipts;
pub use wire::{command, result, zstd};

/// A target: its name and its check. Its file in `fuzz/fuzz_targets` and its folder in `fuzz/seeds` have the same name.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 14] = [
    ("amqp", amqp),
    ("command", command),
    ("couch", couch),
    ("dead_letter", dead_letter),
    ("document", document),
    ("facts", facts),
    ("format_json", format_json),
    ("format_text", format_text),
    ("format_yaml", format_yaml),
    ("hash", hash),
    ("plugin_file", plugin_file),
    ("receipts", receipts),
    ("result", result),
    ("zstd", zstd),
];

/// Longest text of an error, in bytes. Errors go to logs, which must not repeat a stranger's message at length.
const ERROR_BYTES_MAX: usize = 4_096;

/// The time that all checks use, so that an input means the same on every day.
fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).expect("a time that jiff has")
}

/// Asserts that an error has a text for people, of bounded length.
fn assert_text(error: &impl std::fmt::Display) {
    let text = error.to_string();
    assert!(!text.is_empty(), "an error without a text");
    assert!(
        text.len() <= ERROR_BYTES_MAX,
        "an error of {} bytes",
        text.len()
    );
}

/// `text` as a raw value, if it is JSON.
fn raw(text: &str) -> Option<Box<RawValue>> {
    serde_json::from_str(text).ok()
}

/// The deepest nesting in valid JSON text.
fn depth(json: &str) -> usize {
    let (mut depth, mut deepest, mut is_string, mut is_escaped) = (0_usize, 0, false, false);
    for byte in json.bytes() {
        if is_string {
            is_string = is_escaped || byte != b'"';
            is_escaped = !is_escaped && byte == b'\\';
            continue;
        }
        match byte {
            b'"' => is_string = true,
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth -= 1,
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}
