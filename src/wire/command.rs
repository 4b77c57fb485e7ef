//! The command: it asks clients to run one plugin. `{"v":2,…}`, or in 2010 a bare JSON string naming the plugin.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{DEPTH_MAX, NameError, PluginName, RunId, WIRE_VERSION, levels};

/// Asks clients to run one plugin, as part of a run.
#[derive(Debug, Clone)]
pub struct Command {
    /// The run it belongs to; a command of 2010 belongs to none.
    pub run: Option<RunId>,
    /// Which plugin to run. A client runs only what its own files name.
    pub plugin: PluginName,
    /// When the run ends: a client that receives the command later answers `expired` and runs nothing.
    pub deadline: Option<Timestamp>,
    /// Narrows the target on the client. No filter is defined yet, so a client that finds one refuses:
    /// running a command on a node that the operator meant to leave out would be worse than not running it.
    pub filter: Option<Box<RawValue>>,
}

/// Why bytes are no command.
#[derive(Debug, thiserror::Error)]
pub enum DecodeCommandError {
    /// Not JSON, or JSON of another shape.
    #[error("the command is not JSON of a known shape")]
    Json(#[from] serde_json::Error),
    /// Nested deeper than a client reads.
    #[error("the command nests too deep: {DEPTH_MAX} levels at most, this has {levels}")]
    Nesting {
        /// Levels found.
        levels: usize,
    },
    /// A version this client does not know.
    #[error(
        "the command has version {version}, this client knows {WIRE_VERSION} and the bare string of 2010"
    )]
    Version {
        /// The version found.
        version: u8,
    },
    /// The plugin's name is not allowed.
    #[error(transparent)]
    Name(#[from] NameError),
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Wire {
    V1(String),
    V2(Envelope),
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    v: u8,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    run: Option<RunId>,
    plugin: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    deadline: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    filter: Option<serde_json::Value>,
}

impl Command {
    /// Reads either wire version.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeCommandError> {
        let levels = levels(body);
        if levels > DEPTH_MAX {
            return Err(DecodeCommandError::Nesting { levels });
        }
        match serde_json::from_slice(body)? {
            Wire::V1(plugin) => Ok(Self {
                run: None,
                plugin: PluginName::new(&plugin)?,
                deadline: None,
                filter: None,
            }),
            Wire::V2(envelope) if envelope.v != WIRE_VERSION => Err(DecodeCommandError::Version {
                version: envelope.v,
            }),
            Wire::V2(envelope) => Ok(Self {
                run: envelope.run,
                plugin: PluginName::new(&envelope.plugin)?,
                deadline: envelope.deadline,
                filter: envelope
                    .filter
                    .map(|filter| serde_json::value::to_raw_value(&filter))
                    .transpose()?,
            }),
        }
    }

    /// Writes version 2.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(&Envelope {
            v: WIRE_VERSION,
            run: self.run,
            plugin: self.plugin.to_string(),
            deadline: self.deadline,
            filter: self
                .filter
                .as_deref()
                .map(|raw| serde_json::from_str(raw.get()))
                .transpose()?,
        })
    }

    /// Whether the run has ended at `now`.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.deadline.is_some_and(|deadline| now > deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the bare string that a runner of 2010 sends is a command without run and deadline.
    #[test]
    fn the_2010_command_is_a_bare_string() {
        let command = Command::decode(br#""rpms""#).unwrap();
        assert_eq!(command.plugin.as_str(), "rpms");
        assert!(command.run.is_none() && command.deadline.is_none());
    }

    /// Goal: version 2 keeps its byte-exact form, and reads what it writes.
    #[test]
    fn version_2_is_byte_exact() {
        let body = br#"{"v":2,"run":"01890a5d-ac96-774b-bcce-b302099a8057","plugin":"rpms","deadline":"2026-11-22T14:00:00Z"}"#;
        let command = Command::decode(body).unwrap();
        assert_eq!(command.encode().unwrap(), body);
    }

    /// Goal: the error for a command that this client cannot carry out names the part that it does not know.
    #[test]
    fn unknown_versions_and_names_are_errors() {
        let version = Command::decode(br#"{"v":3,"plugin":"rpms"}"#).unwrap_err();
        assert!(version.to_string().contains("version 3"), "{version}");
        let name = Command::decode(br#""_id""#).unwrap_err();
        assert!(
            name.to_string().contains("may not start with '_'"),
            "{name}"
        );
        assert!(matches!(
            Command::decode(b"rpms"),
            Err(DecodeCommandError::Json(_))
        ));
    }

    /// Goal: hostile nesting anywhere in a command is an error that counts the levels, not a stack overflow.
    #[test]
    fn nesting_is_bounded() {
        let nested = |depth: usize| {
            let filter = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
            format!(r#"{{"v":2,"plugin":"rpms","filter":{filter}}}"#)
        };
        assert!(Command::decode(nested(DEPTH_MAX - 1).as_bytes()).is_ok());
        for depth in [DEPTH_MAX, 100_000] {
            let error = Command::decode(nested(depth).as_bytes()).unwrap_err();
            let expected = format!("64 levels at most, this has {}", depth + 1);
            assert!(error.to_string().contains(&expected), "{error}");
        }
    }
}
