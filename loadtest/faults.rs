//! Faults: the plan's and those of `--fault`, each begun and ended at its time.
//!
//! Invariant: only what the run started is stopped or killed, and two faults never harm the same part at the same time:
//! plans that say so are refused before anything starts, and one that takes long to begin or end delays the next.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use futures::future::try_join_all;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::plan::{FaultKind, FaultPlan};
use crate::services::{Given, Services};
use crate::watch::counts::Lives;
use crate::watch::sample::Timeline;

/// What a fault harms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// RabbitMQ itself.
    Broker,
    /// The connections to it.
    Connections,
    /// The server.
    Server,
    /// The way from the server to the store.
    Store,
}

impl Part {
    const ALL: [Self; 4] = [Self::Broker, Self::Connections, Self::Server, Self::Store];

    /// What this fault harms.
    pub(crate) fn of(kind: FaultKind) -> Self {
        match kind {
            FaultKind::RestartBroker | FaultKind::KillBroker => Self::Broker,
            FaultKind::CutBroker => Self::Connections,
            FaultKind::KillServer => Self::Server,
            FaultKind::StopStore
            | FaultKind::StoreAnswers503
            | FaultKind::SwallowStoreAnswers
            | FaultKind::SlowStore { .. } => Self::Store,
        }
    }
}

/// A fault as it really went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct FaultRecord {
    /// Its name in plans.
    pub(crate) kind: String,
    /// When it began, in seconds since the load began.
    pub(crate) began: f64,
    /// When it was over: the service was started again, and need not have been ready yet.
    pub(crate) ended: f64,
}

impl FaultRecord {
    /// The kind of fault; without its delay, which the record does not have.
    pub(crate) fn kind(&self) -> Option<FaultKind> {
        FaultKind::named(&self.kind)
    }
}

/// Whether these faults are possible with the given services.
pub(crate) fn check(faults: &[FaultPlan], given: &Given) -> anyhow::Result<()> {
    for (index, fault) in faults.iter().enumerate() {
        let (name, part) = (fault.kind.name(), Part::of(fault.kind));
        let obstacle = match part {
            Part::Broker => given
                .broker
                .as_ref()
                .map(|_| "--broker names one that this run did not start"),
            Part::Server => given
                .metrics
                .as_ref()
                .map(|_| "--metrics names a server that this run did not start"),
            Part::Store => given
                .metrics
                .as_ref()
                .map(|_| "the server of --metrics has its own way to the store"),
            Part::Connections => None,
        };
        if let Some(obstacle) = obstacle {
            bail!("{name} cannot be: {obstacle}");
        }
        let meets = |other: &&FaultPlan| {
            let is_apart = other.at + other.lasts <= fault.at || fault.at + fault.lasts <= other.at;
            Part::of(other.kind) == part && !is_apart
        };
        if let Some(other) = faults[..index].iter().find(meets) {
            bail!(
                "{name} and {} harm the same part at the same time: let one end before the other begins",
                other.kind.name()
            );
        }
    }
    Ok(())
}

/// Begins and ends each fault at its time, until all are over or `stop`. An error is a service that did not come back.
pub(crate) async fn run(
    faults: &[FaultPlan],
    services: &Services,
    timeline: &Arc<Timeline>,
    started: Instant,
    stop: &CancellationToken,
) -> anyhow::Result<Vec<FaultRecord>> {
    let parts = Part::ALL.map(|part| async move {
        let mut records = Vec::new();
        for fault in in_order(faults, part) {
            records.extend(one(fault, services, timeline, started, stop).await?);
        }
        anyhow::Ok(records)
    });
    let mut records: Vec<FaultRecord> = try_join_all(parts).await?.concat();
    records.sort_by(|one, other| one.began.total_cmp(&other.began));
    Ok(records)
}

/// The faults of one part, by time.
fn in_order(faults: &[FaultPlan], part: Part) -> Vec<FaultPlan> {
    let of_part = |fault: &&FaultPlan| Part::of(fault.kind) == part;
    let mut faults: Vec<_> = faults.iter().filter(of_part).copied().collect();
    faults.sort_by_key(|fault| fault.at);
    faults
}

