//! Answers the operator's questions: views and Mango indexes say what nodes hold, a scan says which nodes exist.
//!
//! The views are those of `etc/vogeler/_design`; they emit what [`Facts`] says of a document. A missing view is
//! [`StoreError::NoIndex`]. CouchDB does the scan and returns few fields of each document: an index over documents as
//! large as ours costs far more than it saves when most of them change between two questions.

use std::collections::BTreeSet;

use jiff::Timestamp;
use reqwest::Method;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Value, json};

use super::client::{Client, is_database_missing};
use super::load::load;
use super::{Census, NodeName, NodeSummary, Query, StoreError};
use crate::hash::Pointer;
use crate::store::facts::{Facts, NODE_DOC_TYPE};
use crate::store::query::WhereValue;
use crate::wire::{Group, PluginName};

/// Rows per request to a view that may have many.
const PAGE_ROWS: usize = 10_000;
/// Keys per request to a view.
const KEYS_MAX: usize = 1000;
/// Documents that one request of a scan reads: few, so that writes get a turn in between even if the store does one
/// thing at a time.
const SCAN_LIMIT: usize = 100;
/// Documents per `_find`.
const FIND_LIMIT: usize = 1000;
/// Prefix of the design documents of indexes made on demand, so that an operator knows whose they are.
const INDEX_PREFIX: &str = "vogeler-where-";
/// Digits of the pointer's hash in such a name.
const INDEX_HASH_DIGITS: usize = 16;

#[derive(Deserialize)]
struct View {
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    /// None where rows are grouped.
    id: Option<String>,
    key: Value,
}

/// The number of node documents.
pub(super) async fn count(client: &Client) -> Result<u64, StoreError> {
    let nodes: Vec<Scanned<IgnoredAny>> = scan(client, &[]).await?;
    Ok(nodes.len() as u64)
}

/// The number of node documents, and how many of them changed at `since` or later.
pub(super) async fn census(client: &Client, since: Timestamp) -> Result<Census, StoreError> {
    #[derive(Deserialize)]
    struct Updated {
        updated_at: Option<Value>,
    }
    let nodes: Vec<Scanned<Updated>> = scan(client, &["updated_at"]).await?;
    let times = nodes
        .iter()
        .filter_map(|node| time(node.fields.updated_at.as_ref()));
    Ok(Census {
        recent: times.filter(|at| *at >= since).count() as u64,
        nodes: nodes.len() as u64,
    })
}

/// All nodes, by name.
pub(super) async fn nodes(client: &Client) -> Result<Vec<NodeSummary>, StoreError> {
    let fields = ["updated_at", "client.groups", "vogeler.plugins"];
    let mut nodes = Vec::new();
    let mut unbooked = Vec::new();
    for scanned in scan::<Summary>(client, &fields).await? {
        let Ok(node) = NodeName::new(&scanned.id) else {
            continue;
        };
        match scanned.fields.read(&node) {
            Some(summary) => nodes.push(summary),
            // A document of 2010: it has no bookkeeping, so only the whole document tells its plugins.
            None => unbooked.push(node),
        }
    }
    for (node, document) in load(client, &unbooked).await? {
        nodes.extend(Facts::read(document.json.get()).map(|facts| facts.summary(node)));
    }
    nodes.sort_by(|left, right| left.node.cmp(&right.node));
    Ok(nodes)
}

/// The nodes with bookkeeping in one answer of `_find`, for `crate::fuzzing`.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn summaries(
    client: &Client,
    reply: &super::client::Reply,
) -> Result<Vec<NodeSummary>, StoreError> {
    let page: Page<Summary> = client.parse(reply)?;
    let summary = |scanned: Scanned<Summary>| {
        let node = NodeName::new(&scanned.id).ok()?;
        scanned.fields.read(&node)
    };
    Ok(page.docs.into_iter().filter_map(summary).collect())
}

/// What [`nodes`] reads of a document. Others write there too, so no field is sure to be as we wrote it.
#[derive(Deserialize)]
struct Summary {
    updated_at: Option<Value>,
    #[serde(default)]
    client: Value,
    #[serde(default)]
    vogeler: Value,
}

impl Summary {
    /// None without bookkeeping.
    fn read(&self, node: &NodeName) -> Option<NodeSummary> {
        let plugins = self.vogeler.get("plugins")?.as_object()?;
        // A plugin holds a value once the value's hash is known.
        let plugins = plugins
            .iter()
            .filter(|(_, state)| state["hash"].is_string());
        let groups = self.client.get("groups").and_then(Value::as_array);
        Some(NodeSummary {
            node: node.clone(),
            updated_at: time(self.updated_at.as_ref()),
            plugins: plugins
                .filter_map(|(name, _)| PluginName::new(name).ok())
                .collect(),
            groups: groups
                .into_iter()
                .flatten()
                .filter_map(|group| Group::new(group.as_str()?).ok())
                .collect(),
        })
    }
}

