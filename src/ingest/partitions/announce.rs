//! Announcements: a server says every second that it is there, listens to the others, and says when it stops.
//!
//! Only the balance depends on them. Whoever hears nobody owns everything, and the broker's single active consumer
//! still lets one server at a time have a partition.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::agreement::{Agreement, ServerId};
use super::members::{Heard, Members};
use crate::backoff::Backoff;
use crate::broker::topology::{self, Exchange};
use crate::broker::{Broker, BrokerError, Consumer, Message, Properties};
use crate::telemetry;

/// How often a server says that it is there.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(1);
/// An announcement that nobody took for so long tells nothing any more.
const ANNOUNCEMENT_EXPIRES: Duration = Duration::from_secs(3);
/// Announcements taken at once.
const PREFETCH: u16 = 64;

/// What travels.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Announcement {
    server: ServerId,
    /// Grows by one a second; an answer to a newcomer repeats the last.
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

impl Announcer {
    /// Announces and listens until the stop; the agreement follows what is heard.
    pub(super) async fn run(self, agreement: watch::Sender<Agreement>) {
        let newcomer = Arc::new(Notify::new());
        let beats = tokio::spawn(self.clone().speak(Arc::clone(&newcomer)));
        self.listen(&agreement, &newcomer).await;
        // It ends by the same stop, after its last word.
        drop(beats.await);
    }

    async fn speak(self, newcomer: Arc<Notify>) {
        let mut every = tokio::time::interval(ANNOUNCE_EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut beat = 0;
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return self.say(beat, true).await,
                _ = every.tick() => beat += 1,
                () = newcomer.notified() => {}
            }
            self.say(beat, false).await;
        }
    }

    /// Says it once; the next beat makes up for one that got lost.
    async fn say(&self, beat: u64, leaving: bool) {
        let announcement = Announcement {
            server: self.me,
            beat,
            partitions: self.partitions,
            leaving,
        };
        let Ok(body) = serde_json::to_vec(&announcement) else {
            return;
        };
        let message = Message {
            exchange: Exchange::Servers,
            routing_key: String::new(),
            body: body.into(),
            properties: Properties {
                content_type: Some("application/json".to_owned()),
                expiration: Some(ANNOUNCEMENT_EXPIRES),
                ..Properties::default()
            },
            persistent: false,
            mandatory: false,
        };
        let said = tokio::time::timeout(ANNOUNCE_EVERY, self.broker.publish(message)).await;
        if !matches!(said, Ok(Ok(()))) {
            debug!(target: "vogeler::ingest::partitions", ?said, "an announcement got lost");
        }
    }

    async fn listen(&self, agreement: &watch::Sender<Agreement>, newcomer: &Notify) {
        let mut members = Members::new(self.me, self.partitions);
        while let Some(mut consumer) = self.consume().await {
            loop {
                let delivery = tokio::select! {
                    biased;
                    () = self.stop.cancelled() => None,
                    delivery = consumer.next() => delivery,
                };
                let Some(delivery) = delivery else { break };
                if let Ok(heard) = serde_json::from_slice(&delivery.body) {
                    self.take_in(heard, &mut members, newcomer);
                    update(agreement, members.agreement());
                }
                delivery.settler.ack();
            }
            consumer.close(ANNOUNCE_EVERY).await;
            if self.stop.is_cancelled() {
                return;
            }
        }
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

    fn take_in(&self, heard: Announcement, members: &mut Members, newcomer: &Notify) {
        if heard.leaving {
            return members.leave(heard.server);
        }
        if members.hear(heard.server, heard.beat) == Heard::Newcomer {
            // It should not have to wait for our next beat.
            newcomer.notify_one();
            if heard.partitions != self.partitions {
                warn!(
                    target: "vogeler::ingest::partitions", server = %heard.server, ours = self.partitions, theirs = heard.partitions,
                    "servers differ in broker.partitions: stop them all, run `vogeler admin setup`, start them with the same number"
                );
            }
        }
    }
}

fn update(agreement: &watch::Sender<Agreement>, now: Agreement) {
    let changed = agreement.send_if_modified(|agreed| {
        let changed = *agreed != now;
        *agreed = now;
        changed
    });
    if changed {
        let agreed = agreement.borrow();
        telemetry::record_rebalance();
        info!(target: "vogeler::ingest::partitions", servers = agreed.servers(), partitions = ?agreed.owned(), "servers agreed who owns which partitions");
    }
}
