//! The embedded store: one SQLite file, readable by any tool and by several processes at once.
//!
//! A batch is one transaction in a WAL with `synchronous=FULL`: a document that [`Store::write`] reports as stored
//! survives a power cut. Revisions are checked like CouchDB's, except that a row deleted by somebody else leaves no
//! tombstone. So a write with a revision always conflicts if there is no document (in CouchDB only if there was one),
//! and a document created again counts its revisions from 1. Two threads do the work: one writes, one reads.

mod rows;
mod worker;

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use rusqlite::Connection;

use super::facts::Facts;
use super::rules;
use super::{
    About, Census, Designs, NodeSummary, Query, Store, StoreError, StoredDocument, Verdicts, Write,
};
use crate::config::StoreDsn;
use crate::wire::NodeName;
use worker::{Mode, Worker};

/// The store.
#[derive(Debug)]
pub struct SqliteStore {
    writer: Worker,
    reader: Worker,
    location: String,
    path: PathBuf,
    timeout: Duration,
    create: bool,
}

impl SqliteStore {
    /// Starts the threads. Creates the file if `create` is set. Otherwise, while the file is missing, every call but
    /// [`Store::setup`] fails with [`StoreError::NoDatabase`].
    pub fn open(config: &crate::config::Store) -> Result<Self, StoreError> {
        let StoreDsn::Sqlite(path) = &config.dsn else {
            return Err(StoreError::Protocol {
                store: config.dsn.to_string(),
                reason: "not a sqlite: DSN".to_owned(),
            });
        };
        let location = format!("sqlite:{}", path.display());
        if config.create {
            worker::create(path, &location)?;
        }
        Ok(Self {
            writer: Worker::start(path, &location, Mode::Write, config.timeout)?,
            reader: Worker::start(path, &location, Mode::Read, config.timeout)?,
            location,
            path: path.clone(),
            timeout: config.timeout,
            create: config.create,
        })
    }

    /// Runs `job` on a thread, for at most `store.timeout`, including the time in the queue.
    async fn call<T: Send + 'static>(
        &self,
        worker: &Worker,
        job: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let run = worker.run(job);
        tokio::time::timeout(self.timeout, run)
            .await
            .unwrap_or_else(|_| {
                Err(StoreError::Away {
                    store: self.location.clone(),
                    reason: format!("no answer within {:?}", self.timeout),
                    retry_after: None,
                    is_answer: false,
                })
            })
    }

    /// Streams all node documents past `pick`, on the reading thread.
    async fn select<T: Send + 'static>(
        &self,
        pick: impl Fn(NodeName, &Facts<'_>) -> Option<T> + Send + 'static,
    ) -> Result<Vec<T>, StoreError> {
        let scan = move |connection: &mut Connection| rows::select(connection, pick);
        self.call(&self.reader, scan).await
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn load(
        &self,
        ids: &[NodeName],
    ) -> Result<HashMap<NodeName, StoredDocument>, StoreError> {
        let ids = ids.to_vec();
        let load = move |connection: &mut Connection| rows::load(connection, &ids);
        self.call(&self.reader, load).await
    }

    async fn write(&self, documents: Vec<Write>) -> Result<Verdicts, StoreError> {
        if self.create && !self.path.exists() {
            worker::create(&self.path, &self.location)?;
        }
        let mut admitted = rules::admit(documents);
        let writes = std::mem::take(&mut admitted.writes);
        let write = move |connection: &mut Connection| rows::write(connection, &writes);
        let verdicts = self.call(&self.writer, write).await?;
        Ok(admitted.conclude(verdicts))
    }

    async fn setup(&self, _designs: Designs<'_>) -> Result<Vec<String>, StoreError> {
        let created = worker::create(&self.path, &self.location)?;
        let did = if created { "created" } else { "is up to date:" };
        Ok(vec![format!("{did} {}", self.location)])
    }

    async fn about(&self) -> Result<About, StoreError> {
        let documents = self.call(&self.reader, rows::count).await?;
        Ok(About {
            product: format!("SQLite {}", rusqlite::version()),
            location: self.location.clone(),
            documents,
        })
    }

    async fn nodes(&self) -> Result<Vec<NodeSummary>, StoreError> {
        self.select(|id, facts| Some(facts.summary(id))).await
    }

    async fn find(&self, query: &Query) -> Result<Vec<NodeName>, StoreError> {
        let query = query.clone();
        self.select(move |id, facts| facts.matches(&query).then_some(id))
            .await
    }

    async fn census(&self, since: Timestamp) -> Result<Census, StoreError> {
        let census = move |connection: &mut Connection| rows::census(connection, since);
        self.call(&self.reader, census).await
    }

    async fn close(&self) {
        self.writer.stop().await;
        self.reader.stop().await;
    }
}
