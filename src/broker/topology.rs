//! The topology: exchanges, queues, slots and routing keys, the same for every broker.
//!
//! Names and arguments are decided here and nowhere else. Invariant: every slot is bound to exactly one partition
//! queue, so all results of a node are in one queue, in order.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::wire::{Group, NodeName, RunId};

/// How many slots results are spread over; a client knows only this, never the number of partitions.
pub const SLOTS: u16 = 256;
/// The exchanges that servers send probes through. Receipts need none: each runner binds its own queue for one run, and a
/// listener to all receipts should hear nothing else.
pub const PROBED: [Exchange; 4] = [
    Exchange::Results,
    Exchange::Commands,
    Exchange::Dead,
    Exchange::Servers,
];
/// The queue that 2010 and this version's dead letters end in.
pub const DEAD_QUEUE: &str = "vogeler.dead";
/// Whoever reads dead letters holds this queue, so that two commands do not see half of them each.
const DEAD_TURN_QUEUE: &str = "vogeler.dead.turn";
/// A client's queue expires when nobody consumed it for this time: the machine is gone.
pub const NODE_QUEUE_EXPIRES: Duration = Duration::from_hours(30 * 24);
/// What every client binds, and what a run on all nodes is published to (the topic word `all` matches the star).
pub const BROADCAST_BINDING: &str = "broadcasts.*";
const GROUP_PREFIX: &str = "groups.";
const BROADCAST_KEY: &str = "broadcasts.all";

/// The exchanges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Exchange {
    /// `vogeler.master.in` (direct): results.
    Results,
    /// `vogeler.broadcast.in` (topic): commands.
    Commands,
    /// `vogeler.receipts` (topic): receipts.
    Receipts,
    /// `vogeler.dead` (direct): dead letters.
    Dead,
    /// `vogeler.servers` (direct): servers tell each other that they are there.
    Servers,
}

impl Exchange {
    /// All of them, in the order of declaration.
    pub const ALL: [Self; 5] = [
        Self::Results,
        Self::Commands,
        Self::Receipts,
        Self::Dead,
        Self::Servers,
    ];

    /// The name at the broker.
    pub fn name(self) -> &'static str {
        match self {
            Self::Results => "vogeler.master.in",
            Self::Commands => "vogeler.broadcast.in",
            Self::Receipts => "vogeler.receipts",
            Self::Dead => "vogeler.dead",
            Self::Servers => "vogeler.servers",
        }
    }

    /// The exchange that has this name at the broker, if it is one of ours.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|exchange| exchange.name() == name)
    }

    /// Whether routing keys are matched as topics; otherwise they must be equal.
    pub fn is_topic(self) -> bool {
        matches!(self, Self::Commands | Self::Receipts)
    }
}

/// Routes an exchange's messages with a key (a pattern, for a topic exchange) into a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// From where.
    pub exchange: Exchange,
    /// Which routing keys.
    pub key: String,
}

/// How long a queue lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// For ever.
    Durable,
    /// Until unused for the given time.
    Expires(Duration),
    /// As long as the connection that declared it, and for that connection only.
    Exclusive,
}

/// How RabbitMQ keeps a durable queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QueueType {
    /// Replicated by Raft: survives the loss of a broker. The default.
    #[default]
    Quorum,
    /// On one broker.
    Classic,
}

/// Who may consume a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consumers {
    /// All who come, in turns.
    Shared,
    /// One at a time, the others waiting to take over. A property of the queue.
    SingleActive,
    /// One; others are refused with [`BrokerError::InUse`](super::BrokerError::InUse). A property of the consumer.
    Exclusive,
}

/// A queue, as it is declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// Its name at the broker.
    pub name: String,
    /// How long it lives.
    pub lifetime: Lifetime,
    /// Quorum or classic; an exclusive queue is always classic.
    pub queue_type: QueueType,
    /// Who may consume it.
    pub consumers: Consumers,
    /// What it takes.
    pub bindings: Vec<Binding>,
}

/// The queue `vogeler.results.<partition>`, where there are `partitions` of them.
pub fn results_queue(partition: u16, partitions: u16, queue_type: QueueType) -> Queue {
    let slots = slots_of(partition, partitions).map(slot_key);
    // Clients of 2010 publish with an empty routing key.
    let legacy = (partition == 0).then(String::new);
    Queue {
        bindings: legacy
            .into_iter()
            .chain([forward_key(partition)])
            .chain(slots)
            .map(result_binding)
            .collect(),
        ..old_results_queue(partition, queue_type)
    }
}

