//! The ticket: owns one delivery until it is settled.
//!
//! Made when a delivery arrives, merged into the pending result that overtakes it, settled by its document's
//! verdict. Invariant: every ticket ends in exactly one counted outcome; dropped unsettled (a panic, a dead actor,
//! a missed deadline) it gives the delivery back and counts as requeued.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::OwnedSemaphorePermit;
use tracing::debug;

use super::coalesce::{Overtake, Pending};
use super::held::Taken;
use super::receipts::ReceiptSender;
use crate::broker::{Delivery, Properties, Settler};
use crate::telemetry::{Ledger, record_settled};
use crate::trace::{self, RunSpan, Step, TraceParent};
use crate::wire::{Content, Outcome, PUBLISHED_HEADER, PluginResult, Receipt, RunId};

/// A delivery's original message, kept for the dead letters.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    pub(super) body: Bytes,
    pub(super) properties: Properties,
    pub(super) exchange: String,
    pub(super) routing_key: String,
}

impl Origin {
    /// Memory that it takes, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.body.len() + self.properties.bytes()
    }
}

/// Owns one delivery until it is settled.
#[must_use]
#[derive(Debug)]
pub(super) struct Ticket {
    settler: Option<Settler>,
    origin: Origin,
    receipt: Option<Box<(RunId, Receipt)>>,
    ledger: Arc<Ledger>,
    receipts: ReceiptSender,
    /// Share of the server's byte budget, given back when the ticket ends.
    permit: Option<OwnedSemaphorePermit>,
    /// When the client published it, in milliseconds of Unix time, if the client says so.
    published_ms: Option<i64>,
    /// The span from here to the settlement, if spans are exported and the result belongs to a run.
    span: Option<Box<RunSpan>>,
    /// Tells the partition's consumer, when dropped, that this delivery is settled.
    _taken: Taken,
}

impl Ticket {
    /// Counts the delivery in.
    pub(super) fn new(
        delivery: Delivery,
        taken: Taken,
        ledger: Arc<Ledger>,
        receipts: ReceiptSender,
    ) -> Self {
        ledger.receive(delivery.redelivered);
        let published = delivery.properties.headers.get(PUBLISHED_HEADER);
        let published_ms = published.and_then(|text| text.parse().ok());
        let origin = Origin {
            body: delivery.body,
            properties: delivery.properties,
            exchange: delivery.exchange,
            routing_key: delivery.routing_key,
        };
        Self {
            settler: Some(delivery.settler),
            origin,
            receipt: None,
            ledger,
            receipts,
            permit: None,
            published_ms,
            span: None,
            _taken: taken,
        }
    }

    /// The message as it came.
    pub(super) fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Whether the broker has the delivery again: its channel is gone, and settling does nothing.
    pub(super) fn is_void(&self) -> bool {
        self.settler.as_ref().is_none_or(Settler::is_void)
    }

    /// The run it belongs to. The headers tell it before the result is admitted, and for a message that cannot be read.
    pub(super) fn run(&self) -> Option<RunId> {
        let admitted = self.receipt.as_ref().map(|told| told.0);
        admitted.or_else(|| Some(TraceParent::of(&self.origin.properties)?.run))
    }

    /// Begins the span of a result of `run`, if spans are exported.
    pub(super) fn begin_span(&mut self, run: Option<RunId>) {
        let Some(run) = run.filter(|_| trace::is_exporting()) else {
            return;
        };
        let parent = TraceParent::of(&self.origin.properties);
        self.span = Some(Box::new(RunSpan::start(Step::Result, run, parent)));
    }

    /// Holds its share of the byte budget until it is forwarded.
    pub(super) fn hold(&mut self, permit: OwnedSemaphorePermit) {
        self.permit = Some(permit);
    }

    /// Ends a delivery whose message is in another queue by now: this queue forgets it. It counts as requeued, since the
    /// broker has it and its outcome is still to come.
    pub(super) fn forwarded(mut self) {
        if let Some(settler) = self.settler.take() {
            settler.ack();
            self.ledger.end(Outcome::Requeued);
        }
    }

    /// Prepares the receipt, now that the result is known, and holds its share of the byte budget.
    pub(super) fn admit(&mut self, result: &PluginResult, permit: OwnedSemaphorePermit) {
        self.permit = Some(permit);
        let (Some(run), Some(plugin)) = (result.run, &result.plugin) else {
            return;
        };
        let error = match &result.content {
            Content::Error(error) => Some(error.clone()),
            Content::Value { .. } => None,
        };
        // The outcome is a placeholder until the real one is known.
        let receipt = Receipt {
            node: result.node.clone(),
            plugin: plugin.clone(),
            outcome: Outcome::Requeued,
            error,
            reason: None,
            copy: None,
        };
        self.receipt = Some(Box::new((run, receipt)));
    }

    /// Ends the delivery: the broker forgets it, unless the outcome is [`Outcome::Requeued`].
    pub(super) fn settle(self, outcome: Outcome) {
        self.settle_because(outcome, None);
    }

    /// Ends it as [`Outcome::Stale`]: it is the stored result itself (`is_copy`), or the stored one is newer.
    pub(super) fn settle_stale(mut self, is_copy: bool) {
        if let Some(told) = &mut self.receipt {
            told.1.copy = Some(is_copy);
        }
        self.settle(Outcome::Stale);
    }

    /// Like [`settle`](Self::settle), with the reason of a dead letter for the runner.
    pub(super) fn settle_because(mut self, outcome: Outcome, reason: Option<String>) {
        let Some(settler) = self.settler.take() else {
            return;
        };
        self.note(outcome);
        if outcome == Outcome::Requeued {
            settler.requeue();
        } else {
            settler.ack();
            if let Some(published_ms) = self.published_ms {
                record_settled(outcome, published_ms, Timestamp::now());
            }
            if let Some((run, receipt)) = self.receipt.take().map(|boxed| *boxed) {
                self.receipts.send(
                    run,
                    Receipt {
                        outcome,
                        reason,
                        ..receipt
                    },
                );
            }
        }
        self.ledger.end(outcome);
    }

    /// Tells the log and the trace how a result of a run ended.
    fn note(&mut self, outcome: Outcome) {
        if let Some((run, receipt)) = self.receipt.as_deref() {
            debug!(target: "vogeler::ingest", %run, node = %receipt.node, plugin = %receipt.plugin, outcome = outcome.as_str(), "result settled");
        }
        if let Some(span) = &mut self.span {
            span.set("vogeler.outcome", outcome.as_str());
        }
    }
}

/// Logs which results of runs were not written, and why.
pub(super) fn log_again(pending: &[Pending<Ticket>], why: &str) {
    let tickets = pending
        .iter()
        .flat_map(|pending| std::iter::once(&pending.ticket).chain(&pending.overtaken));
    for (run, receipt) in tickets.filter_map(|ticket| ticket.receipt.as_deref()) {
        debug!(target: "vogeler::ingest", %run, node = %receipt.node, plugin = %receipt.plugin, why, "result not written");
    }
}

impl Overtake for Ticket {
    /// An overtaken message never becomes a dead letter: its bytes are freed, and with them its share of the budget.
    fn overtake(&mut self) {
        self.origin.body = Bytes::new();
        self.origin.properties = Properties::default();
        self.permit = None;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(settler) = self.settler.take() {
            self.note(Outcome::Requeued);
            settler.requeue();
            self.ledger.end(Outcome::Requeued);
        }
    }
}
