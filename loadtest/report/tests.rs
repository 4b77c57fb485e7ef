//! A good run, for the tests of all parts of the report, and what makes it a bad one.

use std::time::Duration;

use super::*;
use crate::fleet::Sent;
use crate::stats::{ServerCounts, Stats};
use crate::verdict::Finding;
use crate::watch::procfs::Usage;

/// A sample of an idle machine.
pub(crate) fn sample(at: f64, settled: u64) -> Sample {
    Sample {
        at,
        sent: settled,
        confirmed: settled,
        waiting: 0,
        overdue: 0,
        settled,
        documents: settled / 2,
        ready: Some(0),
        in_flight: Some(0),
        stored_ms: Some([1.0, 2.0]),
        tester_lag_ms: Some(0.5),
        timer_lag_ms: Some(0.1),
        usage: [None; 4],
    }
}

/// A run of the plan `smoke` in which all went well.
pub(crate) fn good() -> Report {
    let stats = Stats::default();
    for _ in 0..100 {
        stats.sent.add();
        stats.confirmed.add();
        stats.settle(vogeler::wire::Outcome::Stored);
        stats.published_to_stored.record(Duration::from_millis(120));
        stats.publish_to_confirmed.record(Duration::from_millis(3));
        stats.tester_lag.record(Duration::from_millis(1));
        stats.timer_lag.record(Duration::from_millis(1));
    }
    let mut server = ServerCounts {
        received: 100,
        documents_written: 50,
        is_complete: true,
        ..ServerCounts::default()
    };
    server.ended[0] = 100;
    let run = make::Run {
        plan: &Plan::load("smoke").unwrap(),
        fingerprint: "f00d".to_owned(),
        started_at: Timestamp::UNIX_EPOCH,
        setting: Setting {
            cores: 2,
            machine: "2 × CPU".to_owned(),
            build: "0.1.0".to_owned(),
            broker: "RabbitMQ".to_owned(),
            store: "CouchDB".to_owned(),
        },
        stats: &stats,
        server,
        server_restarts: 0,
        sent: Sent {
            failed_clients: Vec::new(),
            runners: Vec::new(),
            load: Duration::from_secs(10),
            settled: Duration::from_secs(25),
        },
        faults: Vec::new(),
        verdict: Verdict {
            checked: 100,
            ..Verdict::default()
        },
        timeline: (1..=20)
            .map(|second| Sample {
                usage: [
                    Some(Usage {
                        cpu_seconds: float(second) * 0.3,
                        rss_mb: 50.0,
                    }),
                    None,
                    None,
                    None,
                ],
                ..sample(float(second), second * 5)
            })
            .collect(),
    };
    run.report()
}

/// Goal: a good run passes, its figures are right, and report.json holds all of it.
#[test]
fn a_good_run_passes() {
    let report = good();
    assert!(report.passed, "{:?}", report.bounds);
    assert!((report.rates.sent - 10.0).abs() < 0.01 && (report.rates.settled - 5.0).abs() < 0.01);
    assert!((report.rates.writes_per_result - 0.5).abs() < 0.01);
    assert!((report.latencies.published_to_stored.p99 - 120.0).abs() < 1.0);
    let json = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
}

