//! Lengths of time as operators write them: `250ms`, `60s`, `15min`, `6h`.

use std::time::Duration;

use jiff::SignedDuration;
use serde::{Deserialize, Deserializer, Serializer};

/// Reads a length of time. The error says what is allowed.
pub fn parse(text: &str) -> Result<Duration, String> {
    text.trim()
        .parse::<SignedDuration>()
        .ok()
        .and_then(|span| Duration::try_from(span).ok())
        .ok_or_else(|| {
            format!(
                "{text:?} is not a length of time such as \"250ms\", \"60s\", \"15min\" or \"6h\""
            )
        })
}

/// Writes a length of time the way [`parse`] reads it.
pub fn format(span: Duration) -> String {
    SignedDuration::try_from(span).map_or_else(
        |_| format!("{}s", span.as_secs()),
        |span| format!("{span:#}"),
    )
}

pub(super) fn serialize<S: Serializer>(span: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format(*span))
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Duration, D::Error> {
    parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}
