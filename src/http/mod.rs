//! The HTTP side of server and client: `/metrics`, `/livez`, `/readyz` and the status page `/`.
//!
//! Reads what the process records about itself, and changes nothing. Invariant: alive as long as the process answers;
//! ready as its [`Probe`] says; a request for another host is refused ([`Hosts`]).

mod connections;
mod hosts;

use std::convert::Infallible;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Json, Response};
use axum::routing::get;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::broker::Link;
use crate::status::journal::JOURNAL;
use crate::status::page::{self, Page};
use crate::status::rates::{Rates, SAMPLE_EVERY};
use crate::status::{About, Report, Seen, Watched};
use crate::telemetry::{HttpRefusal, Telemetry, catalogue};
pub use hosts::Hosts;

/// What a process reports about itself, asked for at each request.
pub trait Probe: fmt::Debug + Send + Sync + 'static {
    /// Whether it is ready, and the reasons: an object with one member per part.
    fn readiness(&self) -> (bool, Value);

    /// What it is.
    fn about(&self) -> &About;

    /// The counters whose rates the status page shows.
    fn watched(&self) -> Watched;

    /// What else the status page shows.
    fn report(&self, seen: &Seen<'_>) -> Report;
}

/// What the endpoints answer from.
#[derive(Debug, Clone)]
struct Sources {
    telemetry: Telemetry,
    probe: Arc<dyn Probe>,
    rates: Arc<Mutex<Rates>>,
}

/// Decides which requests the endpoints answer.
#[derive(Debug)]
struct Door {
    hosts: Hosts,
    /// Whether a refusal was logged.
    is_told: AtomicBool,
}

/// Answers requests for one of `hosts` on `listener` until `stop`.
pub async fn serve(
    listener: TcpListener,
    telemetry: Telemetry,
    probe: Arc<dyn Probe>,
    hosts: Hosts,
    stop: CancellationToken,
) {
    let sources = Sources {
        telemetry,
        probe,
        rates: Arc::default(),
    };
    let door = Arc::new(Door {
        hosts,
        is_told: AtomicBool::new(false),
    });
    let routes = Router::new()
        .route("/", get(status))
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state(sources.clone())
        .layer(middleware::from_fn_with_state(door, guard));
    let served = connections::serve(listener, routes, connections::Bounds::default(), stop);
    tokio::select! {
        () = served => {}
        never = sample(sources) => match never {},
    }
}

/// Passes on a request that names one of our hosts, and refuses any other.
async fn guard(State(door): State<Arc<Door>>, request: Request, next: Next) -> Response {
    let (version, uri, headers) = (request.version(), request.uri(), request.headers());
    if door.hosts.accepts(version, uri, headers) {
        return next.run(request).await;
    }
    catalogue::HTTP_REFUSED.of(HttpRefusal::Host).increment(1);
    if !door.is_told.swap(true, Ordering::Relaxed) {
        let host = headers.get(header::HOST);
        tracing::warn!(target: "vogeler::http", ?host, "a request for another host was refused, as all such are; if the name is ours, list it in http.hosts");
    }
    let why = "This is not the host that you asked for. If it is, list its name in http.hosts.\n";
    (StatusCode::MISDIRECTED_REQUEST, why).into_response()
}

/// Takes the samples from which rates are computed.
async fn sample(sources: Sources) -> Infallible {
    let mut ticks = tokio::time::interval(SAMPLE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let metrics = sources.telemetry.snapshot();
        let watched = sources.probe.watched().iter();
        let values = watched.map(|(_, metric)| metrics.sum(*metric)).collect();
        let mut rates = sources.rates.lock().unwrap_or_else(PoisonError::into_inner);
        rates.add(Instant::now(), values);
    }
}

async fn status(State(sources): State<Sources>) -> Response {
    let (is_ready, readiness) = sources.probe.readiness();
    let metrics = sources.telemetry.snapshot();
    let rates = sources.rates.lock().unwrap_or_else(PoisonError::into_inner);
    let now = Timestamp::now();
    let report = sources.probe.report(&Seen {
        metrics: &metrics,
        rates: &rates,
        now,
    });
    let html = page::render(&Page {
        about: sources.probe.about(),
        is_ready,
        readiness: &readiness,
        report: &report,
        watched: sources.probe.watched(),
        rates: &rates,
        journal: &JOURNAL.newest_first(),
        now,
    });
    let headers = [
        (header::CONTENT_SECURITY_POLICY, page::CONTENT_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, Html(html.into_string())).into_response()
}

async fn metrics(State(sources): State<Sources>) -> Response {
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4")],
        sources.telemetry.render(),
    )
        .into_response()
}

async fn livez() -> &'static str {
    "alive\n"
}

async fn readyz(State(sources): State<Sources>) -> Response {
    let (is_ready, body) = sources.probe.readiness();
    let status = if is_ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(body)).into_response()
}

/// What `/readyz` says of a connection.
pub fn part(link: &Link) -> Value {
    match link {
        Link::Up => json!({"ok": true}),
        Link::Unknown => json!({"ok": false, "reason": "not tried yet"}),
        Link::Down { reason } => json!({"ok": false, "reason": reason}),
    }
}
