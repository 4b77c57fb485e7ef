//! The envelope: a result as it waits on disk, ready to be published unchanged.
//!
//! It is a header line (checksum, version, sequence, content encoding, node, place in the run's trace, plugin) and the
//! message's body. Invariant: what is read back is byte for byte what was written, or an error. Envelopes of the first
//! version, which names neither itself nor the plugin, are still read. The routing key is that of the node that made
//! the result; the node may have been renamed since.

use bytes::Bytes;
use jiff::Timestamp;

use crate::broker::topology::{self, Exchange};
use crate::broker::{Message, Properties};
use crate::trace::TraceParent;
use crate::wire::{
    AMPLIFIED_BYTES_FREE, Content, ErrorKind, NodeName, PUBLISHED_HEADER, PluginError, PluginName,
    PluginResult, RunId, Seq,
};

const CONTENT_TYPE: &str = "application/json";
const ZSTD: &str = "zstd";
/// zstd's default: level 3 packs facts to a fifth at hundreds of megabytes a second.
const ZSTD_LEVEL: i32 = 3;
/// A large result that zstd shrinks by more than this factor travels unpacked: the server takes it for a bomb from
/// `server.amplification_max` on, a factor of 100 by default.
const PACKED_FOLD_MAX: usize = 50;
const CHECKSUM_HEX_DIGITS: usize = 64;
const VERSION: &str = "v2";
/// Stands for a missing word.
const NONE: &str = "-";

/// A result, encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Envelope {
    /// The result's sequence.
    pub(super) seq: Seq,
    node: NodeName,
    is_zstd: bool,
    /// None for a result that no run asked for.
    trace: Option<TraceParent>,
    /// None in the first version, and for a result without a plugin.
    plugin: Option<PluginName>,
    body: Bytes,
}

/// The content of a header line.
#[derive(Debug)]
pub(super) struct Header {
    seq: Seq,
    is_zstd: bool,
    node: NodeName,
    trace: Option<TraceParent>,
    pub(super) plugin: Option<PluginName>,
}

impl Header {
    /// Longest header line, in bytes: checksum, version, sequence, encoding, names and trace, with their spaces.
    pub(super) const BYTES_MAX: usize = 1024;

    /// Reads the header from the beginning of a file, without the checksum: for uses where an error does no harm.
    pub(super) fn peek(start: &[u8]) -> Option<Self> {
        let sealed = start.get(CHECKSUM_HEX_DIGITS + 1..)?;
        let end = sealed.iter().position(|byte| *byte == b'\n')?;
        read_header(&sealed[..end])
    }

    /// The run that asked for the result.
    pub(super) fn run(&self) -> Option<RunId> {
        self.trace.map(|trace| trace.run)
    }
}

/// Why a result cannot be encoded.
#[derive(Debug, thiserror::Error)]
pub(super) enum EncodeError {
    /// It cannot be written as a version 2 message.
    #[error("the result cannot be encoded: {0}")]
    Json(#[from] serde_json::Error),
    /// The packer failed.
    #[error("the result cannot be packed: {0}")]
    Zstd(#[from] std::io::Error),
}

/// Bytes that are not an envelope, or no longer the one that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum CorruptError {
    /// There is no header line in our format.
    #[error("it has no header of ours")]
    Header,
    /// The checksum does not match.
    #[error("its checksum does not match")]
    Checksum,
}

impl Envelope {
    /// Encodes `result`. It is packed with zstd if it has at least `zstd_bytes_min` bytes.
    pub(super) fn seal(
        result: &PluginResult,
        trace: Option<TraceParent>,
        zstd_bytes_min: usize,
    ) -> Result<Self, EncodeError> {
        let json = result.encode()?;
        let packed = if json.len() >= zstd_bytes_min {
            Some(zstd::bulk::compress(&json, ZSTD_LEVEL)?)
        } else {
            None
        };
        let packed = packed.filter(|packed| {
            json.len() <= AMPLIFIED_BYTES_FREE || json.len() <= packed.len() * PACKED_FOLD_MAX
        });
        let is_zstd = packed.is_some();
        let body = packed.unwrap_or(json);
        Ok(Self {
            seq: result.seq,
            node: result.node.clone(),
            is_zstd,
            trace,
            plugin: result.plugin.clone(),
            body: body.into(),
        })
    }

    /// The plugin that made the result, if known.
    pub(super) fn plugin(&self) -> Option<&PluginName> {
        self.plugin.as_ref()
    }

    /// The run that asked for the result.
    pub(super) fn run(&self) -> Option<RunId> {
        self.trace.map(|trace| trace.run)
    }

