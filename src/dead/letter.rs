//! One dead letter: what its headers say, and the message that it was. Pure.
//!
//! Invariant: a letter's id depends on its message alone. It is the same in every listing, and again when a replayed
//! message comes back.

use std::collections::BTreeMap;

use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;

use super::header;
use crate::broker::topology::{self, Exchange};
use crate::broker::{Message, Properties};
use crate::wire::brief;

/// Characters of an id. They are 48 bits, so two of 50,000 letters share an id by chance in one of 200,000 listings.
const ID_CHARACTERS: usize = 12;

/// What is known of a dead letter without its body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Letter {
    /// The letter's name: the beginning of a hash of what was sent and where to.
    pub id: String,
    /// The id that the sender gave the message.
    pub message_id: Option<String>,
    /// When it became a dead letter.
    pub time: Option<Timestamp>,
    /// Why, in one word.
    pub reason: Option<String>,
    /// Why, in a sentence.
    pub detail: Option<String>,
    /// The node that sent the result, if it could be read.
    pub node: Option<String>,
    /// The plugin of the result, if it could be read.
    pub plugin: Option<String>,
    /// Number of writes tried.
    pub attempts: Option<u32>,
    /// Number of replays so far.
    pub replays: u32,
    /// Size of the message as sent, in bytes.
    pub bytes: usize,
    /// The exchange it was sent to.
    pub exchange: Option<String>,
    /// The routing key it was sent with.
    pub routing_key: Option<String>,
}

impl Letter {
    /// Reads the headers. A missing or malformed one becomes none.
    pub fn read(body: &[u8], properties: &Properties) -> Self {
        let text = |name: &str| properties.headers.get(name).cloned();
        Self {
            id: id(body, properties),
            message_id: properties.message_id.clone(),
            time: text(header::TIME).and_then(|text| text.parse().ok()),
            reason: text(header::REASON),
            detail: text(header::DETAIL),
            node: text(header::NODE),
            plugin: text(header::PLUGIN),
            attempts: text(header::ATTEMPTS).and_then(|text| text.parse().ok()),
            replays: replays(properties),
            bytes: body.len(),
            exchange: text(header::EXCHANGE),
            routing_key: text(header::ROUTING_KEY),
        }
    }
}

/// Why a letter cannot be replayed. It stays in its queue.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoWayBack {
    /// No server put it there.
    #[error("its headers do not say where it came from")]
    NoOrigin,
    /// The exchange takes no results. Publishing to one that does not exist ends the connection; publishing to that of
    /// the dead letters goes in circles.
    #[error("it came from exchange {exchange:?}, which takes no results")]
    Exchange {
        /// The name in its headers.
        exchange: String,
    },
}

