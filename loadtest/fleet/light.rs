//! Light clients: an open loop on the schedule.
//!
//! The dispatcher hands each message to its connection's sender when it is due and waits for nothing else; the sender
//! makes it at once and keeps it until the broker has confirmed it, as a client's spool would. Bounds: the outlets'
//! lines (a message that does not fit counts as dropped, and the run does not pass), the bytes that outlets keep (past
//! them messages are made late, which counts as the tester's lag), and the messages in flight at once.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vogeler::wire::RunId;

use super::{Fleet, Start, Target, leave, sender};
use crate::plan::Connections;

/// Messages that wait in all lines together, 4 bytes each: enough for an outage of minutes at thousands a second.
const LINES_MAX: usize = 2_000_000;
/// Bytes of unconfirmed messages that all outlets keep together: some 50,000 packed messages.
const KEPT_BYTES_MAX: usize = 512 * 1024 * 1024;
/// Messages in flight at once, of all outlets together.
const IN_FLIGHT_MAX: usize = 4_096;
/// Messages in flight at once of one sender, at most: as many as a channel of the product has.
const OUTLET_IN_FLIGHT_MAX: usize = 1_024;
/// Messages that each sender may have in flight, at least.
const OUTLET_IN_FLIGHT_MIN: usize = 4;

/// What all outlets share.
#[derive(Debug)]
pub(super) struct Light {
    pub(super) fleet: Fleet,
    pub(super) start: Start,
    /// One run for each tick.
    pub(super) runs: Vec<RunId>,
    /// Messages of each node that are in a line or in flight.
    pub(super) pending: Vec<AtomicU32>,
    /// Nodes that left and whose document is not deleted yet: until then they cannot come back.
    leaving: Mutex<HashSet<u32>>,
    pub(super) stop: CancellationToken,
}

/// Sends the whole schedule, and waits until all is confirmed or the plan's patience is over.
pub(super) async fn run(fleet: &Fleet, target: &Target, start: Start, stop: &CancellationToken) {
    let give_up = stop.child_token();
    let light = Arc::new(Light {
        runs: (0..fleet.schedule.ticks)
            .map(|_| RunId::generate())
            .collect(),
        pending: fleet
            .nodes
            .members
            .iter()
            .map(|_| AtomicU32::new(0))
            .collect(),
        leaving: Mutex::default(),
        fleet: fleet.clone(),
        start,
        stop: give_up.clone(),
    });
    let mut tasks = JoinSet::new();
    let lines = outlets(&light, target, &mut tasks);
    dispatch(&light, target, &lines, &mut tasks).await;
    drop(lines);
    let patience = async {
        target.faults_over.cancelled().await;
        tokio::time::sleep(fleet.plan.settle_timeout).await;
    };
    tokio::select! {
        () = async { while tasks.join_next().await.is_some() {} } => return,
        () = patience => {}
        () = stop.cancelled() => {}
    }
    // Each task ends with its next message, and counts it as unconfirmed.
    give_up.cancel();
    while tasks.join_next().await.is_some() {}
}

/// The lines to the connections, one each. A node's line is at the node's number modulo the number of lines.
fn outlets(light: &Arc<Light>, target: &Target, tasks: &mut JoinSet<()>) -> Vec<mpsc::Sender<u32>> {
    let count = match light.fleet.plan.connections {
        Connections::PerClient => light.fleet.nodes.members.len(),
        Connections::Shared(count) => count,
    };
    let in_flight = (IN_FLIGHT_MAX / count).clamp(OUTLET_IN_FLIGHT_MIN, OUTLET_IN_FLIGHT_MAX);
    let open = |_| {
        let (line, waiting) = mpsc::channel((LINES_MAX / count).max(1));
        tasks.spawn(sender::work(
            Arc::clone(light),
            target.brokers.open(),
            waiting,
            (in_flight, KEPT_BYTES_MAX / count),
        ));
        line
    };
    (0..count).map(open).collect()
}

/// Hands out messages when they are due. Departures begin in the same order, so a node's last message is handed out
/// before it leaves.
async fn dispatch(
    light: &Arc<Light>,
    target: &Target,
    lines: &[mpsc::Sender<u32>],
    tasks: &mut JoinSet<()>,
) {
    let schedule = &light.fleet.schedule;
    let mut departures = schedule.departures.iter().peekable();
    let mut started = vec![false; light.pending.len()];
    for (index, sending) in (0_u32..).zip(&schedule.sendings) {
        let due = light.start.at(sending.at);
        if Instant::now() < due {
            let wait = tokio::time::sleep_until(due);
            if light.stop.run_until_cancelled(wait).await.is_none() {
                return;
            }
        }
        while let Some(departure) = departures.next_if(|departure| departure.at <= sending.at) {
            light.set_leaving(departure.node, true);
            tasks.spawn(leave::leave(
                Arc::clone(light),
                target.deleter.clone(),
                departure.node,
            ));
        }
        let node = sending.node as usize;
        if light.is_leaving(sending.node) {
            // It is not back yet: its new life begins with the first message after the deletion.
            continue;
        }
        if !std::mem::replace(&mut started[node], true) {
            light.fleet.stats.clients.add();
        }
        light.pending[node].fetch_add(1, Ordering::Relaxed);
        light.fleet.stats.due.add();
        if lines[node % lines.len()].try_send(index).is_err() {
            light.pending[node].fetch_sub(1, Ordering::Relaxed);
            light.fleet.stats.dropped.add();
        }
    }
}

impl Light {
    /// Whether all that a node sent so far is confirmed or given up.
    pub(super) fn is_sent(&self, node: u32) -> bool {
        self.pending[node as usize].load(Ordering::Relaxed) == 0
    }

    /// Keeps a node from coming back, or lets it again.
    pub(super) fn set_leaving(&self, node: u32, is_leaving: bool) {
        let mut leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        if is_leaving {
            leaving.insert(node);
        } else {
            leaving.remove(&node);
        }
    }

    /// Whether the fleet was told to end.
    pub(super) fn is_stopped(&self) -> bool {
        self.stop.is_cancelled()
    }

    fn is_leaving(&self, node: u32) -> bool {
        let leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        leaving.contains(&node)
    }
}
