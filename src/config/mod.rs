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
    /// Partition queues that results are spread over, 1 to 256; the server's side alone. Default 16: some servers
    /// can share them, and one that holds them all has 32,000 deliveries at once, in which a node's results meet.
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
    /// Longest pause between two tries to connect; the first is a hundredth of it. Default 10 s.
    #[serde(with = "span")]
    pub reconnect_max: Duration,
    /// Longest pause between two logins while the broker refuses our user, password or virtual host; the first is a
    /// 64th of it, and each is longer than the last. Default 5 min: a password that changed is refused to the whole fleet at once.
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
    /// Whether the server creates a missing database; otherwise it is not ready until `vogeler admin setup` did.
    /// Default false: a database that vanished is news, not something to paper over.
    pub create: bool,
    /// Longest wait for one request to the store. Default 30 s.
    #[serde(with = "span")]
    pub timeout: Duration,
    /// Largest request body sent, in bytes; more is split. Default 16 MiB, far below CouchDB's 4 GiB.
    pub request_bytes_max: usize,
    /// Request bodies from this size on are sent with gzip, in bytes; 0 is never. Default 0: on a local network
    /// the processor is what is short; across sites try 65536.
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
    /// Deliveries that may be unsettled in each partition queue's channel at most, 1 to 2,000 (the most a quorum queue
    /// allows). It begins with few and follows the sizes that come, as far as `bytes_in_flight_max` allows. Must cover
    /// `batch_count_max × writes_in_flight` over all partitions. Default 2,000: the more a server holds, the more of a
    /// backlog's results of one node meet and are one write.
    pub prefetch: u16,
    /// Bytes of messages that results in work hold at once; past it nothing more is taken in. Default 256 MiB. As many may
    /// wait beside it as they came, an even share for each partition: the prefetch of a partition is what its share holds by
    /// the sizes seen, so a partition of 16 has the whole `prefetch` up to 8 KB a message. The process stays within twice
    /// this and 100 MB, and one message a partition where a share is smaller than a message.
    pub bytes_in_flight_max: usize,
    /// Largest message taken, unpacked, in bytes; larger ones are dead letters. Default 8,000,000, CouchDB's
    /// `max_document_size`.
    pub message_bytes_max: usize,
    /// How many times its size a message may become, unpacked or as a value; above that, and above 1 MiB, it is a dead
    /// letter. Default 100: package lists and facts pack 5 to 20 fold, compression bombs many thousand fold.
    pub amplification_max: usize,
    /// Results waiting for one node's actor before the router waits. Default 64.
    pub node_mailbox: usize,
    /// A node's actor stops when it heard nothing for so long; what it knows of the node stays (some 150 bytes, and as
    /// much again for each plugin) until `freshness` has passed. Default 5 s.
    #[serde(with = "span")]
    pub node_idle: Duration,
    /// Documents a write at most. Default 100: past it CouchDB gains little rate and much latency (measured).
    pub batch_count_max: usize,
    /// Bytes of results a write at most; the writes under way at once have at most a quarter of `bytes_in_flight_max`
    /// together, however large this is set. Default 4 MiB.
    pub batch_bytes_max: usize,
    /// How long a batch that is not full waits for more. Default 20 ms.
    #[serde(with = "span")]
    pub linger: Duration,
    /// How long a full batch waits while most results join nodes that wait already, as in a backlog with several
    /// results of each node: they become one write. Default 500 ms; 0 never waits.
    #[serde(with = "span")]
    pub linger_max: Duration,
    /// Writes under way at once, at most; batches that are not full use half of them. Default 4.
    pub writes_in_flight: usize,
    /// A write that takes longer, or fails, halves the documents a write and the writes at once; good ones bring them
    /// back step by step. Default 5 s, well below `store.timeout`.
    #[serde(with = "span")]
    pub write_target: Duration,
    /// An unchanged result is written all the same (its `checked_at`) when the stored check is older. Default 15 min.
    #[serde(with = "span")]
    pub freshness: Duration,
    /// Bytes of node documents kept as they were written last, so that a warm node's next write needs no read; 0
    /// keeps none. At most a quarter of `bytes_in_flight_max`, however large it is set: a small server keeps few. Default 32 MiB,
    /// some 10,000 documents of 2 KB.
    pub document_cache_bytes_max: usize,
    /// How often a conflicting document is read, merged and written again before its results go back to the
    /// broker. Default 10.
    pub conflict_retries_max: u32,
    /// Longest pause before a failed write is tried again. Default 30 s.
    #[serde(with = "span")]
    pub retry_max: Duration,
    /// Pause between tries while the store refuses our user or password. Default 30 s: CouchDB locks an address out
    /// after five refusals in a row.
    #[serde(with = "span")]
    pub refused_pause: Duration,
    /// Longest time results are held while the store is away; then they go back to the broker, once, and
    /// nothing is pulled until the store is back. Default 10 min, a third of RabbitMQ's consumer timeout, past which it would close the channel.
    #[serde(with = "span")]
    pub hold_max: Duration,
    /// How long a stop may take to write and settle what was pulled; the rest goes back to the broker. Default 25 s,
    /// below systemd's 90 s and Kubernetes' 30 s.
    #[serde(with = "span")]
    pub drain_timeout: Duration,
    /// How often the server looks whether exchanges, queues and bindings are at the broker, and declares them again: what
    /// somebody deleted is back after so long. Default 30 s; a look takes the broker some milliseconds.
    #[serde(with = "span")]
    pub redeclare_every: Duration,
    /// How long receipts wait for company. Default 100 ms.
    #[serde(with = "span")]
    pub receipt_linger: Duration,
    /// A node counts as stale when its document did not change for so long, `freshness` at least. Default 24 h.
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
    /// Time a plugin may take that names no `timeout` of its own. Default 60 s.
    #[serde(with = "span")]
    pub timeout: Duration,
    /// Output a plugin may print, in bytes; past it the plugin is killed. Default 4 MiB.
    pub output_bytes_max: usize,
    /// Results from this size on travel packed with zstd, in bytes. Default 4,096.
    pub zstd_bytes_min: usize,
    /// Results kept on disk while the broker is away; past it those go that a newer one of the same plugin supersedes,
    /// then the oldest. Default 1,000.
    pub spool_count_max: usize,
    /// The same in bytes. Default 64 MiB.
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
    /// Whether the server answers at all. Without it no metrics are recorded either: nobody could read them. Default
    /// true; `make bench` says what they cost.
    pub enabled: bool,
    /// Where the server answers `/` (status page), `/metrics`, `/livez` and `/readyz`. Default `127.0.0.1:9877`; port 0
    /// takes a free one, which is logged.
    #[serde(deserialize_with = "listen::deserialize")]
    pub listen: SocketAddr,
    /// Names under which server and client may be asked, besides `localhost` and their addresses: what Prometheus or a
    /// reverse proxy sends as `Host`. `*.example.com` is all names of a domain, `*` any name. On loopback only loopback
    /// addresses count, elsewhere any address and the machine's host name. Default none: a web page whose name is made to
    /// point at this machine (DNS rebinding) must not read the answers.
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
