//! The store gate: whether the store can be used, and who may try it while it cannot.
//!
//! While the store is away one commit at a time probes it, the others wait: an outage, or a revoked password, is
//! not answered with a storm. Each change of state is logged once.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tracing::{error, info, warn};

use crate::broker::Link;
use crate::store::StoreError;
use crate::telemetry;

/// Pause between tries while the store refuses our password: CouchDB locks an address out after five in a row.
const REFUSED_PAUSE: Duration = Duration::from_secs(30);

/// Shared by all commits. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct StoreGate {
    link: watch::Sender<Link>,
    turn: Arc<Mutex<()>>,
}

impl StoreGate {
    pub(super) fn new() -> Self {
        Self {
            link: watch::Sender::new(Link::Unknown),
            turn: Arc::new(Mutex::new(())),
        }
    }

    /// Whether the store can be used, and every change of that.
    pub(super) fn link(&self) -> watch::Receiver<Link> {
        self.link.subscribe()
    }

    /// The store answered.
    pub(super) fn open(&self) {
        let was_down = matches!(*self.link.borrow(), Link::Down { .. });
        if self
            .link
            .send_if_modified(|link| std::mem::replace(link, Link::Up) != Link::Up)
        {
            telemetry::record_up("store", true);
            if was_down {
                info!(target: "vogeler::ingest::gate", "the store is back");
            }
        }
    }

    /// The store did not.
    pub(super) fn close(&self, error: &StoreError) {
        let down = Link::Down {
            reason: error.to_string(),
        };
        let mut was_down = false;
        self.link.send_if_modified(|link| {
            was_down = matches!(link, Link::Down { .. });
            std::mem::replace(link, down.clone()) != down
        });
        if was_down {
            return;
        }
        telemetry::record_up("store", false);
        match error {
            StoreError::Away { .. } => {
                warn!(target: "vogeler::ingest::gate", %error, "paused: results wait until the store is back");
            }
            _ => {
                error!(target: "vogeler::ingest::gate", %error, "paused: results wait until somebody mends this");
            }
        }
    }

    /// Waits for the turn to try again: at least `pause`, or as long as the store asks for, unless somebody else's
    /// try found it back.
    pub(super) async fn wait_for_turn(&self, pause: Duration, error: &StoreError) {
        let _turn = self.turn.lock().await;
        if matches!(*self.link.borrow(), Link::Up) {
            return;
        }
        let asked = error.retry_after().unwrap_or_default();
        let least = match error {
            StoreError::Unauthorized { .. } => REFUSED_PAUSE,
            _ => Duration::ZERO,
        };
        tokio::time::sleep(pause.max(asked).max(least)).await;
    }
}
