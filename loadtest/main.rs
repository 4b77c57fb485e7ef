//! `vogeler-loadtest`: publishes the results of a simulated fleet, then proves that each node's newest one is stored.
//!
//! Without DSNs everything runs in this process on the memory broker and store; with them it loads the server that
//! runs there (and starts none). Everything sent is kept in a ledger, and the exit code is 1 if the store disagrees.

#![allow(dead_code, reason = "the runner of plans comes with the next commits")]

mod faults;
mod flavour;
mod ledger;
mod live;
mod plan;
mod report;
mod roster;
mod schedule;
mod seeded;
mod services;
mod span;
mod stats;
mod verdict;
mod verify;
mod watch;

use std::collections::HashMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Parser;
use futures::StreamExt;
use jiff::Timestamp;
use serde_json::value::to_raw_value;
use vogeler::backoff::Backoff;
use vogeler::broker::topology::{self, Exchange};
use vogeler::broker::{self, Broker, BrokerError, Message, Properties};
use vogeler::config::{self, BrokerDsn, Config, StoreDsn};
use vogeler::document::NodeDocument;
use vogeler::hash::content_hash;
use vogeler::ingest;
use vogeler::store::{self, Store};
use vogeler::telemetry::Ledger;
use vogeler::wire::{Content, Format, NodeName, PluginName, PluginResult, Seq};

/// Publishes under way at once.
const PUBLISHES_MAX: usize = 512;
/// Nodes whose documents are read at once when the store is compared with the ledger.
const CHECK_CHUNK: usize = 200;
const CHECK_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause before a message is published again.
const RETRY_MAX: Duration = Duration::from_secs(2);

/// Simulates a fleet and verifies that nothing is lost.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Broker of the server under test; default: all in this process.
    #[arg(
        long,
        env = "VOGELER_BROKER_DSN",
        hide_env_values = true,
        default_value = "memory:"
    )]
    broker: BrokerDsn,
    /// Store of the server under test.
    #[arg(
        long,
        env = "VOGELER_STORE_DSN",
        hide_env_values = true,
        default_value = "memory:"
    )]
    store: StoreDsn,
    /// Nodes of the fleet.
    #[arg(long, default_value_t = 200)]
    nodes: usize,
    /// Results of each node, one after the other.
    #[arg(long, default_value_t = 10)]
    results: u64,
    /// Size of a result's value, in bytes.
    #[arg(long, default_value_t = 2_000)]
    bytes: usize,
    /// Longest wait for the store to have everything.
    #[arg(long, default_value = "60s", value_parser = config::span::parse)]
    timeout: Duration,
}

/// What the store must hold in the end: the newest sequence of each node.
type Sent = HashMap<NodeName, Seq>;

fn main() -> ExitCode {
    let args = Args::parse();
    match actix::System::new().block_on(run(args)) {
        Ok(code) => code,
        Err(error) => {
            report(&format!("vogeler-loadtest: {error:#}"));
            ExitCode::from(2)
        }
    }
}

