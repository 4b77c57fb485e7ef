//! `make bench`: the speed of the server as ratios to ceilings that are measured in the same run, on the same services.
//!
//! One table a store, and all figures in `bench/results.json`. Services come from `VOGELER_BENCH_AMQP` and
//! `VOGELER_BENCH_COUCH`. Without them the bench starts RabbitMQ as the tests do, and the stores are the null store and
//! pouchdb-server. The server under test is the real binary in a process of its own, so CPU and memory are its own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::format_push_string,
    clippy::single_match_else,
    clippy::too_many_lines,
    clippy::disallowed_methods,
    reason = "a bench that cannot go on panics, and its figures may be rounded"
)]
#![allow(
    dead_code,
    reason = "it shares files with the tests, and not all that is in them"
)]

mod broker;
mod cases;
mod null_store;
#[allow(unreachable_pub, reason = "the tests see it from outside")]
#[path = "../../tests/harness/pouch.rs"]
mod pouch;
#[path = "../../tests/harness/process.rs"]
mod process;
#[path = "../../tests/harness/rabbit.rs"]
mod rabbit;
mod server;
mod store;
mod table;

use url::Url;

use cases::{Plan, Services};
use table::Table;

fn main() {
    let provider = rustls::crypto::ring::default_provider();
    provider.install_default().expect("another TLS provider");
    let options: Vec<String> = std::env::args().collect();
    let has = |name: &str| options.iter().any(|option| option == name);
    let plan = if has("--quick") {
        Plan::quick()
    } else {
        Plan::full()
    };
    let only = options
        .iter()
        .find_map(|option| option.strip_prefix("--case=").map(str::to_owned));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let amqp = std::env::var("VOGELER_BENCH_AMQP").ok();
    let rabbit = amqp.is_none().then(rabbit::Rabbit::private);
    let mut tables: Vec<Table> = Vec::new();
    for (name, store) in stores(&runtime, has("--null"), has("--no-pouch")) {
        let amqp: Url = match (&amqp, &rabbit) {
            (Some(url), _) => url.parse().unwrap(),
            (None, Some(rabbit)) => rabbit.fresh_vhost(),
            (None, None) => unreachable!("one of them is there"),
        };
        let services = Services {
            amqp,
            store,
            null: (name == "null store").then(null_store::writes),
        };
        let table = runtime.block_on(cases::run(&name, &services, &plan, only.as_deref()));
        table.print();
        tables.push(table);
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/bench/results.json");
    std::fs::write(path, serde_json::to_string_pretty(&tables).unwrap() + "\n").unwrap();
    println!("\nAll figures are in {path}");
}

/// Installs the services that are missing, as the tests do.
pub(crate) fn install_services() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/install-services");
    let status = std::process::Command::new(script).status();
    assert!(status.unwrap().success(), "{script} failed");
}

/// The stores to measure, by name, as addresses of servers.
fn stores(
    runtime: &tokio::runtime::Runtime,
    only_null: bool,
    no_pouch: bool,
) -> Vec<(String, Url)> {
    let null = |runtime| ("null store".to_owned(), null_store::start(runtime));
    match std::env::var("VOGELER_BENCH_COUCH") {
        _ if only_null => vec![null(runtime)],
        Ok(url) => vec![(runtime.block_on(store::product(&url)), url.parse().unwrap())],
        Err(_) if no_pouch => vec![null(runtime)],
        Err(_) => vec![null(runtime), ("pouchdb-server".to_owned(), pouch::url())],
    }
}
