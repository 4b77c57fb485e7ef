//! Outages of broker and store around the real server: it pauses, says so once, holds or gives back, and recovers by itself.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;

use crate::harness::pipeline::{eventually, in_system};
use crate::harness::proxy::{Fault, Rule};
use crate::harness::rabbit::Rabbit;
use crate::harness::scene::Scene;

const NODES: [&str; 5] = ["n1", "n2", "n3", "n4", "n5"];
const PAUSED: &str = "paused: results wait";
const BACK: &str = "gate: the store is back";

/// Goal: while connections to the store are refused the server holds results, is not ready, and says so once; it notices
/// by itself, without any traffic, that the store is back.
#[test]
fn a_store_that_is_away_is_waited_for() {
    in_system(async {
        let scene = Scene::new(&[]).await;
        scene.store.refuse(true);
        scene.publish_all(&NODES, 1, &json!(1)).await;
        scene.until_ready(false).await;
        scene.pass(Duration::from_secs(2)).await;
        assert_eq!(scene.metric("vogeler_up{part=\"store\"}").to_string(), "0");
        let unacked = scene.of_partitions("vogeler_queue_messages_unacked");
        assert_eq!(unacked.to_string(), "5");
        let lag = scene.of_partitions("vogeler_queue_lag_seconds");
        assert!(lag >= 2.0, "{lag}");
        scene.store.refuse(false);
        scene.until_ready(true).await;
        scene.until_ended("stored", 5.0).await;
        assert_eq!((scene.logged(PAUSED), scene.logged(BACK)), (1, 1));
        assert_eq!(scene.ended("requeued").to_string(), "0");
        let reconnects = scene.metric("vogeler_reconnects_total{part=\"store\"}");
        assert_eq!(reconnects.to_string(), "1");
        let lag = scene.of_partitions("vogeler_queue_lag_seconds");
        assert_eq!(lag.to_string(), "0");
        scene.end().await;
    });
}

/// Goal: a pause that the store asks for is kept to, by all.
#[test]
fn retry_after_is_kept_to() {
    in_system(async {
        let scene = Scene::new(&[]).await;
        let away = r#"{"error":"service_unavailable","reason":"overloaded"}"#;
        let overloaded = Fault::Answer(503, "Retry-After: 2\r\n", away.to_owned());
        scene
            .store
            .rule(Rule::new("_all_docs", overloaded).times(1));
        let before = scene.store.requests("_all_docs").len();
        scene.publish_all(&NODES, 1, &json!(1)).await;
        scene.until_ended("stored", 5.0).await;
        let requests = scene.store.requests("_all_docs");
        let pause = requests[before + 1].at - requests[before].at;
        assert!(pause >= Duration::from_secs(2), "{pause:?}");
        scene.end().await;
    });
}

/// Goal: while the store refuses our password it is asked at a long interval, by one at a time; it is no restart that mends it.
#[test]
fn a_refused_password_is_not_hammered() {
    in_system(async {
        let scene = Scene::new(&[("SERVER_REFUSED_PAUSE", "1s"), ("SERVER_LINGER", "1ms")]).await;
        let refused = r#"{"error":"unauthorized","reason":"Name or password is incorrect."}"#;
        scene
            .store
            .rule(Rule::new("", Fault::Answer(401, "", refused.to_owned())));
        let before = scene.store.requests("_all_docs").len();
        for seq in 1..=20 {
            scene.publish_all(&NODES, seq, &json!(seq)).await;
        }
        scene.until_ready(false).await;
        let (_, body) = scene.v.get("/readyz").unwrap();
        assert!(body.contains("refuses access"), "{body}");
        scene.pass(Duration::from_secs(3)).await;
        let asked = scene.store.requests("_all_docs").len() - before;
        // What was in flight when it began (4), and one a second.
        assert!((2..=9).contains(&asked), "asked {asked} times");
        scene.store.clear();
        scene
            .until("all are settled", || {
                scene.ended("stored") + scene.ended("superseded") >= 100.0
            })
            .await;
        assert_eq!((scene.logged(PAUSED), scene.logged(BACK)), (1, 1));
        assert!(
            scene.metric("vogeler_store_requests_total{kind=\"load\",status=\"unauthorized\"}")
                >= 1.0
        );
        scene.end().await;
    });
}

