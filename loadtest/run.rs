//! One run: services up, load and faults, settled, verified, reported, services down.
//!
//! Invariant: whatever fails on the way, everything started here ends, and the run's own database is deleted.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use vogeler::config;

use crate::complain;
use crate::faults::{self, FaultRecord};
use crate::fleet::{Brokers, Deleter, Fleet, Target};
use crate::plan::Plan;
use crate::progress::Progress;
use crate::report::make::Run;
use crate::report::{self, Report, Setting};
use crate::services::{Given, INTERRUPTED, Services, soon_after, until};
use crate::stats::Stats;
use crate::verdict::Verdict;
use crate::verify::{Ownership, VerifyInput};
use crate::watch::procfs;
use crate::watch::sample::{Sampler, Timeline};

/// Longest pause before the fleet connects again. It is short, since the fleet is not what is tested.
const RECONNECT_MAX: Duration = Duration::from_secs(1);
/// Longest wait for the verifier to find nothing: what does not hold at once may hold a moment later.
const VERIFY_PATIENCE: Duration = Duration::from_secs(15);

/// What to run, and with what.
pub(crate) struct RunSpec<'a> {
    /// With the seed and faults of the command line.
    pub(crate) plan: &'a Plan,
    /// What runs already.
    pub(crate) given: &'a Given,
    /// Where the server's log goes.
    pub(crate) folder: &'a Path,
    /// Shows how it goes.
    pub(crate) progress: Progress,
}

/// Runs the plan; an error says why it could not be run to its end.
pub(crate) async fn run(spec: &RunSpec<'_>, stop: &CancellationToken) -> anyhow::Result<Report> {
    let log = spec.folder.join(report::LOG);
    let services = Services::start(spec.plan, spec.given, &log, stop).await?;
    let services = Arc::new(services);
    let load = Box::pin(load(spec, &services, stop));
    let report = soon_after(stop, load).await;
    let stopped = match Arc::into_inner(services) {
        Some(services) => services.stop(stop).await,
        None => Err(anyhow!(
            "a service is still in use, and ends with this process"
        )),
    };
    if let Err(error) = stopped {
        // The report stands all the same.
        complain(&format!("vogeler-loadtest: {error:#}"));
    }
    report
}

/// Load, faults and samples at the same time; then the verdict and the report.
async fn load(
    spec: &RunSpec<'_>,
    services: &Arc<Services>,
    stop: &CancellationToken,
) -> anyhow::Result<Report> {
    let plan = spec.plan;
    let stats = Arc::new(Stats::default());
    let timeline = Arc::new(Timeline::new(spec.given.metrics.is_none()));
    let setting = setting(services).await?;
    let fleet = Fleet::new(plan, Arc::clone(&stats))?;
    let target = target(spec, services, &timeline)?;
    let sampler = Sampler::new(services, &fleet, &timeline).await?;

    let (started, started_at) = (Instant::now(), Timestamp::now());
    let over = CancellationToken::new();
    let watching = async {
        tokio::join!(
            sampler.run(started, over.clone()),
            spec.progress.load(&fleet, &timeline, started, &over),
        )
    };
    let working = async {
        let _over = over.clone().drop_guard();
        tokio::try_join!(fleet.run(&target, stop), async {
            let faults = faults::run(&plan.faults, services, &timeline, started, stop).await?;
            target.faults_over.cancel();
            Ok(faults)
        },)
    };
    let (worked, _) = tokio::join!(working, watching);
    let (sent, faults) = worked?;
    if stop.is_cancelled() {
        bail!(INTERRUPTED);
    }
    let verifying = "verifying: ledger, store, dead letters, queues and counters are compared";
    spec.progress.phase(verifying);
    let verified = verify(spec, &fleet, services, (&target, &timeline), &faults);
    let mut verdict = until(stop, verified).await?;
    verdict.failed_clients.clone_from(&sent.failed_clients);
    target.store.close().await;
    spec.progress.last_phase("stopping what was started");
    let run = Run {
        plan,
        fingerprint: fleet.fingerprint(),
        started_at,
        setting,
        stats: &stats,
        server: timeline.lives(|lives| lives.total()),
        server_restarts: timeline.lives(|lives| lives.restarts()),
        sent,
        faults,
        verdict,
        timeline: timeline.samples(),
    };
    Ok(run.report())
}

/// What the fleet talks to: the broker as the server has it, the store past the faults.
fn target(
    spec: &RunSpec<'_>,
    services: &Services,
    timeline: &Arc<Timeline>,
) -> anyhow::Result<Target> {
    let broker = config::Broker {
        dsn: services.broker.dsn().parse()?,
        reconnect_max: RECONNECT_MAX,
        ..services.config.broker.clone()
    };
    let store = services.store.direct()?;
    let deleter = if services.store.is_couch() {
        Deleter::Couch(Arc::clone(&store))
    } else {
        Deleter::Nobody
    };
    Ok(Target {
        brokers: Brokers::Amqp(broker),
        store,
        deleter,
        queues: services.queues(),
        server: spec.given.metrics.is_none().then(|| Arc::clone(timeline)),
        faults_over: CancellationToken::new(),
    })
}

/// Compares the ledger with all services, past all proxies.
async fn verify(
    spec: &RunSpec<'_>,
    fleet: &Fleet,
    services: &Services,
    (target, timeline): (&Target, &Timeline),
    faults: &[FaultRecord],
) -> anyhow::Result<Verdict> {
    let broker = services.broker.direct()?;
    let case = VerifyInput {
        plan: &fleet.plan,
        faults,
        ledger: &fleet.ledger,
        store: target.store.as_ref(),
        broker: broker.as_ref(),
        queue_type: services.config.broker.queue_type,
        queues: &target.queues,
        remake: &|node, plugin, version| fleet.remake(node, plugin, version),
        own: Ownership {
            broker: spec.given.broker.is_none(),
            server: spec.given.metrics.is_none(),
            deletes: services.store.is_couch(),
        },
    };
    let counts = async || {
        let number = timeline.lives(|lives| lives.number());
        let answer = services.server.counts().await;
        timeline.lives(|lives| {
            lives.see(number, answer);
            lives.is_up().then(|| lives.total())
        })
    };
    let verdict = case.verify_within(VERIFY_PATIENCE, counts).await;
    broker.close().await;
    verdict.context("cannot verify")
}

async fn setting(services: &Services) -> anyhow::Result<Setting> {
    let (broker, store) = (services.broker.direct()?, services.store.direct()?);
    let setting = Setting {
        cores: procfs::cores(),
        machine: procfs::machine(),
        build: build(),
        broker: broker.about().await?,
        store: store.about().await?.product,
    };
    broker.close().await;
    store.close().await;
    Ok(setting)
}

fn build() -> String {
    let profile = if cfg!(debug_assertions) {
        "debug"
    } else {
        "release"
    };
    format!("vogeler {} ({profile})", env!("CARGO_PKG_VERSION"))
}
