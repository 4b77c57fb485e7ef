//! A broker in one process, for the demo and for tests: the same contract as RabbitMQ, nothing to install.
//!
//! Every clone is a handle on the same queues, as a connection is; closing one ends what came through it and leaves the
//! others alone. Queues are bounded and live as long as the last handle. For tests, sessions can be cut, deliveries
//! paused and the link taken down. Time is tokio's.

mod browser;
mod feed;
mod queue;
mod topic;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::browser::MemoryBrowser;
use self::feed::Feed;
use self::queue::{MemoryQueue, Stored};
use super::topology::{Binding, Consumers, Queue};
use super::{
    Broker, BrokerError, Consumer, ConsumerLoad, Link, Message, Missing, QueueBrowser, QueueDepth,
    Settlement,
};

/// Most messages that a queue holds, ready or unsettled; publishing into a full one waits.
pub const QUEUE_COUNT_MAX: usize = 100_000;
/// How long publishing waits for room.
pub const PUBLISH_TIMEOUT: Duration = Duration::from_secs(30);
/// What stands for this broker's address.
const ADDRESS: &str = "memory:";

/// A handle on a broker in this process.
#[derive(Debug)]
pub struct MemoryBroker {
    shared: Arc<Shared>,
    closed: CancellationToken,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Room in a queue, or the end of a pause.
    room: Notify,
    link: watch::Sender<Link>,
    queue_count_max: usize,
    publish_timeout: Duration,
}

#[derive(Debug, Default)]
struct State {
    queues: HashMap<String, MemoryQueue>,
    seats: u64,
    is_paused: bool,
    refusal: Option<Refusal>,
}

/// The error with which publishing a message fails; none if the message is taken.
pub type Refusal = fn(&Message) -> Option<BrokerError>;

/// A [`Refusal`] of messages above `BYTES_MAX`, as RabbitMQ refuses them by its `max_message_size`.
pub fn too_large<const BYTES_MAX: u64>(message: &Message) -> Option<BrokerError> {
    let bytes = message.body.len() as u64;
    (bytes > BYTES_MAX).then(|| BrokerError::TooLarge {
        bytes,
        bytes_max: BYTES_MAX,
        reason: "memory".to_owned(),
    })
}

impl Default for MemoryBroker {
    fn default() -> Self {
        Self::new()
    }
}

impl Clone for MemoryBroker {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            closed: CancellationToken::new(),
        }
    }
}

impl MemoryBroker {
    /// An empty broker.
    pub fn new() -> Self {
        Self::with_limits(QUEUE_COUNT_MAX, PUBLISH_TIMEOUT)
    }

    /// An empty broker whose queues hold `queue_count_max` messages, and where publishing waits at most
    /// `publish_timeout` for room.
    pub fn with_limits(queue_count_max: usize, publish_timeout: Duration) -> Self {
        let shared = Shared {
            state: Mutex::default(),
            room: Notify::new(),
            link: watch::Sender::new(Link::Up),
            queue_count_max,
            publish_timeout,
        };
        Self {
            shared: Arc::new(shared),
            closed: CancellationToken::new(),
        }
    }

    /// Ends the sessions of all consumers of `queue`, as a broken connection does: what they held comes again.
    pub fn cut_sessions(&self, queue: &str) {
        if let Some(queue) = self.shared.lock().queues.get_mut(queue) {
            queue.cut();
        }
    }

    /// Deletes `queue` and what it holds; its consumers declare it again, as they do at RabbitMQ.
    pub fn delete(&self, queue: &str) {
        if let Some(mut queue) = self.shared.lock().queues.remove(queue) {
            queue.cut();
        }
    }

    /// While paused nothing is delivered, and publishing waits.
    pub fn pause(&self, is_paused: bool) {
        let mut state = self.shared.lock();
        state.is_paused = is_paused;
        state.queues.values().for_each(MemoryQueue::wake);
        self.shared.room.notify_waiters();
    }

    /// Sets how messages are refused from now on.
    pub fn refuse(&self, refusal: Option<Refusal>) {
        self.shared.lock().refusal = refusal;
    }

    /// Sets what [`link`](Broker::link) reports from now on. While it is down, calls fail; going down ends all sessions.
    pub fn set_link(&self, link: Link) {
        let mut state = self.shared.lock();
        let is_down = matches!(link, Link::Down { .. });
        self.shared.link.send_if_modified(|told| {
            let changed = *told != link;
            *told = link;
            changed
        });
        for queue in state.queues.values_mut() {
            if is_down {
                queue.cut();
            }
            queue.wake();
        }
        self.shared.room.notify_waiters();
    }

