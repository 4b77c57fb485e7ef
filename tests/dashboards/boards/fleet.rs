//! The fleet board: how many nodes report, which plugins fail, and what the operators' runs do. As the servers see it.

use super::panel::{graph, stat, table};
use super::query::{hourly_by, max, max_by, rate, rate_by};
use super::{Board, INSTANCE, JOB, Row, SERVERS};

pub(super) fn board() -> Board {
    Board {
        uid: "vogeler-fleet",
        title: "Vogeler: fleet",
        description: "How many nodes report, which plugins fail, and what runs do.",
        choices: &[JOB, INSTANCE],
        rows: vec![headline(), nodes(), plugins(), runs()],
    }
}

fn headline() -> Row {
    Row {
        title: "Does the fleet report?",
        filter: SERVERS,
        panels: vec![
            stat("Nodes reporting", "none", "Nodes heard of within server.stale_after.")
                .ask(max(r#"vogeler_nodes{state="reporting"}"#), "reporting"),
            stat("Stale nodes", "none", "Nodes in the store that nothing was heard of for server.stale_after.")
                .ask(max(r#"vogeler_nodes{state="stale"}"#), "stale")
                .worse_from(1.0, 100.0)
                .runbook("VogelerNodesStale"),
            stat("Share of stale nodes", "percentunit", "Stale nodes in all nodes of the store.")
                .ask(
                    r#"max(vogeler_nodes{@,state="stale"}) / (sum(max by (state) (vogeler_nodes{@})) > 0)"#,
                    "stale",
                )
                .worse_from(0.01, 0.05)
                .runbook("VogelerNodesStale"),
            stat("Results", "reqps", "Results received in a second.")
                .ask(rate("vogeler_results_received_total"), "received"),
            stat("Plugins that failed", "percentunit", "Share of results that report an error, in the last hour.")
                .ask(
                    r#"sum(increase(vogeler_plugin_results_total{@,status="error"}[1h])) / (sum(increase(vogeler_plugin_results_total{@}[1h])) > 0) or vector(0)"#,
                    "failed",
                )
                .worse_from(0.01, 0.1),
            stat("Runs, 1 h", "none", "Distinct runs of operators that results came for.")
                .ask("sum(increase(vogeler_runs_total{@}[1h]))", "runs"),
        ],
    }
}

fn nodes() -> Row {
    Row {
        title: "Nodes",
        filter: SERVERS,
        panels: vec![
            graph("Nodes", "none", "Nodes in the store, by state.")
                .ask(max_by("state", "vogeler_nodes"), "{{state}}")
                .columns(12)
                .runbook("VogelerNodesStale"),
            graph("What became of their results", "reqps", "Deliveries that ended, by outcome. Mostly unchanged is what a quiet fleet looks like.")
                .ask(rate_by("outcome", "vogeler_results_total"), "{{outcome}}")
                .columns(12),
        ],
    }
}

fn plugins() -> Row {
    Row {
        title: "Plugins",
        filter: SERVERS,
        panels: vec![
            table("Failures by plugin, 1 h", "short", "Results that report an error, by plugin. Which nodes: vogeler find, or the document's last_error.")
                .ask(
                    format!("sort_desc({})", hourly_by("plugin", r#"vogeler_plugin_results_total{status="error"}"#)),
                    "{{plugin}}",
                ),
            graph("Results by plugin", "reqps", "Results received, by plugin (the first 100 names; the others are \"other\").")
                .ask(format!("topk(10, {})", rate_by("plugin", "vogeler_plugin_results_total")), "{{plugin}}")
                .columns(8),
            graph("Failures by plugin", "reqps", "Results that report an error, by plugin.")
                .ask(
                    format!("topk(10, {})", rate_by("plugin", r#"vogeler_plugin_results_total{status="error"}"#)),
                    "{{plugin}}",
                )
                .columns(8),
        ],
    }
}

fn runs() -> Row {
    Row {
        title: "Runs",
        filter: SERVERS,
        panels: vec![
            graph("Runs", "reqps", "Distinct runs that results came for.")
                .ask(rate("vogeler_runs_total"), "runs")
                .columns(12),
            graph(
                "Receipts",
                "reqps",
                "What the runners are told: receipts sent, and those that could not be sent.",
            )
            .ask(rate("vogeler_receipts_total"), "sent")
            .ask(rate("vogeler_receipts_failed_total"), "failed")
            .columns(12),
        ],
    }
}
