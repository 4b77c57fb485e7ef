//! The status page in a real browser, and the probes while the store is away and while the server stops.
//!
//! The pictures stay in `target/tmp/status/`, to be looked at.

use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use vogeler::wire::RunId;

use crate::harness::browser::{Look, look};
use crate::harness::install_services;
use crate::harness::installation::Installation;
use crate::harness::pipeline::{in_system, value};
use crate::harness::process::wait_until;
use crate::harness::proxy::{Fault, Rule};
use crate::harness::rabbit::Rabbit;
use crate::harness::scene::Scene;

const PATIENCE: Duration = Duration::from_mins(2);
/// A window of an ordinary screen.
const WIDE: u32 = 1280;
/// A blank picture of that width has 8,178 bytes, the page 115,000 and more.
const PICTURE_BYTES_MIN: usize = 40_000;

fn picture(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("status");
    std::fs::create_dir_all(&folder).unwrap();
    folder.join(format!("{name}.png"))
}

/// What a browser shows of the status page.
fn see(v: &Installation, name: &str) -> Look {
    install_services();
    let url = format!("http://{}/", v.http_address());
    let seen = look(&url, WIDE, &picture(name));
    assert!(seen.bytes > PICTURE_BYTES_MIN, "{} bytes", seen.bytes);
    seen
}

fn shows(look: &Look, texts: &[&str]) {
    for text in texts {
        assert!(look.dom.contains(text), "{text}: {}", look.dom);
    }
}

fn readiness(v: &Installation) -> (u16, Value) {
    let (status, body) = v.get("/readyz").unwrap();
    (status, serde_json::from_str(&body).unwrap())
}

/// Publishes a result of each of so many nodes in one run.
async fn publish_run(scene: &Scene, nodes: usize, seq: u64) -> RunId {
    let run = RunId::generate();
    for node in 0..nodes {
        let mut result = value(&format!("web{node:02}"), "rpms", seq, &json!([seq]));
        result.run = Some(run);
        scene.publish(&result).await;
    }
    run
}

/// Goal: the page tells of a healthy server what it is, how fast, how late, and its last runs; `/readyz` has each part.
async fn is_healthy(scene: &Scene) {
    let (status, body) = readiness(&scene.v);
    assert_eq!(status, 200);
    assert_eq!(body["last_write"]["at"], Value::Null, "nothing was written");
    let run = publish_run(scene, 20, 1).await;
    scene.until_ended("stored", 20.0).await;
    let (_, body) = readiness(&scene.v);
    assert_eq!(body["ready"], true);
    assert_eq!(body["broker"]["ok"], true);
    assert_eq!(body["store"]["ok"], true);
    assert_eq!(
        body["partitions"],
        json!({"owned": [0, 1], "servers": 1, "left_out": 0})
    );
    assert_eq!(body["draining"], false);
    assert!(body["last_write"]["at"].is_string(), "{body}");
    let seen = see(&scene.v, "healthy");
    let run = run.to_string();
    shows(
        &seen,
        &[
            "<h1>Vogeler server",
            "<strong>Ready</strong>",
            "Backlog",
            "Lag",
            "Last 10 s",
            "Partitions",
            "Accounts",
            "Last runs",
            &run,
            "rpms",
            "20 stored",
            "This process",
            "broker.dsn",
            env!("CARGO_PKG_VERSION"),
            "None since the start",
            "href=\"/metrics\"",
            "href=\"/readyz\"",
            "href=\"/livez\"",
        ],
    );
    let dsn = scene.vhost.password().unwrap_or("guest");
    assert!(
        !seen.dom.contains(&format!(":{dsn}@")),
        "no password is shown"
    );
}

/// Goal: while the store refuses us, with a text that would be a script, the page shows that text as text; the server
/// is alive, and not ready.
async fn is_without_store(scene: &Scene) {
    let hostile = "<script>document.title='owned'</script><b id=hostile>x</b>";
    let refusal = json!({"error": "unauthorized", "reason": hostile}).to_string();
    scene
        .store
        .rule(Rule::new("", Fault::Answer(401, "", refusal)));
    publish_run(scene, 20, 2).await;
    scene.until_ready(false).await;
    assert_eq!(scene.v.get("/livez").unwrap().0, 200);
    let (_, body) = readiness(&scene.v);
    assert_eq!(body["store"]["ok"], false);
    assert_eq!(body["broker"]["ok"], true);
    let reason = body["store"]["reason"].as_str().unwrap();
    assert!(reason.contains(hostile), "{reason}");
    let seen = see(&scene.v, "away");
    shows(
        &seen,
        &[
            "<strong>Not ready</strong>",
            "Store: ",
            "✖ not ok",
            "&lt;script&gt;document.title",
            "<strong>ERROR</strong>",
        ],
    );
    assert!(
        !seen.dom.contains("<title>owned") && !seen.dom.contains("<b id"),
        "{}",
        seen.dom
    );
}

/// Goal: a server that stops says so as long as it drains, and is alive.
async fn is_draining(mut scene: Scene) {
    scene.store.rule(Rule::new("", Fault::Cut));
    publish_run(&scene, 5, 3).await;
    scene
        .until("results are held", || {
            scene.metric("vogeler_results_in_flight") > 4.5
        })
        .await;
    let mut server = scene.server.take().unwrap();
    server.signal(Signal::TERM);
    scene
        .until("the server says that it drains", || {
            let (_, body) = readiness(&scene.v);
            body["draining"] == true && body["ready"] == false
        })
        .await;
    assert_eq!(scene.v.get("/livez").unwrap().0, 200);
    let (_, page) = scene.v.get("/").unwrap();
    assert!(
        page.contains("Not ready") && page.contains("Draining"),
        "{page}"
    );
    scene.store.clear();
    assert_eq!(server.wait(PATIENCE).code(), Some(0));
    scene.end().await;
}

/// Goal: in a browser the status page tells how a real server is, through an outage of its store and until its end.
#[test]
fn a_browser_shows_how_the_server_is() {
    in_system(async {
        let scene = Scene::new(&[("SERVER_REFUSED_PAUSE", "1s")]).await;
        is_healthy(&scene).await;
        is_without_store(&scene).await;
        scene.store.clear();
        scene.until_ready(true).await;
        scene.until_ended("stored", 40.0).await;
        is_draining(scene).await;
    });
}

/// Goal: a client has such a page, too: spool, plugins and what they ended in.
#[test]
fn a_browser_shows_how_a_client_is() {
    let folder = tempfile::tempdir().unwrap();
    let store = format!("sqlite:{}", folder.path().join("store").display());
    let mut v = Installation::new(Rabbit::shared().fresh_vhost().as_str(), &store);
    let address = v.http_address();
    v.set("VOGELER_CLIENT_HTTP_LISTEN", &address);
    v.plugin_file(
        "test.cfg",
        "[tick]\ncommand = echo fine\nevery = 1s\n[fail]\ncommand = false\nevery = 1s\n",
    );
    let client = v.client("web01", "");
    let ran = || {
        let page = v.get("/").map(|(_, page)| page).unwrap_or_default();
        page.contains("tick") && page.contains("exit_status")
    };
    assert!(wait_until(PATIENCE, ran), "{}", client.log());
    let seen = see(&v, "client");
    shows(
        &seen,
        &[
            "<h1>Vogeler client",
            "web01",
            "In the spool",
            "Spool size",
            "Tries to publish",
            "Plugins",
            "tick",
            "exit_status",
            "client.plugins",
        ],
    );
    assert_eq!(client.stop().code(), Some(0));
}
