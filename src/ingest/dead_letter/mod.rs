//! Dead letters: messages that can never be stored, kept with the reason for a person to look at.
//!
//! The original bytes go to `vogeler.dead`, confirmed and routed, *before* the original is acknowledged. A letter that
//! the broker refuses is held and tried again ([`publisher`]). Two lines lead here. What could not be read is *sent*, and
//! waits for room. What was read has its share of the server's byte budget until it is settled, and is *posted*, so that no
//! commit waits for another node's letters. Invariant: the letters in here, and their bytes, are bounded.

mod message;
mod publisher;

use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
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

/// Most sent letters that wait to be published; past it the sender waits.
const WAITING_MAX: usize = 1_024;
/// Most letters of each line that are published or held at once; the others wait behind them.
const HELD_MAX: usize = 1_024;
/// Most bytes of sent letters that wait, are published or are held. A larger message takes all of it.
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
    /// How many writes were tried.
    pub(super) attempts: u32,
}

/// A letter that was handed in.
#[derive(Debug)]
struct Handed {
    letter: DeadLetter,
    since: Instant,
    /// None for a posted letter: its bytes are in the server's budget.
    _bytes: Option<OwnedSemaphorePermit>,
}

impl Handed {
    fn new(letter: DeadLetter) -> Self {
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
        Self {
            letter,
            since: Instant::now(),
            _bytes: None,
        }
    }
}

/// Where dead letters are handed in. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct DeadLetters {
    sent: mpsc::Sender<Handed>,
    bytes: Arc<Semaphore>,
    posted: mpsc::Sender<Handed>,
}

impl DeadLetters {
    /// Hands one in; waits while many are under way, or held.
    pub(super) async fn send(&self, letter: DeadLetter) {
        let handed = Handed::new(letter);
        let bytes = handed.letter.ticket.origin().bytes().min(BYTES_MAX);
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        // The semaphore is never closed; if it were, the ticket would give the delivery back.
        let Ok(bytes) = Arc::clone(&self.bytes).acquire_many_owned(permits).await else {
            return;
        };
        let handed = Handed {
            _bytes: Some(bytes),
            ..handed
        };
        if self.sent.send(handed).await.is_err() {
            error!(target: "vogeler::ingest::dead_letter", "the publisher is gone; the delivery goes back to the broker");
        }
    }

    /// Hands in a letter whose bytes are in the server's budget. Never waits: there is room for all deliveries that may be
    /// unsettled.
    pub(super) fn post(&self, letter: DeadLetter) {
        if let Err(error) = self.posted.try_send(Handed::new(letter)) {
            error!(target: "vogeler::ingest::dead_letter", %error, "a dead letter cannot be handed in; the delivery goes back to the broker");
        }
    }
}

/// Starts the publisher; the link tells whether the broker takes dead letters. The publisher ends, with all published,
/// when all senders are gone. What the broker refuses goes back after `hold_max`, or at `stop`; what finds no queue asks
/// for a `look`. At most `posted_max` posted letters wait.
pub(super) fn start(
    broker: Arc<dyn Broker>,
    hold_max: Duration,
    posted_max: usize,
    stop: CancellationToken,
    look: LookNow,
) -> (DeadLetters, JoinHandle<()>, watch::Receiver<Link>) {
    let publisher = Arc::new(Publisher::new(broker, hold_max, stop, look));
    let link = publisher.link();
    let (sent, sent_line) = mpsc::channel(WAITING_MAX);
    let (posted, posted_line) = mpsc::channel(posted_max);
    let publishing = futures::future::join(
        publish_all(Arc::clone(&publisher), sent_line),
        publish_all(publisher, posted_line),
    );
    let letters = DeadLetters {
        sent,
        bytes: Arc::new(Semaphore::new(BYTES_MAX)),
        posted,
    };
    (letters, tokio::spawn(publishing.map(drop)), link)
}

async fn publish_all(publisher: Arc<Publisher>, mut line: mpsc::Receiver<Handed>) {
    let letters = futures::stream::poll_fn(move |context| line.poll_recv(context));
    letters
        .for_each_concurrent(HELD_MAX, move |handed| {
            let publisher = Arc::clone(&publisher);
            async move { publisher.publish(handed).await }
        })
        .await;
}
