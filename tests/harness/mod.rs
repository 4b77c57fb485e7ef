//! What all integration tests build on: services started on free loopback ports in folders of their own, and stopped.

pub mod installation;
pub mod pipeline;
pub mod pouch;
pub mod process;
pub mod rabbit;
