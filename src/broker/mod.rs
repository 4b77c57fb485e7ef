//! The broker: what carries messages. The contract, and the types that cross it.
//!
//! Two brokers keep it: [`amqp`] (RabbitMQ) and [`memory`] (one process). Both handle connections, re-declaration
//! and redelivery on their own: a consumer sees deliveries and nothing else. Invariant: a delivery is
//! acknowledged only through its own [`Settler`], and a settler dropped unsettled gives the delivery back.

pub mod amqp;
mod browse;
pub mod left_out;
pub mod memory;
pub mod setup;
pub mod topology;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use browse::{Browsed, Place, QueueBrowser};
use topology::{Binding, Exchange, Queue};

/// A broker. Every call is bounded in time by the broker's own settings; none retries for ever, except that a
/// [`Consumer`] re-connects until it is cancelled.
#[async_trait]
pub trait Broker: fmt::Debug + Send + Sync {
    /// Declares all exchanges, and `queues` with their bindings. Idempotent. If a queue exists with other
    /// arguments, it fails with [`BrokerError::Mismatch`] and changes nothing.
    async fn declare(&self, queues: &[Queue]) -> Result<(), BrokerError>;

    /// Removes from `queue` those of `bindings` that it has. Idempotent.
    async fn unbind(&self, queue: &str, bindings: &[Binding]) -> Result<(), BrokerError>;

    /// Publishes one message and waits until the broker has it safe. `Ok` means: confirmed, and (when
    /// `mandatory`) in at least one queue. Calls run concurrently on one channel, so many awaited together
    /// share round trips. After a `Nack` the message is sent again, within the publish timeout. A message larger
    /// than the broker takes fails with [`BrokerError::TooLarge`]; the others on the channel do not.
    async fn publish(&self, message: Message) -> Result<(), BrokerError>;

    /// Declares `queue` with its bindings and consumes it, with at most `prefetch` deliveries unsettled. The
    /// consumer survives outages: it re-connects with back-off, declares again and goes on. Unsettled deliveries
    /// then come again, marked redelivered, and settling the old ones does nothing.
    /// Fails at once where waiting cannot help (bad credentials, mismatched queue), and where an exclusive consumer
    /// has the queue; where the broker is merely away it keeps trying. An exclusive consumer ends if it finds
    /// another one in its place after an outage. A refused consumer adds no bindings.
    async fn consume(&self, queue: &Queue, prefetch: u16) -> Result<Consumer, BrokerError>;

    /// Opens a browser of `queue`. The browser holds `turn`, an exclusive queue, as long as it lives: whoever else wants
    /// to browse meanwhile gets [`BrokerError::Locked`].
    async fn browse(
        &self,
        queue: &Queue,
        turn: &Queue,
    ) -> Result<Box<dyn QueueBrowser>, BrokerError>;

    /// Like [`consume`](Self::consume), but bounded by bytes: it allows as many unsettled deliveries as should fit
    /// `bytes_max`, judged by the sizes of earlier ones, and at most `prefetch_max`. When more than `bytes_max` bytes wait
    /// in front of the consumer, unsettled deliveries go back; those already taken may then come a second time. A broker
    /// that has the messages in memory anyway need not bound them here.
    async fn consume_bounded(
        &self,
        queue: &Queue,
        prefetch_max: u16,
        bytes_max: usize,
    ) -> Result<Consumer, BrokerError> {
        let _ = bytes_max;
        self.consume(queue, prefetch_max).await
    }

    /// Depths of the named queues, in the order of `queues`; none for a queue that does not exist.
    async fn depth(&self, queues: &[&str]) -> Result<Vec<Option<QueueDepth>>, BrokerError>;

    /// Which exchanges, and which of the named queues, do not exist. Changes nothing.
    async fn missing(&self, queues: &[&str]) -> Result<Vec<Missing>, BrokerError>;

    /// Whether the broker can be used now; changes are sent once per change.
    fn link(&self) -> watch::Receiver<Link>;

    /// The broker's own name and version, for `admin status`.
    async fn about(&self) -> Result<String, BrokerError>;