fn time(value: Option<&Value>) -> Option<Timestamp> {
    value?.as_str()?.parse().ok()
}

/// An answer of `_find`.
#[derive(Deserialize)]
#[serde(bound = "F: DeserializeOwned")]
struct Page<F> {
    docs: Vec<Scanned<F>>,
    bookmark: Option<String>,
}

async fn find_page<F: DeserializeOwned>(
    client: &Client,
    request: &Value,
) -> Result<Page<F>, StoreError> {
    let body = request.to_string().into_bytes();
    let reply = client
        .send(Method::POST, &["_find"], &[], Some(body))
        .await?;
    client.parse(&reply)
}

/// A document, reduced to some fields.
#[derive(Deserialize)]
struct Scanned<F> {
    #[serde(rename = "_id")]
    id: String,
    #[serde(default)]
    doc_type: Value,
    #[serde(flatten)]
    fields: F,
}

/// Reads `fields` of all node documents; CouchDB goes through them one by one. Measured on CouchDB 3.5.0, a scan takes
/// 0.2 ms of CPU for a document of 14 KB and 0.9 ms for one of 130 KB. Updating an index takes 1.7 and 16 ms for each
/// document that changed since, and meanwhile keeps both cores of a small machine from the ingest.
async fn scan<F: DeserializeOwned>(
    client: &Client,
    fields: &[&str],
) -> Result<Vec<Scanned<F>>, StoreError> {
    let fields: Vec<&str> = ["_id", "doc_type"].iter().chain(fields).copied().collect();
    let mut found: Vec<Scanned<F>> = Vec::new();
    let mut last: Option<String> = None;
    loop {
        // The order of ids is the only condition: to meet any other, PouchDB reads all documents that follow, for every
        // page.
        let request = json!({
            "selector": {"_id": {"$gt": last}},
            "sort": [{"_id": "asc"}],
            "fields": fields,
            "limit": SCAN_LIMIT,
        });
        let page: Page<F> = find_page(client, &request).await?;
        // A page that is not full need not be the last, since it leaves out design documents.
        let Some(end) = page.docs.last() else {
            return Ok(found);
        };
        last = Some(end.id.clone());
        let is_node = |document: &Scanned<F>| document.doc_type == NODE_DOC_TYPE;
        found.extend(page.docs.into_iter().filter(is_node));
    }
}

/// The nodes that `query` finds, by name.
pub(super) async fn find(client: &Client, query: &Query) -> Result<Vec<NodeName>, StoreError> {
    let found = match query {
        Query::Has { plugin } => has(client, plugin).await?,
        Query::Contains { plugin, text } => contains(client, plugin, text).await?,
        Query::Package { name } => {
            let query = [
                ("reduce", "false".to_owned()),
                ("key", Value::from(name.as_str()).to_string()),
            ];
            names(view(client, ("packages", "by_name"), &query, None).await?)
        }
        Query::Where { pointer, value } => find_where(client, pointer, value).await?,
    };
    Ok(found.into_iter().collect())
}

async fn has(client: &Client, plugin: &PluginName) -> Result<BTreeSet<NodeName>, StoreError> {
    let query = [
        ("reduce", "false".to_owned()),
        ("startkey", json!([plugin]).to_string()),
        ("endkey", json!([plugin, {}]).to_string()),
    ];
    Ok(names(
        view(client, ("plugins", "by_collected"), &query, None).await?,
    ))
}

/// Two steps: the fleet's distinct items that contain the text, then the nodes that have those items.
async fn contains(
    client: &Client,
    plugin: &PluginName,
    text: &str,
) -> Result<BTreeSet<NodeName>, StoreError> {
    let by_plugin = ("items", "by_plugin");
    let mut wanted: Vec<Value> = Vec::new();
    let mut start = json!([plugin]);
    let mut skip = 0;
    loop {
        let query = [
            ("group", "true".to_owned()),
            ("startkey", start.to_string()),
            ("endkey", json!([plugin, {}]).to_string()),
            ("limit", PAGE_ROWS.to_string()),
            ("skip", skip.to_string()),
        ];
        let rows: Vec<Row> = view(client, by_plugin, &query, None).await?;
        let is_last = rows.len() < PAGE_ROWS;
        if let Some(row) = rows.last() {
            start = row.key.clone();
            skip = 1;
        }
        let matching = rows.into_iter().map(|row| row.key).filter(|key| {
            let item = key.get(1).and_then(Value::as_str);
            item.is_some_and(|item| item.contains(text))
        });
        wanted.extend(matching);
        if is_last {
            break;
        }
    }
    let mut found = BTreeSet::new();
    for keys in wanted.chunks(KEYS_MAX) {
        let query = [("reduce", "false".to_owned())];
        let body = json!({ "keys": keys });
        found.extend(names(view(client, by_plugin, &query, Some(body)).await?));
    }
    Ok(found)
}

