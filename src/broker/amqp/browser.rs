//! Going through a queue at RabbitMQ, on a connection of its own.
//!
//! RabbitMQ gives one consumer of a quorum queue no more than 2,000 unsettled messages, and a connection 2,047 channels. So
//! one channel after the other takes its share and holds it unsettled. Closed in that order, they give their messages back
//! in the old order. An acknowledgement that RabbitMQ keeps back (a quorum queue gets 32 commands of a channel at once, the
//! rest when those are done) is lost when its channel closes: a channel that stops consuming first has them passed on, since
//! the queue answers the one after the other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::future::try_join_all;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicQosOptions};
use lapin::{Channel, Connection, ConnectionProperties};

use super::connection::Target;
use super::trouble::Trouble;
use super::{declare, properties, session, transport};
use crate::broker::topology::Queue;
use crate::broker::{BrokerError, Browsed, Place, QueueBrowser};

/// Most messages that one consumer of a quorum queue holds.
const SHARE_MAX: usize = 2_000;
/// Fewest: with the channels of a connection that is 32,000 messages, however large.
const SHARE_MIN: usize = 16;
/// The first share, which tells how large messages are.
const SHARE_FIRST: usize = 64;
/// RabbitMQ sends a share at once, and lapin keeps it until it is read: at most so much, judged by the largest before.
const SHARE_BYTES_MAX: usize = 32 << 20;
/// RabbitMQ allows 2,047 channels on a connection, unless told otherwise.
const CHANNELS_MAX: usize = 2_000;
/// Channels of ours beside the shares.
const CHANNELS_OTHER: usize = 2;

#[derive(Debug)]
pub(super) struct AmqpBrowser {
    target: Arc<Target>,
    queue: Queue,
    connection: Connection,
    /// For questions; asking for a queue that is not there closes it.
    control: Option<Channel>,
    shares: Vec<Share>,
    shares_max: usize,
    /// Bytes of the largest message so far.
    largest: usize,
}

/// One channel and what it holds.
#[derive(Debug)]
struct Share {
    channel: Channel,
    stream: lapin::Consumer,
    size: usize,
    held: usize,
    /// Up to this tag everything is taken out.
    out_through: u64,
}

impl AmqpBrowser {
    /// Connects, and takes the turn: an exclusive queue, which goes with the connection.
    pub(super) async fn open(
        target: Arc<Target>,
        queue: &Queue,
        turn: &Queue,
    ) -> Result<Self, BrokerError> {
        let address = target.address.clone();
        let explain = |trouble: Trouble| trouble.into_error(&address, &turn.name);
        crate::tls::install_crypto_provider();
        let properties =
            ConnectionProperties::default().with_connection_name("vogeler browse".into());
        let uri = target.uri().map_err(explain)?;
        let connect = async { Ok(transport::connect(uri, properties).await?) };
        let connection = target.within("connecting", Box::pin(connect)).await;
        let connection = connection.map_err(explain)?;
        let take_turn = async {
            let control = connection.create_channel().await?;
            declare::declare_queue(&control, turn).await?;
            Ok(control)
        };
        let control = target.within("declaring", Box::pin(take_turn)).await;
        let control = control.map_err(explain)?;
        let channels = usize::from(connection.configuration().channel_max());
        Ok(Self {
            target,
            queue: queue.clone(),
            connection,
            control: Some(control),
            shares: Vec::new(),
            shares_max: channels
                .saturating_sub(CHANNELS_OTHER)
                .clamp(1, CHANNELS_MAX),
            largest: 0,
        })
    }

    fn explain(&self, trouble: Trouble) -> BrokerError {
        trouble.into_error(&self.target.address, &self.queue.name)
    }

    /// Stops the last share, which holds what it holds, and opens the next.
    async fn open_share(&mut self) -> Result<(), BrokerError> {
        let size = if self.shares.is_empty() {
            SHARE_FIRST
        } else {
            (SHARE_BYTES_MAX / self.largest.max(1)).clamp(SHARE_MIN, SHARE_MAX)
        };
        let work = async {
            if let Some(last) = self.shares.last() {
                last.stop().await?;
            }
            let channel = self.connection.create_channel().await?;
            let prefetch = u16::try_from(size).unwrap_or(u16::MAX);
            let qos = BasicQosOptions { global: false };
            channel.basic_qos(prefetch, qos).await?;
            let stream = session::consume(&channel, &self.queue).await?;
            Ok((channel, stream))
        };
        let opened = self.target.within("consuming", Box::pin(work)).await;
        let (channel, stream) = opened.map_err(|trouble| self.explain(trouble))?;
        self.shares.push(Share {
            channel,
            stream,
            size,
            held: 0,
            out_through: 0,
        });
        Ok(())
    }
}

