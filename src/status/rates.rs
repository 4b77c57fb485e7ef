//! Rates over the last seconds, from counters that only grow. Pure.
//!
//! Takes samples at intervals and gives differences per second. Invariant: at most `SAMPLES_MAX` samples are kept,
//! which span the longest window.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Pause between two samples.
pub const SAMPLE_EVERY: Duration = Duration::from_secs(2);
/// The short window.
pub const SHORT: Duration = Duration::from_secs(10);
/// The long window.
pub const LONG: Duration = Duration::from_mins(1);
/// Samples kept: those of the long window, including its start.
const SAMPLES_MAX: usize = 31;

/// The last samples of several counters.
#[derive(Debug, Default)]
pub struct Rates {
    samples: VecDeque<(Instant, Vec<f64>)>,
}

impl Rates {
    /// Adds a sample: the values of all counters, in the order of the indices of [`over`](Self::over).
    pub fn add(&mut self, at: Instant, values: Vec<f64>) {
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back((at, values));
    }

    /// Growth of counter `index` per second over the last `window`, or over the part of it that was sampled. None
    /// before there are two samples.
    pub fn over(&self, index: usize, window: Duration) -> Option<f64> {
        let (last, values) = self.samples.back()?;
        let since = |at: &Instant| last.saturating_duration_since(*at);
        let (first, before) = self.samples.iter().find(|(at, _)| since(at) <= window)?;
        let seconds = since(first).as_secs_f64();
        let grown = values.get(index)? - before.get(index)?;
        (seconds > 0.0).then_some(grown / seconds)
    }

    /// The last value of counter `index`.
    pub fn total(&self, index: usize) -> Option<f64> {
        self.samples.back()?.1.get(index).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a rate covers only its window, needs two samples, and memory is bounded.
    #[test]
    fn a_rate_is_that_of_its_window() {
        let start = Instant::now();
        let mut rates = Rates::default();
        assert_eq!(rates.over(0, SHORT), None);
        rates.add(start, vec![0.0]);
        assert_eq!(rates.over(0, SHORT), None, "one sample is no rate");
        // 10 a second for 90 seconds, then nothing for 10.
        for sample in 1..=50_u32 {
            let value = f64::from(sample.min(45)) * 20.0;
            rates.add(start + SAMPLE_EVERY * sample, vec![value]);
        }
        assert_eq!(rates.samples.len(), SAMPLES_MAX);
        assert_eq!(rates.over(0, SHORT), Some(0.0));
        let long = rates.over(0, LONG).unwrap();
        assert!((long - 500.0 / 60.0).abs() < 0.01, "{long}");
        assert_eq!((rates.total(0), rates.over(1, LONG)), (Some(900.0), None));
    }
}
