//! What is watched while the load runs: processes, queues, the server's counters, the fleet's own counts.

pub(crate) mod counts;
mod lag;
mod overdue;
pub(crate) mod procfs;
pub(crate) mod sample;
