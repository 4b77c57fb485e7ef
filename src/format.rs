//! Turns what a plugin printed into the JSON value of its result, as the plugin's format says.
//!
//! Bytes in, JSON text out. The client uses it for its plugins, the server for results of 2010, whose values
//! travel as printed. Hostile output (invalid UTF-8, a YAML alias bomb, deep nesting) is an error, never a crash.

use serde_json::value::RawValue;

use crate::hash::HashError;
use crate::wire::Format;

/// Why output is not what its format says.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The value cannot be hashed (nested too deep).
    #[error(transparent)]
    Hash(#[from] HashError),
}

/// The JSON value of `output`.
pub fn value_of(_format: Format, _output: &[u8]) -> Result<Box<RawValue>, FormatError> {
    todo!("helper: client")
}
