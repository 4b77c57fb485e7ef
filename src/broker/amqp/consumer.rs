//! A consumer that survives outages: one session after the other, with back-off between them.
//!
//! Deliveries flow through one bounded queue for the consumer's life. A session that ends is replaced until nobody
//! takes deliveries any more, or another exclusive consumer has come first. Each change for the worse or the better is
//! logged once. If sessions break again and again with nothing settled, the queue gets a connection of its own, and is
//! reported as stuck.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::connection::Connector;
use super::declare;
use super::session::{End, Session};
use super::streak::{Progress, Streak};
use super::window::Window;
use crate::backoff::Backoff;
use crate::broker::topology::{Lifetime, Queue};
use crate::broker::{BrokerError, Consumer, ConsumerLoad, Delivery};
use crate::telemetry::catalogue;

/// Most deliveries that wait in front of the consumer; the prefetch bounds all that are unsettled. Few, since those
/// that wait when a session ends are delivered again.
const DELIVERIES_WAITING_MAX: usize = 64;
/// The first pause between two sessions is this part of the longest.
const FIRST_PAUSE_PART: u32 = 100;

/// Consumes `queue`. The first session is tried here, so that what cannot succeed by waiting fails at once.
pub(super) async fn consume(
    connector: Arc<Connector>,
    queue: Queue,
    window: Window,
    closed: CancellationToken,
) -> Result<Consumer, BrokerError> {
    let first = match Session::open(&connector, &queue, window.prefetch()).await {
        Ok(session) => Some(session),
        Err(error) if error.is_retryable() && !is_taken(&error) => None,
        Err(error) => return Err(error),
    };
    let room = usize::from(window.prefetch_max()).min(DELIVERIES_WAITING_MAX);
    let (out, deliveries) = mpsc::channel(room);
    let load = Arc::new(ConsumerLoad::new(window.prefetch()));
    let supervisor = Supervisor {
        connector,
        queue,
        window,
        load: Arc::clone(&load),
        out,
        is_well: true,
        streak: Streak::default(),
        aside: None,
    };
    let run = async move {
        tokio::select! {
            () = supervisor.run(first) => {}
            () = closed.cancelled() => {}
        }
    };
    let supervisor = tokio::spawn(run);
    let consumer = Consumer::new(deliveries, CancellationToken::new(), supervisor);
    Ok(consumer.with_load(load))
}

fn is_taken(error: &BrokerError) -> bool {
    matches!(error, BrokerError::InUse { .. })
}

struct Supervisor {
    connector: Arc<Connector>,
    queue: Queue,
    window: Window,
    load: Arc<ConsumerLoad>,
    out: mpsc::Sender<Delivery>,
    is_well: bool,
    streak: Streak,
    /// A connection for this queue alone, while its sessions break.
    aside: Option<Connector>,
}

