//! The result: what one plugin produced on one node at one time, in both wire versions.
//!
//! Bytes in, [`PluginResult`] out. The value of a version 2 result stays raw JSON: it is checked to be JSON,
//! never parsed into a tree. A result of 2010 carries the plugin's text, which the server formats and hashes.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{DEPTH_MAX, NameError, NodeName, PluginName, RunId, WIRE_VERSION, levels};
use crate::format::{self, FormatError, VALUE_BYTES_MAX};
use crate::hash;

/// Longest hash a client may send, in bytes; ours are 32 hexadecimal digits.
const HASH_BYTES_MAX: usize = 128;
/// Longest error message kept, in bytes: it is repeated in the node document.
pub const ERROR_MESSAGE_BYTES_MAX: usize = 4096;
/// Longest text of an error about what others wrote, in bytes. The text goes to logs, receipts and headers, which must not
/// repeat a message of megabytes.
pub(crate) const ERROR_TEXT_BYTES_MAX: usize = 1024;
/// The member that names the node in a result of 2010.
const V1_NODE: &str = "syskey";
const V1_FORMAT: &str = "format";
const V1_ERROR: &str = "last_error";

/// A node's sequence: microseconds since the epoch, but at least the last sequence + 1. On a node it only grows.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Seq(pub u64);

impl Seq {
    /// The sequence of a result made at `now` after one of `last`.
    #[must_use]
    pub fn after(last: Self, now: Timestamp) -> Self {
        let clock = u64::try_from(now.as_microsecond()).unwrap_or(0);
        Self(clock.max(last.0.saturating_add(1)))
    }
}

/// Hash of a result's canonical content, without its volatile parts. Only ever compared for equality.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ContentHash(pub Box<str>);

/// What the output of a plugin looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One JSON text.
    Json,
    /// One YAML document.
    Yaml,
    /// Lines: an array of strings, without trailing blanks and empty last lines.
    Output,
    /// One string, without trailing white space.
    String,
    /// One string, exactly as printed.
    Raw,
    /// `key=value` or `key: value` lines: an object of strings.
    Kv,
    /// Comma-separated values with a heading: an array of objects of strings.
    Csv,
    /// A Python list, JSON on the wire (2010 only).
    Pylist,
    /// A Python dictionary, JSON on the wire (2010 only).
    Pydict,
}

impl Format {
    /// The formats that a plugin file may name.
    pub const OF_PLUGINS: [Self; 7] = [
        Self::Json,
        Self::Yaml,
        Self::Output,
        Self::String,
        Self::Raw,
        Self::Kv,
        Self::Csv,
    ];

    /// The name in plugin files, on the wire and in the document.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Yaml => "yaml",
            Self::Output => "output",
            Self::String => "string",
            Self::Raw => "raw",
            Self::Kv => "kv",
            Self::Csv => "csv",
            Self::Pylist => "pylist",
            Self::Pydict => "pydict",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Format {
    type Err = ();
    fn from_str(name: &str) -> Result<Self, ()> {
        let all = Self::OF_PLUGINS
            .into_iter()
            .chain([Self::Pylist, Self::Pydict]);
        all.into_iter()
            .find(|format| format.as_str() == name)
            .ok_or(())
    }
}

/// Why a plugin gave no value. The names are on the wire and in the runner's report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The client has no such plugin, or may not run it for this command.
    Refused,
    /// The command arrived after its deadline.
    Expired,
    /// The program could not be started.
    NotStarted,
    /// The program ended with a status other than 0, or by a signal.
    ExitStatus,
    /// The program ran longer than the plugin's timeout and was killed with its process group.
    Timeout,
    /// The program printed more than the output cap.
    OutputTooLarge,
    /// The output is not what `result_format` says.
    BadOutput,
    /// The client ended while the plugin ran; it does not run the plugin again for this.
    Interrupted,
    /// Anything else; also every error of a client of 2010, and kinds that this version does not know.
    #[serde(other)]
    Failed,
}

impl ErrorKind {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Expired => "expired",
            Self::NotStarted => "not_started",
            Self::ExitStatus => "exit_status",
            Self::Timeout => "timeout",
            Self::OutputTooLarge => "output_too_large",
            Self::BadOutput => "bad_output",
            Self::Interrupted => "interrupted",
            Self::Failed => "failed",
        }
    }
}

