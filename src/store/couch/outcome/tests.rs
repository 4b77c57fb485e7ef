//! Every row of the design's table of verdicts, on literal answers of CouchDB where they were recorded.

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::store::Revision;

const ANSWERS: &str = include_str!("../../../../tests/fixtures/couchdb/answers-3.5.0.jsonl");

/// The recorded answer of `case`.
fn recorded(case: &str) -> Reply {
    let exchanges = ANSWERS
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let exchange = exchanges
        .into_iter()
        .find(|exchange| exchange["case"] == case);
    let response = &exchange.unwrap_or_else(|| panic!("no case {case:?}"))["response"];
    let status = u16::try_from(response["status"].as_u64().unwrap()).unwrap();
    reply(status, response["body"].as_str().unwrap())
}

fn reply(status: u16, body: &str) -> Reply {
    Reply {
        status,
        retry_after: None,
        body: Bytes::copy_from_slice(body.as_bytes()),
    }
}

fn answer(reply: &Reply, sent: &[&str]) -> Answer {
    let sent: Vec<NodeName> = sent.iter().map(|id| id.parse().unwrap()).collect();
    classify(reply, &sent.iter().collect::<Vec<_>>())
}

fn rows(reply: &Reply, sent: &[&str]) -> Verdicts {
    match answer(reply, sent) {
        Answer::Rows(verdicts) => {
            assert_eq!(verdicts.len(), sent.len(), "{verdicts:?}");
            verdicts
        }
        other => panic!("no rows: {other:?}"),
    }
}

fn stored(revision: &str) -> Verdict {
    Verdict::Stored(Revision(revision.into()))
}

/// Goal: a 201 with rows `ok` means stored, each document with its own revision.
#[test]
fn good_rows_are_stored() {
    let verdicts = rows(&recorded("two new documents"), &["a", "b"]);
    assert_eq!(verdicts["a"], stored("1-7a7e4b29f3af401e69b6f86e4c26b727"));
    assert_eq!(verdicts["b"], stored("1-7a7e4b29f3af401e69b6f86e4c26b727"));
}

/// Goal: a row's error without a word is an error, and gets the word `unknown_error`.
#[test]
fn an_error_without_a_word_is_unknown() {
    let answer = r#"[{"id":"a","rev":"1-x","error":""},{"id":"b","error":true,"name":""}]"#;
    let verdicts = rows(&reply(201, answer), &["a", "b"]);
    for id in ["a", "b"] {
        let Verdict::Failed { error, .. } = &verdicts[id] else {
            panic!("{:?}", verdicts[id]);
        };
        assert_eq!(error, "unknown_error");
    }
}

/// Goal: a long reason, of a row or of the whole request, is cut, since it goes to logs and dead letters.
#[test]
fn reasons_are_cut() {
    let long = "x".repeat(100_000);
    let row = json!([{"id": "a", "error": "forbidden", "reason": long}]).to_string();
    let Some(Verdict::Refused { reason, .. }) = rows(&reply(201, &row), &["a"]).remove("a") else {
        panic!("not refused");
    };
    assert_eq!(reason.len(), 1024);
    let whole = json!({"error": "internal", "reason": long}).to_string();
    let Answer::Away { reason, .. } = answer(&reply(500, &whole), &["a"]) else {
        panic!("not away");
    };
    assert!(reason.len() < 1_100, "{}", reason.len());
}

/// Goal: a conflict, although its status is 201, is no success; the rows beside it are.
#[test]
fn conflicts_are_told_from_their_neighbours() {
    let verdicts = rows(&recorded("conflicts among good rows"), &["a", "c", "b"]);
    assert_eq!(verdicts["a"], Verdict::Conflict);
    assert_eq!(verdicts["b"], Verdict::Conflict);
    assert!(matches!(verdicts["c"], Verdict::Stored(_)));
    for (case, id) in [
        ("resend of an applied edit", "a"),
        (
            "update a deleted document with the revision before its deletion",
            "del",
        ),
    ] {
        assert_eq!(
            rows(&recorded(case), &[id])[id],
            Verdict::Conflict,
            "{case}"
        );
    }
    let verdicts = rows(&recorded("malformed revision"), &["b", "d"]);
    assert_eq!(verdicts["b"], Verdict::Conflict);
}

