//! Several servers on one real RabbitMQ: even shares, one writer a node, take-over, rolling restarts, and another
//! number of partitions with a backlog.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::{Value, json};
use vogeler::broker::topology::{self, Exchange, QueueType};
use vogeler::broker::{self, Broker};
use vogeler::config::Config;
use vogeler::ingest::Server;
use vogeler::store::memory::MemoryStore;
use vogeler::store::{
    About, Census, Designs, NodeSummary, Query, Store, StoreError, StoredDocument, Verdict,
    Verdicts, Write,
};
use vogeler::telemetry::{Counts, Ledger};
use vogeler::wire::{NodeName, Outcome};

use crate::harness::installation::Installation;
use crate::harness::load::Load;
use crate::harness::pipeline::{
    eventually, in_system, message, name, of_2010, quick_config, value,
};
use crate::harness::pouch;
use crate::harness::process::wait_until;
use crate::harness::rabbit::Rabbit;

const PARTITIONS: u16 = 8;
const PATIENCE: Duration = Duration::from_secs(30);
/// Within "seconds": announcements, a yield, and the standby's pause.
const BALANCED_WITHIN: Duration = Duration::from_secs(10);

/// A store that sees who writes which node when.
#[derive(Debug, Clone)]
struct Witness {
    store: MemoryStore,
    server: usize,
    seen: Arc<Mutex<Seen>>,
}

/// What all servers' witnesses saw together.
#[derive(Debug, Default)]
struct Seen {
    writing: HashMap<NodeName, usize>,
    overlaps: Vec<(NodeName, usize, usize)>,
    conflicts: usize,
    writers: HashMap<NodeName, HashSet<usize>>,
}

#[async_trait]
impl Store for Witness {
    async fn load(
        &self,
        ids: &[NodeName],
    ) -> Result<HashMap<NodeName, StoredDocument>, StoreError> {
        self.store.load(ids).await
    }

    async fn write(&self, documents: Vec<Write>) -> Result<Verdicts, StoreError> {
        let ids: Vec<_> = documents.iter().map(|write| write.id.clone()).collect();
        {
            let mut seen = self.seen.lock().unwrap();
            for id in &ids {
                seen.writers
                    .entry(id.clone())
                    .or_default()
                    .insert(self.server);
                if let Some(other) = seen.writing.insert(id.clone(), self.server) {
                    seen.overlaps.push((id.clone(), other, self.server));
                }
            }
        }
        // As long as a real store takes, so that an overlap would be seen.
        tokio::time::sleep(Duration::from_millis(10)).await;
        let verdicts = self.store.write(documents).await;
        let mut seen = self.seen.lock().unwrap();
        for id in &ids {
            seen.writing.remove(id);
        }
        let rows = verdicts.iter().flat_map(HashMap::values);
        seen.conflicts += rows.filter(|row| **row == Verdict::Conflict).count();
        drop(seen);
        verdicts
    }

    async fn setup(&self, designs: Designs<'_>) -> Result<Vec<String>, StoreError> {
        self.store.setup(designs).await
    }

    async fn about(&self) -> Result<About, StoreError> {
        self.store.about().await
    }

    async fn nodes(&self) -> Result<Vec<NodeSummary>, StoreError> {
        self.store.nodes().await
    }

    async fn find(&self, query: &Query) -> Result<Vec<NodeName>, StoreError> {
        self.store.find(query).await
    }

    async fn census(&self, since: Timestamp) -> Result<Census, StoreError> {
        self.store.census(since).await
    }

    async fn close(&self) {
        self.store.close().await;
    }
}

/// One server with connections of its own.
struct Member {
    server: Server,
    broker: Arc<dyn Broker>,
    ledger: Arc<Ledger>,
}

/// Servers that share a broker and a store, and somebody who publishes.
struct Cluster {
    dsn: String,
    config: Config,
    store: MemoryStore,
    seen: Arc<Mutex<Seen>>,
    publisher: Arc<dyn Broker>,
    started: usize,
    /// What servers that were stopped had counted.
    past: Vec<Counts>,
}

impl Cluster {
    fn new(partitions: u16) -> Self {
        let mut config = quick_config();
        let dsn = Rabbit::shared().fresh_vhost();
        config.broker.dsn = dsn.as_str().parse().unwrap();
        config.broker.partitions = partitions;
        Self {
            publisher: broker::open(&config.broker),
            config,
            dsn: dsn.into(),
            store: MemoryStore::new(),
            seen: Arc::default(),
            started: 0,
            past: Vec::new(),
        }
    }

