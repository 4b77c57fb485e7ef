//! Bad input, end to end: what a stranger publishes is stored or a dead letter with its reason. It stops nobody, and it is
//! never taken for an outage; nor is an outage taken for it.

use std::process::Command;
use std::time::Duration;

use serde_json::json;
use vogeler::broker::topology::{Exchange, result_key};
use vogeler::broker::{self, Broker, Message, Properties};
use vogeler::config;
use vogeler::store::memory::{Call, Failure, Fault, MemoryStore};
use vogeler::wire::Outcome;

use crate::harness::installation::Installation;
use crate::harness::pipeline::{Pipeline, eventually, in_system, name, quick_config, value};
use crate::harness::proxy::{Fault as HttpFault, Rule};
use crate::harness::rabbit::Rabbit;
use crate::harness::scene::Scene;

const NODES: [&str; 6] = ["n1", "n2", "n3", "n4", "n5", "n6"];
const WRITE: &str = "_bulk_docs";
const AWAY: Failure = Failure::Away { retry_after: None };

/// What a plain AMQP publish sends: a body, an encoding where there is one, and no other property.
fn plain(node: &str, body: impl Into<Vec<u8>>, encoding: Option<&str>) -> Message {
    Message {
        exchange: Exchange::Results,
        routing_key: result_key(&name(node)),
        body: body.into().into(),
        properties: Properties {
            content_encoding: encoding.map(str::to_owned),
            ..Properties::default()
        },
        persistent: false,
        mandatory: false,
    }
}

