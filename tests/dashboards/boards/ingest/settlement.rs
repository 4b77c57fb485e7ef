//! What becomes of deliveries: outcomes, receipts, dead letters.

use super::super::Row;
use super::super::panel::graph;
use super::super::query::{max, max_by, mean, quantile, rate, rate_by};
use super::{SERVERS, row};

pub(super) fn settlement() -> Row {
    row(
        "Settlement and receipts",
        SERVERS,
        vec![
            graph("Outcomes", "reqps", "Deliveries that ended, by outcome.")
                .ask(rate_by("outcome", "vogeler_results_total"), "{{outcome}}"),
            graph("Published to stored", "s", "From the client's publish until the result is settled as stored, superseded or unchanged.")
                .ask(quantile(0.5, "", "vogeler_published_to_stored_seconds"), "p50")
                .ask(quantile(0.99, "", "vogeler_published_to_stored_seconds"), "p99")
                .ask(mean("vogeler_published_to_stored_seconds"), "mean")
                .worse_from(60.0, 300.0)
                .runbook("VogelerLate"),
            graph("In flight", "short", "Deliveries neither settled nor given back.")
                .ask(max_by("instance", "vogeler_results_in_flight"), "{{instance}}"),
            graph("Receipts", "reqps", "Receipts sent to runners, and those that could not be sent (the runner then waits in vain; nothing is lost).")
                .ask(rate("vogeler_receipts_total"), "sent")
                .ask(rate("vogeler_receipts_failed_total"), "failed"),
        ],
    )
}

pub(super) fn dead_letters() -> Row {
    row(
        "Dead letters",
        SERVERS,
        vec![
            graph(
                "Dead letters",
                "reqps",
                "Messages that went to vogeler.dead, by reason.",
            )
            .ask(
                rate_by("reason", "vogeler_dead_letters_total"),
                "{{reason}}",
            )
            .columns(8)
            .runbook("VogelerDeadLetters"),
            graph(
                "Waiting in vogeler.dead",
                "short",
                "Dead letters that nobody has replayed or dropped.",
            )
            .ask(max("vogeler_dead_letters_waiting"), "waiting")
            .columns(8)
            .runbook("VogelerDeadLettersPile"),
            graph(
                "Refused by the broker",
                "short",
                "Dead letters that servers hold because vogeler.dead does not take them; and messages, of any kind, that were taken without properties that cannot be read.",
            )
            .ask(max_by("instance", "vogeler_dead_letters_held"), "{{instance}} held")
            .ask("sum(increase(vogeler_messages_trimmed_total{@}[$__rate_interval]))", "trimmed")
            .columns(8)
            .runbook("VogelerDeadLettersRefused"),
        ],
    )
}
