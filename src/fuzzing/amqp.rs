//! `amqp`: a message's properties, from the wire through the sieve into our own type, and a broker's greeting.

use bytes::Bytes;
use lapin::protocol::basic::parse_properties;

use crate::broker::amqp::about::text_field;
use crate::broker::amqp::content_header::{FIXED_BYTES, is_readable, rewrite};
use crate::broker::amqp::properties::{from_amqp, milliseconds, sequence, to_amqp};
use crate::broker::amqp::sieve::Sieve;
use crate::broker::topology::Exchange;
use crate::broker::{Message, Properties};
use crate::trace::TraceParent;

/// The smallest frame that is agreed to, and how many bytes of it are not payload.
const FRAME_BYTES: (usize, usize) = (4_096, 8);

/// lapin reads what the sieve lets pass and what it rewrites. Properties survive being sent on. A field of a greeting is
/// text from that greeting.
pub fn amqp(data: &[u8]) {
    for name in ["product", "version"] {
        if let Some(text) = text_field(data, name) {
            let is_there = data
                .windows(text.len().max(1))
                .any(|part| part == text.as_bytes());
            assert!(text.is_empty() || is_there, "a field that is not there");
        }
    }
    Sieve::new(4_096).sift(data);
    let payload = [&[0; FIXED_BYTES], data].concat();
    let fits = FRAME_BYTES.0 - FRAME_BYTES.1;
    let rewritten = rewrite(&payload, payload.len(), fits);
    assert!(rewritten.len() <= fits && is_readable(&rewritten));
    let readable = if is_readable(&payload) {
        &payload
    } else {
        &rewritten
    };
    let (rest, amqp) = parse_properties(&readable[FIXED_BYTES..]).expect("lapin reads it");
    assert!(rest.is_empty(), "lapin reads all of it");
    let properties = from_amqp(&amqp);
    let sent_on = from_amqp(&to_amqp(&message(properties.clone()), 7, u32::MAX));
    assert_eq!(sent_on, carried(properties.clone()));
    assert_eq!(
        sequence(&to_amqp(&message(properties.clone()), u64::MAX, u32::MAX)),
        Some(u64::MAX)
    );
    if let Some(parent) = TraceParent::of(&properties) {
        let mut again = Properties::default();
        parent.put(&mut again);
        assert_eq!(TraceParent::of(&again), Some(parent));
    }
}

/// AMQP carries an expiration of 32 bits.
fn carried(mut properties: Properties) -> Properties {
    let carried = |expiration| std::time::Duration::from_millis(milliseconds(expiration).into());
    properties.expiration = properties.expiration.map(carried);
    properties
}

fn message(properties: Properties) -> Message {
    Message {
        exchange: Exchange::Results,
        routing_key: String::new(),
        body: Bytes::new(),
        properties,
        persistent: true,
        mandatory: true,
    }
}
