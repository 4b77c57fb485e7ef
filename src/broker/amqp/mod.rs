//! RabbitMQ, over AMQP 0-9-1.
//!
//! ```text
//! publish ──▶ publisher ──▶ in_flight ──▶ connection (publish) ──▶ transport ──▶ RabbitMQ
//! consumer ◀── session ◀──────────────── connection (consume) ◀── transport, sieve ◀── RabbitMQ
//!    └─ settlements ──▶ ack
//! ```
//!
//! Connections are made on demand and replaced when they break; consumers do that on their own.
//! Invariant: a delivery is acknowledged through the channel it came on or not at all.

pub(crate) mod about;
mod ack;
mod browser;
mod connection;
mod consumer;
pub(crate) mod content_header;
mod declare;
mod in_flight;
mod links;
mod logins;
pub(crate) mod properties;
mod publisher;
mod session;
pub(crate) mod sieve;
mod sizes;
mod streak;
mod transport;
mod trouble;
mod window;

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use url::Url;

use self::browser::AmqpBrowser;
use self::connection::{Connector, Target};
use self::links::{Links, Role};
use self::publisher::Publisher;
use self::window::Window;
use super::topology::{Binding, Queue};
use super::{Broker, BrokerError, Consumer, Link, Message, Missing, QueueBrowser, QueueDepth};

/// A RabbitMQ broker or cluster.
#[derive(Debug)]
pub struct AmqpBroker {
    target: Arc<Target>,
    links: Arc<Links>,
    consume: Arc<Connector>,
    publish: Arc<Connector>,
    publisher: Publisher,
    closed: CancellationToken,
}

impl AmqpBroker {
    /// The broker at `url` (`amqp://` or `amqps://`), with the bounds of `config`. Nothing is connected yet.
    pub fn new(url: &Url, config: &crate::config::Broker) -> Self {
        let (target, links) = (Arc::new(Target::new(url, config)), Arc::new(Links::new()));
        let closed = CancellationToken::new();
        let connector = |role| {
            let (target, links) = (Arc::clone(&target), Arc::clone(&links));
            Arc::new(Connector::new(target, role, links, closed.clone()))
        };
        let (consume, publish) = (connector(Role::Consume), connector(Role::Publish));
        Self {
            publisher: Publisher::new(Arc::clone(&publish), closed.clone()),
            target,
            links,
            consume,
            publish,
            closed,
        }
    }
}

impl AmqpBroker {
    async fn consume_through(
        &self,
        queue: &Queue,
        window: Window,
    ) -> Result<Consumer, BrokerError> {
        let connector = Arc::clone(&self.consume);
        consumer::consume(connector, queue.clone(), window, self.closed.clone()).await
    }
}

#[async_trait]
impl Broker for AmqpBroker {
    async fn declare(&self, queues: &[Queue]) -> Result<(), BrokerError> {
        // An exclusive queue belongs to the connection that declared it: the one that consumes.
        declare::declare(&self.consume, queues).await
    }

    async fn unbind(&self, queue: &str, bindings: &[Binding]) -> Result<(), BrokerError> {
        declare::unbind(&self.consume, queue, bindings).await
    }

    async fn publish(&self, message: Message) -> Result<(), BrokerError> {
        self.publisher.publish(message).await
    }

    async fn consume(&self, queue: &Queue, prefetch: u16) -> Result<Consumer, BrokerError> {
        self.consume_through(queue, Window::new(prefetch, None))
            .await
    }

    async fn consume_bounded(
        &self,
        queue: &Queue,
        prefetch_max: u16,
        bytes_max: usize,
    ) -> Result<Consumer, BrokerError> {
        let window = Window::new(prefetch_max, Some(bytes_max));
        self.consume_through(queue, window).await
    }

    async fn browse(
        &self,
        queue: &Queue,
        turn: &Queue,
    ) -> Result<Box<dyn QueueBrowser>, BrokerError> {
        let browser = AmqpBrowser::open(Arc::clone(&self.target), queue, turn).await?;
        Ok(Box::new(browser))
    }

    async fn depth(&self, queues: &[&str]) -> Result<Vec<Option<QueueDepth>>, BrokerError> {
        declare::depths(&self.consume, queues).await
    }

    async fn missing(&self, queues: &[&str]) -> Result<Vec<Missing>, BrokerError> {
        declare::missing(&self.consume, queues).await
    }

    fn link(&self) -> watch::Receiver<Link> {
        self.links.subscribe()
    }

    async fn about(&self) -> Result<String, BrokerError> {
        about::about(&self.target)
            .await
            .map_err(|trouble| trouble.into_error(&self.target.address, ""))
    }

    async fn close(&self) {
        self.closed.cancel();
        tokio::join!(self.consume.close(), self.publish.close());
    }
}
