//! The coalescer and the batch buffer as the benches drive them (`bench/stages.rs`), which see only what is public.
//!
//! Results and sizes come in, counts go out. No part of the interface.

use jiff::Timestamp;
use tokio::time::Instant;

use super::batch::{BatchBuffer, Surroundings};
use super::coalesce::{Coalescer, Marks, Overtake};
use crate::config;
use crate::wire::PluginResult;

struct NoTicket;

impl Overtake for NoTicket {}

/// Offers all results of one node, and takes what pends, as one write does. How many are left to write.
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

/// Lets a node with each of these sizes announce itself, and cuts whenever a batch is due. How many batches that makes.
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
