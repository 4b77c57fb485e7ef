//! What a stranger could put into a value, on every store: it is stored, or it is that document's verdict with a reason. It
//! never fails the call, and its neighbours are stored.

use vogeler::store::Verdict;

use super::place::{Place, node, write};

/// What it is, and the value's JSON text.
fn values() -> Vec<(&'static str, String)> {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let objects = |depth: usize| format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
    let members: Vec<String> = (0..20_000).map(|n| format!("\"k{n}\":{n}")).collect();
    [
        ("64 levels", nested(64)),
        ("64 objects", objects(64)),
        // SQLite reads 1,000. Far deeper ones never come so far, and break pouchdb-server as a whole.
        ("2,000 levels", nested(2_000)),
        ("2,000 objects", objects(2_000)),
        ("a double past its range", "1e400".to_owned()),
        ("a negative one", "-1e400".to_owned()),
        ("an exponent past any", "1e99999999999".to_owned()),
        ("a double below its range", "1e-400".to_owned()),
        ("minus zero", "-0".to_owned()),
        ("an integer of 309 digits", "1".repeat(309)),
        ("an integer of 100,000 digits", "1".repeat(100_000)),
        (
            "a fraction of 1,000 digits",
            format!("0.{}", "1".repeat(1_000)),
        ),
        ("a lone high surrogate", r#""\ud800""#.to_owned()),
        ("a lone low surrogate", r#""\udc00""#.to_owned()),
        (
            "surrogates the wrong way round",
            r#""\udc00\ud800""#.to_owned(),
        ),
        ("a lone surrogate in a key", r#"{"\ud800":1}"#.to_owned()),
        ("a NUL", r#""a\u0000b""#.to_owned()),
        ("a NUL in a key", r#"{"\u0000":1}"#.to_owned()),
        (
            "no characters",
            "\"\u{ffff}\u{feff}\u{7f}\u{10ffff}\"".to_owned(),
        ),
        (
            "a key of 1 MB",
            format!("{{\"{}\":1}}", "k".repeat(1_000_000)),
        ),
        ("a repeated key", r#"{"a":1,"a":2}"#.to_owned()),
        ("an empty key", r#"{"":1}"#.to_owned()),
        (
            "CouchDB's keys inside",
            r#"{"_id":1,"_rev":2,"_deleted":true,"_attachments":{}}"#.to_owned(),
        ),
        (
            "JavaScript's keys",
            r#"{"__proto__":{"x":1},"constructor":1,"toString":2}"#.to_owned(),
        ),
        ("20,000 keys", format!("{{{}}}", members.join(","))),
    ]
    .into()
}

/// Goal: whatever a value holds, the call has a verdict for it and stores its neighbours; what is stored can be read, and the
/// store can still list its nodes.
pub(super) async fn every_value_has_a_verdict(place: &Place) {
    let mut stored = 0;
    for (index, (what, value)) in values().into_iter().enumerate() {
        let json = format!(
            r#"{{"doc_type":"SystemRecord","p":{value},"vogeler":{{"plugins":{{"p":{{}}}}}}}}"#
        );
        let [before, hostile, after] =
            ["before", "hostile", "after"].map(|id| format!("{id}{index}"));
        let writes = vec![
            write(&before, None, "{}"),
            write(&hostile, None, &json),
            write(&after, None, "{}"),
        ];
        let verdicts = place.store.write(writes).await;
        let verdicts = verdicts.unwrap_or_else(|error| panic!("{what}: {error}"));
        for id in [&before, &after] {
            let verdict = &verdicts[id.as_str()];
            assert!(matches!(verdict, Verdict::Stored(_)), "{what}: {verdict:?}");
        }
        match &verdicts[hostile.as_str()] {
            Verdict::Stored(_) => {
                let read = place.store.load(&[node(&hostile), node(&after)]).await;
                assert_eq!(read.unwrap().len(), 2, "{what}");
                stored += 1;
            }
            Verdict::Refused { error, reason } => {
                assert!(
                    !error.is_empty() && !reason.is_empty(),
                    "{what}: {error} {reason}"
                );
            }
            other => panic!("{what}: {other:?}"),
        }
    }
    assert_eq!(place.store.nodes().await.unwrap().len(), stored);
}
