//! One session of a consumer: a channel, what came on it, and what of it is settled.
//!
//! Deliveries flow out while there is room, settlements flow in; all that are ready are read before the broker is
//! told, so that acks grow together under load without a timer. Invariant: settlements reach only the channel their
//! delivery came on; when that is gone they go nowhere, and the broker redelivers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{Acker, Channel, Connection};
use tokio::sync::mpsc;

use super::ack::AckTracker;
use super::connection::{Connector, WATCHDOG_EVERY};
use super::streak::Progress;
use super::trouble::Trouble;
use super::{declare, properties};
use crate::broker::topology::{Consumers, Queue};
use crate::broker::{BrokerError, Delivery, Settlement, Settler, next_session};

/// How often, and how long apart, a session that is to end looks whether all that was taken is settled.
const RELEASE_LOOKS: usize = 20;
const RELEASE_LOOK_EVERY: Duration = Duration::from_millis(1);

/// How a session ended.
#[derive(Debug)]
pub(super) enum End {
    /// Stopped, and all that was taken is settled.
    Drained,
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

    /// Declares `queue` on a channel, and consumes it. From here on a message can break it.
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
    /// `progress` is told what came of them.
    pub(super) async fn run(self, out: &mpsc::Sender<Delivery>, progress: &Progress) -> End {
        let (settle, settlements) = mpsc::channel(usize::from(self.prefetch));
        let (connection, channel) = (Arc::clone(&self.connection), self.channel.clone());
        let pump = Pump {
            tag: self.stream.tag(),
            channel: self.channel,
            stream: self.stream,
            tracker: AckTracker::default(),
            settle,
            settlements,
            batch: Vec::new(),
            waiting: None,
            is_stopping: false,
            number: next_session(),
            progress,
        };
        tokio::select! {
            end = Box::pin(pump.run(out)) => end,
            () = broken(&connection, &channel) => End::Lost("the connection or channel broke".to_owned()),
        }
    }
}

/// Consumes a queue that is there.
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

/// Waits until the connection or the channel does not stand any more, announced or not.
async fn broken(connection: &Connection, channel: &Channel) {
    while connection.status().connected() && channel.status().connected() {
        tokio::time::sleep(WATCHDOG_EVERY).await;
    }
}

struct Pump<'a> {
    channel: Channel,
    stream: lapin::Consumer,
    tag: ShortString,
    tracker: AckTracker<Acker>,
    /// What each settler holds; as long as the prefetch, which bounds the unsettled.
    settle: mpsc::Sender<(u64, Settlement)>,
    settlements: mpsc::Receiver<(u64, Settlement)>,
    batch: Vec<(u64, Settlement)>,
    /// A delivery that waits for room in front of the consumer.
    waiting: Option<Delivery>,
    is_stopping: bool,
    number: u64,
    progress: &'a Progress,
}

impl Pump<'_> {
    async fn run(mut self, out: &mpsc::Sender<Delivery>) -> End {
        let mut is_ended = false;
        loop {
            if is_ended && self.waiting.is_none() && self.tracker.is_empty() {
                return self.close().await;
            }
            let batch_max = self.settle.max_capacity();
            let step = tokio::select! {
                biased;
                () = out.closed(), if !self.is_stopping => {
                    if self.is_released().await {
                        return self.give_back().await;
                    }
                    self.stop().await
                }
                _ = self.settlements.recv_many(&mut self.batch, batch_max) => self.tell().await,
                room = out.reserve(), if self.waiting.is_some() && !self.is_stopping => {
                    self.pass_on(room);
                    Ok(())
                }
                next = self.stream.next(), if self.waiting.is_none() && !is_ended => match next {
                    Some(Ok(delivery)) => {
                        self.receive(delivery);
                        Ok(())
                    }
                    Some(Err(error)) => Err(error),
                    None if self.is_stopping => {
                        is_ended = true;
                        Ok(())
                    }
                    None => return End::Lost("the queue was deleted, or the broker cancelled its consumers".to_owned()),
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
        // Once stopping, dropping it gives it back.
        self.waiting = (!self.is_stopping).then_some(delivery);
    }

    fn pass_on(&mut self, room: Result<mpsc::Permit<'_, Delivery>, mpsc::error::SendError<()>>) {
        // No room any more means that nobody takes: dropping the delivery gives it back.
        if let (Ok(room), Some(delivery)) = (room, self.waiting.take()) {
            room.send(delivery);
        }
    }

    /// Whether everything that was taken is settled. What was passed on and not taken is dropped by the consumer right
    /// after it closed its queue, so a moment is given to that.
    async fn is_released(&mut self) -> bool {
        self.waiting = None;
        for _ in 0..RELEASE_LOOKS {
            // Every settler that is still to be used holds one.
            if self.settle.strong_count() == 1 {
                return true;
            }
            tokio::time::sleep(RELEASE_LOOK_EVERY).await;
        }
        false
    }

    /// Ends the session at once, when all that was taken is settled: a closing channel puts the rest back in its old
    /// place before the next consumer becomes active, where a cancel would let it have what came later first.
    async fn give_back(mut self) -> End {
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
            Ok(()) => self.close().await,
            Err(error) => End::Lost(error.to_string()),
        }
    }

    /// Nobody takes deliveries any more: no new ones, and those on the way go back.
    async fn stop(&mut self) -> lapin::Result<()> {
        self.is_stopping = true;
        self.waiting = None;
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

    /// Closes the channel in order: by then the broker has read every ack that went before.
    async fn close(self) -> End {
        match self.channel.close(200, "drained".into()).await {
            Ok(()) => End::Drained,
            Err(error) => End::Lost(error.to_string()),
        }
    }
}
