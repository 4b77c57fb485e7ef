//! Live progress on a terminal: rate, backlog, p99, what is open. Reads only; where nobody looks it shows nothing.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use tokio_util::sync::CancellationToken;

use crate::report::float;
use crate::run::Asked;
use crate::stats::Stats;
use crate::watch::sample::{Sample, Timeline};

const EVERY: Duration = Duration::from_millis(500);

/// Shows how it goes on stderr until `stop`.
pub(crate) async fn show(
    asked: &Asked<'_>,
    stats: &Stats,
    timeline: &Timeline,
    started: Instant,
    stop: &CancellationToken,
) {
    if asked.quiet || !std::io::stderr().is_terminal() {
        return;
    }
    let planned = asked.plan.length.results(asked.plan.ramp) as u64;
    let bar = ProgressBar::new(planned);
    let style = ProgressStyle::with_template("{elapsed_precise} {bar:30} {pos}/{len} {wide_msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let mut ticks = tokio::time::interval_at((started + EVERY).into(), EVERY);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        bar.set_position(stats.sent.get());
        bar.set_length(planned.max(stats.sent.get()));
        bar.set_message(message(&timeline.samples(), stats));
    }
    bar.finish_and_clear();
}

/// The last second in a line.
fn message(samples: &[Sample], stats: &Stats) -> String {
    let rate = match samples {
        [.., before, last] => {
            float(last.settled.saturating_sub(before.settled)) / (last.at - before.at).max(0.1)
        }
        _ => 0.0,
    };
    let last = samples.last();
    let or_away =
        |number: Option<u64>| number.map_or_else(|| "?".to_owned(), |number| number.to_string());
    let backlog = or_away(last.and_then(Sample::backlog));
    let p99 = stats.published_to_stored.quantile(0.99).unwrap_or_default();
    // Neither settled nor waiting anywhere: on the way, or lost. It must come back to 0.
    let open = last.and_then(|last| {
        Some(
            last.confirmed
                .saturating_sub(last.settled)
                .saturating_sub(last.backlog()?),
        )
    });
    format!(
        "{rate:.0}/s settled, backlog {backlog}, p99 {p99:.0?}, lost so far {}, tried again {}",
        or_away(open),
        stats.failed_publishes.get()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::sample;

    /// Goal: the line tells the last second's rate and backlog, and what is neither settled nor waiting.
    #[test]
    fn the_line_tells_the_last_second() {
        let stats = Stats::default();
        let before = sample(1.0, 100);
        let last = Sample {
            confirmed: 160,
            ready: Some(20),
            in_flight: Some(5),
            ..sample(2.0, 130)
        };
        let text = message(&[before, last.clone()], &stats);
        assert!(text.starts_with("30/s settled, backlog 25,"), "{text}");
        assert!(text.contains("lost so far 5,"), "{text}");
        let away = Sample {
            ready: None,
            ..last
        };
        assert!(message(&[away], &stats).contains("backlog ?"));
    }
}
