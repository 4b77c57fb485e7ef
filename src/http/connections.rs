//! The connections of an HTTP endpoint: accepted, bounded in number and time, and closed at the stop.
//!
//! An incomplete request, a peer that does not read, and too many peers cost a bounded time and nothing else: the
//! newest connection is always served, and replaces the oldest. Invariant: at most [`Bounds::connections_max`] are
//! open, and none longer than [`Bounds::age_max`] plus [`Bounds::end_timeout`].

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::telemetry::{HttpRefusal, catalogue};

/// Pause after the system failed to accept a connection, for example when all file descriptors are used.
const ACCEPT_RETRY: Duration = Duration::from_secs(1);
/// Most bytes of a request's head, and of data waiting to be sent.
const BUFFER_BYTES_MAX: usize = 16 * 1024;

/// How many connections there may be, and for how long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Most connections open at once; one more replaces the oldest.
    pub(super) connections_max: usize,
    /// Longest time from the connection, or the last answer on it, to the end of a request's head; so also the longest
    /// idle time.
    pub(super) header_timeout: Duration,
    /// Age after which a connection answers no further request.
    pub(super) age_max: Duration,
    /// Time to finish sending an answer, after `age_max` or the stop.
    pub(super) end_timeout: Duration,
}

impl Default for Bounds {
    /// Scrapers, probes and people keep a handful of connections open, and each request takes milliseconds.
    fn default() -> Self {
        Self {
            connections_max: 64,
            header_timeout: Duration::from_secs(10),
            age_max: Duration::from_mins(1),
            end_timeout: Duration::from_secs(2),
        }
    }
}

/// Serves `routes` on `listener` until `stop`, then waits for the answers under way.
pub(super) async fn serve(
    listener: TcpListener,
    routes: Router,
    bounds: Bounds,
    stop: CancellationToken,
) {
    let mut tasks = JoinSet::new();
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let stream = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            // Drops connections that ended. An empty set does not end the loop.
            Some(_) = tasks.join_next() => continue,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    if !is_of_peer(error.kind()) {
                        tracing::debug!(target: "vogeler::http", %error, "no connection can be taken; trying again");
                        tokio::time::sleep(ACCEPT_RETRY).await;
                    }
                    continue;
                }
            },
        };
        open.retain(|connection| !connection.is_finished());
        if open.len() >= bounds.connections_max
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
            catalogue::HTTP_REFUSED
                .of(HttpRefusal::Crowded)
                .increment(1);
        }
        let connection = connection(stream, routes.clone(), bounds, stop.clone());
        open.push_back(tasks.spawn(connection));
    }
    while tasks.join_next().await.is_some() {}
}

/// Whether the peer caused the error: the next connection may succeed.
fn is_of_peer(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused
    )
}

/// Serves one connection to its end.
async fn connection(stream: TcpStream, routes: Router, bounds: Bounds, stop: CancellationToken) {
    let was_served = Arc::new(AtomicBool::new(false));
    let routes = TowerToHyperService::new(routes);
    let service = service_fn(|request: Request<Incoming>| {
        was_served.store(true, Ordering::Relaxed);
        routes.call(request)
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.header_timeout)
        .max_buf_size(BUFFER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut served = std::pin::pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => Some(ended),
        () = stop.cancelled() => None,
        () = tokio::time::sleep(bounds.age_max) => None,
    };
    let ended = if let Some(ended) = ended {
        ended
    } else {
        served.as_mut().graceful_shutdown();
        match tokio::time::timeout(bounds.end_timeout, served).await {
            Ok(ended) => ended,
            Err(_) => return,
        }
    };
    // A connection that was served and then stays silent is merely idle, not slow.
    if let Err(error) = ended
        && error.is_timeout()
        && !was_served.load(Ordering::Relaxed)
    {
        catalogue::HTTP_REFUSED.of(HttpRefusal::Slow).increment(1);
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::JoinHandle;
    use tokio::time::{Instant, timeout};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);
    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

    struct Served {
        address: std::net::SocketAddr,
        stop: CancellationToken,
        task: JoinHandle<()>,
    }

    impl Served {
        async fn start(bounds: Bounds) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
            let large = vec![b'x'; 64 << 20];
            let routes = Router::new()
                .route("/", get(async || "well\n"))
                .route("/large", get(async move || large));
            let task = tokio::spawn(serve(listener, routes, bounds, stop.clone()));
            Self {
                address,
                stop,
                task,
            }
        }

        async fn send(&self, bytes: &[u8]) -> TcpStream {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            stream
        }

        async fn end(self) {
            self.stop.cancel();
            timeout(PATIENCE, self.task).await.unwrap().unwrap();
        }
    }

    /// Reads until the other side ends the connection.
    async fn rest(stream: &mut TcpStream) -> Vec<u8> {
        let mut bytes = Vec::new();
        let read = stream.read_to_end(&mut bytes);
        // A connection reset is an end, too.
        drop(timeout(PATIENCE, read).await.expect("it stays open"));
        bytes
    }

    async fn answer(stream: &mut TcpStream) -> String {
        let mut bytes = vec![0; 1024];
        let length = timeout(PATIENCE, stream.read(&mut bytes)).await.unwrap();
        String::from_utf8_lossy(&bytes[..length.unwrap()]).into_owned()
    }

    fn bounds() -> Bounds {
        Bounds {
            connections_max: 4,
            header_timeout: PATIENCE,
            age_max: PATIENCE,
            end_timeout: Duration::from_millis(100),
        }
    }

    /// Goal: a connection whose head is incomplete or absent ends after `header_timeout`, and so does an idle one.
    #[tokio::test]
    async fn half_a_request_ends_in_time() {
        let header_timeout = Duration::from_millis(200);
        let served = Served::start(Bounds {
            header_timeout,
            ..bounds()
        });
        let served = served.await;
        let mut silent = served.send(b"").await;
        let mut half = served.send(b"GET / HTTP/1.1\r\nHost: loc").await;
        let mut whole = served.send(REQUEST).await;
        assert!(answer(&mut whole).await.ends_with("well\n"));
        for stream in [&mut silent, &mut half, &mut whole] {
            rest(stream).await;
        }
        served.end().await;
    }

    /// Goal: when too many are open the oldest goes, and the newest is served.
    #[tokio::test]
    async fn the_newest_is_served() {
        let served = Served::start(bounds()).await;
        let mut oldest = served.send(b"GET").await;
        let mut others = Vec::new();
        for _ in 0..3 {
            others.push(served.send(b"GET").await);
        }
        let mut newest = served.send(REQUEST).await;
        assert!(answer(&mut newest).await.ends_with("well\n"));
        rest(&mut oldest).await;
        let mut second = served.send(REQUEST).await;
        assert!(answer(&mut second).await.ends_with("well\n"));
        rest(&mut others[0]).await;
        others[2].write_all(&REQUEST[3..]).await.unwrap();
        assert!(answer(&mut others[2]).await.ends_with("well\n"));
        served.end().await;
    }

    /// Goal: a peer that asks for much and reads nothing is cut off at the end of its connection's age.
    #[tokio::test]
    async fn who_does_not_read_is_cut_off() {
        let served = Served::start(Bounds {
            age_max: Duration::from_millis(200),
            ..bounds()
        });
        let served = served.await;
        let request = b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n";
        let mut stream = served.send(request).await;
        let started = Instant::now();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let came = rest(&mut stream).await.len();
        assert!(came < 64 << 20, "{came} bytes in {:?}", started.elapsed());
        served.end().await;
    }
}
