//! A stranger at the broker: publishes what no library would, byte for byte, on a connection of its own.
//!
//! Every message is confirmed before `publish` returns, so what is published is in its queue, or the test fails with
//! what the broker said.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use url::Url;

use super::rabbit::{PASSWORD, USER};

const PATIENCE: Duration = Duration::from_mins(1);
const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const FRAME_END: u8 = 0xce;
const HEADERS_FLAG: u16 = 1 << 13;
const MESSAGE_ID_FLAG: u16 = 1 << 7;
/// What body frames carry at most here.
const BODY_BYTES: usize = 4_000;

/// A connection with one channel in confirm mode.
#[derive(Debug)]
pub(crate) struct Stranger {
    stream: TcpStream,
}

impl Stranger {
    /// Connects to the virtual host of `dsn`.
    pub(crate) fn new(dsn: &Url) -> Self {
        let address = (dsn.host_str().unwrap(), dsn.port().unwrap());
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut this = Self { stream };
        this.stream.write_all(b"AMQP\x00\x00\x09\x01").unwrap();
        this.expect(10, 10);
        let response = format!("\0{USER}\0{PASSWORD}");
        let start_ok = [
            &table(&[])[..],
            &short(b"PLAIN"),
            &long(response.as_bytes()),
            &short(b"en_US"),
        ];
        this.method(0, 10, 11, &start_ok.concat());
        let tune = this.expect(10, 30);
        // As offered, without heartbeats.
        this.method(0, 10, 31, &[&tune[..6], &[0, 0]].concat());
        let vhost = dsn.path().trim_start_matches('/').as_bytes();
        this.method(0, 10, 40, &[&short(vhost)[..], &short(b""), &[0]].concat());
        this.expect(10, 41);
        this.method(1, 20, 10, &short(b""));
        this.expect(20, 11);
        this.method(1, 85, 10, &[0]);
        this.expect(85, 11);
        this
    }

    /// Publishes a message with these properties (flags and all), and waits until it is in a queue.
    pub(crate) fn publish(&mut self, exchange: &str, key: &[u8], properties: &[u8], body: &[u8]) {
        let mandatory = 1;
        let publish = [
            &[0, 0][..],
            &short(exchange.as_bytes()),
            &short(key),
            &[mandatory],
        ];
        self.method(1, 60, 40, &publish.concat());
        let size = (body.len() as u64).to_be_bytes();
        let header = [&[0, 60, 0, 0][..], &size, properties];
        self.frame(HEADER, 1, &header.concat());
        for chunk in body.chunks(BODY_BYTES) {
            self.frame(BODY, 1, chunk);
        }
        self.expect(60, 80);
    }

    /// The arguments of the next method, which must be this one.
    fn expect(&mut self, class: u16, method: u16) -> Vec<u8> {
        loop {
            let mut head = [0; 7];
            self.stream.read_exact(&mut head).unwrap();
            let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
            let mut payload = vec![0; size as usize + 1];
            self.stream.read_exact(&mut payload).unwrap();
            payload.pop();
            if head[0] != METHOD {
                continue;
            }
            let is = |class: u16, method: u16| {
                payload.starts_with(&[class.to_be_bytes(), method.to_be_bytes()].concat())
            };
            if is(class, method) {
                return payload.split_off(4);
            }
            panic!("expected {class}.{method}: {}", payload.escape_ascii());
        }
    }

    fn method(&mut self, channel: u16, class: u16, method: u16, arguments: &[u8]) {
        let (class, method) = (class.to_be_bytes(), method.to_be_bytes());
        self.frame(METHOD, channel, &[&class[..], &method, arguments].concat());
    }

    fn frame(&mut self, kind: u8, channel: u16, payload: &[u8]) {
        let mut frame = vec![kind];
        frame.extend(channel.to_be_bytes());
        frame.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
        frame.extend(payload);
        frame.push(FRAME_END);
        self.stream.write_all(&frame).unwrap();
    }
}

/// Properties with these headers: names, and values with their type in front.
pub(crate) fn headers(entries: &[(&[u8], Vec<u8>)]) -> Vec<u8> {
    [&HEADERS_FLAG.to_be_bytes()[..], &table(entries)].concat()
}

/// Properties with this message id alone.
pub(crate) fn message_id(id: &[u8]) -> Vec<u8> {
    [&MESSAGE_ID_FLAG.to_be_bytes()[..], &short(id)].concat()
}

/// A text value of a header.
pub(crate) fn text(bytes: &[u8]) -> Vec<u8> {
    [b"S", &long(bytes)[..]].concat()
}

/// Tables within tables, as a value of a header.
pub(crate) fn nested(levels: usize) -> Vec<u8> {
    let mut value = vec![b'F', 0, 0, 0, 0];
    for _ in 0..levels {
        value = [&b"F"[..], &long(&[&short(b""), &value[..]].concat())].concat();
    }
    value
}

fn table(entries: &[(&[u8], Vec<u8>)]) -> Vec<u8> {
    let entries = entries
        .iter()
        .flat_map(|(name, value)| [&short(name)[..], value].concat());
    long(&entries.collect::<Vec<u8>>())
}

fn short(bytes: &[u8]) -> Vec<u8> {
    [&[u8::try_from(bytes.len()).unwrap()], bytes].concat()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    [
        &u32::try_from(bytes.len()).unwrap().to_be_bytes()[..],
        bytes,
    ]
    .concat()
}