/// Goal: an id that came twice conflicts, whatever the order of its rows.
#[test]
fn an_id_with_two_rows_conflicts() {
    let twice = recorded("same id twice in one batch, both new");
    assert_eq!(rows(&twice, &["dup"])["dup"], Verdict::Conflict);
    let turned = r#"[{"id":"dup","error":"conflict"},{"ok":true,"id":"dup","rev":"1-a"}]"#;
    assert_eq!(
        rows(&reply(201, turned), &["dup"])["dup"],
        Verdict::Conflict
    );
}

/// Goal: a refusal by validate_doc_update is final; if validate_doc_update breaks, the document failed.
#[test]
fn refusals_of_validate_doc_update_are_final() {
    let refusals = recorded("refused by validate_doc_update among good ones");
    let verdicts = rows(&refusals, &["v1", "v2", "v3", "v4"]);
    assert_eq!(verdicts["v1"], refused("forbidden", "no bad documents"));
    assert_eq!(verdicts["v2"], refused("unauthorized", "not you"));
    assert!(matches!(&verdicts["v3"], Verdict::Failed { error, .. } if error == "unknown_error"));
    assert!(matches!(verdicts["v4"], Verdict::Stored(_)));
}

/// Goal: rows are matched by id: any order, foreign rows, missing rows, rows without an id.
#[test]
fn rows_are_matched_by_id() {
    let body =
        r#"[{"ok":true,"id":"x","rev":"1-x"},{"error":"boom"},{"ok":true,"id":"b","rev":"1-b"}]"#;
    let verdicts = rows(&reply(201, body), &["a", "b"]);
    assert_eq!(verdicts["b"], stored("1-b"));
    assert!(matches!(&verdicts["a"], Verdict::Failed { error, .. } if error == "missing_row"));
    let verdicts = rows(&reply(201, r#"[{"ok":true,"id":"a"}]"#), &["a"]);
    assert!(matches!(&verdicts["a"], Verdict::Failed { error, .. } if error == "missing_revision"));
}

/// Goal: `PouchDB`'s rows, whose `error` is `true`, are read like CouchDB's.
#[test]
fn rows_of_pouchdb_are_understood() {
    let body = json!([{"status": 409, "name": "conflict", "message": "Document update conflict",
        "error": true, "id": "a"}]);
    let verdicts = rows(&reply(201, &body.to_string()), &["a"]);
    assert_eq!(verdicts["a"], Verdict::Conflict);
}

/// Goal: 500 and 417 with an array are processed row by row; without an array nothing is known.
#[test]
fn an_array_counts_whatever_the_status() {
    let body = r#"[{"id":"a","error":"internal_server_error","reason":"x"},{"ok":true,"id":"b","rev":"1-b"}]"#;
    for status in [500, 417] {
        let verdicts = rows(&reply(status, body), &["a", "b"]);
        assert_eq!(verdicts["b"], stored("1-b"));
        assert!(matches!(verdicts["a"], Verdict::Failed { .. }));
    }
}

/// Goal: a document that is too large is named by the answer and is the only one refused.
#[test]
fn a_named_culprit_is_taken_out() {
    let too_large = recorded("one document over max_document_size among good ones");
    let found = answer(&too_large, &["ok-before", "too-big", "ok-after"]);
    let expected = Answer::Culprit {
        id: "too-big".parse().unwrap(),
        verdict: refused("document_too_large", "too-big"),
    };
    assert_eq!(found, expected);
    assert!(matches!(
        answer(&too_large, &["other"]),
        Answer::Bisect { .. }
    ));
}

/// Goal: every 400 by CouchDB starts the search for the bad document; any other 400 blames no document.
#[test]
fn an_unnamed_culprit_is_searched() {
    for case in [
        "revision that is no revision",
        "id with a leading underscore",
        "unknown underscore member",
        "document that is not an object",
        "body is not JSON",
        "body has invalid UTF-8",
    ] {
        assert!(
            matches!(answer(&recorded(case), &["a"]), Answer::Bisect { .. }),
            "{case}"
        );
    }
    let proxy = reply(400, "<html>bad request</html>");
    assert!(matches!(answer(&proxy, &["a"]), Answer::Protocol { .. }));
}

/// Goal: an integer of 400 digits makes CouchDB 3.5.0 answer 500 (literal answer): the search for one document starts,
/// and nothing pauses.
#[test]
fn a_number_that_breaks_couchdb_is_searched() {
    let badarith = r#"{"error":"unknown_error","reason":"badarith","ref":2439266898}"#;
    let found = answer(&reply(500, badarith), &["a", "b"]);
    assert!(matches!(found, Answer::Bisect { .. }), "{found:?}");
}

/// Goal: a request that is too large is halved, also if a proxy refuses it.
#[test]
fn too_long_a_request_is_halved() {
    let recorded = recorded("request over max_http_request_size (set to 100000)");
    for too_long in [recorded, reply(413, "<html>413</html>")] {
        let verdict = refused("too_large", "the request entity is too large");
        assert_eq!(answer(&too_long, &["a"]), Answer::TooLarge { verdict });
    }
}

/// Goal: after these statuses nothing is known of any document, and the server's `Retry-After` is kept.
#[test]
fn trouble_of_the_server_leaves_everything_open() {
    let maintenance = recorded("bulk_docs in maintenance mode");
    assert!(matches!(answer(&maintenance, &["mm"]), Answer::Away { .. }));
    for status in [408, 412, 425, 429, 500, 502, 503, 504, 507] {
        let mut busy = reply(status, r#"{"error":"busy","reason":"later"}"#);
        busy.retry_after = Some(Duration::from_secs(3));
        let expected = Answer::Away {
            reason: format!("HTTP {status} busy: later"),
            retry_after: Some(Duration::from_secs(3)),
            is_answer: status == 500,
        };
        assert_eq!(answer(&busy, &["a"]), expected);
    }
    let cut_off = reply(201, r#"[{"ok":true,"id":"a","rev":"1-"#);
    assert!(matches!(answer(&cut_off, &["a"]), Answer::Away { .. }));
}

/// Goal: a refused login is an answer of its own, with a wrong password and without one.
#[test]
fn a_refused_login_is_told() {
    for case in [
        "no credentials",
        "wrong password of an existing user, try 1",
    ] {
        assert!(
            matches!(answer(&recorded(case), &["a"]), Answer::Unauthorized { .. }),
            "{case}"
        );
    }
    let forbidden = reply(403, r#"{"error":"forbidden","reason":"locked"}"#);
    assert!(matches!(
        answer(&forbidden, &["a"]),
        Answer::Unauthorized { .. }
    ));
}

/// Goal: a missing database differs from any other 404, and from an answer that is not CouchDB's.
#[test]
fn a_missing_database_is_told() {
    let missing = recorded("database missing: bulk_docs");
    assert_eq!(answer(&missing, &["a"]), Answer::NoDatabase);
    for other in [
        reply(404, "<html>"),
        recorded("wrong content type"),
        reply(302, ""),
    ] {
        assert!(matches!(answer(&other, &["a"]), Answer::Protocol { .. }));
    }
}

proptest! {
    /// Whatever rows come back, every id that was sent has exactly one verdict, and an id is stored only if a good row
    /// of its own says so.
    #[test]
    fn every_id_has_one_verdict(
        sent in proptest::collection::btree_set("[a-e]", 1..5),
        came in proptest::collection::vec(("[a-g]", any::<bool>()), 0..10),
    ) {
        let body: Vec<_> = came.iter().map(|(id, good)| match good {
            true => json!({"ok": true, "id": id, "rev": "1-r"}),
            false => json!({"id": id, "error": "conflict", "reason": "r"}),
        }).collect();
        let sent: Vec<&str> = sent.iter().map(String::as_str).collect();
        let verdicts = rows(&reply(201, &json!(body).to_string()), &sent);
        for id in sent {
            let good = came.iter().filter(|(other, _)| other == id).all(|(_, good)| *good)
                && came.iter().any(|(other, _)| other == id);
            prop_assert_eq!(matches!(verdicts[id], Verdict::Stored(_)), good);
        }
    }
}
