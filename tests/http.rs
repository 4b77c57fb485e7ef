//! The HTTP side against peers that mean no good: requests that never come whole, too many of them, and pages of strangers
//! that ask in the name of another host.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::harness::installation::Installation;
use crate::harness::process::wait_until;

/// Half-sent requests; more than may be open at once.
const HALF_SENT: usize = 300;
/// Three times what the server gives a request's head.
const CLOSED_WITHIN: Duration = Duration::from_secs(30);
/// What a server has open beside connections of strangers.
const OWN_FILES_MAX: f64 = 100.0;

fn installation() -> Installation {
    Installation::new("memory:", "memory:")
}

/// Whether the other side closed it.
fn is_closed(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    match stream.read(&mut [0; 64]) {
        Ok(length) => length == 0,
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    }
}

/// The status that a request in the name of `host` is answered with.
fn status(address: &str, host: &str) -> u16 {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(CLOSED_WITHIN)).unwrap();
    write!(
        stream,
        "GET /metrics HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let is_telling = answer.contains("vogeler_");
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    assert_eq!(is_telling, status == 200, "{answer}");
    status
}

/// Goal: 300 requests that never come whole are closed within seconds, few of them are open at once, and meanwhile the
/// server answers others.
#[test]
fn half_sent_requests_end_and_hold_nobody_up() {
    let v = installation();
    let server = v.server();
    let half_sent = |_| {
        let mut stream = TcpStream::connect(v.http_address()).unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
            .unwrap();
        stream
    };
    let started = Instant::now();
    let mut open: Vec<_> = (0..HALF_SENT).map(half_sent).collect();
    let files = v.metric("process_open_fds").unwrap();
    assert!(files < OWN_FILES_MAX, "{files} open files");
    let closed = wait_until(CLOSED_WITHIN, || {
        open.retain_mut(|stream| !is_closed(stream));
        assert_eq!(v.get("/livez").unwrap().0, 200);
        open.is_empty()
    });
    assert!(closed, "{} open after {CLOSED_WITHIN:?}", open.len());
    println!("{HALF_SENT} closed after {:?}", started.elapsed());
    let refused = |reason| {
        v.metric(&format!(
            "vogeler_http_refused_total{{reason=\"{reason}\"}}"
        ))
    };
    let (crowded, slow) = (refused("crowded").unwrap(), refused("slow").unwrap());
    assert!(crowded > 0.0 && slow > 0.0, "{crowded} and {slow}");
    assert_eq!(server.stop().code(), Some(0));
}

/// Goal: server and client answer under their own address and the names that are listed, and under no other; the log says
/// so once.
#[test]
fn other_hosts_are_refused() {
    let mut v = installation();
    v.set(
        "VOGELER_HTTP_HOSTS",
        "vogeler.example.com, *.metrics.example.com",
    );
    let address = v.http_address();
    v.set("VOGELER_CLIENT_HTTP_LISTEN", &address);
    let refused = [
        "evil.example",
        "evil.example:9877",
        "example.com",
        "127.0.0.1.evil.example",
    ];
    let answered = [
        "localhost",
        "127.0.0.1:9877",
        "[::1]",
        "vogeler.example.com",
        "a.metrics.example.com:80",
    ];
    let check = |log: &dyn Fn() -> String| {
        for host in refused {
            assert_eq!(status(&v.http_address(), host), 421, "{host}");
        }
        for host in answered {
            assert_eq!(status(&v.http_address(), host), 200, "{host}");
        }
        assert_eq!(log().matches("list it in http.hosts").count(), 1);
        let series = "vogeler_http_refused_total{reason=\"host\"}";
        assert_eq!(v.metric(series), Some(4.0));
    };
    let server = v.server();
    check(&|| server.log());
    assert_eq!(server.stop().code(), Some(0));
    v.plugin_file("rpms.cfg", "[rpms]\ncommand = true\n");
    let client = v.client("n1", "");
    check(&|| client.log());
    assert_eq!(client.stop().code(), Some(0));
}
