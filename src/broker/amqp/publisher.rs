//! Publishing with confirms: callers queue up, one task owns the channel.
//!
//! One owner, because lapin numbers a publish and sends it in two steps (concurrent calls could swap their confirms),
//! and because it hands a returned message to whichever confirm completes next: see [`in_flight`](super::in_flight).
//! Invariant: a call ends with the verdict on its own message, or within the publish timeout.

use std::future::poll_fn;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use lapin::options::ConfirmSelectOptions;
use lapin::{Channel, Connection};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Interval;
use tokio_util::sync::CancellationToken;

use super::connection::{Connector, WATCHDOG_EVERY};
use super::declare;
use super::in_flight::{InFlight, Verdict};
use super::trouble::Trouble;
use crate::backoff::Backoff;
use crate::broker::{BrokerError, Message};

/// Most messages sent and not yet confirmed; as many more wait in line behind them. Confirms take milliseconds, so
/// this keeps a channel busy, and bounds what a lost connection leaves in doubt.
const IN_FLIGHT_MAX: usize = 1024;
/// Shortest and longest pause before a message that the broker would not take is sent again.
const NACK_PAUSE_MIN: Duration = Duration::from_millis(50);
const NACK_PAUSE_MAX: Duration = Duration::from_secs(1);

/// A message and who waits for it.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) message: Arc<Message>,
    pub(super) reply: oneshot::Sender<Verdict>,
}

/// The publishing side of a broker. Its task starts with the first message.
#[derive(Debug)]
pub(super) struct Publisher {
    connector: Arc<Connector>,
    closed: CancellationToken,
    line: OnceLock<mpsc::Sender<Outgoing>>,
}

impl Publisher {
    pub(super) fn new(connector: Arc<Connector>, closed: CancellationToken) -> Self {
        Self {
            connector,
            closed,
            line: OnceLock::new(),
        }
    }

    /// Publishes one message and waits for its verdict, at most the publish timeout.
    pub(super) async fn publish(&self, message: Message) -> Result<(), BrokerError> {
        let timeout = self.connector.target.publish_timeout;
        tokio::select! {
            done = tokio::time::timeout(timeout, self.until_taken(Arc::new(message))) => {
                done.unwrap_or(Err(BrokerError::Unconfirmed { timeout }))
            }
            () = self.closed.cancelled() => Err(BrokerError::Closed),
        }
    }

    async fn until_taken(&self, message: Arc<Message>) -> Result<(), BrokerError> {
        let mut backoff = Backoff::new(NACK_PAUSE_MIN, NACK_PAUSE_MAX);
        loop {
            match self.once(Arc::clone(&message)).await {
                Verdict::Confirmed => return Ok(()),
                Verdict::Unroutable => {
                    return Err(BrokerError::Unroutable {
                        exchange: message.exchange.name(),
                        routing_key: message.routing_key.clone(),
                    });
                }
                Verdict::Failed(trouble) => {
                    let (address, exchange) = (&self.connector.target.address, message.exchange);
                    let error = trouble.of_message(address, exchange.name(), message.body.len());
                    return Err(error);
                }
                Verdict::Nacked => tokio::time::sleep(backoff.next_random()).await,
            }
        }
    }

    async fn once(&self, message: Arc<Message>) -> Verdict {
        let (reply, verdict) = oneshot::channel();
        // If there is room, the message is in line before the first await, so calls made in order are sent in order.
        let outcome = match self.line().try_send(Outgoing { message, reply }) {
            Err(TrySendError::Full(outgoing)) => self.line().send(outgoing).await.map_err(drop),
            other => other.map_err(drop),
        };
        if outcome.is_err() {
            return Verdict::Failed(Trouble::Closed);
        }
        verdict.await.unwrap_or(Verdict::Failed(Trouble::Closed))
    }

    fn line(&self) -> &mpsc::Sender<Outgoing> {
        self.line.get_or_init(|| {
            let (line, requests) = mpsc::channel(IN_FLIGHT_MAX);
            let (connector, closed) = (Arc::clone(&self.connector), self.closed.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = run(connector, requests) => {}
                    () = closed.cancelled() => {}
                }
            });
            line
        })
    }
}

