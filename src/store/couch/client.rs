//! HTTP to one CouchDB database: addresses, credentials, timeouts, sizes. Knows nothing of documents.
//!
//! Every request is bounded by `store.timeout`, every answer by [`RESPONSE_BYTES_MAX`]. The password is in a header
//! marked sensitive and nowhere else: not in the address, not in errors, not in `Debug`.

use std::fmt;
use std::io::Write as _;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use reqwest::{Method, RequestBuilder, redirect};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use url::Url;

use super::StoreError;
use crate::config::CouchUrl;
use crate::wire::brief;

/// Largest answer read, unpacked, in bytes. A load with a larger answer is asked again in halves.
pub(super) const RESPONSE_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Longest wait for a connection, unless `store.timeout` is shorter.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// An idle connection is closed after this time, before CouchDB closes it (default 300 s), so that none is used half
/// closed.
const IDLE_TIMEOUT: Duration = Duration::from_mins(1);
/// Bytes of an answer that go into our error if the answer is no CouchDB error.
const EXCERPT_BYTES: usize = 200;

/// A client for one database.
#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    server: Url,
    database: Url,
    location: String,
    login: Login,
    gzip_bytes_min: usize,
}

/// User and password, if any. `Debug` shows neither.
struct Login(Option<(String, String)>);

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() {
            "Login(…)"
        } else {
            "none"
        })
    }
}

/// An answer, read to its end.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) retry_after: Option<Duration>,
    pub(super) body: Bytes,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum SendError {
    /// The answer is longer than [`RESPONSE_BYTES_MAX`]: asking for less may help.
    TooLong,
    /// Anything else.
    Store(StoreError),
}

/// CouchDB's form of an error.
#[derive(Debug, Default, Deserialize)]
pub(super) struct CouchError {
    /// Its word for it.
    #[serde(default)]
    pub(super) error: String,
    /// Its reason.
    #[serde(default)]
    pub(super) reason: String,
}

impl Client {
    pub(super) fn new(
        url: &CouchUrl,
        timeout: Duration,
        gzip_bytes_min: usize,
    ) -> Result<Self, StoreError> {
        let database = address(&url.base, &[&url.database]);
        let location = database.to_string();
        let failed = |reason: String| StoreError::Protocol {
            store: location.clone(),
            reason,
        };
        // reqwest is built without a TLS provider of its own choice.
        crate::tls::install_crypto_provider();
        let mut builder = reqwest::Client::builder()
            .timeout(timeout)
            .connect_timeout(timeout.min(CONNECT_TIMEOUT))
            .pool_idle_timeout(IDLE_TIMEOUT)
            .redirect(redirect::Policy::none())
            // The DSN alone says where to connect; a proxy from the environment would be a second setting for that.
            .no_proxy()
            .user_agent(concat!("vogeler/", env!("CARGO_PKG_VERSION")));
        if url.base.scheme() == "http" {
            // Plain HTTP needs no certificates: a machine that has none can still reach its CouchDB.
            builder = builder.tls_certs_only([]);
        }
        let http = builder
            .build()
            .map_err(|error| failed(format!("no HTTP client: {}", chain(&error))))?;
        Ok(Self {
            http,
            server: url.base.clone(),
            database,
            location,
            login: Login(url.credentials.clone()),
            gzip_bytes_min,
        })
    }

    /// Address of the database, without credentials.
    pub(super) fn location(&self) -> &str {
        &self.location
    }