/// What a client reports in place of a value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginError {
    /// What went wrong, for programs.
    pub kind: ErrorKind,
    /// What went wrong, for people: at most 4,096 bytes are kept.
    pub message: String,
    /// The program's exit status, where it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<i32>,
    /// The end of what the program wrote to its standard error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr: Option<String>,
}

/// A result's content: the value, or the error in its place.
#[derive(Debug, Clone)]
pub enum Content {
    /// What the plugin produced.
    Value {
        /// JSON text, not parsed.
        json: Box<RawValue>,
        /// Hash of its canonical form without the volatile parts.
        hash: ContentHash,
    },
    /// The plugin gave none.
    Error(PluginError),
}

/// A result: what one plugin produced on one node at one time. The unit of ingest.
#[derive(Debug, Clone)]
pub struct PluginResult {
    /// Which machine.
    pub node: NodeName,
    /// Which plugin; none for the plugin-less errors of 2010 (`last_error`).
    pub plugin: Option<PluginName>,
    /// Position in the node's own order.
    pub seq: Seq,
    /// When the plugin ended, by the node's clock.
    pub collected_at: Timestamp,
    /// The run that asked for it.
    pub run: Option<RunId>,
    /// What the output looked like.
    pub format: Format,
    /// How long the plugin took, in milliseconds.
    pub duration_ms: Option<u64>,
    /// The value, or the error in its place.
    pub content: Content,
}

/// What the bytes of a message turned out to be.
#[derive(Debug, Clone)]
pub enum Decoded {
    /// A result with its place in its node's order.
    Result(PluginResult),
    /// A result of 2010, or a script's, that has no place yet: its first arrival gives it one. Only its node is read.
    Unordered(NodeName),
}

/// When a message arrived.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    /// The time; a result without one takes it as its own.
    pub at: Timestamp,
    /// Whether that is the time of its first arrival. If not, a result without a sequence has no place in its node's order
    /// yet.
    pub is_first: bool,
}

/// Why bytes are no result. Every such message becomes a dead letter with [`DecodeError::reason`] in its headers.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Larger than the server takes.
    #[error("the message is {bytes} bytes long, at most {max} are taken")]
    TooLarge {
        /// Size found (after decompression, as far as it was read), in bytes.
        bytes: usize,
        /// Size allowed, in bytes.
        max: usize,
    },
    /// A small message that becomes a large one: a compression bomb, aliases, a heading that is repeated.
    #[error(
        "the message is {packed} bytes long and becomes more than {max} bytes, at most {ratio} times as many are taken (server.amplification_max)"
    )]
    Amplification {
        /// Size of the message as it came, in bytes.
        packed: usize,
        /// How many times its size a message may become.
        ratio: usize,
        /// The largest size it may therefore reach, in bytes.
        max: usize,
    },
    /// Nested deeper than the store and other readers are asked to hold.
    #[error("the value nests too deep: {DEPTH_MAX} levels at most, this has {}", counted(*levels))]
    Nesting {
        /// Levels found; none if reading stopped at the first level too many.
        levels: Option<usize>,
    },
    /// A content encoding that is not understood.
    #[error("content encoding {encoding:?} is not understood (zstd, or none)")]
    Encoding {
        /// The encoding found.
        encoding: String,
    },
    /// The compressed body cannot be unpacked.
    #[error("the zstd body cannot be unpacked: {source}")]
    Compression {
        /// What the decoder says.
        #[source]
        source: std::io::Error,
    },
    /// Not JSON at all, or cut off.
    #[error("the message is not JSON: {source}")]
    NotJson {
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// JSON, but not the members that a result has.
    #[error("the message is no result: {problem}")]
    Shape {
        /// Which member is missing or wrong.
        problem: String,
    },
    /// A version that this server does not know.
    #[error(
        "the result has version {version}, this server knows {WIRE_VERSION} and the form of 2010"
    )]
    Version {
        /// The version found.
        version: u64,
    },
    /// The node's name is not allowed.
    #[error(transparent)]
    NodeName(NameError),
    /// The plugin's name is not allowed.
    #[error(transparent)]
    PluginName(NameError),
    /// The value of a 2010 result is not what its format says.
    #[error("the value is not {format}: {source}")]
    Value {
        /// The format it claims.
        format: Format,
        /// Why it is not.
        #[source]
        source: FormatError,
    },
}