impl Supervisor {
    async fn run(mut self, mut first: Option<Session>) {
        let longest = self.connector.target.reconnect_max;
        let mut backoff = Backoff::new(longest / FIRST_PAUSE_PART, longest);
        while !self.out.is_closed() {
            let started = Instant::now();
            let ended = match first.take() {
                Some(session) => self.serve(session).await,
                None => match self.open().await {
                    Ok(session) => self.serve(session).await,
                    // The caller decides whether to wait for its place.
                    Err(error) if is_taken(&error) => {
                        tracing::warn!(target: "vogeler::broker", queue = self.queue.name, %error, "another one consumes now; this consumer ends");
                        break;
                    }
                    Err(error) => End::Lost(error.to_string()),
                },
            };
            let reason = match ended {
                End::Drained => break,
                End::Resized => {
                    tracing::debug!(target: "vogeler::broker", queue = self.queue.name, prefetch = self.window.prefetch(), "the prefetch follows the sizes of messages");
                    continue;
                }
                End::Cancelled => {
                    self.note_deleted().await;
                    "the broker ended the consumer: the queue was deleted, or its node is down"
                        .to_owned()
                }
                End::Lost(reason) => reason,
            };
            self.note_trouble(&reason);
            // A session that held for long was a success; one that fails at once must not be tried in a tight loop.
            if started.elapsed() > longest {
                backoff.reset();
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.next_random()) => {}
                () = self.out.closed() => {}
            }
        }
        self.set_stuck(None);
    }

    async fn open(&mut self) -> Result<Session, BrokerError> {
        // An exclusive queue belongs to the connection that declared it.
        let is_aside = self.streak.is_suspect() && self.queue.lifetime != Lifetime::Exclusive;
        self.aside = match self.aside.take() {
            aside @ Some(_) if is_aside => aside,
            _ => is_aside.then(|| self.connector.aside()),
        };
        let connector = self.aside.as_ref().unwrap_or(&self.connector);
        let channel = Session::channel(connector, &self.queue).await?;
        // A delivery may come and break the channel before the session is set up.
        let prefetch = self.window.prefetch();
        let opened = Session::on(channel, connector, &self.queue, prefetch).await;
        if let Err(error) = &opened
            && error.is_retryable()
            && !is_taken(error)
        {
            self.note_break(&error.to_string());
        }
        opened
    }

    fn set_stuck(&self, why: Option<String>) {
        self.connector.links.set_stuck(&self.queue.name, why);
    }

    /// Runs one session to its end.
    async fn serve(&mut self, session: Session) -> End {
        if !std::mem::replace(&mut self.is_well, true) {
            tracing::info!(target: "vogeler::broker", queue = self.queue.name, "consuming again");
        }
        if self.load.has_prefetch(self.window.prefetch()) {
            catalogue::PREFETCH_CHANGES.get().increment(1);
        }
        let progress = Progress::default();
        let run = session.run(&self.out, &mut self.window, &self.load, &progress);
        let mut run = Box::pin(run);
        let broke = tokio::select! {
            end = &mut run => Err(end),
            () = progress.holds() => Ok(()),
        };
        match broke {
            Ok(()) => {
                self.streak.end();
                self.connector.links.set_stuck(&self.queue.name, None);
                // Renews the connection that this queue left, so that its link does not stay down as it was when it broke.
                let keep = async {
                    while self.aside.is_some() {
                        self.connector.connection().await.ok();
                        tokio::time::sleep(self.connector.target.reconnect_max).await;
                    }
                    std::future::pending().await
                };
                tokio::select! {
                    end = &mut run => end,
                    end = keep => end,
                }
            }
            Err(end) => {
                drop(run);
                if let End::Lost(reason) = &end {
                    self.note_break(reason);
                }
                end
            }
        }
    }

    /// A session ended before it held.
    fn note_break(&mut self, reason: &str) {
        if let Some(breaks) = self.streak.broke() {
            self.set_stuck(Some(format!("its sessions broke {breaks} times in a row with nothing settled, the last time with {reason:?}")));
        }
    }

    /// Reports the deletion of a durable queue, the one that loses messages. Only now can it be seen: the next session
    /// declares the queue again.
    async fn note_deleted(&self) {
        let name = self.queue.name.as_str();
        if self.queue.lifetime == Lifetime::Durable
            && let Ok([None]) = declare::depths(&self.connector, &[name]).await.as_deref()
        {
            catalogue::TOPOLOGY_RESTORED.get().increment(1);
            tracing::error!(target: "vogeler::broker", queue = name, "the queue was deleted, and what was in it is lost; declaring it again");
        }
    }

    fn note_trouble(&mut self, reason: &str) {
        if std::mem::replace(&mut self.is_well, false) {
            tracing::warn!(target: "vogeler::broker", queue = self.queue.name, reason, "consuming stopped; trying again until it works");
        } else {
            tracing::debug!(target: "vogeler::broker", queue = self.queue.name, reason, "still not consuming");
        }
    }
}
