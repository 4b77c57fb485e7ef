//! The content header of a message as others wrote it: whether lapin can read it, and a readable one in its place.
//! Pure.
//!
//! lapin gives up the whole connection over a text that is not UTF-8, a value of a type it does not know, or a header
//! larger than the frames it agreed to, which RabbitMQ sends all the same. It follows nested tables until its stack is
//! full. Invariants: lapin reads whatever passes [`is_readable`], and whatever [`rewrite`] gives. The latter fits the
//! size that was asked for, keeps the body's size, and names in a header of ours what is left out.

use crate::broker::left_out::{self, LeftOut};
use crate::wire::truncate;

/// Class, weight and size of the body, in front of the properties.
pub(crate) const FIXED_BYTES: usize = 2 + 2 + 8;
/// All flags but the continuation and the reserved bit, which stand for no property.
const FLAGS_USED: u16 = 0b1111_1111_1111_1100;
const HEADERS_FLAG: u16 = 1 << (15 - HEADERS);
/// Place of the table among the properties.
const HEADERS: usize = 2;
/// Most levels of nested tables: nobody needs more, and lapin follows them on its stack.
const DEPTH_MAX: usize = 16;
const SHORT_BYTES_MAX: usize = 255;

#[derive(Debug, Clone, Copy)]
enum Kind {
    Short,
    Table,
    Octet,
    Timestamp,
}

/// The properties in the order of their flags, from the highest bit on.
const PROPERTIES: [(&str, Kind); 14] = [
    ("content-type", Kind::Short),
    ("content-encoding", Kind::Short),
    ("headers", Kind::Table),
    ("delivery-mode", Kind::Octet),
    ("priority", Kind::Octet),
    ("correlation-id", Kind::Short),
    ("reply-to", Kind::Short),
    ("expiration", Kind::Short),
    ("message-id", Kind::Short),
    ("timestamp", Kind::Timestamp),
    ("type", Kind::Short),
    ("user-id", Kind::Short),
    ("app-id", Kind::Short),
    ("cluster-id", Kind::Short),
];

/// Whether lapin reads this payload of a header frame.
pub(crate) fn is_readable(payload: &[u8]) -> bool {
    check(&mut Bytes(payload)).is_some_and(|()| true)
}

fn check(bytes: &mut Bytes<'_>) -> Option<()> {
    bytes.take(FIXED_BYTES)?;
    let flags = bytes.u16()?;
    for (place, (_, kind)) in PROPERTIES.into_iter().enumerate() {
        if flags & flag(place) == 0 {
            continue;
        }
        match kind {
            Kind::Short => drop(std::str::from_utf8(bytes.short()?).ok()?),
            Kind::Table => is_table(bytes.long()?, DEPTH_MAX).then_some(())?,
            Kind::Octet => drop(bytes.take(1)?),
            Kind::Timestamp => drop(bytes.take(8)?),
        }
    }
    bytes.0.is_empty().then_some(())
}

/// A payload that lapin reads, in place of one of `whole` bytes that begins with `payload`. It has at most `bytes_max`
/// bytes; `bytes_max` is a few thousand at least.
pub(crate) fn rewrite(payload: &[u8], whole: usize, bytes_max: usize) -> Vec<u8> {
    let (mut fixed, mut rest) = (payload.to_vec(), Bytes(payload));
    fixed.resize(FIXED_BYTES, 0);
    let mut properties = match rest.take(FIXED_BYTES) {
        Some(_) => Properties::read(rest, whole.saturating_sub(FIXED_BYTES)),
        None => Properties::lost(whole),
    };
    let before = FIXED_BYTES + 2 + 4 + properties.before.len() + properties.after.len();
    let table = properties.table(bytes_max.saturating_sub(before));
    fixed.extend((properties.flags | HEADERS_FLAG).to_be_bytes());
    fixed.extend(&properties.before);
    fixed.extend(u32::try_from(table.len()).unwrap_or(u32::MAX).to_be_bytes());
    fixed.extend(table);
    fixed.extend(&properties.after);
    fixed
}

/// What can be kept of some properties.
#[derive(Debug, Default)]
struct Properties<'a> {
    flags: u16,
    /// What comes before the table, and after it.
    before: Vec<u8>,
    after: Vec<u8>,
    /// Entries of the table that are readable, with their names.
    entries: Vec<(&'a str, &'a [u8])>,
    left_out: LeftOut,
}

impl<'a> Properties<'a> {
    fn lost(whole: usize) -> Self {
        let mut this = Self::default();
        this.left_out.add_bytes("everything", whole);
        this
    }

    /// Reads `rest` as far as it is readable; `whole` is how many bytes there should be.
    fn read(mut rest: Bytes<'a>, whole: usize) -> Self {
        let mut this = Self::default();
        let missing = whole.saturating_sub(rest.0.len());
        let flags = rest.u16().unwrap_or(0) & FLAGS_USED;
        for (place, (name, kind)) in PROPERTIES.into_iter().enumerate() {
            if flags & flag(place) == 0 {
                continue;
            }
            let left = rest.0.len() + missing;
            if this.read_property(place, name, kind, &mut rest).is_none() {
                this.left_out
                    .add_bytes(&format!("{name} and what follows"), left);
                return this;
            }
        }
        if rest.0.len() + missing > 0 {
            this.left_out
                .add_bytes("what follows", rest.0.len() + missing);
        }
        this
    }

