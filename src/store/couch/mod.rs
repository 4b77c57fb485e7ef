//! The production store: CouchDB 3 over HTTP.
//!
//! Documents go out in `_bulk_docs` requests, and each gets its own verdict. A request that CouchDB refuses as a whole
//! is split until the culprit is alone (`bulk`). Never sends `new_edits:false`, `batch=ok` or `all_or_nothing`: a
//! document is stored only when CouchDB says so of that document.

mod bulk;
mod client;
mod design;
mod find;
mod load;
mod outcome;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod replies;

use std::collections::HashMap;
use std::sync::atomic::AtomicUsize;

use async_trait::async_trait;
use jiff::Timestamp;
use reqwest::Method;
use serde::Deserialize;

use super::rules;
use super::{
    About, Census, Designs, NodeSummary, Query, Store, StoreError, StoredDocument, Verdicts, Write,
};
use crate::config::StoreDsn;
use crate::wire::NodeName;
use client::Client;
#[doc(hidden)]
pub use outcome::count_stored;

/// The store. One HTTP client with kept-alive connections serves all calls.
#[derive(Debug)]
pub struct CouchStore {
    client: Client,
    /// Whether a call that finds the database missing creates it.
    create: bool,
    /// Largest request body, in bytes: as configured, or less once the server said "too large".
    request_bytes_max: AtomicUsize,
}

impl CouchStore {
    /// Makes the client; nothing is sent yet.
    pub fn new(config: &crate::config::Store) -> Result<Self, StoreError> {
        let StoreDsn::Couch(url) = &config.dsn else {
            return Err(StoreError::Protocol {
                store: config.dsn.to_string(),
                reason: "not a couch: DSN".to_owned(),
            });
        };
        Ok(Self {
            client: Client::new(url, config.timeout, config.gzip_bytes_min)?,
            create: config.create,
            request_bytes_max: AtomicUsize::new(config.request_bytes_max),
        })
    }

    /// Creates the database. Returns whether it was missing.
    async fn create_database(&self) -> Result<bool, StoreError> {
        let reply = self.client.send(Method::PUT, &[], &[], None).await?;
        match reply.status {
            201 | 202 => Ok(true),
            412 if reply.error().error == "file_exists" => Ok(false),
            _ => Err(self.client.error(&reply)),
        }
    }

    /// After a call that found the database missing: creates it if configured. Returns whether to call again.
    async fn create_missing(&self, error: &StoreError) -> Result<bool, StoreError> {
        if !(self.create && matches!(error, StoreError::NoDatabase { .. })) {
            return Ok(false);
        }
        let created = self.create_database().await?;
        tracing::info!(
            database = self.client.location(),
            created,
            "database was missing"
        );
        Ok(true)
    }

    /// Name and version of the server at this address.
    async fn product(&self) -> Result<String, StoreError> {
        #[derive(Deserialize)]
        struct Welcome {
            version: Option<String>,
            vendor: Option<Vendor>,
        }
        #[derive(Deserialize)]
        struct Vendor {
            name: Option<String>,
        }
        let reply = self.client.send_to_server().await?;
        let welcome: Welcome = self.client.parse(&reply)?;
        // The name CouchDB is only CouchDB's own: others that speak its protocol give their name as vendor.
        let vendor = welcome.vendor.and_then(|vendor| vendor.name);
        let name = vendor
            .filter(|name| name != "The Apache Software Foundation")
            .unwrap_or_else(|| "CouchDB".to_owned());
        Ok(format!("{name} {}", welcome.version.unwrap_or_default()))
    }
}

#[async_trait]
impl Store for CouchStore {
    async fn load(
        &self,
        ids: &[NodeName],
    ) -> Result<HashMap<NodeName, StoredDocument>, StoreError> {
        match load::load(&self.client, ids).await {
            Err(error) if self.create_missing(&error).await? => load::load(&self.client, ids).await,
            answer => answer,
        }
    }

    async fn write(&self, documents: Vec<Write>) -> Result<Verdicts, StoreError> {
        let mut admitted = rules::admit(documents);
        let writes = std::mem::take(&mut admitted.writes);
        let verdicts = match self.write_bulk(&writes).await {
            Err(error) if self.create_missing(&error).await? => self.write_bulk(&writes).await,
            answer => answer,
        }?;
        Ok(admitted.conclude(verdicts))
    }

    async fn setup(&self, designs: Designs<'_>) -> Result<Vec<String>, StoreError> {
        // Files first: a folder that cannot be read is reported before anything is changed.
        let designs = design::read(designs)?;
        let location = self.client.location();
        // Only a server administrator may create databases; a user who loads views need not be one.
        let is_there = self
            .client
            .send(Method::GET, &[], &[], None)
            .await?
            .is_success();
        let mut did = vec![if !is_there && self.create_database().await? {
            format!("created database {location}")
        } else {
            format!("database {location} is there")
        }];
        for design in &designs {
            did.push(design::load(&self.client, design).await?);
        }
        Ok(did)
    }

    async fn about(&self) -> Result<About, StoreError> {
        Ok(About {
            product: self.product().await?,
            location: self.client.location().to_owned(),
            documents: find::count(&self.client).await?,
        })
    }

    async fn nodes(&self) -> Result<Vec<NodeSummary>, StoreError> {
        find::nodes(&self.client).await
    }

    async fn find(&self, query: &Query) -> Result<Vec<NodeName>, StoreError> {
        find::find(&self.client, query).await
    }

    async fn census(&self, since: Timestamp) -> Result<Census, StoreError> {
        find::census(&self.client, since).await
    }

    async fn close(&self) {
        // Nothing is buffered here; idle connections close with the client.
    }
}
