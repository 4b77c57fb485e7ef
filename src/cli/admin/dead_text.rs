//! Dead letters as text for a terminal. Pure.
//!
//! Invariant: what others sent cannot steer the terminal, nor fill it without end.

use std::fmt::Write as _;
use std::io::{BufReader, Read, Write as _};

use serde::de::IgnoredAny;

use crate::cli::json;
use crate::dead::{Count, Letter, Report, Whole};
use crate::terminal;

/// Bytes of a body that are shown.
const BODY_BYTES_MAX: usize = 256 << 10;
/// Bytes of a body that are looked at for that: laid out in lines it is seldom shorter.
const HEAD_BYTES_MAX: u64 = 1 << 20;
/// Letters that tell how wide the columns are.
const SAMPLE: usize = 100;
/// Characters of the last column: the rest is in `show` and in the JSON.
const DETAIL_CHARACTERS_MAX: usize = 60;
const HEADER: [&str; 9] = [
    "ID", "TIME", "REASON", "NODE", "PLUGIN", "TRIES", "REPLAYS", "BYTES", "DETAIL",
];

/// Letters as lines of a table. The first ones wait until the columns' widths can be told from them.
#[derive(Debug, Default)]
pub(super) struct Table {
    waiting: Vec<[String; HEADER.len()]>,
    widths: Option<[usize; HEADER.len()]>,
}

impl Table {
    /// Takes a letter; gives the text that can be printed now.
    pub(super) fn push(&mut self, letter: &Letter) -> Option<String> {
        let row = row(letter);
        if let Some(widths) = &self.widths {
            return Some(line(&row, widths));
        }
        self.waiting.push(row);
        (self.waiting.len() >= SAMPLE).then(|| self.flush())
    }

    /// What still waits; nothing, if no letter came.
    pub(super) fn finish(mut self) -> String {
        if self.waiting.is_empty() {
            return String::new();
        }
        self.flush()
    }

    fn flush(&mut self) -> String {
        let header = HEADER.map(str::to_owned);
        let rows = std::iter::once(header).chain(std::mem::take(&mut self.waiting));
        let rows: Vec<_> = rows.collect();
        let mut widths = [0; HEADER.len()];
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        self.widths = Some(widths);
        rows.iter().map(|row| line(row, &widths)).collect()
    }
}

fn line(row: &[String; HEADER.len()], widths: &[usize; HEADER.len()]) -> String {
    let mut line = String::new();
    for (cell, width) in row.iter().zip(widths) {
        // Writing to a String cannot fail.
        write!(line, "{cell:width$}  ").ok();
    }
    format!("{}\n", line.trim_end())
}

/// How many letters there are, by reason, the most first.
pub(super) fn counted(count: &Count) -> String {
    let mut reasons: Vec<_> = count.reasons.iter().collect();
    reasons.sort_by_key(|(_, of)| std::cmp::Reverse(of.letters));
    let shown = |time: Option<jiff::Timestamp>| time.map_or_else(dash, |time| format!("{time:.0}"));
    let rows = reasons.into_iter().map(|(reason, of)| {
        [
            on_a_line(reason),
            of.letters.to_string(),
            of.bytes.to_string(),
            of.replayed.to_string(),
            shown(of.oldest),
            shown(of.newest),
        ]
    });
    let header = ["REASON", "LETTERS", "BYTES", "REPLAYED", "OLDEST", "NEWEST"].map(str::to_owned);
    let rows: Vec<_> = std::iter::once(header).chain(rows).collect();
    let width = rows.iter().map(|row| row[0].chars().count()).max();
    let width = width.unwrap_or(0);
    let mut text = String::new();
    for [reason, letters, bytes, replayed, oldest, newest] in &rows {
        // Writing to a String cannot fail.
        writeln!(
            text,
            "{reason:width$}  {letters:>9}  {bytes:>12}  {replayed:>9}  {oldest:20}  {newest}"
        )
        .ok();
    }
    let Count {
        looked,
        letters,
        bytes,
        ..
    } = count;
    writeln!(text, "{letters} of {looked} dead letters, {bytes} bytes").ok();
    text
}

fn row(letter: &Letter) -> [String; HEADER.len()] {
    let shown = |text: &Option<String>| text.as_deref().map_or_else(dash, on_a_line);
    let mut detail = shown(&letter.detail);
    if let Some((cut, _)) = detail.char_indices().nth(DETAIL_CHARACTERS_MAX) {
        detail.truncate(cut);
        detail.push('…');
    }
    [
        letter.id.clone(),
        letter.time.map_or_else(dash, |time| format!("{time:.0}")),
        shown(&letter.reason),
        shown(&letter.node),
        shown(&letter.plugin),
        letter.attempts.map_or_else(dash, |tries| tries.to_string()),
        letter.replays.to_string(),
        letter.bytes.to_string(),
        detail,
    ]
}

