//! Dead letters as an operator meets them: listed, shown, replayed, dropped; on the memory broker, and with the real
//! binary on RabbitMQ.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use vogeler::broker::memory::too_large;
use vogeler::broker::topology::{self, DEAD_QUEUE, Exchange, QueueType};
use vogeler::broker::{self, Broker, Message, Properties};
use vogeler::config;
use vogeler::dead::{DeadError, DeadLetters, Filter, Job, Letter};
use vogeler::store::Verdict;
use vogeler::store::memory::{Call, Fault, MemoryStore};
use vogeler::wire::Outcome;

use crate::harness::installation::Installation;
use crate::harness::pipeline::{
    Pipeline, eventually, in_system, message, name, quick_config, value,
};
use crate::harness::pouch;
use crate::harness::process::wait_until;
use crate::harness::rabbit::Rabbit;

const PATIENCE: Duration = Duration::from_mins(1);

fn dead_letters(broker: &dyn Broker) -> DeadLetters<'_> {
    DeadLetters {
        broker,
        queue_type: QueueType::Quorum,
        progress: watch::Sender::default(),
        stop: CancellationToken::new(),
    }
}

async fn listing(broker: &dyn Broker, limit: Option<u64>) -> Result<Vec<Letter>, DeadError> {
    let mut letters = Vec::new();
    let keep = async |letter| {
        letters.push(letter);
        Ok(())
    };
    let dead = dead_letters(broker);
    let looked = dead.list(&Filter::default(), limit, keep).await?;
    assert_eq!(looked.matched, letters.len() as u64);
    Ok(letters)
}

async fn list(broker: &dyn Broker) -> Vec<Letter> {
    listing(broker, None).await.unwrap()
}

async fn ready(broker: &dyn Broker) -> u64 {
    broker.depth(&[DEAD_QUEUE]).await.unwrap()[0].unwrap().ready
}

fn of_node(node: &str) -> Filter {
    Filter {
        node: Some(node.to_owned()),
        ..Filter::default()
    }
}

/// A dead letter as a server would have published it: the result `number` of a node of that number.
fn letter(number: u64, exchange: &str) -> Message {
    let node = format!("node{number}");
    let result = value(&node, "rpms", 7, &json!([number]));
    let headers = [
        ("exchange", exchange.to_owned()),
        ("routing-key", topology::result_key(&name(&node))),
        ("reason", "forbidden".to_owned()),
        ("attempts", "1".to_owned()),
        (
            "time",
            (Timestamp::UNIX_EPOCH + Duration::from_secs(number)).to_string(),
        ),
        ("node", node),
        ("plugin", "rpms".to_owned()),
    ];
    let headers: BTreeMap<String, String> = headers
        .map(|(name, value)| (format!("x-vogeler-{name}"), value))
        .into();
    Message {
        exchange: Exchange::Dead,
        routing_key: String::new(),
        properties: Properties {
            headers,
            ..Properties::default()
        },
        ..message("", result.encode().unwrap())
    }
}

/// Goal: looking, a dry run and a filter that matches nothing change nothing: the same letters, in the same order.
#[test]
fn looking_changes_nothing() {
    in_system(async {
        let pipeline = Pipeline::start().await;
        let broker = &*pipeline.broker;
        for number in 0..250 {
            broker
                .publish(letter(number, "vogeler.master.in"))
                .await
                .unwrap();
        }
        let dead = dead_letters(broker);
        let before = list(broker).await;
        assert_eq!(before.len(), 250);
        assert!(before.is_sorted_by_key(|letter| letter.time));
        let dry = |filter| Job {
            filter,
            dry_run: true,
            limit: None,
        };
        for report in [
            dead.replay(&dry(Filter::default())).await.unwrap(),
            dead.drop_letters(&dry(Filter::default())).await.unwrap(),
        ] {
            assert_eq!(
                (report.matched, report.done, report.looked),
                (250, 250, 250)
            );
        }
        let none = Job {
            filter: of_node("web01"),
            ..Job::default()
        };
        assert_eq!(dead.drop_letters(&none).await.unwrap().matched, 0);
        let limited = listing(broker, Some(3)).await.unwrap();
        assert_eq!(limited, before[..3]);
        let (found, others) = dead.find(&before[7].id).await.unwrap();
        assert_eq!(
            (found.unwrap().letter, others.len()),
            (before[7].clone(), 0)
        );
        assert_eq!(list(broker).await, before);
        assert_eq!(
            (ready(broker).await, pipeline.ledger.counts().received),
            (250, 0)
        );
    });
}

