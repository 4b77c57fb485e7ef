//! The store: where node documents live. The contract, and the types that cross it.
//!
//! Three stores keep it: [`couch`] (production), [`sqlite`] (embedded) and [`memory`] (tests). Revisions are
//! CouchDB's: a write names the revision it replaces, and a write of any other is a conflict. Invariant: a document
//! is written only when its own verdict says [`Verdict::Stored`].

pub mod couch;
pub(crate) mod facts;
pub mod memory;
pub mod query;
pub(crate) mod rules;
pub mod sqlite;

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

pub use query::{NodeSummary, Query};

use crate::wire::NodeName;

/// Which design documents a set-up loads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Designs<'a> {
    /// None: views are made by somebody else, or not needed.
    None,
    /// Those that ship in the program.
    Shipped,
    /// Those of a folder, in the layout of `etc/vogeler/_design`.
    Folder(&'a Path),
}

/// A store. Every call is bounded in time by the store's settings and does not retry: the writer does.
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync {
    /// Reads the documents of `ids`. Missing and deleted ones are not in the answer; one that is no JSON object
    /// (somebody else's edit) comes as `null`. One document never fails the call: its own
    /// [`failure`](StoredDocument::failure) says why it could not be read.
    async fn load(&self, ids: &[NodeName])
    -> Result<HashMap<NodeName, StoredDocument>, StoreError>;

    /// Writes each of `documents` independently: the answer holds exactly one verdict for every id that was sent. If
    /// one document makes the whole request bad, the store takes it out and writes the rest. An `Err` says that no
    /// verdict is known for any of them: some may have been written. No id may occur twice in one call. If one does, at
    /// most the first is written, and the verdict of the id is [`Verdict::Conflict`]: the caller reads what is there.
    async fn write(&self, documents: Vec<Write>) -> Result<Verdicts, StoreError>;

    /// Creates the database if it is not there and loads `designs`, if the store has design documents. Returns what it
    /// did, one line per step. Idempotent.
    async fn setup(&self, designs: Designs<'_>) -> Result<Vec<String>, StoreError>;

    /// What the store is and how many node documents it holds.
    async fn about(&self) -> Result<About, StoreError>;

    /// All nodes, by name.
    async fn nodes(&self) -> Result<Vec<NodeSummary>, StoreError>;

    /// The nodes that `query` finds, by name. Uses an index if the store has one, never a scan in this process.
    async fn find(&self, query: &Query) -> Result<Vec<NodeName>, StoreError>;

    /// How many nodes there are, and how many of their documents changed at `since` or later. The store may read all
    /// documents for it.
    async fn census(&self, since: Timestamp) -> Result<Census, StoreError>;

    /// Ends connections and flushes what is left.
    async fn close(&self);
}

/// A revision, opaque: `3-917fa2381192822767f010b95b45325b`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub Box<str>);

/// A document as the store has it.
#[derive(Debug, Clone)]
pub struct StoredDocument {
    /// Its revision, which the next write names.
    pub revision: Revision,
    /// The whole JSON object, `_id` and `_rev` included.
    pub json: Box<RawValue>,
    /// Why this document alone could not be read this time, in a word or more; then nothing else is known of it.
    pub failure: Option<String>,
}

impl StoredDocument {
    /// Stands for a document that could not be read this time.
    pub(crate) fn failed(why: String) -> Self {
        Self {
            failure: Some(why),
            ..Self::unreadable()
        }
    }

    /// Stands for a document that is there and can never be read: `null`, which is no object. Its node's results are
    /// dead letters; other documents are not affected.
    pub(crate) fn unreadable() -> Self {
        Self {
            revision: Revision("".into()),
            json: RawValue::NULL.to_owned(),
            failure: None,
        }
    }
}

/// One document to write.
#[derive(Debug, Clone)]
pub struct Write {
    /// Whose document.
    pub id: NodeName,
    /// The revision it replaces; none to create.
    pub revision: Option<Revision>,
    /// The whole JSON object without `_id` and `_rev`: the store adds them.
    pub json: Box<RawValue>,
}

/// One verdict for every id of a write.
pub type Verdicts = HashMap<NodeName, Verdict>;

/// What became of one document of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Written and durable, with this revision now.
    Stored(Revision),
    /// Another revision is there, or none: read, merge and write again.
    Conflict,
    /// The store never takes this document as it is, however often it is sent: the results are dead letters.
    Refused {
        /// The store's word for it: `forbidden`, `unauthorized`, `document_too_large`, `bad_request`, …
        error: String,
        /// The store's reason.
        reason: String,
    },
    /// The store failed at this document: back off, and read it before writing it again.
    Failed {
        /// The store's word for it: `unknown_error`, `internal_server_error`, …
        error: String,
        /// The store's reason.
        reason: String,
    },
}

