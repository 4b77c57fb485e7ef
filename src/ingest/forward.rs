//! Forwarding: a result that belongs into another queue is published there, and then acknowledged.
//!
//! Deliveries come in the order of their queue and leave in it. A result of 2010 gets its sequence here, once
//! ([`Stamps`]). Invariants: nothing is acknowledged before its copy is confirmed, nor before what came earlier by any
//! queue; whatever has to go back goes back in the order it came, so that later stamps are later results.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use super::place::Entrance;
use super::ticket::{Origin, Ticket};
use crate::backoff::Backoff;
use crate::broker::topology::{Exchange, forward_key};
use crate::broker::{Broker, BrokerError, Message, Properties};
use crate::dead::header;
use crate::telemetry::{ForwardReason, catalogue};
use crate::trace;
use crate::wire::{PUBLISHED_HEADER, Seq};

/// Results on their way to another queue at most; past it whoever takes them waits.
const UNDER_WAY_MAX: usize = 256;
const RETRY_BASE: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Longest foreign header that is passed on, and all that are, in bytes: they must fit one frame beside ours.
const HEADER_BYTES_MAX: usize = 1_024;
const HEADERS_BYTES_MAX: usize = 8 * 1_024;
/// Headers that are passed on before any other.
const OWN_HEADERS: [&str; 4] = [
    PUBLISHED_HEADER,
    trace::HEADER,
    header::REPLAYS,
    header::ARRIVED,
];

/// Sequences for results of 2010, in the order of their arrival.
#[derive(Debug, Default)]
pub(super) struct Stamps(Mutex<Seq>);

impl Stamps {
    /// The next one: microseconds since the epoch, but at least the last one + 1.
    pub(super) fn next(&self, now: Timestamp) -> Seq {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *last = Seq::after(*last, now);
        *last
    }
}

/// A delivery that belongs into another queue.
#[derive(Debug)]
pub(super) struct Forward {
    ticket: Ticket,
    message: Message,
    reason: ForwardReason,
}

impl Forward {
    /// Into the queue of `partition`; a result of 2010 with its `stamp`.
    pub(super) fn new(
        ticket: Ticket,
        entrance: &Entrance,
        partition: u16,
        stamp: Option<Seq>,
    ) -> Self {
        let message = message(ticket.origin(), entrance, partition, stamp);
        let reason = match stamp {
            Some(_) => ForwardReason::Ordered,
            None => ForwardReason::Moved,
        };
        Self {
            ticket,
            message,
            reason,
        }
    }
}

/// Where they are handed in. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Forwards(mpsc::Sender<Forward>);

impl Forwards {
    /// Hands one in; waits while many are under way. After the end its delivery goes back.
    pub(super) async fn send(&self, forward: Forward) {
        drop(self.0.send(forward).await);
    }
}

/// Starts it. It ends when all senders are gone, or by `give_up`.
pub(super) fn start(
    broker: Arc<dyn Broker>,
    give_up: CancellationToken,
) -> (Forwards, JoinHandle<()>) {
    let (sender, receiver) = mpsc::channel(1);
    (
        Forwards(sender),
        tokio::spawn(run(broker, receiver, give_up)),
    )
}

/// A result under way: whether it was published, once that is known.
type UnderWay = (Ticket, ForwardReason, AbortOnDropHandle<bool>);

async fn run(
    broker: Arc<dyn Broker>,
    mut receiver: mpsc::Receiver<Forward>,
    give_up: CancellationToken,
) {
    let is_troubled = Arc::new(AtomicBool::new(false));
    // Dropped from the front: what is left goes back in the order it came.
    let mut line: VecDeque<UnderWay> = VecDeque::new();
    let mut is_ended = false;
    while !(is_ended && line.is_empty()) {
        tokio::select! {
            biased;
            () = give_up.cancelled() => return,
            is_published = first(&mut line), if !line.is_empty() => {
                if !is_published {
                    // The broker was closed by us.
                    return;
                }
                if let Some((ticket, reason, _)) = line.pop_front() {
                    catalogue::RESULTS_FORWARDED.of(reason).increment(1);
                    ticket.forwarded();
                }
            }
            forward = receiver.recv(), if !is_ended && line.len() < UNDER_WAY_MAX => {
                let Some(Forward { ticket, message, reason }) = forward else {
                    is_ended = true;
                    continue;
                };
                let publish = publish(Arc::clone(&broker), message, Arc::clone(&is_troubled));
                line.push_back((ticket, reason, AbortOnDropHandle::new(tokio::spawn(publish))));
            }
        }
    }
}

