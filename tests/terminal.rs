//! What strangers say does not steer the operator's terminal: hostile text in every place that holds text, every command
//! that prints it, over the real services. What programs read is exact.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;

use serde_json::{Value, json};
use vogeler::broker::topology::{self, Exchange};
use vogeler::broker::{self, Broker, Message, Properties};
use vogeler::config;
use vogeler::wire::{Command, Content, ErrorKind, PluginError, PluginResult};

use crate::harness::installation::{Answer, Installation};
use crate::harness::pipeline::{in_system, message, name, result};
use crate::harness::pouch;
use crate::harness::process::wait_until;
use crate::harness::rabbit::Rabbit;

const PATIENCE: std::time::Duration = std::time::Duration::from_mins(1);
/// Sets the title, clears the screen, colours (C1), turns the direction, hides, ends the line.
const HOSTILE: &str =
    "\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}31m\u{202e}\u{2066}\u{200b}\u{feff}\u{2028}\u{7f}\r\u{8}x";

/// No control character but the end of a line, nothing that turns or hides text.
fn assert_safe(what: &str, text: &str) {
    let is_bad = |c: &char| {
        (c.is_control() && *c != '\n')
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{61c}' | '\u{feff}')
    };
    let bad: Vec<_> = text.chars().filter(is_bad).collect();
    assert!(bad.is_empty(), "{what} prints {bad:?}: {text:?}");
}

fn safe(v: &Installation, args: &[&str]) -> Answer {
    let answer = v.vogeler(args);
    let what = args.join(" ");
    assert_safe(&what, &answer.stdout);
    assert_safe(&what, &answer.stderr);
    answer
}

/// An answer that shows the text, in the way it may be shown.
fn shows(answer: &Answer) -> bool {
    let text = format!("{}{}", answer.stdout, answer.stderr);
    text.contains(r"\u{1b}[2J") || text.contains(r"\u001b[2J")
}

