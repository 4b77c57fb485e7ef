//! The messages of light clients, as the product's own client would make them, and those that are no results. Pure.

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde_json::value::RawValue;
use vogeler::broker::topology::{self, Exchange};
use vogeler::broker::{Message, Properties};
use vogeler::wire::{Content, Format, NodeName, PluginName, PluginResult, RunId, Seq};

use crate::ledger::Hash;

/// Bodies from this size on are packed, as a client's default settings say.
const ZSTD_BYTES_MIN: usize = 4096;
/// zstd's fastest level: packing here costs the tester, not the product.
const ZSTD_LEVEL: i32 = 1;

/// A result to be made.
pub(super) struct Parts<'a> {
    pub(super) node: &'a NodeName,
    pub(super) plugin: &'a PluginName,
    pub(super) seq: u64,
    pub(super) run: RunId,
    pub(super) hash: Hash,
    pub(super) value: String,
}

/// The message of a result.
pub(super) fn result(parts: Parts<'_>) -> anyhow::Result<Message> {
    let Parts {
        node,
        plugin,
        seq,
        run,
        hash,
        value,
    } = parts;
    let micros = SignedDuration::from_micros(i64::try_from(seq)?);
    let result = PluginResult {
        node: node.clone(),
        plugin: Some(plugin.clone()),
        seq: Seq(seq),
        collected_at: Timestamp::UNIX_EPOCH.checked_add(micros)?,
        run: Some(run),
        format: Format::Json,
        duration_ms: Some(1),
        content: Content::Value {
            json: RawValue::from_string(value)?,
            hash: hash.to_wire(),
        },
    };
    let json = result.encode()?;
    let is_zstd = json.len() >= ZSTD_BYTES_MIN;
    let body = if is_zstd {
        zstd::bulk::compress(&json, ZSTD_LEVEL)?
    } else {
        json
    };
    // Frees the room that zstd had reserved: thousands of bodies are kept while the broker is away.
    let body = Bytes::from(body.into_boxed_slice());
    Ok(message(node, format!("{node}/{seq}"), body, is_zstd))
}

/// A message that is no result, in one of [`POISONS`](crate::schedule::POISONS) ways.
pub(super) fn poison(node: &NodeName, id: String, form: u8) -> Message {
    let body = match form {
        0 => "no JSON at all".to_owned(),
        1 => format!(r#"{{"v":2,"node":"{node}","plugin":"cut"#),
        2 => format!(r#"{{"v":99,"node":"{node}","plugin":"facter","seq":1,"value":1}}"#),
        3 => r#"{"v":2,"node":"_not a name","plugin":"facter","seq":1,"collected_at":"2026-01-01T00:00:00Z","format":"json","hash":"x","value":1}"#.to_owned(),
        4 => format!(r#"{{"v":2,"node":"{node}","plugin":"facter","seq":1,"collected_at":"2026-01-01T00:00:00Z","format":"json"}}"#),
        _ => "packed by nobody".to_owned(),
    };
    let is_zstd = !(0..5).contains(&form);
    message(node, id, body.into(), is_zstd)
}

fn message(node: &NodeName, id: String, body: Bytes, is_zstd: bool) -> Message {
    Message {
        exchange: Exchange::Results,
        routing_key: topology::result_key(node),
        body,
        properties: Properties {
            content_type: Some("application/json".to_owned()),
            content_encoding: is_zstd.then(|| "zstd".to_owned()),
            message_id: Some(id),
            ..Properties::default()
        },
        persistent: true,
        mandatory: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::POISONS;

    /// Goal: a result reads back as what it was made from, and no poison reads as a result.
    #[test]
    fn results_are_results_and_poison_is_none() {
        let (node, plugin) = ("web01".parse().unwrap(), "facter".parse().unwrap());
        let value = format!(r#"{{"text":"{}"}}"#, "x".repeat(5000));
        let hash = Hash::of(value.as_bytes());
        let parts = Parts {
            node: &node,
            plugin: &plugin,
            seq: 1_800_000_000_000_000,
            run: RunId::generate(),
            hash,
            value,
        };
        let message = result(parts).unwrap();
        let body = zstd::decode_all(&message.body[..]).unwrap();
        let read = PluginResult::decode(&body, Timestamp::now()).unwrap();
        assert_eq!(
            (read.node, read.seq),
            (node.clone(), Seq(1_800_000_000_000_000))
        );
        let Content::Value { hash: wire, .. } = read.content else {
            panic!("no value");
        };
        assert_eq!(Hash::of_wire(&wire), hash);

        for form in 0..POISONS {
            let message = poison(&node, "p".to_owned(), form);
            let body = match message.properties.content_encoding {
                Some(_) => zstd::decode_all(&message.body[..]).ok(),
                None => Some(message.body.to_vec()),
            };
            let read = body.map(|body| PluginResult::decode(&body, Timestamp::now()));
            assert!(!matches!(read, Some(Ok(_))), "{form}: {read:?}");
        }
    }
}
