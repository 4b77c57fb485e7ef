//! Live progress on stderr: current phase, rate, backlog, what may be lost, p99, and faults as they begin and end.
//!
//! On a terminal it is one line that stays in its place; elsewhere it prints a plain line when something changes, and
//! every [`LINE_EVERY`]. Invariant: it only reads, and is never silent for long unless it was asked to be.

use std::fmt::Write;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use tokio_util::sync::CancellationToken;

use crate::complain;
use crate::fleet::Fleet;
use crate::report::float;
use crate::report::layout::{count, time};
use crate::stats::Stats;
use crate::watch::sample::{FaultEvent, Sample, Timeline};

const EVERY: Duration = Duration::from_millis(500);
/// Time between two plain lines, where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Where it is shown.
#[derive(Debug)]
enum Output {
    /// Nobody looks.
    Nowhere,
    /// On a terminal.
    Terminal(ProgressBar),
    /// In a file or a pipe.
    Lines,
}

/// What is shown while a run goes on.
#[derive(Debug)]
pub(crate) struct Progress(Output);

impl Progress {
    /// Begins with the start of the services.
    pub(crate) fn new(is_quiet: bool) -> Self {
        let progress = Self(match (is_quiet, std::io::stderr().is_terminal()) {
            (true, _) => Output::Nowhere,
            (false, false) => Output::Lines,
            (false, true) => {
                let style = ProgressStyle::with_template("{clock} {wide_msg}");
                let style = style.unwrap_or_else(|_| ProgressStyle::default_spinner());
                let style = style.with_key("clock", clock);
                let bar = ProgressBar::new_spinner().with_style(style);
                bar.enable_steady_tick(EVERY);
                Output::Terminal(bar)
            }
        });
        progress.phase("starting the services");
        progress
    }

    /// Something begins that has nothing to count.
    pub(crate) fn phase(&self, what: &str) {
        match &self.0 {
            Output::Nowhere => {}
            Output::Terminal(bar) => bar.set_message(what.to_owned()),
            Output::Lines => complain(what),
        }
    }

    /// The last phase: its line stays as it is.
    pub(crate) fn last_phase(&self, what: &str) {
        if let Output::Terminal(bar) = &self.0 {
            bar.finish_and_clear();
            complain(what);
        } else {
            self.phase(what);
        }
    }

    /// Shows the load until `stop`.
    pub(crate) async fn load(
        &self,
        fleet: &Fleet,
        timeline: &Timeline,
        started: Instant,
        stop: &CancellationToken,
    ) {
        if let Output::Terminal(bar) = &self.0 {
            bar.reset_elapsed();
        }
        let (mut known, mut told) = (0, None);
        let mut ticks = tokio::time::interval_at((started + EVERY).into(), EVERY);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let events = timeline.faults();
            for event in events.iter().skip(known) {
                self.event(event);
            }
            known = events.len();
            let phase = phase(fleet, started.elapsed(), &events);
            let redelivers = fleet.plan.redelivers();
            let message = message(&timeline.latest(), &fleet.stats, redelivers);
            let message = format!("{phase}  {message}");
            match &self.0 {
                Output::Nowhere => {}
                Output::Terminal(bar) => bar.set_message(message),
                Output::Lines => {
                    if told.is_none_or(|told: Instant| told.elapsed() >= LINE_EVERY) {
                        told = Some(Instant::now());
                        complain(&format!(
                            "{:>6.1} s  {message}",
                            started.elapsed().as_secs_f64()
                        ));
                    }
                }
            }
        }
    }

    fn event(&self, event: &FaultEvent) {
        let verb = if event.is_over { "is over" } else { "begins" };
        let line = format!("{:>6.1} s  {} {verb}", event.at, event.name);
        match &self.0 {
            Output::Nowhere => {}
            Output::Terminal(bar) => bar.println(line),
            Output::Lines => complain(&line),
        }
    }
}

