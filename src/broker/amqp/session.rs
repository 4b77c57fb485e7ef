//! One session of a consumer: a channel, what came on it, and what of it is settled.
//!
//! Deliveries flow out while there is room, settlements flow in. All settlements that are ready are read before the
//! broker is told, so acks merge under load without a timer. Deliveries that wait for room are counted in bytes: when the
//! [`Window`] says that they are too many, or that more would fit, the session ends and one of another size follows.
//! Invariant: settlements reach only the channel their delivery came on; when that is gone they go nowhere, and the broker
//! redelivers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{Acker, Channel, Connection};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::ack::AckTracker;
use super::connection::{Connector, WATCHDOG_EVERY};
use super::streak::Progress;
use super::trouble::Trouble;
use super::window::Window;
use super::{declare, properties};
use crate::broker::topology::{Consumers, Queue};
use crate::broker::{BrokerError, ConsumerLoad, Delivery, Settlement, Settler, next_session};

/// How many times, and how far apart, an ending session checks whether everything taken is settled.
const RELEASE_LOOKS: usize = 20;
const RELEASE_LOOK_EVERY: Duration = Duration::from_millis(1);
/// Before a larger session replaces this one, it passes nothing on for at most this time, so that its deliveries can be
/// settled. A slow store may not have written all of them by then: the rest come again, and their sequences show it.
const GROWTH_PATIENCE: Duration = Duration::from_secs(2);
/// How long the broker may be silent before it confirms that a channel is closed.
const CLOSE_PATIENCE: Duration = Duration::from_secs(10);

/// How a session ended.
#[derive(Debug)]
pub(super) enum End {
    /// Stopped, and all that was taken is settled.
    Drained,
    /// A session of another size follows.
    Resized,
    /// The broker ended the consumer: the queue is gone, or its node.
    Cancelled,
    /// The channel is gone, and why: the broker redelivers what was unsettled.
    Lost(String),
}

/// A channel that consumes one queue.
#[derive(Debug)]
pub(super) struct Session {
    connection: Arc<Connection>,
    channel: Channel,
    stream: lapin::Consumer,
    prefetch: u16,
}

impl Session {
    /// Opens a channel, declares `queue`, and consumes it.
    pub(super) async fn open(
        connector: &Connector,
        queue: &Queue,
        prefetch: u16,
    ) -> Result<Self, BrokerError> {
        let opened = Self::channel(connector, queue).await?;
        Self::on(opened, connector, queue, prefetch).await
    }

    /// A channel to consume `queue` on.
    pub(super) async fn channel(
        connector: &Connector,
        queue: &Queue,
    ) -> Result<(Arc<Connection>, Channel), BrokerError> {
        let opened = connector.channel().await;
        opened.map_err(|trouble| trouble.into_error(&connector.target.address, &queue.name))
    }

    /// Declares `queue` on a channel, and consumes it. From here on a message can break the channel.
    pub(super) async fn on(
        (connection, channel): (Arc<Connection>, Channel),
        connector: &Connector,
        queue: &Queue,
        prefetch: u16,
    ) -> Result<Self, BrokerError> {
        let explain = |trouble: Trouble| trouble.into_error(&connector.target.address, &queue.name);
        declare::declare_exchanges(connector, &channel).await?;
        let work = async {
            let qos = BasicQosOptions { global: false };
            channel.basic_qos(prefetch, qos).await?;
            declare::declare_queue(&channel, queue).await?;
            if queue.consumers == Consumers::Exclusive {
                // Whoever is refused as a consumer leaves the queue's bindings as they are.
                let stream = consume(&channel, queue).await?;
                declare::bind(&channel, queue).await?;
                return Ok(stream);
            }
            declare::bind(&channel, queue).await?;
            consume(&channel, queue).await
        };
        let work = connector.target.within("consuming", Box::pin(work));
        let stream = work.await.map_err(explain)?;
        Ok(Self {
            connection,
            channel,
            stream,
            prefetch,
        })
    }

    /// Passes deliveries to `out` until that is closed, then waits for the settlements of what was taken.
    /// `progress` learns what came of them, `window` their sizes, `load` how many bytes wait.
    pub(super) async fn run(
        self,
        out: &mpsc::Sender<Delivery>,
        window: &mut Window,
        load: &Arc<ConsumerLoad>,
        progress: &Progress,
    ) -> End {
        let (settle, settlements) = mpsc::channel(usize::from(self.prefetch));
        let (connection, channel) = (Arc::clone(&self.connection), self.channel.clone());
        let is_closing = AtomicBool::new(false);
        let pump = Pump {
            tag: self.stream.tag(),
            channel: self.channel,
            stream: self.stream,
            tracker: AckTracker::default(),
            settle,
            settlements,
            batch: Vec::new(),
            waiting: Waiting::new(load),
            window,
            grows_until: None,
            is_stopping: false,
            is_closing: &is_closing,
            number: next_session(),
            progress,
        };
        tokio::select! {
            end = Box::pin(pump.run(out)) => end,
            () = broken(&connection, &channel, &is_closing) => End::Lost("the connection or channel broke".to_owned()),
        }
    }
}