    async fn join(&mut self) -> Member {
        self.started += 1;
        let ledger = Arc::new(Ledger::default());
        let broker = broker::open(&self.config.broker);
        let store = Witness {
            store: self.store.clone(),
            server: self.started,
            seen: Arc::clone(&self.seen),
        };
        let store = Arc::new(store);
        let server = Server::start(
            &self.config,
            Arc::clone(&broker),
            store,
            Arc::clone(&ledger),
        );
        Member {
            server: server.await.unwrap(),
            broker,
            ledger,
        }
    }

    async fn leave(&mut self, member: Member) {
        let drained = member.server.stop().await;
        assert_eq!(drained.given_back, 0, "{drained:?}");
        member.broker.close().await;
        self.past.push(member.ledger.counts());
    }

    async fn publish(&self, node: &str, seq: u64) {
        let result = value(node, "rpms", seq, &json!(seq));
        let message = message(
            &topology::result_key(&result.node),
            result.encode().unwrap(),
        );
        self.publisher.publish(message).await.unwrap();
    }

    fn stored_seq(&self, node: &str) -> Option<u64> {
        let document = self.store.document(&name(node))?;
        let document: Value = serde_json::from_str(document.json.get()).unwrap();
        document["rpms"].as_u64()
    }

    /// Ends of deliveries that are final, over all servers there ever were.
    fn finished(&self, members: &[&Member]) -> u64 {
        let now = members.iter().map(|member| member.ledger.counts());
        let all = self.past.iter().copied().chain(now);
        all.map(|counts| counts.received - counts.in_flight() - counts.of(Outcome::Requeued))
            .sum()
    }

