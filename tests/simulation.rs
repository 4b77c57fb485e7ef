//! The whole pipeline under random faults on both sides: broker and store in memory, time paused, every schedule repeatable.
//!
//! `VOGELER_TEST_SCHEDULES` sets how many schedules run, `VOGELER_TEST_SEED` runs the one of that seed alone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use vogeler::broker::memory::MemoryBroker;
use vogeler::broker::topology;
use vogeler::broker::{Broker, Link};
use vogeler::config::Config;
use vogeler::ingest::Server;
use vogeler::store::memory::{Call, Failure, Fault, MemoryStore};
use vogeler::store::{Store, Verdict};
use vogeler::telemetry::Ledger;
use vogeler::wire::{Content, ErrorKind, Outcome, PluginError, PluginResult};

use crate::harness::audit::{Audit, AuditedBroker, AuditedStore};
use crate::harness::pipeline::{in_system, message, name, of_2010, quick_config, result, value};

/// Seeds 0 to 199 always run: a schedule that finds a bug among them stays.
const SCHEDULES: u64 = 200;
const PARTITIONS: u16 = 2;
/// Longest time, of the simulated clock, until all is settled once faults have ended.
const PATIENCE: Duration = Duration::from_mins(10);
const DAY_MICROS: u64 = 24 * 3600 * 1_000_000;

/// One schedule under way.
struct Simulation {
    random: StdRng,
    config: Config,
    broker: Arc<MemoryBroker>,
    audit: Audit,
    ledger: Arc<Ledger>,
    server: Option<Server>,
    nodes: usize,
    plugins: usize,
    /// Whether every value is another one, so that no result is unchanged.
    is_distinct: bool,
    seq_base: u64,
    seq: u64,
    published: Vec<(Bytes, PluginResult)>,
    /// Results of 2010 by node, in the order published, with their content.
    of_2010: BTreeMap<String, Vec<(Bytes, u64)>>,
    poison: Vec<Bytes>,
}

impl Simulation {
    async fn start(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let seq_base = u64::try_from(Timestamp::now().as_microsecond()).unwrap();
        let mut config = quick_config();
        config.broker.partitions = PARTITIONS;
        let server = &mut config.server;
        server.prefetch = random.random_range(4..40);
        server.batch_count_max = random.random_range(1..8);
        server.writes_in_flight = random.random_range(1..4);
        server.node_mailbox = random.random_range(1..8);
        server.node_idle = Duration::from_millis(random.random_range(20..2_000));
        server.conflict_retries_max = random.random_range(0..4);
        server.retry_max = Duration::from_millis(random.random_range(50..1_000));
        server.refused_pause = Duration::from_secs(1);
        server.hold_max = Duration::from_millis(random.random_range(100..5_000));
        server.drain_timeout = Duration::from_millis(random.random_range(0..500));
        if random.random_bool(0.3) {
            server.freshness = Duration::ZERO;
        }
        if random.random_bool(0.2) {
            server.bytes_in_flight_max = 2_000;
        }
        let mut simulation = Self {
            nodes: random.random_range(1..6),
            plugins: random.random_range(1..4),
            is_distinct: random.random_bool(0.5),
            random,
            config,
            broker: Arc::new(MemoryBroker::new()),
            audit: Audit::new(MemoryStore::new(), seq_base + DAY_MICROS),
            ledger: Arc::default(),
            server: None,
            seq_base,
            seq: seq_base,
            published: Vec::new(),
            of_2010: BTreeMap::new(),
            poison: Vec::new(),
        };
        simulation.start_server().await;
        simulation
    }

    async fn start_server(&mut self) {
        self.ledger = Arc::default();
        let broker = Arc::new(AuditedBroker {
            inner: Arc::clone(&self.broker),
            audit: self.audit.clone(),
        });
        let store = Arc::new(AuditedStore(self.audit.clone()));
        let ledger = Arc::clone(&self.ledger);
        let started = Server::start_on(Vec::new(), &self.config, broker, store, ledger).await;
        self.server = Some(started.unwrap());
    }

