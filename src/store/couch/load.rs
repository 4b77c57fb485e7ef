//! Reading documents by id: `_all_docs` with the ids as keys, in chunks.
//!
//! Missing and deleted documents are not in the answer. A row that failed for any other reason is a failure of its
//! document alone: if it were taken for missing, it would be written as new, and its history would be lost.

use std::borrow::Cow;
use std::collections::HashMap;

use reqwest::Method;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::client::{Client, Reply, SendError};
use super::{NodeName, StoreError, StoredDocument};
use crate::store::Revision;
use crate::wire::brief;

/// Ids per request. With documents of 20 KB an answer is 4 MB; far larger documents are asked for again in halves.
pub(super) const CHUNK: usize = 200;

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    rows: Vec<Row<'a>>,
}

#[derive(Deserialize)]
struct Row<'a> {
    #[serde(borrow)]
    key: Cow<'a, str>,
    #[serde(borrow)]
    value: Option<&'a RawValue>,
    #[serde(borrow)]
    doc: Option<&'a RawValue>,
    error: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct RowValue {
    rev: String,
    #[serde(default)]
    deleted: bool,
}

/// Reads the documents of `ids`, as [`Store::load`](super::Store::load) says.
pub(super) async fn load(
    client: &Client,
    ids: &[NodeName],
) -> Result<HashMap<NodeName, StoredDocument>, StoreError> {
    let mut found = HashMap::with_capacity(ids.len());
    let mut open: Vec<&[NodeName]> = ids.chunks(CHUNK).collect();
    while let Some(chunk) = open.pop() {
        let body = keys(chunk.iter().map(NodeName::as_str));
        let path = ["_all_docs"];
        let query = [("include_docs", "true")];
        let sent = client.try_send(Method::POST, &path, &query, Some(body));
        match sent.await {
            Ok(reply) => read(client, &reply, &mut found)?,
            Err(SendError::TooLong) if chunk.len() > 1 => {
                let (left, right) = chunk.split_at(chunk.len() / 2);
                open.extend([left, right]);
            }
            // One document exceeds what we read: somebody else wrote it. It is unreadable, which is no outage.
            Err(SendError::TooLong) => {
                found.extend(
                    chunk
                        .iter()
                        .map(|id| (id.clone(), StoredDocument::unreadable())),
                );
            }
            Err(SendError::Store(error)) => return Err(error),
        }
    }
    Ok(found)
}

/// The body `{"keys": […]}`.
fn keys<'a>(ids: impl Iterator<Item = &'a str>) -> Vec<u8> {
    let ids: Vec<&str> = ids.collect();
    serde_json::json!({ "keys": ids }).to_string().into_bytes()
}

pub(super) fn read(
    client: &Client,
    reply: &Reply,
    found: &mut HashMap<NodeName, StoredDocument>,
) -> Result<(), StoreError> {
    if !reply.is_success() {
        return Err(client.error(reply));
    }
    let answer: Answer<'_> =
        serde_json::from_slice(&reply.body).map_err(|error| client.unreadable(reply, &error))?;
    for row in answer.rows {
        // Only ids that were asked for count; an id that is no node name was not asked for.
        let Ok(id) = NodeName::new(&row.key) else {
            continue;
        };
        let value: Option<RowValue> = row
            .value
            .and_then(|value| serde_json::from_str(value.get()).ok());
        let document = match (value, row.doc, row.error) {
            (_, _, Some(error)) if error == "not_found" => continue,
            (Some(RowValue { deleted: true, .. }), _, _) => continue,
            (_, _, Some(error)) => {
                let word = error
                    .as_str()
                    .map_or_else(|| error.to_string(), str::to_owned);
                StoredDocument::failed(brief(word))
            }
            (Some(value), Some(doc), None) if doc.get().starts_with('{') => StoredDocument {
                revision: Revision(value.rev.into()),
                json: doc.to_owned(),
                failure: None,
            },
            // Includes a document that was deleted just now.
            _ => StoredDocument::failed("a row without a document".to_owned()),
        };
        found.insert(id, document);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::replies;

    /// Goal: a row that failed or is not understood is a failure of its own document and of no other.
    #[test]
    fn one_row_is_no_outage() {
        let body = r#"{"rows":[
            {"key":"bad1","error":"timeout","reason":"x"},
            {"id":"bad2","key":"bad2","value":{"rev":"1-a"},"doc":null},
            {"id":"bad3","key":"bad3","value":7,"doc":{"_id":"bad3"}},
            {"key":"bad4","error":{"odd":1}},
            {"key":"gone1","error":"not_found"},
            {"id":"gone2","key":"gone2","value":{"rev":"2-a","deleted":true},"doc":null},
            {"id":"good","key":"good","value":{"rev":"1-b"},"doc":{"_id":"good","_rev":"1-b"}}]}"#;
        let found = replies::load((200, body.into())).unwrap();
        let failure = |id: &str| Some(found.get(id)?.failure.as_deref());
        assert_eq!(failure("good"), Some(None));
        assert_eq!(failure("bad1"), Some(Some("timeout")));
        for id in ["bad2", "bad3", "bad4"] {
            assert!(matches!(failure(id), Some(Some(_))), "{id}");
        }
        assert_eq!((failure("gone1"), failure("gone2")), (None, None));
    }
}
