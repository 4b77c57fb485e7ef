//! The ingest board: is anything lost or late, and which stage is to blame. A row a stage, in the order of the flow.

use super::panel::{graph, stat};
use super::query::{max, max_by, mean, min_by, quantile, rate, rate_by, sum, sum_by};
use super::{Board, Choice, Row, services};

/// What `@` stands for: the servers chosen.
const SERVERS: &str = r#"job=~"$job",instance=~"$instance""#;
/// The same for what is kept for each partition.
const PARTITIONS: &str = r#"job=~"$job",instance=~"$instance",partition=~"$partition""#;

const CHOICES: [Choice; 5] = [
    Choice {
        name: "job",
        label: "Job",
        values: "label_values(vogeler_results_received_total, job)",
    },
    Choice {
        name: "instance",
        label: "Server",
        values: r#"label_values(vogeler_results_received_total{job=~"$job"}, instance)"#,
    },
    Choice {
        name: "partition",
        label: "Partition",
        values: r#"label_values(vogeler_queue_consumers{job=~"$job"}, partition)"#,
    },
    services::RABBITMQ,
    services::COUCHDB,
];

pub(super) fn board() -> Board {
    Board {
        uid: "vogeler-ingest",
        title: "Vogeler: ingest",
        description: "Is anything lost, is it late, and which stage is to blame.",
        choices: &CHOICES,
        rows: vec![
            headline(),
            parts(),
            queues(),
            services::rabbitmq(),
            intake(),
            actors(),
            batches(),
            store(),
            documents(),
            services::couchdb(),
            settlement(),
            dead_letters(),
            process(),
        ],
    }
}

fn row(title: &'static str, filter: &'static str, panels: Vec<super::Panel>) -> Row {
    Row {
        title,
        filter,
        panels,
    }
}

fn headline() -> Row {
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

fn parts() -> Row {
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

fn queues() -> Row {
    row(
        "Broker and queues",
        PARTITIONS,
        vec![
            graph("Waiting", "short", "Messages ready in each partition queue.")
                .ask(max_by("partition", "vogeler_queue_messages_ready"), "partition {{partition}}")
                .runbook("VogelerBacklogStuck"),
            graph("Held by servers", "short", "Messages of each partition that servers took and have not settled.")
                .ask(sum_by("partition", "vogeler_queue_messages_unacked"), "partition {{partition}}"),
            graph("Lag", "s", "Age of the oldest delivery taken and not settled, by partition.")
                .ask(max_by("partition", "vogeler_queue_lag_seconds"), "partition {{partition}}")
                .worse_from(30.0, 120.0)
                .runbook("VogelerLag"),
            graph("Consumers", "none", "Servers that stand at each partition queue; one of them is active. None is an alert.")
                .ask(max_by("partition", "vogeler_queue_consumers"), "partition {{partition}}")
                .runbook("VogelerPartitionUnowned"),
        ],
    )
}

fn intake() -> Row {
    row(
        "Intake and decode",
        SERVERS,
        vec![
            graph("Results received", "reqps", "Deliveries of results from the broker, and those of them that it had delivered before.")
                .ask(rate("vogeler_results_received_total"), "received")
                .ask(rate("vogeler_results_redelivered_total"), "redelivered"),
            graph("Decode errors", "reqps", "Messages that are no result, by reason. Each becomes a dead letter.")
                .ask(rate_by("reason", "vogeler_decode_errors_total"), "{{reason}}")
                .runbook("VogelerDeadLetters"),
            graph("Prefetch in use", "percentunit", "Share of the deliveries that a server may hold: at 100 % the stages behind are the bottleneck.")
                .ask("vogeler_results_in_flight{@} / on (job, instance) (vogeler_prefetch_limit{@} > 0)", "{{instance}}")
                .worse_from(0.9, 1.0),
            graph("Byte budget in use", "percentunit", "Share of the bytes that a server may hold: at 100 % it takes no more.")
                .ask("vogeler_bytes_in_flight{@} / on (job, instance) vogeler_bytes_in_flight_limit{@}", "{{instance}}")
                .worse_from(0.9, 1.0),
            graph("Connection breaks", "reqps", "Times that a server connected anew, by part.")
                .ask(rate_by("part", "vogeler_reconnects_total"), "{{part}}")
                .columns(8)
                .runbook("VogelerPartAway"),
            graph("Partitions owned", "none", "Partitions that each server should own.")
                .ask(max_by("instance", "vogeler_partitions_owned"), "{{instance}}")
                .ask(max("vogeler_partitions"), "configured")
                .columns(8),
            graph("Rebalances", "reqps", "Times that the servers agreed anew on who owns what. Without pause: servers come and go.")
                .ask(rate_by("instance", "vogeler_rebalances_total"), "{{instance}}")
                .columns(8),
        ],
    )
}

fn actors() -> Row {
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
            graph("Node actors", "short", "Node actors in memory, at about 1 KB each.")
                .ask(max_by("instance", "vogeler_node_actors"), "{{instance}}"),
        ],
    )
}

fn batches() -> Row {
    row(
        "Batches",
        SERVERS,
        vec![
            graph("Batches", "reqps", "Batches cut, by reason. Mostly linger: little load. Mostly count or bytes: the store is the bottleneck.")
                .ask(rate_by("reason", "vogeler_batches_total"), "{{reason}}"),
            graph("Documents a batch", "short", "Documents in a batch.")
                .ask(mean("vogeler_batch_documents"), "mean")
                .ask(quantile(0.99, "", "vogeler_batch_documents"), "p99"),
            graph("Bytes a batch", "bytes", "Bytes in a batch.")
                .ask(mean("vogeler_batch_bytes"), "mean")
                .ask(quantile(0.99, "", "vogeler_batch_bytes"), "p99"),
            graph("Writes in flight", "none", "Batches being written now.")
                .ask(max_by("instance", "vogeler_writes_in_flight"), "{{instance}}"),
        ],
    )
}

fn store() -> Row {
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

fn documents() -> Row {
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

fn settlement() -> Row {
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

fn dead_letters() -> Row {
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
            .columns(12)
            .runbook("VogelerDeadLetters"),
            graph(
                "Waiting in vogeler.dead",
                "short",
                "Dead letters that nobody has replayed or dropped.",
            )
            .ask(max("vogeler_dead_letters_waiting"), "waiting")
            .columns(12)
            .runbook("VogelerDeadLettersPile"),
        ],
    )
}

fn process() -> Row {
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
                .columns(18)
                .runbook("VogelerPartAway"),
        ],
    )
}
