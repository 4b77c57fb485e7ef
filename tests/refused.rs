//! Dead letters that the broker refuses: held, told, tried again; no storm, and nothing is lost.

use std::time::{Duration, Instant};

use serde_json::json;
use vogeler::broker::Broker;
use vogeler::broker::topology::{DEAD_QUEUE, Queue, QueueType, dead_queue};
use vogeler::store::memory::MemoryStore;
use vogeler::wire::Outcome;

use crate::harness::pipeline::{Pipeline, eventually_within, in_system, message, quick_config};
use crate::harness::rabbit::Rabbit;
use crate::harness::scene::Scene;

const PATIENCE: Duration = Duration::from_mins(2);
const HELD: &str = "vogeler_dead_letters_held";

/// Runs `rabbitmqctl` for the scene's virtual host.
async fn ctl(scene: &Scene, arguments: &[&str]) {
    let vhost = scene.vhost.path().trim_start_matches('/').to_owned();
    let (command, rest) = arguments.split_first().unwrap();
    let arguments: Vec<String> = [*command, "--vhost", &vhost]
        .iter()
        .chain(rest)
        .map(ToString::to_string)
        .collect();
    let run = move || {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        Rabbit::shared().ctl(&arguments);
    };
    tokio::task::spawn_blocking(run).await.unwrap();
}

async fn until(scene: &Scene, what: &str, mut condition: impl AsyncFnMut() -> bool) {
    eventually_within(PATIENCE, what, async || {
        scene.check_accounts();
        condition().await.then_some(())
    })
    .await;
}

/// How many dead letters are in their queue.
async fn dead(scene: &Scene) -> u64 {
    let depths = scene.broker.depth(&[DEAD_QUEUE]).await.unwrap();
    depths[0].map_or(0, |depth| depth.ready)
}

async fn publish_rubbish(scene: &Scene, texts: &[&str]) {
    for text in texts {
        let message = message("000", text.as_bytes().to_vec());
        scene.broker.publish(message).await.unwrap();
    }
}

/// Goal: while the queue of dead letters is full and rejects, letters are held without being delivered again, results
/// are stored, the server says once that it is not ready and why; when there is room they all leave, and it says so.
#[test]
fn a_full_queue_of_dead_letters_is_waited_for() {
    in_system(async {
        let scene = Scene::new(&[("BROKER_PUBLISH_TIMEOUT", "1s")]).await;
        let full = r#"{"max-length":1,"overflow":"reject-publish"}"#;
        let policy = [
            "set_policy",
            "full",
            "^vogeler\\.dead$",
            full,
            "--apply-to",
            "queues",
        ];
        ctl(&scene, &policy).await;
        publish_rubbish(&scene, &["one"]).await;
        until(&scene, "the first one is taken", async || {
            dead(&scene).await == 1
        })
        .await;
        publish_rubbish(&scene, &["two", "three", "four"]).await;
        until(&scene, "three are held", async || scene.metric(HELD) >= 3.0).await;
        scene.publish_all(&["n1", "n2"], 1, &json!(1)).await;
        scene.until_ended("stored", 2.0).await;
        let (status, body) = scene.v.get("/readyz").unwrap();
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(
            (status, &body["dead_letters"]["ok"]),
            (503, &json!(false)),
            "{body}"
        );
        let reason = body["dead_letters"]["reason"].as_str().unwrap();
        assert!(reason.contains("did not confirm"), "{reason}");
        scene.pass(Duration::from_secs(3)).await;
        assert_eq!(scene.logged("the broker refuses dead letters"), 1);
        assert_eq!(
            scene
                .metric("vogeler_results_redelivered_total")
                .to_string(),
            "0"
        );
        assert_eq!(scene.ended("requeued").to_string(), "0");

        ctl(&scene, &["clear_policy", "full"]).await;
        until(&scene, "all are taken", async || scene.metric(HELD) < 0.5).await;
        scene.until_ended("dead_lettered", 4.0).await;
        // A letter whose confirm came too late is there twice.
        let letters = dead(&scene).await;
        println!("{letters} letters");
        assert!(letters >= 4, "{letters}");
        scene.until_ready(true).await;
        assert_eq!(scene.logged("takes dead letters again"), 1);
        assert_eq!(scene.ended("requeued").to_string(), "0");
        scene.end().await;
    });
}

