//! Light clients: an open loop on the schedule.
//!
//! The dispatcher hands each message to its connection's outlet when it is due and waits for nothing else; the outlet
//! makes it, notes it, and publishes until the broker confirmed, as a client's spool would. Bounds: the outlets' lines
//! (what does not fit is counted as dropped, and the run does not pass) and the messages in flight at once.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vogeler::backoff::Backoff;
use vogeler::broker::{Broker, Message};
use vogeler::wire::RunId;

use super::{Fleet, Start, Target, leave, message};
use crate::ledger::{EntryId, Hash, Sent};
use crate::plan::Connections;
use crate::schedule::{Kind, Sending};

/// Messages that wait in all lines together, 4 bytes each: an outage of minutes at thousands a second.
const LINES_MAX: usize = 2_000_000;
/// Messages in flight at once, of all outlets together; as many bodies are in memory.
const IN_FLIGHT_MAX: usize = 4_096;
/// The same of one outlet: what a channel of the product has in flight.
const OUTLET_IN_FLIGHT_MAX: usize = 1_024;
/// And at least so many of each.
const OUTLET_IN_FLIGHT_MIN: usize = 4;
/// Pauses before a message is published again.
const RETRY_BASE: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// What all outlets share.
#[derive(Debug)]
pub(super) struct Light {
    pub(super) fleet: Fleet,
    pub(super) start: Start,
    /// A run a tick.
    runs: Vec<RunId>,
    /// Messages of each node that are in a line or in flight.
    pending: Vec<AtomicU32>,
    /// Nodes that left and whose document is not deleted yet: they cannot come back before.
    leaving: Mutex<HashSet<u32>>,
    stop: CancellationToken,
}

/// Sends the whole schedule, and waits until all is confirmed or the plan's patience is over.
pub(super) async fn run(fleet: &Fleet, target: &Target, start: Start, stop: &CancellationToken) {
    let give_up = stop.child_token();
    let light = Arc::new(Light {
        runs: (0..fleet.schedule.ticks)
            .map(|_| RunId::generate())
            .collect(),
        pending: fleet
            .roster
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
    let faults_end = start.instant + fleet.plan.faults_end();
    let deadline = Instant::now().max(faults_end) + fleet.plan.settle_timeout;
    let all = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout_at(deadline, all).await.is_err() {
        // Each ends with its next message, and counts it as unconfirmed.
        give_up.cancel();
        while tasks.join_next().await.is_some() {}
    }
}

/// The lines to the connections, by node. A node finds its own at its number modulo their count.
fn outlets(light: &Arc<Light>, target: &Target, tasks: &mut JoinSet<()>) -> Vec<mpsc::Sender<u32>> {
    let count = match light.fleet.plan.connections {
        Connections::PerClient => light.fleet.roster.members.len(),
        Connections::Shared(count) => count,
    };
    let in_flight = (IN_FLIGHT_MAX / count).clamp(OUTLET_IN_FLIGHT_MIN, OUTLET_IN_FLIGHT_MAX);
    let open = |_| {
        let (line, waiting) = mpsc::channel((LINES_MAX / count).max(1));
        tasks.spawn(work(
            Arc::clone(light),
            target.brokers.open(),
            waiting,
            in_flight,
        ));
        line
    };
    (0..count).map(open).collect()
}

/// Hands out what is due. Departures are begun in the same order, so that a node's last message is handed out before.
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
        if lines[node % lines.len()].try_send(index).is_err() {
            light.pending[node].fetch_sub(1, Ordering::Relaxed);
            light.fleet.stats.dropped.add();
        }
    }
}

/// A connection, and who may try again when it fails.
struct Outlet {
    broker: Arc<dyn Broker>,
    /// One message at a time tries whether the broker is back; thousands that do are the tester's own load.
    turn: Semaphore,
    /// Told of every confirm, on which all others try again.
    confirms: watch::Sender<()>,
}

impl Outlet {
    /// Waits until there is a point in publishing again. Who holds the permit tries for all.
    async fn again(&self, pause: Duration) -> Option<SemaphorePermit<'_>> {
        let mut confirms = self.confirms.subscribe();
        let turn = async {
            let permit = self.turn.acquire().await.ok();
            tokio::time::sleep(pause).await;
            permit
        };
        tokio::select! {
            biased;
            _ = confirms.changed() => None,
            permit = turn => permit,
        }
    }
}