    fn check(&self) -> Result<(), BrokerError> {
        if self.closed.is_cancelled() {
            return Err(BrokerError::Closed);
        }
        self.shared.check_link()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_link(&self) -> Result<(), BrokerError> {
        match &*self.link.borrow() {
            Link::Unknown | Link::Up => Ok(()),
            Link::Down { reason } => Err(BrokerError::Away {
                broker: ADDRESS.to_owned(),
                reason: reason.clone(),
            }),
        }
    }

    /// Puts the message into every queue that takes it, or into none; says whether there was room.
    fn publish(&self, message: &Arc<Message>) -> Result<bool, BrokerError> {
        self.check_link()?;
        let now = Instant::now();
        let mut state = self.lock();
        state.sweep(now);
        if let Some(error) = state.refusal.and_then(|refusal| refusal(message)) {
            return Err(error);
        }
        if state.is_paused {
            return Ok(false);
        }
        let takes = |queue: &&mut MemoryQueue| queue.takes(message.exchange, &message.routing_key);
        let mut targets: Vec<_> = state.queues.values_mut().filter(takes).collect();
        if targets.is_empty() && message.mandatory {
            return Err(BrokerError::Unroutable {
                exchange: message.exchange.name(),
                routing_key: message.routing_key.clone(),
            });
        }
        let has_room = targets
            .iter_mut()
            .all(|queue| queue.count(now) < self.queue_count_max);
        if has_room {
            for queue in targets {
                queue.push(Arc::clone(message), now);
            }
        }
        Ok(has_room)
    }

    /// Declares `queue` and takes a seat at it.
    fn sit(&self, queue: &Queue, prefetch: usize) -> Result<(u64, Arc<Notify>), BrokerError> {
        let mut state = self.lock();
        let has_consumer = |queue: &MemoryQueue| queue.seat_count() > 0;
        if queue.consumers == Consumers::Exclusive
            && state.queues.get(&queue.name).is_some_and(has_consumer)
        {
            return Err(BrokerError::InUse {
                name: queue.name.clone(),
                reason: "in exclusive use".to_owned(),
            });
        }
        state.declare(std::slice::from_ref(queue), Instant::now())?;
        state.seats += 1;
        let seat = state.seats;
        let place = state.queues.get_mut(&queue.name);
        place
            .map(|place| (seat, place.sit(seat, prefetch)))
            .ok_or(BrokerError::Closed)
    }

    fn session(&self, queue: &str, seat: u64) -> Option<CancellationToken> {
        self.lock().queues.get(queue)?.session(seat)
    }

    fn take(&self, queue: &str, seat: u64, session: &CancellationToken) -> Option<(u64, Stored)> {
        let mut state = self.lock();
        if state.is_paused || self.check_link().is_err() {
            return None;
        }
        let queue = state.queues.get_mut(queue)?;
        queue.take(seat, session, Instant::now())
    }

    fn ready(&self, queue: &str) -> u64 {
        let mut state = self.lock();
        let queue = state.queues.get_mut(queue);
        queue.map_or(0, |queue| queue.ready_count(Instant::now()) as u64)
    }

    fn settle(&self, queue: &str, seat: u64, tag: u64, settlement: Settlement) {
        let mut state = self.lock();
        let Some(queue) = state.queues.get_mut(queue) else {
            return;
        };
        match settlement {
            Settlement::Ack if queue.ack(seat, tag) => self.room.notify_waiters(),
            Settlement::Ack => {}
            Settlement::Requeue => queue.requeue(seat, tag),
        }
    }

    fn is_settled(&self, queue: &str, seat: u64) -> bool {
        let state = self.lock();
        let queue = state.queues.get(queue);
        queue.is_none_or(|queue| queue.is_settled(seat))
    }

    fn stop(&self, queue: &str, seat: u64) {
        if let Some(queue) = self.lock().queues.get_mut(queue) {
            queue.stop(seat);
        }
    }

    fn leave(&self, name: &str, seat: u64) {
        let mut state = self.lock();
        if let Some(queue) = state.queues.get_mut(name) {
            queue.leave(seat, Instant::now());
            if queue.is_exclusive() && queue.seat_count() == 0 {
                state.queues.remove(name);
            }
        }
    }
}

impl State {
    /// Deletes queues that were unused for as long as their lifetime allows.
    fn sweep(&mut self, now: Instant) {
        self.queues.retain(|_, queue| !queue.is_expired(now));
    }