    /// None where the property cannot be read, nor, therefore, what follows it.
    fn read_property(
        &mut self,
        place: usize,
        name: &str,
        kind: Kind,
        rest: &mut Bytes<'a>,
    ) -> Option<()> {
        let out = if place < HEADERS {
            &mut self.before
        } else {
            &mut self.after
        };
        match kind {
            Kind::Octet => out.extend(rest.take(1)?),
            Kind::Timestamp => out.extend(rest.take(8)?),
            Kind::Short => {
                let bytes = rest.short()?;
                let text = lossy_short(bytes);
                if text.as_bytes() != bytes {
                    self.left_out.add(name, "not UTF-8");
                }
                out.push(u8::try_from(text.len()).unwrap_or(0));
                out.extend(text.as_bytes());
            }
            Kind::Table => {
                let size = rest.u32()?;
                let table = rest.take(size.min(rest.0.len()))?;
                self.read_table(table, size);
                if table.len() < size {
                    // The table was cut short, and what follows it is cut off.
                    rest.0 = &[];
                }
            }
        }
        self.flags |= flag(place);
        Some(())
    }

    fn read_table(&mut self, table: &'a [u8], size: usize) {
        let mut rest = Bytes(table);
        while !rest.0.is_empty() {
            let start = rest.0;
            let Some((name, is_good)) = entry(&mut rest) else {
                rest.0 = start;
                break;
            };
            let bytes = start.len() - rest.0.len();
            match (std::str::from_utf8(name), start.get(..bytes)) {
                (Ok(name), Some(entry)) if is_good => self.entries.push((name, entry)),
                _ => self
                    .left_out
                    .add_bytes(&String::from_utf8_lossy(name), bytes),
            }
        }
        let unread = size.saturating_sub(table.len() - rest.0.len());
        if unread > 0 {
            self.left_out.add_bytes("the rest of the headers", unread);
        }
    }

    /// The table's entries that fit `bytes_max`, and the note.
    fn table(&mut self, bytes_max: usize) -> Vec<u8> {
        let entries = self
            .entries
            .iter()
            .filter(|(name, _)| *name != left_out::HEADER);
        let entries: Vec<_> = entries.collect();
        let sizes: Vec<_> = entries
            .iter()
            .map(|(name, bytes)| (left_out::is_ours(name), bytes.len()))
            .collect();
        let room = bytes_max.saturating_sub(left_out::note_entry_bytes());
        let mut table = Vec::new();
        for ((name, bytes), fits) in entries.into_iter().zip(left_out::fitting(&sizes, room)) {
            if fits {
                table.extend(*bytes);
            } else {
                self.left_out.add_bytes(name, bytes.len());
            }
        }
        let note = self.left_out.note();
        table.push(u8::try_from(left_out::HEADER.len()).unwrap_or(0));
        table.extend(left_out::HEADER.as_bytes());
        table.push(b'S');
        table.extend(u32::try_from(note.len()).unwrap_or(0).to_be_bytes());
        table.extend(note.as_bytes());
        table
    }
}

/// A short text of the protocol, with what is not UTF-8 replaced.
pub(crate) fn lossy_short(bytes: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(bytes).into_owned();
    truncate(&mut text, SHORT_BYTES_MAX);
    text
}

fn flag(place: usize) -> u16 {
    1 << (15 - place)
}

/// The next entry's name, and whether lapin reads the entry; none where the entry's end is unknown.
fn entry<'a>(rest: &mut Bytes<'a>) -> Option<(&'a [u8], bool)> {
    let name = rest.short()?;
    let is_good = value(rest, DEPTH_MAX)?;
    Some((name, is_good && std::str::from_utf8(name).is_ok()))
}

/// Skips a value, and says whether lapin reads it; none where the value's end is unknown.
fn value(rest: &mut Bytes<'_>, depth: usize) -> Option<bool> {
    let (kind, after) = rest.0.split_first()?;
    rest.0 = after;
    let is_good = match kind {
        b't' | b'b' | b'B' => rest.take(1).map(|_| true)?,
        b's' | b'U' | b'u' => rest.take(2).map(|_| true)?,
        b'I' | b'i' | b'f' => rest.take(4).map(|_| true)?,
        b'D' => rest.take(5).map(|_| true)?,
        b'l' | b'L' | b'd' | b'T' => rest.take(8).map(|_| true)?,
        b'S' | b'x' => rest.long().map(|_| true)?,
        b'A' => is_array(rest.long()?, depth),
        b'F' => is_table(rest.long()?, depth),
        b'V' => true,
        _ => return None,
    };
    Some(is_good)
}

fn is_array(content: &[u8], depth: usize) -> bool {
    let Some(depth) = depth.checked_sub(1) else {
        return false;
    };
    let mut rest = Bytes(content);
    while !rest.0.is_empty() {
        if value(&mut rest, depth) != Some(true) {
            return false;
        }
    }
    true
}

fn is_table(content: &[u8], depth: usize) -> bool {
    let Some(depth) = depth.checked_sub(1) else {
        return false;
    };
    let mut rest = Bytes(content);
    while !rest.0.is_empty() {
        let is_name = rest
            .short()
            .is_some_and(|name| std::str::from_utf8(name).is_ok());
        if !is_name || value(&mut rest, depth) != Some(true) {
            return false;
        }
    }
    true
}

/// Bytes that are read from the front.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bytes<'a>(pub(crate) &'a [u8]);

impl<'a> Bytes<'a> {
    pub(crate) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2)?.try_into().ok().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<usize> {
        let size = self.take(4)?.try_into().ok().map(u32::from_be_bytes)?;
        usize::try_from(size).ok()
    }

    /// At most 255 bytes with their length in front.
    pub(crate) fn short(&mut self) -> Option<&'a [u8]> {
        let size = *self.take(1)?.first()?;
        self.take(usize::from(size))
    }

    /// Bytes with their length in front.
    fn long(&mut self) -> Option<&'a [u8]> {
        let size = self.u32()?;
        self.take(size)
    }
}

#[cfg(test)]
mod tests;
