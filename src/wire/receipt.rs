//! Outcomes and receipts: how a delivery ended, and the server's message about it to the runner.

use serde::{Deserialize, Serialize};

use super::{NodeName, PluginError, PluginName, RunId, WIRE_VERSION};

/// How one delivery ended. Every delivery has exactly one outcome; the names are also metric labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The write that carries it is durable.
    Stored,
    /// Its content equals the stored one, checked recently enough: no write was needed.
    Unchanged,
    /// A newer result of the same plugin overtook it while it was pending, and that one is durable.
    Superseded,
    /// Its sequence is not above the stored one.
    Stale,
    /// It is in `vogeler.dead`, with the reason.
    DeadLettered,
    /// It went back to the broker, which delivers it again.
    Requeued,
}

impl Outcome {
    /// All outcomes, in the order of the accounting identity.
    pub const ALL: [Self; 6] = [
        Self::Stored,
        Self::Unchanged,
        Self::Superseded,
        Self::Stale,
        Self::DeadLettered,
        Self::Requeued,
    ];

    /// The name on the wire and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Unchanged => "unchanged",
            Self::Superseded => "superseded",
            Self::Stale => "stale",
            Self::DeadLettered => "dead_lettered",
            Self::Requeued => "requeued",
        }
    }
}

/// Tells the runner that one result of its run reached an outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Where the result came from.
    pub node: NodeName,
    /// Which plugin it is of.
    pub plugin: PluginName,
    /// How its delivery ended; never [`Outcome::Requeued`], which is not an end for the run.
    pub outcome: Outcome,
    /// What the client reported in place of a value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<PluginError>,
    /// Why it was dead-lettered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Of a [`Outcome::Stale`] result: `true` if it is the stored result itself, delivered again; `false` if the stored
    /// one is newer. Older servers do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy: Option<bool>,
}

/// The message in which receipts travel: each flush sends one for each run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptBatch {
    /// Wire version, [`WIRE_VERSION`].
    pub v: u8,
    /// The run they belong to; also the routing key.
    pub run: RunId,
    /// The receipts, in the order of their outcomes.
    pub receipts: Vec<Receipt>,
    /// Receipts of this run that the server had to drop before this message.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lost: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl ReceiptBatch {
    /// A batch of this version.
    pub fn new(run: RunId, receipts: Vec<Receipt>) -> Self {
        Self {
            v: WIRE_VERSION,
            run,
            receipts,
            lost: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: receipts of servers older than `copy` and `lost` are read, and absent members are not written.
    #[test]
    fn receipts_of_older_servers_are_read() {
        let run = RunId::generate();
        let text = format!(
            r#"{{"v":2,"run":"{run}","receipts":[{{"node":"a","plugin":"rpms","outcome":"stale"}}]}}"#
        );
        let batch: ReceiptBatch = serde_json::from_str(&text).unwrap();
        assert_eq!((batch.lost, batch.receipts[0].copy), (0, None));
        assert_eq!(serde_json::to_string(&batch).unwrap(), text);
    }
}
