//! The report as tables of text, the same for terminal and Markdown.

use super::layout::{cores, count, time};
use super::{Report, Times};

/// A title, column heads, and rows with a cell for each head.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) title: &'static str,
    pub(super) head: Vec<&'static str>,
    pub(super) rows: Vec<Vec<String>>,
}

/// All tables that have rows.
pub(super) fn all(report: &Report) -> Vec<Table> {
    let tables = [
        throughput(report),
        latency(report),
        outcomes(report),
        resources(report),
        runs(report),
        faults(report),
        bounds(report),
    ];
    tables
        .into_iter()
        .filter(|table| !table.rows.is_empty())
        .collect()
}

fn throughput(report: &Report) -> Table {
    let (totals, rates) = (&report.totals, &report.rates);
    let row = |what: &str, value: String| vec![what.to_owned(), value];
    let at_least = at_least(report);
    let mut rows = vec![
        row(
            "messages sent",
            format!(
                "{} in {:.1} s, {:.0}/s",
                count(totals.sent),
                totals.load_seconds,
                rates.sent
            ),
        ),
        row(
            "deliveries settled",
            format!(
                "all after {:.1} s, {at_least}{:.0}/s, at best {:.0}/s",
                totals.settled_seconds, rates.settled, rates.settled_peak
            ),
        ),
        row(
            "settled without a write",
            format!("{:.1} %", rates.dedup * 100.0),
        ),
        row(
            "documents written",
            format!(
                "{at_least}{}, {:.2} a result",
                count(totals.documents),
                rates.writes_per_result
            ),
        ),
        row(
            "redelivered",
            format!("{at_least}{}", count(totals.redelivered)),
        ),
    ];
    for (what, number) in [
        ("publishes tried again", totals.failed_publishes),
        ("starts of the server", totals.server_restarts),
    ] {
        if number > 0 {
            rows.push(row(what, count(number)));
        }
    }
    if let Some(why) = incomplete(report) {
        rows.push(row("the server's own counts", why.to_owned()));
    }
    Table {
        title: "Throughput",
        head: vec!["what", "measured"],
        rows,
    }
}

/// What to print before the counts of a server that was killed.
fn at_least(report: &Report) -> &'static str {
    let is_short = !report.totals.is_complete && report.totals.server_restarts > 0;
    if is_short { "at least " } else { "" }
}

/// Why the server's own counts are not those of this run.
fn incomplete(report: &Report) -> Option<&'static str> {
    let totals = &report.totals;
    match (totals.is_complete, totals.server_restarts) {
        (true, _) => None,
        (false, 0) => Some("of all that it did meanwhile: this run did not start it"),
        (false, _) => Some("at least: a killed server's last second is missing"),
    }
}

fn latency(report: &Report) -> Table {
    let row = |what: &str, times: Times| {
        let within = [times.p50, times.p90, times.p99, times.p999, times.max].map(time);
        let mut row = vec![what.to_owned(), count(times.count)];
        row.extend(within);
        row
    };
    let latencies = &report.latencies;
    Table {
        title: "Time since a result was due",
        head: vec!["until", "count", "p50", "p90", "p99", "p99.9", "max"],
        rows: vec![
            row("a timer's turn in the tester", latencies.timer_lag),
            row("made (the tester's lag)", latencies.tester_lag),
            row("confirmed by the broker", latencies.publish_to_confirmed),
            row(
                "stored, and its receipt here",
                latencies.published_to_stored,
            ),
        ],
    }
}

fn outcomes(report: &Report) -> Table {
    let (totals, at_least) = (&report.totals, at_least(report));
    let rows = totals.outcomes.iter().map(|(outcome, deliveries)| {
        let receipts = totals.receipts.get(outcome).copied().unwrap_or(0);
        let deliveries = format!("{at_least}{}", count(*deliveries));
        vec![outcome.clone(), deliveries, count(receipts)]
    });
    Table {
        title: "Outcomes",
        head: vec!["outcome", "deliveries (server)", "receipts"],
        rows: rows.collect(),
    }
}

fn resources(report: &Report) -> Table {
    let rows = report.resources.iter().map(|one| {
        vec![
            one.who.clone(),
            format!("{:.1} s", one.cpu_seconds),
            cores(one.cores),
            cores(one.cores_peak),
            format!("{:.0} µs", one.cpu_micros_per_result),
            format!("{:.0} MB", one.rss_mb_peak),
        ]
    });
    Table {
        title: "CPU and memory",
        head: vec![
            "who",
            "CPU time",
            "cores",
            "at most",
            "CPU a result",
            "RSS at most",
        ],
        rows: rows.collect(),
    }
}

fn runs(report: &Report) -> Table {
    let rows = report.runners.iter().map(|run| {
        let answered = format!("{} of {}", run.answered, run.expected);
        vec![
            format!("{} on {}", run.plugin, run.target),
            format!("{:.1} s", run.at.as_secs_f64()),
            // The reason is among the findings: it may be long.
            run.error.as_ref().map_or(answered, |_| "failed".to_owned()),
            time(run.took.as_secs_f64() * 1e3),
            time(run.closing.as_secs_f64() * 1e3),
        ]
    });
    Table {
        title: "Runs",
        head: vec!["run", "at", "answered", "complete after", "closed in"],
        rows: rows.collect(),
    }
}

fn faults(report: &Report) -> Table {
    let rows = report.faults.iter().map(|fault| {
        let recovery = fault
            .recovery
            .map_or_else(|| "never".to_owned(), |seconds| time(seconds * 1e3));
        let record = &fault.record;
        vec![
            record.kind.clone(),
            format!("{:.1} s", record.began),
            format!("{:.1} s", record.ended),
            recovery,
        ]
    });
    Table {
        title: "Faults",
        head: vec!["fault", "from", "to", "backlog gone after"],
        rows: rows.collect(),
    }
}

fn bounds(report: &Report) -> Table {
    let rows = report.bounds.iter().map(|bound| {
        let verdict = if bound.holds { "holds" } else { "MISSED" };
        vec![
            bound.what.clone(),
            bound.limit.clone(),
            bound.measured.clone(),
            verdict.to_owned(),
        ]
    });
    Table {
        title: "Bounds",
        head: vec!["what", "bound", "measured", "verdict"],
        rows: rows.collect(),
    }
}