/// Goal: after mending, a replay stores what was refused; what is still bad comes back, once, with its replays counted
/// and under the same id; a second replay finds nothing left of the first.
#[test]
fn a_replay_stores_what_was_mended() {
    in_system(async {
        let store = MemoryStore::new();
        let refused = Verdict::Refused {
            error: "forbidden".to_owned(),
            reason: "not now".to_owned(),
        };
        let rows = [(name("web01"), refused)].into();
        store.script(Call::Write, Fault::Rows(rows));
        let pipeline = Pipeline::start_with(quick_config(), store).await;
        let broker = &*pipeline.broker;
        let dead = dead_letters(broker);
        pipeline
            .publish(&value("web01", "rpms", 1, &json!(1)))
            .await;
        pipeline.settled(1).await;
        pipeline.publish_bytes(b"not json").await;
        pipeline.settled(2).await;
        let before = list(broker).await;
        let shown: Vec<_> = before
            .iter()
            .map(|l| (l.reason.as_deref(), l.replays, l.attempts))
            .collect();
        assert_eq!(
            shown,
            [
                (Some("forbidden"), 0, Some(1)),
                (Some("not_json"), 0, Some(1))
            ]
        );

        let report = dead.replay(&Job::default()).await.unwrap();
        assert_eq!(
            (report.matched, report.done, report.refused),
            (2, 2, 0),
            "{report:?}"
        );
        pipeline.settled(4).await;
        assert_eq!(pipeline.document("web01")["rpms"], json!(1));
        let after = list(broker).await;
        assert_eq!(after.len(), 1);
        assert_eq!((&after[0].id, after[0].replays), (&before[1].id, 1));
        assert!(after[0].time > before[1].time);

        let report = dead.replay(&Job::default()).await.unwrap();
        assert_eq!(report.done, 1);
        pipeline.settled(5).await;
        assert_eq!(list(broker).await[0].replays, 2);
        let counts = pipeline.ledger.counts();
        assert_eq!(
            (counts.of(Outcome::Stored), counts.of(Outcome::DeadLettered)),
            (1, 4)
        );
    });
}

/// Goal: a replay that crashed after publishing leaves the letter, and replaying it again changes nothing more: the
/// copy is found stale or unchanged.
#[test]
fn a_replay_is_safe_to_repeat() {
    in_system(async {
        let pipeline = Pipeline::start().await;
        let broker = &*pipeline.broker;
        // What is in the queues after such a crash: the message, and its letter.
        let dead_letter = letter(1, "vogeler.master.in");
        let original =
            vogeler::dead::letter::original(dead_letter.body.clone(), &dead_letter.properties);
        broker.publish(original.unwrap()).await.unwrap();
        broker.publish(dead_letter).await.unwrap();
        pipeline.settled(1).await;
        let document = pipeline.document("node1");
        assert_eq!(document["rpms"], json!([1]));
        let report = dead_letters(broker).replay(&Job::default()).await.unwrap();
        assert_eq!(report.done, 1);
        pipeline.settled(2).await;
        assert_eq!(pipeline.document("node1"), document);
        assert_eq!(
            (pipeline.ended(Outcome::Stored), ready(broker).await),
            (1, 0)
        );
    });
}

/// Goal: a letter from nowhere we know is refused with the reason and stays, and those around it are replayed.
#[test]
fn letters_from_elsewhere_stay() {
    in_system(async {
        let pipeline = Pipeline::start().await;
        let broker = &*pipeline.broker;
        for (number, exchange) in [
            (1, "vogeler.master.in"),
            (2, "orders"),
            (3, "vogeler.master.in"),
        ] {
            broker.publish(letter(number, exchange)).await.unwrap();
        }
        let report = dead_letters(broker).replay(&Job::default()).await.unwrap();
        assert_eq!((report.matched, report.done), (3, 2));
        assert!(
            report.refused_named[0].reason.contains("\"orders\""),
            "{report:?}"
        );
        pipeline.settled(2).await;
        let left = list(broker).await;
        assert_eq!((left.len(), left[0].node.as_deref()), (1, Some("node2")));
    });
}

