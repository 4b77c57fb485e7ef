//! `--compare OLD.json`: the figures of two runs beside each other, and their ratio.

use std::path::Path;

use anyhow::{Context as _, bail};

use super::text::{Align, align};
use super::{FORMAT, Report, Resources};

/// Reads a report of an earlier run.
pub(crate) fn load(path: &Path) -> anyhow::Result<Report> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("--compare {shown}"))?;
    let value: serde_json::Value =
        serde_json::from_str(&text).with_context(|| format!("--compare {shown}"))?;
    let format = value.get("format").and_then(serde_json::Value::as_u64);
    if format != Some(FORMAT.into()) {
        bail!(
            "--compare {shown}: no report of this version of vogeler-loadtest (format {FORMAT}): make it anew"
        );
    }
    serde_json::from_value(value).with_context(|| format!("--compare {shown}"))
}

/// The figures of both, and new : old.
pub(crate) fn table(old: &Report, new: &Report) -> String {
    let mut rows = Vec::new();
    for (what, figure) in figures() {
        let (Some(before), Some(after)) = (figure(old), figure(new)) else {
            continue;
        };
        let ratio = if before > 0.0 {
            format!("{:.2}", after / before)
        } else {
            "-".to_owned()
        };
        rows.push(vec![
            what.to_owned(),
            format!("{before:.1}"),
            format!("{after:.1}"),
            ratio,
        ]);
    }
    let mut text = align(
        &["compared", "old", "new", "new : old"],
        &rows,
        Align::Figures,
    );
    for (what, is_alike) in [
        ("plans", old.plan == new.plan),
        ("machines", old.setting.machine == new.setting.machine),
        ("stores", old.setting.store == new.setting.store),
        ("builds", old.setting.build == new.setting.build),
    ] {
        if !is_alike {
            text.push_str("The ");
            text.push_str(what);
            text.push_str(" of the two runs differ.\n");
        }
    }
    text
}

type Figure = (&'static str, fn(&Report) -> Option<f64>);

fn figures() -> [Figure; 13] {
    [
        ("settled a second", |report| Some(report.rates.settled)),
        ("settled a second, at best", |report| {
            Some(report.rates.settled_peak)
        }),
        ("confirmed p50, ms", |report| {
            Some(report.latencies.publish_to_confirmed.p50)
        }),
        ("confirmed p99, ms", |report| {
            Some(report.latencies.publish_to_confirmed.p99)
        }),
        ("stored p50, ms", |report| {
            Some(report.latencies.published_to_stored.p50)
        }),
        ("stored p99, ms", |report| {
            Some(report.latencies.published_to_stored.p99)
        }),
        ("stored p99.9, ms", |report| {
            Some(report.latencies.published_to_stored.p999)
        }),
        ("settled without a write, %", |report| {
            Some(report.rates.dedup * 100.0)
        }),
        ("documents per 100 results", |report| {
            Some(report.rates.writes_per_result * 100.0)
        }),
        ("server, CPU µs a result", |report| {
            Some(of(report, "server")?.cpu_micros_per_result)
        }),
        ("broker, CPU µs a result", |report| {
            Some(of(report, "broker")?.cpu_micros_per_result)
        }),
        ("store, CPU µs a result", |report| {
            Some(of(report, "store")?.cpu_micros_per_result)
        }),
        ("server, RSS MB", |report| {
            Some(of(report, "server")?.rss_mb_peak)
        }),
    ]
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

    /// Goal: ratios are new to old, and two runs that cannot be compared well are told apart.
    #[test]
    fn ratios_are_new_to_old() {
        let (old, mut new) = (good(), good());
        new.rates.settled *= 1.5;
        new.plan.seed += 1;
        let text = table(&old, &new);
        let line = text
            .lines()
            .find(|line| line.starts_with("settled a second "))
            .unwrap();
        assert!(line.ends_with("1.50"), "{text}");
        assert!(text.contains("The plans of the two runs differ."));
        assert!(!text.contains("The machines"), "{text}");
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
        std::fs::write(&path, serde_json::to_string(&good()).unwrap()).unwrap();
        assert_eq!(load(&path).unwrap(), good());
    }
}
