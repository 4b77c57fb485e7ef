//! Announcements: a server says every second that it is there, listens to the others, and says when it stops.
//!
//! A new server gets a greeting in its own queue, which shows whether it is there. Only the balance depends on
//! announcements. A server that hears nobody owns everything, and the broker's single active consumer still lets only one
//! server at a time have a partition.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::agreement::{Agreement, ServerId};
use super::members::{Heard, Members};
use crate::backoff::Backoff;
use crate::broker::topology::{self, Exchange};
use crate::broker::{Broker, BrokerError, Consumer, Delivery, Message, Properties};
use crate::telemetry;

/// How often a server says that it is there.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(1);
/// An announcement that nobody took for this time is stale, and the broker drops it.
const ANNOUNCEMENT_EXPIRES: Duration = Duration::from_secs(3);
/// Announcements taken at once.
const PREFETCH: u16 = 64;
/// Most greetings that wait to be sent, and most outcomes that wait to be read. A greeting that finds no room is tried
/// at the next announcement.
const GREETINGS_MAX: usize = 256;
/// Most greetings published and not yet confirmed.
const GREETINGS_UNDER_WAY_MAX: usize = 16;
/// Most suspects that wait to be greeted again: owners that consumers of partitions miss.
pub(super) const SUSPECTS_MAX: usize = 16;

/// The body of an announcement. Other messages that come to our queue (probes of the reconciler) do not parse as one.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Announcement {
    server: ServerId,
    /// Grows by one a second; a greeting repeats the last.
    beat: u64,
    /// The sender's `broker.partitions`: servers must have the same.
    partitions: u16,
    #[serde(default)]
    leaving: bool,
}

/// This server among the others.
#[derive(Debug, Clone)]
pub(super) struct Announcer {
    pub(super) broker: Arc<dyn Broker>,
    pub(super) me: ServerId,
    pub(super) partitions: u16,
    pub(super) reconnect_max: Duration,
    pub(super) stop: CancellationToken,
}

/// Whom to greet, and what came of it.
#[derive(Debug)]
struct Greetings {
    wanted: mpsc::Sender<ServerId>,
    answers: mpsc::Receiver<(ServerId, bool)>,
}

/// What the listener reacts to.
#[derive(Debug)]
enum Event {
    Delivery(Box<Delivery>),
    Answer(ServerId, bool),
    Suspect(ServerId),
    Lost,
}

impl Announcer {
    /// Announces and listens until the stop; the agreement follows what is heard. `suspects` are owners that do not come.
    pub(super) async fn run(
        self,
        agreement: watch::Sender<Agreement>,
        suspects: mpsc::Receiver<ServerId>,
    ) {
        let said = Arc::new(AtomicU64::new(0));
        let (wanted, to_greet) = mpsc::channel(GREETINGS_MAX);
        let (answer, answers) = mpsc::channel(GREETINGS_MAX);
        let greeter = tokio::spawn(self.clone().greet(Arc::clone(&said), to_greet, answer));
        let listener = Listener {
            members: Members::new(self.me, self.partitions),
            announcer: self,
            agreement,
            suspects,
            greetings: Greetings { wanted, answers },
            said,
            differing: HashSet::new(),
        };
        listener.run().await;
        // It ends with the listener, which holds what it reads from.
        drop(greeter.await);
    }

    /// Announces every second. It starts once others can greet us.
    async fn speak(self, said: Arc<AtomicU64>) {
        let mut every = tokio::time::interval(ANNOUNCE_EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                _ = every.tick() => {}
            }
            let beat = said.fetch_add(1, Ordering::Relaxed) + 1;
            self.say_to_all(beat, false).await;
        }
        self.say_to_all(said.load(Ordering::Relaxed), true).await;
    }

    /// Says it once; the next beat makes up for one that got lost.
    async fn say_to_all(&self, beat: u64, leaving: bool) {
        if let Err(error) = self.say(String::new(), beat, leaving).await {
            debug!(target: "vogeler::ingest::partitions", %error, "an announcement got lost");
        }
    }

    /// Sends greetings, and tells whether they were taken.
    async fn greet(
        self,
        said: Arc<AtomicU64>,
        mut wanted: mpsc::Receiver<ServerId>,
        answer: mpsc::Sender<(ServerId, bool)>,
    ) {
        let wanted = futures::stream::poll_fn(move |context| wanted.poll_recv(context));
        let greet_one = async |server: ServerId| {
            let beat = said.load(Ordering::Relaxed);
            let is_there = match self.say(server.to_string(), beat, false).await {
                Ok(()) => true,
                Err(BrokerError::Unroutable { .. }) => false,
                Err(error) => {
                    debug!(target: "vogeler::ingest::partitions", %error, %server, "a greeting got lost");
                    return;
                }
            };
            // After the stop nobody reads the answer.
            answer.send((server, is_there)).await.ok();
        };
        wanted
            .for_each_concurrent(GREETINGS_UNDER_WAY_MAX, greet_one)
            .await;
    }

    /// Announces us to all (an empty key), or to one.
    async fn say(&self, to: String, beat: u64, leaving: bool) -> Result<(), BrokerError> {
        let announcement = Announcement {
            server: self.me,
            beat,
            partitions: self.partitions,
            leaving,
        };
        let Ok(body) = serde_json::to_vec(&announcement) else {
            return Ok(());
        };
        let message = Message {
            exchange: Exchange::Servers,
            // One to a single server shows whether that server is there.
            mandatory: !to.is_empty(),
            routing_key: to,
            body: body.into(),
            properties: Properties {
                content_type: Some("application/json".to_owned()),
                expiration: Some(ANNOUNCEMENT_EXPIRES),
                ..Properties::default()
            },
            persistent: false,
        };
        let timeout = ANNOUNCE_EVERY;
        tokio::time::timeout(timeout, self.broker.publish(message))
            .await
            .unwrap_or(Err(BrokerError::Unconfirmed { timeout }))
    }

    /// A consumer of our own queue; none once stopped, or when the broker was closed.
    async fn consume(&self) -> Option<Consumer> {
        let queue = topology::server_queue(&self.me.to_string());
        let mut backoff = Backoff::new(ANNOUNCE_EVERY, self.reconnect_max.max(ANNOUNCE_EVERY));
        loop {
            let consumed = tokio::select! {
                () = self.stop.cancelled() => return None,
                consumed = self.broker.consume(&queue, PREFETCH) => consumed,
            };
            match consumed {
                Ok(consumer) => return Some(consumer),
                Err(BrokerError::Closed) => return None,
                Err(error) => {
                    warn!(target: "vogeler::ingest::partitions", %error, "cannot hear other servers; taking every partition that the broker gives");
                }
            }
            tokio::select! {
                () = self.stop.cancelled() => return None,
                () = tokio::time::sleep(backoff.next_random()) => {}
            }
        }
    }
}

