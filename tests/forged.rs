//! Announcements of servers that are not there: whoever may publish to `vogeler.servers` can make them, and they must not
//! keep a partition from being consumed.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use vogeler::broker::topology::{self, Exchange};
use vogeler::broker::{self, Broker, Message, Properties};

use crate::harness::pipeline::{eventually, in_system, value};
use crate::harness::scene::Scene;

/// As many as a server would remember.
const FORGED: u128 = 255;
/// Longer than a substitute served, and than it stayed away.
const ATTACK: Duration = Duration::from_secs(12);
/// What a result may take meanwhile, on a busy machine.
const SETTLED_WITHIN: Duration = Duration::from_secs(20);

/// Announces servers that are not there, once a second, until `stop`.
async fn announce(broker: Arc<dyn Broker>, stop: CancellationToken) {
    let mut beat = 0;
    while !stop.is_cancelled() {
        beat += 1;
        let messages = (1..=FORGED).map(|number| {
            let server = Uuid::from_u128(number);
            let text = json!({"server": server, "beat": beat, "partitions": 2});
            broker.publish(Message {
                exchange: Exchange::Servers,
                routing_key: String::new(),
                body: text.to_string().into(),
                properties: Properties::default(),
                persistent: false,
                mandatory: false,
            })
        });
        futures::future::join_all(messages).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Somebody who may publish to the servers' exchange.
fn forger(scene: &Scene) -> Arc<dyn Broker> {
    broker::open(&vogeler::config::Broker {
        dsn: scene.vhost.as_str().parse().unwrap(),
        ..vogeler::config::Broker::default()
    })
}

fn partitions(scene: &Scene) -> Value {
    let (_, body) = scene.v.get("/readyz").unwrap();
    let body: Value = serde_json::from_str(&body).unwrap();
    body["partitions"].clone()
}

/// Goal: while 255 servers are announced that are not there, a server owns all partitions and consumes them without a pause,
/// results are stored, and log, metric and `/readyz` say how many were left out.
#[test]
fn servers_that_are_not_there_own_nothing() {
    in_system(async {
        let scene = Scene::new(&[]).await;
        let stop = CancellationToken::new();
        let forger = forger(&scene);
        let attack = tokio::spawn(announce(Arc::clone(&forger), stop.clone()));
        // Not all of them: on a busy machine some are silent for too long in between.
        scene
            .until("they are left out", || {
                scene.metric("vogeler_servers_left_out") >= 50.0
            })
            .await;
        let (started, mut seq) = (tokio::time::Instant::now(), 0);
        let queues = ["vogeler.results.0", "vogeler.results.1"];
        while started.elapsed() < ATTACK {
            seq += 1;
            scene
                .publish_all(&["n1", "n2", "n3", "n4"], seq, &json!(seq))
                .await;
            let sent = tokio::time::Instant::now();
            #[allow(clippy::cast_precision_loss, reason = "small")]
            scene.until_ended("stored", 4.0 * seq as f64).await;
            assert!(sent.elapsed() < SETTLED_WITHIN, "{:?}", sent.elapsed());
            let depths = scene.broker.depth(&queues).await.unwrap();
            let is_consumed = depths.iter().flatten().all(|depth| depth.consumers == 1);
            assert!(is_consumed, "{depths:?}");
        }
        let known = partitions(&scene);
        assert_eq!(
            (&known["owned"], &known["servers"]),
            (&json!([0, 1]), &json!(1))
        );
        assert!(known["left_out"].as_u64() >= Some(50), "{known}");
        assert_eq!(scene.metric("vogeler_servers").to_string(), "1");
        assert_eq!(scene.metric("vogeler_rebalances_total").to_string(), "0");
        assert_eq!(scene.logged("left to another server"), 0);
        assert!(scene.logged("they own nothing") >= 1);
        stop.cancel();
        attack.await.unwrap();
        scene
            .until("they are forgotten", || {
                scene.metric("vogeler_servers_left_out") < 0.5
            })
            .await;
        forger.close().await;
        scene.end().await;
    });
}

/// Goal: a forger that even holds the queue of a server that does not consume takes partitions away for moments only, less
/// and less often, and results are stored all the same.
#[test]
fn an_owner_that_never_comes_is_filled_in_for() {
    in_system(async {
        // What the broker counts as consumers of such a queue differs by its type: this is the default one.
        let scene = Scene::new(&[("BROKER_QUEUE_TYPE", "quorum")]).await;
        let forger = forger(&scene);
        // Held by a consumer, as a server does.
        let mut held = Vec::new();
        for number in 1..=3 {
            let queue = topology::server_queue(&Uuid::from_u128(number).to_string());
            held.push(forger.consume(&queue, 1).await.unwrap());
        }
        let stop = CancellationToken::new();
        let attack = tokio::spawn(announce(Arc::clone(&forger), stop.clone()));
        scene
            .until("they count", || scene.metric("vogeler_servers") >= 4.0)
            .await;
        let mut seq = 0;
        let started = tokio::time::Instant::now();
        while started.elapsed() < ATTACK {
            seq += 1;
            scene
                .publish_all(&["n1", "n2", "n3", "n4"], seq, &json!(seq))
                .await;
            let sent = tokio::time::Instant::now();
            eventually("the round is stored", async || {
                for node in ["n1", "n2", "n3", "n4"] {
                    if scene.document(node).await["rpms"] != json!(seq) {
                        return None;
                    }
                }
                Some(())
            })
            .await;
            assert!(sent.elapsed() < SETTLED_WITHIN, "{:?}", sent.elapsed());
        }
        let yields = scene.logged("left to another server");
        println!("{yields} yields in {ATTACK:?}, {seq} rounds");
        // For two partitions: at once, after a moment, a second, four and sixteen.
        assert!((1..=2 * 5).contains(&yields), "{yields}");
        scene
            .until("it came back each time", || {
                scene.logged("no other server came") >= 1
            })
            .await;
        stop.cancel();
        attack.await.unwrap();
        let again = value("n5", "rpms", 1, &json!(1));
        scene.publish(&again).await;
        forger.close().await;
        scene
            .until("it owns all again", || {
                partitions(&scene)["owned"] == json!([0, 1])
            })
            .await;
        scene.end().await;
    });
}