    /// Ends all connections. Consumers must be closed before; what they still hold is redelivered.
    async fn close(&self);
}

/// Whether a connection stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// Not tried yet.
    Unknown,
    /// Usable.
    Up,
    /// Away, and why. Someone is trying to get it back.
    Down {
        /// The last error, without credentials.
        reason: String,
    },
}

/// A message to publish.
#[derive(Debug, Clone)]
pub struct Message {
    /// Where to.
    pub exchange: Exchange,
    /// Which queues, by the exchange's bindings.
    pub routing_key: String,
    /// The payload.
    pub body: Bytes,
    /// What travels beside it.
    pub properties: Properties,
    /// Whether it must survive a restart of the broker.
    pub persistent: bool,
    /// Whether a message that no queue takes is an error ([`BrokerError::Unroutable`]).
    pub mandatory: bool,
}

/// What travels beside a message's body.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Properties {
    /// MIME type; ours is `application/json`.
    pub content_type: Option<String>,
    /// `zstd`, or none.
    pub content_encoding: Option<String>,
    /// Identity of the message, for people who trace it.
    pub message_id: Option<String>,
    /// How long it may wait in a queue; then the broker drops it.
    pub expiration: Option<Duration>,
    /// Text headers. Others are read as text where they can be, and otherwise left out.
    pub headers: BTreeMap<String, String>,
}

impl Properties {
    /// Memory that they take, in bytes: a stranger's headers may be larger than the message.
    pub fn bytes(&self) -> usize {
        let headers = self.headers.iter();
        headers.map(|(name, text)| name.len() + text.len()).sum()
    }
}

/// One message received, and the duty to settle it.
#[derive(Debug)]
pub struct Delivery {
    /// The payload.
    pub body: Bytes,
    /// What travelled beside it.
    pub properties: Properties,
    /// The exchange's name it came through.
    pub exchange: String,
    /// The routing key it came with.
    pub routing_key: String,
    /// Whether the broker has delivered it before.
    pub redelivered: bool,
    /// The subscription that brought it: a number from [`next_session`], unique in this process, taken each time a
    /// queue is consumed anew. While it stays the same, nobody else consumed this single active queue in between.
    pub session: u64,
    /// Settles it, once.
    pub settler: Settler,
}

impl Delivery {
    /// Memory that it takes, in bytes: the payload and the headers.
    pub fn bytes(&self) -> usize {
        self.body.len() + self.properties.bytes()
    }
}

/// A number for a new subscription, see [`Delivery::session`].
pub fn next_session() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// What a settler tells its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    /// Done: the broker forgets it.
    Ack,
    /// Give it back: the broker delivers it again.
    Requeue,
}

/// Settles one delivery, exactly once. Dropped unsettled, it gives the delivery back.
///
/// It speaks only to the session (channel) that the delivery came on. When that session is gone the broker
/// redelivers by itself, and settling does nothing. The session's queue of settlements has room for the prefetch,
/// which also bounds the unsettled deliveries, so settling never waits and never fails for lack of room.
#[must_use]
#[derive(Debug)]
pub struct Settler {
    tag: u64,
    session: Option<mpsc::Sender<(u64, Settlement)>>,
}

impl Settler {
    /// A settler for delivery `tag` of a session that reads `session`, whose capacity is the session's prefetch.
    pub fn new(tag: u64, session: mpsc::Sender<(u64, Settlement)>) -> Self {
        Self {
            tag,
            session: Some(session),
        }
    }

    /// Tells the broker that the delivery is done.
    pub fn ack(mut self) {
        self.settle(Settlement::Ack);
    }

    /// Gives the delivery back to the broker.
    pub fn requeue(mut self) {
        self.settle(Settlement::Requeue);
    }

    /// Whether the session is gone: the broker has the delivery again, and settling does nothing.
    pub fn is_void(&self) -> bool {
        self.session.as_ref().is_none_or(mpsc::Sender::is_closed)
    }

