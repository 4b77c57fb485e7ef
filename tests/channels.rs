//! The broker ends what the server consumes by: it cancels the consumer, or closes the channel over deliveries that were
//! held for too long. Either costs time and no result.

use std::sync::LazyLock;
use std::time::Duration;

use serde_json::json;

use crate::harness::pipeline::{eventually, in_system};
use crate::harness::proxy::{Fault, Rule};
use crate::harness::rabbit::Rabbit;
use crate::harness::scene::Scene;

const NODES: [&str; 5] = ["n1", "n2", "n3", "n4", "n5"];
/// RabbitMQ's is half an hour; the tests do not wait for that.
const CONSUMER_TIMEOUT: Duration = Duration::from_secs(6);

/// A RabbitMQ that closes a channel after [`CONSUMER_TIMEOUT`]; it lives as long as this process.
static IMPATIENT: LazyLock<Rabbit> = LazyLock::new(|| Rabbit::impatient(CONSUMER_TIMEOUT));

/// A scene on the impatient RabbitMQ.
async fn impatient_scene(settings: &[(&str, &str)]) -> Scene {
    let vhost = tokio::task::spawn_blocking(|| IMPATIENT.fresh_vhost());
    Scene::on(vhost.await.unwrap(), settings).await
}

/// How many channels of this scene RabbitMQ closed over deliveries that nobody settled.
fn timed_out(scene: &Scene) -> usize {
    let vhost = scene.vhost.path().trim_start_matches('/');
    let channel = format!("vhost: '{vhost}'");
    let log = IMPATIENT.log();
    let mut lines = log.lines().peekable();
    let mut count = 0;
    while let Some(line) = lines.next() {
        let reason = lines.peek().copied().unwrap_or_default();
        count += usize::from(line.contains(&channel) && reason.contains("timed out"));
    }
    count
}

/// Waits until every node has its result of `seq`, and the broker has nothing left.
async fn stored_and_settled(scene: &Scene, seq: u64) {
    // What was pulled is ready no more, and need not be counted in yet: the documents tell that all of it came.
    eventually("everything is stored and settled", async || {
        scene.check_accounts();
        for node in NODES {
            let document = scene.document(node).await;
            let stored = &document["vogeler"]["plugins"]["rpms"]["seq"];
            if *stored != json!(seq) {
                return None;
            }
            assert_eq!(document["rpms"], json!(seq), "{node}");
        }
        let in_flight = scene.metric("vogeler_results_in_flight");
        (in_flight < 0.5 && scene.waiting().await == 0).then_some(())
    })
    .await;
}

/// Goal: queues that are deleted while results of them are in flight are declared again by the server: those results are
/// stored, and so are those that are published afterwards.
#[test]
fn a_cancelled_consumer_declares_its_queue_again() {
    in_system(async {
        let scene = Scene::new(&[]).await;
        scene.store.rule(Rule::new("_all_docs", Fault::Stall));
        scene.publish_all(&NODES, 1, &json!(1)).await;
        scene
            .until("they are in flight", || {
                scene.metric("vogeler_results_in_flight") >= 5.0
            })
            .await;
        let vhost = scene.vhost.path().trim_start_matches('/').to_owned();
        tokio::task::spawn_blocking(move || {
            for queue in ["vogeler.results.0", "vogeler.results.1"] {
                Rabbit::shared().ctl(&["delete_queue", queue, "--vhost", &vhost]);
            }
        })
        .await
        .unwrap();
        eventually("the queues are consumed again", async || {
            let queues = ["vogeler.results.0", "vogeler.results.1"];
            let depths = scene.broker.depth(&queues).await.ok()?;
            let is_consumed = |depth: &Option<_>| {
                depth.is_some_and(|depth: vogeler::broker::QueueDepth| depth.consumers == 1)
            };
            depths.iter().all(is_consumed).then_some(())
        })
        .await;
        assert_eq!(scene.logged("the broker ended the consumer"), 2);
        scene.publish_all(&NODES, 2, &json!(2)).await;
        scene.store.clear();
        stored_and_settled(&scene, 2).await;
        scene.until_ready(true).await;
        scene.end().await;
    });
}

/// Goal: while the store is away for longer than RabbitMQ lets deliveries be held, a server whose `hold_max` is below that
/// gives them back before: no channel is closed over it, and everything is stored once the store is back.
#[test]
fn results_go_back_before_the_consumer_timeout() {
    in_system(async {
        let scene = impatient_scene(&[("SERVER_HOLD_MAX", "1s")]).await;
        scene.store.refuse(true);
        scene.publish_all(&NODES, 1, &json!(1)).await;
        eventually("they are back at the broker", async || {
            scene.check_accounts();
            (scene.ended("requeued") >= 5.0 && scene.waiting().await == 5).then_some(())
        })
        .await;
        scene.pass(CONSUMER_TIMEOUT * 2).await;
        scene.publish_all(&NODES, 2, &json!(2)).await;
        assert_eq!(timed_out(&scene), 0, "{}", IMPATIENT.log());
        scene.store.refuse(false);
        scene.until_ready(true).await;
        stored_and_settled(&scene, 2).await;
        assert_eq!(scene.logged("consuming stopped"), 0);
        scene.end().await;
    });
}

/// Goal: a server whose `hold_max` is above RabbitMQ's consumer timeout has its channels closed again and again while the
/// store is away; it goes on, and nothing is lost or written twice.
#[test]
fn a_channel_closed_over_held_results_is_opened_again() {
    in_system(async {
        let scene = impatient_scene(&[("SERVER_HOLD_MAX", "10min")]).await;
        scene.publish_all(&NODES, 1, &json!(1)).await;
        scene.until_ended("stored", 5.0).await;
        scene.store.refuse(true);
        scene.publish_all(&NODES, 2, &json!(2)).await;
        scene
            .until("RabbitMQ closed both channels", || timed_out(&scene) >= 2)
            .await;
        scene.publish_all(&NODES, 3, &json!(3)).await;
        scene
            .until("it did so once more", || timed_out(&scene) >= 3)
            .await;
        assert!(scene.logged("consuming stopped") >= 2);
        scene.store.refuse(false);
        scene.until_ready(true).await;
        stored_and_settled(&scene, 3).await;
        for node in NODES {
            let document = scene.document(node).await;
            let revision = document["_rev"].as_str().unwrap();
            let writes: u32 = revision.split('-').next().unwrap().parse().unwrap();
            // Copies that came by a new channel were not written once more.
            assert!(
                (2..=3).contains(&writes),
                "{node} was written {writes} times"
            );
        }
        assert_eq!(scene.ended("dead_lettered").to_string(), "0");
        scene.end().await;
    });
}
