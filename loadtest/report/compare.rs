//! `--compare OLD.json`: the figures of two runs beside each other, and their ratio.

use std::path::Path;

use anyhow::{Context as _, bail};

use super::layout::{Align, align};
use super::{FORMAT, Report, Resources, Times};
use crate::plan::Plan;

/// Figures at most this share apart are alike: two runs of the same plan and build differ by as much.
const ALIKE: f64 = 0.05;

/// Reads a report of an earlier run.
pub(crate) fn load(path: &Path) -> anyhow::Result<Report> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("--compare {shown}"))?;
    let value: serde_json::Value = serde_json::from_str(&text)
        .with_context(|| format!("--compare {shown}: this is no JSON: name a report.json"))?;
    let other = || {
        format!(
            "--compare {shown}: no report of this version of vogeler-loadtest (format {FORMAT}): make it anew"
        )
    };
    let format = value.get("format").and_then(serde_json::Value::as_u64);
    if format != Some(FORMAT.into()) {
        bail!(other());
    }
    serde_json::from_value(value).with_context(other)
}

/// A table of the figures of both runs: the ratio new : old, which is better, and what makes them hard to compare.
pub(crate) fn table(old: &Report, new: &Report) -> String {
    let rows: Vec<Vec<String>> = figures()
        .into_iter()
        .map(|(what, good, figure)| {
            let (before, after) = (figure(old), figure(new));
            let (ratio, verdict) = judge(before, after, good);
            vec![what.to_owned(), shown(before), shown(after), ratio, verdict]
        })
        .collect();
    let head = ["compared", "old", "new", "new : old", "new is"];
    let mut text = align(&head, &rows, Align::Figures);
    for difference in differences(old, new) {
        text.push_str(&difference);
        text.push('\n');
    }
    text
}

fn shown(figure: Option<f64>) -> String {
    figure.map_or_else(|| "-".to_owned(), |figure| format!("{figure:.1}"))
}

/// The ratio, and what it means.
fn judge(before: Option<f64>, after: Option<f64>, good: Good) -> (String, String) {
    let (Some(before), Some(after)) = (before, after) else {
        return ("-".to_owned(), "not measured in both".to_owned());
    };
    if before <= 0.0 {
        let verdict = if after > 0.0 {
            "no ratio to 0"
        } else {
            "alike"
        };
        return ("-".to_owned(), verdict.to_owned());
    }
    let ratio = after / before;
    let verdict = match good {
        _ if (ratio - 1.0).abs() <= ALIKE => "alike",
        Good::Neither => "other",
        Good::More if ratio > 1.0 => "better",
        Good::Less if ratio < 1.0 => "better",
        _ => "worse",
    };
    (format!("{ratio:.2}"), verdict.to_owned())
}

/// Lists what differs between the two runs, and which of them did not pass.
fn differences(old: &Report, new: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    let mut differ = |what: &str, old: &str, new: &str| {
        if old != new {
            lines.push(format!("The {what} of the two runs differ: {old}; {new}."));
        }
    };
    let (before, after) = (&old.setting, &new.setting);
    differ("plans", &old.plan.name, &new.plan.name);
    differ(
        "seeds",
        &old.plan.seed.to_string(),
        &new.plan.seed.to_string(),
    );
    differ("machines", &before.machine, &after.machine);
    differ("brokers", &before.broker, &after.broker);
    differ("stores", &before.store, &after.store);
    differ("builds", &before.build, &after.build);
    let alike = Plan {
        seed: new.plan.seed,
        ..old.plan.clone()
    };
    if old.plan.name == new.plan.name && alike != new.plan {
        lines.push("The plans of the two runs differ in more than their seed.".to_owned());
    }
    for (which, report) in [("old", old), ("new", new)] {
        if !report.passed {
            lines.push(format!(
                "The {which} run did not pass: its figures may mean little."
            ));
        }
    }
    lines
}

/// Which way a figure is good.
#[derive(Debug, Clone, Copy)]
enum Good {
    More,
    Less,
    /// The figure depends on the load more than on the server.
    Neither,
}

