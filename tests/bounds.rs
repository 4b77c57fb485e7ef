//! What is held at once has bounds, and each is shown to bound here: prefetch, bytes in flight, a node's mailbox, the
//! size of a message, and with them the memory of a server whose store is away.
//!
//! Bounds that others show: documents and bytes a batch (`ingest::batch`), bytes a request (`store::couch::bulk`),
//! unpacked bytes (`ingest::decode`), retries and idle actors and the drain (`ingest`), hold time (`outages`,
//! `channels`), and settings that cannot work together (`config::limits`).

use std::sync::Arc;
use std::time::Duration;

use actix::Arbiter;
use serde_json::json;
use vogeler::broker::topology::result_key;
use vogeler::broker::{Broker, memory::MemoryBroker};
use vogeler::config::Config;
use vogeler::ingest::Server;
use vogeler::store::Store;
use vogeler::store::memory::{Call, Failure, Fault, MemoryStore};
use vogeler::telemetry::Ledger;
use vogeler::wire::{Outcome, PluginResult};

use crate::harness::pipeline::{
    Pipeline, eventually, eventually_within, in_system, message, name, quick_config, value,
};
use crate::harness::scene::Scene;

/// How long the store of these tests is away.
const AWAY: Duration = Duration::from_secs(3);

/// One partition, and batches that a small prefetch can fill.
fn config() -> Config {
    let mut config = quick_config();
    config.broker.partitions = 1;
    config.server.batch_count_max = 2;
    config.server.writes_in_flight = 2;
    config
}

/// A server whose store is away for a while from the first result on.
async fn pipeline_without_store(config: Config) -> Pipeline {
    let store = MemoryStore::new();
    store.script(Call::Load, Fault::None); // the probe at start
    let retry_after = Some(AWAY);
    store.script(Call::Load, Fault::Before(Failure::Away { retry_after }));
    Pipeline::start_with(config, store).await
}

/// A result of `number`, of about a thousand bytes.
fn kilobyte(number: usize) -> PluginResult {
    value(&format!("n{number}"), "rpms", 1, &json!("x".repeat(1_000)))
}

/// Publishes a hundred results while the store is away. Gives the most that were in flight at once.
async fn most_in_flight(pipeline: &Pipeline) -> u64 {
    for number in 0..100 {
        pipeline.publish(&kilobyte(number)).await;
    }
    let in_flight = || pipeline.ledger.counts().in_flight();
    let mut most = 0;
    eventually("the store is back, and all are stored", async || {
        most = most.max(in_flight());
        (pipeline.ended(Outcome::Stored) == 100).then_some(())
    })
    .await;
    most
}

/// Goal: no more deliveries are in flight than the prefetch allows, however long the backlog is.
#[test]
fn prefetch_bounds_deliveries() {
    in_system(async {
        let mut config = config();
        config.server.prefetch = 10;
        let pipeline = pipeline_without_store(config).await;
        assert_eq!(most_in_flight(&pipeline).await, 10);
    });
}

/// Goal: past the byte budget nothing more is admitted, though the prefetch would allow it.
#[test]
fn the_byte_budget_bounds_deliveries() {
    in_system(async {
        let mut config = config();
        config.server.prefetch = 1_000;
        config.server.bytes_in_flight_max = 20_000;
        let pipeline = pipeline_without_store(config).await;
        let most = most_in_flight(&pipeline).await;
        // A result counts with its body and its value: 2.2 KB. One more waits for its share.
        assert!((5..=10).contains(&most), "{most}");
    });
}

