//! The fleet: light and real clients, runners, and the listener that hears what became of it all.
//!
//! ```text
//! schedule ──▶ light (dispatcher ▶ outlets) ──▶ broker ──▶ server under test ──▶ receipts ──▶ listener
//!              real (clients behind taps) ──▶    │                                              │
//!              runner ──commands──▶              └── attempts, confirms ──▶ ledger, stats ◀─────┘
//! ```
//!
//! Invariant: what is due is sent when it is due, whatever the server does, and noted in the ledger before.

mod leave;
mod light;
mod listen;
mod message;
mod real;
mod recording_broker;
mod runner;
mod sender;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vogeler::broker::{self, Broker};
use vogeler::config;
use vogeler::store::Store;
use vogeler::wire::{NodeName, PluginName};

use crate::ledger::Ledger;
use crate::nodes::Nodes;
use crate::payload::{self, Generator};
use crate::plan::Plan;
use crate::schedule::Schedule;
use crate::stats::Stats;
use crate::verdict::{Finding, RunnerOutcome};
use crate::watch::counts::Lives;
use crate::watch::sample::Timeline;
pub(crate) use leave::Deleter;

/// Hexadecimal digits of a fingerprint.
const FINGERPRINT_DIGITS: usize = 16;
/// Pause between two checks whether all is settled.
const SETTLED_PAUSE: Duration = Duration::from_millis(200);
/// After a fault, all counts as settled when the queues are empty and no receipt came for this long: receipts may be
/// lost.
const QUIET: Duration = Duration::from_secs(5);

/// Opens connections to the broker.
#[derive(Debug, Clone)]
pub(crate) enum Brokers {
    /// A RabbitMQ: a connection each.
    Amqp(config::Broker),
    /// One that lives in this process.
    #[cfg(test)]
    Memory(vogeler::broker::memory::MemoryBroker),
}

impl Brokers {
    /// A connection of its own.
    pub(crate) fn open(&self) -> Arc<dyn Broker> {
        match self {
            Self::Amqp(config) => broker::open(config),
            #[cfg(test)]
            Self::Memory(broker) => Arc::new(broker.clone()),
        }
    }
}

/// What the fleet talks to.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// Where clients and runners publish.
    pub(crate) brokers: Brokers,
    /// Where runners look up nodes.
    pub(crate) store: Arc<dyn Store>,
    /// Deletes documents of nodes that leave.
    pub(crate) deleter: Deleter,
    /// The partition queues.
    pub(crate) queues: Vec<String>,
    /// The server's counts; none if others load it, too: what it holds need not be ours.
    pub(crate) server: Option<Arc<Timeline>>,
    /// Cancelled when all faults are over: a broker may take minutes longer to come back than planned.
    pub(crate) faults_over: CancellationToken,
}

impl Target {
    /// Whether the server is there and holds nothing, as far as that is known.
    fn is_server_idle(&self) -> bool {
        let is_idle = |lives: &mut Lives| lives.is_up() && lives.total().in_flight == 0;
        let server = self.server.as_ref();
        server.is_none_or(|timeline| timeline.lives(is_idle))
    }
}

/// A fleet that is ready to start.
#[derive(Debug, Clone)]
pub(crate) struct Fleet {
    /// What to do.
    pub(crate) plan: Arc<Plan>,
    /// Who is in it.
    pub(crate) nodes: Arc<Nodes>,
    /// What the light clients send.
    pub(crate) schedule: Arc<Schedule>,
    /// What was sent.
    pub(crate) ledger: Arc<Ledger>,
    /// What is counted.
    pub(crate) stats: Arc<Stats>,
    generators: Arc<[Generator]>,
    /// The index of each node.
    numbers: Arc<HashMap<NodeName, usize>>,
}

/// How it went.
#[derive(Debug)]
pub(crate) struct Sent {
    /// Each runner's run.
    pub(crate) runners: Vec<RunnerOutcome>,
    /// Real clients that ended with an error.
    pub(crate) failed_clients: Vec<Finding>,
    /// From the first message due to the last one confirmed or given up.
    pub(crate) load: Duration,
    /// Until everything was settled, or the wait was over.
    pub(crate) settled: Duration,
}

/// When the load began.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Start {
    instant: Instant,
    wall: Timestamp,
}

impl Start {
    fn now() -> Self {
        Self {
            instant: Instant::now(),
            wall: Timestamp::now(),
        }
    }

    /// The instant `micros` microseconds after the start.
    fn at(self, micros: u64) -> Instant {
        self.instant + Duration::from_micros(micros)
    }