/// One letter: every property and header, an empty line, the body.
pub(super) fn whole(whole: &Whole, bytes_max: usize) -> String {
    let (letter, properties) = (&whole.letter, &whole.properties);
    let mut lines = vec![
        ("id".to_owned(), letter.id.clone()),
        ("bytes".to_owned(), letter.bytes.to_string()),
    ];
    for (name, value) in [
        ("message-id", &properties.message_id),
        ("content-type", &properties.content_type),
        ("content-encoding", &properties.content_encoding),
    ] {
        lines.extend(
            value
                .iter()
                .map(|value| (name.to_owned(), on_a_line(value))),
        );
    }
    let headers = properties.headers.iter();
    lines.extend(headers.map(|(name, value)| (on_a_line(name), on_a_line(value))));
    let width = lines.iter().map(|(name, _)| name.chars().count() + 1).max();
    let width = width.unwrap_or(0);
    let mut text = String::new();
    for (name, value) in &lines {
        // Writing to a String cannot fail.
        writeln!(text, "{:width$} {value}", format!("{name}:")).ok();
    }
    let encoding = properties.content_encoding.as_deref();
    let (body, note) = body(&whole.body, encoding, bytes_max);
    write!(text, "\n{body}\n").ok();
    if let Some(note) = note {
        writeln!(text, "[{note}]").ok();
    }
    text
}

/// The body to show, and what is to be said about it. Whatever its size or depth, it takes memory as it is shown.
fn body(bytes: &[u8], encoding: Option<&str>, bytes_max: usize) -> (String, Option<String>) {
    let encoding = encoding.filter(|encoding| *encoding == "zstd");
    let (encoding, note) = match measure(bytes, encoding, bytes_max) {
        Ok(_) => (encoding, None),
        Err(error) => (None, Some(format!("cannot be unpacked: {error}"))),
    };
    let length = measure(bytes, encoding, bytes_max).unwrap_or_default();
    let mut head = Vec::new();
    if let Ok(body) = open(bytes, encoding, bytes_max) {
        // Reading from memory fails nowhere that measuring it did not.
        body.take(HEAD_BYTES_MAX).read_to_end(&mut head).ok();
    }
    let is_json = open(bytes, encoding, bytes_max)
        .is_ok_and(|body| serde_json::from_reader::<_, IgnoredAny>(BufReader::new(body)).is_ok());
    let mut shown = Head::default();
    let text = String::from_utf8_lossy(&head);
    // What is full is full: the rest is not shown.
    if is_json {
        json::print(&text, &mut shown).ok();
    } else {
        for c in text.chars() {
            if write!(shown, "{c}").is_err() {
                break;
            }
        }
    }
    let is_cut = shown.is_full || length > HEAD_BYTES_MAX;
    let text = String::from_utf8_lossy(&shown.bytes);
    let text = terminal::lines(&text).into_owned();
    let cut = || format!("cut here: the body has {length} bytes");
    (text, note.or_else(|| is_cut.then(cut)))
}

/// The body as it was before it was packed: at most `bytes_max`, so that a small bomb stays small.
fn open<'a>(
    bytes: &'a [u8],
    encoding: Option<&str>,
    bytes_max: usize,
) -> std::io::Result<Box<dyn Read + 'a>> {
    let limit = u64::try_from(bytes_max).unwrap_or(u64::MAX);
    Ok(match encoding {
        Some(_) => Box::new(zstd::Decoder::with_buffer(bytes)?.take(limit)),
        None => Box::new(bytes),
    })
}

/// How long the body is unpacked.
fn measure(bytes: &[u8], encoding: Option<&str>, bytes_max: usize) -> std::io::Result<u64> {
    std::io::copy(&mut open(bytes, encoding, bytes_max)?, &mut std::io::sink())
}

/// The beginning of what is written to it, by whole characters.
#[derive(Debug, Default)]
struct Head {
    bytes: Vec<u8>,
    is_full: bool,
}