/// Goal: each missed bound makes the run fail, and is named.
#[test]
fn each_missed_bound_fails_the_run() {
    fn finding() -> Finding {
        Finding {
            node: "n".to_owned(),
            plugin: None,
            seq: None,
            what: "gone".to_owned(),
        }
    }
    type Harm = fn(&mut Report);
    const CPU: &str = "busiest 10 s of the tester, of all cores";
    let cases: [(&str, Harm); 13] = [
        ("lost", |report| report.verdict.lost.push(finding())),
        ("counters disagree", |report| {
            report.verdict.counters_disagree.push(finding());
        }),
        ("never confirmed", |report| {
            report.totals.unconfirmed = 1;
        }),
        ("messages compared", |report| {
            report.verdict.checked = 0;
        }),
        ("documents deleted, to come back or not", |report| {
            report.verdict.deleted = Some(0);
        }),
        ("published → stored, p99", |report| {
            report.latencies.published_to_stored.p99 = 1e6;
        }),
        ("settled a second", |report| {
            report.plan.bounds.rate_min = Some(6.0);
        }),
        ("messages the tester had no room for", |report| {
            report.totals.dropped = 1;
        }),
        ("lag of the tester, p99", |report| {
            report.latencies.tester_lag.p99 = 1e6;
        }),
        // What was not measured does not hold.
        ("lag of the tester, p99", |report| {
            report.latencies.tester_lag = Times::default();
        }),
        ("lag of the tester's timers, p99", |report| {
            report.latencies.timer_lag = Times::default();
        }),
        (CPU, |report| {
            report
                .timeline
                .iter_mut()
                .for_each(|sample| sample.usage = [None; 4]);
        }),
        // All cores for ten seconds of twenty.
        (CPU, |report| {
            for (sample, second) in report.timeline.iter_mut().skip(10).zip(1..) {
                let usage = sample.usage[0].as_mut().unwrap();
                usage.cpu_seconds = 3.0 + 1.9 * float(second);
            }
        }),
    ];
    for (what, harm) in cases {
        let mut report = good();
        harm(&mut report);
        let missed: Vec<Bound> = judge::bounds(&report)
            .into_iter()
            .filter(|bound| !bound.holds)
            .collect();
        assert_eq!(missed.len(), 1, "{what}: {missed:?}");
        assert_eq!(missed[0].what, what);
    }
}

fn ran(at: u64, answered: usize) -> RunnerOutcome {
    RunnerOutcome {
        plugin: "facter".to_owned(),
        target: "@real".to_owned(),
        at: Duration::from_secs(at),
        took: Duration::from_secs(2),
        closing: Duration::ZERO,
        expected: 4,
        answered,
        error: None,
    }
}

/// Goal: a run that not all nodes answered fails the plan, unless that very run met a fault.
#[test]
fn only_a_fault_in_a_run_excuses_it() {
    let fault = |recovery| Fault {
        record: FaultRecord {
            kind: "slow_store".to_owned(),
            began: 8.0,
            ended: 9.0,
        },
        recovery,
    };
    let holds = |runners: &[RunnerOutcome], faults: Vec<Fault>| {
        let mut report = good();
        report.runners = runners.to_vec();
        report.faults = faults;
        let bounds = judge::bounds(&report);
        let of_runs = bounds
            .into_iter()
            .find(|bound| bound.what.starts_with("runs that"));
        of_runs.map(|bound| bound.holds)
    };
    assert_eq!(holds(&[], vec![]), None);
    assert_eq!(holds(&[ran(3, 4)], vec![]), Some(true));
    assert_eq!(holds(&[ran(3, 3)], vec![]), Some(false));
    // Before and after the fault.
    for at in [3, 13] {
        assert_eq!(
            holds(&[ran(at, 3)], vec![fault(Some(1.0))]),
            Some(false),
            "{at}"
        );
    }
    // The fault begins during the run; the run begins during the fault; the run begins before the fault's backlog is
    // gone.
    for at in [7, 8, 11] {
        assert_eq!(
            holds(&[ran(at, 3)], vec![fault(Some(1.0))]),
            Some(true),
            "{at}"
        );
    }
    assert_eq!(holds(&[ran(13, 3)], vec![fault(None)]), Some(true));
}

/// Goal: where all nodes are real, no light client has a lag, and only the tester's timers are judged.
#[test]
fn real_fleets_are_judged_by_the_timers() {
    let mut report = good();
    report.plan.real_clients = report.plan.nodes;
    report.plan.joins = 0;
    report.latencies.tester_lag = Times::default();
    assert!(judge::bounds(&report).iter().all(|bound| bound.holds));
    report.latencies.timer_lag.p99 = 1e6;
    let text = judge::bottleneck(&report).unwrap();
    assert!(text.contains("timers"), "{text}");
}
