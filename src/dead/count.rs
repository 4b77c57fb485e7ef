//! How many dead letters there are, by reason. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use super::letter::Letter;

/// Reasons told apart; a header is written by whoever may publish, so there could be as many as letters.
const REASONS_MAX: usize = 50;
/// What letters without a reason, and those of further reasons, are counted under.
const NONE: &str = "-";
const OTHER: &str = "(other)";

/// Dead letters that a filter matched.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// How many were looked at.
    pub looked: u64,
    /// How many matched.
    pub letters: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// The same by reason.
    pub reasons: BTreeMap<String, OfReason>,
}

/// Letters of one reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct OfReason {
    /// How many.
    pub letters: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// How many were replayed before, and came back.
    pub replayed: u64,
    /// When the first of them became one.
    pub oldest: Option<Timestamp>,
    /// When the last of them did.
    pub newest: Option<Timestamp>,
}

impl Count {
    /// Counts a letter.
    pub(super) fn add(&mut self, letter: &Letter) {
        let bytes = letter.bytes as u64;
        self.letters += 1;
        self.bytes += bytes;
        let reason = letter.reason.as_deref().unwrap_or(NONE);
        let is_room = self.reasons.len() < REASONS_MAX || self.reasons.contains_key(reason);
        let reason = if is_room { reason } else { OTHER };
        let of = self.reasons.entry(reason.to_owned()).or_default();
        of.letters += 1;
        of.bytes += bytes;
        of.replayed += u64::from(letter.replays > 0);
        if let Some(time) = letter.time {
            of.oldest = Some(of.oldest.map_or(time, |oldest| oldest.min(time)));
            of.newest = Some(of.newest.map_or(time, |newest| newest.max(time)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Properties;
    use crate::dead::header;

    /// Goal: letters are counted by reason, and however many reasons somebody makes up, memory is bounded.
    #[test]
    fn letters_are_counted_by_reason() {
        let mut count = Count::default();
        let mut add = |reason: Option<String>, second: i64| {
            let mut properties = Properties::default();
            let time = Timestamp::from_second(second).unwrap().to_string();
            properties.headers.insert(header::TIME.to_owned(), time);
            properties
                .headers
                .extend(reason.map(|reason| (header::REASON.to_owned(), reason)));
            count.add(&Letter::read(b"body", &properties));
        };
        add(None, 1);
        add(Some("forbidden".to_owned()), 9);
        add(Some("forbidden".to_owned()), 7);
        (0..1_000).for_each(|number| add(Some(format!("made up {number}")), 5));
        assert_eq!((count.letters, count.bytes), (1_003, 4_012));
        assert_eq!(count.reasons.len(), REASONS_MAX + 1);
        let forbidden = &count.reasons["forbidden"];
        assert_eq!((forbidden.letters, forbidden.bytes), (2, 8));
        let seconds = |time: Option<Timestamp>| time.unwrap().as_second();
        assert_eq!(
            (seconds(forbidden.oldest), seconds(forbidden.newest)),
            (7, 9)
        );
        let sum: u64 = count.reasons.values().map(|of| of.letters).sum();
        assert_eq!((count.reasons[NONE].letters, sum), (1, 1_003));
    }
}
