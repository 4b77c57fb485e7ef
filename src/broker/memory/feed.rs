//! What runs for each consumer: takes messages from the queue, passes them on, settles them.
//!
//! Invariant: however it ends (drained, aborted, panicked), its seat is left and what it held goes back.

use std::sync::Arc;

use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::Shared;
use crate::broker::topology::Queue;
use crate::broker::{Delivery, Settlement, Settler, next_session};

/// One consumer's side at the broker.
#[derive(Debug)]
pub(super) struct Feed {
    pub(super) shared: Arc<Shared>,
    pub(super) queue: Queue,
    pub(super) seat: u64,
    pub(super) prefetch: usize,
    pub(super) wake: Arc<Notify>,
    pub(super) out: mpsc::Sender<Delivery>,
}

impl Feed {
    /// Serves until nobody takes deliveries any more and all that were taken are settled.
    pub(super) async fn run(mut self) {
        let mut is_stopping = false;
        while !(is_stopping && self.shared.is_settled(&self.queue.name, self.seat)) {
            match self.shared.session(&self.queue.name, self.seat) {
                Some(session) => self.serve(session, &mut is_stopping).await,
                // The queue was deleted, and with it what was held.
                None if is_stopping => return,
                None => match self.shared.sit(&self.queue, self.prefetch) {
                    Ok((seat, wake)) => (self.seat, self.wake) = (seat, wake),
                    Err(error) => {
                        tracing::warn!(target: "vogeler::broker", %error, "the consumer ends: its queue was replaced");
                        return;
                    }
                },
            }
        }
    }

    /// One session, until it is cut or all is done.
    async fn serve(&self, session: CancellationToken, is_stopping: &mut bool) {
        let (settle, mut settlements) = mpsc::channel(self.prefetch);
        let mut batch = Vec::new();
        let mut waiting: Option<Delivery> = None;
        let number = next_session();
        while !(*is_stopping && self.shared.is_settled(&self.queue.name, self.seat)) {
            tokio::select! {
                biased;
                () = session.cancelled() => return,
                () = self.out.closed(), if !*is_stopping => {
                    *is_stopping = true;
                    self.shared.stop(&self.queue.name, self.seat);
                    // Dropping it gives it back.
                    waiting = None;
                }
                _ = settlements.recv_many(&mut batch, self.prefetch) => self.settle(&mut batch),
                room = self.out.reserve(), if waiting.is_some() => {
                    if let (Ok(room), Some(delivery)) = (room, waiting.take()) {
                        room.send(delivery);
                    }
                }
                (tag, stored) = self.next(&session), if waiting.is_none() && !*is_stopping => {
                    waiting = Some(Delivery {
                        body: stored.message.body.clone(),
                        properties: stored.message.properties.clone(),
                        exchange: stored.message.exchange.name().to_owned(),
                        routing_key: stored.message.routing_key.clone(),
                        redelivered: stored.redelivered,
                        session: number,
                        settler: Settler::new(tag, settle.clone()),
                    });
                }
            }
        }
    }

    /// The next message. Takes it in the same poll that returns it, so it is safe to drop while it waits.
    async fn next(&self, session: &CancellationToken) -> (u64, super::queue::Stored) {
        loop {
            let taken = self.shared.take(&self.queue.name, self.seat, session);
            if let Some(taken) = taken {
                return taken;
            }
            self.wake.notified().await;
        }
    }

    fn settle(&self, batch: &mut Vec<(u64, Settlement)>) {
        for (tag, settlement) in batch.drain(..) {
            self.shared
                .settle(&self.queue.name, self.seat, tag, settlement);
        }
        // The prefetch may have room again.
        self.wake.notify_one();
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.shared.leave(&self.queue.name, self.seat);
    }
}