/// A partition queue of an earlier, larger number of partitions: nothing is bound to it any more.
pub fn old_results_queue(partition: u16, queue_type: QueueType) -> Queue {
    Queue {
        name: results_queue_name(partition),
        lifetime: Lifetime::Durable,
        queue_type,
        consumers: Consumers::SingleActive,
        bindings: Vec::new(),
    }
}

/// Routing key with which servers put a result into the queue of `partition` only, whatever slots that queue has. It is
/// the queue's name.
pub fn forward_key(partition: u16) -> String {
    results_queue_name(partition)
}

/// The name of a partition queue.
pub fn results_queue_name(partition: u16) -> String {
    format!("vogeler.results.{partition}")
}

/// The bindings that the queue of `partition` may have from another number of partitions: all slots but its own.
pub fn foreign_bindings(partition: u16, partitions: u16) -> Vec<Binding> {
    let is_own =
        |slot: &u16| partition < partitions && slots_of(partition, partitions).contains(slot);
    (0..SLOTS)
        .filter(|slot| !is_own(slot))
        .map(|slot| result_binding(slot_key(slot)))
        .collect()
}

fn result_binding(key: String) -> Binding {
    Binding {
        exchange: Exchange::Results,
        key,
    }
}

/// All partition queues.
pub fn results_queues(partitions: u16, queue_type: QueueType) -> Vec<Queue> {
    (0..partitions)
        .map(|partition| results_queue(partition, partitions, queue_type))
        .collect()
}

/// A client's own queue, `vogeler.node.<node>`. Only one client may consume it: two machines of one name would each get
/// half of the commands.
pub fn node_queue(node: &NodeName, groups: &[Group]) -> Queue {
    let keys = [BROADCAST_BINDING.to_owned(), node.to_string()].into_iter();
    let bindings = keys
        .chain(groups.iter().map(group_key))
        .map(|key| Binding {
            exchange: Exchange::Commands,
            key,
        })
        .collect();
    Queue {
        name: format!("vogeler.node.{node}"),
        lifetime: Lifetime::Expires(NODE_QUEUE_EXPIRES),
        // One queue a machine: a Raft group each would cost the broker far more than the command is worth.
        queue_type: QueueType::Classic,
        consumers: Consumers::Exclusive,
        bindings,
    }
}

/// A runner's queue for the receipts of its runs.
pub fn receipts_queue(run: RunId) -> Queue {
    Queue {
        name: format!("vogeler.receipts.{run}"),
        lifetime: Lifetime::Exclusive,
        queue_type: QueueType::Classic,
        consumers: Consumers::Shared,
        bindings: vec![Binding {
            exchange: Exchange::Receipts,
            key: run.to_string(),
        }],
    }
}

/// A server's queue for what the other servers announce.
pub fn server_queue(server: &str) -> Queue {
    Queue {
        name: format!("vogeler.servers.{server}"),
        lifetime: Lifetime::Exclusive,
        queue_type: QueueType::Classic,
        consumers: Consumers::Shared,
        // One binding takes what is for all servers; one per probed exchange takes what is for this server. Whoever
        // publishes the latter learns whether the server is there, and the server whether an exchange lost its bindings.
        bindings: std::iter::once((Exchange::Servers, ""))
            .chain(PROBED.map(|exchange| (exchange, server)))
            .map(|(exchange, key)| Binding {
                exchange,
                key: key.to_owned(),
            })
            .collect(),
    }
}

/// The queue of dead letters.
pub fn dead_queue(queue_type: QueueType) -> Queue {
    Queue {
        name: DEAD_QUEUE.to_owned(),
        lifetime: Lifetime::Durable,
        queue_type,
        consumers: Consumers::Shared,
        bindings: vec![Binding {
            exchange: Exchange::Dead,
            key: String::new(),
        }],
    }
}

/// The turn to read dead letters: the connection that declares this queue holds it, and it goes with the connection.
pub fn dead_turn_queue() -> Queue {
    Queue {
        name: DEAD_TURN_QUEUE.to_owned(),
        lifetime: Lifetime::Exclusive,
        queue_type: QueueType::Classic,
        consumers: Consumers::Shared,
        bindings: Vec::new(),
    }
}

/// What `vogeler admin setup` and the server declare.
pub fn server_queues(partitions: u16, queue_type: QueueType) -> Vec<Queue> {
    let mut queues = results_queues(partitions, queue_type);
    queues.push(dead_queue(queue_type));
    queues
}

