//! Where a delivery belongs: here, in another queue, or with the dead letters. Pure.
//!
//! A node's results are judged by what its actor knows, so one server alone may judge them: the active consumer of the
//! partition queue that the node's slot belongs to. Invariant: [`Place::Here`] is returned for that queue only.

use crate::broker::Delivery;
use crate::broker::topology::{partition_of, result_key};
use crate::dead::header;
use crate::wire::NodeName;

/// Most times that a result is put into another queue. Servers that agree on `broker.partitions` need one.
const FORWARDS_MAX: u32 = 3;

/// How a delivery came.
#[derive(Debug, Clone)]
pub(super) struct Entrance {
    /// The partition whose queue it came by; none for a queue of an earlier number of partitions.
    pub(super) partition: Option<u16>,
    /// The routing key it was published with first.
    pub(super) routing_key: String,
    /// How often servers put it into another queue.
    pub(super) forwards: u32,
}

/// Where a result belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// With the node's actor of this server.
    Here,
    /// In the queue of this partition.
    Queue(u16),
    /// With the dead letters, for this reason.
    Nowhere(String),
}

impl Entrance {
    /// Reads how `delivery` came. A forwarded delivery gets its first routing key back.
    pub(super) fn read(delivery: &mut Delivery, partition: Option<u16>) -> Self {
        let headers = &mut delivery.properties.headers;
        let forwards = headers.get(header::FORWARDED);
        let forwards = forwards.and_then(|text| text.parse().ok()).unwrap_or(0);
        if forwards > 0
            && let Some(first) = headers.remove(header::ROUTING_KEY)
        {
            delivery.routing_key = first;
        }
        Self {
            partition,
            routing_key: delivery.routing_key.clone(),
            forwards,
        }
    }

    /// Where a result of `node` belongs; one of 2010 (`is_stamped`) may have any routing key.
    pub(super) fn place(&self, node: &NodeName, is_stamped: bool, partitions: u16) -> Place {
        let slot = result_key(node);
        if !is_stamped && self.routing_key != slot {
            return Place::Nowhere(format!(
                "it came with routing key {:?}; results of {node} go by {slot}",
                self.routing_key
            ));
        }
        let home = partition_of(node, partitions);
        if self.partition == Some(home) {
            return Place::Here;
        }
        if self.forwards >= FORWARDS_MAX {
            return Place::Nowhere(format!(
                "it was forwarded {} times and is not in partition {home}: servers differ in broker.partitions",
                self.forwards
            ));
        }
        Place::Queue(home)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::broker::topology::{QueueType, results_queue};

    fn entrance(partition: Option<u16>, routing_key: &str, forwards: u32) -> Entrance {
        Entrance {
            partition,
            routing_key: routing_key.to_owned(),
            forwards,
        }
    }

    proptest! {
        /// Only the queue that the node's slot is bound to is its place; a wrong key is a dead letter in every queue.
        #[test]
        fn only_the_slots_queue_is_the_place(
            name in "[a-z]{1,8}",
            partitions in 1..=256_u16,
            came_by in prop::option::of(0..256_u16),
            key in 0..256_u16,
            forwards in 0..6_u32,
            is_stamped: bool,
        ) {
            let node: NodeName = name.parse().unwrap();
            let came_by = came_by.filter(|partition| *partition < partitions);
            let own = result_key(&node);
            let is_home = came_by.is_some_and(|partition| {
                let queue = results_queue(partition, partitions, QueueType::Quorum);
                queue.bindings.iter().any(|binding| binding.key == own)
            });
            let place = entrance(came_by, &own, forwards).place(&node, is_stamped, partitions);
            prop_assert_eq!(place == Place::Here, is_home);
            prop_assert_eq!(matches!(place, Place::Queue(_)), !is_home && forwards < FORWARDS_MAX);
            let key = format!("{key:03}");
            let place = entrance(came_by, &key, forwards).place(&node, false, partitions);
            prop_assert!(key == own || matches!(place, Place::Nowhere(_)));
        }
    }
}
