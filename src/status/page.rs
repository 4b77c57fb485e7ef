//! The page as HTML.
//!
//! Turns what was gathered into text. Invariant: maud escapes every value, and foreign text is inside `bdi`, so that it
//! cannot change the writing direction of what follows.

use jiff::Timestamp;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde_json::Value;

use super::journal::Entry;
use super::rates::{LONG, Rates, SHORT};
use super::{About, Column, Figure, Report, Table, Watched, text};

/// Interval at which the page reloads itself, in seconds.
const REFRESH_SECONDS: u32 = 5;
const STYLE: &str = include_str!("page.css");
/// What a browser may do with the page: nothing but show it.
pub const CONTENT_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; \
    form-action 'none'; frame-ancestors 'none'";

/// All that the page shows.
#[derive(Debug)]
pub struct Page<'a> {
    /// What this process is.
    pub about: &'a About,
    /// Whether it is ready.
    pub is_ready: bool,
    /// What `/readyz` says.
    pub readiness: &'a Value,
    /// Figures and tables of the server or client.
    pub report: &'a Report,
    /// The counters whose rates are shown.
    pub watched: Watched,
    /// The rates.
    pub rates: &'a Rates,
    /// The last warnings and errors, the newest first.
    pub journal: &'a [Entry],
    /// Now.
    pub now: Timestamp,
}

/// Writes the page.
pub fn render(page: &Page<'_>) -> Markup {
    let About { role, name, .. } = page.about;
    let (mark, verdict) = if page.is_ready {
        ("✔", "Ready")
    } else {
        ("✖", "Not ready")
    };
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="refresh" content=(REFRESH_SECONDS);
                title { (verdict) " – vogeler " (role.as_str()) " " (name) }
                link rel="icon" href="data:,";
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { "Vogeler " (role.as_str()) " " bdi { (name) } }
                    p.verdict.good[page.is_ready].bad[!page.is_ready] {
                        span aria-hidden="true" { (mark) " " }
                        strong { (verdict) }
                        @for reason in reasons(page.readiness) { br; bdi { (reason) } }
                    }
                    nav aria-label="Endpoints" {
                        a href="/metrics" { "/metrics" } " "
                        a href="/readyz" { "/readyz" } " "
                        a href="/livez" { "/livez" }
                    }
                }
                main {
                    (figures(&page.report.figures))
                    (state(page.readiness, page.now))
                    (rates(page.watched, page.rates))
                    @for table in &page.report.tables { (section(table)) }
                    (journal(page.journal, page.now))
                    (process(page.about, page.now))
                }
                footer { p { "Made " (text::moment(page.now)) "; loads itself again every " (REFRESH_SECONDS) " s." } }
            }
        }
    }
}

/// A name of JSON or Rust as words: `last_write` is `Last write`.
fn words(name: &str) -> String {
    let mut words = name.replace('_', " ");
    if let Some(first) = words.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    words
}

/// Why it is not ready: one line per part.
fn reasons(readiness: &Value) -> Vec<String> {
    let parts = readiness.as_object().into_iter().flatten();
    let reason = |(name, part): (&String, &Value)| match part {
        Value::Bool(true) if name != "ready" => Some(words(name)),
        part if part["ok"] == false => {
            let reason = part["reason"].as_str().unwrap_or("no reason given");
            Some(format!("{}: {reason}", words(name)))
        }
        _ => None,
    };
    parts.filter_map(reason).collect()
}

fn figures(figures: &[Figure]) -> Markup {
    html! {
        h2 { "Now" }
        dl.figures {
            @for figure in figures {
                div {
                    dt { (figure.name) }
                    dd { bdi { (figure.value) } " " small { bdi { (figure.note) } } }
                }
            }
        }
    }
}

/// What `/readyz` says, part by part. Parts that decide readiness come first.
fn state(readiness: &Value, now: Timestamp) -> Markup {
    let parts = readiness.as_object().into_iter().flatten();
    let mut parts: Vec<_> = parts.filter(|(name, _)| *name != "ready").collect();
    parts.sort_by_key(|(_, part)| part.get("ok").is_none());
    html! {
        h2 { "State" }
        div.scroll { table.state {
            thead { tr { th scope="col" { "Part" } th scope="col" { "State" } th scope="col" { "Details" } } }
            tbody {
                @for (name, part) in parts {
                    tr {
                        th scope="row" { (words(name)) }
                        td { (verdict(part)) }
                        td.long { bdi { (details(part, now)) } }
                    }
                }
            }
        } }
    }
}