/// Serves the line until it is closed, with one session per channel.
async fn run(connector: Arc<Connector>, mut requests: mpsc::Receiver<Outgoing>) {
    while let Some(first) = requests.recv().await {
        match open(&connector).await {
            Ok((connection, channel)) => {
                let frame_max = connection.configuration().frame_max();
                let mut session = Session {
                    connection,
                    in_flight: InFlight::new(channel, frame_max),
                    watchdog: tokio::time::interval(WATCHDOG_EVERY),
                };
                let mut first = Some(first);
                let trouble = poll_fn(|cx| {
                    if let Some(first) = first.take() {
                        session.send(first, cx);
                    }
                    session.poll(&mut requests, cx)
                })
                .await;
                session.in_flight.fail_all(&trouble);
            }
            // All that wait by now share the failure, rather than each waiting for one of its own.
            Err(trouble) => {
                fail(first, &trouble);
                while let Ok(waiting) = requests.try_recv() {
                    fail(waiting, &trouble);
                }
            }
        }
    }
}

fn fail(outgoing: Outgoing, trouble: &Trouble) {
    // Whoever gave up waiting needs no verdict.
    drop(outgoing.reply.send(Verdict::Failed(trouble.clone())));
}

/// A channel in confirm mode; exchanges are declared, since publishing to a missing one closes the channel.
async fn open(connector: &Connector) -> Result<(Arc<Connection>, Channel), Trouble> {
    let (connection, channel) = connector.channel().await?;
    let exchanges = declare::declare_exchanges(connector, &channel);
    if let Err(error) = exchanges.await {
        return Err(match error {
            BrokerError::Refused { reason, .. } => Trouble::Refused(reason),
            BrokerError::Mismatch { reason, .. } => Trouble::Mismatch(reason),
            BrokerError::Closed => Trouble::Closed,
            other => Trouble::Away(other.to_string()),
        });
    }
    let confirm = async {
        let options = ConfirmSelectOptions { nowait: false };
        Ok(channel.confirm_select(options).await?)
    };
    connector
        .target
        .within("asking for confirms", confirm)
        .await?;
    Ok((connection, channel))
}

struct Session {
    connection: Arc<Connection>,
    in_flight: InFlight,
    watchdog: Interval,
}

/// How far the line was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    /// Nobody waits; the next caller wakes us.
    Empty,
    /// No room for more: callers may wait, and do not wake us.
    Full,
    /// No caller will come.
    Closed,
}

impl Session {
    /// Sends what waits in line and settles what was confirmed. Ready, with the reason, once the channel is gone.
    fn poll(
        &mut self,
        requests: &mut mpsc::Receiver<Outgoing>,
        cx: &mut Context<'_>,
    ) -> Poll<Trouble> {
        loop {
            let line = self.send_waiting(requests, cx);
            self.in_flight.settle(cx);
            match line {
                Line::Full if self.in_flight.len() < IN_FLIGHT_MAX => {}
                Line::Closed if self.in_flight.is_empty() => return Poll::Ready(Trouble::Closed),
                Line::Empty | Line::Full | Line::Closed => break,
            }
        }
        let mut is_tick = false;
        while self.watchdog.poll_tick(cx).is_ready() {
            is_tick = true;
        }
        if self.connection.status().connected() && self.in_flight.is_channel_up() {
            return Poll::Pending;
        }
        // lapin reports a closed channel a moment before it tells each message why.
        if !self.in_flight.is_empty() && !is_tick {
            return Poll::Pending;
        }
        Poll::Ready(Trouble::Away("the connection broke".to_owned()))
    }

    fn send_waiting(
        &mut self,
        requests: &mut mpsc::Receiver<Outgoing>,
        cx: &mut Context<'_>,
    ) -> Line {
        while self.in_flight.len() < IN_FLIGHT_MAX {
            match requests.poll_recv(cx) {
                Poll::Ready(Some(outgoing)) => self.send(outgoing, cx),
                Poll::Ready(None) => return Line::Closed,
                Poll::Pending => return Line::Empty,
            }
        }
        Line::Full
    }

    fn send(&mut self, outgoing: Outgoing, cx: &mut Context<'_>) {
        // A message whose caller gave up in line must not be sent later.
        if !outgoing.reply.is_closed() {
            self.in_flight.send(outgoing, cx);
        }
    }
}
