//! The node actor: one per active node. Owns what is known of the node and what is pending for it.
//!
//! Results come from the router. The writer takes what pends as a claim, through which the actor hears how the write
//! ended. Invariant: at most one claim of a node exists at a time, and a claim dropped unfinished (a panic, a stop) frees
//! the node again.

use std::sync::Arc;

use actix::prelude::*;
use jiff::Timestamp;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::debug;

use super::coalesce::{Coalescer, Marks, Offered, Pending};
use super::router::Router;
use super::ticket::Ticket;
use super::writer::Ready;
use crate::telemetry::{CountedIn, catalogue};
use crate::wire::{Content, NodeName, Outcome, PluginResult};

/// One result for the node.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Incoming {
    pub(super) result: PluginResult,
    pub(super) ticket: Ticket,
    /// The subscription it came by: a new one means that another server may have written in between.
    pub(super) session: u64,
    /// When it was given to the router.
    pub(super) sent_at: Instant,
}

/// The writer takes what pends.
#[derive(Debug, Message)]
#[rtype(result = "Claim")]
pub(super) struct Take;

/// What one node wants written, and where to say how it went.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) node: NodeName,
    /// The subscription of the node's latest result.
    pub(super) session: u64,
    pub(super) pending: Vec<Pending<Ticket>>,
    /// Takes the marks of the document as it stands after the write, and the gate's era when it was read; if it is
    /// dropped, nothing is known.
    pub(super) finished: oneshot::Sender<(Marks, u64)>,
    /// Whether the document was known to be there.
    pub(super) is_known: bool,
}

/// The node was not heard for long: its actor stops, unless something pends.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Retire;

/// Stops the actor, unless something came in between.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Stop;

/// What is left of a node at rest: what is known of its document, and since when.
#[derive(Debug, Default)]
pub(super) struct Memory {
    marks: Marks,
    session: u64,
    era: u64,
}

impl Memory {
    /// Whether nothing is known.
    pub(super) fn is_empty(&self) -> bool {
        self.marks.is_empty()
    }
}

/// One active node.
#[derive(Debug)]
pub(super) struct NodeActor {
    node: NodeName,
    coalescer: Coalescer<Ticket>,
    session: u64,
    era: u64,
    router: Arc<Router>,
    /// The map forgot this actor a while ago, and may have had another one since: what this one knows may be outdated.
    is_replaced: bool,
    _active: CountedIn,
}

impl NodeActor {
    pub(super) fn new(node: NodeName, memory: Memory, router: Arc<Router>) -> Self {
        let Memory {
            marks,
            session,
            era,
        } = memory;
        Self {
            node,
            coalescer: Coalescer::new(marks),
            session,
            era,
            router,
            is_replaced: false,
            _active: CountedIn::new(&catalogue::NODE_ACTORS),
        }
    }

    fn accept(&mut self, incoming: Incoming, ctx: &mut Context<Self>) {
        let waited = incoming.sent_at.elapsed();
        catalogue::MAILBOX_WAIT_SECONDS
            .get()
            .record(waited.as_secs_f64());
        let era = self.router.era();
        if (incoming.session, era) != (self.session, self.era) {
            (self.session, self.era) = (incoming.session, era);
            self.coalescer.forget();
        }
        let bytes = match &incoming.result.content {
            Content::Value { json, .. } => json.get().len(),
            Content::Error(error) => error.message.len(),
        };
        let freshness = self.router.settings().freshness;
        let is_copy = self.coalescer.is_copy(&incoming.result);
        match self.coalescer.offer(
            incoming.result,
            incoming.ticket,
            Timestamp::now(),
            freshness,
        ) {
            Offered::Settled(ticket, Outcome::Stale) => ticket.settle_stale(is_copy),
            Offered::Settled(ticket, outcome) => ticket.settle(outcome),
            Offered::Pending => {
                let is_announced = self.announce(bytes, ctx);
                self.router.flow().note(!is_announced);
            }
        }
    }

