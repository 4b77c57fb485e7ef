//! Forwarding: a result that belongs in another queue is published there, and then acknowledged.
//!
//! Deliveries come in the order of their queue and leave in it. A result of 2010 gets its sequence here, once
//! ([`Stamps`]). What the broker refuses is tried again for `hold_max`. Invariants: a delivery is acknowledged only after
//! its copy is confirmed, and after all that came earlier, by any queue. A delivery that has to go back takes all later
//! ones with it, in the order they came, so that a later stamp means a later result.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::error;

use super::dead_letter::{DeadLetter, DeadLetters};
use super::place::Entrance;
use super::reconcile::LookNow;
use super::refusals::{Held, Refusals, Tries, Words};
use super::ticket::{Origin, Ticket};
use crate::backoff::Backoff;
use crate::broker::topology::{Exchange, forward_key};
use crate::broker::{Broker, BrokerError, Link, Message, left_out, next_session};
use crate::dead::header;
use crate::store::rules::REQUEST_TOO_LARGE;
use crate::telemetry::{ForwardReason, catalogue};
use crate::wire::Seq;

/// Most results on their way to another queue at once; past that, whoever hands one in waits.
const UNDER_WAY_MAX: usize = 256;
const RETRY_BASE: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Longest pause between two looks at the first in the line.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const ENDED: &str = "nothing is forwarded any more: a bug; restart the server";
static WORDS: Words = Words {
    refused: "the broker does not take results for their queues: they are held and tried again until it takes them",
    taken: "results are forwarded to their queues again; none is held any more",
    given_back: "no result waits to be forwarded any more: what the broker refused went back to its queue",
    count: |_| {},
};
/// Largest foreign header that is passed on, in bytes. All of them have at most [`HEADERS_BYTES_MAX`]: they must fit one
/// frame beside ours.
const HEADER_BYTES_MAX: usize = 1_024;
const HEADERS_BYTES_MAX: usize = 8 * 1_024;

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

/// A delivery that belongs in another queue.
#[derive(Debug)]
pub(super) struct Forward {
    ticket: Ticket,
    message: Message,
    reason: ForwardReason,
    /// The subscription that brought it.
    session: u64,
    since: Instant,
}

impl Forward {
    /// A forward into the queue of `partition`; a result of 2010 gets its `stamp`.
    pub(super) fn new(
        ticket: Ticket,
        entrance: &Entrance,
        partition: u16,
        stamp: Option<Seq>,
        session: u64,
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
            session,
            since: Instant::now(),
        }
    }
}

/// Where deliveries to be forwarded are handed in. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Forwards {
    line: mpsc::Sender<Forward>,
    refusals: Refusals,
    give_up: CancellationToken,
    /// Set when forwarding ended though nobody ended it: a bug.
    broken: Arc<OnceLock<Held>>,
}

impl Forwards {
    /// Hands one in; waits while too many are under way. Once forwarding has ended, its delivery goes back.
    pub(super) async fn send(&self, forward: Forward) {
        let is_sent = self.line.send(forward).await.is_ok();
        if is_sent || self.give_up.is_cancelled() {
            return;
        }
        self.broken
            .get_or_init(|| self.refusals.hold(ENDED.to_owned()));
        // Its delivery comes again at once: slow that down.
        tokio::time::sleep(RETRY_BASE).await;
    }

    /// Whether the broker takes them, and every change of that.
    pub(super) fn link(&self) -> watch::Receiver<Link> {
        self.refusals.link()
    }
}

/// What forwarding needs beside the broker.
#[derive(Debug)]
pub(super) struct ForwardSettings {
    pub(super) hold_max: Duration,
    pub(super) give_up: CancellationToken,
    pub(super) dead_letters: DeadLetters,
    pub(super) look: LookNow,
}

/// Starts forwarding. It ends when all senders are gone, or by `give_up`. A delivery that the broker does not take for
/// `hold_max` goes back, with all that are behind it. The last of the returned values announces this: consumers then
/// begin anew, so that the later deliveries come again behind it.
pub(super) fn start(
    broker: Arc<dyn Broker>,
    settings: ForwardSettings,
) -> (Forwards, JoinHandle<()>, watch::Receiver<u64>) {
    let (line, receiver) = mpsc::channel(1);
    let forwards = Forwards {
        line,
        refusals: Refusals::new(&WORDS, settings.look.clone()),
        give_up: settings.give_up.clone(),
        broken: Arc::default(),
    };
    let forwarder = Forwarder {
        broker,
        settings,
        refusals: forwards.refusals.clone(),
        line: VecDeque::new(),
        given_back: watch::Sender::new(0),
    };
    let given_back = forwarder.given_back.subscribe();
    (forwards, tokio::spawn(forwarder.run(receiver)), given_back)
}

/// What became of a publish.
enum Published {
    Taken,
    /// The broker takes no message of this size.
    TooLarge(String),
    /// The broker was closed by us.
    Closed,
}

/// A result under way, and what became of it, once that is known.
struct UnderWay {
    ticket: Ticket,
    reason: ForwardReason,
    since: Instant,
    published: AbortOnDropHandle<Published>,
}

struct Forwarder {
    broker: Arc<dyn Broker>,
    settings: ForwardSettings,
    refusals: Refusals,
    /// Dropped from the front: what is left goes back in the order it came.
    line: VecDeque<UnderWay>,
    /// Deliveries of subscriptions before this one go back, behind what went back already.
    given_back: watch::Sender<u64>,
}

