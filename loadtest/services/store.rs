//! The store: a given database, or a database of the run's own, on a given CouchDB or on a pouchdb-server started here.
//!
//! If the plan has faults at the store, a proxy stands before it: the server goes through it, the verifier does not.
//! "Stopped" means that connections are refused: the store itself runs on, since pouchdb-server keeps everything in
//! memory.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use reqwest::StatusCode;
use url::Url;
use vogeler::config::{self, StoreDsn};
use vogeler::store::{self, Designs, NodeSummary, Store, StoreError};

use super::proxy::{Fault, Proxy, Rule};
use super::{Given, blocking, http_client, local_port, pouch, with_port};
use crate::complain;
use crate::plan::FaultKind;
use crate::verify::OUR_DOMAIN;

const PORT_DEFAULT: u16 = 5984;
const COUCH: &str = "--couch (or VOGELER_LOADTEST_COUCH)";
const DELETE_PATIENCE: Duration = Duration::from_secs(10);
const UNAVAILABLE: &str =
    r#"{"error":"service_unavailable","reason":"a fault of the load tester"}"#;

/// The store of a run.
#[derive(Debug)]
pub(crate) struct StoreService {
    proxy: Option<Proxy>,
    /// The DSN that goes past the proxy.
    direct: String,
    server_dsn: String,
    /// The run's own database in a CouchDB that is given: its HTTP address.
    own: Option<Url>,
    /// Whether that database may exist, and is to be deleted.
    is_made: bool,
}

impl StoreService {
    /// Starts a store unless one is given. Nothing is made in it yet.
    pub(super) async fn start(given: &Given, with_proxy: bool) -> anyhow::Result<Self> {
        let own = if given.store.is_none() {
            Some(own_database(given.couch.as_deref()).await?)
        } else {
            None
        };
        let direct = match (&given.store, &own) {
            (Some(dsn), _) => dsn.clone(),
            // http becomes couch, https couchs.
            (None, Some(url)) => url.as_str().replacen("http", "couch", 1),
            (None, None) => bail!("neither given nor started"),
        };
        if direct.parse::<StoreDsn>().context("--store")? == StoreDsn::Memory {
            bail!("--store: memory: is one process, and the server is another one");
        }
        let port = local_port(&direct, PORT_DEFAULT);
        let proxy =
            with_proxy.then(|| port.context("faults at the store need a CouchDB on this machine"));
        let proxy = proxy.transpose()?.map(Proxy::http);
        let server_dsn = proxy.as_ref().map_or_else(
            || Ok(direct.clone()),
            |proxy| with_port(&direct, proxy.port()),
        )?;
        let service = Self {
            proxy,
            direct,
            server_dsn,
            // A database in memory ends with its process.
            own: own.filter(|_| given.couch.is_some()),
            is_made: false,
        };
        service
            .check(given.metrics.is_none())
            .await
            .context(match () {
                () if given.store.is_some() => "--store",
                () if given.couch.is_some() => COUCH,
                () => "pouchdb-server",
            })?;
        Ok(service)
    }

    /// Refuses a store that cannot be reached, or that has machines of an earlier run: they would look like this run's.
    async fn check(&self, may_be_missing: bool) -> anyhow::Result<()> {
        let store = self.direct()?;
        let nodes = store.nodes().await;
        store.close().await;
        let nodes = match nodes {
            Err(StoreError::NoDatabase { .. }) if may_be_missing => Vec::new(),
            nodes => nodes?,
        };
        let is_ours = |node: &&NodeSummary| node.node.as_str().ends_with(OUR_DOMAIN);
        if let Some(left) = nodes.iter().find(is_ours) {
            bail!(
                "{} of an earlier run is in this database: give an empty one",
                left.node
            );
        }
        Ok(())
    }

    /// Sets the database up: what is missing in it is added.
    pub(super) async fn set_up(&mut self) -> anyhow::Result<()> {
        self.is_made = self.own.is_some();
        let store = self.direct()?;
        let done = store.setup(Designs::Shipped).await;
        store.close().await;
        done.map(drop).context("cannot set up the store")
    }

    /// As the server reaches it, with its password.
    pub(super) fn server_dsn(&self) -> &str {
        &self.server_dsn
    }

    /// Its port, if it is on this machine.
    pub(crate) fn port(&self) -> Option<u16> {
        local_port(&self.direct, PORT_DEFAULT)
    }

    /// Whether it speaks CouchDB's protocol.
    pub(crate) fn is_couch(&self) -> bool {
        self.direct.starts_with("couch")
    }

    /// A store past the proxy, for looks that faults do not disturb.
    pub(crate) fn direct(&self) -> anyhow::Result<Arc<dyn Store>> {
        let dsn = self.direct.parse()?;
        Ok(store::open(&config::Store {
            dsn,
            ..config::Store::default()
        })?)
    }

    /// Begins a fault at the store.
    pub(crate) fn harm(&self, kind: FaultKind) {
        let Some(proxy) = &self.proxy else { return };
        let fault = match kind {
            FaultKind::StopStore => return proxy.refuse(true),
            FaultKind::StoreAnswers503 => Fault::Answer(503, "", UNAVAILABLE.to_owned()),
            FaultKind::SwallowStoreAnswers => Fault::Swallow,
            FaultKind::SlowStore { delay } => Fault::Delay(delay),
            _ => return,
        };
        proxy.rule(Rule::new("", fault));
    }

    /// Ends it.
    pub(crate) fn heal(&self) {
        if let Some(proxy) = &self.proxy {
            proxy.clear();
            proxy.refuse(false);
        }
    }

    /// Deletes the run's own database; nothing else was made.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        let Some(url) = self.own.as_ref().filter(|_| self.is_made) else {
            return Ok(());
        };
        let request = http_client()?.delete(url.clone()).timeout(DELETE_PATIENCE);
        let answer = request
            .send()
            .await
            .context("cannot delete the run's database")?;
        let status = answer.status();
        // Not found: the run ended before the database was made. Whoever may not delete it could not make it.
        let was_never_made = [
            StatusCode::NOT_FOUND,
            StatusCode::UNAUTHORIZED,
            StatusCode::FORBIDDEN,
        ];
        if !status.is_success() && !was_never_made.contains(&status) {
            bail!("cannot delete the run's database: {status}");
        }
        self.is_made = false;
        Ok(())
    }
}

impl Drop for StoreService {
    fn drop(&mut self) {
        if let Some(url) = self.own.as_ref().filter(|_| self.is_made) {
            let name = url.path().trim_start_matches('/');
            complain(&format!(
                "vogeler-loadtest: the database {name} may still be in the CouchDB of --couch: delete it there"
            ));
        }
    }
}

/// The address of a database that is not there yet, on `couch` or on a pouchdb-server started for it.
async fn own_database(couch: Option<&str>) -> anyhow::Result<Url> {
    let wanted = || format!("{COUCH} wants http://USER:PASSWORD@HOST:5984");
    let mut url: Url = match couch {
        Some(url) => url.parse().with_context(wanted)?,
        None => blocking("the start of pouchdb-server", pouch::url).await?,
    };
    if !matches!(url.scheme(), "http" | "https") {
        bail!(wanted());
    }
    let (now, pid) = (Timestamp::now().as_second(), std::process::id());
    url.set_path(&format!("vogeler_loadtest_{now}_{pid}"));
    Ok(url)
}
