//! The report for people: aligned tables for a terminal, Markdown for a file.

use super::layout::{Align, align};
use super::tables;
use super::{Report, judge, plot};
use crate::plan::Connections;

/// Findings shown of each category, at most; report.json has all.
const SHOWN_MAX: usize = 10;

/// The whole report for a terminal.
pub(crate) fn terminal(report: &Report) -> String {
    let mut text = String::new();
    for (name, value) in facts(report) {
        line(&mut text, &format!("{name:<12}{value}"));
    }
    for table in tables::all(report) {
        line(&mut text, "");
        let columns = if table.head.len() == 2 {
            Align::Text
        } else {
            Align::Figures
        };
        text.push_str(&align(&table.head, &table.rows, columns));
    }
    for finding in findings(report) {
        line(&mut text, &format!("  {finding}"));
    }
    line(&mut text, "");
    line(&mut text, &conclusion(report));
    text
}

/// The whole report as Markdown, with the plots that lie beside it.
pub(crate) fn markdown(report: &Report) -> String {
    let mut text = String::new();
    line(
        &mut text,
        &format!(
            "# Load test: {}\n\n{}\n\n{}\n",
            report.plan.name,
            report.plan.description,
            conclusion(report)
        ),
    );
    line(&mut text, "| | |\n|---|---|");
    for (name, value) in facts(report) {
        line(&mut text, &format!("| {name} | {value} |"));
    }
    for table in tables::all(report) {
        line(&mut text, &format!("\n## {}\n", table.title));
        line(&mut text, &format!("| {} |", table.head.join(" | ")));
        line(&mut text, &format!("|{}", "---|".repeat(table.head.len())));
        for row in &table.rows {
            let cells: Vec<String> = row.iter().map(|cell| cell.replace('|', "\\|")).collect();
            line(&mut text, &format!("| {} |", cells.join(" | ")));
        }
    }
    let found: Vec<String> = findings(report)
        .map(|finding| format!("- {finding}"))
        .collect();
    if !found.is_empty() {
        line(&mut text, &format!("\n## Findings\n\n{}", found.join("\n")));
    }
    line(&mut text, "\n## Over time\n");
    for (file, title) in plot::FILES {
        line(&mut text, &format!("![{title}]({file})\n"));
    }
    line(&mut text, NOTES);
    text
}

const NOTES: &str = "\
Times count from when a result was due by the schedule, so a slow tester or broker is in them. The time until a result \
is stored is an upper bound: its receipt waits `server.receipt_linger` for company, and is counted when it is here. \
The plan, its seed, every finding and every second of the run are in `report.json`.";

fn line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

/// What was run, where, and with what.
fn facts(report: &Report) -> Vec<(&'static str, String)> {
    let (plan, setting) = (&report.plan, &report.setting);
    let connections = match plan.connections {
        Connections::PerClient => "a connection each".to_owned(),
        Connections::Shared(count) => format!("{count} connections for the others"),
    };
    let fleet = format!(
        "{} nodes, {} of them real clients, {connections}",
        plan.nodes, plan.real_clients
    );
    let started_at = report.started_at.strftime("%Y-%m-%d %H:%M:%S UTC");
    vec![
        (
            "plan",
            format!(
                "{}, seed {}, fingerprint {}",
                plan.name, plan.seed, report.fingerprint
            ),
        ),
        ("fleet", fleet),
        ("started at", started_at.to_string()),
        ("machine", setting.machine.clone()),
        ("build", setting.build.clone()),
        ("broker", setting.broker.clone()),
        ("store", setting.store.clone()),
    ]
}

