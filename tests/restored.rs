//! Exchanges, queues and bindings that somebody takes away under a running server: they are back soon, results flow again, and
//! log, metric and `/readyz` say what happened.

use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, ExchangeDeleteOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties, ExchangeKind};
use serde_json::{Value, json};
use vogeler::broker::topology::{self, DEAD_QUEUE, result_key};
use vogeler::wire::RunId;

use crate::harness::pipeline::{eventually_within, in_system, message, value};
use crate::harness::scene::Scene;

/// A look is many round trips, and the machine may be busy.
const PATIENCE: Duration = Duration::from_mins(2);
/// Looks every second, unless a test wants to see that one is asked for.
const EVERY_SECOND: [(&str, &str); 1] = [("SERVER_REDECLARE_EVERY", "1s")];
/// The first look is at random within this.
const SELDOM: [(&str, &str); 1] = [("SERVER_REDECLARE_EVERY", "1h")];

/// A scene, and somebody with rights at its broker and no idea.
struct Vandal {
    scene: Scene,
    _connection: Connection,
    channel: Channel,
}

impl Vandal {
    async fn new(settings: &[(&str, &str)]) -> Self {
        let scene = Scene::new(settings).await;
        let properties = ConnectionProperties::default();
        let connection = Connection::connect(scene.vhost.as_str(), properties)
            .await
            .unwrap();
        let channel = connection.create_channel().await.unwrap();
        Self {
            scene,
            _connection: connection,
            channel,
        }
    }

    async fn delete_exchange(&self, name: &str) {
        let options = ExchangeDeleteOptions {
            if_unused: false,
            nowait: false,
        };
        self.channel
            .exchange_delete(name.into(), options)
            .await
            .unwrap();
    }

    async fn delete_queue(&self, name: &str) {
        let options = QueueDeleteOptions {
            if_unused: false,
            if_empty: false,
            nowait: false,
        };
        self.channel
            .queue_delete(name.into(), options)
            .await
            .unwrap();
    }

    async fn unbind(&self, queue: &str, exchange: &str, key: &str) {
        let (queue, exchange, key) = (queue.into(), exchange.into(), key.into());
        self.channel
            .queue_unbind(queue, exchange, key, FieldTable::default())
            .await
            .unwrap();
    }

    /// Publishes a result of `seq` until a queue takes it, and waits until it is stored.
    async fn flows(&self, node: &str, seq: u64) {
        let result = value(node, "rpms", seq, &json!(seq));
        eventually_within(PATIENCE, "a queue takes the result", async || {
            let message = message(&result_key(&result.node), result.encode().unwrap());
            self.scene.broker.publish(message).await.ok()
        })
        .await;
        eventually_within(PATIENCE, "it is stored", async || {
            (self.scene.document(node).await["rpms"] == json!(seq)).then_some(())
        })
        .await;
    }

    /// Publishes results of a run until a receipt comes.
    async fn receipts_flow(&self) {
        let run = RunId::generate();
        let queue = topology::receipts_queue(run);
        let mut receipts = self.scene.broker.consume(&queue, 10).await.unwrap();
        let mut seq = 0;
        eventually_within(PATIENCE, "a receipt comes", async || {
            seq += 1;
            let mut result = value("n3", "rpms", seq, &json!(seq));
            result.run = Some(run);
            self.scene.publish(&result).await;
            let receipt = tokio::time::timeout(Duration::from_secs(1), receipts.next()).await;
            receipt.ok()??.settler.ack();
            Some(())
        })
        .await;
        receipts.close(Duration::from_secs(5)).await;
    }

    /// Publishes what is no result, and waits for so many dead letters.
    async fn dead_letters(&self, count: u64) {
        let node = "n1".parse().unwrap();
        let garbage = message(&result_key(&node), b"no result".to_vec());
        self.scene.broker.publish(garbage).await.unwrap();
        eventually_within(PATIENCE, "the dead letter is there", async || {
            let depths = self.scene.broker.depth(&[DEAD_QUEUE]).await.unwrap();
            (depths[0]?.ready == count).then_some(())
        })
        .await;
    }

    /// Waits for `condition` of the scene.
    async fn until(&self, what: &str, condition: impl Fn() -> bool) {
        eventually_within(PATIENCE, what, async || {
            self.scene.check_accounts();
            condition().then_some(())
        })
        .await;
    }

    async fn until_ready(&self, is_ready: bool) {
        let status = if is_ready { 200 } else { 503 };
        self.until("/readyz answers so", || {
            let answer = self.scene.v.get("/readyz");
            answer.is_some_and(|(now, _)| now == status)
        })
        .await;
    }

    fn topology(&self) -> Value {
        let (_, body) = self.scene.v.get("/readyz").unwrap();
        let body: Value = serde_json::from_str(&body).unwrap();
        body["topology"].clone()
    }

    /// Waits until `name` was restored, as log, metric and `/readyz` say.
    async fn restored(&self, name: &str, count: f64) {
        let scene = &self.scene;
        self.until("it was restored", || {
            scene.metric("vogeler_topology_restored_total") >= count
        })
        .await;
        self.until("readyz says so", || {
            let topology = self.topology();
            topology["ok"] == true && topology["restored"]["names"].to_string().contains(name)
        })
        .await;
        assert_eq!(scene.metric("vogeler_topology_missing").to_string(), "0");
        let told = scene.logged("gone from the broker");
        assert!(told >= 1, "{told} times in the log");
    }
}

