//! The runners: operators that ask from hosts of their own, at the plan's times, several at once if so planned.

use futures::future::join_all;
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
        took: std::time::Duration::ZERO,
        expected: 0,
        answered: 0,
        error: None,
    };
    let sleep = tokio::time::sleep_until(start.instant + plan.at);
    if stop.run_until_cancelled(sleep).await.is_none() {
        outcome.error = Some("stopped before its time".to_owned());
        return outcome;
    }
    let began = start.instant.elapsed();
    if let Err(error) = ask(plan, target, stop, &mut outcome).await {
        outcome.error = Some(format!("{error:#}"));
    }
    outcome.took = start.instant.elapsed().saturating_sub(began);
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
    let broker = target.brokers.open();
    let report = runner::run(
        broker.as_ref(),
        target.store.as_ref(),
        &request,
        &mut |_| {},
        stop,
    )
    .await;
    broker.close().await;
    let counts = report?.counts;
    outcome.answered = counts.answered;
    outcome.expected =
        counts.answered + counts.failed + counts.refused + counts.expired + counts.silent;
    Ok(())
}
