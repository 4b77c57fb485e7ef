//! How late things are: a beat that notes how late timers are, and quantiles of what was noted since the last look.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio_util::sync::CancellationToken;

use crate::stats::Stats;

/// Pause between two looks at how late timers are: short enough that one hiccup of a busy machine does not make the
/// 99th of 100.
const BEAT: Duration = Duration::from_millis(20);

/// Notes how late each tick of a timer is. A late tick also delays those behind it, and each of them is noted, as an
/// open loop would.
pub(super) async fn beat(stats: Arc<Stats>, started: Instant, stop: CancellationToken) {
    let mut ticks = tokio::time::interval_at((started + BEAT).into(), BEAT);
    while let Some(due) = stop.run_until_cancelled(ticks.tick()).await {
        stats.timer_lag.record(due.elapsed());
    }
}

/// Quantiles of what was recorded since the last look.
#[derive(Debug, Default)]
pub(super) struct Interval(Option<Histogram<u64>>);

impl Interval {
    /// The median and the 99th percentile of the new times, in ms.
    pub(super) fn next(&mut self, now: Histogram<u64>) -> Option<[f64; 2]> {
        let mut since = now.clone();
        if let Some(before) = self.0.replace(now)
            && since.subtract(before).is_err()
        {
            return None;
        }
        let millis = |share| crate::report::millis(since.value_at_quantile(share));
        (!since.is_empty()).then(|| [millis(0.5), millis(0.99)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the quantiles of a second are of that second alone.
    #[test]
    fn an_interval_forgets_what_was_before() {
        let latency = crate::stats::Stats::default().tester_lag;
        let mut interval = Interval::default();
        assert_eq!(interval.next(latency.snapshot()), None);
        latency.record(Duration::from_secs(10));
        assert!(interval.next(latency.snapshot()).unwrap()[0] > 9_900.0);
        latency.record(Duration::from_millis(5));
        let [half, most] = interval.next(latency.snapshot()).unwrap();
        assert!(
            (4.9..5.1).contains(&half) && (4.9..5.1).contains(&most),
            "{half} {most}"
        );
        assert_eq!(interval.next(latency.snapshot()), None);
    }
}
