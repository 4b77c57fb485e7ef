//! The configuration: every setting, documented, defaulted, checked once, then passed resolved.
//!
//! One TOML file; precedence is flags, then environment (`VOGELER_<SECTION>_<KEY>`), then file, then default.
//! Unknown keys and bad values are errors that name the key, the value and what is allowed. Credentials live in
//! DSNs, which print without their password. `etc/vogeler/vogeler.toml` shows every key, and a test holds it to that.

mod dsn;
mod error;
mod hosts;
mod keys;
mod limits;
mod listen;
mod load;
pub mod span;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use dsn::{AmqpUrl, BrokerDsn, CouchUrl, DsnError, StoreDsn};
pub use error::{ConfigError, Origin};
pub use hosts::HttpHost;
pub use limits::validate;
pub use load::{DEFAULT_FILE, Loaded, Override, load};

use crate::broker::topology::QueueType;
use crate::wire::{Group, NodeName};

/// All settings.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `[broker]`: what carries messages.
    pub broker: Broker,
    /// `[store]`: where node documents live.
    pub store: Store,
    /// `[server]`: the ingest server.
    pub server: Server,
    /// `[client]`: the agent on a node.
    pub client: Client,
    /// `[http]`: probes and metrics of the server.
    pub http: Http,
    /// `[log]`: what is logged, and how.
    pub log: Log,
}

/// `[broker]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Broker {
    /// `amqp://user:password@host:5672/vhost`, `amqps://…`, or `memory:` (one process). Default
    /// `amqp://guest:guest@127.0.0.1:5672/%2f`, RabbitMQ's own.
    pub dsn: BrokerDsn,
    /// Number of partition queues, over which results are spread; 1 to 256. Clients do not know it. Default 16: several
    /// servers can share them. A server that holds all 16 has up to 32,000 deliveries at once, in which results of one node
    /// meet.
    pub partitions: u16,
    /// `quorum` (default) or `classic`: how RabbitMQ keeps the partition queues and the dead letters.
    pub queue_type: QueueType,
    /// AMQP heartbeat; a silent connection is given up after twice this. Default 10 s.
    #[serde(with = "span")]
    pub heartbeat: Duration,
    /// Longest wait for a connection. Default 10 s.
    #[serde(with = "span")]
    pub connect_timeout: Duration,
    /// Longest wait for the confirm of one message, resends included. Default 30 s.
    #[serde(with = "span")]
    pub publish_timeout: Duration,
    /// Longest pause between two tries to connect; the first pause is a hundredth of it. Default 10 s.
    #[serde(with = "span")]
    pub reconnect_max: Duration,
    /// Longest pause between two logins while the broker refuses our user, password or virtual host. The first pause is a
    /// 64th of it, and each is longer than the last. Default 5 min: after a password change the broker refuses the whole
    /// fleet at once.
    #[serde(with = "span")]
    pub refused_pause_max: Duration,
}

impl Default for Broker {
    fn default() -> Self {
        Self {
            dsn: BrokerDsn::default(),
            partitions: 16,
            queue_type: QueueType::Quorum,
            heartbeat: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(10),
            publish_timeout: Duration::from_secs(30),
            reconnect_max: Duration::from_secs(10),
            refused_pause_max: Duration::from_mins(5),
        }
    }
}

/// `[store]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    /// `couch://user:password@host:5984/database`, `couchs://…` (TLS), `sqlite:/path/to/file` or `memory:`.
    /// Default `couch://127.0.0.1:5984/system_records`, the database of 2010.
    pub dsn: StoreDsn,
    /// Whether the server creates a missing database. If not, it is not ready until `vogeler admin setup` creates one.
    /// Default false: an operator should hear of a database that vanished.
    pub create: bool,
    /// Longest wait for one request to the store. Default 30 s.
    #[serde(with = "span")]
    pub timeout: Duration,
    /// Largest request body sent, in bytes; larger requests are split. Default 16 MiB, far below CouchDB's 4 GiB.
    pub request_bytes_max: usize,
    /// Smallest request body that is sent with gzip, in bytes; 0 never uses gzip. Default 0: on a local network the
    /// processor is the bottleneck. Across sites try 65536.
    pub gzip_bytes_min: usize,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            dsn: StoreDsn::default(),
            create: false,
            timeout: Duration::from_secs(30),
            request_bytes_max: 16 * 1024 * 1024,
            gzip_bytes_min: 0,
        }
    }
}

