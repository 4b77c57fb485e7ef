//! The sampler: each second one [`Sample`] of everything, for the terminal, the plots and the bounds.
//!
//! It looks past the proxies, so that a fault does not blind it. It waits less than a second for each service: a
//! service that does not answer in time is missing in that sample.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use vogeler::broker::Broker;

use super::counts::{self, Lives};
use super::lag::{Interval, beat};
use super::overdue::Overdue;
use super::procfs::{Usage, Watched, Whose};
use crate::fleet::Fleet;
use crate::ledger::Ledger;
use crate::services::Services;
use crate::stats::Stats;

const EVERY: Duration = Duration::from_secs(1);
/// Longest wait for an answer of broker or server in one sample.
const PATIENCE: Duration = Duration::from_millis(900);

/// One second of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// Seconds since the load began.
    pub(crate) at: f64,
    /// Messages sent so far.
    pub(crate) sent: u64,
    /// Messages confirmed so far.
    pub(crate) confirmed: u64,
    /// Messages that wait in the clients: due, and not confirmed.
    #[serde(default)]
    pub(crate) waiting: u64,
    /// Results that the broker confirmed, that should have a receipt by now, and have none.
    #[serde(default)]
    pub(crate) overdue: u64,
    /// Deliveries that the server settled so far, by its own count.
    pub(crate) settled: u64,
    /// Documents that the server wrote so far.
    pub(crate) documents: u64,
    /// Messages that wait in the partition queues; none while the broker does not answer.
    pub(crate) ready: Option<u64>,
    /// Deliveries that the server holds; none while it does not answer.
    pub(crate) in_flight: Option<u64>,
    /// Published → stored in this second: median and 99th percentile, in ms.
    pub(crate) stored_ms: Option<[f64; 2]>,
    /// How late this second's sends were against the schedule: 99th percentile, in ms.
    pub(crate) tester_lag_ms: Option<f64>,
    /// How late the tester's timers were in this second: 99th percentile, in ms.
    pub(crate) timer_lag_ms: Option<f64>,
    /// CPU and memory of tester, server, broker and store; none of what is not on this machine.
    pub(crate) usage: [Option<Usage>; 4],
}

/// Who is in [`Sample::usage`], in order.
pub(crate) const WATCHED: [&str; 4] = ["tester", "server", "broker", "store"];

impl Sample {
    /// What waits in clients and queues, or is held by the server; none while it is not known.
    pub(crate) fn backlog(&self) -> Option<u64> {
        Some(self.waiting + self.ready? + self.in_flight?)
    }

    /// Overdue results beyond those that may be in a queue or with the server: they are lost, or their receipts are.
    /// None while it is not known what waits there.
    pub(crate) fn lost(&self) -> Option<u64> {
        Some(self.overdue.saturating_sub(self.ready? + self.in_flight?))
    }
}

/// What the sampler has seen; shared with those who read it.
#[derive(Debug)]
pub(crate) struct Timeline {
    samples: Mutex<Vec<Sample>>,
    lives: Mutex<Lives>,
    faults: Mutex<Vec<FaultEvent>>,
}

/// A fault begins, or is over.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct FaultEvent {
    /// Its name in plans.
    pub(crate) name: &'static str,
    /// Whether it is over: the service was started again, and need not be ready yet.
    pub(crate) is_over: bool,
    /// When, in seconds since the load began.
    pub(crate) at: f64,
}

impl Timeline {
    /// Nothing was seen yet.
    pub(crate) fn new(is_server_own: bool) -> Self {
        Self {
            samples: Mutex::default(),
            lives: Mutex::new(Lives::new(is_server_own)),
            faults: Mutex::default(),
        }
    }

    /// The last two samples, as far as there are.
    pub(crate) fn latest(&self) -> Vec<Sample> {
        let samples = lock(&self.samples);
        samples[samples.len().saturating_sub(2)..].to_vec()
    }

    /// All samples so far.
    pub(crate) fn samples(&self) -> Vec<Sample> {
        lock(&self.samples).clone()
    }

    /// The faults so far, as they began and ended.
    pub(crate) fn faults(&self) -> Vec<FaultEvent> {
        lock(&self.faults).clone()
    }

    /// A fault begins, or is over.
    pub(crate) fn note_fault(&self, name: &'static str, is_over: bool, at: Duration) {
        let at = at.as_secs_f64();
        lock(&self.faults).push(FaultEvent { name, is_over, at });
    }

