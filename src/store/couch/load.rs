//! Reading documents by id: `_all_docs` with the ids as keys, in chunks.
//!
//! Missing and deleted documents are not in the answer. A row that failed for any other reason fails the load: a
//! document taken for missing would be written as new, and its history with it.

use std::borrow::Cow;
use std::collections::HashMap;

use reqwest::Method;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::client::{Client, Reply, SendError};
use super::{NodeName, StoreError, StoredDocument};
use crate::store::Revision;
use crate::wire::brief;

/// Ids a request. At 20 KB a document an answer is 4 MB; documents far larger are asked for in halves.
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
    value: Option<RowValue>,
    #[serde(borrow)]
    doc: Option<&'a RawValue>,
    error: Option<String>,
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
            // Somebody put more into it than we read: what is there is none of our documents, and no outage.
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
        match (row.value, row.doc, row.error.as_deref()) {
            (_, _, Some("not_found")) | (Some(RowValue { deleted: true, .. }), _, _) => {}
            (_, _, Some(error)) => {
                let (id, error) = (brief(row.key), brief(error));
                return Err(client.away(format!("reading {id:?} failed: {error}"), None));
            }
            (Some(value), Some(doc), None) if doc.get().starts_with('{') => {
                // Only ids that were asked for come back; one that is no node name was not.
                if let Ok(id) = NodeName::new(&row.key) {
                    let revision = Revision(value.rev.into());
                    let json = doc.to_owned();
                    found.insert(id, StoredDocument { revision, json });
                }
            }
            _ => {
                let id = brief(row.key);
                return Err(
                    client.protocol(format!("a row of _all_docs without a document: {id:?}"))
                );
            }
        }
    }
    Ok(())
}