    /// Publishes one result a partition until they spread over `members` like `shares`; says how long that took.
    async fn until_shared(&self, members: &[&Member], shares: &[u64], seq: &mut u64) -> Duration {
        let nodes = a_node_a_partition(self.config.broker.partitions);
        let started = Instant::now();
        loop {
            let before: Vec<_> = members.iter().map(|m| m.ledger.counts().received).collect();
            *seq += 1;
            for node in &nodes {
                self.publish(node, *seq).await;
            }
            eventually("the round is stored", async || {
                let is_stored = |node: &String| self.stored_seq(node) == Some(*seq);
                nodes.iter().all(is_stored).then_some(())
            })
            .await;
            let after = members.iter().map(|m| m.ledger.counts().received);
            let mut spread: Vec<_> = after.zip(before).map(|(now, then)| now - then).collect();
            spread.sort_unstable();
            if spread == shares {
                return started.elapsed();
            }
            assert!(started.elapsed() < PATIENCE, "{spread:?}, not {shares:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Names whose results go to partition 0, 1, ….
fn a_node_a_partition(partitions: u16) -> Vec<String> {
    let belongs = |node: &str, partition| {
        let key = topology::result_key(&name(node));
        let queue = topology::results_queue(partition, partitions, QueueType::Quorum);
        queue.bindings.iter().any(|binding| binding.key == key)
    };
    let of = |partition| {
        let mut names = (0..).map(|number| format!("node{number}"));
        names.find(|node| belongs(node, partition)).unwrap()
    };
    (0..partitions).map(of).collect()
}

/// Waits until both have their half, by agreement and in fact.
async fn both_work(a: &Member, b: &Member) {
    let received = |member: &Member| member.ledger.counts().received;
    let has_half = |member: &Member| member.server.agreement().borrow().owned().len() == 4;
    let before = (received(a), received(b));
    eventually("both servers work", async || {
        let is_even = has_half(a) && has_half(b);
        (is_even && received(a) > before.0 + 100 && received(b) > before.1 + 100).then_some(())
    })
    .await;
}

/// Goal: servers that come and go have even shares within seconds, as the messages show, and no node is ever written
/// by two of them at once.
#[test]
fn servers_share_evenly_as_they_come_and_go() {
    in_system(async {
        let mut cluster = Cluster::new(PARTITIONS);
        let mut seq = 0;
        let a = cluster.join().await;
        let mut took = vec![cluster.until_shared(&[&a], &[8], &mut seq).await];
        let b = cluster.join().await;
        took.push(cluster.until_shared(&[&a, &b], &[4, 4], &mut seq).await);
        let c = cluster.join().await;
        took.push(
            cluster
                .until_shared(&[&a, &b, &c], &[2, 3, 3], &mut seq)
                .await,
        );
        eventually("the newcomer knows both others", async || {
            (c.server.agreement().borrow().servers() == 3).then_some(())
        })
        .await;
        cluster.leave(b).await;
        took.push(cluster.until_shared(&[&a, &c], &[4, 4], &mut seq).await);
        cluster.leave(a).await;
        took.push(cluster.until_shared(&[&c], &[8], &mut seq).await);
        println!("even shares after {took:?}");
        assert!(took.iter().all(|took| *took < BALANCED_WITHIN), "{took:?}");
        cluster.leave(c).await;
        cluster.publisher.close().await;
        let seen = cluster.seen.lock().unwrap();
        assert_eq!((&seen.overlaps[..], seen.conflicts), (&[][..], 0));
    });
}

/// Goal: while every server is restarted under load, each result is counted once, none comes twice, nothing is lost,
/// and no two servers write a node at once.
#[test]
fn a_rolling_restart_under_load_loses_and_duplicates_nothing() {
    const NODES: u64 = 60;
    in_system(async {
        let mut cluster = Cluster::new(PARTITIONS);
        let (mut a, mut b) = (cluster.join().await, cluster.join().await);
        let mut seq = 0;
        cluster.until_shared(&[&a, &b], &[4, 4], &mut seq).await;
        let before = cluster.finished(&[&a, &b]);

        let publisher = Arc::clone(&cluster.publisher);
        let stop = tokio_util::sync::CancellationToken::new();
        let stopped = stop.clone();
        let load = tokio::spawn(async move {
            let mut round = 0;
            while !stopped.is_cancelled() {
                round += 1;
                let sends = (0..NODES).map(|node| {
                    let result = value(&format!("load{node}"), "rpms", round, &json!(round));
                    let key = topology::result_key(&result.node);
                    publisher.publish(message(&key, result.encode().unwrap()))
                });
                futures::future::try_join_all(sends).await.unwrap();
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            round
        });
        for _ in 0..2 {
            let next = cluster.join().await;
            cluster.leave(std::mem::replace(&mut a, next)).await;
            both_work(&a, &b).await;
            let next = cluster.join().await;
            cluster.leave(std::mem::replace(&mut b, next)).await;
            both_work(&a, &b).await;
        }
        stop.cancel();
        let rounds: u64 = load.await.unwrap();
        let published = rounds * NODES;
        eventually("all is stored", async || {
            let last =
                (0..NODES).all(|node| cluster.stored_seq(&format!("load{node}")) == Some(rounds));
            last.then_some(())
        })
        .await;
        eventually("nothing is in flight", async || {
            let is_idle = |member: &Member| member.ledger.counts().in_flight() == 0;
            (is_idle(&a) && is_idle(&b)).then_some(())
        })
        .await;
        assert_eq!(cluster.finished(&[&a, &b]) - before, published, "each once");
        cluster.leave(a).await;
        cluster.leave(b).await;
        let stale: u64 = cluster
            .past
            .iter()
            .map(|counts| counts.of(Outcome::Stale))
            .sum();
        cluster.publisher.close().await;
        let seen = cluster.seen.lock().unwrap();
        println!(
            "{published} results, {} conflicts, overlaps {:?}",
            seen.conflicts, seen.overlaps
        );
        assert_eq!(stale, 0, "nothing came late");
        assert_eq!((&seen.overlaps[..], seen.conflicts), (&[][..], 0));
        let moved = seen.writers.values().filter(|writers| writers.len() > 1);
        assert!(moved.count() > 0, "the load has moved");
    });
}

/// Goal: killed with -9 under load, a server's partitions are with the other one within seconds, and nothing is lost.
#[test]
fn killing_a_server_moves_its_partitions() {
    let (broker, store) = (Rabbit::shared().fresh_vhost(), pouch::fresh_dsn());
    let [one, two] = [(), ()].map(|()| Installation::new(broker.as_str(), &store));
    one.vogeler(&["admin", "setup"]).ok();
    let (first, second) = (one.server(), two.server());
    let owned = |v: &Installation| {
        let (_, body) = v.get("/readyz").unwrap_or_default();
        let body: Value = serde_json::from_str(&body).unwrap_or_default();
        body["partitions"]["owned"].as_array().map_or(0, Vec::len)
    };
    let is_even = wait_until(PATIENCE, || (owned(&one), owned(&two)) == (8, 8));
    assert!(is_even, "{}\n{}", first.log(), second.log());
    let load = Load::start(&one, 300, 8);
    let stored = |v: &Installation| {
        let series = "vogeler_results_total{outcome=\"stored\"}";
        v.metric(series).unwrap_or(0.0)
    };
    let both = wait_until(PATIENCE, || stored(&one) >= 50.0 && stored(&two) >= 50.0);
    assert!(both, "{}\n{}", first.log(), second.log());
    first.kill();
    let killed = Instant::now();
    assert!(
        wait_until(PATIENCE, || owned(&two) == 16),
        "{}",
        second.log()
    );
    assert!(killed.elapsed() < BALANCED_WITHIN, "{:?}", killed.elapsed());
    assert_eq!(two.metric("vogeler_partitions_owned"), Some(16.0));
    assert!(two.metric("vogeler_rebalances_total") >= Some(1.0));
    assert_eq!(load.lost(), [], "{}", second.log());
    assert_eq!(second.stop().code(), Some(0));
}

/// Goal: with a backlog in the queues, the number of partitions goes from 8 to 4 and back as docs/OPERATING.md says: nothing
/// is lost, the newest result of each node stays, and afterwards each result goes to one queue only.
#[test]
fn another_number_of_partitions_with_a_backlog() {
    const NODES: u64 = 100;
    in_system(async {
        let mut cluster = Cluster::new(8);
        let mut v = Installation::new(&cluster.dsn, "memory:");
        v.set("VOGELER_BROKER_PARTITIONS", "8");
        v.vogeler(&["admin", "setup"]).ok();
        let mut seq = 0;
        for partitions in [4_u16, 8] {
            let before = cluster.finished(&[]);
            let mut published = 0;
            for _ in 0..2 {
                seq += 1;
                for node in 0..NODES {
                    cluster.publish(&format!("node{node}"), seq).await;
                    published += 1;
                }
            }
            v.set("VOGELER_BROKER_PARTITIONS", &partitions.to_string());
            let setup = v.vogeler(&["admin", "setup"]).ok().stdout;
            assert_eq!(
                setup.contains("vogeler.results.7 is of an earlier"),
                partitions == 4,
                "{setup}"
            );
            cluster.config.broker.partitions = partitions;
            // Half of the nodes have something newer, in other queues than their backlog.
            for node in 0..NODES / 2 {
                cluster.publish(&format!("node{node}"), seq + 1).await;
                published += 1;
            }
            let (a, b) = (cluster.join().await, cluster.join().await);
            eventually("the backlog is done", async || {
                (cluster.finished(&[&a, &b]) - before == published).then_some(())
            })
            .await;
            for node in 0..NODES {
                let newest = if node < NODES / 2 { seq + 1 } else { seq };
                assert_eq!(cluster.stored_seq(&format!("node{node}")), Some(newest));
            }
            seq += 2;
            for node in 0..NODES {
                cluster.publish(&format!("node{node}"), seq).await;
            }
            eventually("the next round is stored", async || {
                let is_stored = |node| cluster.stored_seq(&format!("node{node}")) == Some(seq);
                (0..NODES).all(is_stored).then_some(())
            })
            .await;
            cluster.leave(a).await;
            cluster.leave(b).await;
            assert_eq!(
                cluster.finished(&[]) - before,
                published + NODES,
                "one queue each"
            );
            let queues: Vec<_> = (0..8).map(topology::results_queue_name).collect();
            let queues: Vec<_> = queues.iter().map(String::as_str).collect();
            let depths = cluster.publisher.depth(&queues).await.unwrap();
            assert!(
                depths.iter().flatten().all(|depth| depth.ready == 0),
                "{depths:?}"
            );
        }
        cluster.publisher.close().await;
    });
}

/// A node whose results `b` has, and a slot whose partition `a` has, once they agree that no partition is both's.
async fn apart(a: &Member, b: &Member, partitions: u16) -> (String, String) {
    let nodes = a_node_a_partition(partitions);
    eventually("they own different partitions", async || {
        let [of_a, of_b] = [a, b].map(|member| member.server.agreement().borrow().owned());
        let (first_of_a, first_of_b) = (*of_a.first()?, *of_b.first()?);
        let key = topology::result_key(&name(&nodes[usize::from(first_of_a)]));
        let is_apart = of_a.iter().all(|partition| !of_b.contains(partition));
        is_apart.then(|| (nodes[usize::from(first_of_b)].clone(), key))
    })
    .await
}

/// Goal: results of one node that come by another slot's queue, or by the queue of an earlier number of partitions,
/// never reach the store past the owner's back: the newest in order stands.
#[test]
#[allow(clippy::too_many_lines, reason = "one story, told in order")]
fn one_server_alone_judges_a_node() {
    in_system(async {
        let mut cluster = Cluster::new(PARTITIONS);
        // An earlier number of partitions left a queue; who came first drains it.
        let old = topology::old_results_queue(9, QueueType::Quorum);
        cluster
            .publisher
            .declare(std::slice::from_ref(&old))
            .await
            .unwrap();
        let a = cluster.join().await;
        let b = cluster.join().await;
        let mut seq = 0;
        cluster.until_shared(&[&a, &b], &[4, 4], &mut seq).await;
        let (node, foreign_key) = apart(&a, &b, PARTITIONS).await;
        let own_key = topology::result_key(&name(&node));
        let send = async |seq: u64, content: &str, key: &str| {
            let result = value(&node, "rpms", seq, &json!(content));
            cluster
                .publisher
                .publish(message(key, result.encode().unwrap()))
                .await
                .unwrap();
        };
        let settled = async |finished: u64| {
            eventually("it is settled", async || {
                (cluster.finished(&[&a, &b]) >= finished).then_some(())
            })
            .await;
        };
        let stored = || {
            let document = cluster.store.document(&name(&node)).unwrap();
            let document: Value = serde_json::from_str(document.json.get()).unwrap();
            document["rpms"].clone()
        };
        let finished = cluster.finished(&[&a, &b]);
        send(1_001, "H1", &own_key).await;
        settled(finished + 1).await;
        assert_eq!(stored(), "H1");
        send(1_002, "H2", &foreign_key).await;
        settled(finished + 2).await;
        send(1_003, "H1", &own_key).await;
        settled(finished + 3).await;
        assert_eq!(stored(), "H1", "what came off its slot stands");
        let dead = topology::dead_queue(QueueType::Quorum);
        let mut letters = cluster.publisher.consume(&dead, 1).await.unwrap();
        let letter = tokio::time::timeout(PATIENCE, letters.next()).await;
        let letter = letter.expect("no dead letter").unwrap();
        let header = |name: &str| letter.properties.headers[name].clone();
        assert_eq!(header("x-vogeler-reason"), "slot");
        assert_eq!(header("x-vogeler-node"), node);
        assert!(header("x-vogeler-detail").contains(&own_key));
        letter.settler.ack();
        letters.close(Duration::from_secs(5)).await;

        // One of 2010 has no slot: whoever hears it brings it to the node's queue. Now its time is its sequence.
        let micros = || u64::try_from(Timestamp::now().as_microsecond()).unwrap();
        send(micros(), "H1", &own_key).await;
        settled(finished + 4).await;
        let of_2010 = message("", of_2010(&node, "rpms", &json!("H2")));
        cluster.publisher.publish(of_2010).await.unwrap();
        settled(finished + 5).await;
        assert_eq!(stored(), "H2");
        send(micros(), "H1", &own_key).await;
        settled(finished + 6).await;
        assert_eq!(stored(), "H1", "what came without a slot stands");

        // The same by the queue of an earlier number of partitions.
        send(micros(), "H4", &own_key).await;
        settled(finished + 7).await;
        let bound = topology::Queue {
            bindings: vec![topology::Binding {
                exchange: Exchange::Results,
                key: own_key.clone(),
            }],
            ..old
        };
        let home = (0..PARTITIONS)
            .map(|partition| topology::results_queue(partition, PARTITIONS, QueueType::Quorum))
            .find(|queue| queue.bindings.iter().any(|binding| binding.key == own_key))
            .unwrap();
        cluster
            .publisher
            .declare(std::slice::from_ref(&bound))
            .await
            .unwrap();
        cluster
            .publisher
            .unbind(&home.name, &bound.bindings)
            .await
            .unwrap();
        send(micros(), "H5", &own_key).await;
        cluster.publisher.declare(&[home]).await.unwrap();
        cluster
            .publisher
            .unbind(&bound.name, &bound.bindings)
            .await
            .unwrap();
        settled(finished + 8).await;
        send(micros(), "H4", &own_key).await;
        settled(finished + 9).await;
        assert_eq!(stored(), "H4", "what came by an old queue stands");

        cluster.leave(a).await;
        cluster.leave(b).await;
        cluster.publisher.close().await;
        let seen = cluster.seen.lock().unwrap();
        assert_eq!((&seen.overlaps[..], seen.conflicts), (&[][..], 0));
    });
}