/// The findings, one a line, at most [`SHOWN_MAX`] of each category; then what faults explain.
fn findings(report: &Report) -> impl Iterator<Item = String> + '_ {
    let shown = report
        .verdict
        .categories()
        .into_iter()
        .flat_map(|(category, found)| {
            let lines = found.iter().take(SHOWN_MAX).map(move |finding| {
                let plugin = finding.plugin.iter().map(|plugin| format!("/{plugin}"));
                let seq = finding.seq.iter().map(|seq| format!(" seq {seq}"));
                let whose: String = std::iter::once(finding.node.clone())
                    .chain(plugin)
                    .chain(seq)
                    .collect();
                format!("{category}: {whose}: {}", finding.what)
            });
            let rest = found.len().saturating_sub(SHOWN_MAX);
            lines.chain((rest > 0).then(|| format!("{category}: {rest} more, in report.json")))
        });
    let shown = failed_runs(report).chain(shown);
    let verdict = &report.verdict;
    let explained = [
        (
            verdict.receipts_lost_to_faults,
            "receipts were lost to faults; the store told what became of their results",
        ),
        (
            verdict.receipts_given_up,
            "results after a fault have no receipt, and the server says that it gave up as many or more",
        ),
        (
            verdict.unchanged_forgotten,
            "older results were taken for new after an unchanged one that a fault made the server forget",
        ),
    ];
    let untested = "no document was deleted: whether one comes back was not tested";
    let untested = verdict.deleted.is_none().then(|| untested.to_owned());
    let explained = explained
        .into_iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, what)| format!("{number} {what}"));
    shown.chain(explained).chain(untested)
}

/// Why runs of operators failed.
fn failed_runs(report: &Report) -> impl Iterator<Item = String> + '_ {
    report.runners.iter().filter_map(|run| {
        let error = run.error.as_ref()?;
        Some(format!("run of {} on {}: {error}", run.plugin, run.target))
    })
}

fn conclusion(report: &Report) -> String {
    let missed = report.bounds.iter().filter(|bound| !bound.holds).count();
    let verdict = if report.passed {
        "PASSED: all bounds hold.".to_owned()
    } else {
        format!("FAILED: {missed} of {} bounds missed.", report.bounds.len())
    };
    judge::bottleneck(report).map_or(verdict.clone(), |why| format!("{verdict} {why}."))
}

#[cfg(test)]
mod tests {
    use super::super::tests::good;
    use super::*;
    use std::time::Duration;

    use crate::verdict::{Finding, RunnerOutcome};

    /// Goal: both forms say how the run ended and why, and name the finding.
    #[test]
    fn a_missed_bound_is_told() {
        let mut report = good();
        assert!(terminal(&report).contains("PASSED: all bounds hold."));
        report.verdict.lost.push(Finding {
            node: "web1".to_owned(),
            plugin: Some("facter".to_owned()),
            seq: Some(7),
            what: "not in the store".to_owned(),
        });
        report.totals.dropped = 1;
        report.bounds = judge::bounds(&report);
        report.passed = false;
        for text in [terminal(&report), markdown(&report)] {
            assert!(text.contains("FAILED: 2 of"), "{text}");
            assert!(text.contains("The tester was the bottleneck"), "{text}");
            assert!(
                text.contains("lost: web1/facter seq 7: not in the store"),
                "{text}"
            );
        }
        let markdown = markdown(&report);
        let tables = markdown.lines().filter(|line| line.starts_with('|'));
        let widths: Vec<usize> = tables.map(|line| line.matches('|').count()).collect();
        assert!(widths.len() > 30, "{markdown}");
        assert!(
            plot::FILES
                .iter()
                .all(|(file, _)| markdown.contains(&format!("]({file})")))
        );
    }

    /// Goal: the reason why a run failed is shown, but not in a column, which would be too wide; counts of a killed
    /// server are "at least".
    #[test]
    fn failed_runs_and_short_counts_are_told() {
        let mut report = good();
        let text = terminal(&report);
        assert!(
            !text.contains("at least") && !text.contains("own counts"),
            "{text}"
        );
        report.runners.push(RunnerOutcome {
            plugin: "facter".to_owned(),
            target: "@real".to_owned(),
            at: Duration::from_millis(6_049),
            took: Duration::ZERO,
            closing: Duration::ZERO,
            expected: 0,
            answered: 0,
            error: Some("the broker is away, ".repeat(20)),
        });
        report.totals.is_complete = false;
        report.totals.server_restarts = 1;
        let text = terminal(&report);
        assert!(
            text.contains("run of facter on @real: the broker is away"),
            "{text}"
        );
        assert!(text.contains("facter on @real  6.0 s    failed "), "{text}");
        assert!(text.contains("at least 100"), "{text}");
        report.totals.server_restarts = 0;
        let text = terminal(&report);
        assert!(
            !text.contains("at least") && text.contains("did not start it"),
            "{text}"
        );
        let longest = text.lines().filter(|line| !line.starts_with("  run of"));
        assert!(
            longest.map(|line| line.chars().count()).max() <= Some(90),
            "{text}"
        );
    }
}
