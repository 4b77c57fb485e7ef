//! Setting the broker up for a number of partitions, whatever it was set up for before.
//!
//! Invariant: at every moment each slot is bound to a queue that is drained. New bindings come before old ones go, so
//! a result that is published meanwhile may be delivered twice, and is never lost.

use super::topology::{QueueType, SLOTS, foreign_bindings, results_queue_name, server_queues};
use super::{Broker, BrokerError, QueueDepth};

/// This many missing partition queues in a row mean that there are no more.
const OLD_QUEUES_GAP: usize = 16;

/// Declares everything, and removes from each queue the slots that other queues own now. Says which queues an earlier,
/// larger number of partitions left: servers drain them.
pub async fn set_up(
    broker: &dyn Broker,
    partitions: u16,
    queue_type: QueueType,
) -> Result<Vec<(u16, QueueDepth)>, BrokerError> {
    broker
        .declare(&server_queues(partitions, queue_type))
        .await?;
    let old = old_queues(broker, partitions).await?;
    let all = (0..partitions).chain(old.iter().map(|(partition, _)| *partition));
    for partition in all {
        let foreign = foreign_bindings(partition, partitions);
        broker
            .unbind(&results_queue_name(partition), &foreign)
            .await?;
    }
    Ok(old)
}

/// Which queues an earlier, larger number of partitions left, and what is in them. AMQP cannot list queues, so this
/// asks for them by name until `OLD_QUEUES_GAP` in a row are missing.
pub async fn old_queues(
    broker: &dyn Broker,
    partitions: u16,
) -> Result<Vec<(u16, QueueDepth)>, BrokerError> {
    let mut old = Vec::new();
    let all: Vec<u16> = (partitions..SLOTS).collect();
    for some in all.chunks(OLD_QUEUES_GAP) {
        let names: Vec<_> = some.iter().copied().map(results_queue_name).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let depths = broker.depth(&names).await?;
        if depths.iter().all(Option::is_none) {
            break;
        }
        let found = some.iter().zip(depths);
        old.extend(found.filter_map(|(partition, depth)| Some((*partition, depth?))));
    }
    Ok(old)
}
