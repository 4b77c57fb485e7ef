//! The ingest server: from deliveries to node documents.
//!
//! ```text
//! consumer ─▶ ticket, decode ─▶ router ─▶ node actor ─▶ writer ─▶ commit ─▶ store
//!     ▲            │      │                 (coalesce)   (batch)     │
//!     └─ forward ──┼──────┘                                          │
//!                  └──────────────▶ dead letters ◀───────────────────┘      receipts ─▶ runner
//! ```
//!
//! Built from the tail, drained from the head. Invariant: a delivery is acknowledged only after the write that
//! carries it (or proves it superfluous) is durable, or its dead letter is confirmed.

mod batch;
mod cache;
mod coalesce;
mod commit;
mod dead_letter;
mod decode;
mod fit;
mod flow;
mod forward;
mod gate;
mod gauges;
mod held;
mod intake;
mod isolate;
mod keeper;
mod node;
mod pace;
mod partitions;
mod place;
mod receipts;
mod reconcile;
mod refusals;
mod router;
mod runs;
#[doc(hidden)]
pub mod stages;
mod survey;
mod ticket;
mod writer;

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::backoff::Backoff;
use crate::broker::topology::{self, Queue};
use crate::broker::{Broker, BrokerError, Link};
use crate::config::{self, Config};
use crate::store::Store;
use crate::telemetry::{Counts, Ledger};
use batch::BatchBounds;
use commit::{CommitSettings, Committer};
use flow::Flow;
use forward::ForwardSettings;
use gate::StoreGate;
pub use gauges::Gauges;
use held::Held;
use intake::Intake;
use pace::PaceBounds;
pub use partitions::Agreement;
use partitions::{Downstream, Partitions};
pub use reconcile::Topology;
use reconcile::{LookNow, Reconciler};
use router::{NodeSettings, Router};
pub use runs::{RunSeen, Runs};
use writer::{Drain, WriterActor};

/// First pause before a declaration is tried again; the longest is the broker's `reconnect_max`.
const DECLARE_RETRY_BASE: Duration = Duration::from_millis(200);
/// Time for what follows the drain: last dead letters, receipts, acknowledgements.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Divisor of the byte budget: all writes under way together get this part of it at most. A write holds its results three
/// times: as documents, as their JSON and as the request.
const WRITES_PART: usize = 4;
/// Divisor of the byte budget: the cache of documents gets this part of it at most.
const CACHE_PART: usize = 4;

/// A running ingest server. Must be started inside an actix `System`.
#[derive(Debug)]
pub struct Server {
    stop: CancellationToken,
    give_up: CancellationToken,
    partitions: Partitions,
    router: Arc<Router>,
    writer: Addr<WriterActor>,
    arbiters: Vec<Arbiter>,
    /// Tasks that the stop aborts: the keeper of the store's gate, the survey, the sweeper of idle actors, the
    /// reconciler.
    watchers: [JoinHandle<()>; 4],
    publishers: [JoinHandle<()>; 3],
    ledger: Arc<Ledger>,
    store_link: watch::Receiver<Link>,
    dead_letter_link: watch::Receiver<Link>,
    forward_link: watch::Receiver<Link>,
    topology: watch::Receiver<Topology>,
    gauges: Arc<Gauges>,
    runs: Runs,
    drain_timeout: Duration,
}

/// How a stop went.
#[derive(Debug, Clone, Copy)]
pub struct Drained {
    /// All deliveries of this server's life.
    pub counts: Counts,
    /// Deliveries that could not be settled in time and went back to the broker.
    pub given_back: u64,
}

impl Server {
    /// Builds the pipeline from the tail and begins to consume. The server waits for a broker or store that is away or
    /// refuses it; a broker whose queues are not as configured is an error.
    pub async fn start(
        config: &Config,
        broker: Arc<dyn Broker>,
        store: Arc<dyn Store>,
        ledger: Arc<Ledger>,
    ) -> Result<Self, BrokerError> {
        Self::start_on(start_arbiters(), config, broker, store, ledger).await
    }

