//! What could not travel with a message, and which of its headers can. Pure.
//!
//! A content header must fit one AMQP frame, so whoever receives, copies or publishes headers has room for only some.
//! Ours are kept before those of others, and small ones before large ones. Invariants: what is kept fits the given
//! room; a line of bounded length names what is left out.

use std::collections::BTreeMap;

use crate::dead::header::PREFIX;
use crate::trace;
use crate::wire::truncate;

/// The header that tells what was left out.
pub const HEADER: &str = "x-vogeler-left-out";
/// Most bytes of that header's text.
pub const NOTE_BYTES_MAX: usize = 1_024;
/// Most names in the note; the others are counted.
const NAMES_MAX: usize = 8;
/// Most bytes of a name in the note: eight names with their sizes are 760 bytes at most.
const NAME_BYTES_MAX: usize = 64;
/// Bytes of a text header beside its name and its text: their lengths, and the type.
const ENTRY_BYTES: usize = 1 + 1 + 4;

/// What was left out.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct LeftOut {
    named: Vec<String>,
    more: usize,
}

impl LeftOut {
    /// `name` was left out, and why: its size, or what is wrong with it.
    pub fn add(&mut self, name: &str, why: &str) {
        if self.named.len() == NAMES_MAX {
            self.more += 1;
            return;
        }
        let mut name = name.to_owned();
        truncate(&mut name, NAME_BYTES_MAX);
        self.named.push(format!("{name} ({why})"));
    }

    /// `name`, of `bytes` bytes, was left out.
    pub fn add_bytes(&mut self, name: &str, bytes: usize) {
        self.add(name, &format!("{bytes} bytes"));
    }

    /// Whether everything travels.
    pub fn is_empty(&self) -> bool {
        self.named.is_empty()
    }

    /// The header's text.
    pub fn note(&self) -> String {
        let mut note = self.named.join(", ");
        if self.more > 0 {
            note = format!("{note}, and {} more", self.more);
        }
        truncate(&mut note, NOTE_BYTES_MAX);
        note
    }

    /// Writes the note into `headers`, behind the note of what was left out before.
    pub fn tell(&self, headers: &mut BTreeMap<String, String>) {
        if self.is_empty() {
            return;
        }
        let mut note = match headers.get(HEADER) {
            Some(before) => format!("{before}; {}", self.note()),
            None => self.note(),
        };
        truncate(&mut note, NOTE_BYTES_MAX);
        headers.insert(HEADER.to_owned(), note);
    }
}

/// Whether a header is one that we read: it is kept before those of others.
pub fn is_ours(name: &str) -> bool {
    name.starts_with(PREFIX) || name == trace::HEADER
}

/// Bytes that a text header takes in a frame.
pub fn entry_bytes(name: &str, text: &str) -> usize {
    ENTRY_BYTES + name.len() + text.len()
}

/// Room that the note takes where something is left out.
pub fn note_entry_bytes() -> usize {
    ENTRY_BYTES + HEADER.len() + NOTE_BYTES_MAX
}

/// Which of `entries` (whether it comes first, and its bytes) fit `total_max` bytes: small ones before large ones.
pub fn fitting(entries: &[(bool, usize)], total_max: usize) -> Vec<bool> {
    let mut order: Vec<usize> = (0..entries.len()).collect();
    order.sort_by_key(|index| {
        entries
            .get(*index)
            .map(|(is_first, bytes)| (!is_first, *bytes))
    });
    let mut fits = vec![false; entries.len()];
    let mut room = total_max;
    for index in order {
        let bytes = entries.get(index).map_or(usize::MAX, |(_, bytes)| *bytes);
        let Some(left) = room.checked_sub(bytes) else {
            continue;
        };
        if let Some(fits) = fits.get_mut(index) {
            (*fits, room) = (true, left);
        }
    }
    fits
}

/// Removes from `headers` what is longer than `each_max`, and of the rest what does not fit `total_max`.
pub fn trim(headers: &mut BTreeMap<String, String>, each_max: usize, total_max: usize) -> LeftOut {
    let entries: Vec<(bool, usize)> = headers
        .iter()
        .map(|(name, text)| match entry_bytes(name, text) {
            bytes if bytes <= each_max => (is_ours(name), bytes),
            _ => (false, usize::MAX),
        })
        .collect();
    let mut fits = fitting(&entries, total_max).into_iter();
    let mut left_out = LeftOut::default();
    headers.retain(|name, text| {
        let keeps = fits.next().unwrap_or(false);
        if !keeps {
            left_out.add_bytes(name, text.len());
        }
        keeps
    });
    left_out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Goal: the note names the first and counts the others, and a name of any length leaves room for the next.
    #[test]
    fn the_note_is_bounded() {
        let mut left_out = LeftOut::default();
        assert_eq!((left_out.is_empty(), left_out.note().as_str()), (true, ""));
        left_out.add_bytes("big", 60_000);
        left_out.add("caf\u{fffd}", "not UTF-8");
        assert_eq!(
            left_out.note(),
            "big (60000 bytes), caf\u{fffd} (not UTF-8)"
        );
        for _ in 0..1_000 {
            left_out.add_bytes(&"ü".repeat(200), usize::MAX);
        }
        let note = left_out.note();
        assert!(
            note.len() <= NOTE_BYTES_MAX && note.ends_with(", and 994 more"),
            "{note}"
        );
        let mut headers = BTreeMap::new();
        left_out.tell(&mut headers);
        left_out.tell(&mut headers);
        let told = &headers[HEADER];
        assert!(
            told.starts_with("big") && told.len() <= NOTE_BYTES_MAX,
            "{told}"
        );
    }

    proptest! {
        /// What is kept fits, in total and each; nothing that would still fit is left out; and what comes first is not
        /// left out in favour of what does not.
        #[test]
        fn what_is_kept_fits(
            texts in prop::collection::btree_map("[ab][b-z]{0,20}", "[a-z]{0,200}", 0..40),
            each_max in 0..200_usize,
            total_max in 0..3_000_usize,
        ) {
            let texts: BTreeMap<_, _> = texts.into_iter().map(|(name, text)| (name.replace('a', PREFIX), text)).collect();
            let mut kept = texts.clone();
            let left_out = trim(&mut kept, each_max, total_max);
            let bytes: usize = kept.iter().map(|(name, text)| entry_bytes(name, text)).sum();
            prop_assert!(bytes <= total_max);
            prop_assert_eq!(left_out.is_empty(), kept.len() == texts.len());
            let largest_other = kept.iter().filter(|(name, _)| !is_ours(name)).count();
            for (name, text) in texts.iter().filter(|(name, _)| !kept.contains_key(*name)) {
                let size = entry_bytes(name, text);
                prop_assert!(size > each_max || bytes + size > total_max);
                let is_first_and_could = is_ours(name) && size <= each_max && largest_other > 0;
                let of_first: usize = kept.iter().filter(|(name, _)| is_ours(name)).map(|(n, t)| entry_bytes(n, t)).sum();
                prop_assert!(!is_first_and_could || of_first + size > total_max);
            }
            prop_assert!(kept.iter().all(|(name, text)| entry_bytes(name, text) <= each_max));
        }
    }
}
