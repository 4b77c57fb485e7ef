//! The two connections to RabbitMQ, one to consume and one to publish: a memory alarm at the broker stops all that a
//! publishing connection sends, acks included.
//!
//! lapin's own recovery stays off: it ends silently when its retries run out. A connection is made on demand, and
//! watched; its users notice that it broke and ask for the next. Invariant: no error, log line or `Debug` of
//! this module holds the password.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use lapin::uri::AMQPUri;
use lapin::{Channel, Connection, ConnectionProperties, Event};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::links::{Links, Role};
use super::logins::Logins;
use super::transport;
use super::trouble::Trouble;
use crate::broker::Link;
use crate::telemetry::record_refused_login;

/// Largest frame we agree to, in bytes. lapin keeps room for 32 frames each way on every connection, and fills it in time.
/// RabbitMQ offers 128 KiB, which would take 8 MB, twice in every client; this takes 2 MB. Longer messages take more
/// frames. RabbitMQ does not split longer headers; the [`transport`](super::transport) trims them.
const FRAME_BYTES_MAX: u32 = 32_768;
/// How often a connection or channel is checked: not every break is announced.
pub(super) const WATCHDOG_EVERY: Duration = Duration::from_secs(1);

/// Where the broker is, and the bounds of every call.
pub(super) struct Target {
    /// Host and port, for people.
    pub(super) address: String,
    pub(super) connect_timeout: Duration,
    pub(super) publish_timeout: Duration,
    pub(super) reconnect_max: Duration,
    logins: Logins,
    uri: Result<AMQPUri, String>,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Target {
    /// Reads `url`; its `frame_max`, `heartbeat` and `connection_timeout` override ours.
    pub(super) fn new(url: &Url, config: &crate::config::Broker) -> Self {
        let default_port = if url.scheme() == "amqps" { 5671 } else { 5672 };
        let host = url.host_str().unwrap_or("localhost");
        let address = format!("{host}:{}", url.port().unwrap_or(default_port));
        let uri = url.as_str().parse::<AMQPUri>().map(|mut uri| {
            // lapin takes an IPv6 address for no host at all.
            host.trim_matches(['[', ']'])
                .clone_into(&mut uri.authority.host);
            let heartbeat = u16::try_from(config.heartbeat.as_secs()).unwrap_or(u16::MAX);
            let timeout = u64::try_from(config.connect_timeout.as_millis()).unwrap_or(u64::MAX);
            uri.query.frame_max.get_or_insert(FRAME_BYTES_MAX);
            uri.query.heartbeat.get_or_insert(heartbeat.max(1));
            uri.query.connection_timeout.get_or_insert(timeout);
            uri
        });
        Self {
            address,
            connect_timeout: config.connect_timeout,
            publish_timeout: config.publish_timeout,
            reconnect_max: config.reconnect_max,
            logins: Logins::new(config.refused_pause_max, config.connect_timeout),
            uri,
        }
    }

    /// The URI with its password: for connecting only.
    pub(super) fn uri(&self) -> Result<AMQPUri, Trouble> {
        self.uri
            .clone()
            .map_err(|reason| Trouble::Refused(format!("broker.dsn cannot be used: {reason}")))
    }

    /// Runs one exchange with the broker, within the connect timeout.
    pub(super) async fn within<T>(
        &self,
        what: &str,
        work: impl Future<Output = Result<T, Trouble>>,
    ) -> Result<T, Trouble> {
        tokio::time::timeout(self.connect_timeout, work)
            .await
            .unwrap_or_else(|_| Err(Trouble::timeout(what, self.connect_timeout)))
    }
}

/// One connection, made when asked for and shared by all that ask.
#[derive(Debug)]
pub(super) struct Connector {
    pub(super) target: Arc<Target>,
    role: Role,
    pub(super) links: Arc<Links>,
    closed: CancellationToken,
    attempts: AtomicU64,
    state: tokio::sync::Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    connection: Option<Arc<Connection>>,
    /// How the last attempt failed, for those who waited for it.
    failure: Option<Trouble>,
}

impl Connector {
    pub(super) fn new(
        target: Arc<Target>,
        role: Role,
        links: Arc<Links>,
        closed: CancellationToken,
    ) -> Self {
        Self {
            target,
            role,
            links,
            closed,
            attempts: AtomicU64::new(0),
            state: tokio::sync::Mutex::default(),
        }
    }

    /// Another connection to the same broker, for one queue.
    pub(super) fn aside(&self) -> Self {
        let (target, links) = (Arc::clone(&self.target), Arc::clone(&self.links));
        Self::new(target, Role::Aside, links, self.closed.clone())
    }

    /// A fresh channel, on a fresh connection where the last one broke.
    pub(super) async fn channel(&self) -> Result<(Arc<Connection>, Channel), Trouble> {
        let connection = self.connection().await?;
        let open = async { Ok(connection.create_channel().await?) };
        let channel = self.target.within("opening a channel", open).await?;
        Ok((connection, channel))
    }

    /// The connection, a fresh one where the last one broke.
    pub(super) async fn connection(&self) -> Result<Arc<Connection>, Trouble> {
        let seen = self.attempts.load(Ordering::Acquire);
        let mut state = self.state.lock().await;
        if self.closed.is_cancelled() {
            return Err(Trouble::Closed);
        }
        if let Some(connection) = &state.connection
            && connection.status().connected()
        {
            return Ok(Arc::clone(connection));
        }
        // Many wait here while one tries: they share its failure rather than time out one after the other.
        if let Some(failure) = &state.failure
            && self.attempts.load(Ordering::Acquire) != seen
        {
            return Err(failure.clone());
        }
        state.connection = None;
        let made = self.connect().await;
        self.attempts.fetch_add(1, Ordering::AcqRel);
        match made {
            Ok(connection) => {
                state.failure = None;
                state.connection = Some(Arc::clone(&connection));
                Ok(connection)
            }
            Err(trouble) => {
                let reason = trouble.reason().to_owned();
                self.links
                    .set(self.role, &self.target.address, Link::Down { reason });
                state.failure = Some(trouble.clone());
                Err(trouble)
            }
        }
    }

