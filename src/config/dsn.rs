//! DSNs: which broker, which store, with whose credentials.
//!
//! Text in, checked parts out. Invariant: no `Display`, `Debug`, serialised form or error here holds a password;
//! it leaves only through [`AmqpUrl::expose`] and [`CouchUrl::credentials`].

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use url::Url;

/// What stands in place of a password.
const REDACTED: &str = "***";
/// Longest name of a CouchDB database, in bytes: CouchDB's own limit.
const DATABASE_BYTES_MAX: usize = 238;
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
        // The text is a constant that a test parses; should it ever not parse, a broker without a network is safe.
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

/// The scheme, where the text has one: it is safe to print, as no password comes before the first `:`.
fn scheme(text: &str) -> Option<&str> {
    let (scheme, _) = text.split_once(':')?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
    (!scheme.is_empty() && scheme.chars().all(plain)).then_some(scheme)
}

fn unknown_scheme(scheme: Option<&str>, text: &str, what: &str, forms: &str) -> DsnError {
    // `user:password@host` has a user where a scheme should be: only what stands before `://` is repeated.
    match scheme.filter(|scheme| text[scheme.len()..].starts_with("://")) {
        Some(scheme) => DsnError(format!(
            "{scheme:?} is not a kind of {what}; allowed are {forms}"
        )),
        None => DsnError(format!(
            "it does not start with a kind of {what} such as {forms}"
        )),
    }
}

fn memory(text: &str, forms: &str) -> Result<(), DsnError> {
    match text {
        "memory:" | "memory://" => Ok(()),
        _ => Err(DsnError(format!(
            "nothing may follow \"memory:\"; allowed are {forms}"
        ))),
    }
}

fn sqlite(text: &str) -> Result<PathBuf, DsnError> {
    let path = text.strip_prefix("sqlite:").unwrap_or_default();
    let path = path.strip_prefix("//").unwrap_or(path);
    match path {
        "" => Err(DsnError(
            "the path is missing: sqlite:/PATH/TO/FILE".to_owned(),
        )),
        ":memory:" => Err(DsnError(
            "a store in memory is written \"memory:\", a file sqlite:/PATH/TO/FILE".to_owned(),
        )),
        path => Ok(PathBuf::from(path)),
    }
}

fn parse_url(text: &str, forms: &str) -> Result<Url, DsnError> {
    let url = Url::parse(text).map_err(|error| match error {
        url::ParseError::InvalidPort => DsnError(
            "the port is not a number from 1 to 65535 (in a password, '/' is written %2f, '#' %23, '?' %3f)"
                .to_owned(),
        ),
        error => DsnError(format!("{error}: write it as {forms}")),
    })?;
    if url.host_str().is_none_or(str::is_empty) {
        return Err(DsnError(format!(
            "the host is missing: write it as {forms}"
        )));
    }
    // Then what was meant as the password stands in the path, where it would be printed.
    let misplaced = url.query().is_some_and(|query| query.contains('@'));
    if url.path().contains('@') || misplaced || url.fragment().is_some() {
        return Err(DsnError(
            "there is a '@' or '#' after the host (in a password, '/' is written %2f, '#' %23, '?' %3f, '@' %40)"
                .to_owned(),
        ));
    }
    if url.port() == Some(0) {
        return Err(DsnError(
            "the port is not a number from 1 to 65535".to_owned(),
        ));
    }
    Ok(url)
}

/// User and password, decoded; a user alone has an empty password.
fn credentials(url: &Url) -> Result<Option<(String, String)>, DsnError> {
    let decode = |text: &str, what: &str| {
        percent_decode_str(text)
            .decode_utf8()
            .map(String::from)
            .map_err(|_| DsnError(format!("the {what} is not UTF-8 once its %xx are decoded")))
    };
    if url.username().is_empty() && url.password().is_none() {
        return Ok(None);
    }
    let user = decode(url.username(), "user")?;
    let password = decode(url.password().unwrap_or_default(), "password")?;
    Ok(Some((user, password)))
}

