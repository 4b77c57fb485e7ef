//! Enough of PromQL's grammar to tell which metrics an expression reads, and with which label matchers.
//!
//! Prometheus itself judges the rest (`promtool`, and the real one in `live.rs`).

use std::collections::BTreeSet;

/// One vector selector: a metric and its label matchers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Selector {
    pub(super) metric: String,
    /// Label, operator and value, the value without its quotes.
    pub(super) matchers: Vec<(String, String, String)>,
}

/// Words that are no metric although nothing follows them that would say so.
const KEYWORDS: [&str; 14] = [
    "and",
    "or",
    "unless",
    "bool",
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
    "offset",
    "start",
    "end",
    "inf",
];
/// Words that a list of labels follows.
const LABEL_LISTS: [&str; 6] = [
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
];

/// All selectors of `expression`.
pub(super) fn selectors(expression: &str) -> BTreeSet<Selector> {
    let mut found = BTreeSet::new();
    let mut rest = expression;
    while let Some(start) = rest.find(|c: char| !c.is_whitespace()) {
        rest = &rest[start..];
        let word = word_at(rest);
        if word.is_empty() {
            rest = skip_one(rest);
            continue;
        }
        rest = rest[word.len()..].trim_start();
        if LABEL_LISTS.contains(&word) && rest.starts_with('(') {
            rest = after(rest, ')');
        } else if !KEYWORDS.contains(&word) && !rest.starts_with('(') && !is_aggregator(rest) {
            let is_filtered = rest.starts_with('{');
            let braces = if is_filtered { braces_at(rest) } else { "" };
            found.insert(Selector {
                metric: word.to_owned(),
                matchers: matchers(braces),
            });
            rest = rest
                .get(braces.len() + 2 * usize::from(is_filtered)..)
                .unwrap_or_default();
        }
    }
    found
}

/// Whether the word before `rest` is one like `sum`, with its labels before what it sums.
fn is_aggregator(rest: &str) -> bool {
    matches!(word_at(rest), "by" | "without")
}

/// A name that starts here, or nothing: numbers (`5m`, `1e6`) are none.
fn word_at(text: &str) -> &str {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let end = text.find(|c| !is_part(c)).unwrap_or(text.len());
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        ""
    } else {
        &text[..end]
    }
}

/// Over a number, a range in brackets, a string, or one character.
fn skip_one(text: &str) -> &str {
    match text.chars().next() {
        Some('[') => after(text, ']'),
        Some('"') => after(&text[1..], '"'),
        Some('0'..='9') => text.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '.'),
        Some(c) => &text[c.len_utf8()..],
        None => "",
    }
}

fn after(text: &str, end: char) -> &str {
    text.split_once(end).map_or("", |(_, rest)| rest)
}

/// What stands between the braces that start here. A value in quotes may hold braces.
fn braces_at(text: &str) -> &str {
    let mut is_quoted = false;
    for (at, c) in text.char_indices() {
        match c {
            '"' => is_quoted = !is_quoted,
            '}' if !is_quoted => return &text[1..at],
            _ => {}
        }
    }
    &text[1..]
}

fn matchers(braces: &str) -> Vec<(String, String, String)> {
    let mut found = Vec::new();
    let mut rest = braces;
    while let Some((head, tail)) = rest.split_once('"') {
        let (value, next) = tail.split_once('"').unwrap_or((tail, ""));
        let label = word_at(head.trim_start_matches([',', ' ']));
        let operator = head.trim_start_matches([',', ' '])[label.len()..].trim();
        found.push((label.to_owned(), operator.to_owned(), value.to_owned()));
        rest = next;
    }
    found
}

/// Goal: functions, keywords, label lists, ranges, strings and numbers are no metrics; recording rules are.
#[test]
fn metrics_are_told_from_the_rest() {
    let expression = r#"topk(10, sum by (le, kind) (rate(a_total{x="{y}",z=~"b|c"}[5m]))) / 1e6 * on (job) group_left (v) job:b:sum
        and on (i) time() - c_seconds{} > 900 or vector(0)"#;
    let found: Vec<_> = selectors(expression).into_iter().collect();
    let names: Vec<_> = found
        .iter()
        .map(|selector| selector.metric.as_str())
        .collect();
    assert_eq!(names, ["a_total", "c_seconds", "job:b:sum"]);
    let owned = |label: &str, operator: &str, value: &str| {
        (label.to_owned(), operator.to_owned(), value.to_owned())
    };
    assert_eq!(
        found[0].matchers,
        [owned("x", "=", "{y}"), owned("z", "=~", "b|c")]
    );
}
