//! A proxy on a free loopback port, between the server under test and a real service: it lets pass, delays, cuts,
//! swallows answers, answers by itself, or is not there at all.
//!
//! HTTP goes request by request, each on a connection of its own, so that a rule meets exactly the requests it names; all
//! requests are kept. Everything else (AMQP) is plain TCP.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What becomes of a request.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// The connection is cut before the service sees the request.
    Cut,
    /// The service gets the request and answers; the connection is cut before the answer.
    Swallow,
    /// The request goes on so much later.
    Delay(Duration),
    /// There is no answer until the rules are cleared, and then the connection is cut.
    Stall,
    /// The service never sees it; this is the answer: status, more header lines, body.
    Answer(u16, &'static str, String),
}

/// Which requests a fault meets, and how many of them.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    /// Part of the request line.
    line: &'static str,
    /// Part of the body.
    body: &'static str,
    body_bytes_min: usize,
    times: usize,
    fault: Fault,
}

impl Rule {
    /// Meets every request whose first line holds `line`.
    pub(crate) fn new(line: &'static str, fault: Fault) -> Self {
        Self {
            line,
            body: "",
            body_bytes_min: 0,
            times: usize::MAX,
            fault,
        }
    }

    /// Only the first so many.
    pub(crate) fn times(mut self, times: usize) -> Self {
        self.times = times;
        self
    }

    /// Only where the body holds this.
    pub(crate) fn body(mut self, body: &'static str) -> Self {
        self.body = body;
        self
    }

    /// Only bodies of so many bytes or more.
    pub(crate) fn body_bytes_min(mut self, bytes: usize) -> Self {
        self.body_bytes_min = bytes;
        self
    }
}

/// A request that came, and when.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) at: Instant,
    pub(crate) line: String,
    pub(crate) body: String,
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<Rule>,
    requests: VecDeque<Request>,
    /// Bytes of their bodies.
    bytes: usize,
}

/// Requests kept at most, and bytes of their bodies; the oldest go.
const REQUESTS_MAX: usize = 10_000;
const BYTES_MAX: usize = 256 * 1024 * 1024;

/// A running proxy; it ends when dropped.
#[derive(Debug)]
pub(crate) struct Proxy {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    /// Changes when all connections are to be cut.
    cuts: watch::Sender<u64>,
    is_listening: watch::Sender<bool>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// In front of an HTTP service on this port.
    pub(crate) fn http(port: u16) -> Self {
        Self::start(port, true)
    }

    /// In front of any service on this port.
    pub(crate) fn tcp(port: u16) -> Self {
        Self::start(port, false)
    }

    fn start(port: u16, is_http: bool) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (state, stop) = (Arc::<Mutex<State>>::default(), CancellationToken::new());
        let (cuts, cut) = watch::channel(0);
        let (is_listening, listening) = watch::channel(true);
        let way = Way {
            upstream: SocketAddr::from(([127, 0, 0, 1], port)),
            is_http,
            state: Arc::clone(&state),
            cuts: cut,
        };
        let ended = stop.clone();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    () = way.serve(listener, listening) => {}
                    () = ended.cancelled() => {}
                }
            });
        });
        Self {
            address,
            state,
            cuts,
            is_listening,
            stop,
            thread: Some(thread),
        }
    }

    /// Where it listens.
    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Adds a rule; of several that meet a request the first counts.
    pub(crate) fn rule(&self, rule: Rule) {
        self.lock().rules.push(rule);
    }

    /// Forgets all rules, and cuts all connections.
    pub(crate) fn clear(&self) {
        self.lock().rules.clear();
        self.cut();
    }

    /// Cuts all connections.
    pub(crate) fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Whether connections are refused; those that stand are cut.
    pub(crate) fn refuse(&self, is_refusing: bool) {
        self.is_listening.send_replace(!is_refusing);
        self.cut();
    }

    /// The requests that came, whose first line holds `line`.
    pub(crate) fn requests(&self, line: &str) -> Vec<Request> {
        let state = self.lock();
        let matches = state
            .requests
            .iter()
            .filter(|request| request.line.contains(line));
        matches.cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.cancel();
        drop(self.thread.take().map(JoinHandle::join));
    }
}