async fn one(
    fault: FaultPlan,
    services: &Services,
    timeline: &Timeline,
    started: Instant,
    stop: &CancellationToken,
) -> anyhow::Result<Option<FaultRecord>> {
    let until = |time: Duration| {
        stop.run_until_cancelled(tokio::time::sleep_until((started + time).into()))
    };
    if until(fault.at).await.is_none() {
        return Ok(None);
    }
    let name = fault.kind.name();
    let began = started.elapsed();
    timeline.note_fault(name, false, began);
    begin(fault.kind, services, timeline)
        .await
        .with_context(|| format!("cannot begin {name}"))?;
    // Its time counts from when it is in effect: a broker takes seconds to stop.
    until(started.elapsed() + fault.lasts).await;
    end(fault.kind, services)
        .await
        .with_context(|| format!("cannot end {name}"))?;
    timeline.note_fault(name, true, started.elapsed());
    Ok(Some(FaultRecord {
        kind: name.to_owned(),
        began: began.as_secs_f64(),
        ended: started.elapsed().as_secs_f64(),
    }))
}

async fn begin(kind: FaultKind, services: &Services, timeline: &Timeline) -> anyhow::Result<()> {
    match kind {
        FaultKind::RestartBroker => services.broker.go_down(false).await?,
        FaultKind::KillBroker => services.broker.go_down(true).await?,
        FaultKind::CutBroker => services.broker.refuse(true),
        FaultKind::KillServer => {
            services.server.kill().await?;
            timeline.lives(Lives::end);
        }
        _ => services.store.harm(kind),
    }
    Ok(())
}

async fn end(kind: FaultKind, services: &Services) -> anyhow::Result<()> {
    match Part::of(kind) {
        Part::Broker => services.broker.come_up().await,
        Part::Connections => {
            services.broker.refuse(false);
            Ok(())
        }
        Part::Server => services.server.restart().await,
        Part::Store => {
            services.store.heal();
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(specs: &[&str]) -> Vec<FaultPlan> {
        specs.iter().map(|spec| spec.parse().unwrap()).collect()
    }

    /// Goal: what the run did not start is never stopped or killed.
    #[test]
    fn given_services_are_not_harmed() {
        let given = Given {
            broker: Some("amqp://mq".to_owned()),
            metrics: "http://127.0.0.1:9877/metrics".parse().ok(),
            ..Given::default()
        };
        for (spec, why) in [
            ("kill_broker@1s+1s", "--broker"),
            ("restart_broker@1s+1s", "--broker"),
            ("kill_server@1s+1s", "--metrics"),
            ("stop_store@1s+1s", "--metrics"),
        ] {
            let error = check(&faults(&[spec]), &given).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
            check(&faults(&[spec]), &Given::default()).unwrap();
        }
    }

    /// Goal: every fault has its turn, those of one part by time, whatever order they were named in.
    #[test]
    fn faults_of_a_part_take_turns() {
        let all = faults(&[
            "kill_server@9s+1s",
            "slow_store:1s@3s+2s",
            "cut_broker@1s+1s",
            "stop_store@1s+2s",
            "kill_broker@4s+1s",
            "kill_server@2s+7s",
        ]);
        let in_turn = Part::ALL.map(|part| in_order(&all, part)).concat();
        let names: Vec<_> = in_turn.iter().map(|fault| fault.kind.name()).collect();
        assert_eq!(
            names,
            [
                "kill_broker",
                "cut_broker",
                "kill_server",
                "kill_server",
                "stop_store",
                "slow_store"
            ]
        );
        assert!(in_turn[2].at < in_turn[3].at);
    }

    /// Goal: two faults of one part may follow one another but not overlap; faults of two parts may overlap.
    #[test]
    fn overlaps_are_refused() {
        let none = Given::default();
        check(
            &faults(&[
                "stop_store@1s+2s",
                "slow_store:1s@3s+2s",
                "kill_server@2s+1s",
            ]),
            &none,
        )
        .unwrap();
        let error =
            check(&faults(&["stop_store@1s+3s", "slow_store:1s@3s+2s"]), &none).unwrap_err();
        assert!(error.to_string().contains("same part"), "{error}");
    }
}