    /// Sends a request to `path` below the database.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        json: Option<Vec<u8>>,
    ) -> Result<Reply, StoreError> {
        self.try_send(method, path, query, json)
            .await
            .map_err(|error| match error {
                SendError::TooLong => {
                    self.protocol(format!("an answer of over {RESPONSE_BYTES_MAX} bytes"))
                }
                SendError::Store(error) => error,
            })
    }

    /// Like [`send`](Self::send), for callers that can ask for less.
    pub(super) async fn try_send(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        json: Option<Vec<u8>>,
    ) -> Result<Reply, SendError> {
        let mut url = address(&self.database, path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = self.http.request(method, url);
        if let Some(json) = json {
            request = self.with_body(request, json).map_err(SendError::Store)?;
        }
        self.finish(request).await
    }

    /// `GET /`.
    pub(super) async fn send_to_server(&self) -> Result<Reply, StoreError> {
        let request = self.http.get(self.server.clone());
        let reply = self.finish(request).await;
        reply.map_err(|error| match error {
            SendError::TooLong => self.protocol("a very long welcome".to_owned()),
            SendError::Store(error) => error,
        })
    }

    fn with_body(
        &self,
        request: RequestBuilder,
        json: Vec<u8>,
    ) -> Result<RequestBuilder, StoreError> {
        let request = request.header(CONTENT_TYPE, "application/json");
        if self.gzip_bytes_min == 0 || json.len() < self.gzip_bytes_min {
            return Ok(request.body(json));
        }
        let packed = gzip(&json)
            .map_err(|error| self.protocol(format!("the request cannot be packed: {error}")))?;
        Ok(request.header(CONTENT_ENCODING, "gzip").body(packed))
    }

    async fn finish(&self, request: RequestBuilder) -> Result<Reply, SendError> {
        let request = match &self.login.0 {
            // reqwest marks the header as sensitive.
            Some((user, password)) => request.basic_auth(user, Some(password)),
            None => request,
        };
        let away = |error: reqwest::Error| SendError::Store(self.away(chain(&error), None));
        let mut response = request.send().await.map_err(away)?;
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(away)? {
            if body.len() + chunk.len() > RESPONSE_BYTES_MAX {
                return Err(SendError::TooLong);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Reply {
            status: response.status().as_u16(),
            retry_after: retry_after(response.headers()),
            body: body.freeze(),
        })
    }

    /// Reads a successful answer. One that is cut off or ends in an error (CouchDB streams and may fail half way) is
    /// [`StoreError::Away`]: no part of it is used.
    pub(super) fn parse<T: DeserializeOwned>(&self, reply: &Reply) -> Result<T, StoreError> {
        if !reply.is_success() {
            return Err(self.error(reply));
        }
        serde_json::from_slice(&reply.body).map_err(|error| self.unreadable(reply, &error))
    }

    /// The error for a good status with a body that cannot be read.
    pub(super) fn unreadable(&self, reply: &Reply, error: &serde_json::Error) -> StoreError {
        self.away(
            format!(
                "an answer that is cut off or no JSON ({error}): {}",
                reply.excerpt()
            ),
            None,
        )
    }

    /// The error for an unsuccessful answer, except to `_bulk_docs`.
    pub(super) fn error(&self, reply: &Reply) -> StoreError {
        let reason = reply.describe();
        match reply.status {
            401 | 403 => StoreError::Unauthorized {
                store: self.location.clone(),
                reason,
            },
            404 if is_database_missing(&reply.error()) => StoreError::NoDatabase {
                store: self.location.clone(),
            },
            408 | 412 | 425 | 429 | 500.. => StoreError::Away {
                store: self.location.clone(),
                reason,
                retry_after: reply.retry_after,
                is_answer: reply.is_own_failure(),
            },
            _ => self.protocol(reason),
        }
    }

    pub(super) fn away(&self, reason: String, retry_after: Option<Duration>) -> StoreError {
        StoreError::Away {
            store: self.location.clone(),
            reason,
            retry_after,
            is_answer: false,
        }
    }

    pub(super) fn protocol(&self, reason: String) -> StoreError {
        StoreError::Protocol {
            store: self.location.clone(),
            reason,
        }
    }
}

impl Reply {
    pub(super) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Whether CouchDB itself failed at the request: not a proxy, and not because it is away, busy or full.
    pub(super) fn is_own_failure(&self) -> bool {
        (500..600).contains(&self.status) && !matches!(self.status, 502..=504 | 507)
    }

    /// The body as CouchDB's form of an error; empty where it is none.
    pub(super) fn error(&self) -> CouchError {
        let CouchError { error, reason } = serde_json::from_slice(&self.body).unwrap_or_default();
        CouchError {
            error: brief(error),
            reason: brief(reason),
        }
    }

    /// Status, error and reason for people.
    pub(super) fn describe(&self) -> String {
        let CouchError { error, reason } = self.error();
        if error.is_empty() {
            format!("HTTP {}: {}", self.status, self.excerpt())
        } else {
            format!("HTTP {} {error}: {reason}", self.status)
        }
    }

    fn excerpt(&self) -> String {
        let mut text = String::from_utf8_lossy(&self.body[..self.body.len().min(EXCERPT_BYTES)])
            .replace(char::is_control, " ");
        if self.body.len() > EXCERPT_BYTES {
            text.push('…');
        }
        text
    }
}

/// Whether a 404 is about the database (CouchDB 3, CouchDB 1 and PouchDB have different words).
pub(super) fn is_database_missing(error: &CouchError) -> bool {
    error.error == "not_found"
        && matches!(
            error.reason.as_str(),
            "Database does not exist." | "no_db_file" | "Database not found"
        )
}

/// `base` with `segments` appended, each percent-encoded: an id with a slash stays one segment.
fn address(base: &Url, segments: &[&str]) -> Url {
    let mut url = base.clone();
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(segments);
    }
    url
}

fn gzip(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    // Level 1 saves nearly as much of our documents as level 6, in a third of the time.
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes)?;
    encoder.finish()
}

/// `Retry-After` in seconds. The date form is ignored: CouchDB and its usual proxies do not send it.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers
        .get(RETRY_AFTER)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()?;
    Some(Duration::from_secs(seconds))
}

/// An error with its causes: reqwest alone says little. The address in it has no credentials.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