/// `[server]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// Most unsettled deliveries of each partition queue's channel, 1 to 2,000 (the most a quorum queue allows). A channel
    /// begins with few and adapts to the sizes of its messages, within `bytes_in_flight_max`. `partitions × prefetch` must
    /// be at least `batch_count_max × writes_in_flight`. Default 2,000: the more deliveries a server holds, the more results
    /// of one node meet in a backlog and share a write.
    pub prefetch: u16,
    /// Most bytes of messages that results in work hold at once; at the bound the server takes in nothing more. Default
    /// 256 MiB. As many bytes again may wait, as received, in even shares for each partition. A partition's prefetch is what
    /// its share holds by the sizes seen: one of 16 partitions has the whole `prefetch` up to 8 KB a message. The process
    /// stays within twice this plus 100 MB; where a share is smaller than a message, add one message a partition.
    pub bytes_in_flight_max: usize,
    /// Largest message taken, unpacked, in bytes; larger ones are dead letters. Default 8,000,000, CouchDB's
    /// `max_document_size`.
    pub message_bytes_max: usize,
    /// How many times its own size a message may reach, unpacked or as a value. A message that exceeds both this and 1 MiB
    /// is a dead letter. Default 100: package lists and facts pack 5 to 20 fold, compression bombs many thousand fold.
    pub amplification_max: usize,
    /// Results waiting for one node's actor before the router waits. Default 64.
    pub node_mailbox: usize,
    /// A node's actor stops after this time without a result. What it knows of the node stays until `freshness` has
    /// passed: some 150 bytes, and as much again for each plugin. Default 5 s.
    #[serde(with = "span")]
    pub node_idle: Duration,
    /// Most documents a write. Default 100: with more, CouchDB gains little rate and much latency (measured).
    pub batch_count_max: usize,
    /// Most bytes of results a write. However large this is, all writes under way together have at most a quarter of
    /// `bytes_in_flight_max`. Default 4 MiB.
    pub batch_bytes_max: usize,
    /// How long a batch that is not full waits for more. Default 20 ms.
    #[serde(with = "span")]
    pub linger: Duration,
    /// How long a full batch waits while most results join nodes that already wait for a write, as in a backlog with
    /// several results of each node: the results of a node become one write. Default 500 ms; 0 never waits.
    #[serde(with = "span")]
    pub linger_max: Duration,
    /// Most writes under way at once; batches that are not full use half of them. Default 4.
    pub writes_in_flight: usize,
    /// A write that fails or takes longer than this halves the documents a write and the writes at once; good writes
    /// bring them back step by step. Default 5 s, well below `store.timeout`.
    #[serde(with = "span")]
    pub write_target: Duration,
    /// When the stored check is older than this, an unchanged result is written too, for its `checked_at`. Default 15 min.
    #[serde(with = "span")]
    pub freshness: Duration,
    /// Most bytes of node documents kept in memory as last written, so that a warm node's next write needs no read; 0
    /// keeps none. However large this is, at most a quarter of `bytes_in_flight_max` is used: a small server keeps few.
    /// Default 32 MiB, some 10,000 documents of 2 KB.
    pub document_cache_bytes_max: usize,
    /// How many times a conflicting document is read, merged and written again before its results go back to the
    /// broker. Default 10.
    pub conflict_retries_max: u32,
    /// Longest pause before a failed write is tried again. Default 30 s.
    #[serde(with = "span")]
    pub retry_max: Duration,
    /// Pause between tries while the store refuses our user or password. Default 30 s: CouchDB locks an address out
    /// after five refusals in a row.
    #[serde(with = "span")]
    pub refused_pause: Duration,
    /// Longest time results are held while the store is away; then they go back to the broker, once, and nothing is
    /// pulled until the store is back. Default 10 min, a third of RabbitMQ's consumer timeout, after which it closes the
    /// channel.
    #[serde(with = "span")]
    pub hold_max: Duration,
    /// How long a stop may take to write and settle the results pulled; the rest goes back to the broker. Default 25 s,
    /// below systemd's 90 s and Kubernetes' 30 s.
    #[serde(with = "span")]
    pub drain_timeout: Duration,
    /// Pause between two checks that exchanges, queues and bindings are at the broker. Each check declares them again, so
    /// what somebody deleted is back within this time. Default 30 s; a check takes the broker some milliseconds.
    #[serde(with = "span")]
    pub redeclare_every: Duration,
    /// How long receipts wait for more, to travel in one message. Default 100 ms.
    #[serde(with = "span")]
    pub receipt_linger: Duration,
    /// A node counts as stale when its document did not change for this time, or for `freshness` if that is longer.
    /// Default 24 h.
    #[serde(with = "span")]
    pub stale_after: Duration,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            prefetch: 2000,
            bytes_in_flight_max: 256 * 1024 * 1024,
            message_bytes_max: 8_000_000,
            amplification_max: 100,
            node_mailbox: 64,
            node_idle: Duration::from_secs(5),
            batch_count_max: 100,
            batch_bytes_max: 4 * 1024 * 1024,
            linger: Duration::from_millis(20),
            linger_max: Duration::from_millis(500),
            writes_in_flight: 4,
            write_target: Duration::from_secs(5),
            freshness: Duration::from_mins(15),
            document_cache_bytes_max: 32 * 1024 * 1024,
            conflict_retries_max: 10,
            retry_max: Duration::from_secs(30),
            refused_pause: Duration::from_secs(30),
            hold_max: Duration::from_mins(10),
            drain_timeout: Duration::from_secs(25),
            redeclare_every: Duration::from_secs(30),
            receipt_linger: Duration::from_millis(100),
            stale_after: Duration::from_hours(24),
        }
    }
}

