//! `dead_letter`: the headers of a dead letter. Anybody who may publish can have written them.
//!
//! The input is headers, `name: value` a line, then an empty line and the body.

use bytes::Bytes;

use super::assert_text;
use crate::broker::Properties;
use crate::broker::topology::Exchange;
use crate::dead::letter::original;
use crate::dead::{Letter, header};

/// A letter keeps its id when it is replayed. The replayed message goes to the results exchange, without our headers.
pub fn dead_letter(data: &[u8]) {
    let end = data.windows(2).position(|two| two == b"\n\n");
    let (head, body) = end.map_or((data, &[][..]), |end| (&data[..end], &data[end + 2..]));
    let properties = properties(&String::from_utf8_lossy(head));
    let letter = Letter::read(body, &properties);
    assert_eq!((letter.id.len(), letter.bytes), (12, body.len()));
    let message = match original(Bytes::copy_from_slice(body), &properties) {
        Ok(message) => message,
        Err(error) => return assert_text(&error),
    };
    assert!(message.exchange == Exchange::Results && message.persistent && message.mandatory);
    assert!(message.body == body);
    let is_ours = |name: &&String| name.starts_with(header::PREFIX) && *name != header::REPLAYS;
    assert_eq!(message.properties.headers.keys().find(is_ours), None);
    let of_broker = header::OF_BROKER;
    assert!(
        of_broker
            .iter()
            .all(|name| !message.properties.headers.contains_key(*name))
    );
    again(&letter, body, message.properties, &message.routing_key);
}

/// The replayed message becomes a dead letter once more.
fn again(letter: &Letter, body: &[u8], mut properties: Properties, routing_key: &str) {
    let origin = [
        (header::EXCHANGE, Exchange::Results.name()),
        (header::ROUTING_KEY, routing_key),
    ];
    for (name, value) in origin {
        properties.headers.insert(name.to_owned(), value.to_owned());
    }
    let second = Letter::read(body, &properties);
    assert_eq!(letter.id, second.id, "another id after a replay");
    assert_eq!(second.replays, letter.replays.saturating_add(1));
}

fn properties(head: &str) -> Properties {
    let mut properties = Properties::default();
    for line in head.lines() {
        match line.split_once(": ") {
            Some(("message-id", id)) => properties.message_id = Some(id.to_owned()),
            Some((name, value)) => {
                properties.headers.insert(name.to_owned(), value.to_owned());
            }
            None => {}
        }
    }
    properties
}