impl Share {
    /// Takes no more. What is held stays held, and the queue has read all acknowledgements by the time it answers.
    async fn stop(&self) -> Result<(), Trouble> {
        let options = BasicCancelOptions { nowait: false };
        Ok(self
            .channel
            .basic_cancel(self.stream.tag(), options)
            .await?)
    }

    /// Acknowledges `tags`, which are in order: those that nothing held lies below, as one.
    async fn ack(&mut self, tags: &[u64]) -> Result<(), Trouble> {
        let before = self.out_through;
        let run = tags.iter().zip(before + 1..);
        let run = run.take_while(|(tag, next)| **tag == *next).count();
        let (run, single) = tags.split_at(run);
        if let Some(last) = run.last() {
            let options = BasicAckOptions { multiple: true };
            self.channel.basic_ack(*last, options).await?;
            self.out_through = *last;
        }
        let options = BasicAckOptions { multiple: false };
        let acks = single
            .iter()
            .map(|tag| self.channel.basic_ack(*tag, options));
        try_join_all(acks).await?;
        self.held = self.held.saturating_sub(tags.len());
        Ok(())
    }
}

#[async_trait]
impl QueueBrowser for AmqpBrowser {
    async fn ready(&mut self) -> Result<u64, BrokerError> {
        let work = async {
            let channel = match self.control.take() {
                Some(channel) => channel,
                None => self.connection.create_channel().await?,
            };
            match declare::depth(&channel, &self.queue.name).await {
                Ok(depth) => Ok((Some(channel), depth.ready)),
                Err(Trouble::Missing(_)) => Ok((None, 0)),
                Err(trouble) => Err(trouble),
            }
        };
        let asked = self
            .target
            .within("asking for a queue", Box::pin(work))
            .await;
        let (control, ready) = asked.map_err(|trouble| self.explain(trouble))?;
        self.control = control;
        Ok(ready)
    }

    async fn next(&mut self, patience: Duration) -> Result<Option<Browsed>, BrokerError> {
        if self.is_full() {
            return Ok(None);
        }
        if self.is_share_full() {
            self.open_share().await?;
        }
        let channel = self.shares.len().saturating_sub(1);
        let Some(share) = self.shares.last_mut() else {
            return Ok(None);
        };
        let trouble = match tokio::time::timeout(patience, share.stream.next()).await {
            Err(_) => return Ok(None),
            Ok(Some(Ok(delivery))) => {
                share.held += 1;
                self.largest = self.largest.max(delivery.data.len());
                return Ok(Some(Browsed {
                    properties: properties::from_amqp(&delivery.properties),
                    place: Place {
                        channel,
                        tag: delivery.delivery_tag,
                    },
                    body: Bytes::from(delivery.data),
                }));
            }
            Ok(Some(Err(error))) => error.into(),
            Ok(None) => {
                Trouble::Away("the queue was deleted, or the broker ended the consumer".to_owned())
            }
        };
        Err(self.explain(trouble))
    }

    fn is_share_full(&self) -> bool {
        self.shares
            .last()
            .is_none_or(|share| share.held >= share.size)
    }

    fn is_full(&self) -> bool {
        self.shares.len() >= self.shares_max && self.is_share_full()
    }

    async fn take_out(&mut self, places: Vec<Place>) -> Result<(), BrokerError> {
        let mut channels: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
        for place in places {
            channels.entry(place.channel).or_default().push(place.tag);
        }
        for (channel, mut tags) in channels {
            tags.sort_unstable();
            if let Some(share) = self.shares.get_mut(channel) {
                let ack = self.target.within("acknowledging", share.ack(&tags)).await;
                ack.map_err(|trouble| trouble.into_error(&self.target.address, &self.queue.name))?;
            }
        }
        Ok(())
    }

    async fn give_back(&mut self) -> Result<(), BrokerError> {
        let shares = std::mem::take(&mut self.shares);
        // The others stopped when they were full. With room left it would get what they give back.
        if let Some(last) = shares.last() {
            let stopped = self.target.within("stopping", last.stop()).await;
            stopped.map_err(|trouble| self.explain(trouble))?;
        }
        for share in &shares {
            let close = async { Ok(share.channel.close(200, "done".into()).await?) };
            let closed = self.target.within("closing", close).await;
            closed.map_err(|trouble| self.explain(trouble))?;
        }
        Ok(())
    }

    async fn close(self: Box<Self>) {
        let close = async { Ok(self.connection.close(200, "done".into()).await?) };
        if let Err(trouble) = self.target.within("closing", close).await {
            tracing::debug!(target: "vogeler::broker", ?trouble, "the connection was gone before it was closed");
        }
    }
}
