//! The metrics of this process at one moment, for the status page.
//!
//! Read from the exporter's own text, so that the page and `/metrics` cannot disagree. Invariant: only metrics of the
//! catalogue can be asked for; label values hold no quotes.

use std::collections::HashMap;

use super::label::Labels;
use super::metric::{Declared, Handle, Metric};

/// The values of all series. A histogram has those of its `_sum` and `_count`; its buckets are left out.
#[derive(Debug, Default)]
pub struct Snapshot(HashMap<String, Vec<Series>>);

/// One series of a metric.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// The values of its labels, in the order of their declaration.
    pub labels: Vec<String>,
    /// Its value.
    pub value: f64,
}

impl Snapshot {
    /// Reads the text that the exporter renders. Lines that are not understood are left out.
    pub fn read(text: &str) -> Self {
        let mut all: HashMap<String, Vec<Series>> = HashMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((name, series)) = series(line) else {
                continue;
            };
            all.entry(name.to_owned()).or_default().push(series);
        }
        Self(all)
    }

    /// All series of a metric.
    pub fn all(&self, metric: &dyn Declared) -> &[Series] {
        self.named(metric.entry().name)
    }

    /// The sum over all series of a metric.
    pub fn sum(&self, metric: &dyn Declared) -> f64 {
        total(self.all(metric))
    }

    /// How many values a histogram took, and their sum.
    pub fn count_and_sum(&self, histogram: &dyn Declared) -> [f64; 2] {
        let name = histogram.entry().name;
        ["count", "sum"].map(|part| total(self.named(&format!("{name}_{part}"))))
    }

    /// The value of the series with these labels; none if it was never recorded.
    pub fn of<H: Handle, L: Labels>(&self, metric: &Metric<H, L>, labels: L) -> Option<f64> {
        let wanted = labels.texts();
        let found = self.all(metric).iter().find(|series| {
            let values = wanted.iter().map(|(_, text)| text.as_ref());
            values.eq(series.labels.iter().map(String::as_str))
        });
        found.map(|series| series.value)
    }

    fn named(&self, name: &str) -> &[Series] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }
}

fn total(series: &[Series]) -> f64 {
    series.iter().map(|series| series.value).sum()
}

fn series(line: &str) -> Option<(&str, Series)> {
    let (series, value) = line.rsplit_once(' ')?;
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    if name.ends_with("_bucket") {
        return None;
    }
    // name="value",name="value"}: every second piece between quotes is a value.
    let labels = labels.split('"').skip(1).step_by(2);
    let series = Series {
        labels: labels.map(str::to_owned).collect(),
        value: value.parse().ok()?,
    };
    Some((name, series))
}

#[cfg(test)]
mod tests {
    use super::super::catalogue as c;
    use super::super::{Part, Partition, ResultStatus};
    use super::*;

    /// Goal: a value is found by metric and labels, a sum covers all labels, and buckets do not count.
    #[test]
    fn values_are_found_by_metric_and_labels() {
        let text = "# HELP vogeler_up Whether\n# TYPE vogeler_up gauge\nvogeler_up{part=\"broker\"} 1\n\
            vogeler_up{part=\"store\"} 0\n\nvogeler_queue_lag_seconds{partition=\"11\"} 2.5\n\
            vogeler_batch_documents_bucket{le=\"1\"} 7\nvogeler_batch_documents_sum 9\n\
            vogeler_batch_documents_count 3\nnonsense\nvogeler_runs_total many\n\
            vogeler_plugin_results_total{plugin=\"rpms\",status=\"error\"} 4\n";
        let snapshot = Snapshot::read(text);
        assert_eq!(snapshot.of(&c::UP, Part::Broker), Some(1.0));
        assert_eq!(snapshot.of(&c::UP, Part::Store), Some(0.0));
        assert_eq!(snapshot.of(&c::QUEUE_LAG_SECONDS, Partition(11)), Some(2.5));
        assert_eq!(snapshot.of(&c::QUEUE_LAG_SECONDS, Partition(1)), None);
        let [count, sum] = snapshot.count_and_sum(&c::BATCH_DOCUMENTS);
        assert_eq!((Some(count), Some(sum)), (Some(3.0), Some(9.0)));
        assert!((snapshot.sum(&c::UP) - 1.0).abs() < 1e-9);
        assert!(snapshot.all(&c::RUNS).is_empty());
        let failed = &snapshot.all(&c::PLUGIN_RESULTS)[0].labels;
        assert_eq!(failed, &["rpms", ResultStatus::Error.as_str()]);
    }
}