type Figure = (&'static str, Good, fn(&Report) -> Option<f64>);

fn figures() -> [Figure; 13] {
    use Good::{Less, More, Neither};
    [
        ("settled a second", More, |report| {
            Some(report.rates.settled)
        }),
        ("settled a second, at best", More, |report| {
            Some(report.rates.settled_peak)
        }),
        ("confirmed p50, ms", Less, |report| {
            measured(report.latencies.publish_to_confirmed).map(|times| times.p50)
        }),
        ("confirmed p99, ms", Less, |report| {
            measured(report.latencies.publish_to_confirmed).map(|times| times.p99)
        }),
        ("stored p50, ms", Less, |report| {
            measured(report.latencies.published_to_stored).map(|times| times.p50)
        }),
        ("stored p99, ms", Less, |report| {
            measured(report.latencies.published_to_stored).map(|times| times.p99)
        }),
        ("stored p99.9, ms", Less, |report| {
            measured(report.latencies.published_to_stored).map(|times| times.p999)
        }),
        ("settled without a write, %", Neither, |report| {
            Some(report.rates.dedup * 100.0)
        }),
        ("documents per 100 results", Neither, |report| {
            Some(report.rates.writes_per_result * 100.0)
        }),
        ("server, CPU µs a result", Less, |report| {
            Some(of(report, "server")?.cpu_micros_per_result)
        }),
        ("broker, CPU µs a result", Less, |report| {
            Some(of(report, "broker")?.cpu_micros_per_result)
        }),
        ("store, CPU µs a result", Less, |report| {
            Some(of(report, "store")?.cpu_micros_per_result)
        }),
        ("server, RSS MB", Less, |report| {
            Some(of(report, "server")?.rss_mb_peak)
        }),
    ]
}

fn measured(times: Times) -> Option<Times> {
    (times.count > 0).then_some(times)
}

fn of<'a>(report: &'a Report, who: &str) -> Option<&'a Resources> {
    report
        .resources
        .iter()
        .find(|resources| resources.who == who)
}

#[cfg(test)]
mod tests {
    use super::super::tests::good;
    use super::*;

    fn line<'a>(text: &'a str, what: &str) -> &'a str {
        let found = text.lines().find(|line| line.starts_with(what));
        found.unwrap_or_else(|| panic!("no {what} in {text}"))
    }

    /// Goal: ratios are new to old, and say which way is better.
    #[test]
    fn ratios_have_a_direction() {
        let (old, mut new) = (good(), good());
        new.rates.settled *= 1.5;
        new.latencies.published_to_stored.p99 *= 2.0;
        new.latencies.published_to_stored.p50 *= 0.97;
        new.latencies.publish_to_confirmed = Times::default();
        let text = table(&old, &new);
        for (what, end) in [
            ("settled a second ", "1.50  better"),
            ("stored p99, ms", "2.00  worse"),
            ("stored p50, ms", "0.97  alike"),
            ("confirmed p99, ms", "-  not measured in both"),
            ("server, RSS MB", "-  not measured in both"),
        ] {
            let line = line(&text, what);
            let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(words(line).ends_with(&words(end)), "{line}");
        }
        assert!(
            !text.contains("differ") && !text.contains("did not pass"),
            "{text}"
        );
    }

    /// Goal: differences that make two runs hard to compare are listed, and a run that did not pass is named.
    #[test]
    fn what_differs_is_told() {
        let (mut old, mut new) = (good(), good());
        new.plan.seed = 7;
        assert_eq!(
            differences(&old, &new),
            ["The seeds of the two runs differ: 1; 7."]
        );
        new.plan.nodes += 1;
        old.passed = false;
        let text = table(&old, &new);
        assert!(text.contains("differ in more than their seed"), "{text}");
        assert!(text.contains("The old run did not pass"), "{text}");
        new.plan.name = "steady".to_owned();
        let text = table(&old, &new);
        assert!(
            text.contains("The plans of the two runs differ: smoke; steady."),
            "{text}"
        );
        assert!(!text.contains("more than their seed"), "{text}");
    }

    /// Goal: a report of another shape is refused with what to do.
    #[test]
    fn other_reports_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("old.json");
        assert!(load(&path).is_err());
        std::fs::write(&path, r#"{"format": 0}"#).unwrap();
        let error = load(&path).unwrap_err().to_string();
        assert!(error.contains("make it anew"), "{error}");
        std::fs::write(&path, r#"{"format": 1, "passed": true}"#).unwrap();
        let error = load(&path).unwrap_err().to_string();
        assert!(error.contains("make it anew"), "{error}");
        std::fs::write(&path, "plan        smoke").unwrap();
        let error = load(&path).unwrap_err().to_string();
        assert!(error.contains("name a report.json"), "{error}");
        std::fs::write(&path, serde_json::to_string(&good()).unwrap()).unwrap();
        assert_eq!(load(&path).unwrap(), good());
    }
}
