//! How many dead letters there are, by reason. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use super::letter::Letter;

/// Most reasons told apart. Anybody who may publish writes the header, so there could be as many reasons as letters.
const REASONS_MAX: usize = 50;
/// The keys for letters without a reason, and for letters of further reasons.
const NONE: &str = "-";
const OTHER: &str = "(other)";

/// The dead letters that a filter matched, counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Letters looked at.
    pub looked: u64,
    /// Letters that matched.
    pub letters: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// The matched letters, by reason.
    pub reasons: BTreeMap<String, OfReason>,
}

/// Letters of one reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct OfReason {
    /// Number of letters.
    pub letters: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// Letters that were replayed before and came back.
    pub replayed: u64,
    /// When the oldest of them became a dead letter.
    pub oldest: Option<Timestamp>,
    /// When the newest of them did.
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

    /// Goal: letters are counted by reason, and memory stays bounded however many reasons somebody makes up.
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
