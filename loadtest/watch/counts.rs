//! The server's own counters: its `/metrics` parsed, and summed over its lives.
//!
//! After a kill a server counts from 0, and what it counted since the last scrape is not known. Invariant: sums are
//! called complete only if nothing can be missing from them, and they hold nothing of others.

use vogeler::wire::Outcome;

use crate::stats::ServerCounts;

/// The counts of one scrape; none if this is no scrape of a server that ingests.
pub(crate) fn parse(text: &str) -> Option<ServerCounts> {
    let mut counts = ServerCounts::default();
    let mut is_server = false;
    for (series, value) in text.lines().filter_map(series) {
        match series.split('{').next().unwrap_or(series) {
            "vogeler_results_received_total" => {
                is_server = true;
                counts.received += value;
            }
            "vogeler_results_total" => {
                let label = |outcome: &Outcome| {
                    series.contains(&format!("outcome=\"{}\"", outcome.as_str()))
                };
                let outcome = Outcome::ALL.iter().find(|outcome| label(outcome));
                if let Some(count) =
                    outcome.and_then(|outcome| counts.ended.get_mut(*outcome as usize))
                {
                    *count += value;
                }
            }
            "vogeler_results_in_flight" => counts.in_flight += value,
            "vogeler_results_redelivered_total" => counts.redelivered += value,
            "vogeler_documents_written_total" => counts.documents_written += value,
            "vogeler_receipts_failed_total" => counts.receipts_failed += value,
            _ => {}
        }
    }
    is_server.then_some(counts)
}

/// `name{labels}` and value of a line, if it counts something.
fn series(line: &str) -> Option<(&str, u64)> {
    let (series, value) = line.rsplit_once(' ')?;
    let value: f64 = value.parse().ok()?;
    let is_count = !line.starts_with('#') && value.is_finite() && value >= 0.0;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a count"
    )]
    is_count.then_some((series, value as u64))
}

/// Deliveries that ended for good, so without those given back: they come again.
pub(crate) fn settled(counts: &ServerCounts) -> u64 {
    let ended = Outcome::ALL
        .into_iter()
        .filter(|outcome| *outcome != Outcome::Requeued);
    ended.map(|outcome| counts.of(outcome)).sum()
}

/// The counts over all lives of the server, from one scrape after the other.
#[derive(Debug)]
pub(crate) struct Lives {
    /// Whether the run started the server: only then all that it counts is the run's.
    is_own: bool,
    /// The counts before the run.
    before: Option<ServerCounts>,
    ended: ServerCounts,
    current: ServerCounts,
    number: u64,
    is_up: bool,
}

impl Lives {
    /// Nothing was seen yet.
    pub(crate) fn new(is_own: bool) -> Self {
        Self {
            is_own,
            before: None,
            ended: ServerCounts::default(),
            current: ServerCounts::default(),
            number: 0,
            is_up: false,
        }
    }

    /// The number of this life; the caller names it with the scrape that it asks for now.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Notes what life `number` answered; none means that it did not answer. An answer that comes after the end of its
    /// life is ignored. A server that received less than before is a new one, whoever started it.
    pub(crate) fn see(&mut self, number: u64, scrape: Option<ServerCounts>) {
        if number != self.number {
            return;
        }
        self.is_up = scrape.is_some();
        let Some(scrape) = scrape else { return };
        if scrape.received < self.current.received {
            self.end();
            self.is_up = true;
        }
        self.before.get_or_insert_with(|| ServerCounts {
            // What the server holds when the run begins ends during the run.
            received: scrape.received.saturating_sub(scrape.in_flight),
            ..scrape.clone()
        });
        self.current = scrape;
    }

    /// The server was killed: the next answer is a new server's. What was in flight counts as given back, since the
    /// broker has it again. So the accounting identity holds over all lives, as it does in each.
    pub(crate) fn end(&mut self) {
        if let Some(requeued) = self.current.ended.get_mut(Outcome::Requeued as usize) {
            *requeued += self.current.in_flight;
        }
        self.ended = plus(&self.ended, &self.current);
        self.current = ServerCounts::default();
        self.is_up = false;
        self.number += 1;
    }