/// `[client]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Client {
    /// This machine's name. Default: its host name.
    pub node: Option<NodeName>,
    /// Groups this machine is in; a run on `@web` reaches it if `web` is among them. Default none.
    pub groups: Vec<Group>,
    /// Folder whose `*.cfg` name the plugins that may run. Default `/etc/vogeler/plugins`.
    pub plugins: PathBuf,
    /// Folder for the sequence, the results not yet confirmed and the marks of what runs. Default `/var/lib/vogeler`.
    pub state: PathBuf,
    /// Plugins that run at once. Default 2.
    pub concurrency: usize,
    /// Longest run of a plugin that names no `timeout` of its own. Default 60 s.
    #[serde(with = "span")]
    pub timeout: Duration,
    /// Most output of a plugin, in bytes; a plugin that prints more is killed. Default 4 MiB.
    pub output_bytes_max: usize,
    /// Smallest result that travels packed with zstd, in bytes. Default 4,096.
    pub zstd_bytes_min: usize,
    /// Most results kept on disk while the broker is away. When there are more, results that a newer one of the same
    /// plugin supersedes go first, then the oldest. Default 1,000.
    pub spool_count_max: usize,
    /// Most bytes of results kept on disk while the broker is away; the same results go first. Default 64 MiB.
    pub spool_bytes_max: u64,
    /// Where the client answers `/` (status page), `/metrics`, `/livez` and `/readyz`. Default nowhere.
    #[serde(deserialize_with = "listen::option")]
    pub http_listen: Option<SocketAddr>,
}

impl Default for Client {
    fn default() -> Self {
        Self {
            node: None,
            groups: Vec::new(),
            plugins: PathBuf::from("/etc/vogeler/plugins"),
            state: PathBuf::from("/var/lib/vogeler"),
            concurrency: 2,
            timeout: Duration::from_mins(1),
            output_bytes_max: 4 * 1024 * 1024,
            zstd_bytes_min: 4096,
            spool_count_max: 1000,
            spool_bytes_max: 64 * 1024 * 1024,
            http_listen: None,
        }
    }
}

/// `[http]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// Whether the server answers HTTP at all. If not, it records no metrics either: nobody could read them. Default
    /// true; `make bench` says what metrics cost.
    pub enabled: bool,
    /// Where the server answers `/` (status page), `/metrics`, `/livez` and `/readyz`. Default `127.0.0.1:9877`; port 0
    /// takes a free one, which is logged.
    #[serde(deserialize_with = "listen::deserialize")]
    pub listen: SocketAddr,
    /// Names that server and client accept as `Host`, besides `localhost` and their addresses: what Prometheus or a
    /// reverse proxy sends. `*.example.com` is all names of a domain, `*` any name. On loopback, only loopback addresses are
    /// accepted; elsewhere, any address and the machine's host name. Default none: a web page whose name is made to point at
    /// this machine (DNS rebinding) must not read the answers.
    pub hosts: Vec<HttpHost>,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            enabled: true,
            listen: SocketAddr::from(([127, 0, 0, 1], 9877)),
            hosts: Vec::new(),
        }
    }
}

/// `[log]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug`, `trace`, or directives such as `info,vogeler::store=debug`. Default `info`
    /// for server and client, `warn` for the commands that answer an operator.
    pub level: Option<String>,
    /// `text` (default) or `json`.
    pub format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line, for programs.
    Json,
}
