//! The intake: takes a delivery, makes its ticket, decodes it, and brings it to its node.
//!
//! Invariant: past here no more bytes are held than the budget allows; waiting for the budget stops the pulling,
//! and the backlog stays in the broker.

use std::sync::{Arc, Weak};

use jiff::Timestamp;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::dead_letter::{DeadLetter, DeadLetters};
use super::decode::{Bounds, decode, is_heavy};
use super::held::Taken;
use super::node::Incoming;
use super::receipts::ReceiptSender;
use super::router::Router;
use super::runs::Runs;
use super::ticket::Ticket;
use crate::broker::Delivery;
use crate::config;
use crate::telemetry::{self, Ledger, Plugin, ResultStatus, catalogue};
use crate::wire::{Content, DecodeError, PluginResult};

/// Large messages decoded at once: one takes up to seconds of a processor (8 MB of YAML), and the others serve the rest.
const HEAVY_DECODES_MAX: usize = 1;

/// Shared by all consumers. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Intake {
    bounds: Bounds,
    heavy: Arc<Semaphore>,
    budget: Arc<Semaphore>,
    budget_bytes: usize,
    router: Arc<Router>,
    dead_letters: DeadLetters,
    receipts: ReceiptSender,
    ledger: Arc<Ledger>,
}

impl Intake {
    pub(super) fn new(
        settings: &config::Server,
        router: Arc<Router>,
        dead_letters: DeadLetters,
        receipts: ReceiptSender,
        ledger: Arc<Ledger>,
    ) -> Self {
        let budget_bytes = settings.bytes_in_flight_max.min(Semaphore::MAX_PERMITS);
        Self {
            bounds: Bounds {
                bytes_max: settings.message_bytes_max,
                amplification_max: settings.amplification_max,
            },
            heavy: Arc::new(Semaphore::new(HEAVY_DECODES_MAX)),
            budget: Arc::new(Semaphore::new(budget_bytes)),
            budget_bytes,
            router,
            dead_letters,
            receipts,
            ledger,
        }
    }

    /// The byte budget, and how large it is.
    pub(super) fn budget(&self) -> (Arc<Semaphore>, usize) {
        (Arc::clone(&self.budget), self.budget_bytes)
    }

    /// The runs that the results belong to.
    pub(super) fn runs(&self) -> Runs {
        self.receipts.runs().clone()
    }

    /// Where results go; weakly, for who only looks.
    pub(super) fn router(&self) -> Weak<Router> {
        Arc::downgrade(&self.router)
    }

    /// Takes one delivery; waits while too many bytes are in flight or its node is busy. `taken` lives until it is
    /// settled.
    pub(super) async fn accept(&self, delivery: Delivery, taken: Taken) {
        let session = delivery.session;
        let (ledger, receipts) = (Arc::clone(&self.ledger), self.receipts.clone());
        let mut ticket = Ticket::new(delivery, taken, ledger, receipts);
        let Some(decoded) = self.decode(&ticket).await else {
            return;
        };
        let result = match decoded {
            Ok(result) => result,
            Err(error) => {
                ticket.begin_span(ticket.run());
                telemetry::record_decode_error(&error);
                let letter = DeadLetter {
                    ticket,
                    reason: error.reason().to_owned(),
                    detail: error.to_string(),
                    node: None,
                    plugin: None,
                    attempts: 1,
                };
                self.dead_letters.send(letter).await;
                return;
            }
        };
        ticket.begin_span(result.run);
        self.record(&result);
        let bytes = held_bytes(&ticket, &result).min(self.budget_bytes);
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        // The budget is never closed; if it were, the ticket would give the delivery back.
        let Ok(permit) = Arc::clone(&self.budget).acquire_many_owned(permits).await else {
            return;
        };
        ticket.admit(&result, permit);
        self.router
            .route(Incoming {
                result,
                ticket,
                session,
                sent_at: Instant::now(),
            })
            .await;
    }

    /// Decodes here what is small, and on a thread of its own what may take long: the other partitions share this one. None if
    /// that thread died; the ticket then gives the delivery back.
    async fn decode(&self, ticket: &Ticket) -> Option<Result<PluginResult, DecodeError>> {
        let (bounds, now) = (self.bounds, Timestamp::now());
        if !is_heavy(ticket.origin()) {
            return Some(decode(ticket.origin(), bounds, now));
        }
        let permit = Arc::clone(&self.heavy).acquire_owned().await.ok()?;
        let origin = ticket.origin().clone();
        let decoded = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            decode(&origin, bounds, now)
        });
        decoded.await.ok()
    }

    fn record(&self, result: &PluginResult) {
        let plugin = result.plugin.as_ref().map_or(Plugin::OTHER, Plugin::of);
        let status = ResultStatus::from(&result.content);
        catalogue::PLUGIN_RESULTS.of((plugin, status)).increment(1);
        if let Some(run) = result.run
            && self.receipts.runs().meet(run, result.plugin.as_ref())
        {
            catalogue::RUNS.get().increment(1);
        }
    }
}

/// The message as it came, and its value.
fn held_bytes(ticket: &Ticket, result: &PluginResult) -> usize {
    let value = match &result.content {
        Content::Value { json, .. } => json.get().len(),
        Content::Error(error) => error.message.len(),
    };
    ticket.origin().body.len() + value
}
