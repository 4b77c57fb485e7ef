//! The headers of a dead letter, as the server writes them and `vogeler admin dead` reads them.

/// What all of ours begin with.
pub const PREFIX: &str = "x-vogeler-";
/// Why, in one word.
pub const REASON: &str = "x-vogeler-reason";
/// Why, in a sentence.
pub const DETAIL: &str = "x-vogeler-detail";
/// Writes that were tried.
pub const ATTEMPTS: &str = "x-vogeler-attempts";
/// When it became a dead letter.
pub const TIME: &str = "x-vogeler-time";
/// The exchange it came through.
pub const EXCHANGE: &str = "x-vogeler-exchange";
/// The routing key it came with.
pub const ROUTING_KEY: &str = "x-vogeler-routing-key";
/// Whose result, as far as it is known.
pub const NODE: &str = "x-vogeler-node";
/// Which plugin's, as far as it is known.
pub const PLUGIN: &str = "x-vogeler-plugin";
/// How often it was replayed.
pub const REPLAYS: &str = "x-vogeler-replays";
/// How often servers put a result into another queue: a replayed message begins anew.
pub const FORWARDED: &str = "x-vogeler-forwarded";
/// The sequence that a result of 2010 got when it first arrived. A replayed message keeps it, and with it its place among
/// the other results of its node.
pub const ARRIVED: &str = "x-vogeler-arrived";
/// The reason of a result that came by another slot than its node's; its replay goes by the right one.
pub const SLOT_REASON: &str = "slot";
/// RabbitMQ's own counts, which belong to one stay in one queue.
pub const OF_BROKER: [&str; 2] = ["x-delivery-count", "x-acquired-count"];
/// What of the message could not come along, and why.
pub use crate::broker::left_out::HEADER as LEFT_OUT;
