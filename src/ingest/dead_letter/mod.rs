//! Dead letters: messages that can never be stored, kept with the reason for a person to look at.
//!
//! The original bytes go to `vogeler.dead`, confirmed and routed, *before* the original is acknowledged. A letter that
//! the broker refuses is held and tried again ([`publisher`]). Invariant: so many letters, and bytes of them, are in
//! here and no more; past that whoever makes one waits.

mod message;
mod publisher;

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::reconcile::LookNow;
use super::ticket::Ticket;
use crate::broker::{Broker, Link};
use crate::wire::{NodeName, PluginName};
use publisher::Publisher;

/// Dead letters waiting to be published at most; past it whoever makes them waits.
const WAITING_MAX: usize = 1_024;
/// Dead letters being published or held at most; the others wait behind them.
const HELD_MAX: usize = 1_024;
/// Bytes of messages that wait, are published or held at most. A larger message has all of it to itself.
const BYTES_MAX: usize = 64 << 20;

/// A delivery that can never be stored.
#[derive(Debug)]
pub(super) struct DeadLetter {
    pub(super) ticket: Ticket,
    /// One word: [`crate::wire::DecodeError::reason`], or what the store said.
    pub(super) reason: String,
    /// The whole sentence.
    pub(super) detail: String,
    /// The result's node and plugin, as far as they are known.
    pub(super) node: Option<NodeName>,
    pub(super) plugin: Option<PluginName>,
    /// Writes that were tried.
    pub(super) attempts: u32,
}

/// A letter that was handed in.
#[derive(Debug)]
struct Handed {
    letter: DeadLetter,
    since: Instant,
    _bytes: OwnedSemaphorePermit,
}

/// Where dead letters are handed in. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct DeadLetters {
    line: mpsc::Sender<Handed>,
    bytes: Arc<Semaphore>,
}

impl DeadLetters {
    /// Hands one in; waits while many are under way, or held.
    pub(super) async fn send(&self, letter: DeadLetter) {
        let run = letter.ticket.run().map(tracing::field::display);
        warn!(
            target: "vogeler::ingest::dead_letter",
            run,
            reason = letter.reason,
            detail = letter.detail,
            node = letter.node.as_ref().map(tracing::field::display),
            plugin = letter.plugin.as_ref().map(tracing::field::display),
            "dead letter"
        );
        let since = Instant::now();
        let bytes = letter.ticket.origin().body.len().min(BYTES_MAX);
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        // It is never closed; if it were, the ticket would give the delivery back.
        let Ok(bytes) = Arc::clone(&self.bytes).acquire_many_owned(permits).await else {
            return;
        };
        let handed = Handed {
            letter,
            since,
            _bytes: bytes,
        };
        if self.line.send(handed).await.is_err() {
            error!(target: "vogeler::ingest::dead_letter", "the publisher is gone; the delivery goes back to the broker");
        }
    }
}

/// Starts the publisher, and tells whether the broker takes dead letters. It ends, with all published, when all senders
/// are gone. What the broker refuses goes back after `hold_max`, or at `stop`; what finds no queue asks for a `look`.
pub(super) fn start(
    broker: Arc<dyn Broker>,
    hold_max: Duration,
    stop: CancellationToken,
    look: LookNow,
) -> (DeadLetters, JoinHandle<()>, watch::Receiver<Link>) {
    let (line, mut handed) = mpsc::channel(WAITING_MAX);
    let publisher = Arc::new(Publisher::new(broker, hold_max, stop, look));
    let link = publisher.link();
    let letters = futures::stream::poll_fn(move |context| handed.poll_recv(context));
    let publishing = letters.for_each_concurrent(HELD_MAX, move |handed| {
        let publisher = Arc::clone(&publisher);
        async move { publisher.publish(handed).await }
    });
    let bytes = Arc::new(Semaphore::new(BYTES_MAX));
    (DeadLetters { line, bytes }, tokio::spawn(publishing), link)
}