    /// Like [`start`](Self::start), with node actors on these arbiters. Without any they run on the current thread, so
    /// that a test with paused time has one clock.
    #[allow(
        clippy::too_many_lines,
        reason = "the pipeline, from its tail to its head"
    )]
    pub async fn start_on(
        arbiters: Vec<Arbiter>,
        config: &Config,
        broker: Arc<dyn Broker>,
        store: Arc<dyn Store>,
        ledger: Arc<Ledger>,
    ) -> Result<Self, BrokerError> {
        let settings = &config.server;
        let queues = topology::server_queues(config.broker.partitions, config.broker.queue_type);
        declare_or_wait(&broker, &queues, config.broker.reconnect_max).await?;

        let (receipts, receipt_publisher) =
            receipts::start(Arc::clone(&broker), settings.receipt_linger);
        let (stop, give_up) = (CancellationToken::new(), CancellationToken::new());
        let look_now = LookNow::default();
        let (dead_letters, dead_letter_publisher, dead_letter_link) = dead_letter::start(
            Arc::clone(&broker),
            settings.hold_max,
            deliveries_max(config),
            stop.clone(),
            look_now.clone(),
        );
        let gate = StoreGate::new(settings.retry_max, settings.refused_pause);
        let keeper = keeper::keep(gate.clone(), Arc::clone(&store), settings.hold_max);
        let keeper = tokio::task::spawn_local(keeper);
        let survey = survey::start(config, &broker, &store, gate.link());

        let forwarding = ForwardSettings {
            hold_max: settings.hold_max,
            give_up: give_up.clone(),
            dead_letters: dead_letters.clone(),
            look: look_now.clone(),
        };
        let (forwards, forwarder, given_back) = forward::start(Arc::clone(&broker), forwarding);
        let forward_link = forwards.link();
        let committer = Committer::new(
            store,
            gate.clone(),
            dead_letters.clone(),
            commit_settings(settings),
            give_up.clone(),
        );
        let flow = Arc::new(Flow::default());
        let writer = start_writer(committer, config, &flow);
        let handles = arbiters.iter().map(Arbiter::handle).collect();
        let router = Arc::new(Router::new(
            handles,
            writer.clone(),
            gate.clone(),
            flow,
            node_settings(settings),
        ));
        let sweeper = tokio::task::spawn_local(Arc::clone(&router).sweep());
        let intake = Intake::new(
            config,
            Arc::clone(&router),
            forwards,
            dead_letters,
            receipts,
            Arc::clone(&ledger),
        );

        let downstream = Downstream {
            intake,
            held: Held::new(config.broker.partitions),
            letting_go: gate.letting_go(),
            given_back,
            stop: stop.clone(),
            give_up: give_up.clone(),
        };
        let partitions = Partitions::start(config, &broker, &downstream);
        let reconciler = Reconciler {
            queues,
            own_queue: partitions.own_queue(),
            own_key: partitions.own_key(),
            every: settings.redeclare_every,
            now: look_now,
            stop: stop.clone(),
            broker: Arc::clone(&broker),
        };
        let (topology, reconciler) = reconciler.start();
        let gauges = Gauges::new(config, &downstream, &partitions, &broker, gate.link());
        Ok(Self {
            stop,
            give_up,
            partitions,
            router,
            writer,
            arbiters,
            watchers: [keeper, survey, sweeper, reconciler],
            publishers: [receipt_publisher, dead_letter_publisher, forwarder],
            ledger,
            store_link: gate.link(),
            dead_letter_link,
            forward_link,
            topology,
            gauges: Arc::new(gauges),
            runs: downstream.intake.runs(),
            drain_timeout: settings.drain_timeout,
        })
    }

    /// Whether the store can be used, and every change of that.
    pub fn store_link(&self) -> watch::Receiver<Link> {
        self.store_link.clone()
    }

    /// Whether the broker takes dead letters, and every change of that.
    pub fn dead_letter_link(&self) -> watch::Receiver<Link> {
        self.dead_letter_link.clone()
    }

    /// Whether the broker takes results that belong in another queue, and every change of that.
    pub fn forward_link(&self) -> watch::Receiver<Link> {
        self.forward_link.clone()
    }

    /// What is known of exchanges and queues, and every change of that.
    pub fn topology(&self) -> watch::Receiver<Topology> {
        self.topology.clone()
    }

    /// Which partitions this server and the others agreed on, and every change of that.
    pub fn agreement(&self) -> watch::Receiver<Agreement> {
        self.partitions.agreement()
    }

    /// The gauges that are set at each scrape.
    pub fn gauges(&self) -> Arc<Gauges> {
        Arc::clone(&self.gauges)
    }

    /// The last runs, as far as this server saw them.
    pub fn runs(&self) -> Runs {
        self.runs.clone()
    }

    /// How many nodes have an actor.
    pub fn active_nodes(&self) -> usize {
        self.router.active()
    }

    /// How many deliveries came so far, and how they ended.
    pub fn counts(&self) -> Counts {
        self.ledger.counts()
    }

    /// Stops pulling, writes and settles what was pulled within the drain timeout, gives the rest back, and closes
    /// the consumers. The broker itself stays open; close it afterwards.
    pub async fn stop(self) -> Drained {
        self.stop.cancel();
        if self.writer.send(Drain).await.is_err() {
            warn!(target: "vogeler::ingest", "the writer is gone; results go back to the broker");
        }
        let settled = tokio::time::timeout(self.drain_timeout, self.ledger.settled())
            .await
            .is_ok();
        let given_back = self.ledger.counts().in_flight();
        if !settled {
            warn!(target: "vogeler::ingest", given_back, "not all results could be written in time; the broker will deliver the rest again");
        }
        for watcher in &self.watchers {
            watcher.abort();
        }
        self.give_up.cancel();
        self.partitions.close().await;
        // Whoever holds these keeps the dead letters' publisher waiting for more.
        drop((self.router, self.writer));
        for arbiter in self.arbiters {
            arbiter.stop();
        }
        for publisher in self.publishers {
            let abort = publisher.abort_handle();
            if tokio::time::timeout(CLOSE_TIMEOUT, publisher)
                .await
                .is_err()
            {
                abort.abort();
            }
        }
        Drained {
            counts: self.ledger.counts(),
            given_back,
        }
    }
}