    fn declare(&mut self, queues: &[Queue], now: Instant) -> Result<(), BrokerError> {
        self.sweep(now);
        for spec in queues {
            let existing = self.queues.get(&spec.name);
            if let Some(reason) = existing.and_then(|queue| queue.mismatch(spec)) {
                let name = spec.name.clone();
                return Err(BrokerError::Mismatch { name, reason });
            }
        }
        for spec in queues {
            self.queues
                .entry(spec.name.clone())
                .or_insert_with(|| MemoryQueue::new(spec, now))
                .bind(spec);
        }
        Ok(())
    }
}

#[async_trait]
impl Broker for MemoryBroker {
    async fn declare(&self, queues: &[Queue]) -> Result<(), BrokerError> {
        self.check()?;
        self.shared.lock().declare(queues, Instant::now())
    }

    async fn unbind(&self, queue: &str, bindings: &[Binding]) -> Result<(), BrokerError> {
        self.check()?;
        if let Some(queue) = self.shared.lock().queues.get_mut(queue) {
            queue.unbind(bindings);
        }
        Ok(())
    }

    async fn publish(&self, message: Message) -> Result<(), BrokerError> {
        self.check()?;
        let message = Arc::new(message);
        let until_room = async {
            loop {
                let mut room = std::pin::pin!(self.shared.room.notified());
                // Listens from here on, so room that comes free between the attempt and the wait is not missed.
                room.as_mut().enable();
                if self.shared.publish(&message)? {
                    return Ok(());
                }
                room.await;
            }
        };
        let timeout = self.shared.publish_timeout;
        tokio::select! {
            done = tokio::time::timeout(timeout, until_room) => {
                done.unwrap_or(Err(BrokerError::Unconfirmed { timeout }))
            }
            () = self.closed.cancelled() => Err(BrokerError::Closed),
        }
    }

    async fn consume(&self, queue: &Queue, prefetch: u16) -> Result<Consumer, BrokerError> {
        if self.closed.is_cancelled() {
            return Err(BrokerError::Closed);
        }
        let prefetch = usize::from(prefetch.max(1));
        let (out, deliveries) = mpsc::channel(prefetch);
        let (seat, wake) = self.shared.sit(queue, prefetch)?;
        let feed = Feed {
            shared: Arc::clone(&self.shared),
            queue: queue.clone(),
            seat,
            prefetch,
            wake,
            out,
        };
        let closed = self.closed.clone();
        let supervisor = tokio::spawn(async move {
            tokio::select! {
                () = feed.run() => {}
                () = closed.cancelled() => {}
            }
        });
        let consumer = Consumer::new(deliveries, CancellationToken::new(), supervisor);
        let prefetch = u16::try_from(prefetch).unwrap_or(u16::MAX);
        Ok(consumer.with_load(Arc::new(ConsumerLoad::new(prefetch))))
    }

    /// One process has one operator: nobody asks for the turn here.
    async fn browse(
        &self,
        queue: &Queue,
        _turn: &Queue,
    ) -> Result<Box<dyn QueueBrowser>, BrokerError> {
        self.check()?;
        let browser = MemoryBrowser::open(Arc::clone(&self.shared), queue)?;
        Ok(Box::new(browser))
    }

    async fn depth(&self, queues: &[&str]) -> Result<Vec<Option<QueueDepth>>, BrokerError> {
        self.check()?;
        let now = Instant::now();
        let mut state = self.shared.lock();
        state.sweep(now);
        let mut depth = |name: &str| {
            let queue = state.queues.get_mut(name)?;
            Some(QueueDepth {
                ready: queue.ready_count(now) as u64,
                consumers: queue.seat_count() as u64,
            })
        };
        Ok(queues.iter().map(|name| depth(name)).collect())
    }

    async fn missing(&self, queues: &[&str]) -> Result<Vec<Missing>, BrokerError> {
        self.check()?;
        let state = self.shared.lock();
        let absent = queues
            .iter()
            .filter(|name| !state.queues.contains_key(**name));
        Ok(absent
            .map(|name| Missing::Queue((*name).to_owned()))
            .collect())
    }

    fn link(&self) -> watch::Receiver<Link> {
        self.shared.link.subscribe()
    }

    async fn about(&self) -> Result<String, BrokerError> {
        Ok(concat!("memory broker of vogeler ", env!("CARGO_PKG_VERSION")).to_owned())
    }

    async fn close(&self) {
        self.closed.cancel();
    }
}
