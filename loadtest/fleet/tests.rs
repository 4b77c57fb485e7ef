//! The whole fleet on the memory broker and store, with the real server in between.

use vogeler::broker::memory::MemoryBroker;
use vogeler::broker::topology::{self, QueueType};

use vogeler::config::Config;
use vogeler::ingest::Server;
use vogeler::store::memory::MemoryStore;
use vogeler::telemetry;
use vogeler::wire::Outcome;

use super::*;
use crate::faults::FaultRecord;
use crate::stats::ServerCounts;
use crate::verdict::Verdict;
use crate::verify::{Ownership, VerifyInput};

const PARTITIONS: u16 = 2;

/// A load that takes a few seconds, with everything in it.
fn plan() -> Plan {
    let text = r#"
        name = "test"
        description = "everything at once"
        seed = 7
        nodes = 24
        real_clients = 2
        connections = { shared = 2 }
        change_rate = 0.4
        duplicate_rate = 0.05
        late_rate = 0.05
        clock_skew_rate = 0.2
        poison_rate = 0.02
        joins = 2
        leaves = 4
        ramp = "500ms"
        length = { rate = 150, duration = "5s" }
        plugins = [
            { name = "facter", kind = "facts", bytes = [2500, 4000] },
            { name = "text", kind = "custom", bytes = [100, 9000] },
        ]
        [[runners]]
        at = "1500ms"
        plugin = "facter"
        [[runners]]
        at = "1500ms"
        plugin = "text"
    "#;
    Plan::parse(text, "test").unwrap()
}

/// Goal: same plan and seed, same bytes at the same times, on every machine and in every version of this program;
/// another seed or another share of changes gives others.
#[test]
fn the_fingerprint_of_a_plan_is_fixed() {
    let fingerprint = |plan: &Plan| Fleet::new(plan, Arc::default()).unwrap().fingerprint();
    assert_eq!(fingerprint(&plan()), "6fa2408d0121a19c");
    let seed = Plan { seed: 8, ..plan() };
    let changes = Plan {
        change_rate: 0.5,
        ..plan()
    };
    assert_ne!(fingerprint(&seed), fingerprint(&plan()));
    assert_ne!(fingerprint(&changes), fingerprint(&plan()));
}

/// Faults that are over from the start.
fn no_faults() -> CancellationToken {
    let over = CancellationToken::new();
    over.cancel();
    over
}

/// The result of a load on a server in this process.
struct Loaded {
    fleet: Fleet,
    sent: Sent,
    verdict: Verdict,
}

async fn load(
    plan: &Plan,
    faults: &[FaultRecord],
    store: MemoryStore,
    broker: MemoryBroker,
) -> Loaded {
    let mut config = Config::default();
    config.broker.partitions = PARTITIONS;
    config.server.receipt_linger = Duration::from_millis(5);
    let counted = Arc::new(telemetry::Ledger::default());
    let server = Server::start(
        &config,
        Arc::new(broker.clone()),
        Arc::new(store.clone()),
        Arc::clone(&counted),
    );
    let server = server.await.unwrap();
    let fleet = Fleet::new(plan, Arc::default()).unwrap();
    let queues: Vec<String> = (0..PARTITIONS).map(topology::results_queue_name).collect();
    let target = Target {
        brokers: Brokers::Memory(broker.clone()),
        store: Arc::new(store.clone()),
        deleter: Deleter::Memory(store.clone()),
        queues: queues.clone(),
        server: None,
        faults_over: no_faults(),
    };
    let sent = fleet.run(&target, &CancellationToken::new()).await.unwrap();
    let counts = || {
        let counts = counted.counts();
        ServerCounts {
            received: counts.received,
            ended: Outcome::ALL.map(|outcome| counts.of(outcome)),
            in_flight: counts.in_flight(),
            is_complete: true,
            ..ServerCounts::default()
        }
    };
    let remake =
        |node: &NodeName, plugin: &PluginName, version| fleet.remake(node, plugin, version);
    let case = VerifyInput {
        plan,
        faults,
        ledger: &fleet.ledger,
        store: &store,
        broker: &broker,
        queue_type: QueueType::Quorum,
        queues: &queues,
        remake: &remake,
        own: Ownership {
            broker: true,
            server: true,
            deletes: true,
        },
    };
    let verdict = case
        .verify_within(Duration::from_secs(10), async || Some(counts()))
        .await
        .unwrap();
    server.stop().await;
    Loaded {
        fleet,
        sent,
        verdict,
    }
}

/// Goal: a load of everything (copies, late ones, wrong clocks, poison, nodes that come, leave and come back, runners)
/// on the real server ends with nothing to find, and each kind did occur.
#[test]
fn a_load_of_everything_is_good() {
    actix::System::new().block_on(async {
        let Loaded {
            fleet,
            sent,
            verdict,
        } = load(&plan(), &[], MemoryStore::new(), MemoryBroker::new()).await;
        assert!(verdict.is_good(), "{verdict:#?}");
        for runner in &sent.runners {
            assert_eq!(
                (runner.expected, runner.answered, &runner.error),
                (2, 2, &None)
            );
        }
        let stats = &fleet.stats;
        assert!(stats.confirmed.get() > 500, "{stats:?}");
        for outcome in [Outcome::Stored, Outcome::Unchanged, Outcome::Stale] {
            assert!(stats.settled_as(outcome) > 0, "{outcome:?}");
        }
        let book = fleet.ledger.book();
        assert!(!book.poison.is_empty() && verdict.deleted > Some(0));
        assert!(book.entries.iter().any(|entry| entry.is_late));
        assert!(stats.published_to_stored.quantile(0.5) > Some(Duration::ZERO));
    });
}

