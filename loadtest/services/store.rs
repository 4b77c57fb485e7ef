//! The store: a database of the run's own on a CouchDB that is given or on a pouchdb-server started here, or a
//! database that is given.
//!
//! A proxy stands before it where the plan has faults at the store: the server goes through it, the verifier does not.
//! "Stopped" means that connections are refused: the store itself runs on, for pouchdb-server keeps all in memory.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use url::Url;
use vogeler::config::{self, StoreDsn};
use vogeler::store::{self, Store};

use super::proxy::{Fault, Proxy, Rule};
use super::{Given, blocking, http_client, local_port, pouch, with_port};
use crate::plan::FaultKind;

const PORT_DEFAULT: u16 = 5984;
const DESIGNS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/etc/vogeler/_design");
const UNAVAILABLE: &str =
    r#"{"error":"service_unavailable","reason":"a fault of the load tester"}"#;

/// The store of a run.
#[derive(Debug)]
pub(crate) struct StoreService {
    proxy: Option<Proxy>,
    /// Past the proxy.
    direct: String,
    server_dsn: String,
    /// The run's own database, to be deleted: its HTTP address.
    own: Option<Url>,
}

impl StoreService {
    /// Starts a store unless one is given, and sets the database up: what is missing in it is added.
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
            own,
        };
        let store = service.direct()?;
        let done = store.setup(Some(Path::new(DESIGNS))).await;
        store.close().await;
        done.context("cannot set up the store")?;
        Ok(service)
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

    /// Past the proxy, for looks that meet no faults.
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
    pub(super) async fn stop(self) -> anyhow::Result<()> {
        let Some(url) = self.own else { return Ok(()) };
        let answer = http_client()?
            .delete(url)
            .timeout(Duration::from_mins(1))
            .send()
            .await;
        let answer = answer.context("cannot delete the run's database")?;
        if !answer.status().is_success() {
            bail!("cannot delete the run's database: {}", answer.status());
        }
        Ok(())
    }
}

/// The address of a database that is not there yet, on `couch` or on a pouchdb-server started for it.
async fn own_database(couch: Option<&str>) -> anyhow::Result<Url> {
    let mut url: Url = match couch {
        Some(url) => url.parse().context("--couch")?,
        None => blocking("the start of pouchdb-server", pouch::url).await?,
    };
    if !matches!(url.scheme(), "http" | "https") {
        bail!("--couch wants http://USER:PASSWORD@HOST:5984");
    }
    let (now, pid) = (Timestamp::now().as_second(), std::process::id());
    url.set_path(&format!("vogeler_loadtest_{now}_{pid}"));
    Ok(url)
}