    /// Does one random thing.
    async fn step(&mut self) {
        let node = format!("n{}", self.random.random_range(0..self.nodes));
        match self.random.random_range(0..100) {
            0..38 => self.publish_new(&node).await,
            38..43 => self.publish_2010(&node).await,
            43..46 => self.publish_off_slot(&node).await,
            46..50 => self.publish_again().await,
            50..53 => self.publish_poison().await,
            53..58 => self.cut(),
            58..61 => self.skew(&node),
            61..62 => self.break_bookkeeping(&node),
            62..63 => self
                .audit
                .refuse_dead_letters(self.random.random_range(1..12)),
            63..66 => {
                let key = format!("theirs{}", self.random.random_range(0..3));
                let value = json!(self.random.random::<u32>());
                self.audit.edit(&node, &key, value);
            }
            66..68 => self.audit.delete(&node),
            68..83 => self.fault(&node),
            83..85 => self.take_broker_away().await,
            85..87 => self.restart().await,
            87..88 => self.audit.refuse_forwards(self.random.random_range(1..12)),
            _ => {
                let pause = self.random.random_range(0..200);
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
        }
    }

    async fn publish_new(&mut self, node: &str) {
        let plugin = format!("p{}", self.random.random_range(0..self.plugins));
        self.seq += 10;
        let seq = match self.random.random_range(0..100) {
            // Late, or from a clock that is days ahead.
            0..10 => self.seq - self.random.random_range(1..100),
            10..13 => self.seq + 3 * DAY_MICROS,
            _ => self.seq,
        };
        let content = if self.is_distinct {
            self.seq
        } else {
            u64::from(self.random.random::<u8>() % 2)
        };
        let made = if self.random.random_bool(0.1) {
            let error = PluginError {
                kind: ErrorKind::ExitStatus,
                message: format!("no {content}"),
                exit: Some(1),
                stderr: None,
            };
            result(node, &plugin, seq, Content::Error(error))
        } else {
            value(node, &plugin, seq, &json!(content))
        };
        self.publish(made).await;
    }

    async fn publish(&mut self, result: PluginResult) {
        let body = Bytes::from(result.encode().unwrap());
        self.audit.publishing(body.clone(), result.clone());
        self.send(&topology::result_key(&result.node), &body).await;
        self.published.push((body, result));
    }

    /// As a client of 2010 does: no slot, no sequence.
    async fn publish_2010(&mut self, node: &str) {
        self.seq += 10;
        let body = Bytes::from(of_2010(node, "old", &json!(self.seq)));
        self.send("", &body).await;
        let sent = self.of_2010.entry(node.to_owned()).or_default();
        sent.push((body, self.seq));
    }

    /// With the routing key of another node's slot.
    async fn publish_off_slot(&mut self, node: &str) {
        self.seq += 10;
        let off = value(node, "p0", self.seq, &json!(self.seq));
        let slot = (u16::from(off.node.slot()) + self.random.random_range(1..256)) % 256;
        let body = Bytes::from(off.encode().unwrap());
        self.poison.push(body.clone());
        self.send(&format!("{slot:03}"), &body).await;
    }

    fn skew(&mut self, node: &str) {
        let kind = self.random.random_range(0..4);
        self.audit.skew(node, |state| match kind {
            0 => state["format"] = json!("later"),
            1 => state["more"] = json!({"n": [1, 2]}),
            2 => state["collected_at"] = json!(5),
            _ => state["run"] = json!({"of": "another kind"}),
        });
    }

    /// What was written before is older than what is collected from here on, by the clock that the server has.
    fn break_bookkeeping(&mut self, node: &str) {
        self.audit.break_bookkeeping(node);
        let now = u64::try_from(Timestamp::now().as_microsecond()).unwrap();
        self.seq = self.seq.max(now);
    }

    async fn publish_again(&mut self) {
        if self.published.is_empty() {
            return;
        }
        let index = self.random.random_range(0..self.published.len());
        let (body, result) = self.published[index].clone();
        self.send(&topology::result_key(&result.node), &body).await;
    }

    async fn publish_poison(&mut self) {
        let body = Bytes::from(format!("poison {}", self.random.random::<u64>()));
        self.poison.push(body.clone());
        self.send("000", &body).await;
    }

    async fn send(&self, key: &str, body: &Bytes) {
        while self
            .broker
            .publish(message(key, body.to_vec()))
            .await
            .is_err()
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn cut(&mut self) {
        let partition = self.random.random_range(0..PARTITIONS);
        self.broker
            .cut_sessions(&format!("vogeler.results.{partition}"));
    }

    fn fault(&mut self, node: &str) {
        let failure = match self.random.random_range(0..6) {
            0 => Failure::Unauthorized,
            1 => Failure::NoDatabase,
            2 => Failure::Away {
                retry_after: Some(Duration::from_millis(700)),
            },
            _ => Failure::Away { retry_after: None },
        };
        let refused = Verdict::Refused {
            error: "forbidden".to_owned(),
            reason: "no".to_owned(),
        };
        let failed = Verdict::Failed {
            error: "unknown_error".to_owned(),
            reason: "no".to_owned(),
        };
        let (call, fault) = match self.random.random_range(0..7) {
            0 => (Call::Load, Fault::Before(failure)),
            1 => (
                Call::Load,
                Fault::Delay(Duration::from_millis(self.random.random_range(1..500))),
            ),
            2 => (Call::Write, Fault::Before(failure)),
            3 => (Call::Write, Fault::After(failure)),
            4 => (
                Call::Write,
                Fault::Delay(Duration::from_millis(self.random.random_range(1..500))),
            ),
            5 => (
                Call::Write,
                Fault::Rows(HashMap::from([(name(node), Verdict::Conflict)])),
            ),
            _ => {
                let verdict = if self.random.random_bool(0.3) {
                    refused
                } else {
                    failed
                };
                (
                    Call::Write,
                    Fault::Rows(HashMap::from([(name(node), verdict)])),
                )
            }
        };
        for _ in 0..self.random.random_range(1..4) {
            self.audit.store.script(call, fault.clone());
        }
    }

    async fn take_broker_away(&mut self) {
        self.broker.set_link(Link::Down {
            reason: "simulated".to_owned(),
        });
        let away = self.random.random_range(1..300);
        tokio::time::sleep(Duration::from_millis(away)).await;
        self.broker.set_link(Link::Up);
    }

    async fn restart(&mut self) {
        if let Some(server) = self.server.take() {
            let drained = server.stop().await;
            assert_eq!(
                drained.counts.in_flight(),
                0,
                "a stopped server holds something"
            );
        }
        self.start_server().await;
    }

    /// Waits until the broker holds nothing and the server neither.
    async fn settle(&self) {
        let queues: Vec<String> = (0..PARTITIONS)
            .map(|p| format!("vogeler.results.{p}"))
            .collect();
        let queues: Vec<&str> = queues.iter().map(String::as_str).collect();
        let is_settled = async || {
            let depths = self.broker.depth(&queues).await.unwrap();
            let ready: u64 = depths.iter().flatten().map(|depth| depth.ready).sum();
            ready == 0 && self.ledger.counts().in_flight() == 0
        };
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let mut quiet = 0;
        // A delivery may be on its way between the two: quiet is what stays quiet.
        while quiet < 3 {
            quiet = if is_settled().await { quiet + 1 } else { 0 };
            let counts = self.ledger.counts();
            assert!(
                tokio::time::Instant::now() < deadline,
                "never settles: {counts:?}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn check(&self) {
        let violations = self.audit.violations();
        assert!(violations.is_empty(), "{violations:#?}");
        for body in &self.poison {
            assert!(
                self.audit.is_dead(body),
                "poison that is no dead letter: {body:?}"
            );
        }
        for (node, sent) in &self.of_2010 {
            let newest = sent.iter().rposition(|(body, _)| !self.audit.is_dead(body));
            let Some(newest) = newest.filter(|_| !self.audit.was_deleted(node)) else {
                continue;
            };
            let document = self.audit.document(node);
            let is_there = |(_, content): &(Bytes, u64)| document["old"] == json!(content);
            assert!(
                sent[newest..].iter().any(is_there),
                "not the newest of 2010, {:?}: {document}",
                sent[newest]
            );
        }
        // Where a clock was broken, what it overtook is gone, and the next sane result wins, even an older one.
        let broken: BTreeSet<_> = self
            .published
            .iter()
            .filter(|(_, result)| result.seq.0 > self.seq_base + DAY_MICROS)
            .map(|(_, result)| (&result.node, &result.plugin))
            .collect();
        let mut newest: BTreeMap<_, &PluginResult> = BTreeMap::new();
        for (body, result) in &self.published {
            let is_exempt = self.audit.is_dead(body)
                || self.audit.was_deleted(result.node.as_str())
                || broken.contains(&(&result.node, &result.plugin));
            if is_exempt {
                continue;
            }
            let newest = newest
                .entry((&result.node, &result.plugin))
                .or_insert(result);
            if result.seq > newest.seq {
                *newest = result;
            }
        }
        for result in newest.values() {
            let document = self.audit.document(result.node.as_str());
            if self.is_distinct {
                assert!(
                    self.audit.is_in_store(result),
                    "lost: {result:?} of {document}"
                );
            }
        }
    }

    /// Uses up the faults that met no call yet.
    async fn calm(&self) {
        for _ in 0..500 {
            drop(self.audit.store.load(&[]).await);
            drop(self.audit.store.write(Vec::new()).await);
        }
    }

    /// When faults have ended, the next result of every node is stored, whatever happened to it before.
    async fn close(&mut self) {
        self.calm().await;
        let mut last = Vec::new();
        for node in 0..self.nodes {
            self.seq += 1_000;
            let made = value(&format!("n{node}"), "p0", self.seq, &json!(self.seq));
            self.publish(made.clone()).await;
            last.push(made);
        }
        self.settle().await;
        self.check();
        for result in last {
            let document = self.audit.document(result.node.as_str());
            assert_eq!(document["p0"], json!(result.seq), "{document}");
        }
        let drained = self.server.take().unwrap().stop().await;
        let ended: u64 = Outcome::ALL
            .iter()
            .map(|outcome| drained.counts.of(*outcome))
            .sum();
        assert_eq!((drained.counts.received, drained.given_back), (ended, 0));
    }
}

fn run(seed: u64) {
    in_system(async {
        tokio::time::pause();
        let mut simulation = Simulation::start(seed).await;
        for _ in 0..simulation.random.random_range(20..120) {
            simulation.step().await;
        }
        simulation.settle().await;
        simulation.check();
        simulation.close().await;
    });
}

#[expect(
    clippy::disallowed_methods,
    reason = "a setting of the tests, not of vogeler"
)]
fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Goal: under any schedule of faults every message acknowledged is in the store, superseded there or a dead letter, no
/// sequence goes back, no foreign key is lost, the accounting adds up, and the server recovers.
#[test]
fn no_schedule_of_faults_loses_or_takes_back() {
    let seeds: Vec<u64> = if let Some(seed) = setting("VOGELER_TEST_SEED") {
        vec![seed]
    } else {
        let wanted = setting("VOGELER_TEST_SCHEDULES");
        let first = wanted.map_or(0, |_| rand::random::<u32>().into());
        (first..first + wanted.unwrap_or(SCHEDULES)).collect()
    };
    for seed in seeds {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(seed))) {
            println!("repeat with VOGELER_TEST_SEED={seed}");
            resume_unwind(panic);
        }
    }
}
