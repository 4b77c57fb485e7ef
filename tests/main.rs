//! The integration tests: one binary, one harness, a file a theme.
//!
//! One process runs them all, so that the services they need (a real RabbitMQ, a CouchDB-protocol server) start once.

mod cli;
mod harness;

mod broker;
mod client;
mod dashboards;
mod end_to_end;
mod ingest;
