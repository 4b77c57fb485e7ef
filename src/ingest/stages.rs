//! Stages as the benches (`bench/stages.rs`) and the fuzz checks drive them, which see only what is public.
//!
//! Results and sizes come in, counts go out. Not part of the interface.

use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::Instant;

use super::batch::{BatchBuffer, Surroundings};
use super::coalesce::{Coalescer, Marks, Overtake};
use super::{decode, ticket::Origin};
use crate::broker::Properties;
use crate::config;
use crate::dead::header;
use crate::wire::{DecodeError, Decoded, PluginResult};

struct NoTicket;

impl Overtake for NoTicket {}

/// Offers all results of one node, and takes what pends, as one write does. Returns how many are left to write.
pub fn coalesce(results: Vec<PluginResult>, now: Timestamp) -> usize {
    let freshness = config::Server::default().freshness;
    let mut coalescer = Coalescer::new(Marks::default());
    for result in results {
        coalescer.offer(result, NoTicket, now, freshness);
        coalescer.announce();
    }
    let (pending, stale) = coalescer.take(now);
    coalescer.finish(None);
    pending.len() + stale.len()
}

/// Lets a node with each of these sizes announce itself, and cuts whenever a batch is due. Returns how many batches that
/// makes.
pub fn batch(sizes: &[usize]) -> usize {
    let mut buffer = BatchBuffer::new(super::batch_bounds(&config::Server::default()));
    let now = Instant::now();
    let mut batches = 0;
    for size in sizes {
        buffer.push((), *size, now);
        if buffer.due(now, Surroundings::default()).is_some() {
            buffer.cut();
            batches += 1;
        }
    }
    batches
}

/// Reads the message that a delivery carries, within the server's default bounds.
pub fn decode(
    body: &[u8],
    encoding: Option<&str>,
    now: Timestamp,
) -> Result<PluginResult, DecodeError> {
    let server = config::Server::default();
    let origin = Origin {
        body: Bytes::copy_from_slice(body),
        properties: Properties {
            content_encoding: encoding.map(str::to_owned),
            // As after its first arrival: with its place in its node's order.
            headers: [(header::ARRIVED.to_owned(), now.as_microsecond().to_string())].into(),
            ..Properties::default()
        },
        exchange: String::new(),
        routing_key: String::new(),
    };
    let bounds = decode::Bounds {
        bytes_max: server.message_bytes_max,
        amplification_max: server.amplification_max,
    };
    match decode::decode(&origin, bounds, now)? {
        Decoded::Result(result) => Ok(result),
        Decoded::Unordered(node) => Err(DecodeError::Shape {
            problem: format!("{node} has no place in its order"),
        }),
    }
}

/// Unpacks zstd; none where it has more than `bytes_max` bytes.
pub fn unpack(body: &[u8], bytes_max: usize) -> Result<Option<Vec<u8>>, DecodeError> {
    decode::unpack(body, bytes_max)
}