/// Goal: a letter that is too large for the broker by now stays, and the replay goes on.
#[test]
fn a_letter_that_is_too_large_stays() {
    in_system(async {
        let pipeline = Pipeline::start().await;
        let broker = &*pipeline.broker;
        for number in 1..=3 {
            let mut letter = letter(number, "vogeler.master.in");
            if number == 2 {
                let mut body = letter.body.to_vec();
                body.resize(10_000, b' ');
                letter.body = body.into();
            }
            broker.publish(letter).await.unwrap();
        }
        broker.refuse(Some(too_large::<9_000>));
        let report = dead_letters(broker).replay(&Job::default()).await.unwrap();
        assert_eq!((report.done, report.refused), (2, 1));
        assert!(report.stopped.is_none(), "{report:?}");
        pipeline.settled(2).await;
        assert_eq!(list(broker).await[0].node.as_deref(), Some("node2"));
    });
}

/// Goal: when nothing takes the messages, or the broker goes away meanwhile, the letters stay.
#[test]
fn a_replay_that_fails_keeps_the_letters() {
    in_system(async {
        let mut pipeline = Pipeline::start().await;
        let broker = Arc::clone(&pipeline.broker);
        pipeline.stop().await;
        for number in 0..150 {
            broker
                .publish(letter(number, "vogeler.master.in"))
                .await
                .unwrap();
        }
        for partition in 0..4 {
            broker.delete(&format!("vogeler.results.{partition}"));
        }
        let report = dead_letters(&*broker)
            .replay(&Job::default())
            .await
            .unwrap();
        assert_eq!((report.matched, report.done, report.refused), (150, 0, 150));
        assert!(
            report.refused_named[0].reason.contains("no queue takes"),
            "{report:?}"
        );
        assert_eq!(list(&*broker).await.len(), 150);

        // A session that is cut while letters are held: an error, rather than letters twice.
        let cutter = Arc::clone(&broker);
        let cut = tokio::task::spawn_local(async move {
            loop {
                cutter.cut_sessions(DEAD_QUEUE);
                tokio::task::yield_now().await;
            }
        });
        let looked = listing(&*broker, None).await;
        cut.abort();
        assert!(matches!(looked, Err(DeadError::Interrupted)), "{looked:?}");
        assert_eq!(list(&*broker).await.len(), 150);
    });
}

/// Goal: a delivery is acknowledged only once its dead letter is confirmed: while that cannot be published nothing is
/// settled, a server that stops meanwhile gives the delivery back, and the next one makes the letter.
#[test]
fn the_original_waits_for_its_dead_letter() {
    in_system(async {
        let mut config = quick_config();
        config.server.drain_timeout = Duration::from_millis(200);
        let mut pipeline = Pipeline::start_with(config, MemoryStore::new()).await;
        // Without the queue a mandatory message has nowhere to go: the publish fails, again and again. Another one in its
        // place, of another type, keeps the server from making its own.
        pipeline.broker.delete(DEAD_QUEUE);
        let other = topology::Queue {
            bindings: Vec::new(),
            ..topology::dead_queue(QueueType::Classic)
        };
        pipeline.broker.declare(&[other]).await.unwrap();
        pipeline.publish_bytes(b"not json").await;
        eventually("it is received", async || {
            (pipeline.ledger.counts().received == 1).then_some(())
        })
        .await;
        let drained = pipeline.stop().await;
        assert_eq!(drained.counts.of(Outcome::DeadLettered), 0);
        let waiting = pipeline.broker.depth(&["vogeler.results.0"]).await.unwrap();
        assert_eq!(
            waiting[0].unwrap().ready,
            1,
            "the original is in its queue again"
        );
        pipeline.broker.delete(DEAD_QUEUE);
        pipeline.start_server().await;
        pipeline.settled(1).await;
        let letters = list(&*pipeline.broker).await;
        assert_eq!(letters.len(), 1);
        assert_eq!(letters[0].reason.as_deref(), Some("not_json"));
        assert_eq!(pipeline.ended(Outcome::DeadLettered), 1);
    });
}

