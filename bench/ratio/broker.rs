//! The broker's side: it prepares backlogs, and measures the broker ceiling with a bare consumer that throws the bodies
//! away.

use std::time::{Duration, Instant};

use futures::StreamExt;
use jiff::Timestamp;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, PublisherConfirm};
use serde_json::value::to_raw_value;
use url::Url;
use vogeler::broker::topology::Queue;
use vogeler::broker::{Broker, QueueDepth, topology};
use vogeler::config::{self, Config};
use vogeler::hash::content_hash;
use vogeler::wire::{Content, Format, NodeName, PluginResult, Seq};

const PATIENCE: Duration = Duration::from_mins(1);

/// A message ready to be published: routing key and body.
pub(crate) type Prepared = (String, Vec<u8>);

/// A node of the bench.
pub(crate) fn node(number: usize) -> NodeName {
    format!("bench{number:06}.example.com").parse().unwrap()
}

/// A result of `node` whose value has about `bytes` bytes and says `content`. Sequences only grow.
pub(crate) fn result(node: &NodeName, bytes: usize, content: u64) -> PluginResult {
    use std::sync::atomic::{AtomicU64, Ordering};
    static LAST: AtomicU64 = AtomicU64::new(0);
    let now = Timestamp::now();
    let clock = Seq::after(Seq(0), now).0;
    LAST.fetch_max(clock, Ordering::Relaxed);
    let seq = Seq(LAST.fetch_add(1, Ordering::Relaxed) + 1);
    let lines: Vec<String> = (0..bytes.div_ceil(50).max(1))
        .map(|n| {
            format!(
                "package-{n:06} {}.{}.{content}-1+deb12u{n:08}",
                n % 9,
                n % 7
            )
        })
        .collect();
    let json = to_raw_value(&lines).unwrap();
    let hash = content_hash(&json, &[]).unwrap();
    PluginResult {
        node: node.clone(),
        plugin: "packages".parse().ok(),
        seq,
        collected_at: now,
        run: None,
        format: Format::Output,
        duration_ms: Some(100),
        content: Content::Value { json, hash },
    }
}

/// The message of a result.
pub(crate) fn prepare(node: &NodeName, bytes: usize, content: u64) -> Prepared {
    (
        topology::result_key(node),
        result(node, bytes, content).encode().unwrap(),
    )
}

/// RabbitMQ, spoken to directly.
pub(crate) struct Rabbit {
    connection: Connection,
    broker: std::sync::Arc<dyn Broker>,
    queues: Vec<String>,
    /// Queues of the same kind for the bare consumers: the server's queues have a consumer already.
    bare: Vec<String>,
}

impl Rabbit {
    /// Connects, and declares what the server declares.
    pub(crate) async fn connect(url: &Url) -> Self {
        let mut config = Config::default();
        config.broker.dsn = url.as_str().parse().unwrap();
        let broker = vogeler::broker::open(&config.broker);
        let queues = topology::server_queues(config.broker.partitions, config.broker.queue_type);
        broker.declare(&queues).await.unwrap();
        let bare = queues
            .iter()
            .filter(|queue| queue.name != topology::DEAD_QUEUE)
            .map(|queue| Queue {
                name: queue.name.replace("results", "bench"),
                bindings: Vec::new(),
                ..queue.clone()
            });
        let bare: Vec<Queue> = bare.collect();
        broker.declare(&bare).await.unwrap();
        let connection = Connection::connect(url.as_str(), ConnectionProperties::default());
        let names = queues.into_iter().map(|queue| queue.name);
        Self {
            connection: connection.await.unwrap(),
            broker,
            queues: names.filter(|name| name != topology::DEAD_QUEUE).collect(),
            bare: bare.into_iter().map(|queue| queue.name).collect(),
        }
    }

    /// A channel with confirms.
    pub(crate) async fn channel(&self) -> Channel {
        let channel = self.connection.create_channel().await.unwrap();
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await
            .unwrap();
        channel
    }

    /// Publishes all, and waits until the broker has them.
    pub(crate) async fn publish(&self, messages: &[Prepared]) {
        let channel = self.channel().await;
        for chunk in messages.chunks(1_000) {
            let mut confirms = Vec::with_capacity(chunk.len());
            for message in chunk {
                confirms.push(send(&channel, message).await);
            }
            confirmed(confirms).await;
        }
        channel.close(200, "done".into()).await.unwrap();
    }

    /// Waits until `count` messages are ready in the partition queues, which nobody consumes.
    pub(crate) async fn wait_for(&self, count: usize) {
        self.wait(&self.queues, count).await;
    }

