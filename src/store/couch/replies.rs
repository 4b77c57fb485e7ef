//! How the store interprets a reply: for `crate::fuzzing`, which has no CouchDB.

#![allow(clippy::expect_used, reason = "made of constants")]

use std::collections::{BTreeSet, HashMap};
use std::sync::LazyLock;

use bytes::Bytes;

use super::client::Reply;
use super::{CouchStore, NodeSummary, StoreError, StoredDocument, Verdicts, Write, find, load};
use crate::wire::NodeName;

/// Sends nothing: it only provides the names in errors.
static STORE: LazyLock<CouchStore> = LazyLock::new(|| {
    let dsn = "couch://localhost/vogeler".parse().expect("a DSN");
    let config = crate::config::Store {
        dsn,
        ..crate::config::Store::default()
    };
    CouchStore::new(&config).expect("a client")
});

fn reply((status, body): (u16, Bytes)) -> Reply {
    Reply {
        status,
        retry_after: None,
        body,
    }
}

/// The verdicts on these documents if every `_bulk_docs` gets this answer.
pub(crate) fn bulk(answer: (u16, Bytes), ids: &BTreeSet<NodeName>) -> Result<Verdicts, StoreError> {
    let write = |id: &NodeName| Write {
        id: id.clone(),
        revision: None,
        json: serde_json::value::RawValue::NULL.to_owned(),
    };
    let writes: Vec<Write> = ids.iter().map(write).collect();
    STORE.write_answered(&writes, &reply(answer))
}

/// The documents in an answer of `_all_docs`.
pub(crate) fn load(answer: (u16, Bytes)) -> Result<HashMap<NodeName, StoredDocument>, StoreError> {
    let mut found = HashMap::new();
    load::read(&STORE.client, &reply(answer), &mut found)?;
    Ok(found)
}

/// The nodes in an answer of `_find`.
pub(crate) fn find(answer: (u16, Bytes)) -> Result<Vec<NodeSummary>, StoreError> {
    find::summaries(&STORE.client, &reply(answer))
}
