//! `vogeler server`: wires broker, store, ingest and HTTP, runs until a signal, drains, says how it went.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::client::host_name;
use crate::config::Config;
use crate::http;
use crate::ingest;
use crate::status::About;
use crate::status::server::{Health, settings};
use crate::telemetry::{Ledger, Role, Telemetry};
use crate::wire::Outcome;
use crate::{broker, store};

/// `vogeler server`
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the ingest server until `stop`.
pub(super) async fn run(
    _args: Args,
    config: Config,
    stop: CancellationToken,
) -> anyhow::Result<ExitCode> {
    let ledger = Arc::new(Ledger::default());
    let host = host_name().map_or_else(|_| String::new(), |host| host.to_string());
    let about = About::new(Role::Server, host, settings(&config));
    let telemetry = Telemetry::install(Role::Server).context("cannot set up the metrics")?;
    let listen = config.http.listen;
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("cannot listen on http.listen = {listen}"))?;
    let broker = broker::open(&config.broker);
    let store = store::open(&config.store)?;
    info!(
        target: "vogeler::server",
        version = env!("CARGO_PKG_VERSION"), broker = %config.broker.dsn, store = %config.store.dsn,
        http = %listener.local_addr().unwrap_or(listen), "starting"
    );
    let server = ingest::Server::start(
        &config,
        Arc::clone(&broker),
        Arc::clone(&store),
        Arc::clone(&ledger),
    )
    .await?;
    let gauges = server.gauges();
    let telemetry = telemetry
        .observing(move || ledger.export())
        .observing(move || gauges.export());
    let health = Health {
        about,
        runs: server.runs(),
        broker: broker.link(),
        store: server.store_link(),
        agreement: server.agreement(),
        stopping: stop.clone(),
    };
    let http_stop = CancellationToken::new();
    let http = tokio::spawn(http::serve(
        listener,
        telemetry,
        Arc::new(health),
        http_stop.clone(),
    ));

    stop.cancelled().await;
    info!(target: "vogeler::server", "stopping: no more results are pulled, those in flight are written");
    let drained = server.stop().await;
    broker.close().await;
    store.close().await;
    http_stop.cancel();
    if let Ok(Err(error)) = http.await {
        tracing::warn!(target: "vogeler::server", %error, "http ended early");
    }
    let counts = drained.counts;
    info!(
        target: "vogeler::server",
        received = counts.received, stored = counts.of(Outcome::Stored), unchanged = counts.of(Outcome::Unchanged),
        superseded = counts.of(Outcome::Superseded), stale = counts.of(Outcome::Stale),
        dead_lettered = counts.of(Outcome::DeadLettered), requeued = counts.of(Outcome::Requeued),
        given_back = drained.given_back, "stopped"
    );
    Ok(ExitCode::SUCCESS)
}
