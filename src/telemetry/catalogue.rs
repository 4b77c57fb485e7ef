//! The catalogue: every metric of server and client, declared once.
//!
//! Name, kind, labels, unit, role and help are here and nowhere else: the recorder's descriptions and buckets, the
//! reference table (`vogeler admin metrics`) and the tests derive from it.

use metrics::Unit;

use super::label::{Partition, Plugin, Version};
use super::metric::{Counter, Declared, Entry, Gauge, Histogram, Metric, Role};
use super::words::{
    CommandOutcome, DeadLetterReason, DecodeReason, FlushReason, ForwardReason, HttpRefusal,
    NodeState, Part, PluginOutcome, PublishOutcome, ResultStatus, SplitReason, SpoolLoss,
    StoreRequest, StoreStatus,
};
use crate::wire::Outcome;

/// Declares metrics: `STATIC: Kind<Labels> = "name", unit, role, "help";`, and the list of all of them.
macro_rules! catalogue {
    ($($id:ident: $kind:ty = $name:literal, $unit:ident, $role:ident, $help:literal;)+) => {
        $(
            #[doc = $help]
            pub static $id: $kind = Metric::new(Entry {
                name: $name,
                unit: Unit::$unit,
                role: Role::$role,
                help: $help,
            });
        )+

        /// All metrics, in the order of the reference table: that of the flow.
        pub static ALL: &[&dyn Declared] = &[$(&$id),+];
    };
}

