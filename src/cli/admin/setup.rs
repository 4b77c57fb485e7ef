//! `vogeler admin setup`: exchanges and queues, database and design documents. Does only what is missing.
//!
//! Invariant: each half is tried even if the other fails.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::broker::{self, Broker, setup, topology};
use crate::cli::{EXIT_ERROR, answer, complain, one_line};
use crate::config::{Config, StoreDsn};
use crate::store::{self, Designs};
use crate::terminal;

/// Where design documents are looked for, the first that is there.
const DESIGNS: [&str; 2] = ["/etc/vogeler/_design", "etc/vogeler/_design"];

/// Sets up both broker and store, with the design documents of `designs`, of the usual places, or of this program.
pub(super) async fn run(designs: Option<&Path>, config: &Config) -> anyhow::Result<ExitCode> {
    let designs = designs.map(Path::to_owned).or_else(found_designs);
    let broker = broker::open(&config.broker);
    let broker_done = setup_broker(&*broker, config).await;
    broker.close().await;
    let store_done = setup_store(designs.as_deref(), config).await;
    answer_setup(broker_done, store_done)
}

fn found_designs() -> Option<PathBuf> {
    DESIGNS.iter().map(PathBuf::from).find(|path| path.is_dir())
}

async fn setup_broker(broker: &dyn Broker, config: &Config) -> anyhow::Result<Vec<String>> {
    let old = setup::set_up(broker, config.broker.partitions, config.broker.queue_type).await?;
    let exchanges = topology::Exchange::ALL.map(topology::Exchange::name);
    let partitions = config.broker.partitions;
    let last = partitions.saturating_sub(1);
    let mut lines = vec![
        format!("exchanges {}", exchanges.join(", ")),
        format!("queues vogeler.results.0 to vogeler.results.{last} ({partitions} partitions)"),
        format!("queue {}", topology::DEAD_QUEUE),
    ];
    lines.extend(old.iter().map(|(partition, depth)| {
        let (queue, ready) = (topology::results_queue_name(*partition), depth.ready);
        format!("queue {queue} is of an earlier number of partitions, {ready} ready: servers drain it; delete it when it is empty and no server is running")
    }));
    Ok(lines)
}

async fn setup_store(folder: Option<&Path>, config: &Config) -> anyhow::Result<Vec<String>> {
    let store = store::open(&config.store)?;
    let done = store
        .setup(folder.map_or(Designs::Shipped, Designs::Folder))
        .await;
    store.close().await;
    let mut lines = done?;
    if matches!(config.store.dsn, StoreDsn::Couch(_)) {
        lines.push(match folder {
            Some(folder) => format!("design documents of {}", folder.display()),
            None => format!(
                "design documents of this program, since there is no {}",
                DESIGNS[0]
            ),
        });
    }
    Ok(lines)
}

/// Says what was done; the first error is the subcommand's, after the other half was told.
fn answer_setup(
    broker: anyhow::Result<Vec<String>>,
    store: anyhow::Result<Vec<String>>,
) -> anyhow::Result<ExitCode> {
    let mut failed = false;
    let mut text = String::new();
    for (part, result) in [("broker", broker), ("store", store)] {
        match result {
            Ok(lines) => {
                let line = |line: &String| format!("{part}: {}\n", terminal::line(line));
                text.extend(lines.iter().map(line));
            }
            Err(error) => {
                failed = true;
                complain(&format!("vogeler: {part}: {}\n", one_line(&error)));
            }
        }
    }
    answer(&text)?;
    Ok(ExitCode::from(if failed { EXIT_ERROR } else { 0 }))
}
