//! `amqp`: the properties that come with a message, as they are on the wire, and a broker's greeting.

use bytes::Bytes;
use lapin::protocol::basic::parse_properties;

use crate::broker::amqp::about::text_field;
use crate::broker::amqp::properties::{from_amqp, milliseconds, sequence, to_amqp};
use crate::broker::topology::Exchange;
use crate::broker::{Message, Properties};
use crate::trace::TraceParent;

/// What is read from properties survives being sent on, and a field of a greeting is text that is in it.
pub fn amqp(data: &[u8]) {
    for name in ["product", "version"] {
        if let Some(text) = text_field(data, name) {
            let is_there = data
                .windows(text.len().max(1))
                .any(|part| part == text.as_bytes());
            assert!(text.is_empty() || is_there, "a field that is not there");
        }
    }
    let Ok((_, amqp)) = parse_properties(data) else {
        return;
    };
    let properties = from_amqp(&amqp);
    let sent_on = from_amqp(&to_amqp(&message(properties.clone()), 7));
    assert_eq!(sent_on, carried(properties.clone()));
    assert_eq!(
        sequence(&to_amqp(&message(properties.clone()), u64::MAX)),
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
