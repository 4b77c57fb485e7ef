//! Where a contract test takes place: a fresh store, and somebody else who reads and writes the same documents.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use tempfile::TempDir;
use url::Url;
use vogeler::config::{self, CouchUrl, StoreDsn};
use vogeler::store::memory::MemoryStore;
use vogeler::store::{self, Designs, Revision, Store, Verdict, Write};
use vogeler::wire::NodeName;

use crate::harness::pouch;

/// Names a real CouchDB to test against: `http://user:password@host:port`.
pub const COUCH_VARIABLE: &str = "VOGELER_TEST_COUCH";
/// Small enough to test quickly where it can be set.
const MEMORY_DOCUMENT_BYTES_MAX: usize = 100_000;

/// A store to test.
#[derive(Debug)]
pub struct Place {
    pub store: Arc<dyn Store>,
    pub other: Other,
    /// Bytes from which on a document is too large; none where it is never.
    pub document_bytes_max: Option<usize>,
    pub config: config::Store,
    folder: TempDir,
}

/// Somebody else.
#[derive(Debug)]
pub enum Other {
    Memory(MemoryStore),
    Sqlite(PathBuf),
    Couch(Http),
}

/// Plain HTTP to a database, on ways of its own.
#[derive(Debug)]
pub struct Http {
    pub client: reqwest::Client,
    /// Address of the database, with user and password.
    pub database: Url,
}

/// Settings for a store at `dsn`.
pub fn settings(dsn: StoreDsn) -> config::Store {
    config::Store {
        dsn,
        create: false,
        timeout: Duration::from_secs(30),
        request_bytes_max: 16 * 1024 * 1024,
        gzip_bytes_min: 0,
    }
}

/// The DSN of database `name` at `server`, an address with user and password.
pub fn couch_dsn(server: &Url, name: &str) -> StoreDsn {
    let mut base = server.clone();
    base.set_username("").unwrap();
    base.set_password(None).unwrap();
    let user = server.username().to_owned();
    let password = server.password().map(decode);
    StoreDsn::Couch(CouchUrl {
        base,
        database: name.to_owned(),
        credentials: password.map(|password| (user, password)),
    })
}

/// Undoes the percent-encoding of the harness's password.
fn decode(text: &str) -> String {
    text.replace("%3A", ":").replace("%40", "@")
}

/// A database name that no other test of any process has.
pub fn fresh_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("contract_{}_{next}", std::process::id())
}

pub fn designs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("etc/vogeler/_design")
}

impl Place {
    pub async fn memory() -> Option<Self> {
        let store = MemoryStore::new().with_document_bytes_max(MEMORY_DOCUMENT_BYTES_MAX);
        let other = Other::Memory(store.clone());
        let max = Some(MEMORY_DOCUMENT_BYTES_MAX);
        Some(
            Self::set_up(
                settings(StoreDsn::Memory),
                Some(Arc::new(store)),
                other,
                max,
            )
            .await,
        )
    }

    pub async fn sqlite() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("below/vogeler.db");
        let config = settings(StoreDsn::Sqlite(path.clone()));
        let mut place = Self::set_up(config, None, Other::Sqlite(path), Some(8_000_000)).await;
        place.folder = folder;
        Some(place)
    }

    pub async fn pouchdb() -> Option<Self> {
        let server = tokio::task::spawn_blocking(pouch::url).await.unwrap();
        Some(Self::couch(&server, None).await)
    }

    /// None unless a real CouchDB is named.
    #[allow(
        clippy::disallowed_methods,
        reason = "a setting of the tests, not of vogeler"
    )]
    pub async fn couchdb() -> Option<Self> {
        let Ok(server) = std::env::var(COUCH_VARIABLE) else {
            println!("skipped: {COUCH_VARIABLE} names no CouchDB");
            return None;
        };
        Some(Self::couch(&server.parse().unwrap(), Some(8_000_000)).await)
    }

    async fn couch(server: &Url, document_bytes_max: Option<usize>) -> Self {
        let name = fresh_name();
        let mut database = server.clone();
        database.set_path(&name);
        let client = reqwest::Client::new;
        let config = settings(couch_dsn(server, &name));
        // The store first: it installs the TLS provider that every client needs.
        let store = store::open(&config).unwrap();
        let client = client();
        let other = Other::Couch(Http { client, database });
        Self::set_up(config, Some(store), other, document_bytes_max).await
    }

    async fn set_up(
        config: config::Store,
        store: Option<Arc<dyn Store>>,
        other: Other,
        document_bytes_max: Option<usize>,
    ) -> Self {
        let store = store.unwrap_or_else(|| store::open(&config).unwrap());
        store.setup(Designs::Folder(&designs())).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        Self {
            store,
            other,
            document_bytes_max,
            config,
            folder,
        }
    }

    /// Ends the store, and deletes its database where it stands on a server.
    pub async fn tear_down(self) {
        self.store.close().await;
        if let Other::Couch(http) = &self.other {
            http.send(Method::DELETE, &[], None).await;
        }
    }

    /// Writes one document.
    pub async fn write(&self, id: &str, revision: Option<&Revision>, json: &str) -> Verdict {
        let verdicts = self.store.write(vec![write(id, revision, json)]).await;
        let mut verdicts = verdicts.unwrap();
        assert_eq!(verdicts.len(), 1, "{verdicts:?}");
        verdicts.remove(id).unwrap()
    }

    /// Writes one document that the store must take.
    pub async fn put(&self, id: &str, revision: Option<&Revision>, json: &str) -> Revision {
        stored(self.write(id, revision, json).await)
    }

    /// Reads one document, without `_id` and `_rev`.
    pub async fn get(&self, id: &str) -> Option<(Revision, Map<String, Value>)> {
        let ids = [node(id)];
        let document = self.store.load(&ids).await.unwrap().remove(id)?;
        let mut members: Map<String, Value> = serde_json::from_str(document.json.get()).unwrap();
        assert_eq!(members.remove("_id").unwrap(), id);
        assert_eq!(members.remove("_rev").unwrap(), *document.revision.0);
        Some((document.revision, members))
    }
}

