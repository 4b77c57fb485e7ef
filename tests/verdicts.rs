//! Every row of the design's table of verdicts, end to end: the real server, a real RabbitMQ, a real store behind a proxy
//! that gives the literal answers of CouchDB 3.5.0 where the store itself cannot be brought to.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;

use crate::harness::pipeline::{in_system, value};
use crate::harness::proxy::{Fault, Rule};
use crate::harness::scene::Scene;

const NODES: [&str; 6] = ["n1", "n2", "n3", "n4", "n5", "n6"];
const WRITE: &str = "_bulk_docs";

fn answer(status: u16, body: &str) -> Fault {
    Fault::Answer(status, "", body.to_owned())
}

async fn assert_stored(scene: &Scene, nodes: &[&str], json: &serde_json::Value) {
    for node in nodes {
        let document = scene.document(node).await;
        assert_eq!(document["rpms"], *json, "{node}: {document}");
    }
}

/// Goal: a document that the store refuses (by a `validate_doc_update`, as too large and named, as bad and not named) is a
/// dead letter, and its neighbours are stored in the same pass.
#[test]
fn refused_documents_are_taken_out() {
    in_system(async {
        let scene = Scene::new(&[]).await;
        let guard = json!({"validate_doc_update":
            "function (n) { if (n.forbidden) throw({forbidden: 'no bad documents'}); }"});
        let (status, body) = scene
            .other()
            .send(Method::PUT, &["_design", "guard"], Some(&guard))
            .await;
        assert!(status.is_success(), "{body}");
        scene
            .publish(&value("refused", "forbidden", 1, &json!(true)))
            .await;
        scene.publish_all(&NODES, 1, &json!(1)).await;
        scene.until_ended("stored", 6.0).await;
        scene.until_ended("dead_lettered", 1.0).await;
        assert_eq!(
            scene.metric("vogeler_documents_refused_total").to_string(),
            "1"
        );
        assert_eq!(scene.document("refused").await, serde_json::Value::Null);
        assert_stored(&scene, &NODES, &json!(1)).await;

        let named = r#"{"error":"document_too_large","reason":"n2"}"#;
        scene
            .store
            .rule(Rule::new(WRITE, answer(413, named)).body("\"n2\""));
        scene.publish_all(&NODES, 2, &json!(2)).await;
        scene.until_ended("stored", 11.0).await;
        scene.until_ended("dead_lettered", 2.0).await;
        assert!(scene.metric("vogeler_store_requests_split_total{reason=\"named\"}") >= 1.0);
        assert_stored(&scene, &["n2"], &json!(1)).await;
        assert_stored(&scene, &["n1", "n6"], &json!(2)).await;
        scene.store.clear();

        let bad = r#"{"error":"doc_validation","reason":"Bad special document member: _foo"}"#;
        scene
            .store
            .rule(Rule::new(WRITE, answer(400, bad)).body("\"n5\""));
        scene.publish_all(&NODES, 3, &json!(3)).await;
        scene.until_ended("stored", 16.0).await;
        scene.until_ended("dead_lettered", 3.0).await;
        assert!(scene.metric("vogeler_store_requests_split_total{reason=\"bisect\"}") >= 1.0);
        assert_stored(&scene, &["n5"], &json!(2)).await;
        assert_stored(&scene, &["n1", "n2", "n3", "n4", "n6"], &json!(3)).await;
        assert_eq!(scene.ended("requeued").to_string(), "0");
        scene.end().await;
    });
}

/// Goal: a request that is too large is halved until it is not, and the ceiling is remembered.
#[test]
fn too_large_requests_are_halved() {
    in_system(async {
        let scene = Scene::new(&[]).await;
        let too_large = r#"{"error":"too_large","reason":"the request entity is too large"}"#;
        scene
            .store
            .rule(Rule::new(WRITE, answer(413, too_large)).body_bytes_min(6_000));
        let long = "x".repeat(1_000);
        for seq in 1..=2_u32 {
            scene
                .publish_all(&NODES, seq.into(), &json!([long, seq]))
                .await;
            scene.until_ended("stored", f64::from(seq * 6)).await;
        }
        assert_stored(&scene, &NODES, &json!([long, 2])).await;
        let too_large = scene
            .store
            .requests(WRITE)
            .into_iter()
            .filter(|r| r.body.len() >= 6_000)
            .count();
        let splits = scene.metric("vogeler_store_requests_split_total{reason=\"too_large\"}");
        assert!(too_large >= 1 && splits >= 1.0);
        assert!(
            too_large <= 2,
            "the ceiling is remembered: {too_large} requests were too large"
        );
        assert_eq!(
            (scene.ended("dead_lettered"), scene.ended("requeued")),
            (0.0, 0.0)
        );
        scene.end().await;
    });
}