    /// Waits until every partition queue has a consumer and nothing ready. Deliveries may still be unsettled.
    pub(crate) async fn wait_until_taken(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let depths = self.depths(&self.queues).await;
            if depths
                .iter()
                .all(|depth| depth.consumers > 0 && depth.ready == 0)
            {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "the backlog is not taken: {depths:?}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// How many messages are ready in the partition queues.
    pub(crate) async fn ready(&self) -> u64 {
        let depths = self.depths(&self.queues).await;
        depths.iter().map(|depth| depth.ready).sum()
    }

    async fn depths(&self, queues: &[String]) -> Vec<QueueDepth> {
        let names: Vec<&str> = queues.iter().map(String::as_str).collect();
        let depths = self.broker.depth(&names).await.unwrap();
        depths.into_iter().flatten().collect()
    }

    async fn wait(&self, queues: &[String], count: usize) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let depths = self.depths(queues).await;
            let ready: u64 = depths.iter().map(|depth| depth.ready).sum();
            if ready >= count as u64 {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "the backlog does not get ready: {ready} of {count}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The broker ceiling: drains messages with the server's prefetch and acks in multiples; messages/s.
    pub(crate) async fn ceiling(&self, messages: &[Prepared]) -> f64 {
        let channel = self.channel().await;
        for chunk in messages.chunks(1_000) {
            let mut confirms = Vec::with_capacity(chunk.len());
            for (key, body) in chunk {
                let slot: usize = key.parse().unwrap();
                confirms
                    .push(send_to(&channel, "", &self.bare[slot % self.bare.len()], body).await);
            }
            confirmed(confirms).await;
        }
        channel.close(200, "done".into()).await.unwrap();
        self.wait(&self.bare, messages.len()).await;
        let prefetch = config::Server::default().prefetch;
        let started = Instant::now();
        let left = std::sync::atomic::AtomicUsize::new(messages.len());
        let done = tokio_util::sync::CancellationToken::new();
        let drains = self
            .bare
            .iter()
            .map(|queue| self.drain(queue, prefetch, &left, &done));
        within("the bare consumers", futures::future::join_all(drains)).await;
        messages.len() as f64 / started.elapsed().as_secs_f64()
    }

    /// Deletes the queues of the bare consumers.
    pub(crate) async fn clean_up(&self) {
        let channel = self.channel().await;
        for queue in &self.bare {
            channel
                .queue_delete(queue.as_str().into(), QueueDeleteOptions::default())
                .await
                .unwrap();
        }
    }

    async fn drain(
        &self,
        queue: &str,
        prefetch: u16,
        left: &std::sync::atomic::AtomicUsize,
        done: &tokio_util::sync::CancellationToken,
    ) {
        use std::sync::atomic::Ordering;
        let channel = self.connection.create_channel().await.unwrap();
        channel
            .basic_qos(prefetch, BasicQosOptions::default())
            .await
            .unwrap();
        let options = BasicConsumeOptions::default();
        let consumer =
            channel.basic_consume(queue.into(), "".into(), options, FieldTable::default());
        let mut chunks = consumer.await.unwrap().ready_chunks(usize::from(prefetch));
        while let Some(Some(chunk)) = done.run_until_cancelled(chunks.next()).await {
            let count = chunk.len();
            if let Some(Ok(last)) = chunk.into_iter().next_back() {
                last.acker
                    .ack(BasicAckOptions { multiple: true })
                    .await
                    .unwrap();
            }
            if left.fetch_sub(count, Ordering::Relaxed) == count {
                done.cancel();
            }
        }
        channel.close(200, "done".into()).await.unwrap();
    }
}

/// Does `work`. It takes longer than [`PATIENCE`] only if it hangs: then the bench says where.
async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work)
        .await
        .unwrap_or_else(|_| panic!("{what}: nothing within {PATIENCE:?}"))
}

/// Publishes one result, without waiting for its confirm.
pub(crate) async fn send(channel: &Channel, (key, body): &Prepared) -> PublisherConfirm {
    send_to(channel, topology::Exchange::Results.name(), key, body).await
}

/// Waits until the broker has them all. (It avoids `wait_for_confirms`, which is suspected of a hang, but not proven.)
pub(crate) async fn confirmed(confirms: Vec<PublisherConfirm>) {
    for confirm in confirms {
        assert!(within("a confirm", confirm).await.unwrap().is_ack());
    }
}

async fn send_to(channel: &Channel, exchange: &str, key: &str, body: &[u8]) -> PublisherConfirm {
    let properties = BasicProperties::default()
        .with_delivery_mode(2)
        .with_content_type("application/json".into());
    let options = BasicPublishOptions::default();
    let sent = channel.basic_publish(exchange.into(), key.into(), options, body, properties);
    sent.await.unwrap()
}