    /// Reads or changes the server's counts over its lives. (It hands out no guard: a guard can live longer than it
    /// seems to, and then deadlock with itself.)
    pub(crate) fn lives<T>(&self, look: impl FnOnce(&mut Lives) -> T) -> T {
        look(&mut lock(&self.lives))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes the samples.
#[derive(Debug)]
pub(crate) struct Sampler {
    services: Arc<Services>,
    broker: Arc<dyn Broker>,
    queues: Vec<String>,
    stats: Arc<Stats>,
    ledger: Arc<Ledger>,
    timeline: Arc<Timeline>,
    overdue: Overdue,
    watched: [Option<Watched>; 4],
    stored: Interval,
    lag: Interval,
    timers: Interval,
}

impl Sampler {
    /// Looks at everything once, so that nothing from before the load counts.
    pub(crate) async fn new(
        services: &Arc<Services>,
        fleet: &Fleet,
        timeline: &Arc<Timeline>,
    ) -> anyhow::Result<Self> {
        let on = |port: Option<u16>| port.map(|port| Watched::new(Whose::Port(port)));
        let watched = [
            Some(Watched::new(Whose::Process(std::process::id()))),
            on(services.server.port()),
            on(services.broker.port()),
            on(services.store.port()),
        ];
        let sampler = Self {
            broker: services.broker.direct()?,
            queues: services.queues(),
            services: Arc::clone(services),
            stats: Arc::clone(&fleet.stats),
            ledger: Arc::clone(&fleet.ledger),
            overdue: Overdue::default(),
            timeline: Arc::clone(timeline),
            watched,
            stored: Interval::default(),
            lag: Interval::default(),
            timers: Interval::default(),
        };
        sampler.scrape().await;
        Ok(sampler)
    }

    /// Takes a sample now, one each second until `stop`, and a last one then.
    pub(crate) async fn run(mut self, started: Instant, stop: CancellationToken) {
        // In a task of its own: the work of this loop must not look like the timer's lag.
        let beat = tokio::spawn(beat(Arc::clone(&self.stats), started, stop.clone()));
        self.sample(started).await;
        let mut ticks = tokio::time::interval_at((started + EVERY).into(), EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            self.sample(started).await;
        }
        self.sample(started).await;
        drop(beat.await);
        self.broker.close().await;
    }

    async fn sample(&mut self, started: Instant) {
        let ((), ready) = tokio::join!(self.scrape(), self.ready());
        let (answered, is_up) = self.timeline.lives(|lives| (lives.total(), lives.is_up()));
        let stats = &self.stats;
        let p99 = |[_, p99]: [f64; 2]| p99;
        let sample = Sample {
            // Read after the answers, which may take most of a second: what follows is read at the same moment.
            at: started.elapsed().as_secs_f64(),
            sent: stats.sent.get(),
            confirmed: stats.confirmed.get(),
            waiting: stats.waiting(),
            overdue: self.overdue.count(&self.ledger, started.elapsed()),
            settled: counts::settled(&answered),
            documents: answered.documents_written,
            ready,
            in_flight: is_up.then_some(answered.in_flight),
            stored_ms: self.stored.next(stats.published_to_stored.snapshot()),
            tester_lag_ms: self.lag.next(stats.tester_lag.snapshot()).map(p99),
            timer_lag_ms: self.timers.next(stats.timer_lag.snapshot()).map(p99),
            usage: self
                .watched
                .each_mut()
                .map(|watched| watched.as_mut().and_then(Watched::look)),
        };
        lock(&self.timeline.samples).push(sample);
    }

    async fn scrape(&self) {
        let number = self.timeline.lives(|lives| lives.number());
        let answer = tokio::time::timeout(PATIENCE, self.services.server.counts()).await;
        let answer = answer.ok().flatten();
        self.timeline.lives(|lives| lives.see(number, answer));
    }

    async fn ready(&self) -> Option<u64> {
        let names: Vec<&str> = self.queues.iter().map(String::as_str).collect();
        let depths = tokio::time::timeout(PATIENCE, self.broker.depth(&names)).await;
        let depths = depths.ok()?.ok()?;
        Some(depths.into_iter().flatten().map(|depth| depth.ready).sum())
    }
}