/// Goal: while a node's actor is busy its mailbox takes what it may, and the consumer waits with the next.
#[test]
fn a_mailbox_bounds_what_waits_for_a_node() {
    in_system(async {
        let mut config = config();
        config.server.node_mailbox = 2;
        let (arbiter, broker) = (Arbiter::new(), Arc::new(MemoryBroker::new()));
        let (actors, ledger) = (arbiter.handle(), Arc::new(Ledger::default()));
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let consumed = Arc::clone(&broker) as Arc<dyn Broker>;
        let counted = Arc::clone(&ledger);
        let started = Server::start_on(vec![arbiter], &config, consumed, store, counted).await;
        let publish = async |seq| {
            let result = value("n1", "rpms", seq, &json!(seq));
            let body = result.encode().unwrap();
            let published = broker.publish(message(&result_key(&result.node), body));
            published.await.unwrap();
        };
        publish(1).await;
        let stored = || ledger.counts().of(Outcome::Stored);
        eventually("its actor is there", async || (stored() == 1).then_some(())).await;

        let (go_on, blocked) = std::sync::mpsc::channel::<()>();
        // Ends with an error, when the other end is dropped.
        actors.spawn_fn(move || blocked.recv().unwrap_or_default());
        for seq in 2..=50 {
            publish(seq).await;
        }
        let in_flight = || ledger.counts().in_flight();
        eventually("the mailbox is full", async || {
            (in_flight() >= 3).then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        // Two in the mailbox, and one for each of the router's ways in: the last of them waits to be handled.
        assert!(in_flight() <= 4, "{} in flight", in_flight());
        drop(go_on);
        eventually("all are settled", async || {
            let counts = ledger.counts();
            (counts.received == 50 && counts.in_flight() == 0).then_some(())
        })
        .await;
        started.unwrap().stop().await;
    });
}

/// Goal: a message above the bound is a dead letter with its bytes as they came, packed or not; one below is stored.
#[test]
fn messages_above_the_bound_are_dead_letters() {
    in_system(async {
        let mut config = config();
        config.server.message_bytes_max = 2_000;
        let pipeline = Pipeline::start_with(config, MemoryStore::new()).await;
        let too_large = value("n1", "rpms", 1, &json!("x".repeat(2_000)));
        let plain = too_large.encode().unwrap();
        let packed = zstd::encode_all(plain.as_slice(), 0).unwrap();
        assert!(packed.len() < 1_000);
        for (body, encoding) in [(plain, None), (packed, Some("zstd"))] {
            let mut message = message(&result_key(&too_large.node), body.clone());
            message.properties.content_encoding = encoding.map(str::to_owned);
            pipeline.broker.publish(message).await.unwrap();
            let letter = pipeline.dead_letter().await;
            assert_eq!(letter.properties.headers["x-vogeler-reason"], "too_large");
            assert_eq!(letter.body, body);
            letter.settler.ack();
        }
        pipeline.publish(&kilobyte(1)).await;
        pipeline.settled(3).await;
        assert_eq!(pipeline.ended(Outcome::Stored), 1);
    });
}

/// Nodes of the backlog, and results of each.
const NODES: u32 = 3_000;
const RESULTS: u32 = 10;
/// Of a result in the backlog, which has 60 MB with all of them.
const RESULT_BYTES: usize = 2_000;
const PREFETCH: u32 = 1_000;
/// What the server may hold of it: two partitions × prefetch is 4 MB as it came, and as much again once it is decoded and
/// in the allocator's hands. The rest of the backlog would be ten times that.
const GROWTH_MAX: u64 = 16_000_000;
/// What it may grow in 15 s while nothing comes in, once it has tried the store a few times: metrics, logs, the allocator.
const CREEP_MAX: u64 = 3_000_000;

/// Publishes all results of a node after one another, node by node.
async fn publish_backlog(scene: &Scene) {
    let mut versions: Vec<PluginResult> = (1..=RESULTS)
        .map(|seq| {
            let text = json!(format!("{seq:0RESULT_BYTES$}"));
            value("n", "rpms", u64::from(seq), &text)
        })
        .collect();
    for first in (0..NODES).step_by(50) {
        let mut results = Vec::new();
        for number in first..first + 50 {
            for version in &mut versions {
                version.node = name(&format!("n{number}"));
                results.push(version.clone());
            }
        }
        futures::future::join_all(results.iter().map(|result| scene.publish(result))).await;
    }
}

/// Goal: a server whose store is away and who has a long backlog takes no more of it than its bounds allow, its memory
/// stays flat, and all is stored once the store is back.
#[test]
fn memory_is_flat_while_the_store_is_away() {
    in_system(async {
        let settings = [
            ("SERVER_PREFETCH", PREFETCH.to_string()),
            ("SERVER_MESSAGE_BYTES_MAX", "65536".to_owned()),
            ("SERVER_BATCH_BYTES_MAX", "65536".to_owned()),
            ("SERVER_BYTES_IN_FLIGHT_MAX", "262144".to_owned()),
        ];
        let settings = settings
            .each_ref()
            .map(|(key, value)| (*key, value.as_str()));
        let scene = Scene::new(&settings).await;
        let rss = || scene.server.as_ref().unwrap().rss_bytes();
        let all = NODES * RESULTS;
        scene.store.refuse(true);
        let before = rss();
        publish_backlog(&scene).await;
        let mut in_flight = f64::NAN;
        eventually("nothing more is taken", async || {
            let was = std::mem::replace(&mut in_flight, scene.metric("vogeler_results_in_flight"));
            scene.pass(Duration::from_secs(1)).await;
            (in_flight > 0.0 && (was - in_flight).abs() < 0.5).then_some(())
        })
        .await;
        // The first tries of a batch and their errors still take 3 to 4 MB.
        scene.pass(Duration::from_secs(10)).await;
        let filled = rss();
        let mut most = filled;
        for _ in 0..15 {
            scene.pass(Duration::from_secs(1)).await;
            most = most.max(rss());
        }
        println!("RSS {before} before, {filled} filled, {most} at most; {in_flight} in flight");
        assert!(most < filled + CREEP_MAX, "from {filled} to {most}");
        assert!(most < before + GROWTH_MAX, "from {before} to {most}");
        let waiting = scene.waiting().await;
        assert!(
            waiting >= u64::from(all - 2 * PREFETCH),
            "only {waiting} wait at the broker"
        );

        scene.store.refuse(false);
        eventually_within(Duration::from_mins(5), "all are settled", async || {
            scene.pass(Duration::from_millis(250)).await;
            let settled = scene.ended("stored") + scene.ended("superseded") + scene.ended("stale");
            (settled >= f64::from(all) && scene.waiting().await == 0).then_some(())
        })
        .await;
        for number in (0..NODES).step_by(97) {
            let document = scene.document(&format!("n{number}")).await;
            assert_eq!(
                document["vogeler"]["plugins"]["rpms"]["seq"],
                json!(RESULTS)
            );
        }
        scene.end().await;
    });
}

/// Size of a large result, how many there are, and the budget of the server that takes them.
const LARGE_BYTES: usize = 1_000_000;
const LARGE: u32 = 400;
const BUDGET: u64 = 32 * 1024 * 1024;
/// What the server may have: twice the budget, and what it has without any result.
const RESIDENT_MAX: u64 = 2 * BUDGET + 100 * 1024 * 1024;

async fn large_scene() -> Scene {
    let budget = BUDGET.to_string();
    let settings = [
        ("SERVER_BYTES_IN_FLIGHT_MAX", budget.as_str()),
        ("BROKER_QUEUE_TYPE", "quorum"),
    ];
    Scene::new(&settings).await
}

/// Publishes large results of as many nodes, and waits until the server's memory stays. Gives the most it was.
async fn fill_with_large_results(scene: &Scene) -> u64 {
    let text = json!("x".repeat(LARGE_BYTES));
    let rss = || scene.server.as_ref().unwrap().rss_bytes();
    let mut most = rss();
    for first in (0..LARGE).step_by(20) {
        let results = (first..first + 20)
            .map(|number| value(&format!("large{number}"), "rpms", 1, &text))
            .collect::<Vec<_>>();
        futures::future::join_all(results.iter().map(|result| scene.publish(result))).await;
        most = most.max(rss());
    }
    for _ in 0..40 {
        scene.pass(Duration::from_millis(250)).await;
        most = most.max(rss());
    }
    most
}

/// Goal: 400 results of 1 MB are waiting and the store is away: the server holds twice its byte budget at most, whatever the
/// prefetch would allow. All are stored when the store is back.
#[test]
fn large_results_stay_within_the_byte_budget() {
    in_system(async {
        let scene = large_scene().await;
        scene.store.refuse(true);
        let most = fill_with_large_results(&scene).await;
        let in_flight = scene.metric("vogeler_results_in_flight");
        println!(
            "{} MB resident at most, {in_flight} in flight",
            most / 1_000_000
        );
        assert!(in_flight > 1.0 && most < RESIDENT_MAX, "{most}");
        scene.store.refuse(false);
        let all = f64::from(LARGE);
        eventually_within(Duration::from_mins(5), "all are stored", async || {
            scene.pass(Duration::from_millis(250)).await;
            (scene.ended("stored") >= all && scene.waiting().await == 0).then_some(())
        })
        .await;
        scene.end().await;
    });
}

/// Goal: a prefetch that has grown with small results does not let large ones in beyond the budget either.
#[test]
fn a_grown_prefetch_shrinks_for_large_results() {
    in_system(async {
        let scene = large_scene().await;
        let prefetch = || scene.of_partitions("vogeler_queue_prefetch");
        let first = prefetch();
        let mut seq = 0;
        eventually_within(Duration::from_mins(2), "the prefetch grows", async || {
            seq += 1;
            let small =
                (0..600).map(|number| value(&format!("small{number}"), "rpms", seq, &json!(seq)));
            let small: Vec<_> = small.collect();
            futures::future::join_all(small.iter().map(|result| scene.publish(result))).await;
            (prefetch() >= 1_000.0).then_some(())
        })
        .await;
        let grown = prefetch();
        eventually_within(Duration::from_mins(2), "nothing is left", async || {
            let idle = scene.metric("vogeler_results_in_flight") < 0.5;
            (idle && scene.waiting().await == 0).then_some(())
        })
        .await;
        scene.store.refuse(true);
        let most = fill_with_large_results(&scene).await;
        let (shrunk, changes) = (prefetch(), scene.metric("vogeler_prefetch_changes_total"));
        println!(
            "prefetch {first}, {grown}, {shrunk}, {changes} changes; {} MB resident at most",
            most / 1_000_000
        );
        assert!(most < RESIDENT_MAX, "{most}");
        assert!(
            shrunk < grown / 4.0 && changes < 9.0,
            "{shrunk} after {grown}, {changes} changes"
        );
        scene.store.refuse(false);
        let all = f64::from(LARGE);
        eventually_within(Duration::from_mins(5), "all are stored", async || {
            scene.pass(Duration::from_millis(250)).await;
            let idle = scene.metric("vogeler_results_in_flight") < 0.5;
            (idle && scene.ended("stored") >= all && scene.waiting().await == 0).then_some(())
        })
        .await;
        for number in (0..LARGE).step_by(37) {
            let document = scene.document(&format!("large{number}")).await;
            assert_eq!(document["vogeler"]["plugins"]["rpms"]["seq"], json!(1));
        }
        scene.end().await;
    });
}
