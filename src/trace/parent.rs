//! The header `traceparent` of W3C Trace Context: which trace a message belongs to, and what came before it. Pure.
//!
//! Writes version 00 only. Reads of later versions the part that repeats version 00, as the standard requires.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

use crate::broker::Properties;
use crate::wire::RunId;

/// The header's name.
pub const HEADER: &str = "traceparent";
const VERSION: &str = "00";
const VERSION_INVALID: &str = "ff";
const SAMPLED: u8 = 1;

/// A place in a run's trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    /// The run: its id is the trace's.
    pub run: RunId,
    /// The parent of the spans that follow.
    pub span: NonZeroU64,
    /// Whether that span may have been recorded; if not, the spans that follow must not be recorded either.
    pub is_sampled: bool,
}

/// Text that is no `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no traceparent of W3C Trace Context")]
pub struct BadTraceParent;

impl TraceParent {
    /// A place in the trace of `run` for a program that records nothing.
    pub fn generate(run: RunId) -> Self {
        Self {
            run,
            span: rand::random(),
            is_sampled: true,
        }
    }

    /// The place that a message names. None if it names none, or none that is understood.
    pub fn of(properties: &Properties) -> Option<Self> {
        properties.headers.get(HEADER)?.parse().ok()
    }

    /// Writes it into a message that follows from here.
    pub fn put(self, properties: &mut Properties) {
        properties
            .headers
            .insert(HEADER.to_owned(), self.to_string());
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (trace, flags) = (self.run.trace(), u8::from(self.is_sampled));
        write!(f, "{VERSION}-{trace:032x}-{:016x}-{flags:02x}", self.span)
    }
}

impl FromStr for TraceParent {
    type Err = BadTraceParent;
    fn from_str(text: &str) -> Result<Self, BadTraceParent> {
        let mut parts = text.split('-');
        let mut hex = |digits: usize| {
            let part = parts.next().filter(|part| part.len() == digits)?;
            let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            part.bytes().all(is_hex).then_some(part)
        };
        let mut read = || {
            let version = hex(2).filter(|version| *version != VERSION_INVALID)?;
            let trace = u128::from_str_radix(hex(32)?, 16).ok()?;
            let span = u64::from_str_radix(hex(16)?, 16).ok()?;
            let flags = u8::from_str_radix(hex(2)?, 16).ok()?;
            let parent = Self {
                run: (trace != 0).then(|| RunId::of_trace(trace))?,
                span: NonZeroU64::new(span)?,
                is_sampled: flags & SAMPLED != 0,
            };
            Some((version, parent))
        };
        let (version, parent) = read().ok_or(BadTraceParent)?;
        if version == VERSION && parts.next().is_some() {
            return Err(BadTraceParent);
        }
        Ok(parent)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RUN: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

    /// Goal: the run's id is the trace id, digit for digit, as W3C writes it.
    #[test]
    fn the_run_is_the_trace() {
        let text = "00-01890a5dac96774bbcceb302099a8057-00f067aa0ba902b7-01";
        let parent: TraceParent = text.parse().unwrap();
        assert_eq!(parent.run.to_string(), RUN);
        assert!(parent.is_sampled);
        assert_eq!(parent.to_string(), text);
    }

    /// Goal: text that the standard forbids is not read, and what a later version appends is ignored.
    #[test]
    fn only_what_the_standard_allows_is_read() {
        let good = "00-01890a5dac96774bbcceb302099a8057-00f067aa0ba902b7-00";
        for bad in [
            "",
            "00",
            &good[..54],
            &good.to_uppercase(),
            &good.replacen("00", "ff", 1),
            &good.replace("01890a5dac96774bbcceb302099a8057", &"0".repeat(32)),
            &good.replace("00f067aa0ba902b7", "0000000000000000"),
            &good.replace("00f067", "+0f067"),
            &format!("{good}-more"),
        ] {
            assert_eq!(bad.parse::<TraceParent>(), Err(BadTraceParent), "{bad}");
        }
        let later = good.replacen("00", "01", 1) + "-more";
        assert!(!later.parse::<TraceParent>().unwrap().is_sampled);
    }

    proptest! {
        /// What is written is read back, also from a message; no text makes the reader panic.
        #[test]
        fn what_is_written_is_read(text in "\\PC{0,60}", is_sampled: bool) {
            text.parse::<TraceParent>().ok();
            let parent = TraceParent { is_sampled, ..TraceParent::generate(RUN.parse().unwrap()) };
            let mut properties = Properties::default();
            prop_assert_eq!(TraceParent::of(&properties), None);
            parent.put(&mut properties);
            prop_assert_eq!(TraceParent::of(&properties), Some(parent));
        }
    }
}