fn plugins(v: &Installation) {
    let file = |name: &str, text: &str| {
        let path = v.folder().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let value = json!({"text": HOSTILE, HOSTILE: [HOSTILE]}).to_string();
    let hostile = file("hostile.json", &value);
    let angry = file(
        "angry.sh",
        &format!("printf '%s' '{HOSTILE}' >&2\nexit 3\n"),
    );
    let text = format!(
        "[hostile]\ndescription = says {HOSTILE}\ncommand = cat {hostile}\nresult_format = json\n\
         [kernel]\ncommand = cat {hostile}\nresult_format = json\n\
         [angry]\ncommand = sh {angry}\n"
    );
    v.plugin_file("hostile.cfg", &text);
}

fn dead_letter(reason: &str, exchange: &str) -> Message {
    let headers = [
        ("exchange", exchange),
        ("routing-key", "000"),
        ("reason", reason),
        ("detail", HOSTILE),
        ("node", HOSTILE),
        ("plugin", HOSTILE),
        ("time", "2026-11-22T12:00:00Z"),
        (HOSTILE, HOSTILE),
    ];
    let headers: BTreeMap<String, String> = headers
        .map(|(name, value)| (format!("x-vogeler-{name}"), value.to_owned()))
        .into();
    let body = json!({HOSTILE: HOSTILE}).to_string().into_bytes();
    Message {
        exchange: Exchange::Dead,
        routing_key: String::new(),
        properties: Properties {
            headers,
            message_id: Some(HOSTILE.to_owned()),
            content_type: Some(HOSTILE.to_owned()),
            ..Properties::default()
        },
        ..message("", body)
    }
}

fn real_broker(v: &Installation) -> Arc<dyn Broker> {
    let config = config::Broker {
        dsn: v.broker().parse().unwrap(),
        ..config::Broker::default()
    };
    broker::open(&config)
}

fn publish(v: &Installation, messages: Vec<Message>) {
    in_system(async {
        let broker = real_broker(v);
        for message in messages {
            broker.publish(message).await.unwrap();
        }
        broker.close().await;
    });
}

/// Goal: what clients and plugins say reaches no terminal as it is: runs, documents, searches, logs.
#[test]
fn plugins_cannot_steer_the_terminal() {
    let v = Installation::new(Rabbit::shared().fresh_vhost().as_str(), &pouch::fresh_dsn());
    plugins(&v);
    v.vogeler(&["admin", "setup"]).ok();
    let server = v.server();
    let client = v.client("web01", "");
    let known = || v.vogeler(&["node", "list"]).code == 0;
    assert!(wait_until(PATIENCE, known), "{}", server.log());

    let ran = safe(&v, &["run", "hostile", "-n", "all"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    safe(&v, &["run", "angry", "-n", "all", "--verbose"]);
    let failed = run_of_impostor(&v, 1, &[]);
    assert_safe("run", &failed.stdout);
    assert_safe("run", &failed.stderr);
    assert!(failed.code == 1 && shows(&failed), "{failed:?}");
    let exact = run_of_impostor(&v, 2, &["--json"]).json();
    assert_eq!(exact["nodes"]["failed"][0]["message"], HOSTILE);
    assert!(shows(&safe(&v, &["node", "show", "web02"])));

    let document = safe(&v, &["node", "show", "web01"]);
    assert!(shows(&document), "{document:?}");
    let part = safe(&v, &["node", "show", "web01", "/hostile"]);
    assert_eq!(part.json(), json!({"text": HOSTILE, HOSTILE: [HOSTILE]}));
    safe(&v, &["node", "list"]);
    safe(&v, &["node", "show", "web03"]);
    safe(&v, &["find", "--plugin", "hostile"]);
    safe(&v, &["find", "--plugin", "hostile", "--contains", HOSTILE]);
    let listed = safe(&v, &["client", "--list"]);
    assert!(shows(&listed), "{listed:?}");
    assert!(shows(&safe(&v, &["client", "--once", "hostile"])));
    assert!(shows(&safe(&v, &["client", "--once", "angry"])));
    let folder = v.folder().join("plugins").display().to_string();
    let shown = safe(&v, &["demo", "--nodes", "1", "--plugins", &folder]);
    assert!(shows(&shown), "{shown:?}");

    publish(&v, vec![message_for_the_log()]);
    assert!(wait_until(PATIENCE, || server
        .log()
        .contains("dead letter")));
    assert_safe("the server's log", &server.log());
    assert_safe("the client's log", &client.log());
    assert!(server.stop().success() && client.stop().success());
}

/// A run on a node whose client the test plays: it fails, and says what it likes.
fn run_of_impostor(v: &Installation, seq: u64, args: &[&str]) -> Answer {
    let args = [&["run", "rpms", "-n", "web02", "--timeout", "5min"], args].concat();
    let mut answer = None;
    in_system(async {
        let broker = real_broker(v);
        let queue = topology::node_queue(&name("web02"), &[]);
        let mut client = broker.consume(&queue, 1).await.unwrap();
        let mut command = v.prepared(&args);
        let ran = tokio::task::spawn_blocking(move || command.output().unwrap());
        let delivery = client.next().await.unwrap();
        let run = Command::decode(&delivery.body).unwrap().run;
        delivery.settler.ack();
        let error = Content::Error(PluginError {
            kind: ErrorKind::Failed,
            message: HOSTILE.to_owned(),
            exit: Some(3),
            stderr: Some(HOSTILE.to_owned()),
        });
        let result = PluginResult {
            run,
            ..result("web02", "rpms", seq, error)
        };
        let key = topology::result_key(&result.node);
        let message = message(&key, result.encode().unwrap());
        broker.publish(message).await.unwrap();
        let output = ran.await.unwrap();
        client.close(PATIENCE).await;
        broker.close().await;
        answer = Some(Answer {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        });
    });
    answer.unwrap()
}

/// A result that the server refuses, and says why.
fn message_for_the_log() -> Message {
    let result = json!({"v": 2, "node": HOSTILE, "plugin": HOSTILE, "seq": 1});
    message("000", result.to_string().into_bytes())
}

/// Goal: dead letters are listed, counted, shown, replayed and dropped without a word of theirs as it is; as JSON they are
/// exact.
#[test]
fn dead_letters_cannot_steer_the_terminal() {
    let v = Installation::new(Rabbit::shared().fresh_vhost().as_str(), &pouch::fresh_dsn());
    v.vogeler(&["admin", "setup"]).ok();
    publish(
        &v,
        vec![dead_letter(HOSTILE, HOSTILE), dead_letter("mild", HOSTILE)],
    );
    for args in [&["list"][..], &["count"]] {
        let args = [&["admin", "dead"], args].concat();
        let answer = safe(&v, &args);
        assert!(shows(&answer) && answer.code == 0, "{answer:?}");
    }
    let listed = v.vogeler(&["admin", "dead", "list", "--json"]).json();
    assert_eq!(listed[0]["reason"], HOSTILE);
    let counted = v.vogeler(&["admin", "dead", "count", "--json"]).json();
    assert_eq!(counted["reasons"][HOSTILE]["letters"], 1);
    let id = listed[0]["id"].as_str().unwrap();
    let shown = safe(&v, &["admin", "dead", "show", id]);
    assert!(shows(&shown) && shown.code == 0, "{shown:?}");
    let body: Value = shown
        .stdout
        .split_once("\n\n")
        .map(|(_, body)| serde_json::from_str(body).unwrap())
        .unwrap();
    assert_eq!(body, json!({HOSTILE: HOSTILE}));
    let refused = safe(&v, &["admin", "dead", "replay"]);
    assert!(refused.code == 2 && shows(&refused), "{refused:?}");
    let dropped = safe(&v, &["admin", "dead", "drop", "--reason", HOSTILE]);
    assert_eq!(dropped.code, 0);
    safe(&v, &["admin", "dead", "show", HOSTILE]);
}

/// Answers every connection with these bytes.
fn impostor(answer: Vec<u8>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // Ends with the test's process.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            // Whoever went away needs no answer.
            drop(stream.read(&mut [0; 4096]));
            drop(stream.write_all(&answer));
        }
    });
    port
}

