//! What the verifier found, in the categories of the report. A run is good when every one is empty.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One thing that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Finding {
    /// The node that it is about.
    pub(crate) node: String,
    /// The plugin, if it is about one.
    pub(crate) plugin: Option<String>,
    /// The result's sequence, if it is about one.
    pub(crate) seq: Option<u64>,
    /// What, in a sentence.
    pub(crate) what: String,
}

/// Everything that was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Verdict {
    /// Confirmed by the broker, and neither in the store nor overtaken nor in the dead letters.
    pub(crate) lost: Vec<Finding>,
    /// The store has an older result than one that was settled.
    pub(crate) stale_over_newer: Vec<Finding>,
    /// A node's document has another node's content.
    pub(crate) mixed_up: Vec<Finding>,
    /// The store has a result that was deleted or refused.
    pub(crate) resurrected: Vec<Finding>,
    /// Settled without a receipt, and no fault explains it.
    pub(crate) missing_receipt: Vec<Finding>,
    /// What no cause explains: an outcome that cannot be, a value that nobody sent, a dead letter of a good result.
    pub(crate) unexplained: Vec<Finding>,
    /// The server's counters and the ledger tell different stories.
    pub(crate) counters_disagree: Vec<Finding>,
    /// Real clients that ended with an error.
    #[serde(default)]
    pub(crate) failed_clients: Vec<Finding>,
    /// Missing receipts that a fault explains; the store shows what became of the results. No finding.
    pub(crate) receipts_lost_to_faults: u64,
    /// Receipts that are missing after a fault's time, but that the server counted as given up: after an outage it may
    /// settle more than its queue of receipts holds. No finding; without faults each is one.
    #[serde(default)]
    pub(crate) receipts_given_up: u64,
    /// Older results that came late and were taken for new: a newer unchanged one leaves no trace in the store, and a
    /// fault made the server forget it (ARCHITECTURE.md, Decisions). No finding; above 0 only with faults.
    pub(crate) unchanged_forgotten: u64,
    /// Messages that were compared.
    pub(crate) checked: u64,
    /// Nodes that left and whose document was deleted, to see whether it comes back. None if no document was to be
    /// deleted: then resurrection was not tested.
    #[serde(default)]
    pub(crate) deleted: Option<u64>,
}

impl Verdict {
    /// The categories by name, in the order of the report.
    pub(crate) fn categories(&self) -> [(&'static str, &[Finding]); 8] {
        [
            ("lost", &self.lost),
            ("stale over newer", &self.stale_over_newer),
            ("mixed-up node", &self.mixed_up),
            ("resurrected", &self.resurrected),
            ("missing receipt", &self.missing_receipt),
            ("unexplained", &self.unexplained),
            ("counters disagree", &self.counters_disagree),
            ("failed real clients", &self.failed_clients),
        ]
    }

    /// Whether nothing was found.
    pub(crate) fn is_good(&self) -> bool {
        self.categories().iter().all(|(_, found)| found.is_empty())
    }
}

/// How one operator's run went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunnerOutcome {
    /// Which plugin.
    pub(crate) plugin: String,
    /// Whom it asked.
    pub(crate) target: String,
    /// When it began, from the start of the load.
    #[serde(with = "crate::span")]
    pub(crate) at: Duration,
    /// Time until all had answered, or until the deadline.
    #[serde(with = "crate::span")]
    pub(crate) took: Duration,
    /// Time that its connections then took to close: an operator waits for that, too.
    #[serde(default, with = "crate::span")]
    pub(crate) closing: Duration,
    /// Nodes that were expected to answer.
    pub(crate) expected: usize,
    /// Nodes that answered with a value.
    pub(crate) answered: usize,
    /// Why it could not run, if it could not.
    pub(crate) error: Option<String>,
}
