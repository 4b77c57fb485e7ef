//! Properties and headers between our types and AMQP's. Pure.
//!
//! What AMQP cannot carry (a property of more than 255 bytes, headers that do not fit one frame) is left out rather than
//! refused; what others send and we cannot read as text is left out likewise. A header of ours names the headers that are
//! missing. Invariant: what is sent fits one frame, since a larger one ends the connection for all that publish.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};

use crate::broker::left_out::{self, LeftOut};
use crate::broker::{Message, Properties};

const PERSISTENT: u8 = 2;
const TRANSIENT: u8 = 1;

/// What a header frame has beside the headers: eight bytes of the frame, the class, the body's size and the flags, the
/// size of the table, and five properties, of which the longest have 255 bytes.
const FRAME_REST_BYTES: usize = 8 + 12 + 2 + 4 + 5 * 256;

/// What travels with `message` in frames of at most `frame_max` bytes. `sequence` names it on its channel, so that a
/// returned message can be told apart.
pub(crate) fn to_amqp(message: &Message, sequence: u64, frame_max: u32) -> BasicProperties {
    let properties = &message.properties;
    let mode = if message.persistent {
        PERSISTENT
    } else {
        TRANSIENT
    };
    let mut amqp = BasicProperties::default()
        .with_delivery_mode(mode)
        .with_correlation_id(ShortString::from(sequence.to_string()));
    if let Some(text) = short(properties.content_type.as_deref()) {
        amqp = amqp.with_content_type(text);
    }
    if let Some(text) = short(properties.content_encoding.as_deref()) {
        amqp = amqp.with_content_encoding(text);
    }
    if let Some(text) = short(properties.message_id.as_deref()) {
        amqp = amqp.with_message_id(text);
    }
    if let Some(expiration) = properties.expiration {
        amqp = amqp.with_expiration(ShortString::from(milliseconds(expiration).to_string()));
    }
    if !properties.headers.is_empty() {
        let frame_max = usize::try_from(frame_max).unwrap_or(usize::MAX);
        let room = frame_max.saturating_sub(FRAME_REST_BYTES);
        amqp = amqp.with_headers(to_table(&fitting(&properties.headers, room)));
    }
    amqp
}

/// What travelled with a message received.
pub(crate) fn from_amqp(amqp: &BasicProperties) -> Properties {
    let text = |property: &Option<ShortString>| property.as_ref().map(ToString::to_string);
    let expiration = amqp
        .expiration()
        .as_ref()
        .and_then(|text| text.as_str().parse().ok());
    let mut left_out = LeftOut::default();
    let mut headers = BTreeMap::new();
    for (name, value) in amqp.headers().iter().flat_map(FieldTable::inner) {
        match to_text(value) {
            Some(text) => drop(headers.insert(name.to_string(), text)),
            None => left_out.add(name.as_str(), "not text"),
        }
    }
    left_out.tell(&mut headers);
    Properties {
        content_type: text(amqp.content_type()),
        content_encoding: text(amqp.content_encoding()),
        message_id: text(amqp.message_id()),
        expiration: expiration.map(Duration::from_millis),
        headers,
    }
}

/// The sequence that a message was published with.
pub(crate) fn sequence(amqp: &BasicProperties) -> Option<u64> {
    amqp.correlation_id().as_ref()?.as_str().parse().ok()
}

/// A duration in the milliseconds that AMQP's arguments count in.
pub(crate) fn milliseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

fn short(text: Option<&str>) -> Option<ShortString> {
    ShortString::try_new(text?).ok()
}

/// Those of `headers` that fit `room` bytes, with a note of those that are missing.
fn fitting(headers: &BTreeMap<String, String>, room: usize) -> Cow<'_, BTreeMap<String, String>> {
    let entries = headers.iter();
    let bytes: usize = entries
        .map(|(name, text)| left_out::entry_bytes(name, text))
        .sum();
    if bytes <= room {
        return Cow::Borrowed(headers);
    }
    let mut headers = headers.clone();
    let room = room.saturating_sub(left_out::note_entry_bytes());
    left_out::trim(&mut headers, usize::MAX, room).tell(&mut headers);
    Cow::Owned(headers)
}

