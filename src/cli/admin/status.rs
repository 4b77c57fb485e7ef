//! `vogeler admin status`: how broker, queues and store are. Reads, and changes nothing.

use std::process::ExitCode;

use serde::Serialize;

use crate::broker::{self, Broker, QueueDepth, setup, topology};
use crate::cli::{EXIT_NO, answer, answer_exact};
use crate::config::Config;
use crate::store::{self, About};
use crate::terminal;

/// Prints the status, as text or as JSON; exit code 1 unless both answer.
pub(super) async fn run(json: bool, config: &Config) -> anyhow::Result<ExitCode> {
    let broker = broker::open(&config.broker);
    let status = Status {
        broker: broker_status(&*broker, config).await,
        store: store_status(config).await,
    };
    broker.close().await;
    answer_status(&status, json)
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

async fn store_status(config: &Config) -> Part<About> {
    let about = match store::open(&config.store) {
        Ok(store) => {
            let about = store.about().await;
            store.close().await;
            about
        }
        Err(error) => Err(error),
    };
    match about {
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
        answer_exact(&format!("{}\n", serde_json::to_string_pretty(status)?))?;
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
                let product = terminal::line(&broker.product);
                format!("{product} at {}\n{queues}", broker.location)
            }
            Part::Failed { error } => format!("{}\n", terminal::line(error)),
        };
        let store = match &self.store {
            Part::Up(store) => format!(
                "{} at {}: {} node documents",
                terminal::line(&store.product),
                store.location,
                store.documents
            ),
            Part::Failed { error } => terminal::line(error).into_owned(),
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