/// Consumes a queue that exists.
pub(super) async fn consume(channel: &Channel, queue: &Queue) -> Result<lapin::Consumer, Trouble> {
    let options = BasicConsumeOptions {
        no_local: false,
        no_ack: false,
        exclusive: queue.consumers == Consumers::Exclusive,
        nowait: false,
    };
    let (name, tag) = (declare::short(&queue.name)?, ShortString::default());
    Ok(channel
        .basic_consume(name, tag, options, FieldTable::default())
        .await?)
}

/// Waits until the connection breaks, or a channel that we are not closing, announced or not.
async fn broken(connection: &Connection, channel: &Channel, is_closing: &AtomicBool) {
    let stands = || channel.status().connected() || is_closing.load(Ordering::Relaxed);
    while connection.status().connected() && stands() {
        tokio::time::sleep(WATCHDOG_EVERY).await;
    }
}

/// Deliveries that wait for room in front of the consumer, at most the prefetch. `bytes` counts those that are here; `load`
/// also counts those passed on, until they are taken.
struct Waiting {
    deliveries: VecDeque<Delivery>,
    bytes: usize,
    load: Arc<ConsumerLoad>,
}

impl Waiting {
    fn new(load: &Arc<ConsumerLoad>) -> Self {
        Self {
            deliveries: VecDeque::new(),
            bytes: 0,
            load: Arc::clone(load),
        }
    }

    /// Takes one in, and says how many bytes it has.
    fn push(&mut self, delivery: Delivery) -> usize {
        let bytes = delivery.bytes();
        self.load.comes(bytes);
        self.bytes += bytes;
        self.deliveries.push_back(delivery);
        bytes
    }

    /// The oldest, to be passed on.
    fn pop(&mut self) -> Option<Delivery> {
        let delivery = self.deliveries.pop_front()?;
        self.bytes -= delivery.bytes();
        Some(delivery)
    }

    /// Bytes that were passed on and not taken, by this session or an earlier one.
    fn passed_bytes(&self) -> usize {
        self.load.waiting_bytes().saturating_sub(self.bytes)
    }

    /// Gives back all of them.
    fn clear(&mut self) {
        for delivery in self.deliveries.drain(..) {
            self.load.goes(delivery.bytes());
        }
        self.bytes = 0;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.clear();
    }
}

struct Pump<'a> {
    channel: Channel,
    stream: lapin::Consumer,
    tag: ShortString,
    tracker: AckTracker<Acker>,
    /// Each settler holds a clone. Its capacity is the prefetch, which bounds the unsettled deliveries.
    settle: mpsc::Sender<(u64, Settlement)>,
    settlements: mpsc::Receiver<(u64, Settlement)>,
    batch: Vec<(u64, Settlement)>,
    waiting: Waiting,
    window: &'a mut Window,
    /// While set, nothing is passed on until everything is settled, or until this time. Then a larger session follows.
    grows_until: Option<Instant>,
    is_stopping: bool,
    /// Tells the watchdog that we are closing the channel, so its end is no loss.
    is_closing: &'a AtomicBool,
    number: u64,
    progress: &'a Progress,
}

