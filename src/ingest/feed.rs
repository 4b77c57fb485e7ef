//! The feed: brings one partition queue's deliveries to the intake.
//!
//! It stops pulling while results are let go and when the server stops. Invariant: it never ends by itself; whatever
//! ends a consumer, the queue is consumed again.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::CLOSE_TIMEOUT;
use super::intake::Intake;
use crate::backoff::Backoff;
use crate::broker::topology::Queue;
use crate::broker::{Broker, Consumer};

/// First pause before a queue is consumed again; the longest is the broker's `reconnect_max`.
const RETRY_BASE: Duration = Duration::from_millis(200);

/// One partition's way into the server.
#[derive(Debug)]
pub(super) struct Feed {
    pub(super) broker: Arc<dyn Broker>,
    pub(super) queue: Queue,
    pub(super) prefetch: u16,
    pub(super) retry_max: Duration,
    pub(super) intake: Intake,
    pub(super) letting_go: watch::Receiver<bool>,
    pub(super) stop: CancellationToken,
    /// The drain is over: nothing waits any more.
    pub(super) give_up: CancellationToken,
}

/// Why a consumer is not pulled from any more.
enum Ended {
    /// The server stops.
    Stopping,
    /// Results are let go.
    LettingGo,
    /// The broker's side ended it.
    Lost,
}

impl Feed {
    /// Pulls until the server stops. The consumer comes back, to be closed when all is settled.
    pub(super) async fn run(mut self) -> Option<Consumer> {
        let stop = self.stop.clone();
        let mut backoff = Backoff::new(RETRY_BASE, self.retry_max);
        loop {
            let mut consumer = tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                consumer = self.consume(&mut backoff) => consumer,
            };
            match self.pull(&mut consumer).await {
                Ended::Stopping => {
                    consumer.cancel();
                    return Some(consumer);
                }
                Ended::LettingGo => {}
                Ended::Lost => {
                    warn!(target: "vogeler::ingest::feed", queue = self.queue.name, "the consumer ended; consuming again");
                    tokio::time::sleep(backoff.next_random()).await;
                }
            }
            consumer.close(CLOSE_TIMEOUT).await;
        }
    }

    /// A consumer, once results may be pulled.
    async fn consume(&mut self, backoff: &mut Backoff) -> Consumer {
        loop {
            // The sender lives in the intake's router as long as this does, so waiting cannot fail.
            drop(self.letting_go.wait_for(|is| !*is).await);
            match self.broker.consume(&self.queue, self.prefetch).await {
                Ok(consumer) => {
                    info!(target: "vogeler::ingest::feed", queue = self.queue.name, prefetch = self.prefetch, "consuming");
                    return consumer;
                }
                Err(error) => {
                    error!(target: "vogeler::ingest::feed", queue = self.queue.name, %error, "this partition is not consumed");
                    tokio::time::sleep(backoff.next_random()).await;
                }
            }
        }
    }

    async fn pull(&mut self, consumer: &mut Consumer) -> Ended {
        loop {
            let delivery = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Ended::Stopping,
                _ = self.letting_go.wait_for(|is| *is) => return Ended::LettingGo,
                delivery = consumer.next() => delivery,
            };
            let Some(delivery) = delivery else {
                return Ended::Lost;
            };
            tokio::select! {
                () = self.intake.accept(delivery) => {}
                () = self.give_up.cancelled() => return Ended::Stopping,
            }
        }
    }
}
