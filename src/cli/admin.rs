//! `vogeler admin`: set up broker and store, and see how they are.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use serde::Serialize;

use super::{EXIT_ERROR, EXIT_NO, answer};
use crate::broker::{self, Broker, QueueDepth, setup, topology};
use crate::config::Config;
use crate::store::{self, About, Store};

/// Where design documents are looked for, the first that is there.
const DESIGNS: [&str; 2] = ["/etc/vogeler/_design", "etc/vogeler/_design"];
const EXAMPLES: &str = "\
Examples:
  vogeler admin setup            once, and after every upgrade: does only what is missing
  vogeler admin status --json

Exit code: 0 if both broker and store did, 1 (status) or 2 (setup) if not.";

/// Arguments of `vogeler admin`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Declare exchanges and queues, create the database, load the design documents; idempotent
    Setup {
        /// Folder of design documents [default: /etc/vogeler/_design, or else etc/vogeler/_design]
        #[arg(long, value_name = "DIR")]
        designs: Option<PathBuf>,
    },
    /// Show broker, queues and store
    Status {
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
}

/// Does it, on both broker and store: each half is tried even if the other fails.
pub async fn run(args: Args, config: Config) -> anyhow::Result<ExitCode> {
    let broker = broker::open(&config.broker);
    let store = store::open(&config.store);
    let exit_code = match &args.command {
        Command::Setup { designs } => {
            let designs = designs.clone().or_else(found_designs);
            let broker_done = setup_broker(&*broker, &config).await;
            let store_done = match &store {
                Ok(store) => store
                    .setup(designs.as_deref())
                    .await
                    .map_err(anyhow::Error::from),
                Err(error) => Err(anyhow::anyhow!("{error}")),
            };
            answer_setup(broker_done, store_done)
        }
        Command::Status { json } => {
            let broker = broker_status(&*broker, &config).await;
            let store = match &store {
                Ok(store) => store_status(&**store).await,
                Err(error) => Part::Failed {
                    error: error.to_string(),
                },
            };
            answer_status(&Status { broker, store }, *json)
        }
    };
    broker.close().await;
    if let Ok(store) = &store {
        store.close().await;
    }
    exit_code
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
                text.extend(lines.iter().map(|line| format!("{part}: {line}\n")));
            }
            Err(error) => {
                failed = true;
                super::complain(&format!("vogeler: {part}: {}\n", super::one_line(&error)));
            }
        }
    }
    answer(&text)?;
    Ok(ExitCode::from(if failed { EXIT_ERROR } else { 0 }))
}

/// What `vogeler admin status --json` prints.
#[derive(Debug, Serialize)]
struct Status {
    broker: Part<BrokerStatus>,
    store: Part<About>,
}

/// How one of the two is.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Part<T> {
    Up(T),
    Failed { error: String },
}

#[derive(Debug, Serialize)]
struct BrokerStatus {
    product: String,
    location: String,
    queues: Vec<QueueStatus>,
}

#[derive(Debug, Serialize)]
struct QueueStatus {
    queue: String,
    /// None for a queue that is not there.
    ready: Option<u64>,
    consumers: Option<u64>,
}

async fn broker_status(broker: &dyn Broker, config: &Config) -> Part<BrokerStatus> {
    let failed = |error: broker::BrokerError| Part::Failed {
        error: error.to_string(),
    };
    let product = match broker.about().await {
        Ok(product) => product,
        Err(error) => return failed(error),
    };
    let queues = topology::server_queues(config.broker.partitions, config.broker.queue_type);
    let names: Vec<_> = queues.iter().map(|queue| queue.name.as_str()).collect();
    let depths = match broker.depth(&names).await {
        Ok(depths) => depths,
        Err(error) => return failed(error),
    };
    let old = match setup::old_queues(broker, config.broker.partitions).await {
        Ok(old) => old,
        Err(error) => return failed(error),
    };
    let old = old
        .into_iter()
        .map(|(partition, depth)| (topology::results_queue_name(partition), Some(depth)));
    let queues = names.into_iter().map(str::to_owned).zip(depths).chain(old);
    Part::Up(BrokerStatus {
        product,
        location: config.broker.dsn.to_string(),
        queues: queues
            .map(|(queue, depth)| QueueStatus::new(&queue, depth))
            .collect(),
    })
}