/// Goal: a 500 with rows is processed row by row, and every other failure of a whole request is read back, then written.
#[test]
fn failures_are_read_back_and_written_again() {
    in_system(async {
        let scene = Scene::new(&[]).await;
        let rows: Vec<_> = NODES
            .iter()
            .map(|node| json!({"id": node, "error": "internal_server_error", "reason": "shard"}))
            .collect();
        scene
            .store
            .rule(Rule::new(WRITE, answer(500, &json!(rows).to_string())).times(1));
        scene.publish_all(&NODES, 1, &json!(0)).await;
        scene.until_ended("stored", 6.0).await;
        assert!(scene.metric("vogeler_documents_failed_total") >= 1.0);
        assert_eq!(
            scene
                .metric("vogeler_store_requests_total{kind=\"write\",status=\"away\"}")
                .to_string(),
            "0"
        );
        let away = r#"{"error":"unknown_error","reason":"scripted"}"#;
        let mut stored = 6.0;
        for (index, status) in (0_u32..).zip([500, 502, 503, 504, 412, 429, 507]) {
            scene
                .store
                .rule(Rule::new(WRITE, answer(status, away)).times(1));
            scene
                .publish_all(&NODES, u64::from(index) + 2, &json!(status))
                .await;
            stored += 6.0;
            scene.until_ended("stored", stored).await;
            let errors =
                scene.metric("vogeler_store_requests_total{kind=\"write\",status=\"away\"}");
            assert!(errors > f64::from(index), "{status}: {errors}");
            assert_stored(&scene, &NODES, &json!(status)).await;
        }
        assert_eq!(
            scene.logged("paused: results wait"),
            7,
            "one line for every change of state"
        );
        assert_eq!(scene.logged("gate: the store is back"), 7);
        assert_eq!(scene.ended("requeued").to_string(), "0");
        scene.end().await;
    });
}

/// Goal: where an answer got lost after the write, the server reads, finds its own write, and does not write again; what
/// never arrived is written once.
#[test]
fn lost_answers_are_read_back() {
    in_system(async {
        let scene = Scene::new(&[("STORE_TIMEOUT", "1s")]).await;
        scene.store.rule(Rule::new(WRITE, Fault::Swallow).times(1));
        scene.publish_all(&NODES, 1, &json!(1)).await;
        scene.until_ended("stored", 6.0).await;
        let read_back = scene.metric("vogeler_results_read_back_total");
        assert!(read_back >= 1.0, "{read_back}");
        for node in NODES {
            let revision = scene.document(node).await["_rev"].clone();
            assert!(
                revision.as_str().unwrap().starts_with("1-"),
                "{node} was written twice: {revision}"
            );
        }
        scene.store.rule(Rule::new(WRITE, Fault::Cut).times(1));
        scene.publish_all(&NODES, 2, &json!(2)).await;
        scene.until_ended("stored", 12.0).await;
        assert_eq!(
            scene.metric("vogeler_results_read_back_total").to_string(),
            read_back.to_string()
        );
        // Longer than the timeout: the write takes place, and nobody waits for the answer.
        scene
            .store
            .rule(Rule::new(WRITE, Fault::Delay(Duration::from_millis(1_500))).times(1));
        scene.publish_all(&NODES, 3, &json!(3)).await;
        scene.until_ended("stored", 18.0).await;
        assert_stored(&scene, &NODES, &json!(3)).await;
        assert_eq!(scene.ended("requeued").to_string(), "0");
        scene.end().await;
    });
}

/// Goal: of several results only those that make the document too large are dead letters, with the sizes; the others of
/// that node are stored, whatever else is written with it.
#[test]
fn only_the_results_that_make_a_document_too_large_are_dead_letters() {
    in_system(async {
        let scene = Scene::new(&[]).await;
        let named = r#"{"error":"document_too_large","reason":"n1"}"#;
        scene.store.rule(
            Rule::new(WRITE, answer(413, named))
                .body("\"n1\"")
                .body_bytes_min(20_000),
        );
        let text = |bytes: usize| json!("x".repeat(bytes));
        let publish = async |seq: u64, sizes: &[(&str, usize)]| {
            for (plugin, bytes) in sizes {
                scene
                    .publish(&value("n1", plugin, seq, &text(*bytes)))
                    .await;
            }
        };
        publish(
            1,
            &[
                ("a", 10),
                ("b", 30_000),
                ("c", 500),
                ("d", 1_000),
                ("e", 10),
            ],
        )
        .await;
        scene.publish_all(&["n2"], 1, &json!(1)).await;
        scene.until_ended("dead_lettered", 1.0).await;
        scene.until_ended("stored", 5.0).await;
        let document = scene.document("n1").await;
        for (plugin, bytes) in [("a", 10), ("c", 500), ("d", 1_000), ("e", 10)] {
            assert_eq!(document[plugin], text(bytes), "{document}");
        }
        assert_eq!(document["b"], serde_json::Value::Null);
        // Two of which one fits; then one that shrinks makes room.
        publish(2, &[("f", 12_000), ("g", 12_100), ("a", 20)]).await;
        scene.until_ended("dead_lettered", 2.0).await;
        scene.until_ended("stored", 7.0).await;
        let document = scene.document("n1").await;
        assert_eq!((&document["f"], &document["a"]), (&text(12_000), &text(20)));
        publish(3, &[("f", 10), ("g", 12_100)]).await;
        scene.until_ended("stored", 9.0).await;
        let document = scene.document("n1").await;
        assert_eq!((&document["f"], &document["g"]), (&text(10), &text(12_100)));
        assert_eq!(scene.ended("requeued").to_string(), "0");
        let reason = "vogeler_dead_letters_total{reason=\"document_too_large\"}";
        assert_eq!(scene.metric(reason).to_string(), "2");
        assert!(scene.logged("the store refused at") >= 2);
        scene.end().await;
    });
}
