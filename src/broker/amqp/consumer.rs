//! A consumer that survives outages: one session after the other, with back-off between them.
//!
//! Deliveries flow through one bounded queue for the consumer's life; a session that ends is replaced until nobody
//! takes deliveries any more, or another exclusive consumer has come first. Each change for the worse or the better is
//! logged once. Where sessions break again and again with nothing settled, the queue gets a connection of its own, and is
//! told to be stuck.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::connection::Connector;
use super::session::{End, Session};
use super::streak::{Progress, Streak};
use crate::backoff::Backoff;
use crate::broker::topology::{Lifetime, Queue};
use crate::broker::{BrokerError, Consumer, Delivery};

/// Deliveries that wait in front of the consumer; the prefetch bounds all that are unsettled. Few, since those that
/// wait when a session ends are handed out once more.
const DELIVERIES_WAITING_MAX: usize = 64;
/// The first pause between two sessions is this part of the longest.
const FIRST_PAUSE_PART: u32 = 100;

/// Consumes `queue`. The first session is tried here, so that what cannot succeed by waiting fails at once.
pub(super) async fn consume(
    connector: Arc<Connector>,
    queue: Queue,
    prefetch: u16,
    closed: CancellationToken,
) -> Result<Consumer, BrokerError> {
    // AMQP takes a prefetch of 0 for no limit.
    let prefetch = prefetch.max(1);
    let first = match Session::open(&connector, &queue, prefetch).await {
        Ok(session) => Some(session),
        Err(error) if error.is_retryable() && !is_taken(&error) => None,
        Err(error) => return Err(error),
    };
    let (out, deliveries) = mpsc::channel(usize::from(prefetch).min(DELIVERIES_WAITING_MAX));
    let supervisor = Supervisor {
        connector,
        queue,
        prefetch,
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
    Ok(Consumer::new(
        deliveries,
        CancellationToken::new(),
        supervisor,
    ))
}

fn is_taken(error: &BrokerError) -> bool {
    matches!(error, BrokerError::InUse { .. })
}

struct Supervisor {
    connector: Arc<Connector>,
    queue: Queue,
    prefetch: u16,
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
            let trouble = match first.take() {
                Some(session) => self.serve(session).await,
                None => match self.open().await {
                    Ok(session) => self.serve(session).await,
                    // Whoever consumes decides whether to wait for their place.
                    Err(error) if is_taken(&error) => {
                        tracing::warn!(target: "vogeler::broker", queue = self.queue.name, %error, "another one consumes now; this consumer ends");
                        break;
                    }
                    Err(error) => Some(error.to_string()),
                },
            };
            let Some(reason) = trouble else {
                break;
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
        // Deliveries may come, and break it, before it is all set up.
        let opened = Session::on(channel, connector, &self.queue, self.prefetch).await;
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

    /// Runs one session; says why it was lost, or nothing once it is drained.
    async fn serve(&mut self, session: Session) -> Option<String> {
        if !std::mem::replace(&mut self.is_well, true) {
            tracing::info!(target: "vogeler::broker", queue = self.queue.name, "consuming again");
        }
        let progress = Progress::default();
        let mut run = Box::pin(session.run(&self.out, &progress));
        let broke = tokio::select! {
            end = &mut run => Err(end),
            () = progress.holds() => Ok(()),
        };
        let end = match broke {
            Ok(()) => {
                self.streak.end();
                self.set_stuck(None);
                run.await
            }
            Err(end) => {
                drop(run);
                if let End::Lost(reason) = &end {
                    self.note_break(reason);
                }
                end
            }
        };
        match end {
            End::Drained => None,
            End::Lost(reason) => Some(reason),
        }
    }

    /// A session ended before it held.
    fn note_break(&mut self, reason: &str) {
        if let Some(breaks) = self.streak.broke() {
            self.set_stuck(Some(format!("its sessions broke {breaks} times in a row with nothing settled, the last time with {reason:?}")));
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