/// Goal: a server that may not publish dead letters holds them, says why, stores results, and is no storm of log-ins or
/// deliveries; once it may, they leave. It looks at what it needs meanwhile, may not declare it, and is ready soon after.
#[test]
fn a_missing_permission_is_waited_for() {
    in_system(async {
        let scene = Scene::new(&[("SERVER_REDECLARE_EVERY", "5s")]).await;
        let user = scene.vhost.username().to_owned();
        let may_write = |pattern: &'static str| {
            let user = user.clone();
            let scene = &scene;
            async move { ctl(scene, &["set_permissions", &user, ".*", pattern, ".*"]).await }
        };
        may_write("^(?!vogeler[.]dead$).*").await;
        publish_rubbish(&scene, &["one", "two"]).await;
        until(&scene, "both are held", async || scene.metric(HELD) >= 2.0).await;
        scene.publish_all(&["n1", "n2"], 1, &json!(1)).await;
        scene.until_ended("stored", 2.0).await;
        let (status, body) = scene.v.get("/readyz").unwrap();
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        let reason = body["dead_letters"]["reason"].as_str().unwrap();
        assert!(status == 503 && reason.contains("vogeler.dead"), "{body}");
        scene.pass(Duration::from_secs(3)).await;
        assert_eq!(scene.logged("the broker refuses dead letters"), 1);
        may_write(".*").await;
        until(&scene, "both are there", async || dead(&scene).await == 2).await;
        scene.until_ready(true).await;
        assert_eq!(scene.ended("requeued").to_string(), "0");
        scene.end().await;
    });
}

/// Goal: when the queue of dead letters is gone, letters wait until the server has made it anew; none is delivered again.
#[test]
fn a_lost_queue_of_dead_letters_is_waited_for() {
    in_system(async {
        let scene = Scene::new(&[]).await;
        ctl(&scene, &["delete_queue", DEAD_QUEUE]).await;
        publish_rubbish(&scene, &["one", "two"]).await;
        scene.publish_all(&["n1"], 1, &json!(1)).await;
        scene.until_ended("stored", 1.0).await;
        until(&scene, "both are there", async || dead(&scene).await == 2).await;
        scene.until_ready(true).await;
        assert_eq!(
            scene
                .metric("vogeler_results_redelivered_total")
                .to_string(),
            "0"
        );
        assert_eq!(scene.ended("requeued").to_string(), "0");
        scene.end().await;
    });
}

/// Goal: a letter that stays refused goes back once every `hold_max` and no more often, and becomes a letter when the
/// broker takes it.
#[test]
fn a_refused_letter_is_no_hot_loop() {
    in_system(async {
        let mut config = quick_config();
        config.server.hold_max = Duration::from_secs(1);
        let pipeline = Pipeline::start_with(config, MemoryStore::new()).await;
        pipeline.broker.delete(DEAD_QUEUE);
        // Something of that name and another type: the server cannot make its own, and nothing is bound.
        let other = Queue {
            bindings: Vec::new(),
            ..dead_queue(QueueType::Classic)
        };
        pipeline.broker.declare(&[other]).await.unwrap();
        let started = Instant::now();
        pipeline.publish_bytes(b"not json").await;
        eventually_within(PATIENCE, "it went back twice", async || {
            (pipeline.ended(Outcome::Requeued) >= 2).then_some(())
        })
        .await;
        let (went_back, took) = (pipeline.ended(Outcome::Requeued), started.elapsed());
        assert!(
            f64::from(u32::try_from(went_back).unwrap()) <= took.as_secs_f64(),
            "{went_back} times in {took:?}"
        );
        pipeline.broker.delete(DEAD_QUEUE);
        eventually_within(PATIENCE, "it is a dead letter", async || {
            (pipeline.ended(Outcome::DeadLettered) == 1).then_some(())
        })
        .await;
    });
}