async fn store_status(store: &dyn Store) -> Part<About> {
    match store.about().await {
        Ok(about) => Part::Up(about),
        Err(error) => Part::Failed {
            error: error.to_string(),
        },
    }
}

impl QueueStatus {
    fn new(queue: &str, depth: Option<QueueDepth>) -> Self {
        Self {
            queue: queue.to_owned(),
            ready: depth.map(|depth| depth.ready),
            consumers: depth.map(|depth| depth.consumers),
        }
    }
}

fn answer_status(status: &Status, json: bool) -> anyhow::Result<ExitCode> {
    let both = matches!((&status.broker, &status.store), (Part::Up(_), Part::Up(_)));
    if json {
        answer(&format!("{}\n", serde_json::to_string_pretty(status)?))?;
    } else {
        answer(&status.text())?;
    }
    Ok(ExitCode::from(if both { 0 } else { EXIT_NO }))
}

impl Status {
    fn text(&self) -> String {
        let broker = match &self.broker {
            Part::Up(broker) => {
                let queues: String = broker.queues.iter().map(QueueStatus::line).collect();
                format!("{} at {}\n{queues}", broker.product, broker.location)
            }
            Part::Failed { error } => format!("{error}\n"),
        };
        let store = match &self.store {
            Part::Up(store) => format!(
                "{} at {}: {} node documents",
                store.product, store.location, store.documents
            ),
            Part::Failed { error } => error.clone(),
        };
        format!("broker  {broker}store   {store}\n")
    }
}

impl QueueStatus {
    fn line(&self) -> String {
        match (self.ready, self.consumers) {
            (Some(ready), Some(consumers)) => {
                format!(
                    "  {:<24} {ready:>8} ready {consumers:>4} consumers\n",
                    self.queue
                )
            }
            _ => format!(
                "  {:<24} is not there: run `vogeler admin setup`\n",
                self.queue
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(store: Part<About>) -> Status {
        let queues = [("vogeler.results.0", Some(3)), ("vogeler.dead", None)];
        let depth = |ready| QueueDepth {
            ready,
            consumers: 1,
        };
        Status {
            broker: Part::Up(BrokerStatus {
                product: "RabbitMQ 3.10.8".to_owned(),
                location: "amqp://guest:***@127.0.0.1:5672/%2f".to_owned(),
                queues: queues
                    .map(|(queue, ready)| QueueStatus::new(queue, ready.map(depth)))
                    .into(),
            }),
            store,
        }
    }

    /// Goal: the JSON of `status` is stable, for both parts up and for one that failed.
    #[test]
    fn the_json_of_status_is_stable() {
        let failed = status(Part::Failed {
            error: "away".to_owned(),
        });
        let json = serde_json::to_value(failed).unwrap();
        let expected = serde_json::json!({
            "broker": {"product": "RabbitMQ 3.10.8", "location": "amqp://guest:***@127.0.0.1:5672/%2f", "queues": [
                {"queue": "vogeler.results.0", "ready": 3, "consumers": 1},
                {"queue": "vogeler.dead", "ready": null, "consumers": null},
            ]},
            "store": {"error": "away"},
        });
        assert_eq!(json, expected);
    }

    /// Goal: the text says per queue what is in it, and what to do about one that is missing.
    #[test]
    fn the_text_of_status_says_what_to_do() {
        let about = About {
            product: "CouchDB 3.5.0".to_owned(),
            location: "http://db:5984/x".to_owned(),
            documents: 7,
        };
        let text = status(Part::Up(about)).text();
        assert!(
            text.contains("vogeler.results.0") && text.contains("3 ready    1 consumers"),
            "{text}"
        );
        assert!(
            text.contains("is not there: run `vogeler admin setup`"),
            "{text}"
        );
        assert!(
            text.ends_with("store   CouchDB 3.5.0 at http://db:5984/x: 7 node documents\n"),
            "{text}"
        );
    }
}
