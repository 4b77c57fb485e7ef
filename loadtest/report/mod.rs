//! The report of a run: one struct, which is `report.json`; the table, the Markdown and the plots are made from it.
//!
//! Invariant: everything a reader needs to run it again (plan, seed, faults) and to judge it (machine, the tester's own
//! lag and CPU, bounds) is in it.

pub(crate) mod compare;
pub(crate) mod judge;
pub(crate) mod layout;
mod lines;
pub(crate) mod make;
mod over_time;
pub(crate) mod plot;
mod tables;
#[cfg(test)]
pub(crate) mod tests;
mod text;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

#[allow(
    unused_imports,
    reason = "the runner of plans comes with the next commits"
)]
pub(crate) use text::{markdown, terminal};

use crate::faults::FaultRecord;
use crate::plan::Plan;
use crate::verdict::{RunnerOutcome, Verdict};
use crate::watch::sample::Sample;

/// Version of the shape of report.json; `--compare` reads no other.
pub(crate) const FORMAT: u32 = 1;

/// The server's log, in the folder of the report.
pub(crate) const LOG: &str = "server.log";
/// The report as data.
pub(crate) const JSON: &str = "report.json";
/// The report for people.
pub(crate) const MARKDOWN: &str = "report.md";

/// All of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// [`FORMAT`].
    pub(crate) format: u32,
    /// Whether all bounds held and the tester kept up.
    pub(crate) passed: bool,
    /// What was planned, with the seed and the faults of the command line in it.
    pub(crate) plan: Plan,
    /// Fingerprint of the generated load: same plan and seed, same fingerprint.
    pub(crate) fingerprint: String,
    /// When the load began.
    pub(crate) started_at: Timestamp,
    /// Where it ran, and with what.
    pub(crate) setting: Setting,
    /// Counts.
    pub(crate) totals: Totals,
    /// Rates and ratios.
    pub(crate) rates: Rates,
    /// Times, all counted from when a result was due.
    pub(crate) latencies: Latencies,
    /// CPU and memory of tester, server, broker and store, as far as they are on this machine.
    pub(crate) resources: Vec<Resources>,
    /// Runs of operators.
    pub(crate) runners: Vec<RunnerOutcome>,
    /// Faults and how long it took until the backlog was gone.
    pub(crate) faults: Vec<Fault>,
    /// What the verifier found.
    pub(crate) verdict: Verdict,
    /// What had to hold.
    pub(crate) bounds: Vec<Bound>,
    /// One sample for each second of the run.
    pub(crate) timeline: Vec<Sample>,
}

/// Where it ran, and with what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Setting {
    /// Cores of the machine.
    pub(crate) cores: u64,
    /// Processor, memory, kernel.
    pub(crate) machine: String,
    /// Version and build profile of tester and server.
    pub(crate) build: String,
    /// Name and version.
    pub(crate) broker: String,
    /// Name and version.
    pub(crate) store: String,
}

/// Counts of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Totals {
    /// Seconds until the last message of the plan was sent.
    pub(crate) load_seconds: f64,
    /// Seconds until the server had settled all.
    pub(crate) settled_seconds: f64,
    /// Messages sent, copies and poison included.
    pub(crate) sent: u64,
    /// Messages confirmed.
    pub(crate) confirmed: u64,
    /// Tries to publish that failed and were tried again.
    pub(crate) failed_publishes: u64,
    /// Messages given up without a confirm.
    pub(crate) unconfirmed: u64,
    /// Messages that the tester had no room for.
    pub(crate) dropped: u64,
    /// Receipts by outcome.
    pub(crate) receipts: BTreeMap<String, u64>,
    /// Deliveries that the server received, by its own count.
    pub(crate) received: u64,
    /// Of these, redeliveries.
    pub(crate) redelivered: u64,
    /// Deliveries by outcome, by the server's own count.
    pub(crate) outcomes: BTreeMap<String, u64>,
    /// Documents that the server wrote.
    pub(crate) documents: u64,
    /// Whether the server's counts are those of this run, no more and no less: see [`ServerCounts::is_complete`].
    ///
    /// [`ServerCounts::is_complete`]: crate::stats::ServerCounts::is_complete
    #[serde(default)]
    pub(crate) is_complete: bool,
    /// Times that the server was started again.
    pub(crate) server_restarts: u64,
}

/// Rates and ratios of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Rates {
    /// Messages sent per second of the load.
    pub(crate) sent: f64,
    /// Deliveries settled per second, until all were.
    pub(crate) settled: f64,
    /// The highest rate over any ten seconds.
    pub(crate) settled_peak: f64,
    /// Share of the settled deliveries that needed no write: unchanged, superseded or stale.
    pub(crate) dedup: f64,
    /// Documents written per settled delivery.
    pub(crate) writes_per_result: f64,
}

/// Times of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Latencies {
    /// Until the broker confirmed.
    pub(crate) publish_to_confirmed: Times,
    /// Until the server's receipt arrived: an upper bound of the time until the result was stored.
    pub(crate) published_to_stored: Times,
    /// Until the tester handed it to its connection: its own lag.
    pub(crate) tester_lag: Times,
    /// How long the tester's timers waited for their turn.
    #[serde(default)]
    pub(crate) timer_lag: Times,
}

/// Percentiles of a time, in ms; from a high dynamic range histogram of three digits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Times {
    /// How many were measured.
    pub(crate) count: u64,
    /// Half are within.
    pub(crate) p50: f64,
    /// 90 of 100.
    pub(crate) p90: f64,
    /// 99 of 100.
    pub(crate) p99: f64,
    /// 999 of 1,000.
    pub(crate) p999: f64,
    /// All.
    pub(crate) max: f64,
}

/// What a process (and all that it started) used during the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Resources {
    /// Who.
    pub(crate) who: String,
    /// User and system time.
    pub(crate) cpu_seconds: f64,
    /// Cores used, over the whole run.
    pub(crate) cores: f64,
    /// Cores used in the busiest second.
    pub(crate) cores_peak: f64,
    /// CPU time per settled delivery, in microseconds.
    pub(crate) cpu_micros_per_result: f64,
    /// Most resident memory, in MB.
    pub(crate) rss_mb_peak: f64,
}

/// A fault, and the recovery from it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Fault {
    /// What it was, and when.
    #[serde(flatten)]
    pub(crate) record: FaultRecord,
    /// Seconds from its end until the backlog was back to what it was before; none if it never was.
    pub(crate) recovery: Option<f64>,
}

/// One thing that had to hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Bound {
    /// What.
    pub(crate) what: String,
    /// The value that was required.
    pub(crate) limit: String,
    /// The value that was measured.
    pub(crate) measured: String,
    /// Whether it held.
    pub(crate) holds: bool,
}

/// Microseconds as milliseconds.
#[allow(clippy::cast_precision_loss, reason = "times for people")]
pub(crate) fn millis(micros: u64) -> f64 {
    micros as f64 / 1e3
}

/// A count to calculate ratios with.
#[allow(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
pub(crate) fn float(count: u64) -> f64 {
    count as f64
}
