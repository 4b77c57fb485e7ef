//! Messages that a stranger makes so that nobody can read them: what one of them costs, and whom.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use vogeler::broker::topology::{self, Exchange};

use crate::harness::pipeline::{eventually, eventually_within, in_system, value};
use crate::harness::scene::Scene;
use crate::harness::stranger::{Stranger, headers, message_id, nested, text};

/// A plugin that the clients of these tests run: each time with another result, so that each is stored.
const PLUGIN: &str = "[hello]\ncommand = date +%s%N\nresult_format = string\n";
const PATIENCE: Duration = Duration::from_mins(1);

/// Properties that RabbitMQ takes and passes on, and what they are.
fn hostile() -> Vec<(&'static str, Vec<u8>)> {
    let many: Vec<_> = (0..4_000)
        .map(|number| (format!("h{number}"), text(b"a stranger's")))
        .collect();
    let many: Vec<_> = many
        .iter()
        .map(|(name, value)| (name.as_bytes(), value.clone()))
        .collect();
    let odd: Vec<(&[u8], Vec<u8>)> = vec![
        (b"void", b"V".to_vec()),
        (b"float", [&b"d"[..], &1.5_f64.to_be_bytes()].concat()),
        (b"time", [&b"T"[..], &u64::MAX.to_be_bytes()].concat()),
        (b"bytes", [&b"x"[..], &[0, 0, 0, 2, 0xff, 0]].concat()),
        (b"text", text(b"\xff\xfe")),
        (b"array", [&b"A"[..], &[0, 0, 0, 3], b"VVV"].concat()),
    ];
    vec![
        (
            "60 KB in a header",
            headers(&[(b"big", text(&vec![b'x'; 60_000]))]),
        ),
        ("90 KB in 4,000 headers", headers(&many)),
        ("an id that is not UTF-8", message_id(b"caf\xe9")),
        (
            "a name that is not UTF-8",
            headers(&[(b"caf\xe9", text(b"x"))]),
        ),
        (
            "10,000 tables, each in the next",
            headers(&[(b"deep", nested(10_000))]),
        ),
        ("values of odd types", headers(&odd)),
    ]
}

/// Publishes as a stranger: an exchange, a routing key, properties, a body.
async fn publish(scene: &Scene, exchange: Exchange, key: &[u8], properties: &[u8], body: &[u8]) {
    let (vhost, key, properties, body) = (
        scene.vhost.clone(),
        key.to_vec(),
        properties.to_vec(),
        body.to_vec(),
    );
    tokio::task::spawn_blocking(move || {
        Stranger::new(&vhost).publish(exchange.name(), &key, &properties, &body);
    })
    .await
    .unwrap();
}

/// Goal: whatever properties a stranger gives a message, it is read, the sessions stand, and what comes behind it is
/// stored; a result is not lost over what travels beside it.
#[test]
fn no_properties_stop_a_partition() {
    in_system(async {
        let scene = Scene::new(&[]).await;
        for (number, (what, properties)) in hostile().into_iter().enumerate() {
            let node = format!("odd{number}");
            let result = value(&node, "rpms", 1, &json!(what));
            let key = topology::result_key(&result.node);
            let body = result.encode().unwrap();
            publish(
                &scene,
                Exchange::Results,
                key.as_bytes(),
                &properties,
                &body,
            )
            .await;
            eventually(what, async || {
                (scene.document(&node).await["rpms"] == json!(what)).then_some(())
            })
            .await;
        }
        assert_eq!(scene.logged("consuming stopped"), 0);
        assert_eq!(scene.logged("not connected"), 0);
        assert_eq!(scene.ended("requeued").to_string(), "0");
        // The odd types are read as they are.
        assert_eq!(
            scene.metric("vogeler_messages_trimmed_total").to_string(),
            "5"
        );
        scene.until_ready(true).await;
        scene.end().await;
    });
}

