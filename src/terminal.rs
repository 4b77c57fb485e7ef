//! Foreign text on the operator's terminal. All text of a plugin, a message or another server goes through here before
//! people see it; output for programs (`--json`) does not.
//!
//! Invariant: no character is printed as it is if it steers a terminal, changes the writing direction, or is invisible.
//! Its Rust escape is printed instead: `\u{1b}`. Pure.

use std::borrow::Cow;

/// Characters that are invisible, or change how others look: format characters (category Cf), variation selectors and
/// tags, fillers, separators of lines and paragraphs. Control characters are checked separately.
const HIDDEN: [(char, char); 30] = [
    ('\u{ad}', '\u{ad}'),
    ('\u{34f}', '\u{34f}'),
    ('\u{600}', '\u{605}'),
    ('\u{61c}', '\u{61c}'),
    ('\u{6dd}', '\u{6dd}'),
    ('\u{70f}', '\u{70f}'),
    ('\u{890}', '\u{891}'),
    ('\u{8e2}', '\u{8e2}'),
    ('\u{115f}', '\u{1160}'),
    ('\u{17b4}', '\u{17b5}'),
    ('\u{180b}', '\u{180f}'),
    ('\u{200b}', '\u{200f}'),
    ('\u{2028}', '\u{202e}'),
    ('\u{2060}', '\u{206f}'),
    ('\u{2800}', '\u{2800}'),
    ('\u{3164}', '\u{3164}'),
    ('\u{d7fc}', '\u{d7ff}'),
    ('\u{e000}', '\u{f8ff}'),
    ('\u{fe00}', '\u{fe0f}'),
    ('\u{feff}', '\u{feff}'),
    ('\u{ffa0}', '\u{ffa0}'),
    ('\u{fff0}', '\u{fffb}'),
    ('\u{110bd}', '\u{110bd}'),
    ('\u{110cd}', '\u{110cd}'),
    ('\u{13430}', '\u{1343f}'),
    ('\u{1bca0}', '\u{1bca3}'),
    ('\u{1d173}', '\u{1d17a}'),
    ('\u{e0000}', '\u{e0fff}'),
    ('\u{f0000}', '\u{ffffd}'),
    ('\u{100000}', '\u{10fffd}'),
];

/// Whether a character may not reach a terminal as it is.
pub fn is_unsafe(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_control();
    }
    let after = HIDDEN.partition_point(|(first, _)| *first <= c);
    let range = after.checked_sub(1).and_then(|index| HIDDEN.get(index));
    c.is_control() || range.is_some_and(|(_, last)| c <= *last)
}

/// Text in one line: line ends and tabs are escaped, too, so that it cannot pretend to be another line or column.
pub fn line(text: &str) -> Cow<'_, str> {
    escape(text, is_unsafe)
}

/// Text of several lines: line ends and tabs stay.
pub fn lines(text: &str) -> Cow<'_, str> {
    escape(text, |c| is_unsafe(c) && !matches!(c, '\n' | '\t'))
}

fn escape(text: &str, is_escaped: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            c if !is_escaped(c) => shown.push(c),
            '\n' | '\t' | '\r' => shown.extend(c.escape_default()),
            c => shown.extend(c.escape_unicode()),
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Goal: text in any language stays as it is; characters that steer or hide are escaped.
    #[test]
    fn what_people_read_stays() {
        for text in ["", "web01: größer als 5 €", "日本語 العربية עברית", "🦀 ½"]
        {
            assert!(matches!(line(text), Cow::Borrowed(_)), "{text}");
        }
        for (text, shown) in [
            ("\x1b[2J\x07", r"\u{1b}[2J\u{7}"),
            ("\u{9b}31m\u{7f}", r"\u{9b}31m\u{7f}"),
            (
                "a\u{202e}b\u{2066}c\u{200f}",
                r"a\u{202e}b\u{2066}c\u{200f}",
            ),
            (
                "a\u{2028}b\u{feff}\u{e0041}",
                r"a\u{2028}b\u{feff}\u{e0041}",
            ),
            ("a\r\n\tb", r"a\r\n\tb"),
        ] {
            assert_eq!(line(text), shown);
        }
        assert_eq!(lines("a\r\n\tb\x1b"), "a\\r\n\tb\\u{1b}");
    }

    proptest! {
        /// Whatever the text, nothing unsafe is left, and escaping again changes nothing.
        #[test]
        fn nothing_unsafe_is_left(text in any::<String>()) {
            let one = line(&text);
            prop_assert!(!one.contains(is_unsafe));
            prop_assert_eq!(line(&one), one.as_ref());
            let many = lines(&text);
            prop_assert!(!many.contains(|c| is_unsafe(c) && c != '\n' && c != '\t'));
        }
    }

    /// Goal: the table is in order, as the search in it needs.
    #[test]
    fn the_table_is_in_order() {
        assert!(HIDDEN.is_sorted());
        assert!(HIDDEN.iter().all(|(first, last)| first <= last));
    }
}
