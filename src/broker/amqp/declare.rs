//! Exchanges, queues and bindings at RabbitMQ, and how deep queues are.
//!
//! The arguments of a queue are part of its identity there: another declaration of the same name is refused, and the
//! refusal closes the channel it came on. Names come from [`topology`](crate::broker::topology), which keeps them short.

use futures::future::try_join_all;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{Channel, ExchangeKind};

use super::connection::Connector;
use super::properties::milliseconds;
use super::trouble::Trouble;
use crate::broker::topology::{Binding, Consumers, Exchange, Lifetime, Queue, QueueType};
use crate::broker::{BrokerError, Missing, QueueDepth};

/// How often a quorum queue may deliver a message before it drops it. RabbitMQ 4 defaults to 20, so looking at dead
/// letters, or a long outage of the store, would lose messages. RabbitMQ before 4.0 refuses "unlimited" (-1), and an
/// argument that depends on the broker's version is a mismatch after its upgrade. So it is a number that is never
/// reached, on every version. (An operator's policy may still set a lower one.)
const DELIVERIES_MAX: i64 = i32::MAX as i64;

/// Makes everything exist. Queues that exist are checked before any is made, so that a mismatch changes nothing.
pub(super) async fn declare(connector: &Connector, queues: &[Queue]) -> Result<(), BrokerError> {
    let names: Vec<&str> = queues.iter().map(|queue| queue.name.as_str()).collect();
    let exist: Vec<bool> = depths(connector, &names)
        .await?
        .iter()
        .map(Option::is_some)
        .collect();
    let pick = |wanted: bool| {
        let of = queues.iter().zip(&exist);
        of.filter(move |(_, exists)| **exists == wanted)
            .map(|(queue, _)| queue)
    };
    let address = &connector.target.address;
    let (_connection, channel) = connector
        .channel()
        .await
        .map_err(|trouble| trouble.into_error(address, ""))?;
    let within = |what, work| connector.target.within(what, work);
    for queue in pick(true).chain(pick(false)) {
        within("declaring", Box::pin(declare_queue(&channel, queue)))
            .await
            .map_err(|trouble| trouble.into_error(address, &queue.name))?;
    }
    declare_exchanges(connector, &channel).await?;
    for queue in queues {
        connector
            .target
            .within("binding", bind(&channel, queue))
            .await
            .map_err(|trouble| trouble.into_error(address, &queue.name))?;
    }
    Ok(())
}

/// Makes all exchanges exist.
pub(super) async fn declare_exchanges(
    connector: &Connector,
    channel: &Channel,
) -> Result<(), BrokerError> {
    for exchange in Exchange::ALL {
        connector
            .target
            .within("declaring", declare_exchange(channel, exchange))
            .await
            .map_err(|trouble| trouble.into_error(&connector.target.address, exchange.name()))?;
    }
    Ok(())
}

/// Which exchanges and queues do not exist.
pub(super) async fn missing(
    connector: &Connector,
    queues: &[&str],
) -> Result<Vec<Missing>, BrokerError> {
    let mut missing = Vec::new();
    let mut open: Option<Channel> = None;
    for exchange in Exchange::ALL {
        let step = async {
            // As with queues, asking for a missing exchange closes the channel.
            let channel = match open.take() {
                Some(channel) => channel,
                None => connector.channel().await?.1,
            };
            let look = ask_exchange(&channel, exchange, true);
            match connector
                .target
                .within("asking for an exchange", look)
                .await
            {
                Ok(()) => {
                    open = Some(channel);
                    Ok(true)
                }
                Err(Trouble::Missing(_)) => Ok(false),
                Err(trouble) => Err(trouble),
            }
        };
        let exists = step.await.map_err(|trouble: Trouble| {
            trouble.into_error(&connector.target.address, exchange.name())
        })?;
        if !exists {
            missing.push(Missing::Exchange(exchange));
        }
    }
    let depths = depths(connector, queues).await?;
    let absent = queues
        .iter()
        .zip(depths)
        .filter(|(_, depth)| depth.is_none());
    missing.extend(absent.map(|(name, _)| Missing::Queue((*name).to_owned())));
    Ok(missing)
}

async fn declare_exchange(channel: &Channel, exchange: Exchange) -> Result<(), Trouble> {
    ask_exchange(channel, exchange, false).await
}

/// Makes `exchange` exist, or asks whether it does.
async fn ask_exchange(channel: &Channel, exchange: Exchange, passive: bool) -> Result<(), Trouble> {
    let kind = if exchange.is_topic() {
        ExchangeKind::Topic
    } else {
        ExchangeKind::Direct
    };
    let options = ExchangeDeclareOptions {
        passive,
        durable: true,
        auto_delete: false,
        internal: false,
        nowait: false,
    };
    let name = exchange.name().into();
    Ok(channel
        .exchange_declare(name, kind, options, FieldTable::default())
        .await?)
}

/// Makes `queue` exist, without its bindings.
pub(super) async fn declare_queue(channel: &Channel, queue: &Queue) -> Result<(), Trouble> {
    let exclusive = queue.lifetime == Lifetime::Exclusive;
    let options = QueueDeclareOptions {
        passive: false,
        durable: !exclusive,
        exclusive,
        auto_delete: exclusive,
        nowait: false,
    };
    channel
        .queue_declare(short(&queue.name)?, options, arguments(queue))
        .await?;
    Ok(())
}

