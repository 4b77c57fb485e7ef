//! The client: hears commands, runs the plugins that its own files name, publishes their results.
//!
//! ```text
//! broker ─command─▶ agent ─▶ execute ─▶ format ─▶ spool (disk) ─▶ ack ;  publisher ─result, confirmed─▶ broker
//!                     ▲ schedule (`every`)
//! ```
//!
//! Invariant: a command only chooses a plugin, and a result that was produced is on disk until the broker has it. A
//! client is two tasks, plus one for each command it works on.

mod about;
mod agent;
mod aside;
mod bindings;
mod command;
mod envelope;
pub mod execute;
mod ini;
mod keep;
mod marks;
mod place;
pub mod plugin;
mod private;
mod publish;
mod schedule;
mod spool;
pub mod supervise;
mod trust;
mod user;
mod vitals;

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

pub use about::{HostNameError, host_label, host_name};
pub use spool::SpoolError;

use agent::{Agent, Loaded};
use bindings::{Audience, Bindings};
use execute::{Limits, Supervisor};
use marks::Marks;
use place::{Commands, Place, Taker};
use plugin::{FolderError, Registry};
use publish::Outbox;
use schedule::Schedule;
use spool::{Bounds, Spool};
use vitals::ClientProbe;

use crate::broker::{Broker, BrokerError, Delivery, topology};
use crate::config;
use crate::http::Probe;
use crate::status::About;
use crate::telemetry::Role;
use crate::wire::{NodeName, PluginName};

/// How long running plugins may go on after a stop; then they are killed and their commands go back to the broker.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// How long a stop waits for the broker to take what the spool holds; the rest waits for the next start.
const FLUSH_MAX: Duration = Duration::from_secs(5);
/// How long a stop waits until the broker knows the last acknowledgements.
const CLOSE_MAX: Duration = Duration::from_secs(5);
/// Most keys of other groups that are unbound. Past this, their commands are only refused.
const STRAYS_MAX: usize = 64;
/// Pause between two looks whether another client of this name is gone.
const TAKEN_PAUSE: Duration = Duration::from_secs(1);
/// Longest sleep of the schedule, so that it notices when the clock is set.
const SCHEDULE_SLEEP_MAX: Duration = Duration::from_mins(1);

