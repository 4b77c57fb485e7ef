//! The keeper: watches over a store that is away, whether or not there are results for it.
//!
//! It probes while no commit does, lets results go once they were held for `hold_max`, and resumes when the store is
//! back. Invariant: a store that came back is noticed without any traffic.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::gate::StoreGate;
use crate::broker::Link;
use crate::store::Store;
use crate::wire::NodeName;

/// An id that no machine has: asking for it shows whether database and password are good, at the least cost.
const PROBE_ID: &str = "vogeler-probe";

/// Watches until it is aborted.
pub(super) async fn keep(gate: StoreGate, store: Arc<dyn Store>, hold_max: Duration) {
    // One look at the start, so that readiness is known before the first result.
    probe(&gate, store.as_ref()).await;
    let mut link = gate.link();
    let is_down = |link: &Link| matches!(link, Link::Down { .. });
    let mut letting_go = gate.letting_go();
    loop {
        // The senders live in `gate`, so waiting cannot fail.
        tokio::select! {
            _ = link.wait_for(is_down) => {}
            _ = letting_go.wait_for(|is| *is) => {}
        }
        let end = Instant::now() + hold_max;
        let wait = async {
            tokio::time::sleep_until(end).await;
            gate.let_go();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            _ = link.wait_for(|link| !is_down(link)) => {}
            () = probe_in_turn(&gate, store.as_ref()) => {}
            () = wait => {}
        }
        gate.resume();
    }
}

/// Probes until the store is back; leaves it to the commits as long as there are any.
async fn probe_in_turn(gate: &StoreGate, store: &dyn Store) {
    loop {
        let turn = gate.turn().await;
        if !turn.is_probe() {
            return;
        }
        if gate.waiting() == 0 {
            probe(gate, store).await;
        }
        drop(turn);
        // Who waits for the turn takes it first.
        tokio::task::yield_now().await;
    }
}

async fn probe(gate: &StoreGate, store: &dyn Store) {
    let Ok(nobody) = NodeName::new(PROBE_ID) else {
        return;
    };
    match store.load(&[nobody]).await {
        Ok(_) => gate.open(),
        Err(error) => gate.close(&error),
    }
}
