//! Vogeler: a configuration database for a fleet of machines.
//!
//! ```text
//! runner ──command──▶ broker ──▶ client ── runs the plugin ──▶ result
//!    ▲                                                            │ publish, confirmed
//!    │ receipts                                                   ▼
//!    └──── broker ◀── ingest: consumer ▶ decode ▶ router ▶ node actor ▶ writer ▶ store
//! ```
//!
//! The modules follow the order in which the data flows; each states its invariant in its first lines.

pub mod config;

pub mod document;
pub mod format;
pub mod hash;
pub mod wire;

pub mod broker;
pub mod client;
pub mod dead;
pub mod ingest;
pub mod runner;
pub mod store;

pub mod shipped;

pub mod http;
pub mod status;
pub mod telemetry;

pub mod backoff;
pub mod log;
pub mod shutdown;
pub mod terminal;
pub mod tls;
pub mod trace;

pub mod cli;

#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
