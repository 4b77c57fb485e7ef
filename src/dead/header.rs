//! The headers of a dead letter, as the server writes them and `vogeler admin dead` reads them.

/// Prefix of all our headers.
pub const PREFIX: &str = "x-vogeler-";
/// Why, in one word.
pub const REASON: &str = "x-vogeler-reason";
/// Why, in a sentence.
pub const DETAIL: &str = "x-vogeler-detail";
/// Number of writes tried.
pub const ATTEMPTS: &str = "x-vogeler-attempts";
/// When it became a dead letter.
pub const TIME: &str = "x-vogeler-time";
/// The exchange it came through.
pub const EXCHANGE: &str = "x-vogeler-exchange";
/// The routing key it came with.
pub const ROUTING_KEY: &str = "x-vogeler-routing-key";
/// The node of the result, if known.
pub const NODE: &str = "x-vogeler-node";
/// The plugin of the result, if known.
pub const PLUGIN: &str = "x-vogeler-plugin";
/// Number of replays so far.
pub const REPLAYS: &str = "x-vogeler-replays";
/// How often servers forwarded a result to another queue. A replayed message starts again from zero.
pub const FORWARDED: &str = "x-vogeler-forwarded";
/// The sequence that a result of 2010 got when it first arrived. A replayed message keeps it, and so keeps its place
/// among the other results of its node.
pub const ARRIVED: &str = "x-vogeler-arrived";
/// The reason of a result that came by another slot than its node's; its replay goes by the right one.
pub const SLOT_REASON: &str = "slot";
/// RabbitMQ's own counts. They apply to one stay in one queue.
pub const OF_BROKER: [&str; 2] = ["x-delivery-count", "x-acquired-count"];
/// The parts of the message that could not be carried over, and why.
pub use crate::broker::left_out::HEADER as LEFT_OUT;