    async fn connect(&self) -> Result<Arc<Connection>, Trouble> {
        crate::tls::install_crypto_provider();
        let properties =
            ConnectionProperties::default().with_connection_name(self.role.name().into());
        let uri = self.target.uri()?;
        let logins = &self.target.logins;
        logins.ask(Instant::now()).map_err(Trouble::Refused)?;
        let work = async { Ok(transport::connect(uri, properties).await?) };
        let made = self.target.within("connecting", Box::pin(work)).await;
        if let Err(Trouble::Refused(reason)) = &made {
            record_refused_login();
            if logins.refused(reason.clone(), Instant::now(), rand::random()) {
                tracing::warn!(target: "vogeler::broker", broker = self.target.address, reason, "the broker refuses the login; it is tried again after pauses of up to broker.refused_pause_max: check user, password and virtual host in broker.dsn");
            }
        }
        let connection = Arc::new(made?);
        logins.accepted();
        self.links.set(self.role, &self.target.address, Link::Up);
        tokio::spawn(watch_connection(
            Arc::downgrade(&connection),
            connection.events_listener(),
            self.role,
            Arc::clone(&self.target),
            Arc::clone(&self.links),
            self.closed.clone(),
        ));
        Ok(connection)
    }

    /// Ends the connection, if there is one, and makes no more.
    pub(super) async fn close(&self) {
        self.closed.cancel();
        let connection = self.state.lock().await.connection.take();
        if let Some(connection) = connection {
            let close = async { Ok(connection.close(200, "closed".into()).await?) };
            if let Err(trouble) = self.target.within("closing", close).await {
                tracing::debug!(target: "vogeler::broker", ?trouble, "the connection was gone before it was closed");
            }
        }
    }
}

/// Reports the link of one connection until the connection is gone.
async fn watch_connection(
    connection: std::sync::Weak<Connection>,
    events: impl futures::Stream<Item = Event>,
    role: Role,
    target: Arc<Target>,
    links: Arc<Links>,
    closed: CancellationToken,
) {
    let mut events = std::pin::pin!(events);
    let mut reason = "the connection broke".to_owned();
    loop {
        let event = tokio::time::timeout(WATCHDOG_EVERY, events.next()).await;
        match event {
            Ok(Some(Event::ConnectionBlocked(why))) => {
                tracing::warn!(target: "vogeler::broker", broker = target.address, connection = role.name(), reason = why, "the broker takes no messages until its alarm ends");
            }
            Ok(Some(Event::ConnectionUnblocked)) => {
                tracing::info!(target: "vogeler::broker", broker = target.address, connection = role.name(), "the broker takes messages again");
            }
            Ok(Some(Event::Error(error))) => reason = error.to_string(),
            Ok(Some(_)) | Err(_) => {}
            Ok(None) => tokio::time::sleep(WATCHDOG_EVERY).await,
        }
        match connection.upgrade() {
            Some(connection) if connection.status().connected() => {}
            // We asked for its end.
            Some(_) if closed.is_cancelled() => return,
            Some(_) => return links.set(role, &target.address, Link::Down { reason }),
            // Closed by us, or replaced by its successor, which reports the link now.
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::BrokerDsn;

    fn target(url: &str) -> Target {
        let config = crate::config::Broker {
            dsn: BrokerDsn::Memory,
            partitions: 1,
            queue_type: crate::broker::topology::QueueType::Classic,
            heartbeat: Duration::from_secs(7),
            connect_timeout: Duration::from_secs(3),
            publish_timeout: Duration::from_secs(3),
            reconnect_max: Duration::from_secs(3),
            refused_pause_max: Duration::from_secs(3),
        };
        Target::new(&Url::parse(url).unwrap(), &config)
    }

    /// Goal: our bounds hold unless the DSN says otherwise, and hosts of every kind arrive.
    #[test]
    fn the_dsn_wins_over_our_bounds() {
        let ours = target("amqp://u:p%40ss@[::1]/v%2fh");
        let uri = ours.uri().unwrap();
        assert_eq!(uri.query.frame_max, Some(FRAME_BYTES_MAX));
        assert_eq!(uri.query.heartbeat, Some(7));
        assert_eq!(uri.query.connection_timeout, Some(3000));
        assert_eq!(
            (uri.authority.host.as_str(), uri.authority.port),
            ("::1", 5672)
        );
        assert_eq!(uri.authority.userinfo.password, "p@ss");
        assert_eq!(uri.vhost, "v/h");
        let theirs = target("amqps://h/?heartbeat=60&frame_max=4096")
            .uri()
            .unwrap();
        assert_eq!(theirs.query.frame_max, Some(4096));
        assert_eq!(theirs.query.heartbeat, Some(60));
        assert_eq!(theirs.authority.port, 5671);
    }

    /// Goal: the password is in no text that could be logged, not even when the DSN is bad.
    #[test]
    fn the_password_is_never_printed() {
        for url in [
            "amqp://u:hunter2@h/v",
            "amqp://u:hunter2@h/v?heartbeat=often",
        ] {
            let target = target(url);
            let error = target.uri().err();
            assert!(!format!("{target:?} {error:?} {}", target.address).contains("hunter2"));
        }
        let bad = target("amqp://u:hunter2@h/v?heartbeat=often");
        assert!(
            matches!(bad.uri(), Err(Trouble::Refused(reason)) if reason.contains("broker.dsn"))
        );
    }
}
