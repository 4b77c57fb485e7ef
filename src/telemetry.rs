//! Metrics: every name once, as a constant with unit and help; and the ledger of the accounting identity.
//!
//! Recording a fact is one call. Labels come from enums, never from a node's name. Invariant, at every scrape:
//! `received = stored + unchanged + superseded + stale + dead_lettered + requeued + in_flight`.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use metrics::Unit;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::sync::Notify;

use crate::wire::Outcome;

const RECEIVED: &str = "vogeler_results_received_total";
const OUTCOMES: &str = "vogeler_results_total";
const IN_FLIGHT: &str = "vogeler_results_in_flight";
const REDELIVERED: &str = "vogeler_results_redelivered_total";
const DECODE_ERRORS: &str = "vogeler_decode_errors_total";
const BATCHES: &str = "vogeler_batches_total";
const BATCH_DOCUMENTS: &str = "vogeler_batch_documents";
const DOCUMENTS: &str = "vogeler_documents_written_total";
const CONFLICTS: &str = "vogeler_document_conflicts_total";
const REFUSALS: &str = "vogeler_documents_refused_total";
const FAILED_ROWS: &str = "vogeler_documents_failed_total";
const READ_BACK: &str = "vogeler_results_read_back_total";
const SPLITS: &str = "vogeler_store_requests_split_total";
const STORE_SECONDS: &str = "vogeler_store_request_seconds";
const STORE_ERRORS: &str = "vogeler_store_errors_total";
const NODE_ACTORS: &str = "vogeler_node_actors";
const RECEIPTS: &str = "vogeler_receipts_total";
const PARTITIONS_OWNED: &str = "vogeler_partitions_owned";
const REBALANCES: &str = "vogeler_rebalances_total";
const UP: &str = "vogeler_up";
const BUILD_INFO: &str = "vogeler_build_info";

/// Upper bounds of the duration histograms, in seconds: half a millisecond to a minute.
const SECONDS_BUCKETS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0,
];
/// Upper bounds of the histogram of documents a batch.
const COUNT_BUCKETS: [f64; 9] = [1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0];

/// Why a batch was cut; also the metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlushReason {
    /// It has as many documents as a write may have.
    Count,
    /// It has as many bytes as a write may have.
    Bytes,
    /// It waited long enough for more.
    Linger,
    /// The server is stopping.
    Drain,
}

impl FlushReason {
    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Bytes => "bytes",
            Self::Linger => "linger",
            Self::Drain => "drain",
        }
    }
}

/// A kind of store request; also the metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreRequest {
    /// Documents are read.
    Load,
    /// Documents are written.
    Write,
}

impl StoreRequest {
    fn as_str(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Write => "write",
        }
    }
}

/// Why a request of several documents was taken apart; also the metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SplitReason {
    /// One document was named as the reason.
    Named,
    /// One document is the reason, and is searched by halves.
    Bisect,
    /// The request is too large.
    TooLarge,
}

impl SplitReason {
    fn as_str(self) -> &'static str {
        match self {
            Self::Named => "named",
            Self::Bisect => "bisect",
            Self::TooLarge => "too_large",
        }
    }
}

/// How many deliveries came, and how they ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Deliveries received.
    pub received: u64,
    ended: [u64; Outcome::ALL.len()],
}

impl Counts {
    /// Deliveries that ended so.
    pub fn of(&self, outcome: Outcome) -> u64 {
        self.ended
            .get(outcome as usize)
            .copied()
            .unwrap_or_default()
    }

    /// Deliveries neither settled nor given back.
    pub fn in_flight(&self) -> u64 {
        self.received - self.ended.iter().sum::<u64>()
    }
}

/// Counts every delivery in, and out by its outcome. One lock for all counts keeps every snapshot consistent.
#[derive(Debug, Default)]
pub struct Ledger {
    counts: Mutex<Counts>,
    /// Told when the last delivery in flight ends.
    idle: Notify,
}

impl Ledger {
    /// A delivery arrived.
    pub fn receive(&self, redelivered: bool) {
        if redelivered {
            metrics().redelivered.increment(1);
        }
        self.record(|counts| counts.received += 1);
    }

    /// A delivery ended.
    pub fn end(&self, outcome: Outcome) {
        self.record(|counts| {
            if let Some(count) = counts.ended.get_mut(outcome as usize) {
                *count += 1;
            }
        });
    }

    /// All counts, of one moment.
    pub fn counts(&self) -> Counts {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nothing is in flight.
    pub async fn settled(&self) {
        loop {
            // Made before the look: what it is told in between is not missed.
            let idle = self.idle.notified();
            if self.counts().in_flight() == 0 {
                return;
            }
            idle.await;
        }
    }

    fn record(&self, change: impl FnOnce(&mut Counts)) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut counts);
        let is_idle = counts.in_flight() == 0;
        drop(counts);
        if is_idle {
            self.idle.notify_waiters();
        }
    }

    /// Sets the exported counters to one snapshot.
    #[allow(clippy::disallowed_macros, reason = "this is telemetry")]
    #[allow(clippy::cast_precision_loss, reason = "a gauge is a float")]
    pub fn export(&self) {
        let counts = self.counts();
        metrics::counter!(RECEIVED).absolute(counts.received);
        for outcome in Outcome::ALL {
            metrics::counter!(OUTCOMES, "outcome" => outcome.as_str()).absolute(counts.of(outcome));
        }
        metrics::gauge!(IN_FLIGHT).set(counts.in_flight() as f64);
    }
}

