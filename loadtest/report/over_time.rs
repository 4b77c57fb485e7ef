//! What a run's samples tell together: rates over seconds, and when a backlog was gone. Pure.

use super::float;
use crate::faults::FaultRecord;
use crate::watch::sample::Sample;

/// Seconds that a peak rate is taken over.
const PEAK_SECONDS: f64 = 10.0;

/// `part` divided by `of`; 0 if `of` is 0.
pub(super) fn ratio(part: f64, of: f64) -> f64 {
    if of > 0.0 { part / of } else { 0.0 }
}

/// The best rate of any ten seconds, or of the whole if it is shorter.
pub(super) fn peak(timeline: &[Sample]) -> f64 {
    busiest(timeline, |sample| Some(float(sample.settled))).unwrap_or(0.0)
}

/// The largest growth of a count per second, over any ten seconds, or over the whole run if it is shorter. None if the
/// count was not seen twice.
pub(super) fn busiest(timeline: &[Sample], count: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
    let seen: Vec<(f64, f64)> = timeline
        .iter()
        .filter_map(|sample| Some((sample.at, count(sample)?)))
        .collect();
    let rate = |from: (f64, f64), to: (f64, f64)| ratio((to.1 - from.1).max(0.0), to.0 - from.0);
    let later = seen.iter().enumerate().filter_map(|(index, from)| {
        let to = seen[index..]
            .iter()
            .find(|to| to.0 - from.0 >= PEAK_SECONDS - 0.5)?;
        Some(rate(*from, *to))
    });
    let whole = || match seen[..] {
        [first, .., last] => Some(rate(first, last)),
        _ => None,
    };
    later.max_by(f64::total_cmp).or_else(whole)
}

/// Seconds from the end of a fault until the backlog was at most what it was before, or what is always under way. If
/// other faults begin before that, the seconds count from the end of the last of them: nobody recovers during a fault.
pub(super) fn recovery(
    fault: &FaultRecord,
    faults: &[FaultRecord],
    timeline: &[Sample],
    under_way: f64,
) -> Option<f64> {
    let before = timeline
        .iter()
        .rev()
        .find(|sample| sample.at <= fault.began);
    let before = before.and_then(Sample::backlog).map_or(0.0, float);
    let normal = before.max(under_way);
    let mut ended = fault.ended;
    loop {
        let over = normal_at(ended, timeline, normal)?;
        let later = faults
            .iter()
            .filter(|other| other.began >= fault.began && other.began <= over)
            .map(|other| other.ended)
            .fold(ended, f64::max);
        if later <= ended {
            return Some(over - ended);
        }
        ended = later;
    }
}

/// When the backlog was normal again. A second sample in a row must agree: just after a restart a queue may look empty.
fn normal_at(ended: f64, timeline: &[Sample], normal: f64) -> Option<f64> {
    let is_normal = |sample: &Sample| {
        sample
            .backlog()
            .is_some_and(|backlog| float(backlog) <= normal)
    };
    let from = timeline.partition_point(|sample| sample.at < ended);
    let after = &timeline[from..];
    let found = after
        .iter()
        .enumerate()
        .find(|(index, sample)| is_normal(sample) && after.get(index + 1).is_none_or(is_normal));
    found.map(|(_, sample)| sample.at)
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;

    /// Goal: recovery ends when the backlog stays down, and is none if it never does.
    #[test]
    fn recovery_waits_for_the_backlog() {
        let fault = FaultRecord {
            kind: "kill_server".to_owned(),
            began: 2.5,
            ended: 4.5,
        };
        let backlog = |at: f64, ready: u64| Sample {
            ready: Some(ready),
            in_flight: Some(0),
            ..sample(at, 0)
        };
        let mut timeline = vec![backlog(1.0, 5), backlog(2.0, 50), backlog(3.0, 900)];
        // A queue that looks empty for a moment.
        timeline.extend([
            backlog(5.0, 0),
            backlog(6.0, 800),
            backlog(7.0, 90),
            backlog(8.0, 20),
        ]);
        assert_eq!(recovery(&fault, &[], &timeline, 100.0), Some(2.5));
        assert_eq!(recovery(&fault, &[], &timeline, 0.0), Some(3.5));
        assert_eq!(recovery(&fault, &[], &timeline[..5], 10.0), None);
    }

    /// Goal: recovery includes what waits in the clients: an outage of the broker leaves nothing in its queues.
    #[test]
    fn recovery_waits_for_the_clients() {
        let fault = FaultRecord {
            kind: "cut_broker".to_owned(),
            began: 2.5,
            ended: 4.5,
        };
        let waiting = |at: f64, waiting: u64| Sample {
            waiting,
            ..sample(at, 0)
        };
        let mut timeline: Vec<Sample> = (1..=2).map(|at| waiting(float(at), 3)).collect();
        timeline.extend(
            [(5, 12_000), (6, 7_000), (7, 900), (8, 40), (9, 2)]
                .map(|(at, left)| waiting(float(at), left)),
        );
        assert_eq!(recovery(&fault, &[], &timeline, 100.0), Some(3.5));
    }

    /// Goal: a fault that begins during the recovery from an earlier one is not held against the earlier one.
    #[test]
    fn recovery_is_not_counted_during_a_fault() {
        let fault = |began, ended| FaultRecord {
            kind: "kill_server".to_owned(),
            began,
            ended,
        };
        let backlog = |(at, ready): (u64, u64)| Sample {
            ready: Some(ready),
            ..sample(float(at), 0)
        };
        let timeline = [
            (1, 0),
            (3, 90),
            (5, 80),
            (8, 99),
            (12, 70),
            (14, 0),
            (15, 0),
        ]
        .map(backlog);
        let faults = [fault(2.0, 4.0), fault(6.0, 10.0), fault(20.0, 21.0)];
        assert_eq!(
            recovery(&faults[0], &faults[..1], &timeline, 1.0),
            Some(10.0)
        );
        assert_eq!(recovery(&faults[0], &faults, &timeline, 1.0), Some(4.0));
    }

    /// Goal: a peak is the best of ten seconds, or the mean of a shorter run.
    #[test]
    fn a_peak_is_the_best_of_ten_seconds() {
        let line = |rates: &[u64]| -> Vec<Sample> {
            let mut settled = 0;
            let second = |(second, rate): (usize, &u64)| {
                settled += rate;
                sample(float(second as u64), settled)
            };
            rates.iter().enumerate().map(second).collect()
        };
        assert!((peak(&line(&[0, 10, 10, 10])) - 10.0).abs() < 0.01);
        let mut rates = vec![10; 30];
        rates.extend([100; 11]);
        assert!((peak(&line(&rates)) - 100.0).abs() < 0.01);
        assert!(peak(&[]).abs() < 0.01);
        assert_eq!(busiest(&line(&[10; 30]), |_| None), None);
        // A last sample a moment after the one before is no burst.
        let mut line = line(&[10; 12]);
        line.push(sample(11.001, 140));
        assert!(peak(&line) < 13.0, "{}", peak(&line));
    }
}
