//! The whole fleet on the memory broker and store, with the real server in between.

use vogeler::broker::memory::MemoryBroker;
use vogeler::broker::topology::{self, QueueType};

use vogeler::config::Config;
use vogeler::ingest::Server;
use vogeler::store::memory::MemoryStore;
use vogeler::telemetry;
use vogeler::wire::Outcome;

use super::*;
use crate::stats::ServerCounts;
use crate::verdict::Verdict;
use crate::verify::Case;

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

/// What a load on a server in this process ended with.
struct Loaded {
    fleet: Fleet,
    sent: Sent,
    verdict: Verdict,
}

async fn load(plan: &Plan, store: MemoryStore, broker: MemoryBroker) -> Loaded {
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
    let case = Case {
        plan,
        ledger: &fleet.ledger,
        store: &store,
        broker: &broker,
        queue_type: QueueType::Quorum,
        queues: &queues,
        remake: &remake,
    };
    let verdict = case
        .verify_within(Duration::from_secs(10), async || Ok(counts()))
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
        } = load(&plan(), MemoryStore::new(), MemoryBroker::new()).await;
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
        assert!(!book.poison.is_empty() && !book.deleted.is_empty());
        assert!(book.entries.iter().any(|entry| entry.is_late));
        assert!(stats.published_to_stored.quantile(0.5) > Some(Duration::ZERO));
    });
}
