//! DSNs: which broker, which store, with whose credentials.
//!
//! Text in, checked parts out. Invariant: no `Display`, `Debug`, serialised form or error here holds a password;
//! it leaves only through [`AmqpUrl::expose`] and [`CouchUrl::credentials`].

mod parts;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use url::Url;

use parts::{credentials, database, memory, parse_url, scheme, sqlite, unknown_scheme};

/// What stands in place of a password.
const REDACTED: &str = "***";
const AMQP_DEFAULT: &str = "amqp://guest:guest@127.0.0.1:5672/%2f";
const BROKER_FORMS: &str =
    "amqp://USER:PASSWORD@HOST:5672/VHOST, amqps://… (TLS) or memory: (one process)";
const STORE_FORMS: &str = "couch://USER:PASSWORD@HOST:5984/DATABASE, couchs://… (TLS), sqlite:/PATH/TO/FILE or memory: (tests)";

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
    /// RabbitMQ's own: user `guest` on this machine.
    fn default() -> Self {
        // The text is a constant that a test parses. If it ever failed to parse, a broker without a network is safe.
        AMQP_DEFAULT.parse().unwrap_or(Self::Memory)
    }
}

impl Default for StoreDsn {
    /// `couch://127.0.0.1:5984/system_records`, the database of 2010.
    fn default() -> Self {
        "couch://127.0.0.1:5984/system_records"
            .parse()
            .unwrap_or(Self::Memory)
    }
}

impl BrokerDsn {
    /// Whether a password is in it.
    pub fn has_password(&self) -> bool {
        matches!(self, Self::Amqp(AmqpUrl(url)) if url.password().is_some())
    }
}

impl StoreDsn {
    /// Whether a password is in it.
    pub fn has_password(&self) -> bool {
        matches!(self, Self::Couch(url) if url.credentials.is_some())
    }
}

impl AmqpUrl {
    /// The URL with its password: for the connection only.
    pub fn expose(&self) -> &Url {
        &self.0
    }

    fn parse(text: &str) -> Result<Self, DsnError> {
        let url = parse_url(text, BROKER_FORMS)?;
        credentials(&url)?;
        if url.path().matches('/').count() > 1 {
            return Err(DsnError(format!(
                "a virtual host is one part of a path; a '/' in its name is written %2f: {BROKER_FORMS}"
            )));
        }
        Ok(Self(url))
    }
}

impl fmt::Display for AmqpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut url = self.0.clone();
        if url.password().is_some() && url.set_password(Some(REDACTED)).is_err() {
            return f.write_str(REDACTED);
        }
        fmt::Display::fmt(&url, f)
    }
}

impl CouchUrl {
    fn parse(text: &str) -> Result<Self, DsnError> {
        let url = parse_url(text, STORE_FORMS)?;
        let (http, port) = match url.scheme() {
            "couchs" => ("https", 6984),
            _ => ("http", 5984),
        };
        if url.query().is_some() {
            return Err(DsnError(format!(
                "a CouchDB DSN has no '?' (in a password it is written %3f): {STORE_FORMS}"
            )));
        }
        let host = url.host_str().unwrap_or_default();
        let base = format!("{http}://{host}:{}", url.port().unwrap_or(port));
        Ok(Self {
            base: base
                .parse()
                .map_err(|error| DsnError(format!("the host is not one ({error})")))?,
            database: database(url.path())?,
            credentials: credentials(&url)?,
        })
    }
}

impl fmt::Display for CouchUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, port) = match self.base.scheme() {
            "https" => ("couchs", 443),
            _ => ("couch", 80),
        };
        let mut url = format!("{scheme}://");
        if let Some((user, _)) = &self.credentials {
            url.push_str(&encode(user));
            url.push(':');
            url.push_str(REDACTED);
            url.push('@');
        }
        let host = self.base.host_str().unwrap_or_default();
        let port = self.base.port().unwrap_or(port);
        write!(f, "{url}{host}:{port}/{}", encode(&self.database))
    }
}

fn encode(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC)
        .to_string()
        .replace("%5F", "_")
        .replace("%2D", "-")
        .replace("%2E", ".")
}

impl FromStr for BrokerDsn {
    type Err = DsnError;
    fn from_str(text: &str) -> Result<Self, DsnError> {
        match scheme(text) {
            Some("memory") => memory(text, BROKER_FORMS).map(|()| Self::Memory),
            Some("amqp" | "amqps") => AmqpUrl::parse(text).map(Self::Amqp),
            other => Err(unknown_scheme(other, text, "broker", BROKER_FORMS)),
        }
    }
}

impl FromStr for StoreDsn {
    type Err = DsnError;
    fn from_str(text: &str) -> Result<Self, DsnError> {
        match scheme(text) {
            Some("memory") => memory(text, STORE_FORMS).map(|()| Self::Memory),
            Some("sqlite") => sqlite(text).map(Self::Sqlite),
            Some("couch" | "couchs") => CouchUrl::parse(text).map(Self::Couch),
            other => Err(unknown_scheme(other, text, "store", STORE_FORMS)),
        }
    }
}

impl fmt::Display for BrokerDsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory:"),
            Self::Amqp(url) => fmt::Display::fmt(url, f),
        }
    }
}

impl fmt::Display for StoreDsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory:"),
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::Couch(url) => fmt::Display::fmt(url, f),
        }
    }
}

macro_rules! debug_is_display {
    ($($type:ident),*) => {$(
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    )*};
}
debug_is_display!(AmqpUrl, CouchUrl, BrokerDsn, StoreDsn);

macro_rules! through_text {
    ($($type:ident),*) => {$(
        impl TryFrom<String> for $type {
            type Error = DsnError;
            fn try_from(text: String) -> Result<Self, DsnError> {
                text.parse()
            }
        }
        impl From<$type> for String {
            fn from(dsn: $type) -> String {
                dsn.to_string()
            }
        }
    )*};
}
through_text!(BrokerDsn, StoreDsn);

#[cfg(test)]
mod tests;
