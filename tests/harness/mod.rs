//! What all integration tests build on: services started on free loopback ports in folders of their own, and stopped.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::wildcard_imports,
    reason = "a test that cannot go on fails"
)]

use std::process::Command;
use std::sync::LazyLock;

pub(crate) mod audit;
pub(crate) mod browser;
pub(crate) mod installation;
pub(crate) mod load;
pub(crate) mod pipeline;
pub(crate) mod pouch;
pub(crate) mod process;
pub(crate) mod prometheus;
pub(crate) mod proxy;
pub(crate) mod rabbit;
pub(crate) mod scene;
pub(crate) mod stranger;

/// Installs the services that the tests start, where they are missing; once a process.
pub(crate) fn install_services() {
    static DONE: LazyLock<()> = LazyLock::new(|| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/install-services");
        let output = Command::new(script)
            .output()
            .expect("tests/install-services");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
    });
    LazyLock::force(&DONE);
}

/// Shows log lines that `RUST_LOG` asks for, as part of the test's output.
pub(crate) fn show_logs() {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_test_writer();
    // The first test of the process sets it up.
    drop(lines.try_init());
}
