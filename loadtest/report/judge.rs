//! Whether a run passes: what the verifier found, the plan's bounds, and whether the tester itself kept up.
//!
//! Invariant: a run in which the tester was the bottleneck does not pass, however good its figures look.

use std::time::Duration;

use vogeler::config::span;

use super::over_time::busiest;
use super::{Bound, Fault, Report, Times, float};
use crate::verdict::RunnerOutcome;

/// Seconds from the broker's return until the clients are connected again; the tester bounds their pause to 1 s.
const RECONNECT_SECONDS: f64 = 2.0;
/// The tester's place in a sample's `usage`.
const TESTER: usize = 0;

/// Everything that had to hold, in the order of importance.
pub(crate) fn bounds(report: &Report) -> Vec<Bound> {
    let mut bounds = verified(report);
    bounds.extend(planned(report));
    bounds.extend(runs(report));
    bounds.extend(tester(report));
    bounds
}

fn bound(
    what: impl Into<String>,
    limit: impl Into<String>,
    measured: impl Into<String>,
    holds: bool,
) -> Bound {
    Bound {
        what: what.into(),
        limit: limit.into(),
        measured: measured.into(),
        holds,
    }
}

/// Counts that must always be 0. A run that compared nothing does not pass: it has shown nothing.
fn verified(report: &Report) -> Vec<Bound> {
    let zero = |what: &str, count: u64| bound(what, "0", count.to_string(), count == 0);
    let verdict = &report.verdict;
    let found = verdict
        .categories()
        .into_iter()
        .map(|(what, found)| zero(what, found.len() as u64));
    let mut bounds: Vec<Bound> = found.collect();
    bounds.push(zero("never confirmed", report.totals.unconfirmed));
    bounds.push(bound(
        "messages compared",
        "1 or more",
        verdict.checked.to_string(),
        verdict.checked > 0,
    ));
    if let Some(deleted) = verdict.deleted {
        let what = "documents deleted, to come back or not";
        bounds.push(bound(what, "1 or more", deleted.to_string(), deleted > 0));
    }
    bounds
}

fn planned(report: &Report) -> Vec<Bound> {
    let limits = &report.plan.bounds;
    let mut bounds = Vec::new();
    if let Some(limit) = limits.p99_published_to_stored {
        let times = report.latencies.published_to_stored;
        bounds.push(within(
            "published → stored, p99",
            limit,
            (times.count > 0).then_some(times.p99),
        ));
    }
    if let Some(limit) = limits.rate_min {
        let rate = report.rates.settled;
        bounds.push(bound(
            "settled a second",
            format!("{limit:.0} or more"),
            format!("{rate:.0}"),
            rate >= limit,
        ));
    }
    if let Some(limit) = limits.recovery {
        for fault in &report.faults {
            let what = format!("recovery from {}", fault.record.kind);
            bounds.push(within(
                &what,
                limit,
                fault.recovery.map(|seconds| seconds * 1e3),
            ));
        }
    }
    bounds
}

/// A time in ms against its limit; one that was never measured is not within.
fn within(what: &str, limit: Duration, measured: Option<f64>) -> Bound {
    let holds = measured.is_some_and(|millis| millis <= limit.as_secs_f64() * 1e3);
    let measured = measured.map_or_else(|| "never".to_owned(), super::layout::time);
    bound(what, span::format(limit), measured, holds)
}

/// All nodes must answer every operator's run. A run that met a fault may miss its deadline, or answers.
fn runs(report: &Report) -> Option<Bound> {
    let whole = |run: &&RunnerOutcome| {
        run.error.is_none() && run.expected > 0 && run.answered >= run.expected
    };
    let (met, judged): (Vec<_>, Vec<_>) = report
        .runners
        .iter()
        .partition(|run| report.faults.iter().any(|fault| meets(run, fault)));
    let holding = judged.iter().copied().filter(whole).count();
    let measured = match met.len() {
        0 => holding.to_string(),
        met => format!("{holding}, {met} met faults"),
    };
    let limit = judged.len();
    (!report.runners.is_empty()).then(|| {
        bound(
            "runs that all nodes answered",
            limit.to_string(),
            measured,
            holding == limit,
        )
    })
}

/// Whether a run was under way during a fault or the recovery from it, which ends when the backlog is gone and the
/// clients are connected again.
fn meets(run: &RunnerOutcome, fault: &Fault) -> bool {
    let (began, ended) = (run.at.as_secs_f64(), (run.at + run.took).as_secs_f64());
    let over = fault.recovery.map_or(f64::INFINITY, |seconds| {
        fault.record.ended + seconds + RECONNECT_SECONDS
    });
    began <= over && fault.record.began <= ended
}

/// Whether the run measured the server and not the tester. A bound that was not measured does not hold.
fn tester(report: &Report) -> Vec<Bound> {
    let limits = &report.plan.bounds;
    let dropped = report.totals.dropped;
    let p99 = |times: Times| (times.count > 0).then_some(times.p99);
    let lag = |what, times| within(what, limits.p99_tester_lag, p99(times));
    let mut bounds = vec![bound(
        "messages the tester had no room for",
        "0",
        dropped.to_string(),
        dropped == 0,
    )];
    // Real clients send when they are asked: they have no schedule to be late for.
    if report.plan.nodes + report.plan.joins > report.plan.real_clients {
        bounds.push(lag("lag of the tester, p99", report.latencies.tester_lag));
    }
    bounds.push(lag(
        "lag of the tester's timers, p99",
        report.latencies.timer_lag,
    ));
    let cores = busiest(&report.timeline, |sample| {
        Some(sample.usage[TESTER]?.cpu_seconds)
    });
    let share = cores.map(|cores| cores / float(report.setting.cores.max(1)));
    bounds.push(bound(
        "busiest 10 s of the tester, of all cores",
        format!("{:.0} %", limits.tester_cpu_max * 100.0),
        share.map_or_else(
            || "not measured".to_owned(),
            |share| format!("{:.0} %", share * 100.0),
        ),
        share.is_some_and(|share| share <= limits.tester_cpu_max),
    ));
    bounds
}

/// Why the figures are the tester's and not the server's, if so.
pub(crate) fn bottleneck(report: &Report) -> Option<String> {
    let missed: Vec<String> = tester(report)
        .into_iter()
        .filter(|bound| !bound.holds)
        .map(|bound| {
            format!(
                "{}: {} (bound: {})",
                bound.what, bound.measured, bound.limit
            )
        })
        .collect();
    (!missed.is_empty()).then(|| format!("The tester was the bottleneck: {}", missed.join("; ")))
}