/// Goal: a stop leaves what was not yet done.
#[test]
fn a_stop_leaves_the_rest() {
    in_system(async {
        let pipeline = Pipeline::start().await;
        let broker = &*pipeline.broker;
        broker
            .publish(letter(1, "vogeler.master.in"))
            .await
            .unwrap();
        let dead = dead_letters(broker);
        dead.stop.cancel();
        // Whether it stops before it has its turn, or after.
        let done = match dead.drop_letters(&Job::default()).await {
            Ok(report) => {
                assert!(matches!(report.stopped, Some(DeadError::Stopped)));
                report.done
            }
            Err(DeadError::Stopped) => 0,
            Err(error) => panic!("{error}"),
        };
        assert_eq!((done, list(broker).await.len()), (0, 1));
    });
}

fn real_broker(v: &Installation) -> Arc<dyn Broker> {
    let config = config::Broker {
        dsn: v.broker().parse().unwrap(),
        ..config::Broker::default()
    };
    broker::open(&config)
}

fn listed(v: &Installation, args: &[&str]) -> Value {
    let mut all = vec!["admin", "dead", "list", "--json"];
    all.extend(args);
    v.vogeler(&all).json()
}

/// A rule of the database that refuses packages.
struct Rule {
    document: String,
    rev: String,
}

impl Rule {
    fn make(dsn: &str) -> Self {
        vogeler::tls::install_crypto_provider();
        let rule = "function (doc) { if (doc.rpms) { throw({forbidden: 'no packages'}); } }";
        let body = json!({"validate_doc_update": rule}).to_string();
        let document = dsn.replacen("couch", "http", 1) + "/_design/guard";
        let mut rev = String::new();
        in_system(async {
            let request = reqwest::Client::new().put(&document).body(body);
            let request = request.header("content-type", "application/json");
            let answer: Value = request.send().await.unwrap().json().await.unwrap();
            answer["rev"].as_str().unwrap().clone_into(&mut rev);
        });
        Self { document, rev }
    }

    fn remove(self) {
        let url = format!("{}?rev={}", self.document, self.rev);
        in_system(async {
            let answer = reqwest::Client::new().delete(url).send().await.unwrap();
            assert!(answer.status().is_success());
        });
    }
}

fn publish_results(v: &Installation, results: &[(&str, &str)]) {
    in_system(async {
        let broker = real_broker(v);
        for (node, plugin) in results {
            let result = value(node, plugin, 1, &json!(["bash-5.1.8"]));
            let key = topology::result_key(&result.node);
            let message = message(&key, result.encode().unwrap());
            broker.publish(message).await.unwrap();
        }
        broker.close().await;
    });
}

/// Dry runs, filters that match nothing, and slips of the hand, with one letter of plugin `rpms` in the queue.
fn these_change_nothing(v: &Installation) {
    for (args, code) in [
        (&["show", "ffffffffffff"][..], 1),
        (&["list", "--plugin", "facts"], 1),
        (&["replay", "--before", "1h"], 1),
        (&["replay", "--dry-run"], 0),
        (&["drop", "--all", "--dry-run"], 0),
        (&["drop"], 2),
        (&["show", "ff"], 2),
    ] {
        let args: Vec<_> = ["admin", "dead"].iter().chain(args).copied().collect();
        assert_eq!(v.vogeler(&args).code, code, "{args:?}");
    }
}

/// Goal: the way of an operator on the real services, while the server runs: a rule refuses a result, its letter is
/// found, shown and tried dry; the rule goes, the replay stores it, and nothing is left.
#[test]
fn an_operator_mends_and_replays() {
    let dsn = pouch::fresh_dsn();
    let v = Installation::new(Rabbit::shared().fresh_vhost().as_str(), &dsn);
    v.vogeler(&["admin", "setup"]).ok();
    let none = v.vogeler(&["admin", "dead", "list"]);
    assert_eq!((none.code, none.stdout.as_str()), (1, ""));
    let rule = Rule::make(&dsn);
    let server = v.server();
    publish_results(&v, &[("web01", "rpms"), ("web02", "facts")]);
    let is_dead = || {
        listed(&v, &[])
            .as_array()
            .is_some_and(|letters| letters.len() == 1)
    };
    assert!(wait_until(PATIENCE, is_dead), "{}", server.log());

    let found = listed(
        &v,
        &["--node", "web01", "--reason", "forbidden", "--since", "1h"],
    )[0]
    .clone();
    assert_eq!(found["detail"], "no packages", "{found}");
    assert_eq!(
        (&found["plugin"], &found["replays"]),
        (&json!("rpms"), &json!(0))
    );
    let id = found["id"].as_str().unwrap();
    let table = v.vogeler(&["admin", "dead", "list"]).ok().stdout;
    assert!(
        table.contains(id) && table.contains("no packages"),
        "{table}"
    );
    let shown = v.vogeler(&["admin", "dead", "show", &id[..6]]).ok().stdout;
    assert!(
        shown.contains("x-vogeler-reason:") && shown.contains("\"node\": \"web01\""),
        "{shown}"
    );
    these_change_nothing(&v);
    assert_eq!(listed(&v, &[])[0], found);

    rule.remove();
    let replayed = v
        .vogeler(&["admin", "dead", "replay", "--id", id])
        .ok()
        .stdout;
    assert_eq!(
        replayed,
        "replayed 1 of 1 matching dead letters (1 looked at)\n"
    );
    assert!(
        wait_until(PATIENCE, || v
            .vogeler(&["node", "show", "web01"])
            .stdout
            .contains("bash-5.1.8")),
        "{}",
        server.log()
    );
    assert_eq!(v.vogeler(&["admin", "dead", "replay"]).code, 1);
    assert!(server.stop().success());
}