/// Declares the queues. If the broker is away or refuses us, goes on trying in the background, as the consumers do: a
/// changed password must not end all servers, only for them to be restarted and refused every few seconds.
async fn declare_or_wait(
    broker: &Arc<dyn Broker>,
    queues: &[Queue],
    reconnect_max: Duration,
) -> Result<(), BrokerError> {
    let Err(error) = broker.declare(queues).await else {
        return Ok(());
    };
    if !is_waited_for(&error) {
        return Err(error);
    }
    warn!(target: "vogeler::ingest", %error, "waiting for the broker");
    let (broker, queues) = (Arc::clone(broker), queues.to_vec());
    tokio::spawn(async move {
        let mut backoff = Backoff::new(DECLARE_RETRY_BASE, reconnect_max);
        while let Err(error) = broker.declare(&queues).await {
            if !is_waited_for(&error) {
                error!(target: "vogeler::ingest", %error, "the queues cannot be declared");
                return;
            }
            tokio::time::sleep(backoff.next_random()).await;
        }
    });
    Ok(())
}

/// Whether a server starts despite this error, and is not ready until the error is gone.
fn is_waited_for(error: &BrokerError) -> bool {
    error.is_retryable() || matches!(error, BrokerError::Refused { .. })
}

/// Node actors share the machine's cores with the consumers and the writer, which run on the current thread.
fn start_arbiters() -> Vec<Arbiter> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (0..cores.div_ceil(2)).map(|_| Arbiter::new()).collect()
}

fn start_writer(committer: Committer, config: &Config, flow: &Arc<Flow>) -> Addr<WriterActor> {
    let settings = &config.server;
    WriterActor::new(
        Arc::new(committer),
        batch_bounds(settings),
        pace_bounds(settings),
        Arc::clone(flow),
        deliveries_max(config),
    )
    .start()
}

/// Deliveries that may be unsettled at once.
fn deliveries_max(config: &Config) -> usize {
    usize::from(config.server.prefetch) * usize::from(config.broker.partitions)
}

fn node_settings(settings: &config::Server) -> NodeSettings {
    NodeSettings {
        node_mailbox: settings.node_mailbox,
        node_idle: settings.node_idle,
        freshness: settings.freshness,
    }
}

fn batch_bounds(settings: &config::Server) -> BatchBounds {
    BatchBounds {
        count_max: settings.batch_count_max,
        bytes_max: settings
            .batch_bytes_max
            .min(settings.bytes_in_flight_max / (WRITES_PART * settings.writes_in_flight)),
        linger: settings.linger,
        linger_max: settings.linger_max,
    }
}

fn pace_bounds(settings: &config::Server) -> PaceBounds {
    PaceBounds {
        count_max: settings.batch_count_max,
        writes_max: settings.writes_in_flight,
        write_target: settings.write_target,
    }
}

fn commit_settings(settings: &config::Server) -> CommitSettings {
    CommitSettings {
        freshness: settings.freshness,
        conflict_retries_max: settings.conflict_retries_max,
        retry_max: settings.retry_max,
        hold_max: settings.hold_max,
        document_cache_bytes_max: settings
            .document_cache_bytes_max
            .min(settings.bytes_in_flight_max / CACHE_PART),
    }
}
