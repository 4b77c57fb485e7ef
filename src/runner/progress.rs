//! Progress of a run while it waits: a bar on a terminal, a few plain lines elsewhere.
//!
//! [`Milestones`] decides which lines to print; it is pure. Invariant: no escape sequence is written if the output is
//! not a terminal, or if `NO_COLOR` is set.

use std::io::Write;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{Counts, Run};

/// Lines per run: one at every tenth of the expected nodes.
const MILESTONES: usize = 10;

/// Shows how a run goes, on stderr.
#[derive(Debug)]
pub enum Progress {
    /// A moving bar.
    Bar(ProgressBar),
    /// A line at each milestone.
    Lines(Milestones),
    /// Nothing.
    Quiet,
}

impl Progress {
    /// A bar if stderr is a terminal that may be drawn on, lines otherwise.
    pub fn on_stderr(can_draw: bool) -> Self {
        if !can_draw {
            return Self::Lines(Milestones::default());
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} {elapsed}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self::Bar(bar)
    }

    /// Shows where the run is.
    pub fn update(&mut self, run: &Run) {
        let counts = run.counts();
        match self {
            Self::Bar(bar) => {
                let known = counts.expected.unwrap_or(0).max(counts.heard());
                bar.set_length(count(known));
                bar.set_position(count(counts.heard()));
                bar.set_message(in_words(counts));
            }
            Self::Lines(milestones) => {
                if let Some(line) = milestones.next(counts) {
                    // If stderr is gone, there is nobody left to tell.
                    writeln!(std::io::stderr(), "{line}").ok();
                }
            }
            Self::Quiet => {}
        }
    }

    /// Removes the bar, since the report follows.
    pub fn finish(&mut self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn count(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// `answered 3, failed 1`
fn in_words(counts: Counts) -> String {
    let parts = [
        ("answered", counts.answered),
        ("older", counts.older),
        ("failed", counts.failed),
        ("refused", counts.refused),
        ("expired", counts.expired),
        ("silent", counts.silent),
        ("unknown", counts.unknown),
    ];
    let parts = parts
        .into_iter()
        .filter(|(what, count)| *count > 0 || *what == "answered");
    parts
        .map(|(what, count)| format!("{what} {count}"))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Which lines to print: one at the start, one at every tenth of the expected nodes.
#[derive(Debug, Default)]
pub struct Milestones {
    started: bool,
    reached: usize,
}

impl Milestones {
    /// The line for these counts; none if they reach no new milestone.
    pub fn next(&mut self, counts: Counts) -> Option<String> {
        if !self.started {
            self.started = true;
            return Some(match counts.expected {
                None => "nobody can say who should answer: waiting for whoever does".to_owned(),
                Some(0) => "no node is known: waiting for whoever answers".to_owned(),
                Some(expected) => format!("waiting for answers, {expected} expected"),
            });
        }
        let heard = counts.heard();
        let reached = match counts.expected {
            Some(expected) if expected > 0 => heard * MILESTONES / expected,
            // Without an expected number, every doubling is worth a line.
            _ => heard.checked_ilog2().map_or(0, |log| log as usize + 1),
        };
        if reached <= self.reached {
            return None;
        }
        self.reached = reached;
        let of = counts
            .expected
            .map_or_else(String::new, |expected| format!(" of {expected}"));
        Some(format!("{heard}{of}: {}", in_words(counts)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(expected: Option<usize>, answered: usize, failed: usize) -> Counts {
        Counts {
            expected,
            answered,
            failed,
            ..Counts::default()
        }
    }

    /// Goal: a large run prints one line per tenth, not one per node.
    #[test]
    fn milestones_are_few() {
        let mut milestones = Milestones::default();
        let lines: Vec<_> = (0..=1000)
            .filter_map(|n| milestones.next(counts(Some(1000), n, 0)))
            .collect();
        assert_eq!(lines.len(), 11);
        assert_eq!(lines[0], "waiting for answers, 1000 expected");
        assert_eq!(lines[10], "1000 of 1000: answered 1000");
        let mut milestones = Milestones::default();
        let lines = (0..=1000).filter_map(|n| milestones.next(counts(None, n, 0)));
        assert!(lines.count() <= 12);
    }

    /// Goal: a line names what went wrong, and omits what did not happen.
    #[test]
    fn lines_say_what_went_wrong() {
        assert_eq!(in_words(counts(Some(5), 0, 2)), "answered 0, failed 2");
    }
}
