//! The router: finds the actor of a node, or starts it.
//!
//! A DashMap from node to address. Invariant: all results of a node go through one live actor; a closed address
//! (a panic, a retired node) is replaced by a fresh actor and the message sent again.

use std::sync::Arc;
use std::time::Duration;

use actix::dev::SendError;
use actix::prelude::*;
use dashmap::DashMap;
use tracing::warn;

use super::flow::Flow;
use super::gate::StoreGate;
use super::node::{Incoming, NodeActor};
use super::writer::WriterActor;
use crate::wire::NodeName;

/// How often a message is sent again because its actor had died; each time a fresh actor takes its place.
const RESENDS_MAX: usize = 3;

/// What node actors go by.
#[derive(Debug, Clone, Copy)]
pub(super) struct NodeSettings {
    pub(super) node_mailbox: usize,
    pub(super) node_idle: Duration,
    pub(super) freshness: Duration,
}

/// Finds or starts node actors.
#[derive(Debug)]
pub(super) struct Router {
    nodes: DashMap<NodeName, Addr<NodeActor>>,
    arbiters: Vec<ArbiterHandle>,
    writer: Addr<WriterActor>,
    gate: StoreGate,
    flow: Arc<Flow>,
    settings: NodeSettings,
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
            arbiters,
            writer,
            gate,
            flow,
            settings,
        }
    }

    /// Changes when what actors know of stored documents became doubtful.
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
            let address = self.actor(&node);
            match address.try_send(incoming) {
                Ok(()) => return,
                Err(SendError::Full(back)) => {
                    if address.send(back).await.is_err() {
                        warn!(target: "vogeler::ingest::router", %node, "the node's actor died; its results come again");
                    }
                    return;
                }
                Err(SendError::Closed(back)) => {
                    self.forget(&node, &address);
                    incoming = back;
                }
            }
        }
        warn!(target: "vogeler::ingest::router", %node, "the node's actor keeps dying; the result goes back to the broker");
    }

    /// How many nodes have an actor.
    pub(super) fn active(&self) -> usize {
        self.nodes.len()
    }

    /// Removes an actor that ends, if it is still the node's.
    pub(super) fn forget(&self, node: &NodeName, address: &Addr<NodeActor>) {
        self.nodes.remove_if(node, |_, current| current == address);
    }

    fn actor(self: &Arc<Self>, node: &NodeName) -> Addr<NodeActor> {
        if let Some(address) = self.nodes.get(node) {
            return address.clone();
        }
        self.nodes
            .entry(node.clone())
            .or_insert_with(|| self.start(node))
            .clone()
    }

    fn start(self: &Arc<Self>, node: &NodeName) -> Addr<NodeActor> {
        let actor = NodeActor::new(node.clone(), Arc::clone(self));
        let index = usize::from(node.slot()) % self.arbiters.len().max(1);
        match self.arbiters.get(index) {
            Some(arbiter) => NodeActor::start_in_arbiter(arbiter, |_| actor),
            None => actor.start(),
        }
    }
}