impl Other {
    /// Replaces a document or makes it.
    pub async fn put(&self, id: &str, json: &str) {
        match self {
            Self::Memory(store) => _ = store.overwrite(&node(id), raw(json)),
            Self::Sqlite(path) => {
                let sql = "INSERT INTO documents (id, revision, json) VALUES (?1, '1-other', ?2)
                    ON CONFLICT (id) DO UPDATE SET revision = revision || 'x', json = ?2";
                sqlite(path).execute(sql, [id, json]).unwrap();
            }
            Self::Couch(http) => {
                let mut document: Map<String, Value> = serde_json::from_str(json).unwrap();
                if let Some(there) = http.get(id).await {
                    document.insert("_rev".to_owned(), there["_rev"].clone());
                }
                let status = http
                    .send(Method::PUT, &[id], Some(&document.into()))
                    .await
                    .0;
                assert_eq!(status, StatusCode::CREATED);
            }
        }
    }

    /// Deletes a document that is there.
    pub async fn delete(&self, id: &str) {
        match self {
            Self::Memory(store) => assert!(store.delete(&node(id))),
            Self::Sqlite(path) => {
                let sql = "DELETE FROM documents WHERE id = ?1";
                assert_eq!(sqlite(path).execute(sql, [id]).unwrap(), 1);
            }
            Self::Couch(http) => {
                let revision = http.get(id).await.unwrap()["_rev"].clone();
                let deletion = serde_json::json!({"_rev": revision, "_deleted": true});
                let status = http.send(Method::PUT, &[id], Some(&deletion)).await.0;
                assert!(status.is_success());
            }
        }
    }
}

impl Http {
    pub async fn get(&self, id: &str) -> Option<Value> {
        let (status, body) = self.send(Method::GET, &[id], None).await;
        status.is_success().then_some(body)
    }

    /// Sends a request to `path` below the database.
    pub async fn send(
        &self,
        method: Method,
        path: &[&str],
        body: Option<&Value>,
    ) -> (StatusCode, Value) {
        let mut url = self.database.clone();
        url.path_segments_mut().unwrap().extend(path);
        let request = self.client.request(method, url);
        let request = match body {
            Some(body) => request.json(body),
            None => request,
        };
        let response = request.send().await.unwrap();
        let status = response.status();
        (status, response.json().await.unwrap())
    }
}

fn sqlite(path: &Path) -> rusqlite::Connection {
    let connection = rusqlite::Connection::open(path).unwrap();
    connection.busy_timeout(Duration::from_secs(10)).unwrap();
    connection
}

pub fn write(id: &str, revision: Option<&Revision>, json: &str) -> Write {
    Write {
        id: node(id),
        revision: revision.cloned(),
        json: raw(json),
    }
}

pub fn node(id: &str) -> NodeName {
    id.parse().unwrap()
}

pub fn raw(json: &str) -> Box<RawValue> {
    RawValue::from_string(json.to_owned()).unwrap()
}

/// The revision of a verdict that must be `Stored`.
pub fn stored(verdict: Verdict) -> Revision {
    match verdict {
        Verdict::Stored(revision) => revision,
        other => panic!("not stored: {other:?}"),
    }
}