/// Goal: the results' exchange is deleted, and later one of its bindings: clients' results flow again soon, and the exchange is
/// told of.
#[test]
fn results_flow_again_after_their_exchange_or_binding_went() {
    in_system(async {
        let vandal = Vandal::new(&EVERY_SECOND).await;
        vandal.flows("n1", 1).await;
        // One that goes in the moment between a look and its declarations is mended before anybody sees that it was gone.
        let mut seq = 1;
        while vandal.scene.metric("vogeler_topology_restored_total") < 1.0 {
            assert!(seq < 10, "nobody noticed it {seq} times");
            seq += 1;
            vandal.delete_exchange("vogeler.master.in").await;
            vandal.flows("n1", seq).await;
            vandal.scene.pass(Duration::from_secs(5)).await;
        }
        vandal.restored("exchange vogeler.master.in", 1.0).await;

        let key = result_key(&"n1".parse().unwrap());
        for queue in ["vogeler.results.0", "vogeler.results.1"] {
            vandal.unbind(queue, "vogeler.master.in", &key).await;
        }
        vandal.flows("n1", seq + 1).await;
        // All of them are there, and the one of 2010 as well.
        let legacy = message("", value("n2", "rpms", 1, &json!(1)).encode().unwrap());
        vandal.scene.broker.publish(legacy).await.unwrap();
        vandal.until_ready(true).await;
        vandal.scene.end().await;
    });
}

/// Goal: what the servers tell each other by, and receipts, are restored too.
#[test]
fn every_exchange_is_restored() {
    in_system(async {
        let vandal = Vandal::new(&EVERY_SECOND).await;
        let names = topology::Exchange::ALL.map(topology::Exchange::name);
        for name in names {
            vandal.delete_exchange(name).await;
        }
        vandal
            .until("all are restored", || {
                vandal.scene.metric("vogeler_topology_restored_total") >= 4.0
            })
            .await;
        vandal.flows("n1", 1).await;
        vandal.receipts_flow().await;
        vandal.dead_letters(1).await;
        assert!(
            vandal
                .scene
                .broker
                .missing(&[DEAD_QUEUE])
                .await
                .unwrap()
                .is_empty()
        );
        vandal.scene.end().await;
    });
}

/// Goal: the dead letters' queue is deleted: it is there again, and told of.
#[test]
fn the_queue_of_dead_letters_is_restored() {
    in_system(async {
        let vandal = Vandal::new(&EVERY_SECOND).await;
        vandal.delete_queue(DEAD_QUEUE).await;
        vandal.restored("queue vogeler.dead", 1.0).await;
        vandal.dead_letters(1).await;
        vandal.scene.end().await;
    });
}

/// Goal: a queue of results is deleted with what was in it: its consumer makes it anew before anybody looks, and still it is
/// told and counted.
#[test]
fn a_deleted_queue_of_results_is_told() {
    in_system(async {
        let vandal = Vandal::new(&SELDOM).await;
        vandal.flows("n1", 1).await;
        for queue in ["vogeler.results.0", "vogeler.results.1"] {
            vandal.delete_queue(queue).await;
        }
        vandal
            .until("both are counted", || {
                vandal.scene.metric("vogeler_topology_restored_total") >= 2.0
            })
            .await;
        assert_eq!(vandal.scene.logged("what was in it is lost"), 2);
        vandal.flows("n1", 2).await;
        vandal.flows("n2", 1).await;
        vandal.until_ready(true).await;
        vandal.scene.end().await;
    });
}

/// Goal: a dead letter that finds no queue, since its binding went, makes the server look at once.
#[test]
fn a_dead_letter_without_a_queue_asks_for_a_look() {
    in_system(async {
        let vandal = Vandal::new(&SELDOM).await;
        vandal.unbind(DEAD_QUEUE, "vogeler.dead", "").await;
        vandal.dead_letters(1).await;
        vandal.scene.end().await;
    });
}

/// Goal: an exchange that came back as something else makes the server unready, with the reason, until it is gone.
#[test]
fn an_exchange_of_another_kind_is_told() {
    in_system(async {
        let vandal = Vandal::new(&EVERY_SECOND).await;
        vandal.delete_exchange("vogeler.receipts").await;
        let options = ExchangeDeclareOptions {
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        let made = vandal.channel.exchange_declare(
            "vogeler.receipts".into(),
            ExchangeKind::Fanout,
            options,
            FieldTable::default(),
        );
        made.await.unwrap();
        vandal.until_ready(false).await;
        let topology = vandal.topology();
        assert!(
            topology["reason"]
                .as_str()
                .unwrap()
                .contains("vogeler.receipts"),
            "{topology}"
        );
        assert_eq!(
            vandal.scene.metric("vogeler_topology_missing").to_string(),
            "1"
        );
        vandal.delete_exchange("vogeler.receipts").await;
        vandal.until_ready(true).await;
        vandal.scene.end().await;
    });
}