/// Goal: servers that are not what they seem cannot steer the terminal by their version or their errors.
#[test]
fn servers_cannot_steer_the_terminal() {
    let field = |name: &str, value: &str| {
        let mut bytes = vec![u8::try_from(name.len()).unwrap()];
        bytes.extend(name.as_bytes());
        bytes.push(b'S');
        bytes.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
        bytes.extend(value.as_bytes());
        bytes
    };
    let table = [field("product", HOSTILE), field("version", HOSTILE)].concat();
    let mut start = vec![0, 10, 0, 10, 0, 9];
    start.extend(u32::try_from(table.len()).unwrap().to_be_bytes());
    start.extend(&table);
    start.extend([0, 0, 0, 5]);
    start.extend(b"PLAIN\x00\x00\x00\x05en_US");
    let mut frame = vec![1, 0, 0];
    frame.extend(u32::try_from(start.len()).unwrap().to_be_bytes());
    frame.extend(&start);
    frame.push(0xce);
    let amqp = impostor(frame);
    let body =
        json!({"couchdb": "Welcome", "version": HOSTILE, "error": HOSTILE, "reason": HOSTILE})
            .to_string();
    let http = |status: &str| {
        let length = body.len();
        impostor(format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}").into_bytes())
    };
    for status in ["200 OK", "418 x", "500 x"] {
        let store = format!("couch://u:p@127.0.0.1:{}/x", http(status));
        let mut v = Installation::new(&format!("amqp://u:p@127.0.0.1:{amqp}/x"), &store);
        v.set("VOGELER_BROKER_CONNECT_TIMEOUT", "1s");
        for args in [
            &["admin", "status"][..],
            &["admin", "setup"],
            &["node", "list"],
            &["node", "show", "web01"],
            &["find", "--plugin", "rpms"],
        ] {
            assert_ne!(safe(&v, args).code, 0, "{args:?}");
        }
    }
}