    /// Whether the last scrape was answered.
    pub(crate) fn is_up(&self) -> bool {
        self.is_up
    }

    /// Times that the server was started again.
    pub(crate) fn restarts(&self) -> u64 {
        self.number
    }

    /// All that was counted during the run.
    pub(crate) fn total(&self) -> ServerCounts {
        let before = self.before.clone().unwrap_or_default();
        let mut total = minus(&plus(&self.ended, &self.current), &before);
        total.in_flight = self.current.in_flight;
        total.is_complete = self.is_own && self.number == 0;
        total
    }
}

fn plus(one: &ServerCounts, other: &ServerCounts) -> ServerCounts {
    each(one, other, u64::saturating_add)
}

fn minus(one: &ServerCounts, other: &ServerCounts) -> ServerCounts {
    each(one, other, u64::saturating_sub)
}

fn each(one: &ServerCounts, other: &ServerCounts, op: fn(u64, u64) -> u64) -> ServerCounts {
    let mut ended = one.ended;
    for (count, other) in ended.iter_mut().zip(other.ended) {
        *count = op(*count, other);
    }
    ServerCounts {
        received: op(one.received, other.received),
        ended,
        in_flight: 0,
        redelivered: op(one.redelivered, other.redelivered),
        documents_written: op(one.documents_written, other.documents_written),
        receipts_failed: op(one.receipts_failed, other.receipts_failed),
        is_complete: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scrape(received: u64, stored: u64) -> ServerCounts {
        let text = format!(
            "# HELP vogeler_results_total x\nvogeler_results_received_total {received}\n\
             vogeler_results_total{{outcome=\"stored\"}} {stored}\nvogeler_results_total{{outcome=\"requeued\"}} 1\n\
             vogeler_results_in_flight {}\n",
            received - stored - 1
        );
        parse(&text).unwrap()
    }

    /// Goal: the series are found, with and without labels; other text is no scrape.
    #[test]
    fn a_scrape_is_parsed() {
        let counts = scrape(10, 7);
        assert_eq!(
            (counts.received, settled(&counts), counts.in_flight),
            (10, 7, 2)
        );
        assert_eq!(counts.of(Outcome::Requeued), 1);
        assert_eq!(parse("502 Bad Gateway"), None);
    }

    /// Goal: counts add up over a kill, without what was counted before the run, and are no longer complete.
    #[test]
    fn lives_add_up() {
        let mut lives = Lives::new(true);
        lives.see(0, Some(scrape(5, 4)));
        lives.see(0, Some(scrape(105, 100)));
        assert!(lives.total().is_complete);
        lives.end();
        // The answer of the killed server comes late.
        lives.see(0, Some(scrape(106, 100)));
        lives.see(1, Some(scrape(20, 10)));
        let total = lives.total();
        assert_eq!(
            (total.received, total.of(Outcome::Stored), lives.restarts()),
            (120, 106, 1)
        );
        assert_eq!(total.in_flight, 9);
        assert!(!total.is_complete);
        // What the killed server held is accounted for.
        let ended: u64 = total.ended.iter().sum();
        assert_eq!(total.received, ended + total.in_flight);
    }

    /// Goal: a count that fell reveals a restart that nobody announced.
    #[test]
    fn an_unannounced_restart_is_seen() {
        let mut lives = Lives::new(false);
        lives.see(0, Some(scrape(2, 0)));
        lives.see(0, Some(scrape(100, 90)));
        lives.see(0, Some(scrape(30, 20)));
        // Two deliveries came before the run; one of them was in flight when the run began, and ended in it.
        let total = lives.total();
        assert_eq!((total.received, lives.restarts()), (129, 1));
        let ended: u64 = total.ended.iter().sum();
        assert_eq!(total.received, ended + total.in_flight);
    }
}