impl Forwarder {
    async fn run(mut self, mut receiver: mpsc::Receiver<Forward>) {
        let give_up = self.settings.give_up.clone();
        let mut is_ended = false;
        while !(is_ended && self.line.is_empty()) {
            self.look_at_front();
            tokio::select! {
                biased;
                () = give_up.cancelled() => return,
                published = first(&mut self.line), if !self.line.is_empty() => match published {
                    Ok(Published::Closed) => return,
                    Ok(published) => self.settle_front(published),
                    Err(error) => {
                        error!(target: "vogeler::ingest::forward", %error, "forwarding a result failed in itself: a bug; it goes back with all that are behind it");
                        self.give_back();
                    }
                },
                forward = receiver.recv(), if !is_ended && self.line.len() < UNDER_WAY_MAX => match forward {
                    Some(forward) => self.take(forward),
                    None => is_ended = true,
                },
                () = tokio::time::sleep(LOOK_EVERY), if !self.line.is_empty() => {}
            }
        }
    }

    fn take(&mut self, forward: Forward) {
        if forward.session < *self.given_back.borrow() {
            return;
        }
        let tries = self.refusals.tries(Backoff::new(RETRY_BASE, RETRY_MAX));
        let publish = publish(Arc::clone(&self.broker), forward.message, tries);
        self.line.push_back(UnderWay {
            ticket: forward.ticket,
            reason: forward.reason,
            since: forward.since,
            published: AbortOnDropHandle::new(tokio::spawn(publish)),
        });
    }

    fn settle_front(&mut self, published: Published) {
        let Some(UnderWay { ticket, reason, .. }) = self.line.pop_front() else {
            return;
        };
        let Published::TooLarge(detail) = published else {
            catalogue::RESULTS_FORWARDED.of(reason).increment(1);
            return ticket.forwarded();
        };
        self.settings.dead_letters.post(DeadLetter {
            ticket,
            reason: REQUEST_TOO_LARGE.to_owned(),
            detail,
            node: None,
            plugin: None,
            attempts: 1,
        });
    }

    /// Drops deliveries at the front that the broker has again already. Gives all back once the first was held for
    /// `hold_max`.
    fn look_at_front(&mut self) {
        while self.line.front().is_some_and(|it| it.ticket.is_void()) {
            self.line.pop_front();
        }
        let hold_max = self.settings.hold_max;
        if self
            .line
            .front()
            .is_some_and(|it| it.since.elapsed() >= hold_max)
        {
            self.give_back();
        }
    }

    fn give_back(&mut self) {
        while self.line.pop_front().is_some() {}
        self.given_back.send_replace(next_session());
    }
}

/// What became of the first in the line, once that is known.
async fn first(line: &mut VecDeque<UnderWay>) -> Result<Published, JoinError> {
    match line.front_mut() {
        Some(under_way) => (&mut under_way.published).await,
        None => std::future::pending().await,
    }
}

/// Publishes until the broker has it: a delivery given back alone would come again behind later ones.
async fn publish(broker: Arc<dyn Broker>, message: Message, mut tries: Tries) -> Published {
    loop {
        match broker.publish(message.clone()).await {
            Ok(()) => {
                tries.taken();
                return Published::Taken;
            }
            Err(BrokerError::Closed) => return Published::Closed,
            Err(error @ BrokerError::TooLarge { .. }) => {
                return Published::TooLarge(error.to_string());
            }
            Err(error) => tokio::time::sleep(tries.failed(&error)).await,
        }
    }
}

fn message(origin: &Origin, entrance: &Entrance, partition: u16, stamp: Option<Seq>) -> Message {
    let mut properties = origin.properties.clone();
    let headers = &mut properties.headers;
    headers.retain(|name, _| !header::OF_BROKER.contains(&name.as_str()));
    left_out::trim(headers, HEADER_BYTES_MAX, HEADERS_BYTES_MAX).tell(headers);
    let mut set = |name: &str, value: String| headers.insert(name.to_owned(), value);
    // A stranger's count may be any number.
    let forwards = entrance.forwards.saturating_add(1);
    set(header::FORWARDED, forwards.to_string());
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
    use crate::broker::Properties;
    use crate::trace;
    use crate::wire::PUBLISHED_HEADER;

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_microsecond(micros).unwrap()
    }

    proptest! {
        /// Whatever the clock does, a later stamp is larger, and never behind the clock.
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
            forwards in prop_oneof![Just(0), Just(u32::MAX)],
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
            let entrance = Entrance { partition: Some(0), routing_key: String::new(), forwards };
            let message = message(&origin, &entrance, 3, Some(Seq(7)));
            let headers = &message.properties.headers;
            let bytes: usize = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
            prop_assert!(bytes < HEADERS_BYTES_MAX + HEADER_BYTES_MAX + left_out::note_entry_bytes());
            let all = origin.properties.headers.keys().filter(|name| *name != "x-delivery-count");
            let is_whole = all.into_iter().all(|name| headers.contains_key(name));
            prop_assert_eq!(headers.contains_key(left_out::HEADER), !is_whole);
            let forwards = forwards.saturating_add(1).to_string();
            for (name, value) in ours.into_iter().chain([(header::ARRIVED, "7"), (header::FORWARDED, &forwards)]) {
                prop_assert_eq!(headers.get(name).map(String::as_str), Some(value));
            }
            prop_assert!(!headers.contains_key("x-delivery-count"));
            prop_assert_eq!((&*message.routing_key, &*message.body), ("vogeler.results.3", &b"body"[..]));
        }
    }
}
