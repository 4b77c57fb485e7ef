//! The client's place at its queue: the client tries until it has the place, keeps it, and takes it again after losing
//! it.
//!
//! Commands come out. The client waits for a broker that is away or refuses it, and for another client of its name to
//! go. If it ended instead, its service manager would start it again every few seconds, with a login each time.
//! Invariant: commands come only while this client alone consumes the queue, and while its bindings are those it
//! should have.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio::time::Instant;

use super::bindings::{self, Bindings};
use crate::backoff::Backoff;
use crate::broker::topology::{Binding, Queue};
use crate::broker::{Broker, BrokerError, Consumer, Delivery};
use crate::telemetry::record_listening;

/// Commands that wait or run at once: enough for an operator. It also bounds how many a stop gives back.
const COMMANDS_MAX: u16 = 16;
/// Longest pause between two tries. A broker notices a dead client after two heartbeats (20 s); its successor must
/// not wait much longer than that.
const PAUSE_MAX: Duration = Duration::from_secs(15);

/// Longest time until a client binds its queue again. This is needed because an exchange that was deleted comes back
/// without its bindings, and nothing announces it. A hundred thousand clients together bind 170 times a second, with
/// about ten requests each.
const BIND_AGAIN_MAX: Duration = Duration::from_mins(15);

/// Longest wait for an unused consumer to end.
const CLOSE_MAX: Duration = Duration::from_secs(5);

/// Whether this client hears commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// Not yet, or no longer: the client is trying.
    Open,
    /// Yes.
    Ours,
    /// Another client of this name does, or did when we came.
    Taken {
        /// What to do about it.
        reason: String,
    },
    /// Nobody does, as far as we know: taking the place failed.
    Failed {
        /// Why this client cannot.
        reason: String,
    },
}

impl Place {
    /// Whether results may be published: not while another client may publish those of the same node.
    pub(super) fn may_publish(&self) -> bool {
        matches!(self, Self::Ours | Self::Failed { .. })
    }

    fn after(error: &BrokerError) -> Self {
        let reason = error.to_string();
        match error {
            BrokerError::InUse { .. } => Self::Taken { reason },
            _ => Self::Failed { reason },
        }
    }
}

/// Takes the place at the queue.
#[derive(Debug)]
pub(super) struct Taker {
    pub(super) broker: Arc<dyn Broker>,
    pub(super) queue: Queue,
    pub(super) bindings: Bindings,
    /// Updated at every change.
    pub(super) place: watch::Sender<Place>,
}

impl Taker {
    /// Tries until it works; fails only once the broker was closed.
    async fn take(self: Arc<Self>) -> Result<Consumer, BrokerError> {
        let mut backoff = Backoff::new(PAUSE_MAX / 30, PAUSE_MAX);
        let mut told = None;
        loop {
            let error = match self.try_once().await {
                Ok(consumer) => {
                    self.tell(Place::Ours);
                    tracing::info!(target: "vogeler::client", queue = self.queue.name, "client listens");
                    return Ok(consumer);
                }
                Err(BrokerError::Closed) => return Err(BrokerError::Closed),
                Err(error) => error,
            };
            self.tell(Place::after(&error));
            let kind = Some(std::mem::discriminant(&error));
            if told != kind {
                told = kind;
                tracing::warn!(target: "vogeler::client", %error, "commands are not heard; trying again until they are");
            }
            tokio::time::sleep(backoff.next_random()).await;
        }
    }

    fn tell(&self, place: Place) {
        record_listening(place == Place::Ours);
        self.place.send_replace(place);
    }

    /// Restores missing bindings of the queue.
    async fn bind_again(&self) {
        if let Err(error) = self.broker.declare(std::slice::from_ref(&self.queue)).await {
            tracing::debug!(target: "vogeler::client", %error, "the queue of commands cannot be bound again now");
        }
    }

    async fn try_once(&self) -> Result<Consumer, BrokerError> {
        // Consuming waits for a broker that is away; declaring does not.
        let unbound = Queue {
            bindings: Vec::new(),
            ..self.queue.clone()
        };
        self.broker.declare(std::slice::from_ref(&unbound)).await?;
        let left = self.on_disk(Bindings::begin).await;
        let consumer = self.broker.consume(&self.queue, COMMANDS_MAX).await?;
        if !left.is_empty()
            && let Err(error) = self.unbind(&left).await
        {
            // An open consumer would block the next try.
            consumer.close(CLOSE_MAX).await;
            return Err(error);
        }
        self.on_disk(|bindings| {
            bindings.done();
            Vec::new()
        })
        .await;
        Ok(consumer)
    }

    /// Removes the bindings of groups that this client has left.
    async fn unbind(&self, left: &[Binding]) -> Result<(), BrokerError> {
        self.broker.unbind(&self.queue.name, left).await?;
        let keys: Vec<_> = left.iter().map(|binding| binding.key.as_str()).collect();
        tracing::info!(target: "vogeler::client", queue = self.queue.name, keys = keys.join(" "), "left: commands of these are not heard any more");
        Ok(())
    }

