//! What the sampler, the terminal and the report read while the load runs.
//!
//! The fleet counts here; everybody else only reads. Latency is counted from the time a result was due, so that a slow
//! tester or broker cannot hide a slow server (no coordinated omission).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use vogeler::wire::Outcome;

/// Longest time that the histograms tell apart, in microseconds: 1 h. Longer times count as this.
const MICROS_MAX: u64 = 3_600_000_000;
/// Significant digits of a time.
const DIGITS: u8 = 3;

/// Live counts of a run. All times are from when the result was due.
#[derive(Debug)]
pub(crate) struct Stats {
    /// Messages that clients had to send so far, copies and poison included.
    pub(crate) due: Count,
    /// Messages handed to a connection, copies and poison included.
    pub(crate) sent: Count,
    /// Messages that the broker confirmed.
    pub(crate) confirmed: Count,
    /// Tries to publish that failed; each is tried again.
    pub(crate) failed_publishes: Count,
    /// Messages given up at the end without a confirm.
    pub(crate) unconfirmed: Count,
    /// Messages of the plan that the tester itself had no room for: it was the bottleneck.
    pub(crate) dropped: Count,
    /// Clients whose start is over.
    pub(crate) clients: Count,
    settled: [Count; Outcome::ALL.len()],
    /// Until the broker confirmed.
    pub(crate) publish_to_confirmed: Latency,
    /// Until the server's receipt came: an upper bound, since receipts wait `server.receipt_linger` for company.
    pub(crate) published_to_stored: Latency,
    /// Until the tester had made the message.
    pub(crate) tester_lag: Latency,
    /// How long the tester's timers waited for their turn; also measured where no light client has a lag.
    pub(crate) timer_lag: Latency,
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            due: Count::default(),
            sent: Count::default(),
            confirmed: Count::default(),
            failed_publishes: Count::default(),
            unconfirmed: Count::default(),
            dropped: Count::default(),
            clients: Count::default(),
            settled: Default::default(),
            publish_to_confirmed: Latency::new(),
            published_to_stored: Latency::new(),
            tester_lag: Latency::new(),
            timer_lag: Latency::new(),
        }
    }
}

impl Stats {
    /// Messages that wait in the clients: due, and not confirmed.
    pub(crate) fn waiting(&self) -> u64 {
        self.due.get().saturating_sub(self.confirmed.get())
    }

    /// A receipt came.
    pub(crate) fn settle(&self, outcome: Outcome) {
        if let Some(count) = self.settled.get(outcome as usize) {
            count.add();
        }
    }

    /// Receipts of this outcome.
    pub(crate) fn settled_as(&self, outcome: Outcome) -> u64 {
        self.settled.get(outcome as usize).map_or(0, Count::get)
    }

    /// All receipts.
    pub(crate) fn settled(&self) -> u64 {
        self.settled.iter().map(Count::get).sum()
    }
}

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    /// One more.
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// How many.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Times, in a high dynamic range histogram of microseconds.
#[derive(Debug)]
pub(crate) struct Latency(Mutex<Histogram<u64>>);

impl Latency {
    fn new() -> Self {
        // These bounds are valid. If they were not, an empty histogram that records nothing would do.
        let histogram =
            Histogram::new_with_bounds(1, MICROS_MAX, DIGITS).or_else(|_| Histogram::new(DIGITS));
        Self(Mutex::new(histogram.unwrap_or_else(|_| unreachable!())))
    }

    /// Records one time.
    pub(crate) fn record(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(MICROS_MAX);
        self.lock().saturating_record(micros.clamp(1, MICROS_MAX));
    }

    /// All times so far, for quantiles.
    pub(crate) fn snapshot(&self) -> Histogram<u64> {
        self.lock().clone()
    }

    /// The time that this share of all times is within; none before the first one.
    pub(crate) fn quantile(&self, share: f64) -> Option<Duration> {
        let histogram = self.lock();
        (!histogram.is_empty()).then(|| Duration::from_micros(histogram.value_at_quantile(share)))
    }

    fn lock(&self) -> MutexGuard<'_, Histogram<u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the server's own counters say at the end, summed over its lives.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct ServerCounts {
    /// `vogeler_results_received_total`.
    pub(crate) received: u64,
    /// `vogeler_results_total` by outcome, in the order of [`Outcome::ALL`].
    pub(crate) ended: [u64; Outcome::ALL.len()],
    /// `vogeler_results_in_flight` at the last look.
    pub(crate) in_flight: u64,
    /// `vogeler_results_redelivered_total`.
    pub(crate) redelivered: u64,
    /// `vogeler_documents_written_total`.
    pub(crate) documents_written: u64,
    /// `vogeler_receipts_failed_total`: receipts that the server gave up because its queue was full or the broker away.
    pub(crate) receipts_failed: u64,
    /// Whether every count of every life is in here: false once a server was killed, since its counts after the last
    /// look are gone, and false for a server that others load, too.
    pub(crate) is_complete: bool,
}

impl ServerCounts {
    /// Deliveries that ended with this outcome.
    pub(crate) fn of(&self, outcome: Outcome) -> u64 {
        self.ended
            .get(outcome as usize)
            .copied()
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: quantiles are of what was recorded, and a time longer than an hour counts as an hour.
    #[test]
    fn quantiles_are_of_what_was_recorded() {
        let latency = Latency::new();
        assert_eq!(latency.quantile(0.5), None);
        for millis in 1..=100 {
            latency.record(Duration::from_millis(millis));
        }
        latency.record(Duration::from_hours(30));
        let half = latency.quantile(0.5).unwrap();
        assert!((50..=52).contains(&half.as_millis()), "{half:?}");
        assert!(latency.quantile(1.0).unwrap() >= Duration::from_mins(59));
    }
}