/// One connection: sends what comes down its line.
async fn work(
    light: Arc<Light>,
    broker: Arc<dyn Broker>,
    mut line: mpsc::Receiver<u32>,
    in_flight: usize,
) {
    let outlet = Outlet {
        broker,
        turn: Semaphore::new(1),
        confirms: watch::Sender::new(()),
    };
    let mut flights = FuturesUnordered::new();
    // Until when the broker, not the tester, kept the next message waiting.
    let mut held_until = light.start.instant;
    let mut is_open = true;
    while is_open || !flights.is_empty() {
        tokio::select! {
            biased;
            Some(()) = flights.next() => {
                if flights.len() + 1 == in_flight {
                    held_until = Instant::now();
                }
            }
            index = line.recv(), if is_open && flights.len() < in_flight => match index {
                Some(index) => flights.push(light.send(&outlet, index, held_until)),
                None => is_open = false,
            },
        }
    }
    drop(flights);
    outlet.broker.close().await;
}

impl Light {
    /// Whether all that a node sent so far is confirmed or given up.
    pub(super) fn is_sent(&self, node: u32) -> bool {
        self.pending[node as usize].load(Ordering::Relaxed) == 0
    }

    /// Keeps a node from coming back, or no longer.
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

    async fn send(&self, outlet: &Outlet, index: u32, held_until: Instant) {
        let sending = self.fleet.schedule.sendings[index as usize];
        match self.make(index, sending) {
            Ok((message, note)) => {
                let due = self.start.at(sending.at).max(held_until);
                self.fleet.stats.tester_lag.record(due.elapsed());
                self.publish(outlet, message, &note, sending.at).await;
            }
            Err(error) => {
                tracing::error!(%error, "a message cannot be made");
                self.fleet.stats.dropped.add();
            }
        }
        self.pending[sending.node as usize].fetch_sub(1, Ordering::Relaxed);
    }

    /// The message, and where it is noted.
    fn make(&self, index: u32, sending: Sending) -> anyhow::Result<(Message, Note)> {
        let member = &self.fleet.roster.members[sending.node as usize];
        if let Kind::Poison(form) = sending.kind {
            let id = format!("poison-{}-{index}", self.start.wall.as_microsecond());
            let message = message::poison(&member.name, id.clone(), form);
            return Ok((message, Note::Poison(id)));
        }
        let plugin = &self.fleet.roster.plugins[usize::from(sending.plugin)];
        let value = self.fleet.generators[usize::from(sending.plugin)]
            .value(&member.machine, sending.version);
        let hash = Hash::of(value.as_bytes());
        let (run, seq) = (
            self.runs[sending.tick as usize],
            self.start.seq(sending.collected, member.skew_micros),
        );
        let entry = self.fleet.ledger.sending(&Sent {
            node: member.name.clone(),
            plugin: plugin.clone(),
            run: Some(run),
            seq,
            hash,
            version: Some(sending.version),
            due: sending.at,
            is_late: sending.kind == Kind::Late,
        });
        let parts = message::Parts {
            node: &member.name,
            plugin,
            seq,
            run,
            hash,
            value,
        };
        Ok((message::result(parts)?, Note::Entry(entry)))
    }

    /// Publishes until the broker has it, it cannot, or nobody waits any longer.
    async fn publish(&self, outlet: &Outlet, message: Message, note: &Note, due: u64) {
        let stats = &self.fleet.stats;
        let mut backoff = Backoff::new(RETRY_BASE, RETRY_MAX);
        let mut permit = None;
        stats.sent.add();
        loop {
            self.note_attempt(note);
            let publish = self
                .stop
                .run_until_cancelled(outlet.broker.publish(message.clone()));
            let published = publish.await;
            drop(permit.take());
            match published {
                Some(Ok(())) => {
                    outlet.confirms.send_replace(());
                    self.note_confirm(note);
                    stats.confirmed.add();
                    stats.publish_to_confirmed.record(self.start.since(due));
                    return;
                }
                Some(Err(error)) if error.is_retryable() => stats.failed_publishes.add(),
                Some(Err(error)) => {
                    tracing::error!(%error, "a message cannot be published");
                    break;
                }
                None => break,
            }
            let again = outlet.again(backoff.next_random());
            permit = self.stop.run_until_cancelled(again).await.flatten();
        }
        stats.unconfirmed.add();
    }

    fn note_attempt(&self, note: &Note) {
        match note {
            Note::Entry(id) => self.fleet.ledger.attempt(*id),
            Note::Poison(id) => self.fleet.ledger.attempt_poison(id),
        }
    }

    fn note_confirm(&self, note: &Note) {
        match note {
            Note::Entry(id) => self.fleet.ledger.confirm(*id),
            Note::Poison(id) => self.fleet.ledger.confirm_poison(id),
        }
    }
}

/// Where a message is noted.
enum Note {
    Entry(EntryId),
    Poison(String),
}