fn v2(node: &str, value: &str, hash: &str) -> String {
    format!(r#"{{"v":2,"node":"{node}","plugin":"p","seq":1,{hash}"value":{value}}}"#)
}

/// Hostile messages, each of a node of its own.
fn hostile() -> Vec<Message> {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let values = [
        nested(64),
        nested(65),
        nested(60_000),
        "1".repeat(400),
        "1e400".to_owned(),
        r#""\ud800""#.to_owned(),
        r#"{"\ud800":1}"#.to_owned(),
        r#"{"a\u0000":"\u0000","_id":1,"__proto__":{}}"#.to_owned(),
    ];
    let mut messages = Vec::new();
    for (index, value) in values.iter().enumerate() {
        for (kind, hash) in [("with", r#""hash":"h","#), ("without", "")] {
            let node = format!("{kind}{index}");
            messages.push(plain(&node, v2(&node, value, hash), None));
        }
    }
    let v1 = |node: &str, format: &str, text: &str| {
        json!({"syskey": node, "format": format, "p": text}).to_string()
    };
    let heading = format!("{}\n{}", "h".repeat(30_000), "1\n".repeat(10_000));
    messages.push(plain("csv", v1("csv", "csv", &heading), None));
    messages.push(plain("deep", v1("deep", "json", &nested(60_000)), None));
    let bomb = zstd::encode_all(v1("bomb", "raw", &"0".repeat(7_900_000)).as_bytes(), 3).unwrap();
    messages.push(plain("bomb", bomb, Some("zstd")));
    messages
}

async fn settle_hostile(broker: &dyn Broker, v: &Installation, server_log: impl Fn() -> String) {
    let metric = |series: &str| v.metric(series).unwrap_or(0.0);
    let ended = |outcome: &str| metric(&format!("vogeler_results_total{{outcome=\"{outcome}\"}}"));
    let letters = |reason: &str| {
        metric(&format!(
            "vogeler_dead_letters_total{{reason=\"{reason}\"}}"
        ))
    };
    let messages = hostile();
    let count = f64::from(u32::try_from(messages.len()).unwrap());
    for message in messages {
        broker.publish(message).await.unwrap();
    }
    broker
        .publish(plain("good", v2("good", "1", ""), None))
        .await
        .unwrap();
    eventually("all are settled", async || {
        (ended("stored") + ended("dead_lettered") >= count + 1.0).then_some(())
    })
    .await;
    // 64 levels, a value of odd keys, and what is good, at the least.
    assert!(ended("stored") >= 5.0, "{}", ended("stored"));
    for (reason, at_least) in [("nesting", 5.0), ("amplification", 2.0), ("bad_value", 2.0)] {
        assert!(letters(reason) >= at_least, "{reason}: {}", letters(reason));
    }
    let log = server_log();
    assert!(
        !log.contains("paused:"),
        "it was taken for an outage: {log}"
    );
    // Results of 2010 go back to the broker once, with their sequence, and nothing else does.
    let forwarded = metric("vogeler_results_forwarded_total{reason=\"ordered\"}");
    assert_eq!(ended("requeued").to_string(), forwarded.to_string());
    assert_eq!(v.get("/readyz").unwrap().0, 200);
}

/// Goal: values that break parsers, stores and memory end as dead letters or stored, and nothing pauses: on the HTTP store.
#[test]
fn hostile_results_stop_nothing() {
    in_system(async {
        let scene = Scene::new(&[]).await;
        let log = || scene.server.as_ref().unwrap().log();
        settle_hostile(scene.broker.as_ref(), &scene.v, log).await;
        scene.end().await;
    });
}

/// Goal: the same on SQLite, which says "malformed JSON" where a value nests too deep.
#[test]
fn hostile_results_stop_nothing_on_sqlite() {
    in_system(async {
        let vhost = Rabbit::shared().fresh_vhost();
        let folder = tempfile::tempdir().unwrap();
        let store = format!("sqlite:{}", folder.path().join("v.db").display());
        let mut v = Installation::new(vhost.as_str(), &store);
        v.set("VOGELER_STORE_CREATE", "true");
        v.set("VOGELER_BROKER_PARTITIONS", "2");
        v.set("VOGELER_BROKER_QUEUE_TYPE", "classic");
        let server = v.server();
        let broker = broker::open(&config::Broker {
            dsn: vhost.as_str().parse().unwrap(),
            ..config::Broker::default()
        });
        settle_hostile(broker.as_ref(), &v, || server.log()).await;
        broker.close().await;
        assert_eq!(server.stop().code(), Some(0));
    });
}

/// Goal: a value that makes the store fail at the whole request, every time, is found, becomes the dead letter `store_error`,
/// and its neighbours are stored.
#[test]
fn a_document_that_fails_the_whole_request_is_isolated() {
    in_system(async {
        let scene = Scene::new(&[]).await;
        let broken = r#"{"error":"unknown_error","reason":"function_clause","ref":7}"#;
        let fault = HttpFault::Answer(500, "", broken.to_owned());
        scene.store.rule(Rule::new(WRITE, fault).body("poisonous"));
        scene
            .publish(&value("bad", "rpms", 1, &json!("poisonous")))
            .await;
        scene.publish_all(&NODES, 1, &json!(1)).await;
        scene.until_ended("stored", 6.0).await;
        scene.until_ended("dead_lettered", 1.0).await;
        let letters = scene.metric("vogeler_dead_letters_total{reason=\"store_error\"}");
        assert_eq!(letters.to_string(), "1");
        for node in NODES {
            assert_eq!(scene.document(node).await["rpms"], 1, "{node}");
        }
        assert!(scene.document("bad").await["rpms"].is_null());
        let paused = scene.logged("paused:");
        assert!(paused <= 12, "{paused} pauses for one document");
        scene.until_ready(true).await;
        // What the same node sends next is stored.
        scene
            .publish(&value("bad", "rpms", 2, &json!("well again")))
            .await;
        scene.until_ended("stored", 7.0).await;
        assert_eq!(scene.ended("requeued").to_string(), "0");
        scene.end().await;
    });
}

/// Goal: a store that answers reads and fails at all writes (a full disk) is one outage, however long it takes: paused once,
/// no dead letter, all stored when it is over.
#[test]
fn an_outage_of_writes_makes_no_dead_letter() {
    in_system(async {
        let scene = Scene::new(&[]).await;
        let full = r#"{"error":"internal_server_error","reason":"No space left on device"}"#;
        let fault = HttpFault::Answer(500, "", full.to_owned());
        scene.store.rule(Rule::new(WRITE, fault));
        scene.publish_all(&NODES, 1, &json!(1)).await;
        let writes = || scene.store.requests(WRITE).len();
        scene.until("it was tried often", || writes() >= 25).await;
        scene.until_ready(false).await;
        assert_eq!(scene.logged("paused:"), 1, "one line for one outage");
        scene.store.clear();
        scene.until_ended("stored", 6.0).await;
        assert_eq!(
            (scene.ended("dead_lettered"), scene.ended("requeued")),
            (0.0, 0.0)
        );
        scene.until_ready(true).await;
        scene.end().await;
    });
}

/// Goal: three poisonous documents among thirty: exactly these are dead letters, and an outage of the memory store in between
/// makes none.
#[test]
fn poison_is_told_from_an_outage() {
    in_system(async {
        let store = MemoryStore::new();
        store.poison("poisonous");
        let mut config = quick_config();
        config.server.linger = Duration::from_millis(200);
        let mut pipeline = Pipeline::start_with(config, store).await;
        for number in 0..30_u64 {
            let text = if number % 10 == 3 {
                "poisonous"
            } else {
                "good"
            };
            let node = format!("n{number}");
            pipeline
                .publish(&value(&node, "rpms", 1, &json!(text)))
                .await;
        }
        pipeline.settled(30).await;
        assert_eq!(pipeline.ended(Outcome::Stored), 27);
        assert_eq!(pipeline.ended(Outcome::DeadLettered), 3);
        for _ in 0..40 {
            pipeline.store.script(Call::Write, Fault::Before(AWAY));
        }
        for number in 0..30_u64 {
            let node = format!("n{number}");
            pipeline
                .publish(&value(&node, "rpms", 2, &json!(number)))
                .await;
        }
        pipeline.settled(60).await;
        assert_eq!(pipeline.ended(Outcome::Stored), 57);
        assert_eq!(pipeline.ended(Outcome::DeadLettered), 3);
        pipeline.stop().await;
    });
}

/// Goal: a message that takes long to decode holds up its own partition and no other: what came after it is stored first.
#[test]
fn a_slow_message_holds_up_no_other_partition() {
    in_system(async {
        let scene = Scene::new(&[]).await;
        // Slots are bound evenly in order: the lower half to partition 0.
        let of = |partition: u8| {
            let mut names = (0..).map(|n| format!("n{n}"));
            let is_there = |node: &String| name(node).slot() / 128 == partition;
            names.find(is_there).unwrap()
        };
        let (slow, quick) = (of(0), of(1));
        let yaml = "- a\n".repeat(230_000);
        let body = json!({"syskey": slow, "format": "yaml", "p": yaml}).to_string();
        scene
            .broker
            .publish(plain(&slow, body, None))
            .await
            .unwrap();
        scene
            .until("it is taken", || {
                scene.metric("vogeler_results_in_flight") >= 1.0
            })
            .await;
        scene.publish(&value(&quick, "rpms", 1, &json!(1))).await;
        scene.until_ended("stored", 1.0).await;
        assert_eq!(scene.document(&quick).await["rpms"], 1);
        assert!(
            scene.document(&slow).await.is_null(),
            "the slow one was first"
        );
        scene.until_ended("stored", 2.0).await;
        scene.end().await;
    });
}

/// Goal: a shell script publishes a result with no more than node, plugin, sequence and value, and a plain publish; the
/// server computes hash, time and format, and the same value again is unchanged.
#[test]
fn a_script_publishes_a_result() {
    in_system(async {
        let scene = Scene::new(&[]).await;
        let body = |seq: u64, value: &str| {
            format!(r#"{{"v":2,"node":"web01","plugin":"backup","seq":{seq},"value":{value}}}"#)
        };
        let seqs = [1, 2, 3];
        let values = [
            r#"{"ok":true,"gb":7}"#,
            r#"{"gb":7.0,"ok":true}"#,
            r#"{"ok":false,"gb":7}"#,
        ];
        let (stored, unchanged) = ([1.0, 1.0, 2.0], [0.0, 1.0, 1.0]);
        for index in 0..3 {
            let body = body(seqs[index], values[index]);
            scene
                .broker
                .publish(plain("web01", body, None))
                .await
                .unwrap();
            scene.until_ended("stored", stored[index]).await;
            scene.until_ended("unchanged", unchanged[index]).await;
        }
        let document = scene.document("web01").await;
        assert_eq!(document["backup"], json!({"ok": false, "gb": 7}));
        let state = &document["vogeler"]["plugins"]["backup"];
        assert_eq!(state["format"], "json");
        assert_eq!(state["hash"].as_str().unwrap().len(), 32);
        assert!(state["collected_at"].is_string());
        scene.end().await;
    });
}

/// Goal: the line of docs/OPERATING.md that computes a node's slot in a shell is right.
#[test]
fn a_shell_computes_the_slot() {
    let slot = r#"printf %03d $(printf %s "$1" | gzip -c | tail -c 8 | od -An -tu1 -N1)"#;
    for node in ["web01.example.com", "db1", "名前.example"] {
        let shell = Command::new("sh")
            .args(["-c", slot, "sh", node])
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8(shell.stdout).unwrap(),
            result_key(&name(node))
        );
    }
}

/// Goal: a script publishes node, plugin and value, with an empty routing key: the results are stored in the order they came.
#[test]
fn the_shortest_result_of_a_script_is_stored() {
    in_system(async {
        let scene = Scene::new(&[]).await;
        for count in 1..=3 {
            for node in NODES {
                let body = json!({"v": 2, "node": node, "plugin": "backup", "value": count});
                let short = Message {
                    routing_key: String::new(),
                    ..plain(node, body.to_string(), None)
                };
                scene.broker.publish(short).await.unwrap();
            }
        }
        scene
            .until("all are settled", || {
                scene.ended("stored") + scene.ended("superseded") >= 18.0
            })
            .await;
        for node in NODES {
            assert_eq!(scene.document(node).await["backup"], json!(3), "{node}");
        }
        assert_eq!(scene.ended("dead_lettered").to_string(), "0");
        scene.end().await;
    });
}