/// Goal: after the database was deleted and made again, what the server knew of its documents does not count any more.
#[test]
fn a_database_that_was_deleted_is_filled_again() {
    in_system(async {
        let scene = Scene::new(&[]).await;
        scene.publish_all(&NODES, 1, &json!(1)).await;
        scene.until_ended("stored", 5.0).await;
        scene.publish_all(&NODES, 2, &json!(1)).await;
        scene.until_ended("unchanged", 5.0).await;

        scene.database(Method::DELETE).await;
        scene.publish_all(&["n1"], 3, &json!(2)).await;
        scene.until_ready(false).await;
        let (_, body) = scene.v.get("/readyz").unwrap();
        assert!(body.contains("there is no database"), "{body}");
        scene.database(Method::PUT).await;
        scene.until_ended("stored", 6.0).await;
        scene.publish_all(&NODES[1..], 4, &json!(1)).await;
        scene.until_ended("stored", 10.0).await;

        // Deleted and made while nobody looked: the first document that is missed tells of the others.
        scene.database(Method::DELETE).await;
        scene.database(Method::PUT).await;
        scene.publish_all(&["n1"], 5, &json!(3)).await;
        scene.until_ended("stored", 11.0).await;
        scene.publish_all(&NODES[1..], 6, &json!(1)).await;
        scene.until_ended("stored", 15.0).await;
        assert_eq!(scene.document("n5").await["rpms"], json!(1));
        scene.end().await;
    });
}

/// Goal: held for `hold_max`, results go back to the broker once, and the server stops pulling until the store is back.
#[test]
fn results_held_too_long_go_back_once() {
    in_system(async {
        let scene = Scene::new(&[("SERVER_HOLD_MAX", "1s")]).await;
        scene.store.refuse(true);
        for seq in 1..=20 {
            scene.publish_all(&NODES, seq, &json!(seq)).await;
        }
        eventually("all are back at the broker", async || {
            scene.check_accounts();
            // Not those that were never pulled.
            let [received, _, in_flight] = scene.v.accounts()?;
            let is_idle = received >= 100.0 && in_flight < 0.5;
            (is_idle && scene.waiting().await == 100).then_some(())
        })
        .await;
        let [received, ..] = scene.v.accounts().unwrap();
        scene.publish_all(&NODES, 21, &json!(21)).await;
        scene.pass(Duration::from_secs(3)).await;
        let [later, ..] = scene.v.accounts().unwrap();
        assert_eq!(
            (received, scene.waiting().await),
            (later, 105),
            "nothing is pulled"
        );
        scene
            .until("the metrics tell of the backlog", || {
                scene.of_partitions("vogeler_queue_messages_ready") > 104.5
            })
            .await;
        assert!(received <= 105.0, "each came once: {received}");
        scene.store.refuse(false);
        scene
            .until("all are settled", || {
                scene.ended("stored") + scene.ended("superseded") >= 105.0
            })
            .await;
        for node in NODES {
            assert_eq!(scene.document(node).await["rpms"], json!(21));
        }
        assert_eq!(
            (
                scene.logged("results go back to the broker"),
                scene.logged("pulling results again")
            ),
            (1, 1)
        );
        scene.end().await;
    });
}