impl Verdict {
    /// Whether the store refuses the document for its size: it may take a smaller one.
    pub fn is_too_large(&self) -> bool {
        let too_large = [rules::DOCUMENT_TOO_LARGE, rules::REQUEST_TOO_LARGE];
        matches!(self, Self::Refused { error, .. } if too_large.contains(&error.as_str()))
    }
}

/// What a store is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct About {
    /// Name and version: "CouchDB 3.5.0", "SQLite 3.50.2".
    pub product: String,
    /// Where, without credentials.
    pub location: String,
    /// Node documents in it.
    pub documents: u64,
}

/// How many nodes a store has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Census {
    /// Node documents.
    pub nodes: u64,
    /// Those of them that changed at the time asked for or later.
    pub recent: u64,
}

/// Why a store's call failed as a whole.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Not reachable, overloaded, failing or too slow. Whether a write took place is unknown.
    #[error("the store at {store} is away: {reason}")]
    Away {
        /// Where, without credentials.
        store: String,
        /// What it or the connection said.
        reason: String,
        /// How long the store asks to be left alone (`Retry-After`).
        retry_after: Option<Duration>,
        /// Whether the store itself reported the failure. Otherwise there was no answer, or a proxy said that the store
        /// is not there.
        is_answer: bool,
    },
    /// The store refuses this user and password, or the user may not do this.
    #[error("the store at {store} refuses access: {reason}; check user and password in store.dsn")]
    Unauthorized {
        /// Where, without credentials.
        store: String,
        /// What it said.
        reason: String,
    },
    /// The database is not there.
    #[error(
        "there is no database at {store}: run `vogeler admin setup`, or set store.create = true"
    )]
    NoDatabase {
        /// Where, without credentials.
        store: String,
    },
    /// The view or index is not there.
    #[error("the store at {store} has no {what}")]
    NoIndex {
        /// Where, without credentials.
        store: String,
        /// Which view or index.
        what: String,
    },
    /// An answer that does not fit the protocol.
    #[error("the store at {store} answered what was not understood: {reason}")]
    Protocol {
        /// Where, without credentials.
        store: String,
        /// What was wrong.
        reason: String,
    },
    /// A file (design document, database file) that cannot be read or written.
    #[error("{path}: {reason}")]
    File {
        /// Which file.
        path: String,
        /// Why.
        reason: String,
    },
}

impl StoreError {
    /// One word for it, a metric label.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Away { .. } => "away",
            Self::Unauthorized { .. } => "unauthorized",
            Self::NoDatabase { .. } => "no_database",
            Self::NoIndex { .. } => "no_index",
            Self::Protocol { .. } => "protocol",
            Self::File { .. } => "file",
        }
    }

    /// Whether the documents written may be the cause: the store answered, and it is neither busy nor refusing access.
    /// A time-out and a broken connection are no answer.
    pub fn is_answer(&self) -> bool {
        match self {
            Self::Away {
                retry_after,
                is_answer,
                ..
            } => *is_answer && retry_after.is_none(),
            Self::Protocol { .. } => true,
            _ => false,
        }
    }

    /// How long the store asks to be left alone, if it does.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Away { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// Opens the store that a DSN names. The database need not be there yet, except for `sqlite`, which creates its
/// file and schema here if `create` is set.
pub fn open(config: &crate::config::Store) -> Result<Arc<dyn Store>, StoreError> {
    Ok(match &config.dsn {
        crate::config::StoreDsn::Memory => Arc::new(memory::MemoryStore::new()),
        crate::config::StoreDsn::Sqlite(_) => Arc::new(sqlite::SqliteStore::open(config)?),
        crate::config::StoreDsn::Couch(_) => Arc::new(couch::CouchStore::new(config)?),
    })
}
