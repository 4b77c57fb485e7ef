//! From a result at its node's actor to a batch of documents.

use super::super::Row;
use super::super::panel::graph;
use super::super::query::{max_by, mean, quantile, rate, rate_by};
use super::{SERVERS, row};

pub(super) fn actors() -> Row {
    row(
        "Node actors",
        SERVERS,
        vec![
            graph("Results for each document written", "none", "Deliveries settled for each document written: what coalescing and unchanged results save.")
                .ask(
                    format!(
                        "{} / ({} > 0)",
                        rate(r#"vogeler_results_total{outcome=~"stored|superseded|unchanged"}"#),
                        rate("vogeler_documents_written_total")
                    ),
                    "results",
                ),
            graph("Passivations", "reqps", "Idle node actors that were stopped.")
                .ask(rate("vogeler_node_passivations_total"), "passivated"),
            graph("Mailbox wait", "s", "From the router until the node's actor handles the result.")
                .ask(quantile(0.5, "", "vogeler_mailbox_wait_seconds"), "p50")
                .ask(quantile(0.99, "", "vogeler_mailbox_wait_seconds"), "p99")
                .worse_from(0.5, 5.0),
            graph("Node actors", "short", "Node actors in memory, at about 1 KB each; and all nodes known, those at rest included: each that is known costs no read when it is heard again.")
                .ask(max_by("instance", "vogeler_node_actors"), "{{instance}} actors")
                .ask(max_by("instance", "vogeler_known_nodes"), "{{instance}} known"),
        ],
    )
}

pub(super) fn batches() -> Row {
    row(
        "Batches",
        SERVERS,
        vec![
            graph("Batches", "reqps", "Batches cut, by reason. Mostly linger: little load. Mostly count or bytes: the store is the bottleneck.")
                .ask(rate_by("reason", "vogeler_batches_total"), "{{reason}}"),
            graph("Documents a batch", "short", "Documents in a batch, and the most that a server allows now. A limit that falls: the store failed, or took longer than server.write_target. Full batches that go well raise it again.")
                .ask(mean("vogeler_batch_documents"), "mean")
                .ask(quantile(0.99, "", "vogeler_batch_documents"), "p99")
                .ask("min(vogeler_batch_documents_limit{@})", "limit")
                .runbook("VogelerLag"),
            graph("Bytes a batch", "bytes", "Bytes in a batch.")
                .ask(mean("vogeler_batch_bytes"), "mean")
                .ask(quantile(0.99, "", "vogeler_batch_bytes"), "p99"),
            graph("Writes in flight", "none", "Batches being written now, and how many full ones may be; batches that are not full do with half of that. A limit that falls: the store failed, or took longer than server.write_target.")
                .ask(max_by("instance", "vogeler_writes_in_flight"), "{{instance}}")
                .ask(max_by("instance", "vogeler_writes_in_flight_limit"), "{{instance}} limit")
                .runbook("VogelerLag"),
        ],
    )
}
