//! A sender: one connection of light clients, and the messages that wait for it.
//!
//! Indexes into the schedule come in when they are due. Each becomes a message at once, which is noted in the ledger,
//! kept, and published until the broker has confirmed it. Bounds: bytes kept, messages in flight, and one message at a
//! time that tries again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, watch};
use vogeler::backoff::Backoff;
use vogeler::broker::{Broker, Message};

use super::light::Light;
use super::message;
use crate::ledger::{EntryId, Hash, Sent};
use crate::schedule::{Kind, Sending};

/// Pauses before a message is published again.
const RETRY_BASE: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// A message that was made when it was due.
struct Made {
    sending: Sending,
    message: Message,
    note: Note,
}

/// Where a message is noted.
enum Note {
    Entry(EntryId),
    Poison(String),
}

/// A connection, and the turn to try again when it fails.
struct Sender {
    broker: Arc<dyn Broker>,
    /// One message at a time tries whether the broker is back; thousands at once would be the tester's own load.
    turn: Semaphore,
    /// Signals every confirm; all waiting messages then try again.
    confirms: watch::Sender<()>,
}

impl Sender {
    /// Waits until publishing again makes sense. Whoever holds the permit tries for all.
    async fn again(&self, pause: Duration) -> Option<SemaphorePermit<'_>> {
        let mut confirms = self.confirms.subscribe();
        let turn = async {
            let permit = self.turn.acquire().await.ok();
            tokio::time::sleep(pause).await;
            permit
        };
        tokio::select! {
            biased;
            _ = confirms.changed() => None,
            permit = turn => permit,
        }
    }
}

/// One connection: makes what comes down its line, and keeps it until the broker has it.
pub(super) async fn work(
    light: Arc<Light>,
    broker: Arc<dyn Broker>,
    mut line: mpsc::Receiver<u32>,
    (in_flight, kept_bytes_max): (usize, usize),
) {
    let sender = Sender {
        broker,
        turn: Semaphore::new(1),
        confirms: watch::Sender::new(()),
    };
    let mut kept: VecDeque<Made> = VecDeque::new();
    let mut kept_bytes = 0;
    let mut flights = FuturesUnordered::new();
    let mut is_open = true;
    while is_open || !flights.is_empty() {
        tokio::select! {
            index = line.recv(), if is_open && kept_bytes < kept_bytes_max => match index {
                Some(index) => if let Some(made) = light.make(index) {
                    kept_bytes += made.message.body.len();
                    kept.push_back(made);
                },
                None => is_open = false,
            },
            Some(bytes) = flights.next() => kept_bytes -= bytes,
        }
        while flights.len() < in_flight
            && let Some(made) = kept.pop_front()
        {
            flights.push(light.publish(&sender, made));
        }
    }
    drop(flights);
    sender.broker.close().await;
}

impl Light {
    /// The message that is due now, noted; none if it cannot be made.
    fn make(&self, index: u32) -> Option<Made> {
        let sending = self.fleet.schedule.sendings[index as usize];
        match self.compose(index, sending) {
            Ok((message, note)) => {
                let late = self.start.at(sending.at).elapsed();
                self.fleet.stats.tester_lag.record(late);
                Some(Made {
                    sending,
                    message,
                    note,
                })
            }
            Err(error) => {
                tracing::error!(%error, "a message cannot be made");
                self.fleet.stats.dropped.add();
                self.pending[sending.node as usize].fetch_sub(1, Ordering::Relaxed);
                None
            }
        }
    }

    fn compose(&self, index: u32, sending: Sending) -> anyhow::Result<(Message, Note)> {
        let member = &self.fleet.nodes.members[sending.node as usize];
        if let Kind::Poison(form) = sending.kind {
            let id = format!("poison-{}-{index}", self.start.wall.as_microsecond());
            let message = message::poison(&member.name, id.clone(), form);
            return Ok((message, Note::Poison(id)));
        }
        let plugin = &self.fleet.nodes.plugins[usize::from(sending.plugin)];
        let value = self.fleet.generators[usize::from(sending.plugin)]
            .value(&member.machine, sending.version);
        let hash = Hash::of(value.as_bytes());
        let (run, seq) = (
            self.runs[sending.tick as usize],
            self.start.seq(sending.collected, member.skew_micros),
        );
        let entry = self.fleet.ledger.sending(&Sent {
            node: member.name.clone(),
            plugin: plugin.clone(),
            run: Some(run),
            seq,
            hash,
            version: Some(sending.version),
            due: sending.at,
            is_late: sending.kind == Kind::Late,
        });
        let parts = message::Parts {
            node: &member.name,
            plugin,
            seq,
            run,
            hash,
            value,
        };
        Ok((message::result(parts)?, Note::Entry(entry)))
    }

    /// Publishes the message until the broker has it, cannot take it, or nobody waits any longer. Returns its size in
    /// bytes.
    async fn publish(&self, sender: &Sender, made: Made) -> usize {
        self.publish_until_confirmed(sender, &made).await;
        self.pending[made.sending.node as usize].fetch_sub(1, Ordering::Relaxed);
        made.message.body.len()
    }

    async fn publish_until_confirmed(&self, sender: &Sender, made: &Made) {
        let stats = &self.fleet.stats;
        let mut backoff = Backoff::new(RETRY_BASE, RETRY_MAX);
        let mut permit = None;
        stats.sent.add();
        loop {
            self.note_attempt(&made.note);
            let publish = self
                .stop
                .run_until_cancelled(sender.broker.publish(made.message.clone()));
            let published = publish.await;
            drop(permit.take());
            match published {
                Some(Ok(())) => {
                    sender.confirms.send_replace(());
                    self.note_confirm(&made.note);
                    stats.confirmed.add();
                    stats
                        .publish_to_confirmed
                        .record(self.start.since(made.sending.at));
                    return;
                }
                Some(Err(error)) if error.is_retryable() => stats.failed_publishes.add(),
                Some(Err(error)) => {
                    tracing::error!(%error, "a message cannot be published");
                    break;
                }
                None => break,
            }
            let again = sender.again(backoff.next_random());
            permit = self.stop.run_until_cancelled(again).await.flatten();
        }
        stats.unconfirmed.add();
    }

    fn note_attempt(&self, note: &Note) {
        match note {
            Note::Entry(id) => {
                self.fleet.ledger.attempt(*id, self.start.micros());
            }
            Note::Poison(id) => self.fleet.ledger.attempt_poison(id),
        }
    }

    fn note_confirm(&self, note: &Note) {
        match note {
            Note::Entry(id) => self.fleet.ledger.confirm(*id, self.start.micros()),
            Note::Poison(id) => self.fleet.ledger.confirm_poison(id),
        }
    }
}
