//! The writer: cuts batches of nodes and commits them, several at once.
//!
//! Nodes announce themselves, the batch buffer says when a batch is due, a committer does the rest. Invariant: no
//! more than `writes_in_flight` commits run at once; while they do, nodes wait here and go on coalescing.

use std::sync::Arc;

use actix::prelude::*;
use tokio::time::Instant;
use tracing::error;

use super::batch::{BatchBounds, BatchBuffer, Surroundings};
use super::commit::Committer;
use super::flow::{Flow, LOOK_EVERY, Tendency};
use super::node::{NodeActor, Take};
use super::pace::{Pace, PaceBounds};
use crate::telemetry::{self, CountedIn, FlushReason, catalogue};

/// A node has something to write.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Ready {
    pub(super) node: Addr<NodeActor>,
    /// About how many bytes it has to write.
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
    pace: Pace,
    flow: Arc<Flow>,
    tendency: Tendency,
    writes_in_flight: usize,
    mailbox: usize,
    is_timer_armed: bool,
    is_draining: bool,
}

impl WriterActor {
    /// `mailbox` must cover the deliveries that can be in flight: every node among them may announce itself.
    pub(super) fn new(
        committer: Arc<Committer>,
        bounds: BatchBounds,
        pace: PaceBounds,
        flow: Arc<Flow>,
        mailbox: usize,
    ) -> Self {
        Self {
            buffer: BatchBuffer::new(bounds),
            committer,
            pace: Pace::new(pace),
            flow,
            tendency: Tendency::new(Instant::now()),
            writes_in_flight: 0,
            mailbox,
            is_timer_armed: false,
            is_draining: false,
        }
    }

    /// Applies what the pace allows now.
    fn keep_pace(&mut self) {
        self.buffer.limit_count(self.pace.count());
        telemetry::record_pace(self.pace.count(), self.pace.writes(true));
    }

    /// Starts as many commits as are due and allowed, and sees to it that somebody looks again.
    fn pump(&mut self, ctx: &mut Context<Self>) {
        let now = Instant::now();
        let around = Surroundings {
            is_draining: self.is_draining,
            is_coalescing: self.tendency.is_coalescing(self.flow.counts(), now),
        };
        loop {
            let is_full = self.buffer.full().is_some();
            if self.writes_in_flight >= self.pace.writes(is_full || self.is_draining) {
                return;
            }
            let Some(reason) = self.buffer.due(now, around) else {
                let wake_at = if is_full {
                    Some(now + LOOK_EVERY)
                } else {
                    self.buffer.deadline()
                };
                self.arm_timer(wake_at, now, ctx);
                return;
            };
            let nodes = self.buffer.cut();
            self.commit(nodes, reason, ctx);
        }
    }

    /// The timer only asks; what is due is decided when it rings. A finished write asks too.
    fn arm_timer(&mut self, wake_at: Option<Instant>, now: Instant, ctx: &mut Context<Self>) {
        let Some(wake_at) = wake_at else {
            return;
        };
        if !self.is_timer_armed {
            self.is_timer_armed = true;
            ctx.run_later(wake_at.saturating_duration_since(now), |actor, ctx| {
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
        let (documents, started) = (nodes.len(), Instant::now());
        telemetry::record_batch(reason, documents);
        self.writes_in_flight += 1;
        let committer = Arc::clone(&self.committer);
        // A task of its own: a panic in it ends the commit (whose tickets give their deliveries back), not us.
        let task = tokio::task::spawn_local(async move {
            let _in_flight = CountedIn::new(&catalogue::WRITES_IN_FLIGHT);
            let claims = futures::future::join_all(nodes.iter().map(|node| node.send(Take))).await;
            committer
                .commit(claims.into_iter().flatten().collect())
                .await
        });
        ctx.spawn(task.into_actor(self).map(move |ended, actor, ctx| {
            match ended {
                Ok(went) => actor.pace.ended(documents, started, went, Instant::now()),
                Err(error) => {
                    error!(target: "vogeler::ingest::writer", %error, "a commit died; its results come again");
                }
            }
            actor.keep_pace();
            actor.writes_in_flight -= 1;
            actor.pump(ctx);
        }));
    }
}

impl Actor for WriterActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.set_mailbox_capacity(self.mailbox);
        self.keep_pace();
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
