//! Foreign edits: another program writes keys of its own into the node documents while results stream in.

use std::cell::Cell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::future::join;
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::harness::pipeline::{in_system, value};
use crate::harness::scene::Scene;

const NODES: [&str; 3] = ["web01", "web02", "web03"];
/// Rounds of results: at least so many, and more until the other program has written enough.
const ROUNDS: u32 = 40;
const ROUNDS_MAX: u32 = 4_000;
const THEIRS_MIN: usize = 30;

/// Goal: at full speed on both sides, over HTTP, neither program loses a key of its own.
#[test]
fn neither_of_two_programs_loses_a_key() {
    in_system(async {
        let scene = Scene::new(&[
            ("SERVER_LINGER", "1ms"),
            ("SERVER_CONFLICT_RETRIES_MAX", "100"),
        ])
        .await;
        let is_done = AtomicBool::new(false);
        let kept = Mutex::new(Vec::new());
        let rounds = Cell::new(0_u32);
        let ours = async {
            let has_raced = || kept.lock().unwrap().len() >= THEIRS_MIN;
            while rounds.get() < ROUNDS || (!has_raced() && rounds.get() < ROUNDS_MAX) {
                rounds.set(rounds.get() + 1);
                let seq = rounds.get();
                for node in NODES {
                    for plugin in ["rpms", "facts"] {
                        scene
                            .publish(&value(node, plugin, seq.into(), &json!([plugin, seq])))
                            .await;
                    }
                }
            }
            let all = f64::from(rounds.get() * 6);
            scene
                .until("all are settled", || {
                    scene.ended("stored") + scene.ended("superseded") >= all
                })
                .await;
            is_done.store(true, Ordering::Relaxed);
        };
        let theirs = async {
            let mut written = 0_u64;
            while !is_done.load(Ordering::Relaxed) {
                for node in NODES {
                    let mut document = scene.other().get(node).await.unwrap_or_else(|| json!({}));
                    document[format!("theirs{written}")] = json!(written);
                    let answer = scene
                        .other()
                        .send(Method::PUT, &[node], Some(&document))
                        .await;
                    // A conflict is theirs to try again; they never overwrite ours.
                    if answer.0 == StatusCode::CONFLICT {
                        continue;
                    }
                    assert!(answer.0.is_success(), "{answer:?}");
                    kept.lock()
                        .unwrap()
                        .push((node, format!("theirs{written}"), json!(written)));
                }
                written += 1;
            }
        };
        join(ours, theirs).await;
        for node in NODES {
            let document = scene.document(node).await;
            assert_eq!(document["rpms"], json!(["rpms", rounds.get()]), "{node}");
            assert_eq!(document["facts"], json!(["facts", rounds.get()]), "{node}");
        }
        let kept = kept.into_inner().unwrap();
        for (node, key, value) in &kept {
            assert_eq!(scene.document(node).await[key], *value, "{node}");
        }
        assert!(
            kept.len() >= THEIRS_MIN && scene.metric("vogeler_document_conflicts_total") >= 1.0,
            "there was no race: {}",
            kept.len()
        );
        assert!(scene.metric("vogeler_documents_retried_total") >= 1.0);
        scene.end().await;
    });
}