impl DecodeError {
    /// All reasons, for the metric's help text.
    pub const REASONS: [&'static str; 11] = [
        "too_large",
        "amplification",
        "nesting",
        "bad_encoding",
        "bad_compression",
        "not_json",
        "bad_shape",
        "bad_version",
        "bad_node_name",
        "bad_plugin_name",
        "bad_value",
    ];

    /// The reason as a word: metric label and dead-letter header.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "too_large",
            Self::Amplification { .. } => "amplification",
            Self::Nesting { .. } => "nesting",
            Self::Encoding { .. } => "bad_encoding",
            Self::Compression { .. } => "bad_compression",
            Self::NotJson { .. } => "not_json",
            Self::Shape { .. } => "bad_shape",
            Self::Version { .. } => "bad_version",
            Self::NodeName(_) => "bad_node_name",
            Self::PluginName(_) => "bad_plugin_name",
            Self::Value { .. } => "bad_value",
        }
    }

    fn shape(problem: impl fmt::Display) -> Self {
        Self::Shape {
            problem: brief(problem),
        }
    }
}

/// Version 2, as it travels. Unknown members are ignored: a later client may send more.
#[derive(Serialize, Deserialize)]
struct Envelope<'a> {
    v: u8,
    #[serde(borrow)]
    node: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    plugin: std::borrow::Cow<'a, str>,
    /// A script that has nowhere to keep a counter leaves it out, as clients of 2010 did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seq: Option<Seq>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    collected_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    run: Option<RunId>,
    /// JSON if a script does not say otherwise.
    #[serde(default = "json")]
    format: Format,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    duration_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hash: Option<ContentHash>,
    // `default` and a borrowed `&RawValue` keep `"value":null` apart from a missing value.
    #[serde(
        borrow,
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "present"
    )]
    value: Option<&'a RawValue>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<PluginError>,
}

/// Reads a member that is there, `null` included: serde alone would take `null` for absence.
fn present<'de: 'a, 'a, D>(deserializer: D) -> Result<Option<&'a RawValue>, D::Error>
where
    D: serde::Deserializer<'de>,
{
    <&RawValue>::deserialize(deserializer).map(Some)
}

#[derive(Deserialize)]
struct Version {
    v: Option<serde_json::Value>,
}

impl PluginResult {
    /// Reads either wire version from an uncompressed body. A result of 2010 has no sequence or time of its own and takes
    /// both from its arrival, `now`.
    pub fn decode(body: &[u8], now: Timestamp) -> Result<Self, DecodeError> {
        let arrival = Arrival {
            at: now,
            is_first: true,
        };
        match Self::decode_arrived(body, arrival, VALUE_BYTES_MAX)? {
            Decoded::Result(result) => Ok(result),
            Decoded::Unordered(node) => Err(DecodeError::shape(format!(
                "the result of {node} has no place in its order"
            ))),
        }
    }

