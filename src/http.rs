//! The server's HTTP side: `/metrics`, `/livez` and `/readyz`.
//!
//! Reads the ledger and the links, changes nothing. Invariant: alive as long as the process answers; ready only
//! while broker and store can be used and the server is not stopping.

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

/// What the endpoints answer from.
#[derive(Debug)]
pub struct Health {
    /// Renders `/metrics`.
    pub telemetry: Telemetry,
    /// Whether the broker can be used.
    pub broker: watch::Receiver<Link>,
    /// Whether the store can be used.
    pub store: watch::Receiver<Link>,
    /// Which partitions this server should own.
    pub agreement: watch::Receiver<Agreement>,
    /// Cancelled when the server begins to stop.
    pub stopping: CancellationToken,
}

/// Answers on `listener` until `stop`. An error is one of the listener.
pub async fn serve(
    listener: TcpListener,
    health: Health,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let routes = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state(Arc::new(health));
    axum::serve(listener, routes)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

async fn metrics(State(health): State<Arc<Health>>) -> Response {
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4")],
        health.telemetry.render(),
    )
        .into_response()
}

async fn livez() -> &'static str {
    "alive\n"
}

async fn readyz(State(health): State<Arc<Health>>) -> Response {
    let (is_ready, mut body) = readiness(
        &health.broker.borrow(),
        &health.store.borrow(),
        health.stopping.is_cancelled(),
    );
    let agreement = health.agreement.borrow();
    body["partitions"] = json!({"owned": agreement.owned(), "servers": agreement.servers()});
    let status = if is_ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(body)).into_response()
}

/// Whether the server is ready, and the reasons, a member a part.
fn readiness(broker: &Link, store: &Link, is_stopping: bool) -> (bool, Value) {
    let part = |link: &Link| match link {
        Link::Up => json!({"ok": true}),
        Link::Unknown => json!({"ok": false, "reason": "not tried yet"}),
        Link::Down { reason } => json!({"ok": false, "reason": reason}),
    };
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