/// From the listener to the service.
#[derive(Debug, Clone)]
struct Way {
    upstream: SocketAddr,
    is_http: bool,
    state: Arc<Mutex<State>>,
    cuts: watch::Receiver<u64>,
}

impl Way {
    async fn serve(self, listener: TcpListener, mut listening: watch::Receiver<bool>) {
        let address = listener.local_addr().unwrap();
        let mut listener = Some(listener);
        loop {
            let is_listening = *listening.borrow_and_update();
            if is_listening && listener.is_none() {
                listener = Some(TcpListener::bind(address).await.unwrap());
            } else if !is_listening {
                listener = None;
            }
            let accept = async {
                match &listener {
                    Some(listener) => listener.accept().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = listening.changed() => if changed.is_err() { return },
                Ok((stream, _)) = accept => drop(tokio::spawn(self.clone().connection(stream))),
            }
        }
    }

    async fn connection(mut self, stream: TcpStream) {
        self.cuts.mark_unchanged();
        let mut cuts = self.cuts.clone();
        tokio::select! {
            _ = cuts.changed() => {}
            // However it ends, the connection ends with it.
            _ = self.pass(stream) => {}
        }
    }

    async fn pass(&self, mut stream: TcpStream) -> std::io::Result<()> {
        if self.is_http {
            return self.exchange(stream).await;
        }
        let mut upstream = TcpStream::connect(self.upstream).await?;
        copy_bidirectional(&mut stream, &mut upstream).await?;
        Ok(())
    }

    /// One request and its answer.
    async fn exchange(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let (head, body) = read_request(&mut stream).await?;
        match self.meet(&head, &body) {
            None => {}
            Some(Fault::Cut) => return Ok(()),
            Some(Fault::Stall) => std::future::pending().await,
            Some(Fault::Delay(delay)) => tokio::time::sleep(delay).await,
            Some(Fault::Swallow) => return self.forward(&head, &body).await.map(drop),
            Some(Fault::Answer(status, headers, body)) => {
                let length = body.len();
                let answer = format!(
                    "HTTP/1.1 {status} Scripted\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n{headers}Connection: close\r\n\r\n{body}"
                );
                return stream.write_all(answer.as_bytes()).await;
            }
        }
        let answer = self.forward(&head, &body).await?;
        stream.write_all(&answer).await?;
        stream.shutdown().await
    }

    /// Sends a request to the service and reads the whole answer, which its end of the connection ends.
    async fn forward(&self, head: &str, body: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut upstream = TcpStream::connect(self.upstream).await?;
        let head = head.trim_end();
        let head = format!("{head}\r\nConnection: close\r\n\r\n");
        upstream.write_all(head.as_bytes()).await?;
        upstream.write_all(body).await?;
        let mut answer = Vec::new();
        upstream.read_to_end(&mut answer).await?;
        Ok(answer)
    }

    /// Notes a request, and finds the fault that meets it.
    fn meet(&self, head: &str, body: &[u8]) -> Option<Fault> {
        let line = head.lines().next().unwrap_or_default().to_owned();
        let body = String::from_utf8_lossy(body).into_owned();
        let mut state = self.state.lock().unwrap();
        let meets = |rule: &&mut Rule| {
            rule.times > 0
                && line.contains(rule.line)
                && body.contains(rule.body)
                && body.len() >= rule.body_bytes_min
        };
        let fault = state.rules.iter_mut().find(meets).map(|rule| {
            rule.times -= 1;
            rule.fault.clone()
        });
        let at = Instant::now();
        state.bytes += body.len();
        state.requests.push_back(Request { at, line, body });
        while state.requests.len() > REQUESTS_MAX || state.bytes > BYTES_MAX {
            let Some(oldest) = state.requests.pop_front() else {
                break;
            };
            state.bytes -= oldest.body.len();
        }
        fault
    }
}

/// Reads one request: the head, and as much body as it says.
async fn read_request(stream: &mut TcpStream) -> std::io::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    };
    let mut body = bytes.split_off(end);
    let head = String::from_utf8_lossy(&bytes).into_owned();
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse::<usize>().ok())?
    });
    while body.len() < length.unwrap_or(0) {
        if stream.read_buf(&mut body).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok((head, body))
}