/// Handles of the metrics whose labels never vary.
struct Metrics {
    redelivered: metrics::Counter,
    batch_documents: metrics::Histogram,
    documents: metrics::Counter,
    conflicts: metrics::Counter,
    node_actors: metrics::Gauge,
    receipts: metrics::Counter,
}

#[allow(clippy::disallowed_macros, reason = "this is telemetry")]
fn metrics() -> &'static Metrics {
    static METRICS: OnceLock<Metrics> = OnceLock::new();
    METRICS.get_or_init(|| Metrics {
        redelivered: metrics::counter!(REDELIVERED),
        batch_documents: metrics::histogram!(BATCH_DOCUMENTS),
        documents: metrics::counter!(DOCUMENTS),
        conflicts: metrics::counter!(CONFLICTS),
        node_actors: metrics::gauge!(NODE_ACTORS),
        receipts: metrics::counter!(RECEIPTS),
    })
}

/// A message could not be decoded, for the given reason ([`crate::wire::DecodeError::reason`]).
#[allow(clippy::disallowed_macros, reason = "this is telemetry")]
pub fn record_decode_error(reason: &'static str) {
    metrics::counter!(DECODE_ERRORS, "reason" => reason).increment(1);
}

/// A batch of so many documents was cut.
#[allow(clippy::disallowed_macros, reason = "this is telemetry")]
#[allow(clippy::cast_precision_loss, reason = "a histogram takes floats")]
pub fn record_batch(reason: FlushReason, documents: usize) {
    metrics::counter!(BATCHES, "reason" => reason.as_str()).increment(1);
    metrics().batch_documents.record(documents as f64);
}

/// A document was written.
pub fn record_document() {
    metrics().documents.increment(1);
}

/// A document conflicted.
pub fn record_conflict() {
    metrics().conflicts.increment(1);
}

/// The store refused a document for good.
#[allow(clippy::disallowed_macros, reason = "this is telemetry")]
pub fn record_refusal() {
    metrics::counter!(REFUSALS).increment(1);
}

/// The store failed at one document; it is read and written again.
#[allow(clippy::disallowed_macros, reason = "this is telemetry")]
pub fn record_failed_row() {
    metrics::counter!(FAILED_ROWS).increment(1);
}

/// A result was found stored when it was read back after a write of unknown end.
#[allow(clippy::disallowed_macros, reason = "this is telemetry")]
pub fn record_read_back() {
    metrics::counter!(READ_BACK).increment(1);
}

/// The store refused a request as a whole, and it was taken apart.
#[allow(clippy::disallowed_macros, reason = "this is telemetry")]
pub fn record_split(reason: SplitReason) {
    metrics::counter!(SPLITS, "reason" => reason.as_str()).increment(1);
}

/// A store request ended after `took`; `error` says why, if it failed as a whole
/// ([`StoreError::as_str`](crate::store::StoreError::as_str)).
#[allow(clippy::disallowed_macros, reason = "this is telemetry")]
pub fn record_store_request(kind: StoreRequest, took: Duration, error: Option<&'static str>) {
    metrics::histogram!(STORE_SECONDS, "kind" => kind.as_str()).record(took.as_secs_f64());
    if let Some(reason) = error {
        metrics::counter!(STORE_ERRORS, "kind" => kind.as_str(), "reason" => reason).increment(1);
    }
}

/// So many receipts were published.
pub fn record_receipts(count: usize) {
    metrics().receipts.increment(count as u64);
}

/// This server should own so many partitions.
#[allow(clippy::disallowed_macros, reason = "this is telemetry")]
#[allow(clippy::cast_precision_loss, reason = "a gauge is a float")]
pub fn record_partitions_owned(count: usize) {
    metrics::gauge!(PARTITIONS_OWNED).set(count as f64);
}

/// The servers agreed anew, and this one should own so many partitions.
#[allow(clippy::disallowed_macros, reason = "this is telemetry")]
pub fn record_rebalance(count: usize) {
    metrics::counter!(REBALANCES).increment(1);
    record_partitions_owned(count);
}

/// Whether broker and store can be used now.
#[allow(clippy::disallowed_macros, reason = "this is telemetry")]
pub fn record_up(part: &'static str, up: bool) {
    metrics::gauge!(UP, "part" => part).set(if up { 1.0 } else { 0.0 });
}

/// Counts an actor among the active ones as long as it lives.
#[derive(Debug)]
pub struct NodeActorGuard(());