/// Asks Mango, with an index on that very field. The first question makes the index; later ones reuse it.
async fn find_where(
    client: &Client,
    pointer: &Pointer,
    value: &str,
) -> Result<BTreeSet<NodeName>, StoreError> {
    let mut found = BTreeSet::new();
    if pointer.segments().is_empty() {
        return Ok(found);
    }
    let Some(field) = mango_field(pointer) else {
        return Err(StoreError::NoIndex {
            store: client.location().to_owned(),
            what: "index on a key that is empty, holds '\\' or starts with '$'".to_owned(),
        });
    };
    let design = index_name(&field);
    let index =
        json!({"index": {"fields": [field]}, "ddoc": design, "name": field, "type": "json"});
    let body = index.to_string().into_bytes();
    let reply = client
        .send(Method::POST, &["_index"], &[], Some(body))
        .await?;
    // CouchDB reports this with status 500, as if it might work later.
    if reply.error().reason.ends_with("forbidden") {
        return Err(StoreError::NoIndex {
            store: client.location().to_owned(),
            what: format!(
                "index on {field}, and this user may not make one: ask once with a store.dsn of an administrator of the database"
            ),
        });
    }
    if !reply.is_success() {
        return Err(client.error(&reply));
    }
    for candidate in WhereValue::candidates(value) {
        let selector = json!({ field.as_str(): {"$eq": candidate.json()}, "doc_type": {"$eq": NODE_DOC_TYPE} });
        found.extend(find_all(client, &selector, &design).await?);
    }
    Ok(found)
}

async fn find_all(
    client: &Client,
    selector: &Value,
    design: &str,
) -> Result<BTreeSet<NodeName>, StoreError> {
    let mut found = BTreeSet::new();
    let mut request =
        json!({"selector": selector, "fields": ["_id"], "limit": FIND_LIMIT, "use_index": design});
    let mut read = 0;
    loop {
        let page: Page<IgnoredAny> = find_page(client, &request).await?;
        read += page.docs.len();
        let is_last = page.docs.len() < FIND_LIMIT;
        found.extend(
            page.docs
                .iter()
                .filter_map(|doc| NodeName::new(&doc.id).ok()),
        );
        if is_last {
            return Ok(found);
        }
        // PouchDB has no bookmarks.
        match page.bookmark.filter(|bookmark| bookmark != "nil") {
            Some(bookmark) => request["bookmark"] = bookmark.into(),
            None => request["skip"] = read.into(),
        }
    }
}

/// A pointer as Mango writes a path; none where Mango has no way to write it.
fn mango_field(pointer: &Pointer) -> Option<String> {
    let segments = pointer.segments();
    let is_plain = |segment: &String| !segment.is_empty() && !segment.contains('\\');
    let starts_plain = segments
        .first()
        .is_some_and(|first| !first.starts_with('$'));
    let escaped = || segments.iter().map(|segment| segment.replace('.', "\\."));
    (starts_plain && segments.iter().all(is_plain)).then(|| escaped().collect::<Vec<_>>().join("."))
}

fn index_name(field: &str) -> String {
    let hex = blake3::hash(field.as_bytes()).to_hex();
    format!("{INDEX_PREFIX}{}", &hex[..INDEX_HASH_DIGITS])
}

async fn view(
    client: &Client,
    (design, name): (&str, &str),
    query: &[(&str, String)],
    body: Option<Value>,
) -> Result<Vec<Row>, StoreError> {
    let method = if body.is_some() {
        Method::POST
    } else {
        Method::GET
    };
    let body = body.map(|body| body.to_string().into_bytes());
    let query: Vec<_> = query
        .iter()
        .map(|(key, value)| (*key, value.as_str()))
        .collect();
    let path = ["_design", design, "_view", name];
    let reply = client.send(method, &path, &query, body).await?;
    if reply.status == 404 && !is_database_missing(&reply.error()) {
        return Err(StoreError::NoIndex {
            store: client.location().to_owned(),
            what: format!("view {design}/{name}: run `vogeler admin setup`"),
        });
    }
    Ok(client.parse::<View>(&reply)?.rows)
}

/// The nodes of a view's rows. An id that is no node name belongs to a document that is not ours.
fn names(rows: Vec<Row>) -> BTreeSet<NodeName> {
    let ids = rows.into_iter().filter_map(|row| row.id);
    ids.filter_map(|id| NodeName::new(&id).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a path is escaped as Mango reads it, and a path that Mango cannot read yields none.
    #[test]
    fn paths_are_escaped_for_mango() {
        let field = |text: &str| mango_field(&Pointer::parse(text).unwrap());
        assert_eq!(
            field("/facter/os.family/0").unwrap(),
            "facter.os\\.family.0"
        );
        assert_eq!(field("/a~1b").unwrap(), "a/b");
        for text in ["/a//b", "/a\\b", "/$a", ""] {
            assert_eq!(field(text), None, "{text}");
        }
        assert_eq!(
            index_name("a").len(),
            INDEX_PREFIX.len() + INDEX_HASH_DIGITS
        );
    }
}