/// The database that a path names, by CouchDB's own rule.
fn database(path: &str) -> Result<String, DsnError> {
    let segment = path.trim_start_matches('/').trim_end_matches('/');
    if segment.is_empty() {
        return Err(DsnError(format!(
            "the name of the database is missing: {STORE_FORMS}"
        )));
    }
    let bad = |problem: &str| DsnError(format!("the name of the database {problem}"));
    if segment.contains('/') {
        return Err(bad("is one part of a path; a '/' in it is written %2f"));
    }
    let name = percent_decode_str(segment)
        .decode_utf8()
        .map_err(|_| bad("is not UTF-8 once its %xx are decoded"))?;
    if name.len() > DATABASE_BYTES_MAX {
        return Err(bad(&format!(
            "is {} bytes long, at most {DATABASE_BYTES_MAX} are allowed",
            name.len()
        )));
    }
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_$()+-/".contains(c);
    if !name.starts_with(|c: char| c.is_ascii_lowercase()) || !name.chars().all(allowed) {
        return Err(bad(
            "starts with a letter a-z and goes on with a-z, 0-9 and _$()+-/ (CouchDB's rule)",
        ));
    }
    Ok(name.into_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn broker_error(text: &str) -> String {
        text.parse::<BrokerDsn>().unwrap_err().to_string()
    }

    fn store_error(text: &str) -> String {
        text.parse::<StoreDsn>().unwrap_err().to_string()
    }

    fn couch(text: &str) -> CouchUrl {
        match text.parse() {
            Ok(StoreDsn::Couch(url)) => url,
            other => panic!("{other:?}"),
        }
    }

    /// Goal: the documented defaults are what the constants parse to.
    #[test]
    fn defaults_are_the_documented_ones() {
        assert_eq!(
            BrokerDsn::default().to_string(),
            "amqp://guest:***@127.0.0.1:5672/%2f"
        );
        let BrokerDsn::Amqp(url) = BrokerDsn::default() else {
            panic!("not amqp");
        };
        assert_eq!(url.expose().as_str(), AMQP_DEFAULT);
        assert_eq!(
            StoreDsn::default().to_string(),
            "couch://127.0.0.1:5984/system_records"
        );
    }

    /// Goal: user, password, host, port and database come out decoded, with CouchDB's ports as default.
    #[test]
    fn couch_parts_are_decoded() {
        let url = couch("couch://a%40b:p%3Aw%2F@db.example.com/sys%2Frec");
        assert_eq!(url.base.as_str(), "http://db.example.com:5984/");
        assert_eq!(url.database, "sys/rec");
        assert_eq!(url.credentials, Some(("a@b".into(), "p:w/".into())));
        assert_eq!(couch("couchs://db/x").base.as_str(), "https://db:6984/");
        assert_eq!(
            couch("couch://[::1]:80/x/").to_string(),
            "couch://[::1]:80/x"
        );
        assert_eq!(
            couch("couch://a%40b:pw@db/x").to_string(),
            "couch://a%40b:***@db:5984/x"
        );
    }

    /// Goal: the embedded stores and the broker of one process are spelled as documented.
    #[test]
    fn memory_and_sqlite_are_understood() {
        assert_eq!("memory:".parse(), Ok(BrokerDsn::Memory));
        assert_eq!("memory:".parse(), Ok(StoreDsn::Memory));
        for text in ["sqlite:/tmp/a.db", "sqlite:///tmp/a.db"] {
            assert_eq!(text.parse(), Ok(StoreDsn::Sqlite("/tmp/a.db".into())));
        }
        assert_eq!("sqlite:a.db".parse(), Ok(StoreDsn::Sqlite("a.db".into())));
    }

    /// Goal: each kind of mistake has an error that says what is wrong and what is allowed.
    #[test]
    fn mistakes_are_named() {
        let cases = [
            (
                broker_error("redis://x"),
                "\"redis\" is not a kind of broker; allowed are amqp://",
            ),
            (broker_error("couch://x/y"), "allowed are amqp://"),
            (broker_error("amqp://"), "host is missing"),
            (
                broker_error("amqp://h:port"),
                "the port is not a number from 1 to 65535",
            ),
            (
                broker_error("amqp://h:99999"),
                "the port is not a number from 1 to 65535",
            ),
            (
                broker_error("amqp://h:0"),
                "the port is not a number from 1 to 65535",
            ),
            (broker_error("amqp://h/a/b"), "written %2f"),
            (
                broker_error("amqp://u:/pw@h"),
                "there is a '@' or '#' after the host",
            ),
            (broker_error("memory:x"), "nothing may follow"),
            (
                store_error("http://h:5984/db"),
                "\"http\" is not a kind of store; allowed are couch://",
            ),
            (
                store_error("couch://h:5984"),
                "the name of the database is missing",
            ),
            (
                store_error("couch://h/"),
                "the name of the database is missing",
            ),
            (store_error("couch://h/_users"), "starts with a letter a-z"),
            (store_error("couch://h/Nodes"), "starts with a letter a-z"),
            (store_error("couch://h/a/b"), "written %2f"),
            (store_error("couch://h/db?x=1"), "no '?'"),
            (
                store_error("couch://u:%ff@h/db"),
                "the password is not UTF-8",
            ),
            (store_error("sqlite:"), "the path is missing"),
            (store_error("sqlite::memory:"), "written \"memory:\""),
            (
                store_error("system_records"),
                "does not start with a kind of store",
            ),
        ];
        for (error, expected) in cases {
            assert!(error.contains(expected), "{error} / {expected}");
        }
        let long = store_error(&format!("couch://h/{}", "x".repeat(239)));
        assert!(long.contains("239 bytes long, at most 238"), "{long}");
    }

    proptest! {
        /// Whatever surrounds it, and whether it parses or not, a password is never printed.
        #[test]
        fn passwords_are_never_printed(
            scheme in "(amqps?|couchs?|http|sqlite|memory|x)?",
            separator in "(://|:|//)",
            user in "[a-z]{0,4}",
            start in "[/?#@]?",
            tail in "(@|@h|@h:1|@h:z|@h/db|@h/DB|@h/a/b|#|/@h|\\?@h)",
        ) {
            let password = "hunter2SECRET";
            let text = format!("{scheme}{separator}{user}:{start}{password}{tail}");
            let printed = [
                text.parse::<BrokerDsn>().map_or_else(|e| e.to_string(), |d| format!("{d} {d:?} {}", String::from(d.clone()))),
                match text.parse::<StoreDsn>() {
                    // A path is no password, whatever it looks like.
                    Ok(StoreDsn::Sqlite(_)) => String::new(),
                    Ok(dsn) => format!("{dsn} {dsn:?} {}", String::from(dsn.clone())),
                    Err(error) => error.to_string(),
                },
            ];
            for text in printed {
                prop_assert!(!text.contains(password), "{}", text);
            }
        }

        /// Nothing that an operator can type makes the parser panic.
        #[test]
        fn any_text_is_a_dsn_or_an_error(text in "\\PC*") {
            drop(text.parse::<BrokerDsn>());
            drop(text.parse::<StoreDsn>());
        }
    }
}