    fn settle(&mut self, settlement: Settlement) {
        let Some(session) = self.session.take() else {
            return;
        };
        match session.try_send((self.tag, settlement)) {
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                tracing::error!(target: "vogeler::broker", tag = self.tag, "more settlements than prefetch: a bug; the delivery comes again when its channel closes");
            }
        }
    }
}

impl Drop for Settler {
    fn drop(&mut self) {
        self.settle(Settlement::Requeue);
    }
}

/// A stream of deliveries that survives outages, made by [`Broker::consume`].
///
/// Life: [`next`](Self::next) until [`cancel`](Self::cancel), then settle what is still held, then
/// [`close`](Self::close).
#[derive(Debug)]
pub struct Consumer {
    deliveries: mpsc::Receiver<Delivery>,
    cancel: CancellationToken,
    supervisor: JoinHandle<()>,
    load: Arc<ConsumerLoad>,
}

/// What waits in front of a consumer, and how much may be unsettled.
#[derive(Debug)]
pub struct ConsumerLoad {
    prefetch: AtomicU16,
    waiting_bytes: AtomicUsize,
    taken: Notify,
}

impl ConsumerLoad {
    /// Nothing waits.
    pub fn new(prefetch: u16) -> Self {
        Self {
            prefetch: AtomicU16::new(prefetch),
            waiting_bytes: AtomicUsize::new(0),
            taken: Notify::new(),
        }
    }

    /// Deliveries that may be unsettled now; 0 where nobody says.
    pub fn prefetch(&self) -> u16 {
        self.prefetch.load(Ordering::Relaxed)
    }

    /// Bytes of the deliveries that wait to be taken.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting_bytes.load(Ordering::Relaxed)
    }

    /// Waits until a delivery is taken; returns at once if one was taken since the last call.
    pub(crate) async fn taken(&self) {
        self.taken.notified().await;
    }

    /// Sets how many deliveries may be unsettled from now on. Says whether that changed.
    pub(crate) fn has_prefetch(&self, prefetch: u16) -> bool {
        self.prefetch.swap(prefetch, Ordering::Relaxed) != prefetch
    }

    pub(crate) fn comes(&self, bytes: usize) {
        self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn goes(&self, bytes: usize) {
        let less = |waiting: usize| Some(waiting.saturating_sub(bytes));
        // The function always gives a value.
        self.waiting_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
            .ok();
        self.taken.notify_one();
    }
}

impl Consumer {
    /// A consumer whose `supervisor` sends deliveries until `cancel`. The supervisor then ends as soon as all
    /// deliveries of its last session are settled and the broker has the settlements.
    pub fn new(
        deliveries: mpsc::Receiver<Delivery>,
        cancel: CancellationToken,
        supervisor: JoinHandle<()>,
    ) -> Self {
        Self {
            deliveries,
            cancel,
            supervisor,
            load: Arc::new(ConsumerLoad::new(0)),
        }
    }

    /// The same consumer, whose supervisor keeps `load` up to date.
    #[must_use]
    pub fn with_load(self, load: Arc<ConsumerLoad>) -> Self {
        Self { load, ..self }
    }

    /// What waits in front of it, as far as its broker reports that.
    pub fn load(&self) -> Arc<ConsumerLoad> {
        Arc::clone(&self.load)
    }

    /// The next delivery; none once cancelled. Safe to drop while it waits.
    pub async fn next(&mut self) -> Option<Delivery> {
        if self.cancel.is_cancelled() {
            return None;
        }
        loop {
            let delivery = self.deliveries.recv().await?;
            self.load.goes(delivery.bytes());
            // The broker has it again, and it comes once more.
            if !delivery.settler.is_void() {
                return Some(delivery);
            }
        }
    }

    /// Stops pulling. What was delivered and not yet taken goes back to the broker; what was taken can still be
    /// settled.
    pub fn cancel(&mut self) {
        self.cancel.cancel();
        self.deliveries.close();
        while self.deliveries.try_recv().is_ok() {}
    }

