//! The brokers: one contract, held by memory and by a real RabbitMQ, and what only one of them can show.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::wildcard_imports,
    reason = "a test that cannot go on fails"
)]

mod amqp;
mod contract;
mod memory;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use vogeler::broker::amqp::AmqpBroker;
use vogeler::broker::memory::MemoryBroker;
use vogeler::broker::topology::{Binding, Consumers, Exchange, Lifetime, Queue, QueueType};
use vogeler::broker::{Broker, Consumer, Delivery, Message, Properties};
use vogeler::config;

use crate::harness::rabbit::Rabbit;

/// Longest wait for something that should happen.
const SOON: Duration = Duration::from_secs(20);
/// How long nothing has to come before we believe that nothing comes.
const QUIET: Duration = Duration::from_millis(300);

/// A broker under test, and names that no other test uses.
struct Bench {
    broker: Arc<dyn Broker>,
    /// A second connection to the same broker.
    other: Arc<dyn Broker>,
    name: String,
}

impl Bench {
    fn memory() -> Self {
        let broker = MemoryBroker::new();
        Self::new(Arc::new(broker.clone()), Arc::new(broker))
    }

    fn rabbit() -> Self {
        static VHOST: OnceLock<url::Url> = OnceLock::new();
        let dsn = VHOST.get_or_init(|| Rabbit::shared().fresh_vhost());
        Self::new(Arc::new(amqp(dsn)), Arc::new(amqp(dsn)))
    }

    fn new(broker: Arc<dyn Broker>, other: Arc<dyn Broker>) -> Self {
        let name = format!("test.{}", uuid::Uuid::now_v7().simple());
        Self {
            broker,
            other,
            name,
        }
    }

    /// A durable queue bound to results with this bench's key.
    fn queue(&self) -> Queue {
        Queue {
            name: self.name.clone(),
            lifetime: Lifetime::Durable,
            queue_type: QueueType::Quorum,
            consumers: Consumers::Shared,
            bindings: vec![Binding {
                exchange: Exchange::Results,
                key: self.name.clone(),
            }],
        }
    }

    /// A message for [`queue`](Self::queue).
    fn message(&self, body: &str) -> Message {
        message(Exchange::Results, &self.name, body)
    }

    async fn publish(&self, bodies: &[&str]) {
        for body in bodies {
            self.broker.publish(self.message(body)).await.unwrap();
        }
    }

    async fn ready(&self, queue: &Queue) -> Option<u64> {
        let depth = self.other.depth(&[&queue.name]).await.unwrap();
        depth[0].map(|depth| depth.ready)
    }

    /// Waits until the queue holds `count` ready messages (none: until it does not exist).
    async fn until_ready(&self, queue: &Queue, count: Option<u64>) {
        let mut last = None;
        let reached = tokio::time::timeout(SOON, async {
            loop {
                last = self.ready(queue).await;
                if last == count {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        let reached = reached.await.is_ok();
        assert!(reached, "{last:?} ready, not {count:?}");
    }

    async fn close(self) {
        self.broker.close().await;
        self.other.close().await;
    }
}

fn message(exchange: Exchange, key: &str, body: &str) -> Message {
    Message {
        exchange,
        routing_key: key.to_owned(),
        body: Bytes::from(body.to_owned()),
        properties: Properties::default(),
        persistent: true,
        mandatory: true,
    }
}

fn headers(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    owned.collect()
}

/// RabbitMQ at `dsn`, impatient enough for tests.
fn amqp(dsn: &url::Url) -> AmqpBroker {
    let config = config::Broker {
        dsn: config::BrokerDsn::Memory,
        partitions: 4,
        queue_type: QueueType::Quorum,
        heartbeat: Duration::from_secs(5),
        connect_timeout: Duration::from_secs(10),
        publish_timeout: Duration::from_secs(10),
        reconnect_max: Duration::from_secs(1),
        refused_pause_max: Duration::from_mins(5),
    };
    AmqpBroker::new(dsn, &config)
}

async fn next(consumer: &mut Consumer) -> Delivery {
    let next = tokio::time::timeout(SOON, consumer.next()).await;
    next.expect("nothing was delivered")
        .expect("the consumer ended")
}

async fn take(consumer: &mut Consumer, count: usize) -> Vec<Delivery> {
    let mut taken = Vec::new();
    for _ in 0..count {
        taken.push(next(consumer).await);
    }
    taken
}

/// Asserts that nothing is delivered for a while.
async fn quiet(consumer: &mut Consumer) {
    let next = tokio::time::timeout(QUIET, consumer.next()).await;
    assert!(next.is_err(), "delivered: {next:?}");
}

fn text(delivery: &Delivery) -> String {
    String::from_utf8(delivery.body.to_vec()).unwrap()
}

fn texts(deliveries: &[Delivery]) -> Vec<String> {
    deliveries.iter().map(text).collect()
}

/// Takes `count` deliveries, acks them, and gives their bodies.
async fn take_texts(consumer: &mut Consumer, count: usize) -> Vec<String> {
    let taken = take(consumer, count).await;
    let bodies = texts(&taken);
    ack_all(taken);
    bodies
}

fn ack_all(deliveries: Vec<Delivery>) {
    for delivery in deliveries {
        delivery.settler.ack();
    }
}