/// Goal: a broker that stands still for a second is not flattered: what was due meanwhile counts from when it was due,
/// goes out all the same, and is not blamed on the tester.
#[test]
fn waiting_counts_from_when_a_result_was_due() {
    actix::System::new().block_on(async {
        let plan = Plan {
            length: "{ rate = 150, duration = \"3s\" }"
                .parse::<toml::Value>()
                .unwrap()
                .try_into()
                .unwrap(),
            real_clients: 0,
            runners: Vec::new(),
            leaves: 0,
            ..plan()
        };
        let broker = MemoryBroker::new();
        let paused = broker.clone();
        let pause = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(1500)).await;
            paused.pause(true);
            tokio::time::sleep(Duration::from_secs(1)).await;
            paused.pause(false);
        });
        let Loaded { fleet, verdict, .. } = load(&plan, &[], MemoryStore::new(), broker).await;
        pause.await.unwrap();
        assert!(verdict.is_good(), "{verdict:#?}");
        let stats = &fleet.stats;
        assert_eq!(stats.sent.get(), fleet.schedule.sendings.len() as u64);
        assert_eq!(stats.confirmed.get(), stats.sent.get());
        let waited = |latency: &crate::stats::Latency, share| latency.quantile(share).unwrap();
        // A third of all results was due in that second, evenly spread: a sixth of all waited at least half of it.
        assert!(
            waited(&stats.publish_to_confirmed, 0.85) > Duration::from_millis(450),
            "{stats:?}"
        );
        assert!(waited(&stats.tester_lag, 0.85) < waited(&stats.publish_to_confirmed, 0.85) / 2);
    });
}

/// Goal: sessions that break again and again make the broker redeliver results, settled or not. Nothing is lost, and
/// receipts too many or too few are no findings.
#[test]
fn broken_sessions_lose_nothing() {
    actix::System::new().block_on(async {
        let plan = Plan {
            faults: vec!["cut_broker@1s+2s".parse().unwrap()],
            ..plan()
        };
        let broker = MemoryBroker::new();
        let cut = broker.clone();
        let cuts = tokio::spawn(async move {
            for number in 0..20 {
                tokio::time::sleep(Duration::from_millis(150)).await;
                cut.cut_sessions(&topology::results_queue_name(number % PARTITIONS));
            }
        });
        let fault = FaultRecord {
            kind: "cut_broker".to_owned(),
            began: 0.1,
            ended: 3.1,
        };
        let Loaded { fleet, verdict, .. } = load(&plan, &[fault], MemoryStore::new(), broker).await;
        cuts.await.unwrap();
        assert!(verdict.is_good(), "{verdict:#?}");
        assert!(
            fleet.ledger.book().deleted.is_empty(),
            "nothing is deleted where copies may come again"
        );
    });
}

/// Goal: a real client's result that waits in its spool counts once as sent, from when it was collected, and is missed as
/// long as the broker has not confirmed it.
#[tokio::test]
async fn a_recording_broker_counts_what_waits() {
    let queues = topology::server_queues(1, QueueType::Classic);
    let inner = MemoryBroker::new();
    let now = Timestamp::now();
    let broker = recording_broker::RecordingBroker {
        inner: Arc::new(inner.clone()),
        fleet: Fleet::new(&plan(), Arc::default()).unwrap(),
        start: Start {
            instant: Instant::now() - Duration::from_secs(10),
            wall: now - Duration::from_secs(10),
        },
    };
    let collected = u64::try_from(now.as_microsecond()).unwrap() - 5_000_000;
    let parts = message::Parts {
        node: &"web1".parse().unwrap(),
        plugin: &"facter".parse().unwrap(),
        seq: collected,
        run: vogeler::wire::RunId::generate(),
        hash: crate::ledger::Hash::of(b"{}"),
        value: "{}".to_owned(),
    };
    let message = message::result(parts).unwrap();
    let (stats, ledger) = (&broker.fleet.stats, &broker.fleet.ledger);
    for _ in 0..2 {
        // Nobody declared the partition queues.
        broker.publish(message.clone()).await.unwrap_err();
        assert_eq!((stats.sent.get(), stats.confirmed.get()), (1, 0));
        assert_eq!(ledger.never_confirmed(), 1);
    }
    inner.declare(&queues).await.unwrap();
    broker.publish(message).await.unwrap();
    assert_eq!((stats.sent.get(), stats.confirmed.get()), (1, 1));
    assert_eq!((ledger.never_confirmed(), ledger.unsettled()), (0, 1));
    let waited = stats.publish_to_confirmed.quantile(0.5).unwrap();
    assert!((5..9).contains(&waited.as_secs()), "{waited:?}");
}

/// Goal: stopped early, the fleet ends at once, and calls what it gave up on unconfirmed, the real clients' results, too.
#[test]
fn a_stop_ends_the_fleet() {
    actix::System::new().block_on(async {
        let fleet = Fleet::new(&plan(), Arc::default()).unwrap();
        let store = MemoryStore::new();
        let target = Target {
            // Nobody declared the partition queues: nothing is routable.
            brokers: Brokers::Memory(MemoryBroker::new()),
            store: Arc::new(store.clone()),
            deleter: Deleter::Memory(store),
            queues: vec![topology::results_queue_name(0)],
            server: None,
            faults_over: no_faults(),
        };
        let stop = CancellationToken::new();
        let later = stop.clone();
        let ledger = Arc::clone(&fleet.ledger);
        tokio::spawn(async move {
            while ledger.never_confirmed() == 0 {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            later.cancel();
        });
        let began = Instant::now();
        fleet.run(&target, &stop).await.unwrap();
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "{:?}",
            began.elapsed()
        );
        let stats = &fleet.stats;
        assert_eq!(stats.confirmed.get(), 0);
        assert_eq!(stats.unconfirmed.get(), stats.sent.get());
    });
}