    /// Like [`decode`](Self::decode), but the first arrival of a result without a sequence may not be known yet. The value
    /// made from a result of 2010 may have at most `value_bytes_max` bytes.
    pub fn decode_arrived(
        body: &[u8],
        arrival: Arrival,
        value_bytes_max: usize,
    ) -> Result<Decoded, DecodeError> {
        // Checked before anything reads the body. The message itself is one level; its value stands inside.
        let levels = levels(body).saturating_sub(1);
        if levels > DEPTH_MAX {
            return Err(DecodeError::Nesting {
                levels: Some(levels),
            });
        }
        // serde reads a struct from an array too; a result is an object.
        if body.trim_ascii_start().first() != Some(&b'{') {
            return Err(
                match serde_json::from_slice::<serde::de::IgnoredAny>(body) {
                    Ok(_) => DecodeError::shape("it is not a JSON object"),
                    Err(source) => DecodeError::NotJson { source },
                },
            );
        }
        match serde_json::from_slice::<Envelope<'_>>(body) {
            Ok(envelope) if envelope.v == WIRE_VERSION => Self::from_envelope(envelope, arrival),
            Ok(envelope) => Err(DecodeError::Version {
                version: envelope.v.into(),
            }),
            Err(error) => Self::decode_other(body, arrival, value_bytes_max, error),
        }
    }

    /// Reads what is not version 2: a result of 2010, or an error that says why it is none.
    fn decode_other(
        body: &[u8],
        arrival: Arrival,
        value_bytes_max: usize,
        error: serde_json::Error,
    ) -> Result<Decoded, DecodeError> {
        let version: Version =
            serde_json::from_slice(body).map_err(|source| DecodeError::NotJson { source })?;
        match version.v {
            None => Self::decode_v1(body, arrival, value_bytes_max),
            Some(v) if v.as_u64() == Some(WIRE_VERSION.into()) => Err(DecodeError::shape(error)),
            Some(v) => Err(v.as_u64().map_or_else(
                || DecodeError::shape(format!("\"v\" is {v}, not a version")),
                |version| DecodeError::Version { version },
            )),
        }
    }

    /// Fills in what a short script leaves out: the hash, the time, and by its first arrival the sequence. serde fills in
    /// the format.
    fn from_envelope(envelope: Envelope<'_>, arrival: Arrival) -> Result<Decoded, DecodeError> {
        let node = NodeName::new(&envelope.node).map_err(DecodeError::NodeName)?;
        if envelope.seq.is_none() && !arrival.is_first {
            return Ok(Decoded::Unordered(node));
        }
        let now = arrival.at;
        let content = match (envelope.value, envelope.error) {
            (Some(value), None) => {
                let hash = match envelope.hash {
                    Some(hash) => checked(hash)?,
                    None => hash_of(value, envelope.format)?,
                };
                Content::Value {
                    json: value.to_owned(),
                    hash,
                }
            }
            (None, Some(mut error)) => {
                truncate(&mut error.message, ERROR_MESSAGE_BYTES_MAX);
                if let Some(stderr) = &mut error.stderr {
                    truncate(stderr, ERROR_MESSAGE_BYTES_MAX);
                }
                Content::Error(error)
            }
            (Some(_), Some(_)) => {
                return Err(DecodeError::shape("it has both \"value\" and \"error\""));
            }
            (None, None) => {
                return Err(DecodeError::shape("it has neither \"value\" nor \"error\""));
            }
        };
        Ok(Decoded::Result(Self {
            node,
            plugin: Some(PluginName::new(&envelope.plugin).map_err(DecodeError::PluginName)?),
            seq: envelope.seq.unwrap_or_else(|| Seq::after(Seq(0), now)),
            collected_at: envelope.collected_at.unwrap_or(now),
            run: envelope.run,
            format: envelope.format,
            duration_ms: envelope.duration_ms,
            content,
        }))
    }

    /// The form of 2010: `{"syskey":node,"format":…,"<plugin>":…}`, or `"last_error":{…}` in the plugin's place.
    fn decode_v1(
        body: &[u8],
        arrival: Arrival,
        value_bytes_max: usize,
    ) -> Result<Decoded, DecodeError> {
        let mut members: std::collections::BTreeMap<String, &RawValue> =
            serde_json::from_slice(body).map_err(|source| DecodeError::NotJson { source })?;
        let node: String = take_v1(&mut members, V1_NODE)?;
        let node = NodeName::new(&node).map_err(DecodeError::NodeName)?;
        if !arrival.is_first {
            return Ok(Decoded::Unordered(node));
        }
        let now = arrival.at;
        let format_name: String = take_v1(&mut members, V1_FORMAT)?;
        let format = format_name.parse::<Format>().map_err(|()| {
            DecodeError::shape(format!(
                "\"{V1_FORMAT}\" is {format_name:?}, not a known format"
            ))
        })?;
        let (key, value) = match (members.pop_first(), members.len()) {
            (Some(member), 0) => member,
            (None, _) => return Err(DecodeError::shape("no member names a plugin")),
            (Some((first, _)), _) => {
                return Err(DecodeError::shape(format!(
                    "{first:?} is not the only plugin in it"
                )));
            }
        };
        let (plugin, content) = if key == V1_ERROR {
            (None, Content::Error(error_v1(value)))
        } else {
            let plugin = PluginName::new(&key).map_err(DecodeError::PluginName)?;
            (Some(plugin), value_v1(format, value, value_bytes_max)?)
        };
        let seq = Seq::after(Seq(0), now);
        Ok(Decoded::Result(Self {
            node,
            plugin,
            seq,
            collected_at: now,
            run: None,
            format,
            duration_ms: None,
            content,
        }))
    }

    /// Writes version 2. A plugin-less error, which only 2010 has, cannot be written and is an error.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        let plugin = self.plugin.as_ref().ok_or_else(|| {
            <serde_json::Error as serde::ser::Error>::custom("a version 2 result has a plugin")
        })?;
        let (value, hash, error) = match &self.content {
            Content::Value { json, hash } => (Some(json.as_ref()), Some(hash.clone()), None),
            Content::Error(error) => (None, None, Some(error.clone())),
        };
        serde_json::to_vec(&Envelope {
            v: WIRE_VERSION,
            node: self.node.as_str().into(),
            plugin: plugin.as_str().into(),
            seq: Some(self.seq),
            collected_at: Some(self.collected_at),
            run: self.run,
            format: self.format,
            duration_ms: self.duration_ms,
            hash,
            value,
            error,
        })
    }
}