/// Goal: whatever properties or routing key a stranger gives a command for all, every client runs it, and the next one.
#[test]
fn no_properties_disable_a_client() {
    in_system(async {
        let scene = Scene::new(&[]).await;
        scene.v.plugin_file("hello.cfg", PLUGIN);
        let clients = ["c1", "c2"].map(|node| scene.v.client(node, ""));
        let mut seq = [0; 2];
        let keys: [&[u8]; 2] = [b"broadcasts.all", b"broadcasts.caf\xe9"];
        let plain = [("a routing key that is not UTF-8", headers(&[]))];
        let cases = hostile().into_iter().map(|case| (keys[0], case));
        for (key, (what, properties)) in cases.chain(plain.map(|case| (keys[1], case))) {
            publish(&scene, Exchange::Commands, key, &properties, b"\"hello\"").await;
            for (node, seq) in ["c1", "c2"].into_iter().zip(&mut seq) {
                let newer = eventually_within(PATIENCE, what, async || {
                    let document = scene.document(node).await;
                    let stored = document["vogeler"]["plugins"]["hello"]["seq"].as_u64()?;
                    (stored > *seq).then_some(stored)
                });
                *seq = newer.await;
            }
        }
        for client in clients {
            assert_eq!(
                client.log().matches("consuming stopped").count(),
                0,
                "{}",
                client.log()
            );
            assert!(client.stop().success());
        }
        scene.end().await;
    });
}

/// Goal: a dead letter whose original had as many headers as a frame carries, or more, is published, once, without the
/// connection breaking; the small headers are in it, what is left out is told, and an operator is shown that.
#[test]
fn dead_letters_fit_a_frame() {
    in_system(async {
        let scene = Scene::new(&[]).await;
        // Just below a frame of ours; and far above.
        for (count, bytes) in [(31, 1_000), (8, 4_000), (1, 60_000), (20, 6_000)] {
            let names: Vec<_> = (0..count).map(|number| format!("h{number:02}")).collect();
            let value = text(&vec![b'x'; bytes]);
            let mut entries: Vec<_> = names
                .iter()
                .map(|name| (name.as_bytes(), value.clone()))
                .collect();
            entries.push((b"origin", text(b"a stranger")));
            let body = format!("no JSON, {count} times {bytes}");
            publish(
                &scene,
                Exchange::Results,
                b"203",
                &headers(&entries),
                body.as_bytes(),
            )
            .await;
        }
        scene.until_ended("dead_lettered", 4.0).await;
        assert_eq!(scene.logged("not connected"), 0);
        assert_eq!(scene.ended("requeued").to_string(), "0");
        let letters = scene
            .v
            .vogeler(&["admin", "dead", "list", "--json"])
            .ok()
            .json();
        assert_eq!(letters.as_array().unwrap().len(), 4, "{letters}");
        for letter in letters.as_array().unwrap() {
            let id = letter["id"].as_str().unwrap();
            let shown = scene.v.vogeler(&["admin", "dead", "show", id]).ok().stdout;
            let line = |name: &str| {
                let mut lines = shown.lines();
                lines.find(|line| line.starts_with(name)).map(str::to_owned)
            };
            assert!(line("origin:").unwrap().ends_with("a stranger"), "{shown}");
            assert!(
                line("x-vogeler-reason:").unwrap().ends_with("not_json"),
                "{shown}"
            );
            let left_out = line("x-vogeler-left-out:").unwrap();
            assert!(left_out.contains(" bytes)"), "{left_out}");
        }
        scene.end().await;
    });
}

/// Goal: whatever properties a stranger gives a dead letter, all of them are listed, shown, replayed as far as they name
/// where they came from, and dropped.
#[test]
fn no_properties_disable_admin_dead() {
    in_system(async {
        let scene = Scene::new(&[]).await;
        let letters = hostile();
        for (what, properties) in &letters {
            publish(&scene, Exchange::Dead, b"", properties, what.as_bytes()).await;
        }
        let dead = |args: &[&str]| scene.v.vogeler(&[&["admin", "dead"], args].concat());
        let listed = eventually_within(PATIENCE, "the letters are listed", async || {
            let run = dead(&["list", "--json"]);
            // Without any it says "no".
            let listed = if run.stdout.trim() == "[]" {
                return None;
            } else {
                run.ok().json()
            };
            (listed.as_array()?.len() == letters.len()).then_some(listed)
        })
        .await;
        for (letter, (what, _)) in listed.as_array().unwrap().iter().zip(&letters) {
            let shown = dead(&["show", letter["id"].as_str().unwrap()]).ok().stdout;
            assert!(shown.contains(what), "{shown}");
        }
        dead(&["drop", "--all"]).ok();
        assert_eq!(dead(&["list", "--json"]).stdout, "[]\n");
        scene.end().await;
    });
}