    fn micros(self) -> u64 {
        u64::try_from(self.instant.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// How long ago something was due.
    fn since(self, micros: u64) -> Duration {
        self.instant
            .elapsed()
            .saturating_sub(Duration::from_micros(micros))
    }

    /// A time of the wall clock in microseconds from the start; never later than now.
    fn micros_at(self, time: Timestamp) -> u64 {
        let micros = time.as_microsecond() - self.wall.as_microsecond();
        u64::try_from(micros).unwrap_or(0).min(self.micros())
    }

    /// A sequence: microseconds since the epoch.
    fn seq(self, collected: u64, skew: i64) -> u64 {
        let start = u64::try_from(self.wall.as_microsecond()).unwrap_or(0);
        (start + collected).saturating_add_signed(skew)
    }
}

impl Fleet {
    /// The fleet of a checked plan.
    pub(crate) fn new(plan: &Plan, stats: Arc<Stats>) -> anyhow::Result<Self> {
        let nodes = Nodes::new(plan).context("a name of the plan")?;
        let members = nodes.members.iter().enumerate();
        let numbers = members.map(|(number, member)| (member.name.clone(), number));
        Ok(Self {
            numbers: Arc::new(numbers.collect()),
            schedule: Arc::new(Schedule::new(plan, &nodes)),
            generators: Generator::of_plan(plan).into(),
            nodes: Arc::new(nodes),
            plan: Arc::new(plan.clone()),
            ledger: Arc::default(),
            stats,
        })
    }

    /// A hash of what this fleet prints, and of what it sends when: 16 hexadecimal digits.
    pub(crate) fn fingerprint(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        payload::fingerprint(&self.plan, &self.nodes.machines(), &mut hasher);
        self.schedule.fingerprint(&mut hasher);
        let mut hex = hasher.finalize().to_hex().to_string();
        hex.truncate(FINGERPRINT_DIGITS);
        hex
    }

    /// Makes a value again that a light client sent.
    pub(crate) fn remake(
        &self,
        node: &NodeName,
        plugin: &PluginName,
        version: u32,
    ) -> Option<String> {
        let member = &self.nodes.members[*self.numbers.get(node)?];
        let plugin = self.nodes.plugins.iter().position(|name| name == plugin)?;
        Some(self.generators[plugin].value(&member.machine, version))
    }

    /// Sends everything, and waits until it is settled, or the plan's patience is over.
    pub(crate) async fn run(
        &self,
        target: &Target,
        stop: &CancellationToken,
    ) -> anyhow::Result<Sent> {
        // Ends all tasks of the fleet that still work when this function returns, for whatever reason.
        let over = stop.child_token();
        let guard = over.clone().drop_guard();
        let start = Start::now();
        let listener = listen::Listener::start(self, target, start, &over).await?;
        let clients = real::Clients::start(self, target, start, &over)?;
        let runners = runner::run_all(self, target, start, &over);
        let (runners, load) = tokio::join!(runners, async {
            light::run(self, target, start, &over).await;
            start.instant.elapsed()
        });
        self.settle(target, &over).await;
        let settled = start.instant.elapsed();
        let confirmed = self.stats.confirmed.get();
        let failed_clients = clients.stop().await;
        if self.stats.confirmed.get() > confirmed {
            // A client that ends publishes what it still has; its receipts are to be heard, too.
            self.settle(target, &over).await;
        }
        for _ in 0..self.ledger.never_confirmed() {
            self.stats.unconfirmed.add();
        }
        drop(guard);
        listener.stop().await;
        Ok(Sent {
            runners,
            failed_clients,
            load,
            settled,
        })
    }

    /// Waits until all that real clients tried to publish is confirmed, and each confirmed result has its receipt or
    /// can expect none any more.
    async fn settle(&self, target: &Target, stop: &CancellationToken) {
        stop.run_until_cancelled(target.faults_over.cancelled())
            .await;
        let deadline = Instant::now() + self.plan.settle_timeout;
        let broker = target.brokers.open();
        let (mut told, mut told_at) = (0, Instant::now());
        while Instant::now() < deadline && !stop.is_cancelled() {
            let is_confirmed = self.ledger.never_confirmed() == 0;
            if is_confirmed && self.ledger.unsettled() == 0 {
                break;
            }
            let settled = self.stats.settled();
            if settled != told {
                (told, told_at) = (settled, Instant::now());
            }
            let is_quiet = self.plan.redelivers()
                && is_confirmed
                && told_at.elapsed() > QUIET
                && target.is_server_idle();
            if is_quiet && is_empty(broker.as_ref(), &target.queues).await {
                break;
            }
            tokio::time::sleep(SETTLED_PAUSE).await;
        }
        broker.close().await;
    }
}

/// Whether nothing waits in these queues, as far as the broker says.
async fn is_empty(broker: &dyn Broker, queues: &[String]) -> bool {
    let names: Vec<&str> = queues.iter().map(String::as_str).collect();
    let depths = broker.depth(&names).await.unwrap_or_default();
    let is_empty = |depth: &Option<broker::QueueDepth>| depth.is_some_and(|depth| depth.ready == 0);
    depths.len() == names.len() && depths.iter().all(is_empty)
}

#[cfg(test)]
mod tests;