fn take_v1<'a, T: Deserialize<'a>>(
    members: &mut std::collections::BTreeMap<String, &'a RawValue>,
    key: &str,
) -> Result<T, DecodeError> {
    let raw = members
        .remove(key)
        .ok_or_else(|| DecodeError::shape(format!("it has no \"v\", and no {key:?} as in 2010")))?;
    serde_json::from_str(raw.get())
        .map_err(|_| DecodeError::shape(format!("{key:?} is not a string")))
}

/// `{"timestamp":…,"message":…}`; whatever else a client of 2010 puts there is kept as the message's text.
fn error_v1(value: &RawValue) -> PluginError {
    #[derive(Deserialize)]
    struct LastError {
        message: String,
    }
    let mut message = serde_json::from_str::<LastError>(value.get())
        .map_or_else(|_| value.get().to_owned(), |error| error.message);
    truncate(&mut message, ERROR_MESSAGE_BYTES_MAX);
    PluginError {
        kind: ErrorKind::Failed,
        message,
        exit: None,
        stderr: None,
    }
}

/// Turns a text into a value as its format says; a value that is already structured stays as it is.
fn value_v1(format: Format, value: &RawValue, bytes_max: usize) -> Result<Content, DecodeError> {
    let json = match serde_json::from_str::<String>(value.get()) {
        Ok(text) => {
            format::value_within(format, text.as_bytes(), bytes_max).map_err(
                |source| match source {
                    FormatError::TooDeep { levels } => DecodeError::Nesting { levels },
                    source => DecodeError::Value { format, source },
                },
            )?
        }
        Err(_) => value.to_owned(),
    };
    let hash = hash_of(&json, format)?;
    Ok(Content::Value { json, hash })
}

/// The hash that the client did not send. The server knows no volatile parts here, so all of the value counts.
fn hash_of(value: &RawValue, format: Format) -> Result<ContentHash, DecodeError> {
    hash::content_hash(value, &[]).map_err(|source| DecodeError::Value {
        format,
        source: FormatError::from(source),
    })
}

fn checked(hash: ContentHash) -> Result<ContentHash, DecodeError> {
    let bytes = hash.0.len();
    if bytes == 0 || bytes > HASH_BYTES_MAX {
        return Err(DecodeError::shape(format!(
            "\"hash\" has {bytes} bytes, 1 to {HASH_BYTES_MAX} are allowed"
        )));
    }
    Ok(hash)
}

fn json() -> Format {
    Format::Json
}

fn counted(levels: Option<usize>) -> String {
    levels.map_or_else(|| "more".to_owned(), |levels| levels.to_string())
}

/// Cuts `text` to at most `bytes_max` bytes at a character's edge.
pub fn truncate(text: &mut String, bytes_max: usize) {
    text.truncate(text.floor_char_boundary(bytes_max));
}

/// The text of `error`, cut to [`ERROR_TEXT_BYTES_MAX`] bytes: errors of parsers quote what they read, however long.
pub(crate) fn brief(error: impl fmt::Display) -> String {
    let mut text = error.to_string();
    truncate(&mut text, ERROR_TEXT_BYTES_MAX);
    text
}
