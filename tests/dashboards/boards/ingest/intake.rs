//! From the partition queues to a decoded result.

use super::super::Row;
use super::super::panel::graph;
use super::super::query::{max, max_by, rate, rate_by, sum_by};
use super::{PARTITIONS, SERVERS, row};

pub(super) fn queues() -> Row {
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
            graph("Prefetch", "short", "Deliveries of each partition that a server may hold now: the prefetch follows the sizes of what comes, up to server.prefetch.")
                .ask(max_by("partition", "vogeler_queue_prefetch"), "partition {{partition}}")
                .columns(24),
        ],
    )
}

pub(super) fn intake() -> Row {
    row(
        "Intake and decode",
        SERVERS,
        vec![
            graph("Results received", "reqps", "Deliveries of results from the broker, and those of them that it had delivered before.")
                .ask(rate("vogeler_results_received_total"), "received")
                .ask(rate("vogeler_results_redelivered_total"), "redelivered"),
            graph("Forwarded", "reqps", "Results put into the queue that they belong into: of 2010 and given their sequence, or of another partition. Many of the second kind: run `vogeler admin setup`.")
                .ask(rate_by("reason", "vogeler_results_forwarded_total"), "{{reason}}"),
            graph("Decode errors", "reqps", "Messages that are no result, by reason. Each becomes a dead letter.")
                .ask(rate_by("reason", "vogeler_decode_errors_total"), "{{reason}}")
                .runbook("VogelerDeadLetters"),
            graph("Prefetch in use", "percentunit", "Share of the deliveries that a server may hold: at 100 % the stages behind are the bottleneck.")
                .ask("vogeler_results_in_flight{@} / on (job, instance) (vogeler_prefetch_limit{@} > 0)", "{{instance}}")
                .worse_from(0.9, 1.0),
            graph("Byte budget in use", "percentunit", "Share of the bytes that a server may hold: at 100 % it takes no more.")
                .ask("vogeler_bytes_in_flight{@} / on (job, instance) vogeler_bytes_in_flight_limit{@}", "{{instance}}")
                .worse_from(0.9, 1.0),
            graph("Connection breaks", "reqps", "Times that a server connected anew, by part, and logins that the broker refused.")
                .ask(rate_by("part", "vogeler_reconnects_total"), "{{part}}")
                .ask(rate("vogeler_broker_logins_refused_total"), "login refused")
                .columns(8)
                .runbook("VogelerPartAway"),
            graph("Partitions owned", "none", "Partitions that each server should own.")
                .ask(max_by("instance", "vogeler_partitions_owned"), "{{instance}}")
                .ask(max("vogeler_partitions"), "configured")
                .columns(8),
            graph("Rebalances", "reqps", "Times that the servers agreed anew on who owns what. Without pause: servers come and go.")
                .ask(rate_by("instance", "vogeler_rebalances_total"), "{{instance}}")
                .columns(8),
            graph("Bytes waiting", "bytes", "Messages that a server has from the broker and that wait for room in its byte budget.")
                .ask(max_by("instance", "vogeler_bytes_waiting"), "{{instance}}"),
            graph("Prefetch changes", "reqps", "Times that a partition's prefetch followed the sizes of its messages. Each takes a new channel: without pause is a fault.")
                .ask(rate_by("instance", "vogeler_prefetch_changes_total"), "{{instance}}"),
            graph("Servers left out", "none", "Servers that announce themselves and are not there. Any: who publishes to the exchange vogeler.servers?")
                .ask(max_by("instance", "vogeler_servers_left_out"), "{{instance}}"),
            graph("Exchanges and queues restored", "none", "What was gone from the broker and was declared again, within an hour, and what could not be.")
                .ask("increase(vogeler_topology_restored_total{@}[1h])", "{{instance}} restored")
                .ask(max_by("instance", "vogeler_topology_missing"), "{{instance}} missing")
                .runbook("VogelerTopologyChanged"),
        ],
    )
}