impl std::io::Write for Head {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.bytes.len() + bytes.len() > BODY_BYTES_MAX {
            self.is_full = true;
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The last line of a replay or drop.
pub(super) fn done(verb: &str, is_dry_run: bool, report: &Report) -> String {
    let verb = match (verb, is_dry_run) {
        ("drop", false) => "dropped",
        ("drop", true) => "would drop",
        (_, false) => "replayed",
        (_, true) => "would replay",
    };
    let (done, matched, looked) = (report.done, report.matched, report.looked);
    let rest = match report.refused {
        0 => String::new(),
        refused => format!("; {refused} could not be replayed and are still dead letters"),
    };
    format!("{verb} {done} of {matched} matching dead letters ({looked} looked at){rest}\n")
}

fn dash() -> String {
    "-".to_owned()
}

fn on_a_line(text: &str) -> String {
    terminal::line(text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Properties;

    fn letter(detail: &str) -> Letter {
        let header = |name: &str, value: &str| (format!("x-vogeler-{name}"), value.to_owned());
        let properties = Properties {
            headers: [
                header("detail", detail),
                header("reason", "forbidden"),
                header("time", "2026-11-22T12:00:00.5Z"),
            ]
            .into(),
            ..Properties::default()
        };
        Letter::read(b"{}", &properties)
    }

    /// Goal: the table is aligned, long details are cut, and an escape sequence in one cannot reach the terminal.
    #[test]
    fn the_table_is_safe_and_aligned() {
        let mut table = Table::default();
        for detail in ["no\x1b[2J\nbad", &"ü".repeat(100)] {
            assert_eq!(table.push(&letter(detail)), None);
        }
        let text = table.finish();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(
            lines[1].contains("2026-11-22T12:00:00Z  forbidden  -"),
            "{text}"
        );
        assert!(lines[1].ends_with(r"no\u{1b}[2J\nbad"), "{text}");
        assert!(
            lines[2].ends_with(&format!("  {}…", "ü".repeat(60))),
            "{text}"
        );
        let at = |line: &str| line.find("forbidden").or_else(|| line.find("REASON"));
        assert!(lines.iter().all(|line| at(line) == at(lines[0])), "{text}");
    }

    /// Goal: a body is shown unpacked, with a line a member and every digit; what is no JSON, or no zstd, as it is;
    /// and a bomb within bounds.
    #[test]
    fn bodies_are_shown_as_they_can_be() {
        let json = br#"{"a":12345678901234567890,"b":[1]}"#;
        let pretty = "{\n  \"a\": 12345678901234567890,\n  \"b\": [\n    1\n  ]\n}";
        let packed = zstd::encode_all(&json[..], 3).unwrap();
        assert_eq!(body(json, None, 1_000), (pretty.to_owned(), None));
        assert_eq!(
            body(&packed, Some("zstd"), 1_000),
            (pretty.to_owned(), None)
        );
        assert_eq!(body(b"not\x07json\n", None, 1_000).0, "not\\u{7}json\n");
        let (_, note) = body(b"rubbish", Some("zstd"), 1_000);
        assert!(note.unwrap().starts_with("cannot be unpacked"));
        let bomb = zstd::encode_all(std::io::repeat(b'x').take(9_000_000), 3).unwrap();
        let (text, note) = body(&bomb, Some("zstd"), 1_000_000);
        assert_eq!(text.len(), BODY_BYTES_MAX);
        assert_eq!(note.unwrap(), "cut here: the body has 1000000 bytes");
        let deep = "[".repeat(600_000) + &"]".repeat(600_000);
        let (text, note) = body(deep.as_bytes(), None, 2_000_000);
        assert!(text.len() <= BODY_BYTES_MAX && text.starts_with("[\n  [\n    [\n"));
        assert_eq!(note.unwrap(), "cut here: the body has 1200000 bytes");
        let hostile = "{\"a\":\"\u{9b}1m\u{202e}\"}".as_bytes();
        assert_eq!(
            body(hostile, None, 1_000).0,
            "{\n  \"a\": \"\\u009b1m\\u202e\"\n}"
        );
    }

    /// Goal: rows come as soon as the widths are known, and nothing of the queue is kept.
    #[test]
    fn rows_come_as_they_are_read() {
        let mut table = Table::default();
        let texts: Vec<_> = (0..250).filter_map(|_| table.push(&letter("x"))).collect();
        assert_eq!(texts.len(), 151);
        assert_eq!(texts[0].lines().count(), 101);
        assert!(texts[1..].iter().all(|text| text.lines().count() == 1));
        assert_eq!((table.waiting.len(), table.finish().as_str()), (0, ""));
        assert_eq!(Table::default().finish(), "");
    }

    /// Goal: the counts are a line a reason, the most first, and the whole.
    #[test]
    fn counts_are_a_line_a_reason() {
        let of = |letters, bytes| crate::dead::count::OfReason {
            letters,
            bytes,
            ..Default::default()
        };
        let count = Count {
            looked: 5,
            letters: 4,
            bytes: 30,
            reasons: [
                ("a\x1b".to_owned(), of(1, 10)),
                ("forbidden".to_owned(), of(3, 20)),
            ]
            .into(),
        };
        let text = counted(&count);
        let lines: Vec<_> = text.lines().collect();
        assert!(
            lines[1].starts_with("forbidden          3            20"),
            "{text}"
        );
        assert!(lines[2].starts_with(r"a\u{1b} "), "{text}");
        assert_eq!(lines[3], "4 of 5 dead letters, 30 bytes");
    }
}
