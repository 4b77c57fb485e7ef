//! The intake: takes a delivery, makes its ticket, decodes it, and brings it to its node.
//!
//! Invariant: past here no more bytes are held than the budget allows; waiting for the budget stops the pulling,
//! and the backlog stays in the broker. One large result at a time is unpacked and waits for its share.

use std::sync::{Arc, Weak};

use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::dead_letter::{DeadLetter, DeadLetters};
use super::decode::{Bounds, decode, is_heavy};
use super::forward::{Forward, Forwards, Stamps};
use super::held::Taken;
use super::node::Incoming;
use super::place::{Entrance, Place};
use super::receipts::ReceiptSender;
use super::router::Router;
use super::runs::Runs;
use super::ticket::Ticket;
use crate::broker::Delivery;
use crate::broker::topology::partition_of;
use crate::config::Config;
use crate::dead::header;
use crate::telemetry::{self, Ledger, Plugin, ResultStatus, catalogue};
use crate::wire::{Content, DecodeError, Decoded, PluginResult};

/// Large messages decoded at once: one may keep a processor busy for seconds (8 MB of YAML), and the other processors
/// serve the rest.
const HEAVY_DECODES_MAX: usize = 1;

/// What a message holds, or why it cannot be decoded.
type Decoding = Result<Decoded, DecodeError>;

/// Shared by all consumers. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Intake {
    bounds: Bounds,
    heavy: Arc<Semaphore>,
    partitions: u16,
    budget: Arc<Semaphore>,
    budget_bytes: usize,
    router: Arc<Router>,
    forwards: Forwards,
    stamps: Arc<Stamps>,
    dead_letters: DeadLetters,
    receipts: ReceiptSender,
    ledger: Arc<Ledger>,
}

impl Intake {
    pub(super) fn new(
        config: &Config,
        router: Arc<Router>,
        forwards: Forwards,
        dead_letters: DeadLetters,
        receipts: ReceiptSender,
        ledger: Arc<Ledger>,
    ) -> Self {
        let budget_bytes = config.server.bytes_in_flight_max;
        let budget_bytes = budget_bytes.min(Semaphore::MAX_PERMITS);
        Self {
            bounds: Bounds {
                bytes_max: config.server.message_bytes_max,
                amplification_max: config.server.amplification_max,
            },
            heavy: Arc::new(Semaphore::new(HEAVY_DECODES_MAX)),
            partitions: config.broker.partitions,
            budget: Arc::new(Semaphore::new(budget_bytes)),
            budget_bytes,
            router,
            forwards,
            stamps: Arc::default(),
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

    /// Where results go; a weak reference, for those who only look.
    pub(super) fn router(&self) -> Weak<Router> {
        Arc::downgrade(&self.router)
    }

    /// Takes one delivery; waits while too many bytes are in flight or its node is busy. `taken` lives until it is
    /// settled.
    pub(super) async fn accept(&self, mut delivery: Delivery, taken: Taken) {
        let session = delivery.session;
        let entrance = Entrance::read(&mut delivery, taken.partition());
        let is_stamped = delivery.properties.headers.contains_key(header::ARRIVED);
        let (ledger, receipts) = (Arc::clone(&self.ledger), self.receipts.clone());
        let ticket = Ticket::new(delivery, taken, ledger, receipts);
        // The turn is kept until the result has its share: what is unpacked is in no budget yet.
        let Some((decoded, turn)) = self.decode(&ticket).await else {
            return;
        };
        match decoded {
            Ok(Decoded::Result(result)) => {
                match entrance.place(&result.node, is_stamped, self.partitions) {
                    Place::Here => self.bring(ticket, result, session, turn).await,
                    Place::Queue(partition) => {
                        drop(turn);
                        self.forward(ticket, &entrance, partition, (session, false))
                            .await;
                    }
                    Place::Nowhere(why) => {
                        drop(turn);
                        self.refuse_place(ticket, result, why).await;
                    }
                }
            }
            Ok(Decoded::Unordered(node)) => {
                drop(turn);
                let home = partition_of(&node, self.partitions);
                self.forward(ticket, &entrance, home, (session, true)).await;
            }
            Err(error) => {
                drop(turn);
                telemetry::record_decode_error(&error);
                let (reason, detail) = (error.reason(), error.to_string());
                self.refuse(ticket, reason, detail, None).await;
            }
        }
    }

    /// Brings a result to its node.
    async fn bring(
        &self,
        mut ticket: Ticket,
        result: PluginResult,
        session: u64,
        turn: Option<OwnedSemaphorePermit>,
    ) {
        ticket.begin_span(result.run);
        self.record(&result);
        // The budget is never closed; if it were, the ticket would give the delivery back.
        let Some(permit) = self.permit(held_bytes(&ticket, &result)).await else {
            return;
        };
        drop(turn);
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

    /// Decodes a small message here, and one that may take long on a thread of its own: all partitions share this thread.
    /// None if that other thread died; the ticket then gives the delivery back.
    async fn decode(&self, ticket: &Ticket) -> Option<(Decoding, Option<OwnedSemaphorePermit>)> {
        let (bounds, now) = (self.bounds, Timestamp::now());
        if !is_heavy(ticket.origin()) {
            return Some((decode(ticket.origin(), bounds, now), None));
        }
        let permit = Arc::clone(&self.heavy).acquire_owned().await.ok()?;
        let origin = ticket.origin().clone();
        let decoded = tokio::task::spawn_blocking(move || (decode(&origin, bounds, now), permit));
        let (decoded, permit) = decoded.await.ok()?;
        Some((decoded, Some(permit)))
    }

    /// Forwards a delivery that came by `session` to the queue of `partition`. A result of 2010 that is new gets its
    /// sequence, in the order of this queue.
    async fn forward(
        &self,
        mut ticket: Ticket,
        entrance: &Entrance,
        partition: u16,
        (session, is_new): (u64, bool),
    ) {
        let Some(permit) = self.permit(ticket.origin().bytes()).await else {
            return;
        };
        ticket.hold(permit);
        let stamp = is_new.then(|| self.stamps.next(Timestamp::now()));
        let forward = Forward::new(ticket, entrance, partition, stamp, session);
        self.forwards.send(forward).await;
    }

    async fn permit(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let permits = u32::try_from(bytes.min(self.budget_bytes)).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.budget).acquire_many_owned(permits).await;
        permit.ok()
    }

    /// Makes a dead letter of a result that came where no result of its node may come.
    async fn refuse_place(&self, ticket: Ticket, result: PluginResult, why: String) {
        self.record(&result);
        self.refuse(ticket, header::SLOT_REASON, why, Some(result))
            .await;
    }

    async fn refuse(
        &self,
        mut ticket: Ticket,
        reason: &str,
        detail: String,
        result: Option<PluginResult>,
    ) {
        ticket.begin_span(ticket.run());
        let (node, plugin) = result.map(|result| (result.node, result.plugin)).unzip();
        let letter = DeadLetter {
            ticket,
            reason: reason.to_owned(),
            detail,
            node,
            plugin: plugin.flatten(),
            attempts: 1,
        };
        self.dead_letters.send(letter).await;
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

/// Bytes held of a result: the message as it came, and its value.
fn held_bytes(ticket: &Ticket, result: &PluginResult) -> usize {
    let value = match &result.content {
        Content::Value { json, .. } => json.get().len(),
        Content::Error(error) => error.message.len(),
    };
    ticket.origin().bytes() + value
}