    /// Tells the writer that something pends, unless nothing does or the writer knows already. Returns whether it did.
    fn announce(&mut self, bytes: usize, ctx: &mut Context<Self>) -> bool {
        if !self.coalescer.announce() {
            return false;
        }
        let ready = Ready {
            node: ctx.address(),
            bytes,
        };
        let writer = self.router.writer();
        if let Err(error) = writer.try_send(ready) {
            // The writer's mailbox is as long as the deliveries that can be in flight, so this is rare: wait.
            let send = writer.send(error.into_inner()).into_actor(self);
            ctx.spawn(send.map(|sent, _, ctx| {
                if sent.is_err() {
                    // The writer is gone: the server stops. Tickets drop, results go back to the broker.
                    ctx.stop();
                }
            }));
        }
        true
    }

    fn take(&mut self, ctx: &mut Context<Self>) -> Claim {
        let is_known = self.coalescer.is_known();
        let (pending, stale) = self.coalescer.take(Timestamp::now());
        for pending in stale {
            let is_copy = self.coalescer.is_copy(&pending.result);
            pending.ticket.settle_stale(is_copy);
            for ticket in pending.overtaken {
                ticket.settle_stale(false);
            }
        }
        let (finished, outcome) = oneshot::channel();
        if !pending.is_empty() {
            let wait = outcome.into_actor(self);
            ctx.spawn(wait.map(|known, actor, ctx| {
                let (marks, era) = known.ok().unzip();
                actor.coalescer.finish(marks);
                actor.era = era.unwrap_or(actor.era);
                actor.announce(0, ctx);
            }));
        }
        Claim {
            node: self.node.clone(),
            session: self.session,
            is_known,
            pending,
            finished,
        }
    }

    /// Puts the stop off. This is rare: a result came after the sweep looked and before the map forgot, and is settled
    /// first.
    fn stop_later(&mut self, ctx: &mut Context<Self>) {
        debug!(target: "vogeler::ingest::node", node = %self.node, "busy again");
        self.is_replaced = true;
        ctx.notify_later(Stop, self.router.settings().node_idle);
    }
}

impl Actor for NodeActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.set_mailbox_capacity(self.router.settings().node_mailbox);
    }
}

impl Handler<Incoming> for NodeActor {
    type Result = ();
    fn handle(&mut self, incoming: Incoming, ctx: &mut Context<Self>) {
        self.accept(incoming, ctx);
    }
}

impl Handler<Take> for NodeActor {
    type Result = MessageResult<Take>;
    fn handle(&mut self, _: Take, ctx: &mut Context<Self>) -> MessageResult<Take> {
        MessageResult(self.take(ctx))
    }
}

impl Handler<Retire> for NodeActor {
    type Result = ();
    /// The map forgets the actor first, so nobody sends to it any more; what is still in its mailbox is handled before
    /// `Stop`. Only then, when it can no longer write, does it leave what it knows. If it went on writing, the next actor
    /// would start from outdated knowledge and take new results for unchanged.
    fn handle(&mut self, _: Retire, ctx: &mut Context<Self>) {
        if self.coalescer.is_idle() {
            self.router.forget(&self.node, &ctx.address());
            if ctx.address().try_send(Stop).is_err() {
                self.stop_later(ctx);
            }
        }
    }
}

impl Handler<Stop> for NodeActor {
    type Result = ();
    fn handle(&mut self, _: Stop, ctx: &mut Context<Self>) {
        if self.coalescer.is_idle() {
            if !self.is_replaced {
                let memory = Memory {
                    marks: self.coalescer.leave(),
                    session: self.session,
                    era: self.era,
                };
                self.router.rest(&self.node, memory);
            }
            catalogue::NODE_PASSIVATIONS.get().increment(1);
            ctx.stop();
        } else {
            self.stop_later(ctx);
        }
    }
}
