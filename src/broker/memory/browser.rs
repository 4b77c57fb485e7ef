//! Going through a queue in memory: a seat that holds whatever it takes, until it is left.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{ADDRESS, Shared};
use crate::broker::topology::Queue;
use crate::broker::{BrokerError, Browsed, Place, QueueBrowser, Settlement};

#[derive(Debug)]
pub(super) struct MemoryBrowser {
    shared: Arc<Shared>,
    queue: String,
    seat: u64,
    wake: Arc<Notify>,
    session: CancellationToken,
}

impl MemoryBrowser {
    pub(super) fn open(shared: Arc<Shared>, queue: &Queue) -> Result<Self, BrokerError> {
        let (seat, wake) = shared.sit(queue, usize::MAX)?;
        let session = shared.session(&queue.name, seat).unwrap_or_default();
        Ok(Self {
            shared,
            queue: queue.name.clone(),
            seat,
            wake,
            session,
        })
    }

    /// A session that was cut is a connection that broke: what was held is in the queue again.
    fn check(&self) -> Result<(), BrokerError> {
        let is_here = self.shared.session(&self.queue, self.seat).is_some();
        if self.session.is_cancelled() || !is_here {
            return Err(BrokerError::Away {
                broker: ADDRESS.to_owned(),
                reason: "the session was cut".to_owned(),
            });
        }
        self.shared.check_link()
    }
}

#[async_trait]
impl QueueBrowser for MemoryBrowser {
    async fn ready(&mut self) -> Result<u64, BrokerError> {
        self.shared.check_link()?;
        Ok(self.shared.ready(&self.queue))
    }

    async fn next(&mut self, patience: Duration) -> Result<Option<Browsed>, BrokerError> {
        // A real broker is another process, so waiting for it lets other tasks run; this does the same.
        tokio::task::yield_now().await;
        let take = async {
            loop {
                self.check()?;
                if let Some((tag, stored)) = self.shared.take(&self.queue, self.seat, &self.session)
                {
                    return Ok(Browsed {
                        body: stored.message.body.clone(),
                        properties: stored.message.properties.clone(),
                        place: Place { channel: 0, tag },
                    });
                }
                tokio::select! {
                    () = self.wake.notified() => {}
                    () = self.session.cancelled() => {}
                }
            }
        };
        match tokio::time::timeout(patience, take).await {
            Ok(taken) => taken.map(Some),
            Err(_) => Ok(None),
        }
    }

    fn is_share_full(&self) -> bool {
        false
    }

    fn is_full(&self) -> bool {
        false
    }

    async fn take_out(&mut self, places: Vec<Place>) -> Result<(), BrokerError> {
        self.check()?;
        for place in places {
            self.shared
                .settle(&self.queue, self.seat, place.tag, Settlement::Ack);
        }
        Ok(())
    }

    async fn give_back(&mut self) -> Result<(), BrokerError> {
        self.shared.leave(&self.queue, self.seat);
        Ok(())
    }

    async fn close(self: Box<Self>) {}
}

impl Drop for MemoryBrowser {
    fn drop(&mut self) {
        self.shared.leave(&self.queue, self.seat);
    }
}