/// Binds `queue` to what it takes.
pub(super) async fn bind(channel: &Channel, queue: &Queue) -> Result<(), Trouble> {
    let name = short(&queue.name)?;
    let bindings = queue.bindings.iter().map(|binding| {
        let name = name.clone();
        async move {
            let exchange = binding.exchange.name().into();
            let options = QueueBindOptions { nowait: false };
            let key = short(&binding.key)?;
            channel
                .queue_bind(name, exchange, key, options, FieldTable::default())
                .await
                .map_err(Trouble::from)
        }
    });
    try_join_all(bindings).await?;
    Ok(())
}

/// Removes `bindings` from `queue`; RabbitMQ ignores those that do not exist.
pub(super) async fn unbind(
    connector: &Connector,
    queue: &str,
    bindings: &[Binding],
) -> Result<(), BrokerError> {
    let work = async {
        let (_connection, channel) = connector.channel().await?;
        let name = short(queue)?;
        let unbinds = bindings.iter().map(|binding| {
            let (channel, name) = (&channel, name.clone());
            async move {
                let (exchange, key) = (binding.exchange.name().into(), short(&binding.key)?);
                channel
                    .queue_unbind(name, exchange, key, FieldTable::default())
                    .await
                    .map_err(Trouble::from)
            }
        });
        try_join_all(unbinds).await
    };
    connector
        .target
        .within("unbinding", work)
        .await
        .map(drop)
        .map_err(|trouble| trouble.into_error(&connector.target.address, queue))
}

/// A short string of the protocol, at most 255 bytes.
pub(super) fn short(text: &str) -> Result<ShortString, Trouble> {
    ShortString::try_new(text).map_err(|error| Trouble::Mismatch(error.to_string()))
}

fn arguments(queue: &Queue) -> FieldTable {
    let mut table = FieldTable::default();
    let (queue_type, expires) = match queue.lifetime {
        Lifetime::Durable => (queue.queue_type, None),
        Lifetime::Expires(after) => (QueueType::Classic, Some(milliseconds(after))),
        Lifetime::Exclusive => (QueueType::Classic, None),
    };
    let queue_type = match queue_type {
        QueueType::Quorum => {
            let limit = AMQPValue::LongLongInt(DELIVERIES_MAX);
            table.insert("x-delivery-limit".into(), limit);
            "quorum"
        }
        QueueType::Classic => "classic",
    };
    let queue_type = AMQPValue::LongString(LongString::from(queue_type));
    table.insert("x-queue-type".into(), queue_type);
    if let Some(milliseconds) = expires {
        let milliseconds = AMQPValue::LongLongInt(milliseconds.into());
        table.insert("x-expires".into(), milliseconds);
    }
    if queue.consumers == Consumers::SingleActive {
        table.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
    }
    table
}

/// Depths in the order of `names`; none for a queue that does not exist.
pub(super) async fn depths(
    connector: &Connector,
    names: &[&str],
) -> Result<Vec<Option<QueueDepth>>, BrokerError> {
    let mut depths = Vec::with_capacity(names.len());
    let mut open: Option<Channel> = None;
    for name in names {
        let step = async {
            // Asking for a missing queue closes the channel: the next name gets a fresh one.
            let channel = match open.take() {
                Some(channel) => channel,
                None => connector.channel().await?.1,
            };
            let depth = connector
                .target
                .within("asking for a queue", depth(&channel, name));
            match depth.await {
                Ok(depth) => {
                    open = Some(channel);
                    Ok(Some(depth))
                }
                Err(Trouble::Missing(_)) => Ok(None),
                Err(trouble) => Err(trouble),
            }
        };
        let depth = step.await;
        depths.push(
            depth
                .map_err(|trouble: Trouble| trouble.into_error(&connector.target.address, name))?,
        );
    }
    Ok(depths)
}

/// How deep one queue is; asking for one that is not there closes the channel.
pub(super) async fn depth(channel: &Channel, name: &str) -> Result<QueueDepth, Trouble> {
    let options = QueueDeclareOptions {
        passive: true,
        durable: false,
        exclusive: false,
        auto_delete: false,
        nowait: false,
    };
    let queue = channel
        .queue_declare(short(name)?, options, FieldTable::default())
        .await?;
    Ok(QueueDepth {
        ready: queue.message_count().into(),
        consumers: queue.consumer_count().into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::topology;

    /// Goal: no quorum queue of ours keeps RabbitMQ 4's limit of 20 deliveries, whatever is done with it, and other
    /// queues are declared as before.
    #[test]
    fn quorum_queues_drop_nothing() {
        let limit = |queue: &Queue| arguments(queue).inner().get("x-delivery-limit").cloned();
        for queue in topology::server_queues(2, QueueType::Quorum) {
            let expected = Some(AMQPValue::LongLongInt(DELIVERIES_MAX));
            assert_eq!(limit(&queue), expected, "{}", queue.name);
        }
        let mut others = topology::server_queues(2, QueueType::Classic);
        others.push(topology::dead_turn_queue());
        assert!(others.iter().all(|queue| limit(queue).is_none()));
    }
}