/// Whether the first in the line was published, once that is known.
async fn first(line: &mut VecDeque<UnderWay>) -> bool {
    match line.front_mut() {
        // A publish does not panic; if it did, its delivery goes back.
        Some((_, _, published)) => published.await.unwrap_or(false),
        None => false,
    }
}

/// Publishes until the broker has it, however long that takes: a delivery given back alone would come again behind later
/// ones. Says whether the broker has it; it has not when it was closed by us.
async fn publish(broker: Arc<dyn Broker>, message: Message, is_troubled: Arc<AtomicBool>) -> bool {
    let mut backoff = Backoff::new(RETRY_BASE, RETRY_MAX);
    loop {
        match broker.publish(message.clone()).await {
            Ok(()) => {
                if is_troubled.swap(false, Ordering::Relaxed) {
                    info!(target: "vogeler::ingest::forward", "results are forwarded to their queues again");
                }
                return true;
            }
            Err(BrokerError::Closed) => return false,
            Err(error) => {
                if !is_troubled.swap(true, Ordering::Relaxed) {
                    warn!(target: "vogeler::ingest::forward", %error, "results cannot be forwarded to their queues; they are held and tried again");
                }
                tokio::time::sleep(backoff.next_random()).await;
            }
        }
    }
}

fn message(origin: &Origin, entrance: &Entrance, partition: u16, stamp: Option<Seq>) -> Message {
    let mut properties = Properties {
        headers: std::collections::BTreeMap::new(),
        ..origin.properties.clone()
    };
    let headers = &mut properties.headers;
    let mut room = HEADERS_BYTES_MAX;
    let given = &origin.properties.headers;
    let own = OWN_HEADERS
        .iter()
        .filter_map(|name| given.get_key_value(*name));
    for (name, value) in own.chain(given) {
        let bytes = name.len() + value.len();
        let is_passed_on = bytes <= HEADER_BYTES_MAX.min(room)
            && !header::OF_BROKER.contains(&name.as_str())
            && !headers.contains_key(name);
        if is_passed_on {
            room -= bytes;
            headers.insert(name.clone(), value.clone());
        }
    }
    let mut set = |name: &str, value: String| headers.insert(name.to_owned(), value);
    set(header::FORWARDED, (entrance.forwards + 1).to_string());
    set(header::ROUTING_KEY, entrance.routing_key.clone());
    if let Some(stamp) = stamp {
        set(header::ARRIVED, stamp.0.to_string());
    }
    Message {
        exchange: Exchange::Results,
        routing_key: forward_key(partition),
        body: origin.body.clone(),
        properties,
        persistent: true,
        mandatory: true,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_microsecond(micros).unwrap()
    }

    proptest! {
        /// Whatever the clock does, a later stamp is larger; and it is the clock's where that is ahead.
        #[test]
        fn stamps_grow(clock in prop::collection::vec(0..1_000_i64, 1..50)) {
            let stamps = Stamps::default();
            let mut last = Seq(0);
            for micros in clock {
                let next = stamps.next(at(micros));
                prop_assert!(next > last && next.0 >= u64::try_from(micros).unwrap());
                last = next;
            }
        }

        /// Headers of any number and size leave room for ours, and ours are always passed on.
        #[test]
        fn headers_are_bounded(
            foreign in prop::collection::btree_map("[a-z]{1,9}", "[a-z]{0,2000}", 0..40),
        ) {
            let mut properties = Properties { headers: foreign, ..Properties::default() };
            let ours = [(PUBLISHED_HEADER, "1700000000000"), (trace::HEADER, "00-1-2-01")];
            for (name, value) in ours.into_iter().chain([("x-delivery-count", "3")]) {
                properties.headers.insert(name.to_owned(), value.to_owned());
            }
            let origin = Origin {
                body: bytes::Bytes::from_static(b"body"),
                properties,
                exchange: String::new(),
                routing_key: String::new(),
            };
            let entrance = Entrance { partition: Some(0), routing_key: String::new(), forwards: 0 };
            let message = message(&origin, &entrance, 3, Some(Seq(7)));
            let headers = &message.properties.headers;
            let bytes: usize = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
            prop_assert!(bytes < HEADERS_BYTES_MAX + HEADER_BYTES_MAX);
            for (name, value) in ours.into_iter().chain([(header::ARRIVED, "7"), (header::FORWARDED, "1")]) {
                prop_assert_eq!(headers.get(name).map(String::as_str), Some(value));
            }
            prop_assert!(!headers.contains_key("x-delivery-count"));
            prop_assert_eq!((&*message.routing_key, &*message.body), ("vogeler.results.3", &b"body"[..]));
        }
    }
}