impl NodeActorGuard {
    /// One more.
    #[allow(clippy::new_without_default, reason = "making one counts")]
    pub fn new() -> Self {
        metrics().node_actors.increment(1.0);
        Self(())
    }
}

impl Drop for NodeActorGuard {
    fn drop(&mut self) {
        metrics().node_actors.decrement(1.0);
    }
}

/// Renders the metrics of this process.
#[derive(Clone)]
pub struct Telemetry {
    handle: PrometheusHandle,
    ledger: Arc<Ledger>,
}

impl std::fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Telemetry").finish_non_exhaustive()
    }
}

impl Telemetry {
    /// Installs the recorder, once a process; before that, recording does nothing and costs little.
    pub fn install(ledger: Arc<Ledger>) -> Result<Self, metrics_exporter_prometheus::BuildError> {
        let handle = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS_BUCKETS)?
            .set_buckets_for_metric(Matcher::Full(BATCH_DOCUMENTS.to_owned()), &COUNT_BUCKETS)?
            .install_recorder()?;
        describe();
        Ok(Self { handle, ledger })
    }

    /// The Prometheus text of one moment. Does the exporter's upkeep too, so it must be called now and then.
    pub fn render(&self) -> String {
        self.ledger.export();
        self.handle.run_upkeep();
        self.handle.render()
    }
}

#[allow(clippy::disallowed_macros, reason = "this is telemetry")]
fn describe() {
    use metrics::{describe_counter, describe_gauge, describe_histogram};
    describe_counter!(
        RECEIVED,
        Unit::Count,
        "Deliveries of results received from the broker"
    );
    describe_counter!(OUTCOMES, Unit::Count, outcomes_help());
    describe_gauge!(
        IN_FLIGHT,
        Unit::Count,
        "Deliveries neither settled nor given back"
    );
    describe_counter!(
        REDELIVERED,
        Unit::Count,
        "Deliveries that the broker had delivered before"
    );
    describe_counter!(DECODE_ERRORS, Unit::Count, decode_errors_help());
    describe_counter!(
        BATCHES,
        Unit::Count,
        "Batches cut, by reason: count, bytes, linger, drain"
    );
    describe_histogram!(BATCH_DOCUMENTS, Unit::Count, "Documents a batch");
    describe_counter!(DOCUMENTS, Unit::Count, "Documents written");
    describe_counter!(
        CONFLICTS,
        Unit::Count,
        "Documents whose write conflicted and was merged again"
    );
    describe_counter!(
        REFUSALS,
        Unit::Count,
        "Documents the store refused for good"
    );
    describe_histogram!(
        STORE_SECONDS,
        Unit::Seconds,
        "Duration of store requests, by kind"
    );
    describe_counter!(
        STORE_ERRORS,
        Unit::Count,
        "Store requests that failed as a whole, by kind and reason"
    );
    describe_counter!(
        FAILED_ROWS,
        Unit::Count,
        "Documents at which the store failed; they are read and written again"
    );
    describe_counter!(
        READ_BACK,
        Unit::Count,
        "Results found stored when read back after a write of unknown end"
    );
    describe_counter!(
        SPLITS,
        Unit::Count,
        "Store requests refused as a whole and taken apart, by reason: named, bisect, too_large"
    );
    describe_gauge!(NODE_ACTORS, Unit::Count, "Node actors in memory");
    describe_counter!(RECEIPTS, Unit::Count, "Receipts published to runners");
    describe_partitions();
    describe_gauge!(
        UP,
        Unit::Count,
        "Whether the part (broker, store) can be used: 1 or 0"
    );
    describe_gauge!(BUILD_INFO, Unit::Count, "Always 1; the version is a label");
    metrics::gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
}

fn describe_partitions() {
    use metrics::{describe_counter, describe_gauge};
    describe_gauge!(
        PARTITIONS_OWNED,
        Unit::Count,
        "Partitions that this server should own"
    );
    describe_counter!(
        REBALANCES,
        Unit::Count,
        "Times that the servers agreed anew on who owns which partitions"
    );
}

fn outcomes_help() -> String {
    format!(
        "Deliveries that ended, by outcome: {}",
        Outcome::ALL.map(Outcome::as_str).join(", ")
    )
}

fn decode_errors_help() -> String {
    format!(
        "Messages that are no result, by reason: {}",
        crate::wire::DecodeError::REASONS.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: every delivery is in exactly one count, whatever its outcome.
    #[tokio::test]
    async fn the_identity_holds() {
        let ledger = Ledger::default();
        for outcome in Outcome::ALL {
            ledger.receive(false);
            assert_eq!(ledger.counts().in_flight(), 1);
            ledger.end(outcome);
            assert_eq!(ledger.counts().of(outcome), 1);
        }
        assert_eq!(ledger.counts().received, 6);
        assert_eq!(ledger.counts().in_flight(), 0);
        ledger.settled().await;
    }
}