/// Publishes `count` letters, each hundredth from elsewhere, and looks at the first ones more often than RabbitMQ
/// delivers a message by default.
fn fill(v: &Installation, count: u64) {
    in_system(async {
        let broker = real_broker(v);
        let publish = async |numbers: std::ops::Range<u64>| {
            let publishes = numbers.map(|number| {
                let elsewhere = number % 100 == 0;
                let exchange = if elsewhere {
                    "orders"
                } else {
                    "vogeler.master.in"
                };
                broker.publish(letter(number, exchange))
            });
            for published in futures::future::join_all(publishes).await {
                published.unwrap();
            }
        };
        publish(0..30).await;
        for _ in 0..25 {
            assert_eq!(list(&*broker).await.len(), 30);
        }
        publish(30..count).await;
        broker.close().await;
    });
}

/// Goal: a thousand letters on RabbitMQ: all seen by two commands at the same time and after more looks than RabbitMQ
/// delivers a message by default, dropped and replayed by filter, and each stored once.
#[test]
fn a_thousand_letters_on_rabbitmq() {
    const COUNT: u64 = 1_000;
    let v = Installation::new(Rabbit::shared().fresh_vhost().as_str(), &pouch::fresh_dsn());
    v.vogeler(&["admin", "setup"]).ok();
    fill(&v, COUNT);
    let ids = |listing: &Value| -> BTreeSet<String> {
        let letters = listing.as_array().unwrap().iter();
        letters
            .map(|letter| letter["id"].as_str().unwrap().to_owned())
            .collect()
    };
    let (first, second) = std::thread::scope(|scope| {
        let other = scope.spawn(|| listed(&v, &[]));
        (listed(&v, &[]), other.join().unwrap())
    });
    assert_eq!(ids(&first).len() as u64, COUNT);
    assert!(first == second, "the same, in the same order");

    let dropped = v
        .vogeler(&["admin", "dead", "drop", "--before", "1970-01-01T00:01:40Z"])
        .ok();
    assert_eq!(
        dropped.stdout,
        "dropped 100 of 100 matching dead letters (1000 looked at)\n"
    );
    let server = v.server();
    // One of the first 95 that are left comes from elsewhere.
    let some = v.vogeler(&["admin", "dead", "replay", "--limit", "95"]);
    assert!(
        some.stdout.contains("replayed 94 of 95 matching"),
        "{some:?}"
    );
    let rest = v.vogeler(&["admin", "dead", "replay"]);
    assert_eq!(rest.code, 2, "{rest:?}");
    assert!(
        rest.stdout.contains("; 9 could not be replayed"),
        "{rest:?}"
    );
    let stored = r#"vogeler_results_total{outcome="stored"}"#;
    let is_stored = || v.metric(stored) == Some(891.0);
    assert!(
        wait_until(PATIENCE, is_stored),
        "{:?} {}",
        v.metric(stored),
        server.log()
    );
    let left = listed(&v, &[]);
    assert_eq!(ids(&left).len(), 9);
    assert!(
        left.as_array()
            .unwrap()
            .iter()
            .all(|letter| letter["exchange"] == "orders")
    );
    v.vogeler(&["admin", "dead", "drop", "--all"]).ok();
    assert_eq!(v.vogeler(&["admin", "dead", "list"]).code, 1);
    assert!(server.stop().success());
}

