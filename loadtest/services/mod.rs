//! The services of a run: broker, store and server, started for it unless their addresses are given.
//!
//! Invariants: what was not started here is never stopped, killed or emptied; what was started here ends with this
//! process, however it ends. A proxy stands between two services only if a fault of the plan needs it there.

mod broker;
#[allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "the tests' own: what does not start is a panic there, and an error here"
)]
#[path = "../../tests/harness/pouch.rs"]
mod pouch;
#[allow(
    dead_code,
    clippy::expect_used,
    reason = "the tests' own, which use all of it"
)]
#[path = "../../tests/harness/process.rs"]
mod process;
#[allow(
    dead_code,
    clippy::unwrap_used,
    reason = "the tests' own, which use all of it"
)]
#[path = "../../tests/harness/proxy.rs"]
mod proxy;
#[allow(
    dead_code,
    clippy::expect_used,
    reason = "the tests' own, which use all of it"
)]
#[path = "../../tests/harness/rabbit.rs"]
mod rabbit;
mod server;
mod store;

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::process::Command;
use std::sync::Once;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use tokio_util::sync::CancellationToken;
use url::Url;
use vogeler::broker::topology;
use vogeler::config::Config;

use crate::faults::Part;
use crate::plan::Plan;
use broker::BrokerService;
pub(crate) use process::GuardedFolder;
pub(crate) use server::vogeler_program;
use server::{ServerService, Start};
use store::StoreService;

/// RabbitMQ, a database and a server are up within this, on a slow and busy machine too.
const READY_PATIENCE: Duration = Duration::from_mins(2);
/// Longest wait for a given server, which runs already.
const GIVEN_PATIENCE: Duration = Duration::from_secs(5);
/// Longest time that an orderly end may take after a signal.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// The error of a run that a signal ended.
pub(crate) const INTERRUPTED: &str = "interrupted before its end";
const READY_PAUSE: Duration = Duration::from_millis(100);
const HTTP_TIMEOUT: Duration = Duration::from_secs(5);

/// Addresses of services that run already, with their passwords.
#[derive(Default, Clone)]
pub(crate) struct Given {
    /// DSN of a RabbitMQ with a virtual host.
    pub(crate) broker: Option<String>,
    /// DSN of a database that the server writes to.
    pub(crate) store: Option<String>,
    /// A CouchDB server: the run makes a database of its own there.
    pub(crate) couch: Option<String>,
    /// `/metrics` of a server that works on these already.
    pub(crate) metrics: Option<Url>,
}

/// Everything that a run talks to.
#[derive(Debug)]
pub(crate) struct Services {
    pub(crate) broker: BrokerService,
    pub(crate) store: StoreService,
    pub(crate) server: ServerService,
    /// The settings of the server under test, without DSNs.
    pub(crate) config: Config,
}

impl Services {
    /// Starts what was not given, and sets broker and store up as `vogeler admin setup` does. The server's log goes
    /// to `log`.
    pub(crate) async fn start(
        plan: &Plan,
        given: &Given,
        log: &Path,
        stop: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let mut config = server::config(&plan.server)?;
        let touches = |part| plan.faults.iter().any(|fault| Part::of(fault.kind) == part);
        let started = async {
            let server = ServerService::given(given).await?;
            // Both take seconds to start, and create nothing yet that would outlive this process.
            let broker = async {
                let with_proxy = touches(Part::Connections);
                let broker = BrokerService::start(given.broker.as_deref(), with_proxy).await?;
                broker.check(&mut config.broker, server.is_some()).await?;
                Ok(broker)
            };
            let store = StoreService::start(given, touches(Part::Store));
            let (broker, store) = tokio::try_join!(broker, store)?;
            Ok((broker, store, server))
        };
        let (broker, mut store, server) = until(stop, started).await?;
        let ready = async {
            if let Some(server) = server {
                // Broker and store are set up as that server wants them.
                return Ok(server);
            }
            // Runs to its end if that is near: what it has not made yet could not be deleted.
            soon_after(stop, store.set_up()).await?;
            let started = async {
                broker.set_up(&config).await?;
                start_server(plan, &broker, &store, log).await
            };
            until(stop, started).await
        };
        match ready.await {
            Ok(server) => Ok(Self {
                broker,
                store,
                server,
                config,
            }),
            Err(error) => {
                if let Err(error) = store.stop().await {
                    crate::complain(&format!("vogeler-loadtest: {error:#}"));
                }
                broker.stop().await;
                Err(error)
            }
        }
    }

