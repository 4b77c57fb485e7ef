//! Dead letters: messages that can never be stored, kept with the reason for a person to look at.
//!
//! The original bytes go to `vogeler.dead`, confirmed and routed, *before* the original is acknowledged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{error, warn};

use super::ticket::Ticket;
use crate::backoff::Backoff;
use crate::broker::topology::Exchange;
use crate::broker::{Broker, Message, Properties};
use crate::dead::header;
use crate::telemetry;
use crate::wire::{NodeName, Outcome, PluginName, truncate};

/// Dead letters waiting to be published at most; past it whoever makes them waits.
const WAITING_MAX: usize = 1_024;
/// Publishes under way at once.
const PUBLISHES_MAX: usize = 64;
/// Tries to publish one before its delivery goes back to the broker.
const TRIES_MAX: u32 = 8;
const RETRY_BASE: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Longest text in a header, in bytes: all headers must fit one AMQP frame.
const HEADER_BYTES_MAX: usize = 1_024;

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

/// Where dead letters are handed in. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct DeadLetters(mpsc::Sender<DeadLetter>);

impl DeadLetters {
    /// Hands one in; waits while many are under way.
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
        if self.0.send(letter).await.is_err() {
            error!(target: "vogeler::ingest::dead_letter", "the publisher is gone; the delivery goes back to the broker");
        }
    }
}

/// Starts the publisher. It ends, with all published, when all senders are gone.
pub(super) fn start(broker: Arc<dyn Broker>) -> (DeadLetters, JoinHandle<()>) {
    let (sender, mut receiver) = mpsc::channel(WAITING_MAX);
    let letters = futures::stream::poll_fn(move |context| receiver.poll_recv(context));
    let publisher = letters.for_each_concurrent(PUBLISHES_MAX, move |letter| {
        let broker = Arc::clone(&broker);
        async move { publish(broker.as_ref(), letter).await }
    });
    (DeadLetters(sender), tokio::spawn(publisher))
}

async fn publish(broker: &dyn Broker, letter: DeadLetter) {
    let mut backoff = Backoff::new(RETRY_BASE, RETRY_MAX);
    let message = message(&letter);
    loop {
        match broker.publish(message.clone()).await {
            Ok(()) => {
                telemetry::record_dead_letter(&letter.reason);
                let why = format!("{}: {}", letter.reason, letter.detail);
                letter
                    .ticket
                    .settle_because(Outcome::DeadLettered, Some(why));
                return;
            }
            Err(error) if backoff.tries() + 1 >= TRIES_MAX || !error.is_retryable() => {
                let run = letter.ticket.run().map(tracing::field::display);
                error!(target: "vogeler::ingest::dead_letter", run, %error, "a dead letter cannot be published; its delivery goes back to the broker");
                return;
            }
            Err(_) => tokio::time::sleep(backoff.next_random()).await,
        }
    }
}

fn message(letter: &DeadLetter) -> Message {
    let origin = letter.ticket.origin();
    let mut headers: BTreeMap<String, String> = origin.properties.headers.clone();
    // The broker's own counts of deliveries; a new message starts at none.
    for name in header::OF_BROKER {
        headers.remove(name);
    }
    let mut set = |name: &str, mut value: String| {
        truncate(&mut value, HEADER_BYTES_MAX);
        headers.insert(name.to_owned(), value);
    };
    set(header::REASON, letter.reason.clone());
    set(header::DETAIL, letter.detail.clone());
    set(header::ATTEMPTS, letter.attempts.to_string());
    set(header::TIME, Timestamp::now().to_string());
    set(header::EXCHANGE, origin.exchange.clone());
    set(header::ROUTING_KEY, origin.routing_key.clone());
    if let Some(node) = &letter.node {
        set(header::NODE, node.to_string());
    }
    if let Some(plugin) = &letter.plugin {
        set(header::PLUGIN, plugin.to_string());
    }
    Message {
        exchange: Exchange::Dead,
        routing_key: String::new(),
        body: origin.body.clone(),
        properties: Properties {
            headers,
            expiration: None,
            ..origin.properties.clone()
        },
        persistent: true,
        mandatory: true,
    }
}
