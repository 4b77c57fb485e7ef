//! The router: finds the actor of a node, or starts it.
//!
//! A DashMap from node to address, or to what is left of a node at rest. Invariant: all results of a node go through one
//! live actor; a closed address (a panic, a retired node) is replaced by a fresh actor and the message sent again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use actix::dev::SendError;
use actix::prelude::*;
use dashmap::{DashMap, Entry};
use tokio::time::Instant;
use tracing::warn;

use super::flow::Flow;
use super::gate::StoreGate;
use super::node::{Incoming, Memory, NodeActor, Retire};
use super::writer::WriterActor;
use crate::wire::NodeName;

/// Most sends of a message whose actor dies, each to a new actor; then it goes back to the broker.
const RESENDS_MAX: usize = 3;

/// Sweeps per `node_idle`: an idle actor stops at most a quarter late.
const SWEEPS: u32 = 4;
/// Most nodes known at once. Past that, a node is forgotten when its actor stops, and its next result costs a read. A
/// node at rest takes some 150 bytes, and as much again per plugin (counted from the types): with one plugin per node
/// this is 300 MB.
const KNOWN_NODES_MAX: usize = 1_000_000;
/// Shortest pause between two sweeps.
const SWEEP_EVERY_MIN: Duration = Duration::from_millis(10);

/// Settings of the node actors.
#[derive(Debug, Clone, Copy)]
pub(super) struct NodeSettings {
    pub(super) node_mailbox: usize,
    pub(super) node_idle: Duration,
    pub(super) freshness: Duration,
}

/// Finds or starts node actors.
#[derive(Debug)]
pub(super) struct Router {
    nodes: DashMap<NodeName, Known>,
    started: Instant,
    arbiters: Vec<ArbiterHandle>,
    writer: Addr<WriterActor>,
    gate: StoreGate,
    flow: Arc<Flow>,
    settings: NodeSettings,
}

/// A node that was heard lately.
#[derive(Debug)]
struct Known {
    seat: Seat,
    /// When it was last heard, in milliseconds since the router began.
    heard_at: AtomicU64,
}

/// Who answers for a node.
#[derive(Debug)]
enum Seat {
    /// Its actor.
    Active(Addr<NodeActor>),
    /// Nobody: this saves an actor's memory, and a result that brings nothing new still needs no read.
    Resting(Memory),
}

impl Router {
    /// Places actors on `arbiters` by the slot of their name; without any, on the current thread.
    pub(super) fn new(
        arbiters: Vec<ArbiterHandle>,
        writer: Addr<WriterActor>,
        gate: StoreGate,
        flow: Arc<Flow>,
        settings: NodeSettings,
    ) -> Self {
        Self {
            nodes: DashMap::new(),
            started: Instant::now(),
            arbiters,
            writer,
            gate,
            flow,
            settings,
        }
    }

    /// Changes when what actors know of stored documents becomes doubtful.
    pub(super) fn era(&self) -> u64 {
        self.gate.era()
    }

    /// Where results that need a write are counted.
    pub(super) fn flow(&self) -> &Flow {
        &self.flow
    }

    pub(super) fn settings(&self) -> NodeSettings {
        self.settings
    }

    pub(super) fn writer(&self) -> &Addr<WriterActor> {
        &self.writer
    }

    /// Brings a result to its node's actor; waits while the actor's mailbox is full. A result that cannot be
    /// brought goes back to the broker by its ticket.
    pub(super) async fn route(self: &Arc<Self>, mut incoming: Incoming) {
        let node = incoming.result.node.clone();
        for _ in 0..RESENDS_MAX {
            let Some((address, error)) = self.try_send(&node, incoming) else {
                return;
            };
            match error {
                SendError::Full(back) => {
                    if address.send(back).await.is_err() {
                        warn!(target: "vogeler::ingest::router", %node, "the node's actor died; its results come again");
                    }
                    return;
                }
                SendError::Closed(back) => {
                    self.forget(&node, &address);
                    incoming = back;
                }
            }
        }
        warn!(target: "vogeler::ingest::router", %node, "the node's actor keeps dying; the result goes back to the broker");
    }

