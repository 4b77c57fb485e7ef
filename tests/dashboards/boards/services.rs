//! What RabbitMQ and CouchDB say of themselves, beside what the server says of them.
//!
//! `rabbitmq_*`: the plugin `rabbitmq_prometheus`. `couchdb_*`: CouchDB 3.3 or later, `/_node/_local/_prometheus`.

use super::panel::graph;
use super::query::{max_by, rate, rate_by, sum, sum_by};
use super::{Choice, Row};

pub(super) const RABBITMQ: Choice = Choice {
    name: "rabbitmq",
    label: "RabbitMQ",
    values: "label_values(rabbitmq_build_info, instance)",
};
pub(super) const COUCHDB: Choice = Choice {
    name: "couchdb",
    label: "CouchDB",
    values: "label_values(couchdb_uptime_seconds, instance)",
};

/// RabbitMQ's own view, where its exporter is scraped.
pub(super) fn rabbitmq() -> Row {
    Row {
        title: "RabbitMQ's own metrics",
        filter: r#"instance=~"$rabbitmq""#,
        panels: vec![
            graph("RabbitMQ: messages", "reqps", "Messages of all its users: published, delivered, acknowledged.")
                .ask(rate("rabbitmq_global_messages_received_total"), "published")
                .ask(rate("rabbitmq_global_messages_confirmed_total"), "confirmed")
                .ask(rate("rabbitmq_global_messages_delivered_consume_manual_ack_total"), "delivered")
                .ask(rate("rabbitmq_global_messages_acknowledged_total"), "acknowledged"),
            graph("RabbitMQ: messages that went astray", "reqps", "Returned: nobody has bound the slot (run vogeler admin setup). Redelivered: a server gave it back or died.")
                .ask(rate("rabbitmq_global_messages_unroutable_returned_total"), "returned")
                .ask(rate("rabbitmq_global_messages_unroutable_dropped_total"), "dropped")
                .ask(rate("rabbitmq_global_messages_redelivered_total"), "redelivered"),
            graph("RabbitMQ: disk writes", "s", "Time spent in writing and syncing, a second.")
                .ask(rate("rabbitmq_io_write_time_seconds_total"), "write")
                .ask(rate("rabbitmq_io_sync_time_seconds_total"), "sync"),
            graph("RabbitMQ: queues", "short", "Messages in all its queues.")
                .ask(sum("rabbitmq_queue_messages_ready"), "ready")
                .ask(sum("rabbitmq_queue_messages_unacked"), "unacknowledged"),
            graph("RabbitMQ: memory", "percentunit", "Share of the memory limit. At 100 % it blocks all publishers.")
                .ask("rabbitmq_process_resident_memory_bytes{@} / on (job, instance) rabbitmq_resident_memory_limit_bytes{@}", "{{instance}}")
                .worse_from(0.8, 1.0)
                .runbook("VogelerBrokerAlarm"),
            graph("RabbitMQ: disk free", "bytes", "Free disk, and the limit under which it blocks all publishers.")
                .ask("min by (instance) (rabbitmq_disk_space_available_bytes{@})", "{{instance}}")
                .ask("max(rabbitmq_disk_space_available_limit_bytes{@})", "limit")
                .runbook("VogelerBrokerAlarm"),
            graph("RabbitMQ: alarms", "none", "1: in effect, publishers are blocked.")
                .ask(max_by("instance", "rabbitmq_alarms_memory_used_watermark"), "{{instance}} memory")
                .ask(max_by("instance", "rabbitmq_alarms_free_disk_space_watermark"), "{{instance}} disk")
                .ask(max_by("instance", "rabbitmq_alarms_file_descriptor_limit"), "{{instance}} files")
                .red_from(1.0)
                .runbook("VogelerBrokerAlarm"),
            graph("RabbitMQ: clients", "short", "Connections, channels and consumers.")
                .ask(sum("rabbitmq_connections"), "connections")
                .ask(sum("rabbitmq_channels"), "channels")
                .ask(sum("rabbitmq_consumers"), "consumers"),
        ],
    }
}

/// CouchDB's own view, where it is scraped.
pub(super) fn couchdb() -> Row {
    Row {
        title: "CouchDB's own metrics",
        filter: r#"instance=~"$couchdb""#,
        panels: vec![
            graph("CouchDB: requests", "reqps", "HTTP requests of all its users, and _bulk_docs of them.")
                .ask(rate("couchdb_httpd_requests_total"), "all")
                .ask(rate("couchdb_httpd_bulk_requests_total"), "bulk"),
            graph("CouchDB: errors", "reqps", "Answers of 401, 403, 409, 412, 413 and 5xx, and requests that its shards left unanswered.")
                .ask(rate_by("code", r#"couchdb_httpd_status_codes{code=~"401|403|409|412|413|5.."}"#), "{{code}}")
                .ask(rate("couchdb_fabric_worker_timeouts_total"), "shard timeouts")
                .ask(rate("couchdb_fabric_doc_update_write_quorum_errors_total"), "no write quorum"),
            graph("CouchDB: latency", "s", "Time of a request and of _bulk_docs, as CouchDB measures it.")
                .ask(r#"max by (quantile) (couchdb_request_time_seconds{@,quantile=~"0.5|0.99"})"#, "request p{{quantile}}")
                .ask(r#"max by (quantile) (couchdb_httpd_bulk_docs_seconds{@,quantile=~"0.5|0.99"})"#, "bulk p{{quantile}}")
                .worse_from(1.0, 5.0),
            graph("CouchDB: queues", "short", "Messages that wait in Erlang's processes, and processes that wait for a CPU.")
                .ask(max_by("instance", "couchdb_erlang_message_queues"), "{{instance}} messages")
                .ask(max_by("instance", "couchdb_erlang_message_queue_max"), "{{instance}} longest")
                .ask(max_by("instance", "couchdb_erlang_scheduler_queues"), "{{instance}} waiting for a CPU"),
            graph("CouchDB: documents", "wps", "Document writes, and reads of documents.")
                .columns(8)
                .ask(rate("couchdb_document_writes_total"), "written")
                .ask(rate("couchdb_database_reads_total"), "read"),
            graph("CouchDB: view work", "reqps", "Documents that views mapped: the price of every view for every write.")
                .columns(8)
                .ask(rate("couchdb_mrview_map_doc_total"), "mapped")
                .ask(rate("couchdb_mrview_emits_total"), "emitted"),
            graph("CouchDB: fsync", "s", "Time of an fsync: what the disk costs.")
                .columns(8)
                .ask(r#"max by (quantile) (couchdb_fsync_time_seconds{@,quantile=~"0.5|0.99"})"#, "p{{quantile}}")
                .worse_from(0.1, 1.0)
                .runbook("VogelerStoreDiskFilling"),
            graph("CouchDB: memory", "bytes", "Memory of its Erlang machine.")
                .ask(sum_by("instance", r#"couchdb_erlang_memory_bytes{memory_type="total"}"#), "{{instance}}")
                .columns(12),
            graph("CouchDB: disk free", "percentunit", "Free share of its machine's disks: the node_exporter there, scraped as job couchdb-node. Compaction needs room for a second copy.")
                .ask(
                    r#"node_filesystem_avail_bytes{job="couchdb-node",fstype!~"tmpfs|ramfs|squashfs"} / node_filesystem_size_bytes"#,
                    "{{instance}} {{mountpoint}}",
                )
                .columns(12)
                .runbook("VogelerStoreDiskFilling"),
        ],
    }
}
