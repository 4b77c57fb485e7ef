//! Over all stages: is anything lost or late, and are the servers well and have what they need.

use super::super::Row;
use super::super::panel::{graph, stat};
use super::super::query::{max, max_by, min_by, quantile, rate, rate_by, sum};
use super::{SERVERS, row};

pub(super) fn headline() -> Row {
    row(
        "Is anything lost? Is it late?",
        SERVERS,
        vec![
            stat("Unaccounted deliveries", "none", "Received - ended - in flight, over all servers. Anything but 0 is a bug that may hide a loss.")
                .ask("sum(abs(vogeler_results_received_total{@} - on (job, instance) sum by (job, instance) (vogeler_results_total{@}) - on (job, instance) vogeler_results_in_flight{@}))", "unaccounted")
                .red_from(1.0)
                .runbook("VogelerAccountingBroken"),
            stat("Dead letters waiting", "short", "Messages in the queue vogeler.dead: safe, and waiting for an operator.")
                .ask(max("vogeler_dead_letters_waiting"), "waiting")
                .worse_from(1.0, 1000.0)
                .runbook("VogelerDeadLetters"),
            stat("Queue lag", "s", "Age of the oldest delivery that a server took and has not settled yet.")
                .ask(max("vogeler_queue_lag_seconds"), "oldest")
                .worse_from(30.0, 120.0)
                .runbook("VogelerLag"),
            stat("Published to stored, p99", "s", "From the client's publish until the result is settled as stored, superseded or unchanged.")
                .ask(quantile(0.99, "", "vogeler_published_to_stored_seconds"), "p99")
                .worse_from(60.0, 300.0)
                .runbook("VogelerLate"),
            stat("Backlog", "short", "Results that wait in the partition queues. RabbitMQ keeps them; growth is what matters.")
                .ask(format!("sum({})", max_by("partition", "vogeler_queue_messages_ready")), "ready")
                .worse_from(10_000.0, 100_000.0)
                .runbook("VogelerBacklogStuck"),
            stat("Documents written", "wps", "Node documents written to the store in a second.")
                .ask(rate("vogeler_documents_written_total"), "written"),
        ],
    )
}

pub(super) fn parts() -> Row {
    row(
        "Servers and what they need",
        SERVERS,
        vec![
            stat(
                "Broker",
                "none",
                "Whether every server can use RabbitMQ: the least of all servers.",
            )
            .ask(r#"min(vogeler_up{@,part="broker"})"#, "broker")
            .good_or_bad("usable", "away")
            .runbook("VogelerPartAway"),
            stat(
                "Store",
                "none",
                "Whether every server can use the store: the least of all servers.",
            )
            .ask(r#"min(vogeler_up{@,part="store"})"#, "store")
            .good_or_bad("usable", "away")
            .runbook("VogelerPartAway"),
            stat("Servers", "none", "Servers that answer the scrape, and how many know of one another: fewer means that some cannot talk to the broker.")
                .ask("count(vogeler_results_received_total{@})", "answer")
            .ask("min(vogeler_servers{@})", "agree")
                .runbook("VogelerServerDown"),
            stat(
                "Partitions without a consumer",
                "none",
                "Their results wait until a server takes the partition.",
            )
            .ask(
                "count(max by (partition) (vogeler_queue_consumers{@}) == 0) or vector(0)",
                "unowned",
            )
            .red_from(1.0)
            .runbook("VogelerPartitionUnowned"),
            stat(
                "Last write",
                "s",
                "Time since any server last wrote a document. Long is normal when nothing changes.",
            )
            .ask(
                "time() - max(vogeler_last_write_timestamp_seconds{@} > 0)",
                "ago",
            )
            .runbook("VogelerNothingStored"),
            stat(
                "Draining",
                "none",
                "Servers that are stopping: they settle what they hold and take nothing new.",
            )
            .ask(sum("vogeler_draining"), "draining")
            .worse_from(1.0, 1000.0),
        ],
    )
}

pub(super) fn process() -> Row {
    row(
        "Processes",
        SERVERS,
        vec![
            graph("CPU", "percentunit", "CPU time used; 100 % is one core.")
                .ask("rate(process_cpu_seconds_total{@}[$__rate_interval])", "{{instance}}"),
            graph("Memory", "bytes", "Resident memory.")
                .ask(max_by("instance", "process_resident_memory_bytes"), "{{instance}}"),
            graph("Open files", "short", "Open file descriptors, and the limit.")
                .ask(max_by("instance", "process_open_fds"), "{{instance}}")
                .ask("min(process_max_fds{@})", "limit"),
            graph("Running since", "s", "Time since the start, by version. Falls to 0 at a restart.")
                .ask("(time() - process_start_time_seconds{@}) * on (job, instance) group_left (version) vogeler_build_info{@}", "{{instance}} {{version}}"),
            graph("Threads", "none", "Threads of the process.")
                .ask(max_by("instance", "process_threads"), "{{instance}}"),
            graph("Broker and store, by server", "none", "1: usable, 0: away.")
                .ask(min_by("instance, part", "vogeler_up"), "{{instance}} {{part}}")
                .columns(12)
                .runbook("VogelerPartAway"),
            graph("HTTP refused", "reqps", "Requests that were not answered: for a host that is not the server's (http.hosts), too slow, or on the oldest of too many connections.")
                .ask(rate_by("reason", "vogeler_http_refused_total"), "{{reason}}"),
        ],
    )
}