impl Pump<'_> {
    async fn run(mut self, out: &mpsc::Sender<Delivery>) -> End {
        let mut is_ended = false;
        loop {
            if is_ended && self.waiting.deliveries.is_empty() && self.tracker.is_empty() {
                return self.close(End::Drained).await;
            }
            if self.is_resized() {
                return self.give_back(End::Resized).await;
            }
            let batch_max = self.settle.max_capacity();
            let (passes, is_held_up) = self.passes();
            let patience = self.grows_until.unwrap_or_else(Instant::now);
            let step = tokio::select! {
                biased;
                () = out.closed(), if !self.is_stopping => {
                    if self.is_released().await {
                        return self.give_back(End::Drained).await;
                    }
                    self.stop().await
                }
                _ = self.settlements.recv_many(&mut self.batch, batch_max) => self.tell().await,
                () = tokio::time::sleep_until(patience), if self.grows_until.is_some() => Ok(()),
                room = out.reserve(), if passes => {
                    self.pass_on(room);
                    Ok(())
                }
                () = self.waiting.load.taken(), if is_held_up => Ok(()),
                next = self.stream.next(), if !is_ended => match next {
                    Some(Ok(delivery)) => {
                        self.receive(delivery);
                        Ok(())
                    }
                    Some(Err(error)) => Err(error),
                    None if self.is_stopping => {
                        is_ended = true;
                        Ok(())
                    }
                    None => return End::Cancelled,
                },
            };
            if let Err(error) = step {
                return End::Lost(error.to_string());
            }
        }
    }

    fn receive(&mut self, delivery: lapin::message::Delivery) {
        self.tracker
            .delivered(delivery.delivery_tag, delivery.acker);
        let delivery = Delivery {
            body: Bytes::from(delivery.data),
            properties: properties::from_amqp(&delivery.properties),
            exchange: delivery.exchange.into(),
            routing_key: delivery.routing_key.into(),
            redelivered: delivery.redelivered,
            session: self.number,
            settler: Settler::new(delivery.delivery_tag, self.settle.clone()),
        };
        if self.is_stopping {
            // Dropping it gives it back.
            return;
        }
        let bytes = self.waiting.push(delivery);
        self.window.received(bytes, self.tracker.len());
    }

    fn pass_on(&mut self, room: Result<mpsc::Permit<'_, Delivery>, mpsc::error::SendError<()>>) {
        // An error here means that nobody takes deliveries any more: dropping this one gives it back.
        if let (Ok(room), Some(delivery)) = (room, self.waiting.pop()) {
            room.send(delivery);
        }
    }

    /// Whether the next delivery is passed on, and if not, whether the bytes of those before it hold it up.
    fn passes(&self) -> (bool, bool) {
        let next = self.waiting.deliveries.front();
        let Some(next) = next.filter(|_| !self.is_stopping && self.grows_until.is_none()) else {
            return (false, false);
        };
        let passed = self.waiting.passed_bytes();
        let passes = self.window.passes(passed, next.bytes());
        (passes, !passes)
    }

    /// Whether a session of another size should follow now. If too many bytes wait, it follows without waiting for
    /// settlements: what was passed on comes once more, and is recognised by its sequence.
    fn is_resized(&mut self) -> bool {
        if self.is_stopping {
            return false;
        }
        let now = Instant::now();
        let waiting = &self.waiting;
        if self.window.is_over(waiting.load.waiting_bytes()) {
            let sizes = (waiting.bytes, waiting.deliveries.len());
            self.window.shrink(sizes, waiting.passed_bytes(), now);
            return true;
        }
        if self.grows_until.is_none() && !self.window.may_grow(now) {
            return false;
        }
        let until = *self.grows_until.get_or_insert(now + GROWTH_PATIENCE);
        let is_settled = self.tracker.held() == self.waiting.deliveries.len();
        let grows = is_settled || now >= until;
        if grows {
            self.window.grow();
        }
        grows
    }

    /// Whether everything taken is settled. The consumer drops what was passed on and not taken right after it closes its
    /// queue, so this waits a moment for that.
    async fn is_released(&mut self) -> bool {
        self.waiting.clear();
        for _ in 0..RELEASE_LOOKS {
            // Every settler that is not used yet holds a sender; one more is ours.
            if self.settle.strong_count() == 1 {
                return true;
            }
            tokio::time::sleep(RELEASE_LOOK_EVERY).await;
        }
        false
    }

    /// Ends the session at once, without a cancel. A closing channel puts what is not settled back in its old place
    /// before the next consumer becomes active. A cancel would let that consumer have later messages first.
    async fn give_back(mut self, end: End) -> End {
        self.waiting.clear();
        while let Ok(settlement) = self.settlements.try_recv() {
            self.batch.push(settlement);
        }
        let is_ack = |(tag, settlement): &(u64, Settlement)| {
            (*settlement == Settlement::Ack).then_some(*tag)
        };
        let acked = self.batch.iter().filter_map(is_ack).max().unwrap_or(0);
        self.batch
            .retain(|(tag, settlement)| *settlement == Settlement::Ack || *tag < acked);
        match self.tell().await {
            Ok(()) => self.close(end).await,
            Err(error) => End::Lost(error.to_string()),
        }
    }

    /// Nobody takes deliveries any more: asks for no new ones, and gives back those on the way.
    async fn stop(&mut self) -> lapin::Result<()> {
        self.is_stopping = true;
        self.grows_until = None;
        self.waiting.clear();
        let options = BasicCancelOptions { nowait: false };
        self.channel.basic_cancel(self.tag.clone(), options).await
    }

    /// Tells the broker what is settled: requeues first, since an ack of many covers what is below it.
    async fn tell(&mut self) -> lapin::Result<()> {
        for (tag, settlement) in self.batch.drain(..) {
            if let Some(acker) = self.tracker.settle(tag, settlement) {
                let options = BasicNackOptions {
                    multiple: false,
                    requeue: true,
                };
                acker.nack(options).await?;
            }
        }
        if let Some(acker) = self.tracker.take_finished() {
            acker.ack(BasicAckOptions { multiple: true }).await?;
            self.progress.settle();
        }
        Ok(())
    }

    /// Closes the channel in order: once it is closed, the broker has read every earlier ack. Deliveries that the broker
    /// sent before still come, at most the old prefetch; they are dropped at once, since nobody counts them.
    async fn close(mut self, end: End) -> End {
        self.is_closing.store(true, Ordering::Relaxed);
        let mut close = std::pin::pin!(self.channel.close(200, "drained".into()));
        let mut still_comes = true;
        loop {
            tokio::select! {
                biased;
                next = self.stream.next(), if still_comes => still_comes = matches!(next, Some(Ok(_))),
                closed = &mut close => return closed.map_or_else(|error| End::Lost(error.to_string()), |()| end),
                () = tokio::time::sleep(CLOSE_PATIENCE) => {
                    return End::Lost(format!("closing took longer than {CLOSE_PATIENCE:?}"));
                }
            }
        }
    }
}