/// Minutes and seconds: short, so that everything that matters fits beside them.
fn clock(state: &ProgressState, to: &mut dyn Write) {
    let seconds = state.elapsed().as_secs();
    // Nobody could do anything about an error.
    write!(to, "{:>3}:{:02}", seconds / 60, seconds % 60).ok();
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Output::Terminal(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// The phase, and how much of the schedule was due: `load 41 %`, `kill_server, load 41 %`.
fn phase(fleet: &Fleet, elapsed: Duration, events: &[FaultEvent]) -> String {
    let sendings = &fleet.schedule.sendings;
    let last = sendings.last().map_or(0, |sending| sending.at);
    if elapsed > Duration::from_micros(last) {
        return among(events, "settling");
    }
    let name = if elapsed < fleet.plan.ramp {
        "ramp"
    } else {
        "load"
    };
    let due = sendings.partition_point(|sending| u128::from(sending.at) <= elapsed.as_micros());
    let percent = due * 100 / sendings.len().max(1);
    among(events, &format!("{name} {percent} %"))
}

/// The phase, behind the names of the faults under way.
fn among(events: &[FaultEvent], phase: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for event in events {
        if event.is_over {
            names.retain(|name| *name != event.name);
        } else {
            names.push(event.name);
        }
    }
    names.push(phase);
    names.join(", ")
}

/// The last second in a line; what matters least comes last, where a narrow terminal cuts.
fn message(samples: &[Sample], stats: &Stats, redelivers: bool) -> String {
    let rate = match samples {
        [.., before, last] => {
            float(last.settled.saturating_sub(before.settled)) / (last.at - before.at).max(0.1)
        }
        _ => 0.0,
    };
    let last = samples.last();
    let backlog = last.map_or_else(
        || "?".to_owned(),
        |last| match last.backlog() {
            Some(backlog) => count(backlog),
            None => format!("{}+", count(last.waiting)),
        },
    );
    let lost = match last.and_then(Sample::lost) {
        None => "?".to_owned(),
        // A killed server's unsent receipts are gone, too, so this is an upper bound: the store knows better, and the
        // verifier will.
        Some(lost) if lost > 0 && redelivers => format!("{} at most", count(lost)),
        Some(lost) => count(lost),
    };
    let p99 = stats.published_to_stored.quantile(0.99);
    let p99 = p99.map_or_else(|| "?".to_owned(), |p99| time(p99.as_secs_f64() * 1e3));
    let again = match stats.failed_publishes.get() {
        0 => String::new(),
        again => format!("  tried again {}", count(again)),
    };
    format!("{rate:.0}/s  backlog {backlog}  lost so far {lost}  p99 {p99}{again}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::sample;

    /// Goal: the line tells the last second's rate, everything that waits, and what is overdue and waits nowhere.
    #[test]
    fn the_line_tells_the_last_second() {
        let stats = Stats::default();
        let last = Sample {
            waiting: 7,
            overdue: 40,
            ready: Some(20),
            in_flight: Some(5),
            ..sample(2.0, 130)
        };
        let line = |last: &Sample, redelivers| {
            message(&[sample(1.0, 100), last.clone()], &stats, redelivers)
        };
        let text = line(&last, false);
        assert_eq!(text, "30/s  backlog 32  lost so far 15  p99 ?");
        assert!(line(&last, true).contains("lost so far 15 at most"));
        let away = Sample {
            ready: None,
            ..last.clone()
        };
        let text = line(&away, false);
        assert!(text.contains("backlog 7+  lost so far ?"), "{text}");
        let waiting = Sample {
            ready: Some(60),
            ..last
        };
        assert!(line(&waiting, true).contains("lost so far 0 "));
    }

    /// Goal: the faults under way are named, each once, until they are over.
    #[test]
    fn faults_under_way_are_named() {
        let event = |name, is_over| FaultEvent {
            name,
            is_over,
            at: 1.0,
        };
        let mut events = vec![event("kill_server", false), event("stop_store", false)];
        assert_eq!(among(&events, "load"), "kill_server, stop_store, load");
        events.push(event("kill_server", true));
        assert_eq!(among(&events, "load"), "stop_store, load");
        events.push(event("stop_store", true));
        assert_eq!(among(&events, "settling"), "settling");
        events.push(event("kill_server", false));
        assert_eq!(among(&events, "load"), "kill_server, load");
    }
}
