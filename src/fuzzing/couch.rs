//! `couch`: answers of a CouchDB, or of whatever a proxy puts in their place.
//!
//! The input's first line has the kind of answer (`bulk`, `load` or `find`), its status and the requested ids; the rest is
//! the body.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde_json::Value;

use super::ERROR_BYTES_MAX;
use crate::store::couch::replies;
use crate::store::{StoreError, Verdict};
use crate::wire::NodeName;

/// Most documents in one request, so that a check stays cheap.
const IDS_MAX: usize = 16;

/// Every document has one verdict, counts as stored only if a row says so, and is read only from its own row.
pub fn couch(data: &[u8]) {
    let end = data
        .iter()
        .position(|byte| *byte == b'\n')
        .unwrap_or(data.len());
    let (head, body) = data.split_at(end);
    let body = body.strip_prefix(b"\n").unwrap_or_default();
    let Ok(head) = std::str::from_utf8(head) else {
        return;
    };
    let mut words = head.split(' ');
    let kind = words.next().unwrap_or_default();
    let Some(status) = words.next().and_then(|word| word.parse().ok()) else {
        return;
    };
    let ids: BTreeSet<NodeName> = words
        .filter_map(|id| id.parse().ok())
        .take(IDS_MAX)
        .collect();
    let reply = (status, Bytes::copy_from_slice(body));
    match kind {
        "bulk" => bulk(reply, &ids),
        "load" => load(reply),
        "find" => find(reply),
        _ => {}
    }
}

fn bulk(reply: (u16, Bytes), ids: &BTreeSet<NodeName>) {
    let (status, body) = reply.clone();
    let verdicts = match replies::bulk(reply, ids) {
        Ok(verdicts) => verdicts,
        Err(error) => return assert_error(&error),
    };
    let judged: BTreeSet<&NodeName> = verdicts.keys().collect();
    assert!(
        judged.into_iter().eq(ids),
        "not one verdict for each document"
    );
    let Some(rows) = rows(&body) else { return };
    for (id, verdict) in verdicts {
        match verdict {
            Verdict::Stored(revision) => {
                let of_it = rows.iter().filter(|row| row["id"] == id.as_str());
                let is_good =
                    |row: &&Value| matches!(row["error"], Value::Null | Value::Bool(false));
                let mut of_it = of_it.peekable();
                assert!(
                    of_it.peek().is_some() && of_it.clone().all(|row| is_good(&row)),
                    "{id}"
                );
                assert!(of_it.any(|row| row["rev"] == *revision.0), "{id}");
                assert!(matches!(status, 200 | 201 | 202 | 417 | 500));
            }
            Verdict::Conflict => assert!(rows.iter().any(|row| row["id"] == id.as_str())),
            Verdict::Refused { error, reason } | Verdict::Failed { error, reason } => {
                assert!(!error.is_empty() && error.len() + reason.len() <= ERROR_BYTES_MAX);
            }
        }
    }
}

/// The rows, read without the code that is checked; none where a member that the store does not look at is no text.
fn rows(body: &[u8]) -> Option<Vec<Value>> {
    match serde_json::from_slice(body).ok()? {
        Value::Array(rows) => Some(rows),
        _ => Some(Vec::new()),
    }
}

fn load(reply: (u16, Bytes)) {
    let (status, body) = reply.clone();
    let found = match replies::load(reply) {
        Ok(found) => found,
        Err(error) => return assert_error(&error),
    };
    assert!((200..300).contains(&status));
    let answer: Option<BTreeMap<String, Value>> = serde_json::from_slice(&body).ok();
    let rows = answer.and_then(|mut answer| answer.remove("rows"));
    let Some(Value::Array(rows)) = rows else {
        return;
    };
    for (id, document) in found {
        let is_failed = document.failure.is_some();
        let is_row = |row: &Value| {
            let is_read = row["error"].is_null()
                && row["doc"].is_object()
                && row["value"]["rev"] == *document.revision.0;
            row["key"] == id.as_str() && (is_read || is_failed)
        };
        assert!(rows.iter().any(is_row), "{id} without its row");
    }
}

fn find(reply: (u16, Bytes)) {
    let (status, body) = reply.clone();
    match replies::find(reply) {
        Ok(nodes) => {
            assert!((200..300).contains(&status));
            let body = String::from_utf8_lossy(&body);
            assert!(nodes.is_empty() || body.contains("docs"));
        }
        Err(error) => assert_error(&error),
    }
}

/// An error has a text, and does not repeat the answer at length.
fn assert_error(error: &StoreError) {
    super::assert_text(error);
}