/// Routing key of a node's results: its slot in three digits.
pub fn result_key(node: &NodeName) -> String {
    slot_key(node.slot().into())
}

/// Routing key of a command for all nodes.
pub fn broadcast_key() -> String {
    BROADCAST_KEY.to_owned()
}

/// Whether a command with this key is for all nodes: whether [`BROADCAST_BINDING`] takes it.
pub fn is_broadcast(key: &str) -> bool {
    key.strip_prefix("broadcasts.")
        .is_some_and(|word| !word.contains('.'))
}

/// Routing key of a command for a group.
pub fn group_key(group: &Group) -> String {
    format!("{GROUP_PREFIX}{group}")
}

/// Whether a command with this key is for a group.
pub fn is_group(key: &str) -> bool {
    key.starts_with(GROUP_PREFIX)
}

fn slot_key(slot: u16) -> String {
    format!("{slot:03}")
}

/// Which of `partitions` the results of `node` belong to.
pub fn partition_of(node: &NodeName, partitions: u16) -> u16 {
    let end = (u32::from(node.slot()) + 1) * u32::from(partitions.clamp(1, SLOTS));
    u16::try_from((end - 1) / u32::from(SLOTS)).unwrap_or_default()
}

/// The slots of `partition`: contiguous ranges whose sizes differ by at most one.
fn slots_of(partition: u16, partitions: u16) -> RangeInclusive<u16> {
    let edge = |p: u16| u32::from(SLOTS) * u32::from(p) / u32::from(partitions.max(1));
    let narrow = |slot: u32| u16::try_from(slot).unwrap_or(SLOTS);
    let first = narrow(edge(partition));
    let end = narrow(edge(partition.saturating_add(1)));
    RangeInclusive::new(first, end.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Every slot is bound to exactly one partition, and the partitions' slot counts differ by at most one.
        #[test]
        fn slots_are_partitioned_evenly(partitions in 1..=SLOTS) {
            let queues = results_queues(partitions, QueueType::Quorum);
            let keys: Vec<_> = queues.iter().flat_map(|queue| &queue.bindings).map(|b| b.key.clone()).collect();
            let distinct: BTreeSet<_> = keys.iter().cloned().collect();
            prop_assert_eq!(keys.len(), distinct.len());
            // The slots, the empty key of 2010, and each queue's own name.
            prop_assert_eq!(distinct.len(), usize::from(SLOTS) + 1 + usize::from(partitions));
            let sizes: BTreeSet<_> = (0..partitions).map(|p| slots_of(p, partitions).count()).collect();
            prop_assert!(sizes.last().unwrap() - sizes.first().unwrap() <= 1, "{:?}", sizes);
        }
    }

    proptest! {
        /// A queue's own and its foreign bindings are all the slots, each once; an old queue owns none.
        #[test]
        fn own_and_foreign_bindings_are_all_slots(partitions in 1..=SLOTS, partition in 0..SLOTS) {
            let own = if partition < partitions {
                results_queue(partition, partitions, QueueType::Quorum).bindings
            } else {
                Vec::new()
            };
            let foreign = foreign_bindings(partition, partitions);
            let is_slot = |key: &String| key.len() == 3;
            let own = own.into_iter().map(|binding| binding.key).filter(is_slot);
            let mut keys: Vec<_> = own.chain(foreign.into_iter().map(|binding| binding.key)).collect();
            keys.sort_unstable();
            prop_assert_eq!(keys, (0..SLOTS).map(slot_key).collect::<Vec<_>>());
        }
    }

    proptest! {
        /// A node belongs to the partition whose queue its slot is bound to.
        #[test]
        fn a_node_belongs_where_its_slot_is_bound(name in "[a-z]{1,8}", partitions in 1..=SLOTS) {
            let node: NodeName = name.parse().unwrap();
            let queue = results_queue(partition_of(&node, partitions), partitions, QueueType::Quorum);
            prop_assert!(queue.bindings.iter().any(|binding| binding.key == result_key(&node)));
        }
    }

    /// Goal: the routing key on the wire is the slot in three digits, and 2010's empty key goes to partition 0.
    #[test]
    fn keys_are_three_digits_and_the_empty_key_is_partition_0() {
        let node: NodeName = "web01.example.com".parse().unwrap();
        assert_eq!(result_key(&node), "203");
        let queues = results_queues(4, QueueType::Quorum);
        assert_eq!(queues[0].bindings[0].key, "");
        assert!(
            queues[3]
                .bindings
                .iter()
                .any(|binding| binding.key == "203")
        );
    }
}
