//! The HTTP side of server and client: `/metrics`, `/livez` and `/readyz`.
//!
//! Reads what the process notes of itself, changes nothing. Invariant: alive as long as the process answers; ready as
//! its [`Probe`] says. A server is ready only while broker and store can be used and it is not stopping.

use std::fmt;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::broker::Link;
use crate::ingest::Agreement;
use crate::telemetry::Telemetry;

/// Whether a process is ready, asked anew for each `/readyz`.
pub trait Probe: fmt::Debug + Send + Sync + 'static {
    /// Whether it is, and the reasons: an object with a member a part.
    fn readiness(&self) -> (bool, Value);
}

/// What the server's `/readyz` answers from.
#[derive(Debug)]
pub struct Health {
    /// Whether the broker can be used.
    pub broker: watch::Receiver<Link>,
    /// Whether the store can be used.
    pub store: watch::Receiver<Link>,
    /// Which partitions this server should own.
    pub agreement: watch::Receiver<Agreement>,
    /// Cancelled when the server begins to stop.
    pub stopping: CancellationToken,
}

impl Probe for Health {
    fn readiness(&self) -> (bool, Value) {
        let (is_ready, mut body) = readiness(
            &self.broker.borrow(),
            &self.store.borrow(),
            self.stopping.is_cancelled(),
        );
        let agreement = self.agreement.borrow();
        body["partitions"] = json!({"owned": agreement.owned(), "servers": agreement.servers()});
        (is_ready, body)
    }
}

/// What the endpoints answer from.
#[derive(Debug, Clone)]
struct Sources {
    telemetry: Telemetry,
    probe: Arc<dyn Probe>,
}

/// Answers on `listener` until `stop`. An error is one of the listener.
pub async fn serve(
    listener: TcpListener,
    telemetry: Telemetry,
    probe: Arc<dyn Probe>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let routes = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state(Sources { telemetry, probe });
    axum::serve(listener, routes)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
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

/// Whether the server is ready, and the reasons, a member a part.
fn readiness(broker: &Link, store: &Link, is_stopping: bool) -> (bool, Value) {
    let is_ready = *broker == Link::Up && *store == Link::Up && !is_stopping;
    (
        is_ready,
        json!({"ready": is_ready, "broker": part(broker), "store": part(store), "stopping": is_stopping}),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: any one part that is away, or a stop, makes the server unready, and the answer names it.
    #[test]
    fn readiness_names_what_is_missing() {
        let down = Link::Down {
            reason: "connection refused".to_owned(),
        };
        assert!(readiness(&Link::Up, &Link::Up, false).0);
        for (broker, store, is_stopping) in [
            (&down, &Link::Up, false),
            (&Link::Up, &Link::Unknown, false),
            (&Link::Up, &Link::Up, true),
        ] {
            assert!(!readiness(broker, store, is_stopping).0);
        }
        let (_, body) = readiness(&down, &Link::Up, false);
        assert_eq!(body["broker"]["reason"], "connection refused");
    }
}