    /// Removes the binding behind `key`: a command came by it, and it is not one of ours.
    pub(super) async fn unbind_stray(self: Arc<Self>, key: String) {
        if let Err(error) = self.unbind(&bindings::commands(vec![key])).await {
            tracing::warn!(target: "vogeler::client", %error, "a binding of a group that this node is not in stays");
        }
    }

    async fn on_disk(
        &self,
        f: impl FnOnce(&Bindings) -> Vec<Binding> + Send + 'static,
    ) -> Vec<Binding> {
        let bindings = self.bindings.clone();
        let done = tokio::task::spawn_blocking(move || f(&bindings)).await;
        done.unwrap_or_default()
    }
}

/// The stream of commands.
pub(super) struct Commands {
    taker: Arc<Taker>,
    state: State,
    bind_again_at: Instant,
}

enum State {
    Taking(BoxFuture<'static, Result<Consumer, BrokerError>>),
    Listening(Consumer),
}

impl Commands {
    pub(super) fn new(taker: Taker) -> Self {
        let taker = Arc::new(taker);
        Self {
            state: State::Taking(Box::pin(Arc::clone(&taker).take())),
            taker,
            bind_again_at: bind_again_at(),
        }
    }

    /// The next command. Safe to drop while it waits. An error is the end: the broker was closed.
    pub(super) async fn next(&mut self) -> Result<Delivery, BrokerError> {
        loop {
            self.state = match &mut self.state {
                State::Taking(taking) => State::Listening(taking.await?),
                State::Listening(consumer) => tokio::select! {
                    delivery = consumer.next() => match delivery {
                        Some(delivery) => return Ok(delivery),
                        None => self.lost(),
                    },
                    () = tokio::time::sleep_until(self.bind_again_at) => {
                        self.bind_again_at = bind_again_at();
                        self.taker.bind_again().await;
                        continue;
                    }
                },
            };
        }
    }

    /// The place is lost: another client took it, or the queue is gone.
    fn lost(&self) -> State {
        self.taker.tell(Place::Open);
        State::Taking(Box::pin(Arc::clone(&self.taker).take()))
    }

    /// Whether another client of this name works.
    pub(super) fn is_taken(&self) -> bool {
        matches!(&*self.taker.place.borrow(), Place::Taken { .. })
    }

    /// The taker, for other work on the queue.
    pub(super) fn taker(&self) -> Arc<Taker> {
        Arc::clone(&self.taker)
    }

    /// Takes no more commands. Those already taken can still be settled.
    pub(super) fn cancel(&mut self) {
        if let State::Listening(consumer) = &mut self.state {
            consumer.cancel();
        }
    }

    /// Waits until the broker has the last acknowledgements. Returns whether it does.
    pub(super) async fn close(self, deadline: Duration) -> bool {
        match self.state {
            State::Listening(consumer) => consumer.close(deadline).await,
            State::Taking(_) => true,
        }
    }
}

/// When to bind again. It is random, so clients that started together do not all bind at once.
fn bind_again_at() -> Instant {
    Instant::now() + BIND_AGAIN_MAX.mul_f64(rand::random_range(0.3..1.0))
}

impl std::fmt::Debug for Commands {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Commands")
            .field("taker", &self.taker)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::memory::MemoryBroker;
    use crate::broker::topology::{self, Exchange};
    use crate::broker::{Message, Properties};

    /// Goal: a binding that was removed, or lost with its exchange, is back within a quarter of an hour.
    #[tokio::test(start_paused = true)]
    async fn a_lost_binding_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let broker = Arc::new(MemoryBroker::new());
        let queue = topology::node_queue(&"n1".parse().unwrap(), &[]);
        let taker = Taker {
            broker: broker.clone(),
            bindings: Bindings::new(folder.path(), &queue),
            queue: queue.clone(),
            place: watch::Sender::new(Place::Open),
        };
        let mut commands = Commands::new(taker);
        let command = || Message {
            exchange: Exchange::Commands,
            routing_key: topology::broadcast_key(),
            body: "{}".into(),
            properties: Properties::default(),
            persistent: true,
            mandatory: true,
        };
        let waited = tokio::time::timeout(Duration::from_secs(1), commands.next()).await;
        assert!(waited.is_err());
        broker.publish(command()).await.unwrap();
        commands.next().await.unwrap().settler.ack();

        broker.unbind(&queue.name, &queue.bindings).await.unwrap();
        broker.publish(command()).await.unwrap_err();
        let waited = tokio::time::timeout(BIND_AGAIN_MAX, commands.next()).await;
        assert!(waited.is_err());
        broker.publish(command()).await.unwrap();
        commands.next().await.unwrap().settler.ack();
        commands.close(CLOSE_MAX).await;
    }
}
