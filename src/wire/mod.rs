//! What travels between runner, client and server: names, commands, results and receipts, in both wire versions.
//!
//! Bytes come in, validated types go out, and back. Invariant: a value of one of these types is always
//! safe to put into a queue name, a routing key and a document id; nothing past this module checks names again.

mod command;
mod name;
mod nesting;
mod receipt;
mod result;

pub use command::{Command, DecodeCommandError};
pub use name::{
    GROUP_BYTES_MAX, Group, NODE_NAME_BYTES_MAX, NameError, NodeName, OWN_KEYS,
    PLUGIN_NAME_BYTES_MAX, PluginName, RunId,
};
pub use nesting::{DEPTH_MAX, levels};
pub use receipt::{Outcome, Receipt, ReceiptBatch};
pub(crate) use result::brief;
pub use result::{
    Arrival, Content, ContentHash, DecodeError, Decoded, ERROR_MESSAGE_BYTES_MAX, ErrorKind,
    Format, PluginError, PluginResult, Seq, truncate,
};

/// The `v` member of every message of ours; the messages of 2010 have none.
pub const WIRE_VERSION: u8 = 2;

/// Size that any message may reach on the server, unpacked or as a value, however small it is; in bytes. Above this size
/// `server.amplification_max` limits it. A value of this size costs some 10 ms, and output that repeats itself (a log, a
/// table of zeros) packs more than a hundredfold.
pub const AMPLIFIED_BYTES_FREE: usize = 1024 * 1024;

/// The plugin under which a client reports itself (version, groups, registered plugins) when it starts.
///
/// It makes every client a node document before any command, so a run on `all` knows whom to wait for.
/// A plugin file may not use the name.
pub const CLIENT_PLUGIN: &str = "client";

/// The message header in which a client says when it published a result, in milliseconds of Unix time. It has the prefix
/// of the headers that a replay removes.
pub const PUBLISHED_HEADER: &str = "x-vogeler-published-ms";