/// Goal: connections to the broker that are cut or refused, and a queue that is deleted, cost time and no result.
#[test]
fn a_broker_that_goes_comes_back() {
    in_system(async {
        let scene = Scene::new(&[]).await;
        scene.publish_all(&NODES, 1, &json!(1)).await;
        scene.until_ended("stored", 5.0).await;
        scene.rabbit.cut();
        scene.publish_all(&NODES, 2, &json!(2)).await;
        scene
            .until("stored after a cut", || scene.ended("stored") >= 10.0)
            .await;
        scene.rabbit.refuse(true);
        scene.until_ready(false).await;
        scene.publish_all(&NODES, 3, &json!(3)).await;
        scene.rabbit.refuse(false);
        scene.until_ready(true).await;
        assert!(scene.metric("vogeler_reconnects_total{part=\"broker\"}") >= 1.0);
        scene.until_ended("stored", 15.0).await;
        let vhost = scene.vhost.path().trim_start_matches('/');
        for queue in ["vogeler.results.0", "vogeler.results.1"] {
            Rabbit::shared().ctl(&["delete_queue", queue, "--vhost", vhost]);
        }
        eventually("the queues are consumed again", async || {
            let depths = scene
                .broker
                .depth(&["vogeler.results.0", "vogeler.results.1"])
                .await;
            let depths = depths.ok()?;
            depths
                .iter()
                .all(|depth| depth.is_some_and(|depth| depth.consumers == 1))
                .then_some(())
        })
        .await;
        scene.publish_all(&NODES, 4, &json!(4)).await;
        scene.until_ended("stored", 20.0).await;
        for node in NODES {
            assert_eq!(scene.document(node).await["rpms"], json!(4));
        }
        scene.end().await;
    });
}

/// Goal: a broker that is killed and started again gives back what was durable, and the server goes on.
#[test]
fn a_broker_that_restarts_loses_nothing() {
    in_system(async {
        let mut rabbit = tokio::task::spawn_blocking(Rabbit::private).await.unwrap();
        let scene = Scene::on(rabbit.fresh_vhost(), &[]).await;
        scene.store.rule(Rule::new("_bulk_docs", Fault::Stall));
        scene.publish_all(&NODES, 1, &json!(1)).await;
        scene
            .until("they are in flight", || {
                scene.metric("vogeler_results_in_flight") >= 5.0
            })
            .await;
        let restarted = tokio::task::spawn_blocking(move || {
            rabbit.kill();
            rabbit.start();
            rabbit
        });
        let rabbit = restarted.await.unwrap();
        scene.store.clear();
        scene.until_ready(true).await;
        scene
            .until("all are settled", || {
                scene.metric("vogeler_results_in_flight") < 0.5 && scene.ended("stored") >= 5.0
            })
            .await;
        eventually("the broker holds nothing", async || {
            (scene.waiting().await == 0).then_some(())
        })
        .await;
        for node in NODES {
            assert_eq!(scene.document(node).await["rpms"], json!(1));
        }
        scene.end().await;
        drop(rabbit);
    });
}

/// Goal: a store that is slow delays results and loses none: the server stays ready, and writes less at once.
#[test]
fn a_slow_store_gets_smaller_batches() {
    in_system(async {
        let settings = [
            ("SERVER_BATCH_COUNT_MAX", "20"),
            ("SERVER_WRITE_TARGET", "1s"),
        ];
        let scene = Scene::new(&settings).await;
        let slow = Fault::Delay(Duration::from_secs(2));
        // Four writes at once, and then the two that are left after they were too slow.
        scene.store.rule(Rule::new("_bulk_docs", slow).times(6));
        let nodes: Vec<String> = (0..200).map(|number| format!("slow{number}")).collect();
        let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
        scene.publish_all(&nodes, 1, &json!(1)).await;
        scene
            .until("all are stored", || {
                let (status, body) = scene.v.get("/readyz").unwrap();
                assert_eq!(status, 200, "{body}");
                scene.ended("stored") >= 200.0
            })
            .await;
        let writes = scene.store.requests("_bulk_docs");
        let sizes: Vec<usize> = writes
            .iter()
            .map(|write| {
                let body: serde_json::Value = serde_json::from_str(&write.body).unwrap();
                body["docs"].as_array().unwrap().len()
            })
            .collect();
        assert_eq!(sizes[..4], [20; 4], "{sizes:?}");
        // Halved by the first round and by the second, with a backlog that would fill more.
        assert!(sizes[6] <= 5, "{sizes:?}");
        assert_eq!(scene.ended("requeued").to_string(), "0");
        scene.end().await;
    });
}
