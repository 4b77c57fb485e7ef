//! Metrics: the catalogue of all of them, the handles that record them, and the ledger of the accounting identity.
//!
//! ```text
//! catalogue ─▶ handles (typed labels) ─▶ recorder ─▶ /metrics
//!     └──────▶ descriptions, buckets, `vogeler admin metrics`
//! ```
//!
//! Invariant: every metric recorded is declared in the catalogue, and no label has a value outside its set. No label
//! has a node's name.

pub mod catalogue;
mod label;
mod ledger;
mod metric;
mod record;
mod reference;
mod snapshot;
mod words;

use std::sync::Arc;
use std::time::Duration;

use metrics::Unit;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

pub use label::{Label, LabelSpec, PLUGINS_MAX, Partition, Plugin, Values, Version};
pub use ledger::{Counts, Ledger};
pub use metric::{Counter, Declared, Entry, Gauge, Handle, Histogram, Kind, Metric, Role};
pub use record::*;
pub use reference::reference;
pub use snapshot::{Series, Snapshot};
pub use words::*;

/// Upper bounds of the duration histograms, in seconds: half a millisecond to half an hour.
const SECONDS_BUCKETS: [f64; 16] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0,
    1800.0,
];
/// Upper bounds of histograms of counts.
const COUNT_BUCKETS: [f64; 9] = [1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0];
/// Upper bounds of histograms of sizes, in bytes: 1 KiB to 16 MiB.
const BYTES_BUCKETS: [f64; 8] = [
    1024.0,
    4096.0,
    16384.0,
    65536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
];
/// Interval at which the exporter folds the values of its histograms into buckets. Until then it keeps every value.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// Renders the metrics of this process.
#[derive(Clone)]
pub struct Telemetry {
    handle: PrometheusHandle,
    process: metrics_process::Collector,
    observers: Vec<Arc<dyn Fn() + Send + Sync>>,
}

impl std::fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Telemetry").finish_non_exhaustive()
    }
}

impl Telemetry {
    /// Installs the recorder, once per process and before anything is recorded: handles made earlier never record
    /// anything. Exports the metrics of `role`; the series known beforehand start at 0. Must be called on a runtime:
    /// the exporter's upkeep runs there.
    pub fn install(role: Role) -> Result<Self, BuildError> {
        let mut builder = PrometheusBuilder::new();
        for metric in catalogue::ALL
            .iter()
            .filter(|m| m.kind() == Kind::Histogram)
        {
            let entry = metric.entry();
            let name = Matcher::Full(entry.name.to_owned());
            builder = builder.set_buckets_for_metric(name, buckets(entry.unit))?;
        }
        let handle = builder.install_recorder()?;
        for metric in catalogue::ALL {
            if role.exports(metric.entry().role) {
                metric.announce(role);
            }
        }
        catalogue::BUILD_INFO.of(Version).set(1.0);
        tokio::spawn(keep_up(handle.clone()));
        Ok(Self {
            handle,
            process: metrics_process::Collector::default(),
            observers: Vec::new(),
        })
    }

    /// Calls `observer` before each scrape: it sets the gauges that are cheaper to read then than to keep up to date.
    #[must_use]
    pub fn observing(mut self, observer: impl Fn() + Send + Sync + 'static) -> Self {
        self.observers.push(Arc::new(observer));
        self
    }

    /// The metrics at this moment, as Prometheus text.
    pub fn render(&self) -> String {
        for observe in &self.observers {
            observe();
        }
        self.process.collect();
        self.handle.render()
    }

    /// The values at this moment.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::read(&self.render())
    }
}

async fn keep_up(handle: PrometheusHandle) {
    loop {
        tokio::time::sleep(UPKEEP_EVERY).await;
        handle.run_upkeep();
    }
}

fn buckets(unit: Unit) -> &'static [f64] {
    match unit {
        Unit::Seconds => &SECONDS_BUCKETS,
        Unit::Bytes => &BYTES_BUCKETS,
        _ => &COUNT_BUCKETS,
    }
}
