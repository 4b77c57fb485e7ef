//! Runs as an operator asks them, on the real services, where an answer is easily taken for another: results that lost,
//! receipts that wait, receipts that are lost. The test plays the clients.

use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use vogeler::broker::{Consumer, topology};
use vogeler::wire::{Command, PluginResult};

use crate::harness::installation::Answer;
use crate::harness::pipeline::{eventually, in_system, name, value};
use crate::harness::proxy::{Fault, Proxy, Rule};
use crate::harness::scene::Scene;

/// A client's queue, listened to from now on.
async fn client(scene: &Scene, node: &str) -> Consumer {
    let queue = topology::node_queue(&name(node), &[]);
    scene.broker.consume(&queue, 10).await.unwrap()
}

/// Hears one command; gives the result of it.
async fn hear(client: &mut Consumer, node: &str, seq: u64, json: &Value) -> PluginResult {
    let delivery = client.next().await.unwrap();
    let run = Command::decode(&delivery.body).unwrap().run;
    delivery.settler.ack();
    PluginResult {
        run,
        ..value(node, "rpms", seq, json)
    }
}

/// A run on its way.
struct Asking {
    child: std::process::Child,
    stderr: std::path::PathBuf,
}

/// Starts `vogeler run rpms` with these arguments.
fn run(scene: &Scene, args: &[&str]) -> Asking {
    let mut all = vec!["run", "rpms", "--json", "-n"];
    all.extend(args);
    let stderr = scene.v.folder().join("run.err");
    let mut command = scene.v.prepared(&all);
    let child = command
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(&stderr).unwrap())
        .spawn()
        .unwrap();
    Asking { child, stderr }
}

impl Asking {
    /// Waits until the broker has the command, and the runner waits for answers.
    async fn has_asked(&self) {
        eventually("the runner waits for answers", async || {
            let said = std::fs::read_to_string(&self.stderr).unwrap();
            said.contains("waiting for answers").then_some(())
        })
        .await;
    }

    async fn end(self) -> Answer {
        let child = self.child;
        let output = tokio::task::spawn_blocking(|| child.wait_with_output());
        let output = output.await.unwrap().unwrap();
        Answer {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: std::fs::read_to_string(&self.stderr).unwrap(),
        }
    }
}

/// Goal: a result that is older than what is stored is no answer; one that is unchanged or a copy of what is stored is.
#[test]
fn a_stale_result_is_no_answer() {
    in_system(async {
        let scene = Scene::new(&[]).await;
        let nodes = ["web01", "web02", "web03"];
        scene.publish_all(&nodes, 7, &json!(["new"])).await;
        scene.until_ended("stored", 3.0).await;
        let mut clients = Vec::new();
        for node in nodes {
            clients.push(client(&scene, node).await);
        }
        let running = run(&scene, &["web01,web02,web03", "--timeout", "5min"]);
        let results = [(3, "old"), (9, "new"), (7, "new")];
        for ((client, node), (seq, text)) in clients.iter_mut().zip(nodes).zip(results) {
            let result = hear(client, node, seq, &json!([text])).await;
            scene.publish(&result).await;
        }
        let answer = running.end().await;
        let report = answer.json();
        assert_eq!(report["nodes"]["older"], json!(["web01"]), "{report}");
        let answered = json!([
            {"node": "web02", "outcome": "unchanged", "new": false},
            {"node": "web03", "outcome": "copy", "new": false},
        ]);
        assert_eq!(report["nodes"]["answered"], answered);
        assert_eq!((answer.code, &report["complete"]), (1, &json!(false)));
        assert_eq!(scene.document("web01").await["rpms"], json!(["new"]));
        scene.end().await;
    });
}

/// Goal: a node that answered in time is not silent, however long the store takes to name the targets: its receipt is read
/// before. The result is unchanged, so the store knows nothing of the run.
#[test]
fn a_receipt_that_waits_is_read() {
    in_system(async {
        let scene = Scene::new(&[]).await;
        scene.publish_all(&["web01"], 7, &json!(["same"])).await;
        scene.until_ended("stored", 1.0).await;
        let mut client = client(&scene, "web01").await;
        let slow = Proxy::http(scene.store.port());
        slow.rule(Rule::new("_find", Fault::Delay(Duration::from_secs(8))));
        let dsn = scene.v.store();
        let dsn = dsn.replace(&scene.store.port().to_string(), &slow.port().to_string());
        let running = run(&scene, &["all", "--timeout", "4s", "--store", &dsn]);
        let result = hear(&mut client, "web01", 9, &json!(["same"])).await;
        scene.publish(&result).await;
        let answer = running.end().await;
        assert!(!slow.requests("_find").is_empty(), "nothing was slow");
        let report = answer.json();
        assert_eq!(report["counts"]["answered"], 1, "{report}");
        assert_eq!((answer.code, &report["complete"]), (0, &json!(true)));
        scene.end().await;
    });
}

/// Goal: where the connection broke, and with it a receipt was lost that the store knows nothing of, the node is unknown.
#[test]
fn a_lost_receipt_is_unknown() {
    in_system(async {
        let scene = Scene::new(&[]).await;
        scene.publish_all(&["web01"], 7, &json!(["same"])).await;
        scene.until_ended("stored", 1.0).await;
        let mut client = client(&scene, "web01").await;
        let fragile = Proxy::tcp(scene.vhost.port().unwrap());
        let mut dsn = scene.vhost.clone();
        dsn.set_port(Some(fragile.port())).unwrap();
        let args = ["all", "--timeout", "40s", "--broker", dsn.as_str()];
        let running = run(&scene, &args);
        let result = hear(&mut client, "web01", 9, &json!(["same"])).await;
        running.has_asked().await;
        fragile.refuse(true);
        fragile.cut();
        scene.publish(&result).await;
        scene.until_ended("unchanged", 1.0).await;
        // By now its receipt is with the broker, which has nobody to give it to.
        scene.pass(Duration::from_secs(1)).await;
        fragile.refuse(false);
        let answer = running.end().await;
        let report = answer.json();
        let counts = &report["counts"];
        assert_eq!(
            (&counts["unknown"], &counts["silent"]),
            (&json!(1), &json!(0)),
            "{report}"
        );
        assert_eq!(report["nodes"]["unknown"][0]["node"], "web01");
        assert_eq!(answer.code, 1);
        scene.end().await;
    });
}
