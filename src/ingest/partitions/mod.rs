//! Partitions: which of them this server consumes, agreed with the other servers.
//!
//! ```text
//! announcements ─▶ members ─▶ agreement ─▶ a consumer a partition ─▶ intake
//!      ▲ greetings ──┘                          └─ owners that do not come ─▶ members
//! ```
//!
//! The agreement only balances. The broker promises that one server at a time has a partition (single active consumer).
//! Its promise holds while servers disagree, hear nobody, or die.

mod agreement;
mod announce;
mod consume;
mod members;
mod substitution;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use uuid::Uuid;

pub use agreement::Agreement;
use agreement::ServerId;
use announce::{Announcer, SUSPECTS_MAX};
use consume::PartitionConsumer;
use substitution::Substitution;

use super::CLOSE_TIMEOUT;
use super::held::Held;
use super::intake::Intake;
use crate::backoff::Backoff;
use crate::broker::setup;
use crate::broker::topology::{self, QueueType};
use crate::broker::{Broker, BrokerError};
use crate::config::Config;

/// First pause before old queues are looked for again; the longest is the broker's `reconnect_max`.
const LOOK_RETRY_BASE: Duration = Duration::from_millis(200);

/// Where deliveries go, and what holds them up or ends them.
#[derive(Debug, Clone)]
pub(super) struct Downstream {
    pub(super) intake: Intake,
    pub(super) held: Held,
    /// While true, results go back to the broker, and nothing is pulled.
    pub(super) letting_go: watch::Receiver<bool>,
    /// Changes when results that could not be forwarded went back: those that came behind them go back, too.
    pub(super) given_back: watch::Receiver<u64>,
    /// The server stops pulling.
    pub(super) stop: CancellationToken,
    /// The drain is over: nothing waits any more.
    pub(super) give_up: CancellationToken,
}

/// All consumers of results.
#[derive(Debug)]
pub(super) struct Partitions {
    me: ServerId,
    agreement: watch::Receiver<Agreement>,
    tasks: Vec<JoinHandle<()>>,
}

impl Partitions {
    /// Begins to announce and to consume, on the current thread; the queues are declared already, or will be. After
    /// `stop` nothing is taken any more. The consumers end when everything taken is settled, or on `give_up`.
    pub(super) fn start(
        config: &Config,
        broker: &Arc<dyn Broker>,
        downstream: &Downstream,
    ) -> Self {
        let (me, partitions) = (Uuid::now_v7(), config.broker.partitions);
        let (agreed, agreement) = watch::channel(Agreement::new(me, [], partitions));
        let announcer = Announcer {
            broker: Arc::clone(broker),
            me,
            partitions,
            reconnect_max: config.broker.reconnect_max,
            stop: downstream.stop.clone(),
        };
        let (suspects, suspected) = mpsc::channel(SUSPECTS_MAX);
        let seats = Seats {
            broker: Arc::clone(broker),
            agreement: agreement.clone(),
            suspects,
            queue_type: config.broker.queue_type,
            partitions,
            prefetch: config.server.prefetch,
            waiting_bytes_max: config.server.bytes_in_flight_max / usize::from(partitions.max(1)),
            drain_timeout: config.server.drain_timeout,
            reconnect_max: config.broker.reconnect_max,
            downstream: downstream.clone(),
        };
        let mut tasks = vec![tokio::spawn(announcer.run(agreed, suspected))];
        tasks.extend((0..partitions).map(|p| tokio::task::spawn_local(seats.partition(p).run())));
        tasks.push(tokio::task::spawn_local(seats.drain_old()));
        Self {
            me,
            agreement,
            tasks,
        }
    }

    /// The queue in which this server hears the others.
    pub(super) fn own_queue(&self) -> topology::Queue {
        topology::server_queue(&self.own_key())
    }

    /// The routing key that leads to [`own_queue`](Self::own_queue).
    pub(super) fn own_key(&self) -> String {
        self.me.to_string()
    }

    /// What is agreed, and every change of it.
    pub(super) fn agreement(&self) -> watch::Receiver<Agreement> {
        self.agreement.clone()
    }

    /// Waits until all tasks end, and aborts late ones. Called after `stop` and `give_up`.
    pub(super) async fn close(self) {
        let end = |task: JoinHandle<()>| async move {
            let abort = task.abort_handle();
            // A consumer has its own time limit to close in.
            if tokio::time::timeout(CLOSE_TIMEOUT * 2, task).await.is_err() {
                abort.abort();
            }
        };
        futures::future::join_all(self.tasks.into_iter().map(end)).await;
    }
}

/// What consumers are made of.
#[derive(Debug)]
struct Seats {
    broker: Arc<dyn Broker>,
    agreement: watch::Receiver<Agreement>,
    suspects: mpsc::Sender<ServerId>,
    queue_type: QueueType,
    partitions: u16,
    prefetch: u16,
    waiting_bytes_max: usize,
    drain_timeout: Duration,
    reconnect_max: Duration,
    downstream: Downstream,
}

impl Seats {
    fn partition(&self, partition: u16) -> PartitionConsumer {
        let queue = topology::results_queue(partition, self.partitions, self.queue_type);
        self.consumer(queue, Some(partition))
    }

    fn consumer(&self, queue: topology::Queue, partition: Option<u16>) -> PartitionConsumer {
        PartitionConsumer {
            broker: Arc::clone(&self.broker),
            queue,
            partition,
            agreement: self.agreement.clone(),
            substitution: Substitution::default(),
            suspects: self.suspects.clone(),
            prefetch: self.prefetch,
            waiting_bytes_max: self.waiting_bytes_max,
            drain_timeout: self.drain_timeout,
            reconnect_max: self.reconnect_max,
            downstream: self.downstream.clone(),
        }
    }

    /// Consumes what an earlier, larger number of partitions left.
    async fn drain_old(self) {
        let mut backoff = Backoff::new(LOOK_RETRY_BASE, self.reconnect_max);
        let old = loop {
            let looked = tokio::select! {
                () = self.downstream.stop.cancelled() => return,
                looked = setup::old_queues(self.broker.as_ref(), self.partitions) => looked,
            };
            match looked {
                Ok(old) => break old,
                Err(BrokerError::Closed) => return,
                Err(error) => {
                    tracing::debug!(target: "vogeler::ingest::partitions", %error, "cannot look for old queues yet");
                }
            }
            tokio::select! {
                () = self.downstream.stop.cancelled() => return,
                () = tokio::time::sleep(backoff.next_random()) => {}
            }
        };
        for (partition, depth) in &old {
            let queue = topology::results_queue_name(*partition);
            warn!(target: "vogeler::ingest::partitions", queue, ready = depth.ready, "consuming a queue of an earlier number of partitions; once it is empty it can be deleted");
        }
        let consumers = old.into_iter().map(|(partition, _)| {
            let queue = topology::old_results_queue(partition, self.queue_type);
            self.consumer(queue, None).run()
        });
        futures::future::join_all(consumers).await;
    }
}