/// Letters in the test of many. By hand: `VOGELER_TEST_LETTERS=100000`.
const MANY: u64 = 25_000;
/// Memory of one command, whatever the number of letters: ours is 20 MB at rest.
const RESIDENT_MAX: u64 = 100 << 20;

/// How one command went that reads many letters.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// The most memory that a process had so far, in bytes.
fn peak(process: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = text.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

/// Runs `vogeler admin dead` with files for what it prints, and watches its memory.
fn run_measured(v: &Installation, args: &[&str]) -> Ran {
    let started = std::time::Instant::now();
    let file = |name: &str| v.folder().join(name);
    let open = |name: &str| std::fs::File::create(file(name)).unwrap();
    let mut command = v.prepared(&[&["admin", "dead"], args].concat());
    let mut child = command
        .stdout(open("out"))
        .stderr(open("err"))
        .spawn()
        .unwrap();
    let (mut resident, mut code) = (0, None);
    let has_ended = || {
        resident = peak(child.id()).unwrap_or(0).max(resident);
        code = child.try_wait().unwrap().map(|status| status.code());
        code.is_some()
    };
    assert!(wait_until(20 * PATIENCE, has_ended), "{args:?}");
    let code = code.flatten();
    let read = |name: &str| std::fs::read_to_string(file(name)).unwrap();
    let ran = Ran {
        code,
        stdout: read("out"),
        stderr: read("err"),
    };
    println!("{args:?}: {:?}, {} KiB", started.elapsed(), resident / 1024);
    assert!(resident < RESIDENT_MAX, "{args:?}: {resident} bytes");
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{args:?}");
    ran
}

/// A letter of a kilobyte; each third one is no JSON.
fn large_letter(number: u64) -> Message {
    let mut message = letter(number, "vogeler.master.in");
    let mut body = message.body.to_vec();
    body.resize(1_024, b' ');
    message.body = body.into();
    if number.is_multiple_of(3) {
        let headers = &mut message.properties.headers;
        headers.insert("x-vogeler-reason".to_owned(), "not_json".to_owned());
    }
    message
}

async fn publish_large(broker: &dyn Broker, numbers: std::ops::Range<u64>) {
    for first in numbers.clone().step_by(500) {
        let some = first..(first + 500).min(numbers.end);
        let publishes = some.map(|number| broker.publish(large_letter(number)));
        for published in futures::future::join_all(publishes).await {
            published.unwrap();
        }
    }
}

/// The numbers of the letters that are listed, in order.
fn numbers(v: &Installation) -> Vec<u64> {
    let ran = run_measured(v, &["list", "--json"]);
    let letters: Vec<Value> = serde_json::from_str(&ran.stdout).unwrap();
    let number = |letter: &Value| letter["node"].as_str()?.strip_prefix("node")?.parse().ok();
    letters
        .iter()
        .map(|letter| number(letter).unwrap())
        .collect()
}

#[allow(
    clippy::disallowed_methods,
    reason = "asks for more letters by hand, and is no setting"
)]
fn many() -> u64 {
    std::env::var("VOGELER_TEST_LETTERS").map_or(MANY, |text| text.parse().unwrap())
}

