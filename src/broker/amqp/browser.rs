//! Going through a queue at RabbitMQ, on a connection of its own.
//!
//! RabbitMQ gives one consumer of a quorum queue at most 2,000 unsettled messages, and a connection at most 2,047 channels.
//! So one channel after the other takes its share and holds it unsettled. The channels close in that order, each once the
//! queue has back what the one before it held, so messages go back in their old order. A quorum queue gets 32 commands of a
//! channel at once; RabbitMQ keeps the rest until those are done, and loses them when the channel closes. So a channel stops
//! consuming before it closes: the queue answers commands in order, and by then it has every acknowledgement.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::future::try_join_all;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicQosOptions};
use lapin::{Channel, Connection, ConnectionProperties};

use super::connection::Target;
use super::sizes::Sizes;
use super::trouble::Trouble;
use super::{declare, properties, session, transport};
use crate::broker::topology::Queue;
use crate::broker::{BrokerError, Browsed, Place, QueueBrowser};

/// Most messages that one consumer holds. A quorum queue would give it 2,000, but if messages suddenly became large, all of
/// those would be under way together. With all channels of a connection this makes a million messages.
const SHARE_MAX: usize = 512;
/// Most bytes of a share, judged by the messages before it; a share of one message may be larger. RabbitMQ sends a share at
/// once, and lapin keeps it until it is read.
const SHARE_BYTES_MAX: usize = 32 << 20;
/// How long the queue may take to have back what a closed channel held, and how often it is asked.
const BACK_PATIENCE: Duration = Duration::from_secs(5);
const BACK_LOOK_EVERY: Duration = Duration::from_millis(2);
/// Most channels that hold shares. RabbitMQ allows 2,047 channels on a connection, unless configured otherwise.
const CHANNELS_MAX: usize = 2_000;
/// Channels of ours beside the shares.
const CHANNELS_OTHER: usize = 2;

#[derive(Debug)]
pub(super) struct AmqpBrowser {
    target: Arc<Target>,
    queue: Queue,
    connection: Connection,
    /// For questions about queues; a question about a queue that does not exist closes it.
    control: Option<Channel>,
    shares: Vec<Share>,
    shares_max: usize,
    /// The messages so far.
    seen: Sizes,
}

/// One channel and what it holds.
#[derive(Debug)]
struct Share {
    channel: Channel,
    stream: lapin::Consumer,
    size: usize,
    held: usize,
    /// Bytes of what is held.
    bytes: usize,
    /// Every message up to this tag is taken out.
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
            seen: Sizes::default(),
        })
    }

    fn explain(&self, trouble: Trouble) -> BrokerError {
        trouble.into_error(&self.target.address, &self.queue.name)
    }

    /// Waits until `expected` messages are ready, at most `BACK_PATIENCE`; says how many are. RabbitMQ answers a close
    /// before the queue has back what the channel held, so the next channel's messages could come before them.
    async fn until_ready(&mut self, expected: u64) -> Result<u64, BrokerError> {
        let started = Instant::now();
        loop {
            let ready = self.ready().await?;
            if ready >= expected || started.elapsed() > BACK_PATIENCE {
                return Ok(ready);
            }
            tokio::time::sleep(BACK_LOOK_EVERY).await;
        }
    }

    /// Stops the last share, which keeps what it holds, and opens the next.
    async fn open_share(&mut self) -> Result<(), BrokerError> {
        let last = self.shares.last().map(|last| (last.size, last.bytes));
        let size = next_share(&self.seen, last);
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
            bytes: 0,
            out_through: 0,
        });
        Ok(())
    }
}

/// How many messages to ask for next: one at first, then twice the `last` share (its count and bytes), as long as they fit
/// `SHARE_BYTES_MAX`. One of them is assumed as large as the largest of those `seen`, the others as large as the average, of
/// all seen or of the last share, whichever is larger.
fn next_share(seen: &Sizes, last: Option<(usize, usize)>) -> usize {
    let Some((last, last_bytes)) = last else {
        return 1;
    };
    let mean = seen.mean().max(last_bytes / last.max(1));
    let others = SHARE_BYTES_MAX.saturating_sub(seen.largest) / mean;
    (2 * last).min(1 + others).min(SHARE_MAX)
}

impl Share {
    /// Stops consuming. What is held stays held, and by the time the queue answers it has read all acknowledgements.
    async fn stop(&self) -> Result<(), Trouble> {
        let options = BasicCancelOptions { nowait: false };
        Ok(self
            .channel
            .basic_cancel(self.stream.tag(), options)
            .await?)
    }

    /// Acknowledges `tags`, which are sorted. The first of them, with no held message below, go as one acknowledgement.
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
                let properties = properties::from_amqp(&delivery.properties);
                let bytes = delivery.data.len() + properties.bytes();
                share.held += 1;
                share.bytes += bytes;
                self.seen.add(bytes);
                return Ok(Some(Browsed {
                    properties,
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
        // The others stopped when they were full. The last one may have room left, and would get what they give back.
        if let Some(last) = shares.last() {
            let stopped = self.target.within("stopping", last.stop()).await;
            stopped.map_err(|trouble| self.explain(trouble))?;
        }
        let mut ready = self.ready().await?;
        let mut keeps_order = true;
        for share in &shares {
            let close = async { Ok(share.channel.close(200, "done".into()).await?) };
            let closed = self.target.within("closing", close).await;
            closed.map_err(|trouble| self.explain(trouble))?;
            if keeps_order {
                let expected = ready + share.held as u64;
                ready = self.until_ready(expected).await?;
                keeps_order = ready >= expected;
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The shares of a queue with messages of these sizes.
    fn shares(sizes: &[usize]) -> Vec<usize> {
        let mut seen = Sizes::default();
        let (mut shares, mut last, mut left) = (Vec::new(), None, sizes);
        while !left.is_empty() {
            let size = next_share(&seen, last);
            let (share, rest) = left.split_at(size.min(left.len()));
            for bytes in share {
                seen.add(*bytes);
            }
            last = Some((size, share.iter().sum()));
            shares.push(size);
            left = rest;
        }
        shares
    }

    /// Goal: before anything was seen only one message is asked for; what is under way stays within its bytes, and small
    /// messages come many at a time.
    #[test]
    fn a_share_follows_what_was_seen() {
        const MIB: usize = 1 << 20;
        assert_eq!(shares(&[100; 7]), [1, 2, 4]);
        assert_eq!(shares(&[100; 2_000])[8..], [256, 512, 512, 512]);
        assert_eq!(shares(&[4 * MIB; 40]), [1, 2, 4, 8, 8, 8, 8, 8]);
        assert_eq!(shares(&[64 * MIB; 3]), [1, 1, 1]);
        // One large message among small ones leaves their shares large.
        let mut mixed = vec![1_000; 5_000];
        mixed[700] = 16 * MIB;
        assert!(shares(&mixed).len() < 25, "{:?}", shares(&mixed));
        // Where messages become large, the next share is small.
        let growing = [vec![100; 1_023], vec![MIB; 1_000]].concat();
        assert!(shares(&growing)[11..].iter().all(|size| *size <= 32));
    }
}
