//! Makes the report from what was counted and sampled. Pure.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use jiff::Timestamp;
use vogeler::wire::Outcome;

use super::over_time::{peak, ratio, recovery};
use super::{
    FORMAT, Fault, Latencies, Rates, Report, Resources, Setting, Times, Totals, float, judge,
    millis,
};
use crate::faults::FaultRecord;
use crate::fleet::Sent;
use crate::plan::Plan;
use crate::stats::{Latency, ServerCounts, Stats};
use crate::verdict::Verdict;
use crate::watch::sample::{Sample, WATCHED};

/// Seconds of load that are always under way: a backlog up to this counts as none.
const SECONDS_UNDER_WAY: f64 = 1.0;

/// All that a report is made from.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    /// With the seed and faults of the command line.
    pub(crate) plan: &'a Plan,
    pub(crate) fingerprint: String,
    pub(crate) started_at: Timestamp,
    pub(crate) setting: Setting,
    pub(crate) stats: &'a Stats,
    pub(crate) server: ServerCounts,
    pub(crate) server_restarts: u64,
    pub(crate) sent: Sent,
    pub(crate) faults: Vec<FaultRecord>,
    pub(crate) verdict: Verdict,
    pub(crate) timeline: Vec<Sample>,
}

impl Run<'_> {
    /// Makes the report, and judges the run.
    pub(crate) fn report(self) -> Report {
        let totals = self.totals();
        let rates = self.rates();
        let resources = self.resources();
        let latencies = Latencies {
            publish_to_confirmed: times(&self.stats.publish_to_confirmed),
            published_to_stored: times(&self.stats.published_to_stored),
            tester_lag: times(&self.stats.tester_lag),
            timer_lag: times(&self.stats.timer_lag),
        };
        let under_way = self.plan.length.rate() * SECONDS_UNDER_WAY;
        let faults = self.faults.iter().map(|record| Fault {
            recovery: recovery(record, &self.faults, &self.timeline, under_way),
            record: record.clone(),
        });
        let mut report = Report {
            format: FORMAT,
            passed: false,
            plan: self.plan.clone(),
            fingerprint: self.fingerprint,
            started_at: self.started_at,
            setting: self.setting,
            totals,
            rates,
            latencies,
            resources,
            runners: self.sent.runners,
            faults: faults.collect(),
            verdict: self.verdict,
            bounds: Vec::new(),
            timeline: self.timeline,
        };
        report.bounds = judge::bounds(&report);
        report.passed = report.bounds.iter().all(|bound| bound.holds);
        report
    }

    fn totals(&self) -> Totals {
        Totals {
            load_seconds: self.sent.load.as_secs_f64(),
            settled_seconds: self.settled_seconds(),
            sent: self.stats.sent.get(),
            confirmed: self.stats.confirmed.get(),
            failed_publishes: self.stats.failed_publishes.get(),
            unconfirmed: self.stats.unconfirmed.get(),
            dropped: self.stats.dropped.get(),
            receipts: by_outcome(|outcome| self.stats.settled_as(outcome)),
            received: self.server.received,
            redelivered: self.server.redelivered,
            outcomes: by_outcome(|outcome| self.server.of(outcome)),
            documents: self.server.documents_written,
            is_complete: self.server.is_complete,
            server_restarts: self.server_restarts,
        }
    }

    fn settled(&self) -> f64 {
        float(crate::watch::counts::settled(&self.server))
    }

    /// When the server settled its last delivery, to the second.
    fn settled_seconds(&self) -> f64 {
        let most = self.timeline.last().map_or(0, |last| last.settled);
        let reached = self.timeline.iter().find(|sample| sample.settled == most);
        reached.map_or(self.sent.settled.as_secs_f64(), |sample| sample.at)
    }

    fn rates(&self) -> Rates {
        let saved = [Outcome::Unchanged, Outcome::Superseded, Outcome::Stale];
        let saved: u64 = saved
            .into_iter()
            .map(|outcome| self.server.of(outcome))
            .sum();
        let settled = self.settled();
        Rates {
            sent: ratio(float(self.stats.sent.get()), self.sent.load.as_secs_f64()),
            settled: ratio(settled, self.settled_seconds()),
            settled_peak: peak(&self.timeline),
            dedup: ratio(float(saved), settled),
            writes_per_result: ratio(float(self.server.documents_written), settled),
        }
    }

    fn resources(&self) -> Vec<Resources> {
        let settled = self.settled();
        let one = |(index, who): (usize, &&str)| {
            let seen: Vec<_> = self
                .timeline
                .iter()
                .filter_map(|sample| Some((sample.at, sample.usage[index]?)))
                .collect();
            let (seconds, last) = seen.last()?;
            let busiest = seen
                .windows(2)
                .filter_map(|pair| pair[1].1.cores_since(pair[0].1, pair[1].0 - pair[0].0));
            Some(Resources {
                who: (*who).to_owned(),
                cpu_seconds: last.cpu_seconds,
                cores: ratio(last.cpu_seconds, *seconds),
                cores_peak: busiest.fold(0.0, f64::max),
                cpu_micros_per_result: ratio(last.cpu_seconds * 1e6, settled),
                rss_mb_peak: seen
                    .iter()
                    .map(|(_, usage)| usage.rss_mb)
                    .fold(0.0, f64::max),
            })
        };
        WATCHED.iter().enumerate().filter_map(one).collect()
    }
}

fn by_outcome(count: impl Fn(Outcome) -> u64) -> BTreeMap<String, u64> {
    Outcome::ALL
        .into_iter()
        .map(|outcome| (outcome.as_str().to_owned(), count(outcome)))
        .collect()
}

fn times(latency: &Latency) -> Times {
    percentiles(&latency.snapshot())
}

fn percentiles(histogram: &Histogram<u64>) -> Times {
    let within = |share| millis(histogram.value_at_quantile(share));
    if histogram.is_empty() {
        return Times::default();
    }
    Times {
        count: histogram.len(),
        p50: within(0.5),
        p90: within(0.9),
        p99: within(0.99),
        p999: within(0.999),
        max: millis(histogram.max()),
    }
}
