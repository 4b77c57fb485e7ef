//! `command`, `result` and `zstd`: messages as they are read, in both wire versions.

use std::time::Duration;

use serde_json::Value;

use super::{assert_text, depth, now};
use crate::document::{Applied, NodeDocument};
use crate::hash::content_hash;
use crate::ingest::stages;
use crate::wire::{
    AMPLIFIED_BYTES_FREE, Command, Content, DEPTH_MAX, DecodeError, ERROR_MESSAGE_BYTES_MAX,
    NodeName, PluginName, PluginResult,
};

/// A command that was read is the same after being written and read again.
pub fn command(data: &[u8]) {
    let command = match Command::decode(data) {
        Ok(command) => command,
        Err(error) => return assert_text(&error),
    };
    assert!(PluginName::new(command.plugin.as_str()).is_ok());
    let bytes = command.encode().expect("what was read can be written");
    let again = Command::decode(&bytes).expect("what was written can be read");
    assert_eq!(format!("{command:?}"), format!("{again:?}"));
    assert_eq!(bytes, again.encode().expect("it was written before"));
    assert_eq!(command.is_expired(now()), again.is_expired(now()));
}

/// A result that was read is within the bounds, is the same after being written and read again, and can be stored.
pub fn result(data: &[u8]) {
    let result = match stages::decode(data, None, now()) {
        Ok(result) => result,
        Err(error) => {
            assert!(DecodeError::REASONS.contains(&error.reason()));
            return assert_text(&error);
        }
    };
    assert!(NodeName::new(result.node.as_str()).is_ok());
    match &result.content {
        Content::Value { json, hash } => {
            assert!(depth(json.get()) <= DEPTH_MAX, "nested too deep");
            assert!(serde_json::from_str::<serde::de::IgnoredAny>(json.get()).is_ok());
            assert!(!hash.0.is_empty());
            if is_of_2010(data) {
                let expected = content_hash(json, &[]).expect("the server computed it");
                assert_eq!(*hash, expected);
            }
        }
        Content::Error(error) => {
            assert!(error.message.len() <= ERROR_MESSAGE_BYTES_MAX);
            let stderr = error.stderr.as_ref().map_or(0, String::len);
            assert!(stderr <= ERROR_MESSAGE_BYTES_MAX);
        }
    }
    assert_storable(&result);
    if result.plugin.is_none() {
        return assert!(
            result.encode().is_err(),
            "version 2 has no plugin-less error"
        );
    }
    let bytes = result.encode().expect("what was read can be written");
    let again = PluginResult::decode(&bytes, now()).expect("what was written can be read");
    assert_eq!(format!("{result:?}"), format!("{again:?}"));
}

fn is_of_2010(data: &[u8]) -> bool {
    let members: Option<serde_json::Map<String, Value>> = serde_json::from_slice(data).ok();
    members.is_some_and(|members| !members.contains_key("v"))
}

fn assert_storable(result: &PluginResult) {
    let freshness = Duration::from_mins(15);
    let mut document = NodeDocument::new(&result.node, now());
    assert_eq!(document.apply(result, now(), freshness), Applied::Changed);
    let written = document
        .to_json(&result.node, now())
        .expect("a document is JSON");
    let mut read = NodeDocument::parse(&result.node, &written).expect("it was written by us");
    let rewritten = read
        .to_json(&result.node, now())
        .expect("a document is JSON");
    assert_eq!(written.get(), rewritten.get());
}

/// An unpacked message is within the bound, and a packed body unpacks to itself. The first byte chooses which of the two is
/// checked; the next two bytes are the bound.
pub fn zstd(data: &[u8]) {
    let [kind, high, low, body @ ..] = data else {
        return;
    };
    let max = usize::from(u16::from_be_bytes([*high, *low]));
    if kind % 2 == 0 {
        match stages::unpack(body, max) {
            Ok(unpacked) => assert!(unpacked.is_none_or(|unpacked| unpacked.len() <= max)),
            Err(error) => {
                assert_eq!(error.reason(), "bad_compression");
                assert_text(&error);
            }
        }
        return message(body);
    }
    let packed = ::zstd::bulk::compress(body, i32::from(kind % 20)).expect("zstd packs anything");
    let unpacked = stages::unpack(&packed, max).expect("it was packed");
    assert_eq!(unpacked.as_deref(), (body.len() <= max).then_some(body));
}

/// The value of a packed message is at most as large as the message's size allows.
fn message(packed: &[u8]) {
    let Ok(result) = stages::decode(packed, Some("zstd"), now()) else {
        return;
    };
    if let Content::Value { json, .. } = &result.content {
        let ratio = crate::config::Server::default().amplification_max;
        let max = AMPLIFIED_BYTES_FREE.max(packed.len() * ratio);
        assert!(
            json.get().len() <= max,
            "a value of {} bytes",
            json.get().len()
        );
    }
}
