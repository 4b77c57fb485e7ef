//! The lines of the plots: samples in, points out. What was not measured is a gap.

use super::float;
use crate::watch::sample::{Sample, WATCHED};

/// A rate is taken over at least this many seconds: samples come at odd times when a service answers late.
const RATE_SECONDS_MIN: f64 = 0.9;
/// The smallest time on the logarithmic axis, which has no 0.
pub(super) const MILLIS_MIN: f64 = 0.1;

/// A line: its name, and its pieces between the gaps.
pub(super) type Line = (String, Vec<Vec<(f64, f64)>>);

pub(super) fn rates(timeline: &[Sample]) -> Vec<Line> {
    let rate = |name: &str, count: fn(&Sample) -> u64| {
        let points = timeline.iter().enumerate().filter_map(|(index, to)| {
            let is_before = |from: &&Sample| to.at - from.at >= RATE_SECONDS_MIN;
            let from = timeline[..index].iter().rev().find(is_before)?;
            let grown = float(count(to).saturating_sub(count(from)));
            Some((to.at, Some(grown / (to.at - from.at))))
        });
        line(name, points)
    };
    vec![
        rate("sent", |sample| sample.sent),
        rate("confirmed", |sample| sample.confirmed),
        rate("settled", |sample| sample.settled),
        rate("documents written", |sample| sample.documents),
    ]
}

pub(super) fn lags(timeline: &[Sample]) -> Vec<Line> {
    let of = |name: &str, value: fn(&Sample) -> Option<f64>| {
        line(
            name,
            timeline.iter().map(|sample| {
                (
                    sample.at,
                    value(sample).map(|millis| millis.max(MILLIS_MIN)),
                )
            }),
        )
    };
    vec![
        of("stored, p50", |sample| Some(sample.stored_ms?[0])),
        of("stored, p99", |sample| Some(sample.stored_ms?[1])),
        of("lag of the tester, p99", |sample| sample.tester_lag_ms),
        of("its timers, p99", |sample| sample.timer_lag_ms),
    ]
}

pub(super) fn depths(timeline: &[Sample]) -> Vec<Line> {
    let of = |name: &str, value: fn(&Sample) -> Option<u64>| {
        line(
            name,
            timeline
                .iter()
                .map(|sample| (sample.at, value(sample).map(float))),
        )
    };
    vec![
        of("waiting in the clients", |sample| Some(sample.waiting)),
        of("waiting in the queues", |sample| sample.ready),
        of("held by the server", |sample| sample.in_flight),
    ]
}

pub(super) fn cpus(timeline: &[Sample]) -> Vec<Line> {
    let one = |(index, who): (usize, &&str)| {
        line(
            who,
            timeline.windows(2).map(|pair| {
                let used = pair[1].usage[index].zip(pair[0].usage[index]);
                let cores =
                    used.and_then(|(now, before)| now.cores_since(before, pair[1].at - pair[0].at));
                (pair[1].at, cores)
            }),
        )
    };
    WATCHED.iter().enumerate().map(one).collect()
}

/// Splits points with gaps into pieces without.
fn line(name: &str, points: impl Iterator<Item = (f64, Option<f64>)>) -> Line {
    let mut pieces = vec![Vec::new()];
    for (at, value) in points {
        match (value, pieces.last_mut()) {
            (Some(value), Some(piece)) => piece.push((at, value)),
            _ => pieces.push(Vec::new()),
        }
    }
    pieces.retain(|piece| !piece.is_empty());
    (name.to_owned(), pieces)
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;

    /// Goal: what was not measured is a gap in the line.
    #[test]
    fn what_is_unknown_is_a_gap() {
        let mut timeline: Vec<Sample> =
            (0..5).map(|second| sample(float(second), second)).collect();
        timeline[2].ready = None;
        let (name, pieces) = depths(&timeline).remove(1);
        assert_eq!(name, "waiting in the queues");
        assert_eq!(
            pieces,
            [vec![(0.0, 0.0), (1.0, 0.0)], vec![(3.0, 0.0), (4.0, 0.0)]]
        );
    }
}