fn many_letters(queue_type: &str) {
    let count = many();
    let mut v = Installation::new(Rabbit::shared().fresh_vhost().as_str(), &pouch::fresh_dsn());
    v.set("VOGELER_BROKER_QUEUE_TYPE", queue_type);
    v.vogeler(&["admin", "setup"]).ok();
    in_system(async {
        let broker = real_broker(&v);
        publish_large(&*broker, 0..count).await;
        broker.close().await;
    });
    // They were published together: their order is the queue's.
    let all = numbers(&v);
    let mut sorted = all.clone();
    sorted.sort_unstable();
    assert!(sorted.into_iter().eq(0..count), "all of them, once");
    assert!(numbers(&v) == all, "in the same order");
    let table = run_measured(&v, &["list"]);
    assert_eq!(table.stdout.lines().count() as u64, count + 1);
    let counted = run_measured(&v, &["count", "--json"]).stdout;
    let counted: Value = serde_json::from_str(&counted).unwrap();
    let thirds = count.div_ceil(3);
    assert_eq!(
        counted["reasons"]["not_json"]["letters"],
        json!(thirds),
        "{counted}"
    );
    let last = run_measured(
        &v,
        &["list", "--node", &format!("node{}", count - 1), "--json"],
    );
    let last: Value = serde_json::from_str(&last.stdout).unwrap();
    let shown = run_measured(&v, &["show", last[0]["id"].as_str().unwrap()]);
    assert!(shown.stdout.contains(&format!("\"node{}\"", count - 1)));

    // A server goes on making letters meanwhile.
    let late = count..count + 500;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            in_system(async {
                let broker = real_broker(&v);
                publish_large(&*broker, late.clone()).await;
                broker.close().await;
            });
        });
        let dropped = run_measured(
            &v,
            &["drop", "--reason", "not_json", "--before", "2500-01-01"],
        );
        assert!(dropped.stdout.starts_with("dropped "), "{dropped:?}");
    });
    let left = numbers(&v);
    let kept = all.into_iter().filter(|number| !number.is_multiple_of(3));
    let (old, new): (Vec<u64>, Vec<u64>) = left.iter().partition(|number| **number < count);
    assert!(kept.eq(old.iter().copied()), "the rest in the same order");
    // Of those with the reason some came early enough to be dropped.
    let stays = |number: &u64| !number.is_multiple_of(3);
    let mut new: Vec<u64> = new.into_iter().filter(stays).collect();
    new.sort_unstable();
    assert!(
        new.into_iter().eq(late.filter(stays)),
        "all that came meanwhile, once"
    );
    let rest = left.len();
    let replayed = run_measured(&v, &["replay"]);
    let expected = format!("replayed {rest} of {rest} matching dead letters ({rest} looked at)\n");
    assert_eq!(replayed.stdout, expected);
    in_system(async {
        let broker = real_broker(&v);
        let queues: Vec<_> = (0..16).map(topology::results_queue_name).collect();
        let names: Vec<_> = queues.iter().map(String::as_str).collect();
        let depths = broker.depth(&names).await.unwrap();
        let waiting: u64 = depths.iter().flatten().map(|depth| depth.ready).sum();
        assert_eq!((waiting, ready(&*broker).await), (rest as u64, 0));
        broker.close().await;
    });
}

/// Goal: a pager may let a list wait for longer than the broker waits for a heartbeat, and large letters do not pile up
/// here meanwhile.
#[test]
fn a_list_may_be_read_slowly() {
    const COUNT: u64 = 64;
    // RabbitMQ closes a connection from which nothing came for about two of them.
    let dsn = format!("{}?heartbeat=1", Rabbit::shared().fresh_vhost());
    let v = Installation::new(&dsn, &pouch::fresh_dsn());
    v.vogeler(&["admin", "setup"]).ok();
    in_system(async {
        let broker = real_broker(&v);
        for number in 0..COUNT {
            let mut message = letter(number, "orders");
            message.body = vec![b'x'; 4 << 20].into();
            // A pipe holds 64 KiB of what is listed, fifteen letters.
            let detail = "long ".repeat(800);
            let headers = &mut message.properties.headers;
            headers.insert("x-vogeler-detail".to_owned(), detail);
            broker.publish(message).await.unwrap();
        }
        broker.close().await;
    });
    let mut child = v
        .prepared(&["admin", "dead", "list", "--json"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    assert!(!wait_until(Duration::from_secs(8), || child
        .try_wait()
        .unwrap()
        .is_some()));
    let resident = peak(child.id()).unwrap();
    let mut text = String::new();
    let mut stdout = child.stdout.take().unwrap();
    std::io::Read::read_to_string(&mut stdout, &mut text).unwrap();
    assert!(child.wait().unwrap().success());
    let letters: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(letters.len() as u64, COUNT);
    println!("{} KiB", resident / 1024);
    assert!(resident < 2 * RESIDENT_MAX, "{resident} bytes");
    v.vogeler(&["admin", "dead", "drop", "--all"]).ok();
}

/// Goal: more letters than one consumer may hold are listed, counted, shown, dropped and replayed: in order, all of them, in
/// bounded memory, without a line in the log, while further ones come.
#[test]
fn many_letters_in_a_quorum_queue() {
    many_letters("quorum");
}

/// Goal: the same in a classic queue.
#[test]
fn many_letters_in_a_classic_queue() {
    many_letters("classic");
}