async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = Config {
        broker: config::Broker {
            dsn: args.broker.clone(),
            ..config::Broker::default()
        },
        store: config::Store {
            dsn: args.store.clone(),
            ..config::Store::default()
        },
        ..Config::default()
    };
    let broker = broker::open(&config.broker);
    let store = store::open(&config.store)?;
    let ledger = Arc::new(Ledger::default());
    let server = if args.broker == BrokerDsn::Memory {
        Some(
            ingest::Server::start(
                &config,
                Arc::clone(&broker),
                Arc::clone(&store),
                Arc::clone(&ledger),
            )
            .await?,
        )
    } else {
        None
    };

    let started = Instant::now();
    let sent = publish_all(&args, broker.as_ref()).await?;
    let published = started.elapsed();
    let missing = wait_until_stored(&args, store.as_ref(), &sent).await?;
    let stored = started.elapsed();

    let count = sent.len() as u64 * args.results;
    report(&format!(
        "published  {count:>9} results of {} nodes in {published:.2?}, {:.0}/s",
        sent.len(),
        rate(count, published)
    ));
    report(&format!(
        "stored     {:>9} nodes' newest in {stored:.2?}, {:.0} results/s",
        sent.len() - missing.len(),
        rate(count, stored)
    ));
    report(&format!("lost       {:>9}", missing.len()));
    for node in missing.iter().take(10) {
        report(&format!("  {node}: the store has not its newest result"));
    }
    if let Some(server) = server {
        server.stop().await;
        report(&format!("server     {:?}", ledger.counts()));
    }
    broker.close().await;
    store.close().await;
    Ok(if missing.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

/// Publishes each node's results in order, many nodes at once.
async fn publish_all(args: &Args, broker: &dyn Broker) -> anyhow::Result<Sent> {
    let plugin: PluginName = "loadtest".parse()?;
    let base = Seq::after(Seq(0), Timestamp::now());
    let nodes: Vec<NodeName> = (0..args.nodes)
        .map(|n| format!("load{n:06}.example.com").parse())
        .collect::<Result<_, _>>()?;
    let outcomes: Vec<anyhow::Result<(NodeName, Seq)>> = futures::stream::iter(nodes)
        .map(|node| {
            let plugin = plugin.clone();
            async move {
                let mut last = base;
                for number in 0..args.results {
                    last = Seq(base.0 + number);
                    let message = message(&node, &plugin, last, args.bytes)?;
                    publish(broker, message, args.timeout)
                        .await
                        .with_context(|| format!("cannot publish a result of {node}"))?;
                }
                Ok((node, last))
            }
        })
        .buffer_unordered(PUBLISHES_MAX)
        .collect()
        .await;
    outcomes.into_iter().collect()
}

/// Publishes until the broker has it: an outage of the broker delays the run and loses nothing, as with a client.
async fn publish(
    broker: &dyn Broker,
    message: Message,
    timeout: Duration,
) -> Result<(), BrokerError> {
    let deadline = Instant::now() + timeout;
    let mut backoff = Backoff::new(CHECK_PAUSE, RETRY_MAX);
    loop {
        match broker.publish(message.clone()).await {
            Err(error) if error.is_retryable() && Instant::now() < deadline => {
                tokio::time::sleep(backoff.next_random()).await;
            }
            done => return done,
        }
    }
}

fn message(
    node: &NodeName,
    plugin: &PluginName,
    seq: Seq,
    bytes: usize,
) -> anyhow::Result<Message> {
    let filler = format!("{:0>width$}", seq.0, width = bytes.saturating_sub(2));
    let json = to_raw_value(&filler)?;
    let hash = content_hash(&json, &[])?;
    let result = PluginResult {
        node: node.clone(),
        plugin: Some(plugin.clone()),
        seq,
        collected_at: Timestamp::now(),
        run: None,
        format: Format::String,
        duration_ms: Some(1),
        content: Content::Value { json, hash },
    };
    Ok(Message {
        exchange: Exchange::Results,
        routing_key: topology::result_key(node),
        body: result.encode()?.into(),
        properties: Properties {
            content_type: Some("application/json".to_owned()),
            ..Properties::default()
        },
        persistent: true,
        mandatory: true,
    })
}

/// The nodes whose newest result is not in the store when time is up.
async fn wait_until_stored(
    args: &Args,
    store: &dyn Store,
    sent: &Sent,
) -> anyhow::Result<Vec<NodeName>> {
    let deadline = Instant::now() + args.timeout;
    let mut missing: Vec<NodeName> = sent.keys().cloned().collect();
    loop {
        let mut still = Vec::new();
        for chunk in missing.chunks(CHECK_CHUNK) {
            // A store that is away for a while is part of what is tested.
            let documents = match store.load(chunk).await {
                Err(error) if Instant::now() >= deadline => return Err(error.into()),
                documents => documents.unwrap_or_default(),
            };
            for node in chunk {
                let newest = documents
                    .get(node)
                    .and_then(|stored| newest_seq(node, &stored.json));
                if newest.as_ref() != sent.get(node) {
                    still.push(node.clone());
                }
            }
        }
        missing = still;
        if missing.is_empty() || Instant::now() >= deadline {
            missing.sort();
            return Ok(missing);
        }
        tokio::time::sleep(CHECK_PAUSE).await;
    }
}

fn newest_seq(node: &NodeName, json: &serde_json::value::RawValue) -> Option<Seq> {
    let document = NodeDocument::parse(node, json).ok()?;
    document.plugins().get("loadtest").map(|state| state.seq)
}

#[allow(clippy::cast_precision_loss, reason = "a rate is for people")]
fn rate(count: u64, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64().max(f64::EPSILON)
}

#[allow(clippy::print_stdout, reason = "the report goes to the terminal")]
fn report(line: &str) {
    println!("{line}");
}
