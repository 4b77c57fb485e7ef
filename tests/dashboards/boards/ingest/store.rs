//! From a batch to documents in the store.

use super::super::Row;
use super::super::panel::graph;
use super::super::query::{quantile, rate, rate_by};
use super::{SERVERS, row};

pub(super) fn requests() -> Row {
    row(
        "Store: requests",
        SERVERS,
        vec![
            graph("Requests", "reqps", "Requests to the store, by kind.")
                .ask(rate_by("kind", "vogeler_store_requests_total"), "{{kind}}"),
            graph("Requests that failed", "reqps", "Requests that failed as a whole, by kind and status.")
                .ask(rate_by("kind, status", r#"vogeler_store_requests_total{status!="ok"}"#), "{{kind}}: {{status}}")
                .runbook("VogelerNothingStored"),
            graph("Latency", "s", "Duration of the store's requests, by kind.")
                .ask(quantile(0.5, "kind", "vogeler_store_request_seconds"), "{{kind}} p50")
                .ask(quantile(0.99, "kind", "vogeler_store_request_seconds"), "{{kind}} p99")
                .worse_from(1.0, 5.0),
            graph("Requests taken apart", "reqps", "Requests refused as a whole and split, by reason; and results found stored after a write of unknown end.")
                .ask(rate_by("reason", "vogeler_store_requests_split_total"), "split: {{reason}}")
                .ask(rate("vogeler_results_read_back_total"), "read back"),
        ],
    )
}

pub(super) fn documents() -> Row {
    row(
        "Store: documents",
        SERVERS,
        vec![
            graph("Documents written", "wps", "Documents written, and documents written once more after a conflict or a failure.")
                .ask(rate("vogeler_documents_written_total"), "written")
                .ask(rate("vogeler_documents_retried_total"), "again"),
            graph("Bytes written", "Bps", "Bytes of documents written.")
                .ask(rate("vogeler_document_bytes_written_total"), "bytes"),
            graph("Documents that were not taken", "wps", "Conflicts are merged again; refused is for good (dead letters); failed is tried again.")
                .ask(rate("vogeler_document_conflicts_total"), "conflict")
                .ask(rate("vogeler_documents_refused_total"), "refused")
                .ask(rate("vogeler_documents_failed_total"), "failed")
                .ask(rate("vogeler_bookkeeping_unreadable_total"), "bookkeeping not all readable")
                .runbook("VogelerConflictStorm"),
            graph("Share of conflicts", "percentunit", "Conflicts in all writes of documents. Much: another program writes the same documents.")
                .ask(
                    format!(
                        "{c} / (({w} + {c}) > 0)",
                        c = rate("vogeler_document_conflicts_total"),
                        w = rate("vogeler_documents_written_total")
                    ),
                    "conflicts",
                )
                .worse_from(0.05, 0.2)
                .runbook("VogelerConflictStorm"),
        ],
    )
}
