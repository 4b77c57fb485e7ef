//! The bytes between lapin and RabbitMQ: TCP or TLS as the URI says, and a sieve over what comes in.
//!
//! lapin keeps room for 32 frames each way of each connection; the sieve costs no more than the one frame that it looks
//! at, and copies nothing of what passes. Invariant: lapin is given nothing that it cannot read (see
//! [`sieve`](super::sieve)), and what it sends goes out as it is.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_rs::traits::{Executor, Reactor, RuntimeKit};
use async_rs::util::Task;
use async_rs::{Runtime, Tokio};
use futures::{AsyncRead, AsyncWrite, Stream};
use lapin::tcp::{AMQPUriTcpExt, AsyncTcpStream, OwnedTLSConfig};
use lapin::uri::AMQPUri;
use lapin::{Connection, ConnectionProperties};

use super::sieve::Sieve;
use crate::telemetry::catalogue;

/// Most bytes read at once. What comes behind a rewritten message is copied, up to this limit.
const READ_BYTES_MAX: usize = 65_536;
/// Shortest time between two log lines about unreadable messages: a stranger who sends many does not cause one for each.
const TELL_EVERY: Duration = Duration::from_mins(1);

/// Connects lapin to the broker of `uri`.
pub(super) async fn connect(
    uri: AMQPUri,
    properties: ConnectionProperties,
) -> lapin::Result<Connection> {
    let tokio = Runtime::tokio_current();
    let runtime = Runtime::new(Kit(Tokio::current()));
    let open = async move |uri: AMQPUri, _: Runtime<Kit>| {
        let tls = OwnedTLSConfig::default();
        let stream = AMQPUriTcpExt::connect_with_config_async(&uri, tls.as_ref(), &tokio).await?;
        let sieve = Sieve::new(uri.query.frame_max.unwrap_or(0));
        Ok(AsyncTcpStream::Plain(Sifted::new(stream, sieve)))
    };
    Connection::connector(uri, runtime, open, properties).await
}

type Inner = AsyncTcpStream<<Tokio as Reactor>::TcpStream>;

/// A connection whose incoming bytes go through the sieve.
#[derive(Debug)]
pub(super) struct Sifted<S = Inner> {
    stream: S,
    sieve: Sieve,
    told: u64,
    told_at: Option<Instant>,
}

impl<S> Sifted<S> {
    fn new(stream: S, sieve: Sieve) -> Self {
        Self {
            stream,
            sieve,
            told: 0,
            told_at: None,
        }
    }

    /// Counts the messages that were rewritten, and logs their number at intervals.
    fn tell(&mut self) {
        let count = self.sieve.rewritten() - self.told;
        if count == 0 {
            return;
        }
        self.told = self.sieve.rewritten();
        catalogue::MESSAGES_TRIMMED.get().increment(count);
        let is_due = self.told_at.is_none_or(|at| at.elapsed() >= TELL_EVERY);
        if is_due {
            self.told_at = Some(Instant::now());
            tracing::warn!(target: "vogeler::broker", so_far = self.told, "a message came with properties that cannot be read, or are too large; it is taken without them");
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Sifted<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let end = buf.len().min(READ_BYTES_MAX);
        let buf = buf.get_mut(..end).unwrap_or_default();
        loop {
            let ready = this.sieve.ready();
            if !ready.is_empty() {
                let count = ready.len().min(buf.len());
                let (to, from) = (buf.get_mut(..count), ready.get(..count));
                if let (Some(to), Some(from)) = (to, from) {
                    to.copy_from_slice(from);
                }
                ready.drain(..count);
                if ready.is_empty() {
                    *ready = Vec::new();
                }
                return Poll::Ready(Ok(count));
            }
            let count = ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
            let passed = this.sieve.sift(buf.get(..count).unwrap_or_default());
            this.tell();
            // The stream ended, or some of what came passes.
            if count == 0 || passed > 0 {
                return Poll::Ready(Ok(passed));
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Sifted<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_close(cx)
    }
}

/// tokio, as lapin uses it, except that its streams are sifted. lapin takes its streams from `open` above and from
/// nowhere else.
#[derive(Debug, Clone)]
struct Kit(Tokio);

impl RuntimeKit for Kit {}

impl Executor for Kit {
    type Task<T: Send + 'static> = <Tokio as Executor>::Task<T>;

    fn block_on<T, F: Future<Output = T>>(&self, f: F) -> T {
        self.0.block_on(f)
    }

    fn spawn<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
        &self,
        f: F,
    ) -> Task<Self::Task<T>> {
        self.0.spawn(f)
    }

    fn spawn_blocking<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(
        &self,
        f: F,
    ) -> Task<Self::Task<T>> {
        self.0.spawn_blocking(f)
    }
}

impl Reactor for Kit {
    type TcpStream = Sifted;
    type Sleep = <Tokio as Reactor>::Sleep;

    /// lapin registers nothing.
    fn register<H: io::Read + io::Write + Send + 'static>(
        &self,
        _: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        Err::<Sifted, _>(io::ErrorKind::Unsupported.into())
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    fn tcp_connect_addr(
        &self,
        address: std::net::SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        let connect = self.0.tcp_connect_addr(address);
        async {
            Ok(Sifted::new(
                AsyncTcpStream::Plain(connect.await?),
                Sieve::new(0),
            ))
        }
    }
}
