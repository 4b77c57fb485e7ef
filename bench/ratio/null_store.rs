//! The null store: CouchDB's protocol over a hash map, as fast as the machine allows, so that the server's own cost
//! shows.
//!
//! It keeps revisions and conflicts as CouchDB does, and when each document was last written.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path};
use axum::http::StatusCode;
use axum::response::Json;
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use url::Url;

/// When each document was last written.
pub(crate) type Writes = Arc<Mutex<HashMap<String, Instant>>>;

#[derive(Default)]
struct Database {
    documents: HashMap<String, (u64, String)>,
}

#[derive(Deserialize)]
struct Request<'a> {
    #[serde(borrow)]
    docs: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Head {
    #[serde(rename = "_id")]
    id: String,
    #[serde(rename = "_rev")]
    rev: Option<String>,
}

#[derive(Deserialize)]
struct Keys {
    keys: Vec<String>,
}

fn databases() -> &'static Mutex<HashMap<String, Database>> {
    static DATABASES: OnceLock<Mutex<HashMap<String, Database>>> = OnceLock::new();
    DATABASES.get_or_init(Mutex::default)
}

/// The times of all writes.
pub(crate) fn writes() -> Writes {
    static WRITES: OnceLock<Writes> = OnceLock::new();
    Arc::clone(WRITES.get_or_init(Writes::default))
}

/// Starts the store; gives its address.
pub(crate) fn start(runtime: &tokio::runtime::Runtime) -> Url {
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind(("127.0.0.1", 0)))
        .unwrap();
    let address = listener.local_addr().unwrap();
    let routes = Router::new()
        .route(
            "/",
            get(async || Json(json!({"couchdb": "Welcome", "version": "null"}))),
        )
        .route("/{database}", get(about).put(create).delete(remove))
        .route("/{database}/_bulk_docs", post(write))
        .route("/{database}/_all_docs", post(read))
        .layer(DefaultBodyLimit::disable());
    runtime.spawn(async move { axum::serve(listener, routes).await });
    format!("http://{address}").parse().unwrap()
}

async fn about(Path(name): Path<String>) -> (StatusCode, Json<Value>) {
    match databases().lock().unwrap().get(&name) {
        Some(database) => (
            StatusCode::OK,
            Json(json!({"doc_count": database.documents.len()})),
        ),
        None => (
            StatusCode::NOT_FOUND,
            Json(json!({"error": "not_found", "reason": "Database does not exist."})),
        ),
    }
}

async fn create(Path(name): Path<String>) -> (StatusCode, Json<Value>) {
    databases()
        .lock()
        .unwrap()
        .insert(name, Database::default());
    (StatusCode::CREATED, Json(json!({"ok": true})))
}

async fn remove(Path(name): Path<String>) -> Json<Value> {
    databases().lock().unwrap().remove(&name);
    Json(json!({"ok": true}))
}

async fn write(Path(name): Path<String>, body: Bytes) -> (StatusCode, String) {
    let request: Request<'_> = serde_json::from_slice(&body).unwrap();
    let mut answer = String::with_capacity(request.docs.len() * 64);
    let mut ids = Vec::with_capacity(request.docs.len());
    {
        let mut databases = databases().lock().unwrap();
        let Some(database) = databases.get_mut(&name) else {
            let missing = r#"{"error":"not_found","reason":"Database does not exist."}"#;
            return (StatusCode::NOT_FOUND, missing.to_owned());
        };
        for document in request.docs {
            let head: Head = serde_json::from_str(document.get()).unwrap();
            let id = head.id;
            answer.push(if answer.is_empty() { '[' } else { ',' });
            let current = database
                .documents
                .get(&id)
                .map_or(0, |(revision, _)| *revision);
            let named = head.rev.map_or(0, |rev| {
                rev.split('-')
                    .next()
                    .and_then(|number| number.parse().ok())
                    .unwrap_or(u64::MAX)
            });
            if named == current {
                let next = current + 1;
                answer.push_str(&format!(r#"{{"ok":true,"id":"{id}","rev":"{next}-0"}}"#));
                database
                    .documents
                    .insert(id.clone(), (next, document.get().to_owned()));
                ids.push(id);
            } else {
                answer.push_str(&format!(
                    r#"{{"id":"{id}","error":"conflict","reason":"Document update conflict."}}"#
                ));
            }
        }
    }
    answer.push_str(if answer.is_empty() { "[]" } else { "]" });
    let now = Instant::now();
    writes()
        .lock()
        .unwrap()
        .extend(ids.into_iter().map(|id| (id, now)));
    (StatusCode::CREATED, answer)
}

async fn read(Path(name): Path<String>, Json(keys): Json<Keys>) -> (StatusCode, String) {
    let databases = databases().lock().unwrap();
    let Some(database) = databases.get(&name) else {
        let missing = r#"{"error":"not_found","reason":"Database does not exist."}"#;
        return (StatusCode::NOT_FOUND, missing.to_owned());
    };
    let rows: Vec<String> = keys
        .keys
        .iter()
        .map(|id| match database.documents.get(id) {
            Some((revision, json)) => format!(
                r#"{{"id":"{id}","key":"{id}","value":{{"rev":"{revision}-0"}},"doc":{json}}}"#
            ),
            None => format!(r#"{{"key":"{id}","error":"not_found"}}"#),
        })
        .collect();
    (
        StatusCode::OK,
        format!(r#"{{"total_rows":0,"rows":[{}]}}"#, rows.join(",")),
    )
}