/// Why a client cannot start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The machine's name is not usable, and none is configured.
    #[error(transparent)]
    HostName(#[from] HostNameError),
    /// The plugin folder cannot be read.
    #[error(transparent)]
    Plugins(#[from] FolderError),
    /// The state folder cannot be used.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The marks of running plugins cannot be kept.
    #[error(
        "{} cannot be written: {source}; client.state must be a folder that this user may write",
        folder.display()
    )]
    Marks {
        /// The state folder.
        folder: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The client cannot describe itself.
    #[error("the client's own report cannot be made: {0}")]
    About(#[from] serde_json::Error),
    /// The broker was closed.
    #[error("commands cannot be consumed: {0}")]
    Broker(#[from] BrokerError),
}

/// A client that is ready to run: its plugins are read, its spool is open.
#[derive(Debug)]
pub struct Client {
    agent: Arc<Agent>,
    queue: topology::Queue,
    bindings: Bindings,
    audience: Audience,
    place: watch::Sender<Place>,
    schedule: Schedule,
    broker: Arc<dyn Broker>,
    reload: Arc<Notify>,
}

impl Client {
    /// Reads the plugins and opens the spool. Blocks on the disk. Problems in plugin files are logged.
    pub fn new(
        config: config::Client,
        broker: Arc<dyn Broker>,
        supervisor: Supervisor,
    ) -> Result<Self, ClientError> {
        let node = config.node.map_or_else(host_name, Ok)?;
        let registry = Registry::load(&config.plugins)?;
        log_registry(&node, &registry);
        let bounds = Bounds {
            count_max: config.spool_count_max,
            bytes_max: config.spool_bytes_max,
        };
        let spool = Spool::open(&config.state, bounds)?;
        if !spool.is_empty() {
            tracing::info!(target: "vogeler::client", %node, results = spool.len(), "results of an earlier life wait to be published");
        }
        let queue = topology::node_queue(&node, &config.groups);
        let marks = Marks::open(&config.state, &spool).map_err(|source| ClientError::Marks {
            folder: config.state.clone(),
            source,
        })?;
        spool.noted().loaded(&registry);
        Ok(Self {
            bindings: Bindings::new(&config.state, &queue),
            audience: Audience::new(&node, &config.groups),
            place: watch::Sender::new(Place::Open),
            queue,
            schedule: Schedule::new(&node, registry.plugins.values(), Timestamp::now()),
            broker,
            agent: Arc::new(Agent {
                limits: Limits {
                    timeout: config.timeout,
                    output_bytes_max: config.output_bytes_max,
                },
                supervisor,
                zstd_bytes_min: config.zstd_bytes_min,
                loaded: RwLock::new(Arc::new(Loaded::new(&config.groups, registry)?)),
                groups: config.groups,
                plugins: config.plugins,
                marks,
                permits: Semaphore::new(config.concurrency.max(1)),
                outbox: Outbox::new(spool),
                unread: AtomicU64::new(0),
                node,
            }),
            reload: Arc::default(),
        })
    }

    /// Reads the plugin files again whenever `reload` is notified, starting with [`run`](Self::run).
    #[must_use]
    pub fn reload_when(mut self, reload: Arc<Notify>) -> Self {
        self.reload = reload;
        self
    }

    /// The node's name.
    pub fn node(&self) -> &NodeName {
        &self.agent.node
    }

    /// The probe that reports this client's state and `settings`. `stop` is the token that ends the client.
    pub fn probe(
        &self,
        settings: Vec<(&'static str, String)>,
        stop: CancellationToken,
    ) -> Arc<dyn Probe> {
        Arc::new(ClientProbe {
            about: About::new(Role::Client, self.node().to_string(), settings),
            noted: self.agent.outbox.noted(),
            broker: self.broker.link(),
            place: self.place.subscribe(),
            stopping: stop,
        })
    }

    /// Works until `stop`. Then it lets running plugins finish for a while, publishes what it can and returns. The
    /// caller closes the broker. Errors are those that waiting does not cure.
    pub async fn run(self, stop: CancellationToken) -> Result<(), ClientError> {
        // The publisher outlives the commands, to take their results.
        let flush = CancellationToken::new();
        let publisher = publish::run(
            self.agent.outbox.clone(),
            self.broker.clone(),
            self.place.subscribe(),
            flush.clone(),
        );
        let mut publisher = tokio::spawn(publisher);
        if let Err(error) = self.agent.introduce().await {
            tracing::error!(target: "vogeler::client", %error, "the client cannot report itself");
        }
        self.agent.report_interrupted(&stop).await;
        let agent = self.agent.clone();
        let worked = self.work(&stop).await;
        flush.cancel();
        if tokio::time::timeout(FLUSH_MAX, &mut publisher)
            .await
            .is_err()
        {
            publisher.abort();
        }
        let unread = agent.unread.load(Ordering::Relaxed);
        let (waiting, dropped) = agent
            .outbox
            .with(|spool| (spool.len(), spool.dropped()))
            .await
            .unwrap_or_default();
        tracing::info!(target: "vogeler::client", node = %agent.node, unread, waiting, dropped, "client stopped");
        worked
    }

    /// From the first command to the last acknowledgement.
    async fn work(self, stop: &CancellationToken) -> Result<(), ClientError> {
        let mut commands = Commands::new(Taker {
            broker: self.broker,
            queue: self.queue,
            bindings: self.bindings,
            place: self.place,
        });
        let mut work = Work::new(self.agent, self.audience, self.schedule, self.reload, stop);
        let heard = work.hear(&mut commands).await;
        commands.cancel();
        work.finish().await;
        if !commands.close(CLOSE_MAX).await {
            tracing::warn!(target: "vogeler::client", "the broker did not take the last acknowledgements; those commands will be answered again");
        }
        heard
    }
}

/// The running commands and ticks.
#[derive(Debug)]
struct Work {
    agent: Arc<Agent>,
    audience: Audience,
    /// Keys of commands that came although this node is not in their groups.
    strays: BTreeSet<String>,
    schedule: Schedule,
    /// At most [`COMMANDS_MAX`] commands (the consumer's prefetch) and one tick for each plugin.
    tasks: JoinSet<()>,
    /// The tasks that are ticks, with their plugins.
    ticks: HashMap<Id, PluginName>,
    reload: Arc<Notify>,
    stop: CancellationToken,
}

impl Work {
    fn new(
        agent: Arc<Agent>,
        audience: Audience,
        schedule: Schedule,
        reload: Arc<Notify>,
        stop: &CancellationToken,
    ) -> Self {
        Self {
            agent,
            audience,
            strays: BTreeSet::new(),
            schedule,
            tasks: JoinSet::new(),
            ticks: HashMap::new(),
            reload,
            stop: stop.clone(),
        }
    }

    /// Starts a task for each command and each tick, until the stop.
    async fn hear(&mut self, commands: &mut Commands) -> Result<(), ClientError> {
        loop {
            let sleep = self.pause(Timestamp::now(), commands.is_taken());
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Ok(()),
                Some(ended) = self.tasks.join_next_with_id() => self.ended(ended),
                delivery = commands.next() => self.serve(delivery?, commands),
                () = self.reload.notified() => self.reload(commands.is_taken()).await,
                () = tokio::time::sleep(sleep) => self.tick(commands.is_taken()),
            }
        }
    }

    fn serve(&mut self, delivery: Delivery, commands: &Commands) {
        if self.audience.includes(&delivery) {
            let task = self.agent.clone().serve(delivery, self.stop.clone());
            self.tasks.spawn(task);
            return;
        }
        let key = delivery.routing_key.clone();
        let is_news = self.strays.len() < STRAYS_MAX && self.strays.insert(key.clone());
        agent::refuse_stray(delivery, is_news);
        if is_news && topology::is_group(&key) {
            self.tasks.spawn(commands.taker().unbind_stray(key));
        }
    }

    /// How long until something may be due. While another client works for this node, due plugins wait until it is
    /// gone.
    fn pause(&self, now: Timestamp, is_taken: bool) -> Duration {
        if is_taken {
            return TAKEN_PAUSE;
        }
        let wait = self.schedule.wait(now);
        wait.map_or(SCHEDULE_SLEEP_MAX, |wait| wait.min(SCHEDULE_SLEEP_MAX))
    }

    /// Starts the plugins that are due, except those that still run from last time. While another client works for
    /// this node, nothing starts and due plugins stay due. That client may be this very one from before the
    /// network broke: the broker drops its old connection only after two heartbeats.
    fn tick(&mut self, is_taken: bool) {
        if self.agent.outbox.noted().is_unwritable() {
            self.tasks.spawn(self.agent.clone().probe());
        }
        if is_taken {
            return;
        }
        for name in self.schedule.due(Timestamp::now()) {
            if self.ticks.values().any(|running| *running == name) {
                tracing::warn!(target: "vogeler::client", plugin = %name, "the plugin still runs from last time; this time is skipped");
                continue;
            }
            let task = self.agent.clone().tick(name.clone(), self.stop.clone());
            self.ticks.insert(self.tasks.spawn(task).id(), name);
        }
    }

    /// Reads the plugin files again. If that fails, the plugins stay as they are.
    async fn reload(&mut self, is_taken: bool) {
        // Plugins due by the old schedule still get their turn.
        self.tick(is_taken);
        match self.agent.reload().await {
            Ok(()) => {
                let loaded = self.agent.loaded();
                let plugins = loaded.registry.plugins.values();
                let now = Timestamp::now();
                let schedule = Schedule::new(&self.agent.node, plugins, now);
                self.schedule = schedule.with_due_of(&self.schedule, now);
            }
            Err(error) => {
                tracing::error!(target: "vogeler::client", %error, "the plugins cannot be read again; they stay as they were");
            }
        }
    }

    fn ended(&mut self, ended: Result<(Id, ()), JoinError>) {
        let id = match ended {
            Ok((id, ())) => id,
            Err(error) => {
                tracing::error!(target: "vogeler::client", %error, "a task ended badly; its command goes back to the broker");
                error.id()
            }
        };
        self.ticks.remove(&id);
    }

    /// Waits a while for running tasks, then kills those that still run.
    async fn finish(&mut self) {
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_GRACE, all).await.is_err() {
            tracing::warn!(target: "vogeler::client", running = self.tasks.len(), "plugins are killed to stop; their commands go back to the broker");
            self.tasks.shutdown().await;
        }
    }
}

fn log_registry(node: &NodeName, registry: &Registry) {
    for problem in &registry.problems {
        tracing::warn!(target: "vogeler::client", "{problem}");
    }
    let names: Vec<_> = registry.names().collect();
    tracing::info!(target: "vogeler::client", %node, plugins = names.join(" "), problems = registry.problems.len(), "plugins registered");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::memory::MemoryBroker;

    const DAY: Duration = Duration::from_hours(24);

    /// Goal: after the network broke, a client may take itself for the second one of its name for a while. Once it has
    /// its place again it runs what came due meanwhile, even if its plugins were read again in between, and it does
    /// not spin.
    #[tokio::test]
    async fn what_is_due_waits_for_the_place() {
        let folder = tempfile::tempdir().unwrap();
        let plugins = folder.path().join("plugins");
        std::fs::create_dir(&plugins).unwrap();
        std::fs::write(
            plugins.join("daily.cfg"),
            "[daily]\ncommand = date\nevery = 24h\n",
        )
        .unwrap();
        let config = config::Client {
            node: Some("web01".parse().unwrap()),
            plugins,
            state: folder.path().join("state"),
            ..config::Client::default()
        };
        let broker = Arc::new(MemoryBroker::new());
        let client = Client::new(config, broker, Supervisor::this_program()).unwrap();
        let stop = CancellationToken::new();
        let mut work = Work::new(
            client.agent,
            client.audience,
            client.schedule,
            client.reload,
            &stop,
        );
        // It has been due once since `before`.
        let loaded = work.agent.loaded();
        let before = Timestamp::now() - DAY - Duration::from_mins(1);
        work.schedule = Schedule::new(&work.agent.node, loaded.registry.plugins.values(), before);
        work.tick(true);
        work.reload(true).await;
        assert!(work.ticks.is_empty());
        assert_eq!(work.pause(Timestamp::now(), true), TAKEN_PAUSE);
        work.tick(false);
        assert_eq!(work.ticks.len(), 1);
    }
}