    /// An error in place of a result that is too large to be kept or published: the same result, with the same time,
    /// that says why it has no value. None if that would not be smaller.
    pub(super) fn instead(&self, message: String) -> Option<Self> {
        let json = if self.is_zstd {
            zstd::decode_all(self.body.as_ref()).ok()?.into()
        } else {
            self.body.clone()
        };
        let mut result = PluginResult::decode(&json, Timestamp::now()).ok()?;
        result.content = Content::Error(PluginError {
            kind: ErrorKind::OutputTooLarge,
            message,
            exit: None,
            stderr: None,
        });
        let instead = Self::seal(&result, self.trace, usize::MAX).ok()?;
        (instead.bytes() < self.bytes()).then_some(instead)
    }

    /// Size of the message's body, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.body.len()
    }

    /// The message that carries it, as published now: persistent, mandatory, to its node's slot.
    pub(super) fn message(&self) -> Message {
        let mut properties = Properties {
            content_type: Some(CONTENT_TYPE.to_owned()),
            content_encoding: self.is_zstd.then(|| ZSTD.to_owned()),
            message_id: Some(format!("{}/{}", self.node, self.seq.0)),
            headers: [(PUBLISHED_HEADER.to_owned(), now_ms())].into(),
            ..Properties::default()
        };
        if let Some(trace) = self.trace {
            trace.put(&mut properties);
        }
        Message {
            exchange: Exchange::Results,
            routing_key: topology::result_key(&self.node),
            body: self.body.clone(),
            properties,
            persistent: true,
            mandatory: true,
        }
    }

    /// The bytes of the file on disk.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let encoding = if self.is_zstd { ZSTD } else { NONE };
        let trace = self
            .trace
            .map_or_else(|| NONE.to_owned(), |trace| trace.to_string());
        let plugin = self.plugin.as_ref().map_or(NONE, PluginName::as_str);
        let (seq, node) = (self.seq.0, &self.node);
        let header = format!("{VERSION} {seq} {encoding} {node} {trace} {plugin}\n");
        let mut sealed = header.into_bytes();
        sealed.extend_from_slice(&self.body);
        let mut bytes = format!("{} ", blake3::hash(&sealed).to_hex()).into_bytes();
        bytes.append(&mut sealed);
        bytes
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote.
    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, CorruptError> {
        let (checksum, sealed) = bytes
            .split_at_checked(CHECKSUM_HEX_DIGITS + 1)
            .ok_or(CorruptError::Header)?;
        if checksum != format!("{} ", blake3::hash(sealed).to_hex()).as_bytes() {
            return Err(CorruptError::Checksum);
        }
        let end = sealed.iter().position(|byte| *byte == b'\n');
        let (header, body) = end
            .and_then(|end| sealed.split_at_checked(end))
            .ok_or(CorruptError::Header)?;
        let header = read_header(header).ok_or(CorruptError::Header)?;
        Ok(Self {
            seq: header.seq,
            node: header.node,
            is_zstd: header.is_zstd,
            trace: header.trace,
            plugin: header.plugin,
            body: Bytes::copy_from_slice(&body[1..]),
        })
    }
}

fn now_ms() -> String {
    Timestamp::now().as_millisecond().to_string()
}