catalogue! {
    // The accounting identity.
    RESULTS_RECEIVED: Counter = "vogeler_results_received_total", Count, Server, "Deliveries of results received from the broker";
    RESULTS: Counter<Outcome> = "vogeler_results_total", Count, Server, "Deliveries that ended, by outcome";
    RESULTS_IN_FLIGHT: Gauge = "vogeler_results_in_flight", Count, Server, "Deliveries neither settled nor given back";
    RESULTS_REDELIVERED: Counter = "vogeler_results_redelivered_total", Count, Server, "Deliveries that the broker had delivered before";

    // The queues.
    QUEUE_MESSAGES_READY: Gauge<Partition> = "vogeler_queue_messages_ready", Count, Server, "Results that wait in the partition's queue, as the broker counts them; every server reports every partition";
    QUEUE_MESSAGES_UNACKED: Gauge<Partition> = "vogeler_queue_messages_unacked", Count, Server, "Deliveries of the partition that this server took and has not settled";
    QUEUE_CONSUMERS: Gauge<Partition> = "vogeler_queue_consumers", Count, Server, "Consumers of the partition's queue: of a quorum queue RabbitMQ counts the active one alone, of a classic one those standing by, too";
    QUEUE_LAG_SECONDS: Gauge<Partition> = "vogeler_queue_lag_seconds", Seconds, Server, "Age of the partition's oldest delivery that this server took and has not settled; 0 when there is none";
    PUBLISHED_TO_STORED_SECONDS: Histogram = "vogeler_published_to_stored_seconds", Seconds, Server, "From the client's publish to stored, unchanged or superseded, by the client's clock and the server's";
    QUEUE_PREFETCH: Gauge<Partition> = "vogeler_queue_prefetch", Count, Server, "Deliveries of the partition that this server may hold now: it follows the sizes that come, at most server.prefetch; 0 while it does not stand at the queue";
    PREFETCH_LIMIT: Gauge = "vogeler_prefetch_limit", Count, Server, "Deliveries that this server may hold now of the partitions that it should own";
    PREFETCH_CHANGES: Counter = "vogeler_prefetch_changes_total", Count, Server, "Times that a partition's prefetch followed the sizes of its messages; each takes a new channel";
    BYTES_WAITING: Gauge = "vogeler_bytes_waiting", Bytes, Server, "Messages that this server has from the broker and that wait for room in the budget";
    BYTES_IN_FLIGHT: Gauge = "vogeler_bytes_in_flight", Bytes, Server, "Memory that results in flight hold of the budget";
    BYTES_IN_FLIGHT_LIMIT: Gauge = "vogeler_bytes_in_flight_limit", Bytes, Server, "The budget: server.bytes_in_flight_max";

    // Intake and decode.
    PLUGIN_RESULTS: Counter<(Plugin, ResultStatus)> = "vogeler_plugin_results_total", Count, Server, "Results decoded, by plugin and by whether the plugin failed";
    RESULTS_FORWARDED: Counter<ForwardReason> = "vogeler_results_forwarded_total", Count, Server, "Results put into the queue that they belong into, by reason: of 2010 and given their sequence (ordered), or of another partition (moved). They count as requeued";
    DECODE_ERRORS: Counter<DecodeReason> = "vogeler_decode_errors_total", Count, Server, "Messages that are no result, by reason";
    RUNS: Counter = "vogeler_runs_total", Count, Server, "Runs that results were seen of; the last 1000 are remembered";

    // Node actors.
    NODE_ACTORS: Gauge = "vogeler_node_actors", Count, Server, "Node actors in memory";
    KNOWN_NODES: Gauge = "vogeler_known_nodes", Count, Server, "Nodes that this server knows something of: with an actor, or at rest";
    NODE_PASSIVATIONS: Counter = "vogeler_node_passivations_total", Count, Server, "Node actors that ended because their node was quiet";
    MAILBOX_WAIT_SECONDS: Histogram = "vogeler_mailbox_wait_seconds", Seconds, Server, "How long a result waits from the router to its node's actor";

    // Batches.
    BATCHES: Counter<FlushReason> = "vogeler_batches_total", Count, Server, "Batches cut, by reason";
    BATCH_DOCUMENTS: Histogram = "vogeler_batch_documents", Count, Server, "Documents a batch";
    BATCH_DOCUMENTS_LIMIT: Gauge = "vogeler_batch_documents_limit", Count, Server, "Documents that a batch may have now; halved when the store is slow or fails, at most server.batch_count_max";
    BATCH_BYTES: Histogram = "vogeler_batch_bytes", Bytes, Server, "Bytes of JSON that one write sent to the store";
    WRITES_IN_FLIGHT: Gauge = "vogeler_writes_in_flight", Count, Server, "Batches being committed";
    WRITES_IN_FLIGHT_LIMIT: Gauge = "vogeler_writes_in_flight_limit", Count, Server, "Full batches that may be committed at once now; halved when the store is slow or fails, at most server.writes_in_flight";

    // The store.
    STORE_REQUESTS: Counter<(StoreRequest, StoreStatus)> = "vogeler_store_requests_total", Count, Server, "Store requests, by kind and by how they ended as a whole";
    STORE_REQUEST_SECONDS: Histogram<StoreRequest> = "vogeler_store_request_seconds", Seconds, Server, "Duration of store requests, by kind";
    STORE_REQUESTS_SPLIT: Counter<SplitReason> = "vogeler_store_requests_split_total", Count, Server, "Store requests refused as a whole and taken apart, by reason";
    DOCUMENTS_WRITTEN: Counter = "vogeler_documents_written_total", Count, Server, "Documents written";
    DOCUMENT_BYTES_WRITTEN: Counter = "vogeler_document_bytes_written_total", Bytes, Server, "Bytes of JSON of the documents written";
    DOCUMENT_CONFLICTS: Counter = "vogeler_document_conflicts_total", Count, Server, "Documents whose write conflicted and was merged again";
    DOCUMENTS_REFUSED: Counter = "vogeler_documents_refused_total", Count, Server, "Documents the store refused for good";
    BOOKKEEPING_UNREADABLE: Counter = "vogeler_bookkeeping_unreadable_total", Count, Server, "Documents read whose bookkeeping this version cannot read all of: another program or a later version wrote it; it stays as it is";
    DOCUMENTS_FAILED: Counter = "vogeler_documents_failed_total", Count, Server, "Documents at which the store failed; they are read and written again";
    DOCUMENTS_RETRIED: Counter = "vogeler_documents_retried_total", Count, Server, "Documents written again after a conflict, a failure or a write of unknown end";
    RESULTS_READ_BACK: Counter = "vogeler_results_read_back_total", Count, Server, "Results found stored when read back after a write of unknown end";
    LAST_WRITE_TIMESTAMP_SECONDS: Gauge = "vogeler_last_write_timestamp_seconds", Seconds, Server, "When the last document was written, in Unix time; 0 for never";

    // Settlement.
    RECEIPTS: Counter = "vogeler_receipts_total", Count, Server, "Receipts published to runners";
    RECEIPTS_FAILED: Counter = "vogeler_receipts_failed_total", Count, Server, "Receipts dropped or not published; the runner looks in the store";
    DEAD_LETTERS: Counter<DeadLetterReason> = "vogeler_dead_letters_total", Count, Server, "Dead letters published, by reason";
    DEAD_LETTERS_HELD: Gauge = "vogeler_dead_letters_held", Count, Server, "Dead letters that this server holds and tries again, because the broker refuses them";
    DEAD_LETTERS_WAITING: Gauge = "vogeler_dead_letters_waiting", Count, Server, "Dead letters that wait for a person in vogeler.dead";

    // The servers and the fleet.
    PARTITIONS: Gauge = "vogeler_partitions", Count, Server, "Partitions there are: broker.partitions";
    PARTITIONS_OWNED: Gauge = "vogeler_partitions_owned", Count, Server, "Partitions that this server should own";
    REBALANCES: Counter = "vogeler_rebalances_total", Count, Server, "Times that the servers agreed anew on who owns which partitions";
    SERVERS_LEFT_OUT: Gauge = "vogeler_servers_left_out", Count, Server, "Servers that announce themselves and have no queue of their own: they own no partition";
    TOPOLOGY_MISSING: Gauge = "vogeler_topology_missing", Count, Server, "Exchanges and queues that are missing at the broker, or are other than they should be, and could not be restored";
    TOPOLOGY_RESTORED: Counter = "vogeler_topology_restored_total", Count, Server, "Exchanges, their bindings, and queues that were gone from the broker and that this server declared again";
    SERVERS: Gauge = "vogeler_servers", Count, Server, "Servers that share the partitions, this one included";
    DRAINING: Gauge = "vogeler_draining", Count, Server, "Whether this server is stopping: 1 or 0";
    NODES: Gauge<NodeState> = "vogeler_nodes", Count, Server, "Nodes in the store, by whether one was heard of within server.stale_after; looked at every minute, less often where that takes the store long";

    // The client.
    CLIENT_COMMANDS: Counter<CommandOutcome> = "vogeler_client_commands_total", Count, Client, "Commands received, by what was done about them";
    CLIENT_LISTENING: Gauge = "vogeler_client_listening", Count, Client, "Whether the client hears commands: 1, or 0 while its queue cannot be consumed or another client of its name consumes it";
    CLIENT_PLUGIN_RUNS: Counter<(Plugin, PluginOutcome)> = "vogeler_client_plugin_runs_total", Count, Client, "Executions of plugins, by plugin and outcome";
    CLIENT_PLUGIN_SECONDS: Histogram<Plugin> = "vogeler_client_plugin_seconds", Seconds, Client, "Duration of executions, by plugin";
    CLIENT_SPOOL_MESSAGES: Gauge = "vogeler_client_spool_messages", Count, Client, "Results that wait in the spool";
    CLIENT_SPOOL_MESSAGES_LIMIT: Gauge = "vogeler_client_spool_messages_limit", Count, Client, "Most results that the spool may hold: client.spool_count_max";
    CLIENT_SPOOL_BYTES: Gauge = "vogeler_client_spool_bytes", Bytes, Client, "Size of the spool";
    CLIENT_SPOOL_BYTES_LIMIT: Gauge = "vogeler_client_spool_bytes_limit", Bytes, Client, "Most bytes that the spool may hold: client.spool_bytes_max";
    CLIENT_SPOOL_DROPPED: Counter<SpoolLoss> = "vogeler_client_spool_dropped_total", Count, Client, "Results that were lost before the broker had them, by reason";
    CLIENT_PLUGIN_PROBLEMS: Gauge = "vogeler_client_plugin_problems", Count, Client, "Problems in plugin files: what is not used, or stays as it was before the last reload";
    CLIENT_PUBLISH_SECONDS: Histogram = "vogeler_client_publish_seconds", Seconds, Client, "From publish to the broker's confirm";
    CLIENT_PUBLISHED: Counter<PublishOutcome> = "vogeler_client_published_total", Count, Client, "Tries to publish a result, by outcome";
    CLIENT_LAST_PUBLISH_TIMESTAMP_SECONDS: Gauge = "vogeler_client_last_publish_timestamp_seconds", Seconds, Client, "When the broker last confirmed a result, in Unix time; 0 for never";

    // Either.
    UP: Gauge<Part> = "vogeler_up", Count, Both, "Whether broker or store can be used: 1 or 0; a client has no store";
    RECONNECTS: Counter<Part> = "vogeler_reconnects_total", Count, Both, "Times that broker or store came back after they were away";
    BROKER_LOGINS_REFUSED: Counter = "vogeler_broker_logins_refused_total", Count, Both, "Logins that the broker refused: user, password or virtual host";
    MESSAGES_TRIMMED: Counter = "vogeler_messages_trimmed_total", Count, Both, "Messages that came with properties that cannot be read, or are too large, and were taken without those";
    HTTP_REFUSED: Counter<HttpRefusal> = "vogeler_http_refused_total", Count, Both, "HTTP requests not answered, by reason: for another host, too slow, or on the oldest of too many connections";
    BUILD_INFO: Gauge<Version> = "vogeler_build_info", Count, Both, "Always 1; the version is a label";

    // The process, as metrics-process tells it.
    PROCESS_CPU_SECONDS: Counter = "process_cpu_seconds_total", Seconds, Both, "CPU time of user and system, in whole seconds";
    PROCESS_RESIDENT_MEMORY_BYTES: Gauge = "process_resident_memory_bytes", Bytes, Both, "Resident memory";
    PROCESS_VIRTUAL_MEMORY_BYTES: Gauge = "process_virtual_memory_bytes", Bytes, Both, "Virtual memory";
    PROCESS_VIRTUAL_MEMORY_MAX_BYTES: Gauge = "process_virtual_memory_max_bytes", Bytes, Both, "Virtual memory that the process may have";
    PROCESS_OPEN_FDS: Gauge = "process_open_fds", Count, Both, "Open file descriptors";
    PROCESS_MAX_FDS: Gauge = "process_max_fds", Count, Both, "File descriptors that the process may have";
    PROCESS_THREADS: Gauge = "process_threads", Count, Both, "Threads";
    PROCESS_START_TIME_SECONDS: Gauge = "process_start_time_seconds", Seconds, Both, "When the process started, in Unix time";
}
