//! The clients' board, where their `/metrics` is scraped: commands, plugins, spool, publishing.

use super::panel::{graph, stat, table};
use super::query::{hourly_by, max, quantile, rate, rate_by, sum};
use super::{Board, Choice, Row};

/// What `@` stands for: the clients chosen.
const CLIENTS: &str = r#"job=~"$job",instance=~"$instance""#;

const CHOICES: [Choice; 2] = [
    Choice {
        name: "job",
        label: "Job",
        values: "label_values(vogeler_client_spool_messages, job)",
    },
    Choice {
        name: "instance",
        label: "Client",
        values: r#"label_values(vogeler_client_spool_messages{job=~"$job"}, instance)"#,
    },
];

pub(super) fn board() -> Board {
    Board {
        uid: "vogeler-clients",
        title: "Vogeler: clients",
        description: "Do the clients run what they are told, and does it get out?",
        choices: &CHOICES,
        rows: vec![
            headline(),
            commands(),
            plugins(),
            spool(),
            publishing(),
            process(),
        ],
    }
}

fn headline() -> Row {
    Row {
        title: "Does it get out?",
        filter: CLIENTS,
        panels: vec![
            stat("Clients", "none", "Clients that answer the scrape.")
                .ask("count(vogeler_client_spool_messages{@})", "clients"),
            stat("Without a broker", "none", "Clients that cannot use RabbitMQ now. What they collect waits in their spool.")
                .ask(r#"count(vogeler_up{@,part="broker"} == 0) or vector(0)"#, "away")
                .worse_from(1.0, 100.0)
                .runbook("VogelerClientSilent"),
            stat("Fullest spool", "percentunit", "Share of its limits, of bytes and of messages. When either is full the oldest results are dropped.")
                .ask("max(vogeler_client_spool_bytes{@} / on (job, instance) vogeler_client_spool_bytes_limit{@})", "bytes")
                .ask("max(vogeler_client_spool_messages{@} / on (job, instance) vogeler_client_spool_messages_limit{@})", "messages")
                .worse_from(0.5, 0.8)
                .runbook("VogelerSpoolFilling"),
            stat("Dropped, 1 h", "none", "Results that clients lost: full spools, and disks that failed.")
                .ask("sum(increase(vogeler_client_spool_dropped_total{@}[1h]))", "dropped")
                .red_from(1.0)
                .runbook("VogelerSpoolDropped"),
            stat("Publish to confirm, p99", "s", "How long the broker takes to confirm a result.")
                .ask(quantile(0.99, "", "vogeler_client_publish_seconds"), "p99")
                .worse_from(1.0, 10.0),
            stat("Plugins that failed, 1 h", "percentunit", "Share of plugin runs that did not end well.")
                .ask(
                    r#"sum(increase(vogeler_client_plugin_runs_total{@,outcome!="ok"}[1h])) / (sum(increase(vogeler_client_plugin_runs_total{@}[1h])) > 0) or vector(0)"#,
                    "failed",
                )
                .worse_from(0.01, 0.1),
        ],
    }
}

fn commands() -> Row {
    Row {
        title: "Commands",
        filter: CLIENTS,
        panels: vec![
            graph("Commands", "reqps", "Commands heard, by what became of them.")
                .ask(rate_by("outcome", "vogeler_client_commands_total"), "{{outcome}}")
                .columns(8),
            graph("Commands refused", "reqps", "Commands that did not run: unknown plugin, too late, heard before, not understood, meant for others.")
                .ask(rate_by("outcome", r#"vogeler_client_commands_total{outcome!="ran"}"#), "{{outcome}}")
                .columns(8),
            graph("Not listening", "none", "Clients that hear no commands: another one has their name, or the broker refuses them.")
                .ask("count(vogeler_client_listening{@} == 0) or vector(0)", "not listening")
                .columns(8)
                .runbook("VogelerClientNotListening"),
        ],
    }
}

fn plugins() -> Row {
    Row {
        title: "Plugins",
        filter: CLIENTS,
        panels: vec![
            graph("Plugin runs", "reqps", "Plugin runs, by outcome.").ask(
                rate_by("outcome", "vogeler_client_plugin_runs_total"),
                "{{outcome}}",
            ),
            table(
                "Runs that failed, 1 h",
                "short",
                "Plugin runs that did not end well, by plugin and outcome.",
            )
            .ask(
                format!(
                    "sort_desc({})",
                    hourly_by(
                        "plugin, outcome",
                        r#"vogeler_client_plugin_runs_total{outcome!="ok"}"#
                    )
                ),
                "{{plugin}}",
            )
            .columns(6),
            graph(
                "Problems in plugin files",
                "short",
                "What is wrong in plugin files, or refused, the ten worst clients. The document of the node says what: the key client.",
            )
            .ask(
                "topk(10, vogeler_client_plugin_problems{@})",
                "{{instance}}",
            ),
            graph(
                "Duration, p50",
                "s",
                "Duration of plugin runs, the ten slowest plugins.",
            )
            .ask(
                format!(
                    "topk(10, {})",
                    quantile(0.5, "plugin", "vogeler_client_plugin_seconds")
                ),
                "{{plugin}}",
            ),
            graph(
                "Duration, p99",
                "s",
                "Duration of plugin runs, the ten slowest plugins.",
            )
            .ask(
                format!(
                    "topk(10, {})",
                    quantile(0.99, "plugin", "vogeler_client_plugin_seconds")
                ),
                "{{plugin}}",
            ),
        ],
    }
}

fn spool() -> Row {
    Row {
        title: "Spool",
        filter: CLIENTS,
        panels: vec![
            graph("Results in the spool", "short", "Results that wait to be published: over all clients, and in the fullest.")
                .ask(sum("vogeler_client_spool_messages"), "all")
                .ask(max("vogeler_client_spool_messages"), "fullest")
                .runbook("VogelerClientSilent"),
            graph("Bytes in the spool", "bytes", "Over all clients, and in the fullest.")
                .ask(sum("vogeler_client_spool_bytes"), "all")
                .ask(max("vogeler_client_spool_bytes"), "fullest"),
            graph("Fullest spools", "percentunit", "Share of the limits, the ten fullest by bytes and by messages.")
                .ask("topk(10, vogeler_client_spool_bytes{@} / on (job, instance) vogeler_client_spool_bytes_limit{@})", "{{instance}} bytes")
                .ask("topk(10, vogeler_client_spool_messages{@} / on (job, instance) vogeler_client_spool_messages_limit{@})", "{{instance}} messages")
                .worse_from(0.5, 0.8)
                .runbook("VogelerSpoolFilling"),
            graph("Dropped", "reqps", "Results that were lost, by reason.")
                .ask(rate_by("reason", "vogeler_client_spool_dropped_total"), "{{reason}}")
                .runbook("VogelerSpoolDropped"),
        ],
    }
}

fn publishing() -> Row {
    Row {
        title: "Publishing",
        filter: CLIENTS,
        panels: vec![
            graph("Published", "reqps", "Results published, by outcome. Returned: nobody has bound the slot (run vogeler admin setup). Too large: an error went in its place.")
                .ask(rate_by("outcome", "vogeler_client_published_total"), "{{outcome}}")
                .runbook("VogelerResultTooLarge"),
            graph("Publish to confirm", "s", "How long the broker takes to confirm a result.")
                .ask(quantile(0.5, "", "vogeler_client_publish_seconds"), "p50")
                .ask(quantile(0.99, "", "vogeler_client_publish_seconds"), "p99")
                .worse_from(1.0, 10.0),
            graph("Since the last publish", "s", "The ten clients that were silent longest. Long is normal between scheduled runs.")
                .ask("topk(10, time() - (vogeler_client_last_publish_timestamp_seconds{@} > 0))", "{{instance}}")
                .runbook("VogelerClientSilent"),
            graph("Connection breaks", "reqps", "Times that clients connected anew to the broker, and logins that it refused.")
                .ask(rate_by("part", "vogeler_reconnects_total"), "{{part}}")
                .ask(rate("vogeler_broker_logins_refused_total"), "refused")
                .runbook("VogelerLoginsRefused"),
        ],
    }
}

fn process() -> Row {
    Row {
        title: "Processes",
        filter: CLIENTS,
        panels: vec![
            graph(
                "CPU",
                "percentunit",
                "CPU time used, the ten busiest clients; 100 % is one core.",
            )
            .ask(
                "topk(10, rate(process_cpu_seconds_total{@}[$__rate_interval]))",
                "{{instance}}",
            )
            .columns(8),
            graph(
                "Memory",
                "bytes",
                "Resident memory, the ten largest clients.",
            )
            .ask("topk(10, process_resident_memory_bytes{@})", "{{instance}}")
            .columns(8),
            graph("Versions", "none", "Clients, by version.")
                .ask("count by (version) (vogeler_build_info{@})", "{{version}}")
                .columns(8),
        ],
    }
}
