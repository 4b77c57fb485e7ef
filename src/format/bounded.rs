//! JSON text that grows up to a bound and no further: memory stays bounded, however much a format makes of a few bytes.

use std::io;

use serde::Serialize;
use serde_json::value::RawValue;

use super::FormatError;

/// JSON text written so far.
#[derive(Debug)]
pub(super) struct Bounded {
    text: Vec<u8>,
    bytes_max: usize,
    is_full: bool,
}

impl Bounded {
    /// No text yet, and never more than `bytes_max` bytes.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            text: Vec::new(),
            bytes_max,
            is_full: false,
        }
    }

    /// Appends a piece of JSON as it stands.
    pub(super) fn push(&mut self, token: &str) -> Result<(), FormatError> {
        io::Write::write_all(self, token.as_bytes()).map_err(|_| self.too_large())
    }

    /// Appends a value.
    pub(super) fn push_value<T: Serialize + ?Sized>(
        &mut self,
        value: &T,
    ) -> Result<(), FormatError> {
        match serde_json::to_writer(&mut *self, value) {
            Err(_) if self.is_full => Err(self.too_large()),
            written => Ok(written?),
        }
    }

    /// Whether a write failed because the text would have passed its bound.
    pub(super) fn is_full(&self) -> bool {
        self.is_full
    }

    /// The error of a value that does not fit.
    pub(super) fn too_large(&self) -> FormatError {
        FormatError::TooLarge {
            max: self.bytes_max,
        }
    }

    /// The text, checked once more to be JSON.
    pub(super) fn finish(self) -> Result<Box<RawValue>, FormatError> {
        let text = String::from_utf8(self.text).map_err(|error| FormatError::NotUtf8 {
            offset: error.utf8_error().valid_up_to(),
        })?;
        Ok(RawValue::from_string(text)?)
    }
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.text.len() + bytes.len() > self.bytes_max {
            self.is_full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