/// The message that the letter was, addressed to where it was first published. If it became a letter because that was
/// the wrong slot for its node, it is addressed to the node's slot.
pub fn original(body: Bytes, properties: &Properties) -> Result<Message, NoWayBack> {
    let origin = |name: &str| properties.headers.get(name).ok_or(NoWayBack::NoOrigin);
    let (name, routing_key) = (origin(header::EXCHANGE)?, origin(header::ROUTING_KEY)?);
    let exchange = Exchange::from_name(name)
        .filter(|exchange| *exchange == Exchange::Results)
        .ok_or_else(|| NoWayBack::Exchange {
            exchange: brief(name),
        })?;
    let is_off_slot =
        properties.headers.get(header::REASON).map(String::as_str) == Some(header::SLOT_REASON);
    let node = properties.headers.get(header::NODE).filter(|_| is_off_slot);
    let slot = node.and_then(|node| Some(topology::result_key(&node.parse().ok()?)));
    let is_original = |name: &str| {
        let is_ours = name.starts_with(header::PREFIX) && name != header::ARRIVED;
        !is_ours && !header::OF_BROKER.contains(&name)
    };
    let headers = properties.headers.iter();
    let mut headers: BTreeMap<String, String> = headers
        .filter(|(name, _)| is_original(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let replays = replays(properties).saturating_add(1);
    headers.insert(header::REPLAYS.to_owned(), replays.to_string());
    Ok(Message {
        exchange,
        routing_key: slot.unwrap_or_else(|| routing_key.clone()),
        body,
        properties: Properties {
            headers,
            ..properties.clone()
        },
        persistent: true,
        mandatory: true,
    })
}

fn replays(properties: &Properties) -> u32 {
    let replays = properties.headers.get(header::REPLAYS);
    replays.and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn id(body: &[u8], properties: &Properties) -> String {
    let header = |name| properties.headers.get(name).map_or("", String::as_str);
    let message_id = properties.message_id.as_deref().unwrap_or_default();
    let mut hasher = blake3::Hasher::new();
    for part in [
        message_id,
        header(header::EXCHANGE),
        header(header::ROUTING_KEY),
    ] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.update(body);
    let mut hex = hasher.finalize().to_hex().to_string();
    hex.truncate(ID_CHARACTERS);
    hex
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn properties(headers: &[(&str, &str)]) -> Properties {
        Properties {
            message_id: Some("web01/7".to_owned()),
            content_encoding: Some("zstd".to_owned()),
            headers: headers
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            ..Properties::default()
        }
    }

    const ORIGIN: [(&str, &str); 2] = [
        ("x-vogeler-exchange", "vogeler.master.in"),
        ("x-vogeler-routing-key", "203"),
    ];

    /// Goal: the headers become fields, and malformed ones become none rather than an error.
    #[test]
    fn headers_become_fields() {
        let mut headers = ORIGIN.to_vec();
        headers.extend([
            ("x-vogeler-reason", "forbidden"),
            ("x-vogeler-attempts", "3"),
            ("x-vogeler-time", "2026-11-22T12:00:00Z"),
            ("x-vogeler-replays", "2"),
        ]);
        let letter = Letter::read(b"body", &properties(&headers));
        assert_eq!(letter.reason.as_deref(), Some("forbidden"));
        assert_eq!(
            (letter.attempts, letter.replays, letter.bytes),
            (Some(3), 2, 4)
        );
        assert_eq!(letter.time, "2026-11-22T12:00:00Z".parse().ok());
        let odd = [("x-vogeler-attempts", "many"), ("x-vogeler-time", "noon")];
        let letter = Letter::read(b"", &properties(&odd));
        assert_eq!(
            (letter.attempts, letter.time, letter.replays),
            (None, None, 0)
        );
    }

    /// Goal: a replayed message is the original, except for the count of replays.
    #[test]
    fn the_original_comes_back() {
        let mut headers = ORIGIN.to_vec();
        headers.extend([
            ("trace", "abc"),
            ("x-delivery-count", "4"),
            ("x-vogeler-reason", "forbidden"),
            ("x-vogeler-replays", "1"),
        ]);
        let dead = properties(&headers);
        let message = original(Bytes::from_static(b"body"), &dead).unwrap();
        assert_eq!(
            (message.exchange, &*message.routing_key),
            (Exchange::Results, "203")
        );
        assert!(message.persistent && message.mandatory);
        let expected = properties(&[("trace", "abc"), ("x-vogeler-replays", "2")]);
        assert_eq!(message.properties, expected);
    }

    /// Goal: a result that came off its slot is replayed to its slot, and one of 2010 keeps its place in the order.
    #[test]
    fn off_slot_results_go_to_their_slot() {
        let mut headers = vec![
            ("x-vogeler-exchange", "vogeler.master.in"),
            ("x-vogeler-routing-key", "007"),
            ("x-vogeler-reason", "slot"),
            ("x-vogeler-node", "web01.example.com"),
            ("x-vogeler-arrived", "1800000000000000"),
            ("x-vogeler-forwarded", "3"),
        ];
        let message = original(Bytes::new(), &properties(&headers)).unwrap();
        assert_eq!(message.routing_key, "203");
        let headers_kept: Vec<_> = message.properties.headers.keys().collect();
        assert_eq!(headers_kept, ["x-vogeler-arrived", "x-vogeler-replays"]);
        headers[2].1 = "forbidden";
        let message = original(Bytes::new(), &properties(&headers)).unwrap();
        assert_eq!(message.routing_key, "007");
    }

    /// Goal: a letter that has no way back is refused with the reason.
    #[test]
    fn no_way_back_has_a_reason() {
        let refused =
            |headers: &[(&str, &str)]| original(Bytes::new(), &properties(headers)).unwrap_err();
        assert_eq!(refused(&[]), NoWayBack::NoOrigin);
        assert_eq!(refused(&ORIGIN[..1]), NoWayBack::NoOrigin);
        for exchange in ["", "orders", "vogeler.dead", "vogeler.broadcast.in"] {
            let headers = [("x-vogeler-exchange", exchange), ORIGIN[1]];
            let error = refused(&headers).to_string();
            assert!(error.contains(&format!("{exchange:?}")), "{error}");
        }
    }

    proptest! {
        /// A letter's id stays the same when it is replayed and comes back for another reason; another body gives
        /// another id.
        #[test]
        fn ids_depend_on_the_message_alone(
            body in prop::collection::vec(any::<u8>(), 0..50),
            other in prop::collection::vec(any::<u8>(), 0..50),
            reason in "[a-z]{0,9}",
        ) {
            let dead = properties(&ORIGIN);
            let first = Letter::read(&body, &dead);
            let mut again = original(body.clone().into(), &dead).unwrap().properties;
            for (name, value) in ORIGIN {
                again.headers.insert(name.to_owned(), value.to_owned());
            }
            again.headers.insert(header::REASON.to_owned(), reason);
            let second = Letter::read(&body, &again);
            prop_assert_eq!(&first.id, &second.id);
            prop_assert_eq!(second.replays, 1);
            prop_assert_eq!(first.id.len(), ID_CHARACTERS);
            prop_assert_eq!(body == other, first.id == Letter::read(&other, &dead).id);
        }
    }
}
