//! A good run, for the tests of all parts of the report, and what makes it a bad one.

use std::time::Duration;

use super::*;
use crate::fleet::Sent;
use crate::stats::{ServerCounts, Stats};
use crate::verdict::Finding;

/// A sample of an idle machine.
pub(crate) fn sample(at: f64, settled: u64) -> Sample {
    Sample {
        at,
        sent: settled,
        confirmed: settled,
        settled,
        documents: settled / 2,
        ready: Some(0),
        in_flight: Some(0),
        stored_ms: Some([1.0, 2.0]),
        tester_lag_ms: Some(0.5),
        timer_lag_ms: 0.1,
        usage: [None; 4],
    }
}

/// A run of smoke in which all went well.
pub(crate) fn good() -> Report {
    let stats = Stats::default();
    for _ in 0..100 {
        stats.sent.add();
        stats.confirmed.add();
        stats.settle(vogeler::wire::Outcome::Stored);
        stats.published_to_stored.record(Duration::from_millis(120));
        stats.publish_to_confirmed.record(Duration::from_millis(3));
        stats.tester_lag.record(Duration::from_millis(1));
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
            .map(|second| sample(float(second), second * 5))
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

/// Goal: each thing that must not be makes a run fail, and is named among the bounds.
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
    let cases: [(&str, Harm); 9] = [
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