    /// Waits, at most `deadline`, until everything taken is settled and the broker knows it. The broker redelivers
    /// what is not settled by then. Says whether all was settled.
    pub async fn close(mut self, deadline: Duration) -> bool {
        self.cancel();
        let abort = self.supervisor.abort_handle();
        let settled = tokio::time::timeout(deadline, self.supervisor)
            .await
            .is_ok();
        abort.abort();
        settled
    }
}

/// What a queue holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueDepth {
    /// Messages ready for delivery (unsettled ones are not counted).
    pub ready: u64,
    /// Consumers, waiting ones of a single active consumer included.
    pub consumers: u64,
}

/// Something that should be at the broker, and is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// An exchange.
    Exchange(Exchange),
    /// A queue of this name.
    Queue(String),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exchange(exchange) => write!(f, "exchange {}", exchange.name()),
            Self::Queue(name) => write!(f, "queue {name}"),
        }
    }
}

/// Why a broker's call failed.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The broker cannot be reached, or the connection broke. Whether a publish took place is unknown.
    #[error("the broker at {broker} is away: {reason}")]
    Away {
        /// Host and port, without credentials.
        broker: String,
        /// What the connection said.
        reason: String,
    },
    /// The broker refuses this user, password or virtual host.
    #[error(
        "the broker at {broker} refuses access: {reason}; check user, password and virtual host in broker.dsn"
    )]
    Refused {
        /// Host and port, without credentials.
        broker: String,
        /// What the broker said.
        reason: String,
    },
    /// A queue or exchange exists with other arguments.
    #[error(
        "{name} exists at the broker with other arguments ({reason}): delete it when it is empty, or configure what it has"
    )]
    Mismatch {
        /// Which queue or exchange.
        name: String,
        /// What the broker said.
        reason: String,
    },
    /// An exclusive queue that another connection holds.
    #[error("{name} is held by another connection ({reason})")]
    Locked {
        /// Which queue.
        name: String,
        /// What the broker said.
        reason: String,
    },
    /// A queue whose one consumer is somebody else: see [`Consumers::Exclusive`](topology::Consumers::Exclusive).
    #[error(
        "{name} has a consumer already ({reason}): do two machines have one name, or does another `vogeler client` run here? Give each a client.node of its own"
    )]
    InUse {
        /// Which queue.
        name: String,
        /// What the broker said.
        reason: String,
    },
    /// A message that the broker does not take, now or later.
    #[error(
        "the message of {bytes} bytes is larger than the broker takes, {bytes_max} bytes: raise max_message_size in its rabbitmq.conf, or send less ({reason})"
    )]
    TooLarge {
        /// Size of the message's body, in bytes.
        bytes: u64,
        /// The most that the broker takes, in bytes.
        bytes_max: u64,
        /// What the broker said.
        reason: String,
    },
    /// A mandatory message that no queue takes.
    #[error(
        "no queue takes messages for {exchange} with routing key {routing_key:?}: has `vogeler admin setup` run, or is the server up?"
    )]
    Unroutable {
        /// Exchange name.
        exchange: &'static str,
        /// The key that nothing is bound to.
        routing_key: String,
    },
    /// The broker would not take responsibility in time.
    #[error("the broker did not confirm within {timeout:?}")]
    Unconfirmed {
        /// How long we waited.
        timeout: Duration,
    },
    /// The broker was closed by us.
    #[error("the broker connection was closed")]
    Closed,
}

impl BrokerError {
    /// Whether the same call may succeed later without anybody changing a setting.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Away { .. }
            | Self::Locked { .. }
            | Self::InUse { .. }
            | Self::Unroutable { .. }
            | Self::Unconfirmed { .. } => true,
            Self::Refused { .. } | Self::Mismatch { .. } | Self::TooLarge { .. } | Self::Closed => {
                false
            }
        }
    }
}

/// The broker that a DSN names. Nothing is connected yet.
pub fn open(config: &crate::config::Broker) -> Arc<dyn Broker> {
    match &config.dsn {
        crate::config::BrokerDsn::Memory => Arc::new(memory::MemoryBroker::new()),
        crate::config::BrokerDsn::Amqp(url) => {
            Arc::new(amqp::AmqpBroker::new(url.expose(), config))
        }
    }
}
