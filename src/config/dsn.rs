//! DSNs: which broker, which store, with whose credentials. They print and log without the password.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use url::Url;

/// A text that is no DSN of the kind wanted. The message never holds a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DsnError(String);

/// Which broker.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum BrokerDsn {
    /// `memory:`, one process.
    Memory,
    /// `amqp(s)://…`, RabbitMQ.
    Amqp(AmqpUrl),
}

/// An `amqp(s)://` URL. [`AmqpUrl::expose`] gives it with the password, everything else without.
#[derive(Clone, PartialEq, Eq)]
pub struct AmqpUrl(Url);

/// Which store.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum StoreDsn {
    /// `memory:`, for tests.
    Memory,
    /// `sqlite:/path`, embedded.
    Sqlite(PathBuf),
    /// `couch(s)://…`, CouchDB.
    Couch(CouchUrl),
}

/// Where a CouchDB database is, and who asks.
#[derive(Clone, PartialEq, Eq)]
pub struct CouchUrl {
    /// `http://host:port` or `https://host:port`, without credentials and path.
    pub base: Url,
    /// The database's name, decoded.
    pub database: String,
    /// User and password, decoded.
    pub credentials: Option<(String, String)>,
}

impl Default for BrokerDsn {
    fn default() -> Self {
        todo!("helper: config")
    }
}

impl Default for StoreDsn {
    fn default() -> Self {
        todo!("helper: config")
    }
}

impl AmqpUrl {
    /// The URL with its password: for the connection only.
    pub fn expose(&self) -> &Url {
        &self.0
    }
}

macro_rules! dsn_text {
    ($type:ident) => {
        impl FromStr for $type {
            type Err = DsnError;
            fn from_str(_text: &str) -> Result<Self, DsnError> {
                todo!("helper: config")
            }
        }
        impl TryFrom<String> for $type {
            type Error = DsnError;
            fn try_from(text: String) -> Result<Self, DsnError> {
                text.parse()
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, _f: &mut fmt::Formatter<'_>) -> fmt::Result {
                todo!("helper: config")
            }
        }
        impl From<$type> for String {
            fn from(dsn: $type) -> String {
                dsn.to_string()
            }
        }
    };
}
dsn_text!(BrokerDsn);
dsn_text!(StoreDsn);
