//! The integration tests: one binary, one harness, a file a theme.
//!
//! One process runs them all, so that the services they need (a real RabbitMQ, a CouchDB-protocol server) start once.

#![allow(
    unreachable_pub,
    reason = "nothing in a test binary is reachable from outside"
)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test fails by panicking and tells by printing; clippy allows it only in the test functions themselves"
)]

mod harness;

mod accounting;
mod bounds;
mod broker;
mod channels;
mod cli;
mod client;
mod client_broker;
mod client_metrics;
mod client_plugins;
mod client_processes;
mod client_spool;
mod conflicts;
mod culprits;
mod dashboards;
mod dead_letters;
mod demo;
mod end_to_end;
mod forged;
mod hostile;
mod http;
mod ingest;
mod loadtest;
mod metrics;
mod outages;
mod poison;
mod refused;
mod restored;
mod runs;
mod scale_out;
mod shutdown;
mod simulation;
mod status;
mod store;
mod terminal;
mod traces;
mod verdicts;
