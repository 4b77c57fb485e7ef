//! The runners: operators that ask from hosts of their own, at the plan's times, several at once if so planned.

use std::time::Duration;

use anyhow::Context as _;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared, join_all};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vogeler::runner::{self, Counts, RunRequest};
use vogeler::wire::RunId;

use super::{Fleet, Start, Target};
use crate::plan::{REAL_GROUP, RunnerPlan};
use crate::verdict::RunnerOutcome;

/// Longest wait until the store knows all real clients; past it those that are missing count as not answering.
const KNOWN_MAX: Duration = Duration::from_secs(30);
const KNOWN_PAUSE: Duration = Duration::from_secs(1);

/// Runs all of them; ends with the last.
pub(super) async fn run_all(
    fleet: &Fleet,
    target: &Target,
    start: Start,
    stop: &CancellationToken,
) -> Vec<RunnerOutcome> {
    let runners = &fleet.plan.runners;
    if runners.is_empty() {
        return Vec::new();
    }
    // Once for all of them, before the first.
    let known = wait_until_known(fleet, target, start, stop)
        .boxed()
        .shared();
    let runs = runners
        .iter()
        .map(|plan| run(fleet, plan, target, start, (known.clone(), stop)));
    tokio::join!(join_all(runs), known.clone()).0
}

/// Ends when the store knows all real clients.
type Known<'a> = Shared<BoxFuture<'a, ()>>;

async fn run(
    fleet: &Fleet,
    plan: &RunnerPlan,
    target: &Target,
    start: Start,
    (known, stop): (Known<'_>, &CancellationToken),
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
    let asked = ask(fleet, plan, target, start, (known, stop), &mut outcome);
    if let Err(error) = asked.await {
        outcome.error = Some(format!("{error:#}"));
    }
    outcome
}

async fn ask(
    fleet: &Fleet,
    plan: &RunnerPlan,
    target: &Target,
    start: Start,
    (known, stop): (Known<'_>, &CancellationToken),
    outcome: &mut RunnerOutcome,
) -> anyhow::Result<()> {
    let request = RunRequest {
        run: RunId::generate(),
        plugin: plan.plugin.parse()?,
        target: plan.target.parse()?,
        timeout: plan.deadline,
    };
    let real = is_real(&request.target).then_some(fleet.plan.real_clients);
    if real.is_some() {
        known.await;
        outcome.at = Duration::from_millis(start.micros() / 1_000);
    }
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
    outcome.expected = expected(real, &counts)?;
    Ok(())
}

/// How many nodes should have answered: for real clients the plan's number, not the number that the run happened to
/// learn of.
fn expected(real: Option<usize>, counts: &Counts) -> anyhow::Result<usize> {
    let expected = real.or(counts.expected);
    expected.context("the store could not say who should answer")
}

fn is_real(target: &runner::Target) -> bool {
    matches!(target, runner::Target::Group(group) if group.as_str() == REAL_GROUP)
}

/// A run asks the nodes that the store knows, so runs begin when the store knows all real clients, or after
/// [`KNOWN_MAX`]. The store is asked from the end of the ramp on.
async fn wait_until_known(fleet: &Fleet, target: &Target, start: Start, stop: &CancellationToken) {
    let ramped = start.instant + fleet.plan.ramp;
    stop.run_until_cancelled(tokio::time::sleep_until(ramped))
        .await;
    let deadline = Instant::now() + KNOWN_MAX;
    while Instant::now() < deadline && !stop.is_cancelled() {
        let known = target.store.nodes().await.unwrap_or_default();
        let known = known.iter().flat_map(|node| &node.groups);
        let real = known.filter(|group| group.as_str() == REAL_GROUP);
        if real.count() >= fleet.plan.real_clients {
            return;
        }
        tokio::time::sleep(KNOWN_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: clients that the store never heard of are missing, and a store that says nothing excuses nobody.
    #[test]
    fn the_plan_says_who_should_answer() {
        let counts = Counts {
            expected: Some(50),
            answered: 50,
            ..Counts::default()
        };
        assert_eq!(expected(Some(60), &counts).unwrap(), 60);
        assert_eq!(expected(None, &counts).unwrap(), 50);
        let unknown = Counts {
            expected: None,
            ..counts
        };
        assert_eq!(expected(Some(60), &unknown).unwrap(), 60);
        assert!(expected(None, &unknown).is_err());
        assert!(is_real(&"@real".parse().unwrap()));
        assert!(!is_real(&"all".parse().unwrap()));
    }
}
