//! Facts that need more than one metric, or are recorded in several places: one call per fact.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use jiff::Timestamp;

use super::catalogue as c;
use super::words::{
    DeadLetterReason, DecodeReason, FlushReason, Part, SplitReason, StoreRequest, StoreStatus,
};
use crate::store::StoreError;
use crate::wire::{DecodeError, Outcome};

/// When this process last wrote a document, in milliseconds of Unix time; 0 for never. The gauge is set from it at each
/// scrape of `/metrics`.
static LAST_WRITE_MS: AtomicI64 = AtomicI64::new(0);

/// A message could not be decoded.
pub fn record_decode_error(error: &DecodeError) {
    c::DECODE_ERRORS.of(DecodeReason::from(error)).increment(1);
}

/// A batch of `documents` was cut.
#[allow(clippy::cast_precision_loss, reason = "a histogram takes floats")]
pub fn record_batch(reason: FlushReason, documents: usize) {
    c::BATCHES.of(reason).increment(1);
    c::BATCH_DOCUMENTS.get().record(documents as f64);
}

/// From now on a batch may have `documents`, and `writes` full batches may be written at once.
#[allow(clippy::cast_precision_loss, reason = "a gauge takes floats")]
pub fn record_pace(documents: usize, writes: usize) {
    c::BATCH_DOCUMENTS_LIMIT.get().set(documents as f64);
    c::WRITES_IN_FLIGHT_LIMIT.get().set(writes as f64);
}

/// A delivery was settled; its client had published it at `published_ms`. Clocks differ a little: a result from the
/// future counts as 0 s.
#[allow(clippy::cast_precision_loss, reason = "a histogram takes floats")]
pub fn record_settled(outcome: Outcome, published_ms: i64, now: Timestamp) {
    if let Outcome::Stored | Outcome::Unchanged | Outcome::Superseded = outcome {
        let took_ms = now.as_millisecond().saturating_sub(published_ms).max(0);
        c::PUBLISHED_TO_STORED_SECONDS
            .get()
            .record(took_ms as f64 / 1000.0);
    }
}

/// A request to write documents of `bytes` in all is sent.
#[allow(clippy::cast_precision_loss, reason = "a histogram takes floats")]
pub fn record_write(bytes: usize) {
    c::BATCH_BYTES.get().record(bytes as f64);
}

/// A document of `bytes` was written just now.
pub fn record_document(bytes: usize) {
    c::DOCUMENTS_WRITTEN.get().increment(1);
    c::DOCUMENT_BYTES_WRITTEN.get().increment(bytes as u64);
    LAST_WRITE_MS.store(Timestamp::now().as_millisecond(), Ordering::Relaxed);
}

/// When this process last wrote a document.
pub fn last_write() -> Option<Timestamp> {
    let at = LAST_WRITE_MS.load(Ordering::Relaxed);
    Timestamp::from_millisecond(at).ok().filter(|_| at > 0)
}

/// A document is about to be written again.
pub fn record_retry() {
    c::DOCUMENTS_RETRIED.get().increment(1);
}

/// The broker refused a login.
pub fn record_refused_login() {
    c::BROKER_LOGINS_REFUSED.get().increment(1);
}

/// Whether a client hears commands now.
pub fn record_listening(is_listening: bool) {
    let value = if is_listening { 1.0 } else { 0.0 };
    c::CLIENT_LISTENING.get().set(value);
}

/// A dead letter was published.
pub fn record_dead_letter(reason: &str) {
    let reason = DeadLetterReason::of_word(reason);
    c::DEAD_LETTERS.of(reason).increment(1);
}

/// `count` receipts were dropped or could not be published.
pub fn record_receipts_failed(count: usize) {
    c::RECEIPTS_FAILED.get().increment(count as u64);
}

/// Broker or store came back.
pub fn record_reconnect(part: Part) {
    c::RECONNECTS.of(part).increment(1);
}

/// A document conflicted.
pub fn record_conflict() {
    c::DOCUMENT_CONFLICTS.get().increment(1);
}

/// The store refused a document for good.
pub fn record_refusal() {
    c::DOCUMENTS_REFUSED.get().increment(1);
}

/// The store failed at one document; it is read and written again.
pub fn record_failed_row() {
    c::DOCUMENTS_FAILED.get().increment(1);
}

/// A document read back after a write of unknown outcome held the result.
pub fn record_read_back() {
    c::RESULTS_READ_BACK.get().increment(1);
}

/// The store refused a request as a whole, and the request was split.
pub fn record_split(reason: SplitReason) {
    c::STORE_REQUESTS_SPLIT.of(reason).increment(1);
}

/// A store request ended after `took`.
pub fn record_store_request<T>(kind: StoreRequest, took: Duration, answer: &Result<T, StoreError>) {
    let status = StoreStatus::of(answer);
    c::STORE_REQUESTS.of((kind, status)).increment(1);
    c::STORE_REQUEST_SECONDS.of(kind).record(took.as_secs_f64());
}

/// `count` receipts were published.
pub fn record_receipts(count: usize) {
    c::RECEIPTS.get().increment(count as u64);
}

/// The servers came to a new agreement.
pub fn record_rebalance() {
    c::REBALANCES.get().increment(1);
}

/// Whether broker or store can be used now.
pub fn record_up(part: Part, up: bool) {
    c::UP.of(part).set(f64::from(u8::from(up)));
}

/// Adds one to a gauge while it lives.
#[derive(Debug)]
pub struct CountedIn(&'static super::Gauge);

impl CountedIn {
    /// Adds one to `gauge`.
    pub fn new(gauge: &'static super::Gauge) -> Self {
        gauge.get().increment(1.0);
        Self(gauge)
    }
}

impl Drop for CountedIn {
    fn drop(&mut self) {
        self.0.get().decrement(1.0);
    }
}