/// Listens to the others.
struct Listener {
    announcer: Announcer,
    members: Members,
    agreement: watch::Sender<Agreement>,
    suspects: mpsc::Receiver<ServerId>,
    greetings: Greetings,
    /// The beat of our last announcement.
    said: Arc<AtomicU64>,
    /// Servers that we warned of, since they have another number of partitions; kept as long as they count.
    differing: HashSet<ServerId>,
}

impl Listener {
    async fn run(mut self) {
        let mut speaker = None;
        let stop = self.announcer.stop.clone();
        while let Some(mut consumer) = self.announcer.consume().await {
            speaker.get_or_insert_with(|| {
                tokio::spawn(self.announcer.clone().speak(Arc::clone(&self.said)))
            });
            loop {
                let event = tokio::select! {
                    biased;
                    () = stop.cancelled() => break,
                    event = self.next(&mut consumer) => event,
                };
                if matches!(event, Event::Lost) {
                    break;
                }
                self.react(event);
            }
            consumer.close(ANNOUNCE_EVERY).await;
            if stop.is_cancelled() {
                break;
            }
        }
        if let Some(speaker) = speaker {
            // It ends by the same stop, after its last word.
            drop(speaker.await);
        }
    }

    async fn next(&mut self, consumer: &mut Consumer) -> Event {
        tokio::select! {
            Some((server, is_there)) = self.greetings.answers.recv() => Event::Answer(server, is_there),
            Some(server) = self.suspects.recv() => Event::Suspect(server),
            delivery = consumer.next() => delivery.map_or(Event::Lost, |delivery| Event::Delivery(Box::new(delivery))),
        }
    }

    fn react(&mut self, event: Event) {
        match event {
            Event::Delivery(delivery) => {
                if let Ok(heard) = serde_json::from_slice(&delivery.body) {
                    self.take_in(heard);
                }
                delivery.settler.ack();
            }
            Event::Answer(server, is_there) => self.members.greeted(server, is_there),
            Event::Suspect(server) => self.greet(server),
            Event::Lost => {}
        }
        // Anybody may announce at any rate, so the owners are worked out only when the members change.
        if !self.members.agree_on(&self.agreement.borrow()) {
            update(&self.agreement, self.members.agreement());
        }
    }

    fn take_in(&mut self, heard: Announcement) {
        let server = heard.server;
        if server == self.announcer.me {
            let said = self.said.load(Ordering::Relaxed);
            self.members.hear_self(heard.beat, said);
        } else if heard.leaving {
            self.members.leave(server);
        } else if self.members.hear(server) == Heard::Greet {
            self.greet(server);
        }
        self.compare(heard);
    }

    /// Asks the greeter to greet; if it has no room, the next announcement asks again.
    fn greet(&mut self, server: ServerId) {
        if self.greetings.wanted.try_send(server).is_err() {
            self.members.not_greeted(server);
        }
    }

    /// Warns of servers with another number of partitions.
    fn compare(&mut self, heard: Announcement) {
        let ours = self.announcer.partitions;
        let agreement = self.agreement.borrow();
        self.differing.retain(|server| agreement.counts(*server));
        let is_news = heard.partitions != ours
            && agreement.counts(heard.server)
            && self.differing.insert(heard.server);
        drop(agreement);
        if is_news {
            warn!(
                target: "vogeler::ingest::partitions", server = %heard.server, ours, theirs = heard.partitions,
                "servers differ in broker.partitions: stop them all, run `vogeler admin setup`, start them with the same number"
            );
        }
    }
}

/// Publishes what is agreed now, and logs what changed.
fn update(agreement: &watch::Sender<Agreement>, now: Agreement) {
    let before = agreement.borrow().clone();
    if now.is_other_than(&before) {
        telemetry::record_rebalance();
        info!(target: "vogeler::ingest::partitions", servers = now.servers(), partitions = ?now.owned(), "servers agreed who owns which partitions");
    }
    match (before.left_out(), now.left_out()) {
        (0, left_out) if left_out > 0 => {
            warn!(target: "vogeler::ingest::partitions", left_out, "servers announce themselves that are not there: they own nothing; who publishes to the exchange vogeler.servers?");
        }
        (left_out, 0) if left_out > 0 => {
            info!(target: "vogeler::ingest::partitions", "no servers announce themselves any more that are not there");
        }
        _ => {}
    }
    agreement.send_replace(now);
}
