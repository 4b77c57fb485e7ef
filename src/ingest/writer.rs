//! The writer: cuts batches of nodes and commits them, several at once.
//!
//! Nodes announce themselves, the batch buffer says when a batch is due, a committer does the rest. Invariant: no
//! more than `writes_in_flight` commits run at once; while they do, nodes wait here and go on coalescing.

use std::sync::Arc;

use actix::prelude::*;
use tokio::time::Instant;
use tracing::error;

use super::batch::{BatchBounds, BatchBuffer};
use super::commit::Committer;
use super::node::{NodeActor, Take};
use crate::telemetry::{self, CountedIn, FlushReason, catalogue};

/// A node has something to write.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Ready {
    pub(super) node: Addr<NodeActor>,
    /// About how much.
    pub(super) bytes: usize,
}

/// From now on batches do not linger: the server is stopping.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Drain;

/// Cuts and commits batches.
#[derive(Debug)]
pub(super) struct WriterActor {
    buffer: BatchBuffer<Addr<NodeActor>>,
    committer: Arc<Committer>,
    writes_in_flight: usize,
    writes_in_flight_max: usize,
    mailbox: usize,
    is_timer_armed: bool,
    is_draining: bool,
}

impl WriterActor {
    /// `mailbox` must cover the deliveries that can be in flight: every node among them may announce itself.
    pub(super) fn new(
        committer: Arc<Committer>,
        bounds: BatchBounds,
        writes_in_flight_max: usize,
        mailbox: usize,
    ) -> Self {
        Self {
            buffer: BatchBuffer::new(bounds),
            committer,
            writes_in_flight: 0,
            writes_in_flight_max,
            mailbox,
            is_timer_armed: false,
            is_draining: false,
        }
    }

    /// Starts as many commits as are due and allowed, and sees to it that somebody looks again.
    fn pump(&mut self, ctx: &mut Context<Self>) {
        let now = Instant::now();
        while self.writes_in_flight < self.writes_in_flight_max {
            let Some(reason) = self.buffer.due(now, self.is_draining) else {
                self.arm_timer(now, ctx);
                return;
            };
            let nodes = self.buffer.cut();
            self.commit(nodes, reason, ctx);
        }
    }

    /// The timer only asks; what is due is decided when it rings. A finished write asks too.
    fn arm_timer(&mut self, now: Instant, ctx: &mut Context<Self>) {
        let Some(deadline) = self.buffer.deadline() else {
            return;
        };
        if !self.is_timer_armed {
            self.is_timer_armed = true;
            ctx.run_later(deadline.saturating_duration_since(now), |actor, ctx| {
                actor.is_timer_armed = false;
                actor.pump(ctx);
            });
        }
    }

    fn commit(
        &mut self,
        nodes: Vec<Addr<NodeActor>>,
        reason: FlushReason,
        ctx: &mut Context<Self>,
    ) {
        telemetry::record_batch(reason, nodes.len());
        self.writes_in_flight += 1;
        let committer = Arc::clone(&self.committer);
        // A task of its own: a panic in it ends the commit (whose tickets give their deliveries back), not us.
        let task = tokio::task::spawn_local(async move {
            let _in_flight = CountedIn::new(&catalogue::WRITES_IN_FLIGHT);
            let claims = futures::future::join_all(nodes.iter().map(|node| node.send(Take))).await;
            committer
                .commit(claims.into_iter().flatten().collect())
                .await;
        });
        ctx.spawn(task.into_actor(self).map(|ended, actor, ctx| {
            if let Err(error) = ended {
                error!(target: "vogeler::ingest::writer", %error, "a commit died; its results come again");
            }
            actor.writes_in_flight -= 1;
            actor.pump(ctx);
        }));
    }
}

impl Actor for WriterActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.set_mailbox_capacity(self.mailbox);
    }
}

impl Handler<Ready> for WriterActor {
    type Result = ();
    fn handle(&mut self, ready: Ready, ctx: &mut Context<Self>) {
        self.buffer.push(ready.node, ready.bytes, Instant::now());
        self.pump(ctx);
    }
}

impl Handler<Drain> for WriterActor {
    type Result = ();
    fn handle(&mut self, _: Drain, ctx: &mut Context<Self>) {
        self.is_draining = true;
        self.pump(ctx);
    }
}