fn verdict(part: &Value) -> Markup {
    html! {
        @match part.get("ok").unwrap_or(part) {
            Value::Bool(is_ok) if part.is_object() => {
                @if *is_ok { span.good { "✔ ok" } } @else { span.bad { "✖ not ok" } }
            }
            Value::Bool(true) => "yes",
            Value::Bool(false) => "no",
            _ => "",
        }
    }
}

/// The members of a part, except its verdict, as words.
fn details(part: &Value, now: Timestamp) -> String {
    let members = part.as_object().into_iter().flatten();
    let members = members.filter(|(name, _)| *name != "ok");
    let details = members.map(|(name, value)| match (name.as_str(), value) {
        ("reason", Value::String(reason)) => reason.clone(),
        ("at", value) => when(value, now),
        (name, Value::Array(items)) => {
            let items: Vec<_> = items.iter().map(ToString::to_string).collect();
            let items = if items.is_empty() {
                "none".to_owned()
            } else {
                items.join(", ")
            };
            format!("{}: {items}", name.replace('_', " "))
        }
        (name, value) => {
            let shown = match value.as_f64() {
                Some(bytes) if name.starts_with("bytes") => text::bytes(bytes),
                Some(number) => text::count(number),
                None => value.to_string(),
            };
            format!("{}: {shown}", name.replace('_', " "))
        }
    });
    details.collect::<Vec<_>>().join("; ")
}

fn when(value: &Value, now: Timestamp) -> String {
    match value {
        Value::Null => "never".to_owned(),
        value => match value.as_str().unwrap_or_default().parse() {
            Ok(at) => format!("{} ({})", text::moment(at), text::ago(at, now)),
            Err(_) => value.to_string(),
        },
    }
}

fn rates(watched: Watched, rates: &Rates) -> Markup {
    let rows = watched.iter().enumerate().map(|(index, (name, _))| {
        let of = |window| text::rate(rates.over(index, window));
        let total = rates
            .total(index)
            .map_or_else(|| text::NOTHING.to_owned(), text::count);
        vec![(*name).to_owned(), of(SHORT), of(LONG), total]
    });
    section(&Table {
        title: "Rates",
        note: "A second, and how many since the start.",
        head: vec![
            Column::Text("What"),
            Column::Number("Last 10 s"),
            Column::Number("Last minute"),
            Column::Number("Total"),
        ],
        rows: rows.collect(),
        empty: "",
    })
}

fn section(table: &Table) -> Markup {
    html! {
        h2 { (table.title) }
        @if table.rows.is_empty() {
            p.note { (table.empty) }
        } @else {
            p.note { (table.note) }
            div.scroll tabindex="0" role="region" aria-label=(table.title) { table {
                thead { tr { @for column in &table.head {
                    @match column {
                        Column::Text(name) => th scope="col" { (name) },
                        Column::Number(name) => th.number scope="col" { (name) },
                    }
                } } }
                tbody { @for row in &table.rows { (cells(&table.head, row)) } }
            } }
        }
    }
}

fn cells(head: &[Column], row: &[String]) -> Markup {
    html! {
        tr { @for (index, (column, cell)) in head.iter().zip(row).enumerate() {
            @let is_number = matches!(column, Column::Number(_));
            @if index == 0 {
                th.number[is_number] scope="row" { bdi { (cell) } }
            } @else {
                td.number[is_number] { bdi { (cell) } }
            }
        } }
    }
}

fn journal(entries: &[Entry], now: Timestamp) -> Markup {
    html! {
        h2 { "Last warnings and errors" }
        @if entries.is_empty() {
            p.note { "None since the start." }
        } @else {
            p.note { "The newest first. The whole log is on standard error." }
            div.scroll { table {
                thead { tr { th scope="col" { "When" } th scope="col" { "What" } } }
                tbody { @for entry in entries { tr {
                    td.moment { (text::moment(entry.at)) br; span.when { (text::ago(entry.at, now)) } }
                    td.long {
                        strong { (entry.level.as_str()) } " "
                        (entry.target.trim_start_matches("vogeler::"))
                        @if entry.times > 1 { ", " (entry.times) " times" }
                        br;
                        bdi { (entry.text) }
                    }
                } } }
            } }
        }
    }
}

fn process(about: &About, now: Timestamp) -> Markup {
    let uptime = now.duration_since(about.started).as_secs_f64();
    let facts = [
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("process id", std::process::id().to_string()),
        ("started", text::moment(about.started)),
        ("up for", text::seconds(uptime.floor())),
    ];
    let settings = about.settings.iter().cloned();
    html! {
        h2 { "This process" }
        div.scroll { table { tbody {
            @for (name, value) in facts.into_iter().chain(settings) {
                tr { th scope="row" { (name) } td.long { bdi { (value) } } }
            }
        } } }
    }
}

#[cfg(test)]
#[path = "page_tests.rs"]
mod tests;
