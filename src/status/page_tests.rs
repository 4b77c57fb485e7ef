use serde_json::json;
use tracing::Level;

use super::*;
use crate::telemetry::{Role, catalogue as c};

static WATCHED: Watched = &[("Runs", &c::RUNS)];

/// What an attacker may send in a node or plugin name, or in a text that ends in an error.
const HOSTILE: &str =
    "\"><script>alert(1)</script><img src=x onerror=alert(2)>'&amp;{{7*7}}\u{202e}";

fn render_with(hostile: &str) -> String {
    let about = About::new(
        Role::Client,
        hostile.to_owned(),
        vec![("client.plugins", hostile.to_owned())],
    );
    let readiness = json!({
        "ready": false, "broker": {"ok": false, "reason": hostile}, "draining": true,
        "last_write": {"at": null}, "store": {"ok": true}, "partitions": {"owned": [0, 3], "servers": 2},
        "other": {"at": hostile, "list": [hostile], "text": hostile},
    });
    let report = Report {
        figures: vec![Figure {
            name: "Backlog",
            value: hostile.to_owned(),
            note: hostile.to_owned(),
        }],
        tables: vec![Table {
            title: "Plugins",
            note: "",
            head: vec![Column::Text("Plugin"), Column::Number("Ok")],
            rows: vec![vec![hostile.to_owned(), hostile.to_owned()]],
            empty: "",
        }],
    };
    let now = Timestamp::now();
    let entry = Entry {
        at: now,
        level: Level::ERROR,
        target: "vogeler::store",
        text: hostile.to_owned(),
        times: 2,
    };
    let page = Page {
        about: &about,
        is_ready: false,
        readiness: &readiness,
        report: &report,
        watched: WATCHED,
        rates: &Rates::default(),
        journal: &[entry],
        now,
    };
    render(&page).into_string()
}

/// Goal: hostile text anywhere in the page adds no element and no attribute: the tags are those of a harmless page.
#[test]
fn hostile_text_makes_no_tags() {
    let tags = |text: &str| {
        let html = render_with(text);
        let body = html.split_once("</style>").unwrap().1.to_owned();
        let tags = body.split('<').skip(1);
        let tags: Vec<_> = tags
            .map(|tag| tag.split('>').next().unwrap().to_owned())
            .collect();
        (html, tags)
    };
    let (html, hostile) = tags(HOSTILE);
    assert_eq!(hostile, tags("harmless").1);
    assert!(
        !html.contains("<script") && !html.contains("<img"),
        "{html}"
    );
    let shown = html
        .matches("&lt;script&gt;alert(1)&lt;/script&gt;")
        .count();
    assert!(shown >= 10, "it is shown as text: {shown}");
}

/// Goal: text that changes the writing direction affects only its own element.
#[test]
fn directions_do_not_leave_their_element() {
    let html = render_with("\u{202e}");
    let body = html.split_once("<body>").unwrap().1;
    let mut outside = body.split("<bdi>");
    assert!(!outside.next().unwrap().contains('\u{202e}'));
    for piece in outside {
        let (_, after) = piece.split_once("</bdi>").unwrap();
        assert!(!after.contains('\u{202e}'), "{after}");
    }
}

/// Goal: the page says in words what is wrong, links the other endpoints, and needs no script and no other resource.
#[test]
fn the_page_stands_alone() {
    let html = render_with("gone");
    for text in [
        "<strong>Not ready</strong>",
        "Broker: gone",
        "Draining",
        "✖ not ok",
        "✔ ok",
        "owned: 0, 3",
        "never",
        "href=\"/metrics\"",
        "href=\"/readyz\"",
        "href=\"/livez\"",
        "http-equiv=\"refresh\"",
        "lang=\"en\"",
        ", 2 times",
    ] {
        assert!(html.contains(text), "{text}: {html}");
    }
    for text in [
        "http:", "https:", "//", "url(", "@import", "<script", "<iframe", "src=",
    ] {
        assert!(!html.contains(text), "{text}");
    }
    assert_eq!(html.matches("<h1>").count(), 1);
}
