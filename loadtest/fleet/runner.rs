//! The runners: operators that ask from hosts of their own, at the plan's times, several at once if so planned.

use std::time::Duration;

use futures::future::join_all;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vogeler::runner::{self, RunRequest};
use vogeler::wire::RunId;

use super::{Fleet, Start, Target};
use crate::plan::RunnerPlan;
use crate::verdict::RunnerOutcome;

/// Runs all of them; ends with the last.
pub(super) async fn run_all(
    fleet: &Fleet,
    target: &Target,
    start: Start,
    stop: &CancellationToken,
) -> Vec<RunnerOutcome> {
    let runs = fleet
        .plan
        .runners
        .iter()
        .map(|plan| run(plan, target, start, stop));
    join_all(runs).await
}

async fn run(
    plan: &RunnerPlan,
    target: &Target,
    start: Start,
    stop: &CancellationToken,
) -> RunnerOutcome {
    let mut outcome = RunnerOutcome {
        plugin: plan.plugin.clone(),
        target: plan.target.clone(),
        at: plan.at,
        took: Duration::ZERO,
        closing: Duration::ZERO,
        expected: 0,
        answered: 0,
        error: None,
    };
    let sleep = tokio::time::sleep_until(start.instant + plan.at);
    if stop.run_until_cancelled(sleep).await.is_none() {
        outcome.error = Some("stopped before its time".to_owned());
        return outcome;
    }
    if let Err(error) = ask(plan, target, stop, &mut outcome).await {
        outcome.error = Some(format!("{error:#}"));
    }
    outcome
}

async fn ask(
    plan: &RunnerPlan,
    target: &Target,
    stop: &CancellationToken,
    outcome: &mut RunnerOutcome,
) -> anyhow::Result<()> {
    let request = RunRequest {
        run: RunId::generate(),
        plugin: plan.plugin.parse()?,
        target: plan.target.parse()?,
        timeout: plan.deadline,
    };
    let began = Instant::now();
    let broker = target.brokers.open();
    let report = runner::run(
        broker.as_ref(),
        target.store.as_ref(),
        &request,
        &mut |_| {},
        stop,
    )
    .await;
    outcome.took = began.elapsed();
    broker.close().await;
    outcome.closing = began.elapsed().saturating_sub(outcome.took);
    let counts = report?.counts;
    outcome.answered = counts.answered;
    outcome.expected =
        counts.answered + counts.failed + counts.refused + counts.expired + counts.silent;
    Ok(())
}
