//! Stopping the real server while the store is stuck: in time, and without loss.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use crate::harness::pipeline::{eventually, in_system};
use crate::harness::proxy::{Fault, Rule};
use crate::harness::scene::Scene;

const NODES: [&str; 3] = ["n1", "n2", "n3"];

async fn stuck(settings: &[(&str, &str)]) -> Scene {
    let scene = Scene::new(settings).await;
    scene.store.rule(Rule::new("", Fault::Stall));
    scene.publish_all(&NODES, 1, &json!(1)).await;
    scene
        .until("they are in flight", || {
            scene.metric("vogeler_results_in_flight") >= 3.0
        })
        .await;
    scene
}

/// All that was held is at the broker again, and the next server stores it.
async fn comes_again(mut scene: Scene) {
    eventually("they are back at the broker", async || {
        (scene.waiting().await == 3).then_some(())
    })
    .await;
    scene.store.clear();
    scene.server = Some(scene.v.server());
    scene.until_ended("stored", 3.0).await;
    for node in NODES {
        assert_eq!(scene.document(node).await["rpms"], json!(1));
    }
    scene.end().await;
}

/// Goal: with a stuck store, SIGTERM ends the server soon after its drain deadline, and what it held comes again.
#[test]
fn the_drain_deadline_is_kept() {
    in_system(async {
        let mut scene = stuck(&[("SERVER_DRAIN_TIMEOUT", "1s")]).await;
        let server = scene.server.take().unwrap();
        let start = Instant::now();
        assert_eq!(server.stop().code(), Some(0));
        let took = start.elapsed();
        assert!(
            took >= Duration::from_secs(1) && took < Duration::from_secs(6),
            "{took:?}"
        );
        comes_again(scene).await;
    });
}

/// Signals that come within half a second are one.
const ANOTHER_SIGNAL: Duration = Duration::from_millis(600);

/// Goal: a second SIGTERM ends the server at once, and what it held comes again.
#[test]
fn a_second_signal_ends_at_once() {
    in_system(async {
        let mut scene = stuck(&[("SERVER_DRAIN_TIMEOUT", "60s")]).await;
        let mut server = scene.server.take().unwrap();
        server.signal(Signal::TERM);
        eventually("it stops", async || {
            server
                .log()
                .contains("no more results are pulled")
                .then_some(())
        })
        .await;
        tokio::time::sleep(ANOTHER_SIGNAL).await;
        let start = Instant::now();
        server.signal(Signal::TERM);
        let status = server.wait(Duration::from_secs(10));
        assert!(
            !status.success() && start.elapsed() < Duration::from_secs(3),
            "{status:?} after {:?}",
            start.elapsed()
        );
        comes_again(scene).await;
    });
}