fn to_table(headers: &BTreeMap<String, String>) -> FieldTable {
    let mut table = FieldTable::default();
    for (key, value) in headers {
        if let Ok(key) = ShortString::try_new(key.as_str()) {
            let value = LongString::from(value.as_str());
            table.insert(key, AMQPValue::LongString(value));
        }
    }
    table
}

fn to_text(value: &AMQPValue) -> Option<String> {
    match value {
        AMQPValue::LongString(text) => String::from_utf8(text.as_bytes().to_vec()).ok(),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        AMQPValue::Boolean(value) => Some(value.to_string()),
        AMQPValue::ShortShortInt(value) => Some(value.to_string()),
        AMQPValue::ShortShortUInt(value) => Some(value.to_string()),
        AMQPValue::ShortInt(value) => Some(value.to_string()),
        AMQPValue::ShortUInt(value) => Some(value.to_string()),
        AMQPValue::LongInt(value) => Some(value.to_string()),
        AMQPValue::LongUInt(value) => Some(value.to_string()),
        AMQPValue::LongLongInt(value) => Some(value.to_string()),
        AMQPValue::Timestamp(value) => Some(value.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::broker::topology::Exchange;

    proptest! {
        /// Properties that AMQP can carry come back as they were sent.
        #[test]
        fn properties_round_trip(
            content_type in prop::option::of("[a-z/]{1,40}"),
            message_id in prop::option::of("\\PC{0,40}"),
            milliseconds in prop::option::of(0..10_000_000_u64),
            headers in prop::collection::btree_map("[a-z-]{1,30}", "\\PC{0,300}", 0..5),
            sequence in any::<u64>(),
        ) {
            let properties = Properties {
                content_type,
                content_encoding: Some("zstd".to_owned()),
                message_id,
                expiration: milliseconds.map(Duration::from_millis),
                headers,
            };
            let message = Message {
                exchange: Exchange::Results,
                routing_key: String::new(),
                body: Bytes::new(),
                properties: properties.clone(),
                persistent: true,
                mandatory: true,
            };
            let amqp = to_amqp(&message, sequence, 32_768);
            prop_assert_eq!(from_amqp(&amqp), properties);
            prop_assert_eq!(super::sequence(&amqp), Some(sequence));
        }
    }

    /// Goal: what others put in headers is read as text where it can be, and otherwise left out.
    #[test]
    fn foreign_headers_become_text() {
        let mut table = FieldTable::default();
        table.insert("count".into(), AMQPValue::LongLongInt(7));
        table.insert(
            "nested".into(),
            AMQPValue::FieldTable(FieldTable::default()),
        );
        let amqp = BasicProperties::default().with_headers(table);
        let headers = from_amqp(&amqp).headers;
        let headers: Vec<_> = headers
            .iter()
            .map(|(name, text)| (name.as_str(), text.as_str()))
            .collect();
        let told = (left_out::HEADER, "nested (not text)");
        assert_eq!(headers, [("count", "7"), told]);
    }

    /// Goal: headers that do not fit the frame are left out, the largest first, and a note names them.
    #[test]
    fn headers_fit_the_frame() {
        let text = |bytes: usize| "x".repeat(bytes);
        let headers = [
            ("big".to_owned(), text(3_000)),
            ("small".to_owned(), text(300)),
            ("x-vogeler-reason".to_owned(), text(900)),
        ];
        let headers = BTreeMap::from(headers);
        assert!(matches!(fitting(&headers, 5_000), Cow::Borrowed(_)));
        let fitted = fitting(&headers, 4_096 - FRAME_REST_BYTES);
        let names: Vec<_> = fitted.keys().map(String::as_str).collect();
        assert_eq!(names, ["small", left_out::HEADER, "x-vogeler-reason"]);
        assert_eq!(fitted[left_out::HEADER], "big (3000 bytes)");
        let bytes: usize = fitted
            .iter()
            .map(|(name, text)| left_out::entry_bytes(name, text))
            .sum();
        assert!(bytes <= 4_096 - FRAME_REST_BYTES);
    }
}
