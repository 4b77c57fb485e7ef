//! Dead letters as text for a terminal. Pure.
//!
//! Invariant: what others sent cannot steer the terminal, nor fill it without end.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::Read;

use crate::cli::node::indented;
use crate::dead::letter::Letter;
use crate::dead::{Report, Whole};

/// Bytes of a body that are shown.
const BODY_BYTES_MAX: usize = 256 << 10;
/// Characters of the last column: the rest is in `show` and in the JSON.
const DETAIL_CHARACTERS_MAX: usize = 60;
const HEADER: [&str; 9] = [
    "ID", "TIME", "REASON", "NODE", "PLUGIN", "TRIES", "REPLAYS", "BYTES", "DETAIL",
];

/// A line a letter.
pub(super) fn table(letters: &[Letter]) -> String {
    let rows: Vec<[String; HEADER.len()]> = std::iter::once(HEADER.map(str::to_owned))
        .chain(letters.iter().map(row))
        .collect();
    let mut widths = [0; HEADER.len()];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            // Writing to a String cannot fail.
            write!(line, "{cell:width$}  ").ok();
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
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

/// The body to show, and what is to be said about it.
fn body(bytes: &[u8], encoding: Option<&str>, bytes_max: usize) -> (String, Option<String>) {
    let (bytes, mut note) = match encoding {
        Some("zstd") => match unpack(bytes, bytes_max) {
            Ok(unpacked) => (Cow::Owned(unpacked), None),
            Err(error) => (
                Cow::Borrowed(bytes),
                Some(format!("cannot be unpacked: {error}")),
            ),
        },
        _ => (Cow::Borrowed(bytes), None),
    };
    let json = serde_json::from_slice::<&serde_json::value::RawValue>(&bytes).ok();
    let mut text = match json {
        Some(json) => indented(json.get()),
        None => String::from_utf8_lossy(&bytes).into_owned(),
    };
    if text.len() > BODY_BYTES_MAX {
        note = Some(format!(
            "the first {BODY_BYTES_MAX} of {} bytes",
            text.len()
        ));
        crate::wire::truncate(&mut text, BODY_BYTES_MAX);
    }
    (printable(&text, true), note)
}

/// Unpacks at most `bytes_max` bytes, so that a small bomb stays small.
fn unpack(bytes: &[u8], bytes_max: usize) -> std::io::Result<Vec<u8>> {
    let mut unpacked = Vec::new();
    let limit = u64::try_from(bytes_max).unwrap_or(u64::MAX);
    zstd::Decoder::with_buffer(bytes)?
        .take(limit)
        .read_to_end(&mut unpacked)?;
    Ok(unpacked)
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
    let rest = match report.refused.len() {
        0 => String::new(),
        refused => format!("; {refused} could not be replayed and are still dead letters"),
    };
    format!("{verb} {done} of {matched} matching dead letters ({looked} looked at){rest}\n")
}

fn dash() -> String {
    "-".to_owned()
}

fn on_a_line(text: &str) -> String {
    printable(text, false)
}

/// Control characters as escapes, but for the ends of lines where they are wanted.
fn printable(text: &str, has_lines: bool) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && !(has_lines && matches!(c, '\n' | '\t')) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
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
        let text = table(&[letter("no\x1b[2J\nbad"), letter(&"ü".repeat(100))]);
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
        assert_eq!(note.unwrap(), "the first 262144 of 1000000 bytes");
    }
}
