//! `vogeler server`: wires broker, store, ingest and HTTP, runs until a signal, drains, says how it went.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::client::host_label;
use crate::config::Config;
use crate::http::{self, Hosts};
use crate::ingest;
use crate::shutdown;
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
    shutdown::on_hangup(|| {
        info!(target: "vogeler::server", "SIGHUP: nothing to do, settings are read at the start only");
    })
    .context("cannot listen for SIGHUP")?;
    let ledger = Arc::new(Ledger::default());
    let host = host_label();
    let hosts = Hosts::new(config.http.listen.ip(), &host, config.http.hosts.clone());
    let about = About::new(Role::Server, host, settings(&config));
    let endpoints = if config.http.enabled {
        Some(open_endpoints(config.http.listen).await?)
    } else {
        None
    };
    let broker = broker::open(&config.broker);
    let store = store::open(&config.store)?;
    info!(
        target: "vogeler::server",
        version = env!("CARGO_PKG_VERSION"), broker = %config.broker.dsn, store = %config.store.dsn,
        http = endpoints.as_ref().map(|(_, listener)| listener.local_addr().unwrap_or(config.http.listen).to_string()),
        "starting"
    );
    let server = ingest::Server::start(
        &config,
        Arc::clone(&broker),
        Arc::clone(&store),
        Arc::clone(&ledger),
    )
    .await?;
    let gauges = server.gauges();
    let health = Health {
        about,
        runs: server.runs(),
        broker: broker.link(),
        store: server.store_link(),
        dead_letters: server.dead_letter_link(),
        forwards: server.forward_link(),
        topology: server.topology(),
        agreement: server.agreement(),
        stopping: stop.clone(),
    };
    let http_stop = CancellationToken::new();
    let http = endpoints.map(|(telemetry, listener)| {
        let telemetry = telemetry
            .observing(move || ledger.export())
            .observing(move || gauges.export());
        let health = Arc::new(health);
        tokio::spawn(http::serve(
            listener,
            telemetry,
            health,
            hosts,
            http_stop.clone(),
        ))
    });

    stop.cancelled().await;
    info!(target: "vogeler::server", "stopping: no more results are pulled, those in flight are written");
    let drained = server.stop().await;
    broker.close().await;
    store.close().await;
    http_stop.cancel();
    if let Some(http) = http
        && let Err(error) = http.await
    {
        tracing::warn!(target: "vogeler::server", %error, "http ended early");
    }
    tell_stopped(drained);
    Ok(ExitCode::SUCCESS)
}

fn tell_stopped(drained: ingest::Drained) {
    let counts = drained.counts;
    info!(
        target: "vogeler::server",
        received = counts.received, stored = counts.of(Outcome::Stored), unchanged = counts.of(Outcome::Unchanged),
        superseded = counts.of(Outcome::Superseded), stale = counts.of(Outcome::Stale),
        dead_lettered = counts.of(Outcome::DeadLettered), requeued = counts.of(Outcome::Requeued),
        given_back = drained.given_back, "stopped"
    );
}

/// The recorder of the metrics, before anything is recorded, and the socket to serve them on.
async fn open_endpoints(listen: SocketAddr) -> anyhow::Result<(Telemetry, TcpListener)> {
    let telemetry = Telemetry::install(Role::Server).context("cannot set up the metrics")?;
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("cannot listen on http.listen = {listen}"))?;
    Ok((telemetry, listener))
}