    /// The partition queues.
    pub(crate) fn queues(&self) -> Vec<String> {
        let settings = &self.config.broker;
        let queues = topology::results_queues(settings.partitions, settings.queue_type);
        queues.into_iter().map(|queue| queue.name).collect()
    }

    /// Ends what was started here, at once if `hurry` is cancelled.
    pub(crate) async fn stop(self, hurry: &CancellationToken) -> anyhow::Result<()> {
        self.server.stop(hurry).await;
        let deleted = self.store.stop().await;
        self.broker.stop().await;
        deleted
    }
}

/// A server that is ready.
async fn start_server(
    plan: &Plan,
    broker: &BrokerService,
    store: &StoreService,
    log: &Path,
) -> anyhow::Result<ServerService> {
    let server = ServerService::start(&Start {
        settings: &plan.server,
        broker_dsn: broker.dsn(),
        store_dsn: store.server_dsn(),
        log,
    })?;
    let ready = server.wait_until_ready(READY_PATIENCE).await;
    ready.with_context(|| format!("the server under test; its log is {}", log.display()))?;
    Ok(server)
}

/// Does `work` unless it is stopped before the end of it.
pub(crate) async fn until<T>(
    stop: &CancellationToken,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let done = stop.run_until_cancelled(work).await;
    done.unwrap_or_else(|| Err(anyhow!(INTERRUPTED)))
}

/// Does `work`, which may end in order within [`STOP_PATIENCE`] once it is stopped.
pub(crate) async fn soon_after<T>(
    stop: &CancellationToken,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    tokio::select! {
        done = work => done,
        () = async {
            stop.cancelled().await;
            tokio::time::sleep(STOP_PATIENCE).await;
        } => bail!(INTERRUPTED),
    }
}

/// Installs the services that are missing, as the tests do.
fn install_services() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/install-services");
    let status = Command::new(script).status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "{script} failed"
    );
}

thread_local! {
    /// Whether a panic of this thread becomes an error; it is then reported once and not twice.
    static IS_TOLD: Cell<bool> = const { Cell::new(false) };
}

/// Silences the panics of [`blocking`]: its callers get them as errors.
fn tell_panics_once() {
    static DONE: Once = Once::new();
    DONE.call_once(|| {
        let others = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if !IS_TOLD.get() {
                others(panic);
            }
        }));
    });
}

/// Runs work that blocks and may panic on a thread of its own; a panic becomes an error.
async fn blocking<T: Send + 'static>(
    what: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> anyhow::Result<T> {
    tell_panics_once();
    let work = move || {
        IS_TOLD.set(true);
        let done = panic::catch_unwind(AssertUnwindSafe(work));
        IS_TOLD.set(false);
        done
    };
    let done = tokio::task::spawn_blocking(work).await?;
    done.map_err(|panic| {
        let why = panic.downcast_ref::<String>().map(String::as_str);
        let why = why.or_else(|| panic.downcast_ref::<&str>().copied());
        anyhow!("{what} failed: {}", why.unwrap_or("a panic"))
    })
}

/// `dsn` with another port on this machine.
fn with_port(dsn: &str, port: u16) -> anyhow::Result<String> {
    let mut url: Url = dsn.parse().context("not a DSN with host and port")?;
    if url.set_port(Some(port)).is_err() {
        bail!("a DSN without a host");
    }
    Ok(url.into())
}

/// The port of a DSN on this machine; none if it is another machine's.
pub(crate) fn local_port(dsn: &str, port_default: u16) -> Option<u16> {
    let url: Url = dsn.parse().ok()?;
    let is_local = matches!(url.host_str(), Some("127.0.0.1" | "localhost" | "[::1]"));
    is_local.then(|| url.port().unwrap_or(port_default))
}

/// The client for requests that are no part of the load.
fn http_client() -> anyhow::Result<reqwest::Client> {
    vogeler::tls::install_crypto_provider();
    let builder = reqwest::Client::builder().no_proxy().timeout(HTTP_TIMEOUT);
    builder.build().context("no HTTP client")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a proxy takes the place of a service in its DSN, and everything else of the DSN stays.
    #[test]
    fn a_proxy_changes_the_port_only() {
        let dsn = "couch://user:pa%3Ass@127.0.0.1:5984/db";
        assert_eq!(local_port(dsn, 1), Some(5984));
        assert_eq!(
            with_port(dsn, 7).unwrap(),
            "couch://user:pa%3Ass@127.0.0.1:7/db"
        );
        assert_eq!(local_port("amqp://localhost/v", 5672), Some(5672));
        assert_eq!(local_port("amqp://mq.example.com:5672/v", 5672), None);
        assert_eq!(local_port("memory:", 5672), None);
    }
}