    /// How many nodes have an actor.
    pub(super) fn active(&self) -> usize {
        let is_active = |known: &Known| matches!(known.seat, Seat::Active(_));
        self.nodes.iter().filter(|known| is_active(known)).count()
    }

    /// How many nodes are known: those with an actor, and those at rest.
    pub(super) fn known(&self) -> usize {
        self.nodes.len()
    }

    /// Removes an actor that ends, if it is still the node's.
    pub(super) fn forget(&self, node: &NodeName, address: &Addr<NodeActor>) {
        let is_same = |seat: &Seat| matches!(seat, Seat::Active(current) if current == address);
        self.nodes.remove_if(node, |_, known| is_same(&known.seat));
    }

    /// Keeps what a node's stopping actor knew, unless the node has another actor already.
    pub(super) fn rest(&self, node: &NodeName, memory: Memory) {
        if !memory.is_empty() && self.nodes.len() < KNOWN_NODES_MAX {
            let known = || Known {
                seat: Seat::Resting(memory),
                heard_at: AtomicU64::new(self.now()),
            };
            self.nodes.entry(node.clone()).or_insert_with(known);
        }
    }

    /// At each sweep, asks an actor to stop if its node was not heard for `node_idle` (one that has something pending
    /// stays), and forgets a node at rest once nothing that is known of it counts as fresh.
    pub(super) async fn sweep(self: Arc<Self>) {
        let idle = self.settings.node_idle;
        loop {
            tokio::time::sleep((idle / SWEEPS).max(SWEEP_EVERY_MIN)).await;
            let before = |span| self.now().saturating_sub(milliseconds(span));
            let (idle_before, stale_before) = (before(idle), before(self.settings.freshness));
            self.nodes.retain(|_, known| {
                let heard_at = *known.heard_at.get_mut();
                match &known.seat {
                    Seat::Active(address) if heard_at <= idle_before => {
                        // A full mailbox means that results came after all: the next sweep looks again.
                        drop(address.try_send(Retire));
                        true
                    }
                    Seat::Active(_) => true,
                    Seat::Resting(_) => heard_at > stale_before,
                }
            });
        }
    }

    fn now(&self) -> u64 {
        milliseconds(self.started.elapsed())
    }

    /// Sends to the node's actor and returns what could not be sent. It uses the map's own address: every clone has one
    /// place of its own past the mailbox's bound, so with a clone per message there would be no bound at all.
    fn try_send(
        self: &Arc<Self>,
        node: &NodeName,
        incoming: Incoming,
    ) -> Option<(Addr<NodeActor>, SendError<Incoming>)> {
        let now = self.now();
        if let Some(known) = self.nodes.get(node)
            && let Seat::Active(address) = &known.seat
        {
            known.heard_at.store(now, Ordering::Relaxed);
            let error = address.try_send(incoming).err()?;
            return Some((address.clone(), error));
        }
        let address = self.actor(node, now);
        let error = address.try_send(incoming).err()?;
        Some((address, error))
    }

    /// The node's actor, which is started if there is none.
    fn actor(self: &Arc<Self>, node: &NodeName, now: u64) -> Addr<NodeActor> {
        let mut entry = self.nodes.entry(node.clone());
        let memory = match &mut entry {
            Entry::Vacant(_) => Memory::default(),
            Entry::Occupied(known) => match &mut known.get_mut().seat {
                // Somebody else was faster.
                Seat::Active(address) => return address.clone(),
                Seat::Resting(memory) => std::mem::take(memory),
            },
        };
        let (address, known) = self.start(node, memory, now);
        entry.insert(known);
        address
    }

    fn start(
        self: &Arc<Self>,
        node: &NodeName,
        memory: Memory,
        now: u64,
    ) -> (Addr<NodeActor>, Known) {
        let actor = NodeActor::new(node.clone(), memory, Arc::clone(self));
        let index = usize::from(node.slot()) % self.arbiters.len().max(1);
        let address = match self.arbiters.get(index) {
            Some(arbiter) => NodeActor::start_in_arbiter(arbiter, |_| actor),
            None => actor.start(),
        };
        let known = Known {
            seat: Seat::Active(address.clone()),
            heard_at: AtomicU64::new(now),
        };
        (address, known)
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
