//! The accounting identity, on real services: every delivery ends in exactly one counted outcome.

use serde_json::json;

use crate::harness::pipeline::{in_system, message, value};
use crate::harness::proxy::{Fault, Rule};
use crate::harness::scene::Scene;

/// Goal: one delivery of each kind is counted as what it is, at every scrape the counts add up, and a redelivery after a
/// cut connection is one more received and one more ended.
#[test]
fn every_delivery_is_counted_once() {
    in_system(async {
        let scene = Scene::new(&[("SERVER_HOLD_MAX", "1s")]).await;
        let rpms = |seq, content: u8| value("web01", "rpms", seq, &json!(content));
        scene.publish(&rpms(10, 1)).await;
        scene.until_ended("stored", 1.0).await;
        scene.publish(&rpms(11, 1)).await;
        scene.until_ended("unchanged", 1.0).await;
        scene.publish(&rpms(9, 2)).await;
        scene.until_ended("stale", 1.0).await;
        for seq in 12..15 {
            scene.publish(&rpms(seq, 2)).await;
        }
        scene.until_ended("superseded", 2.0).await;
        scene
            .broker
            .publish(message("000", b"no result".to_vec()))
            .await
            .unwrap();
        scene.until_ended("dead_lettered", 1.0).await;
        let away = Fault::Answer(503, "", "{}".to_owned());
        scene.store.rule(Rule::new("", away));
        scene.publish(&rpms(20, 3)).await;
        scene.until_ended("requeued", 1.0).await;
        scene.store.clear();
        scene.until_ended("stored", 3.0).await;
        let outcomes = [
            ("stored", 3.0),
            ("unchanged", 1.0),
            ("stale", 1.0),
            ("superseded", 2.0),
            ("dead_lettered", 1.0),
            ("requeued", 1.0),
        ];
        for (outcome, count) in outcomes {
            assert_eq!(
                scene.ended(outcome).to_string(),
                f64::to_string(&count),
                "{outcome}"
            );
        }
        let [received, ended, in_flight] = scene.v.accounts().unwrap();
        assert_eq!((received, ended, in_flight), (9.0, 9.0, 0.0));
        scene.end().await;
    });
}