fn read_header(header: &[u8]) -> Option<Header> {
    let mut words = std::str::from_utf8(header).ok()?.split(' ').peekable();
    let is_first_version = words.next_if_eq(&VERSION).is_none();
    let seq = Seq(words.next()?.parse().ok()?);
    let is_zstd = match words.next()? {
        NONE => false,
        ZSTD => true,
        _ => return None,
    };
    let node = NodeName::new(words.next()?).ok()?;
    let trace = words.next().filter(|trace| *trace != NONE);
    let trace = trace.map(str::parse).transpose().ok()?;
    let plugin = words.next().filter(|plugin| *plugin != NONE);
    if is_first_version && plugin.is_some() {
        return None;
    }
    Some(Header {
        seq,
        is_zstd,
        node,
        trace,
        plugin: plugin.map(PluginName::new).transpose().ok()?,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::{ContentHash, Format};

    pub(in super::super) fn result(seq: u64, text: &str) -> PluginResult {
        let json = serde_json::value::to_raw_value(text).unwrap();
        PluginResult {
            node: NodeName::new("web01").unwrap(),
            plugin: Some("x".parse().unwrap()),
            seq: Seq(seq),
            collected_at: Timestamp::UNIX_EPOCH,
            run: None,
            format: Format::String,
            duration_ms: Some(1),
            content: Content::Value {
                json,
                hash: ContentHash("h".into()),
            },
        }
    }

    /// Goal: a small result travels as JSON, a large one packed, both with all that the server needs.
    #[test]
    fn a_message_carries_the_result() {
        let result = result(7, &"x".repeat(1000));
        let plain = Envelope::seal(&result, None, 10_000).unwrap().message();
        assert_eq!(plain.body, result.encode().unwrap());
        assert_eq!(plain.properties.content_encoding, None);
        assert_eq!(
            plain.properties.content_type.as_deref(),
            Some("application/json")
        );
        assert_eq!(plain.properties.message_id.as_deref(), Some("web01/7"));
        assert_eq!(plain.routing_key, topology::result_key(&result.node));
        assert!(plain.persistent && plain.mandatory);
        assert_eq!(TraceParent::of(&plain.properties), None);

        let trace = Some(TraceParent::generate(RunId::generate()));
        let packed = Envelope::seal(&result, trace, 100).unwrap().message();
        assert_eq!(TraceParent::of(&packed.properties), trace);
        assert_eq!(packed.properties.content_encoding.as_deref(), Some("zstd"));
        assert!(packed.body.len() < 300);
        assert_eq!(
            zstd::bulk::decompress(&packed.body, 10_000).unwrap(),
            plain.body
        );
    }

    /// Goal: a large result that packs like a bomb travels unpacked, so that the server does not take it for one.
    #[test]
    fn what_packs_like_a_bomb_is_not_packed() {
        for (bytes, is_packed) in [(900_000, true), (3_000_000, false)] {
            let message = Envelope::seal(&result(7, &"0".repeat(bytes)), None, 4_096)
                .unwrap()
                .message();
            assert_eq!(
                message.properties.content_encoding.is_some(),
                is_packed,
                "{bytes}"
            );
        }
    }

    /// Goal: a result that is too large becomes an error of the same result; one that is already small does not.
    #[test]
    fn a_large_result_becomes_a_small_error() {
        let trace = Some(TraceParent::generate(RunId::generate()));
        for zstd_bytes_min in [100, usize::MAX] {
            let text: String = (0..20_000_u32)
                .map(|number| {
                    char::from(b'a' + (number.wrapping_mul(2_654_435_761) >> 27) as u8 % 26)
                })
                .collect();
            let large = Envelope::seal(&result(7, &text), trace, zstd_bytes_min).unwrap();
            let small = large.instead("it is too large".to_owned()).unwrap();
            assert!(small.bytes() < 500, "{}", small.bytes());
            assert_eq!((small.seq, small.trace), (Seq(7), trace));
            let body = small.message().body;
            let read = PluginResult::decode(&body, Timestamp::now()).unwrap();
            assert_eq!(read.collected_at, Timestamp::UNIX_EPOCH);
            let Content::Error(error) = read.content else {
                panic!("a value");
            };
            assert_eq!(error.kind, ErrorKind::OutputTooLarge);
            assert_eq!(error.message, "it is too large");
            assert_eq!(small.instead("it is too large".to_owned()), None);
        }
    }

    /// Goal: this release publishes what an earlier one left in a spool.
    #[test]
    fn the_first_version_is_read() {
        let run = RunId::generate();
        for trace in [None, Some(TraceParent::generate(run))] {
            let word = trace.map(|trace| format!(" {trace}")).unwrap_or_default();
            let sealed = format!("7 - web01{word}\n{{}}");
            let checksum = blake3::hash(sealed.as_bytes()).to_hex();
            let envelope = Envelope::from_bytes(format!("{checksum} {sealed}").as_bytes()).unwrap();
            assert_eq!((envelope.seq, envelope.trace), (Seq(7), trace));
            assert_eq!((envelope.plugin(), &envelope.body[..]), (None, &b"{}"[..]));
        }
    }

    proptest! {
        /// What is read back is what was written; a byte changed or cut off anywhere gives an error.
        #[test]
        fn damage_is_noticed(text in "\\PC{0,40}", has_run: bool, at in any::<prop::sample::Index>(), flip in 1..=255_u8) {
            let trace = has_run.then(|| TraceParent::generate(RunId::generate()));
            let envelope = Envelope::seal(&result(7, &text), trace, 60).unwrap();
            let bytes = envelope.to_bytes();
            prop_assert_eq!(Envelope::from_bytes(&bytes), Ok(envelope));
            let at = at.index(bytes.len());
            let mut damaged = bytes.clone();
            damaged[at] ^= flip;
            prop_assert!(Envelope::from_bytes(&damaged).is_err());
            prop_assert!(Envelope::from_bytes(&bytes[..at]).is_err());
        }
    }
}