/// What the cutter looks for.
const POISON: &str = "POISON";

/// A proxy that cuts every connection over which the broker sends [`POISON`], as a message does that breaks lapin in a way
/// that nobody thought of.
struct Cutter {
    port: u16,
    is_cutting: Arc<AtomicBool>,
}

impl Cutter {
    fn new(broker: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let (port, is_cutting) = (
            listener.local_addr().unwrap().port(),
            Arc::new(AtomicBool::new(true)),
        );
        let cuts = Arc::clone(&is_cutting);
        // It ends with the test's process.
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(broker) = TcpStream::connect(("127.0.0.1", broker)) else {
                    continue;
                };
                let (from, to) = (client.try_clone().unwrap(), broker.try_clone().unwrap());
                std::thread::spawn(move || pass(from, to, || false));
                let cuts = Arc::clone(&cuts);
                std::thread::spawn(move || pass(broker, client, || cuts.load(Ordering::Relaxed)));
            }
        });
        Self { port, is_cutting }
    }
}

/// Passes bytes on until either side ends, or they hold [`POISON`] and are to be cut.
fn pass(mut from: TcpStream, mut to: TcpStream, is_cutting: impl Fn() -> bool) {
    let mut buffer = vec![0; 65_536];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let bytes = &buffer[..count];
        let has_poison = bytes
            .windows(POISON.len())
            .any(|window| window == POISON.as_bytes());
        if (has_poison && is_cutting()) || to.write_all(bytes).is_err() {
            break;
        }
    }
    // Either may be gone already.
    drop(from.shutdown(Shutdown::Both));
    drop(to.shutdown(Shutdown::Both));
}

/// Goal: a message that breaks every session which gets it, for a reason that nobody knows, makes the server say which
/// queue is stuck, once, and be not ready; its neighbour goes on; and nothing is lost when the reason is gone.
#[test]
fn a_stuck_queue_is_told_and_breaks_no_other() {
    in_system(async {
        let vhost = crate::harness::rabbit::Rabbit::shared().fresh_vhost();
        let cutter = Cutter::new(vhost.port().unwrap());
        let mut through = vhost;
        through.set_port(Some(cutter.port)).unwrap();
        let scene = Scene::on(through, &[]).await;
        let of = |partition: usize| {
            let nodes = (0..).map(|number| value(&format!("n{number}"), "rpms", 1, &json!(POISON)));
            let mut nodes = nodes.map(|result| result.node);
            let is_of = |key: &str| key.parse::<usize>().unwrap() / 128 == partition;
            nodes
                .find(|node| is_of(&topology::result_key(node)))
                .unwrap()
                .to_string()
        };
        let (stuck, neighbour) = (of(0), of(1));
        scene.publish_all(&[&stuck], 1, &json!(POISON)).await;
        let reason = eventually_within(PATIENCE, "the queue is told to be stuck", async || {
            let (status, body) = scene.v.get("/readyz")?;
            let body: serde_json::Value = serde_json::from_str(&body).ok()?;
            let reason = body["broker"]["reason"].as_str()?.to_owned();
            (status == 503 && reason.contains("stuck")).then_some(reason)
        })
        .await;
        assert!(reason.contains("vogeler.results.0"), "{reason}");
        scene.publish_all(&[&neighbour], 1, &json!(1)).await;
        eventually_within(PATIENCE, "the neighbour is stored", async || {
            (scene.document(&neighbour).await["rpms"] == json!(1)).then_some(())
        })
        .await;
        cutter.is_cutting.store(false, Ordering::Relaxed);
        eventually_within(PATIENCE, "the poison is stored", async || {
            (scene.document(&stuck).await["rpms"] == json!(POISON)).then_some(())
        })
        .await;
        scene.until_ready(true).await;
        assert_eq!(scene.logged("a queue is stuck"), 1);
        assert_eq!(scene.logged("the queue is stuck no more"), 1);
        scene.end().await;
    });
}
