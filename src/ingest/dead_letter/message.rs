//! Makes the message of a dead letter: the original's bytes, what travelled with them as far as it fits, and the reason.
//! Pure.
//!
//! Invariant: its content header fits one frame of a connection of ours, whatever the original had, and names what was
//! left out.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::DeadLetter;
use crate::broker::topology::Exchange;
use crate::broker::{Message, Properties, left_out};
use crate::dead::header;
use crate::wire::truncate;

/// Longest text in a header of ours, in bytes.
const OUR_BYTES_MAX: usize = 1_024;
/// Longest header of the original that is copied, in bytes, with its name.
const COPIED_BYTES_MAX: usize = 4_096;
/// Most bytes of all copied headers. With nine headers of ours, three properties of 255 bytes and what the protocol adds,
/// the content header is less than 28,000 bytes; frames are 32,768.
const COPIED_TOTAL_BYTES_MAX: usize = 16_384;

/// What goes to the exchange of dead letters.
pub(super) fn message(letter: &DeadLetter) -> Message {
    let origin = letter.ticket.origin();
    let mut headers: BTreeMap<String, String> = origin.properties.headers.clone();
    // The broker's own counts of deliveries; a new message starts at none.
    for name in header::OF_BROKER {
        headers.remove(name);
    }
    left_out::trim(&mut headers, COPIED_BYTES_MAX, COPIED_TOTAL_BYTES_MAX).tell(&mut headers);
    let mut set = |name: &str, mut value: String| {
        truncate(&mut value, OUR_BYTES_MAX);
        headers.insert(name.to_owned(), value);
    };
    set(header::REASON, letter.reason.clone());
    set(header::DETAIL, letter.detail.clone());
    set(header::ATTEMPTS, letter.attempts.to_string());
    set(header::TIME, Timestamp::now().to_string());
    set(header::EXCHANGE, origin.exchange.clone());
    set(header::ROUTING_KEY, origin.routing_key.clone());
    if let Some(node) = &letter.node {
        set(header::NODE, node.to_string());
    }
    if let Some(plugin) = &letter.plugin {
        set(header::PLUGIN, plugin.to_string());
    }
    Message {
        exchange: Exchange::Dead,
        routing_key: String::new(),
        body: origin.body.clone(),
        properties: Properties {
            headers,
            expiration: None,
            ..origin.properties.clone()
        },
        persistent: true,
        mandatory: true,
    }
}
