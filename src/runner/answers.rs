//! Who has answered a run so far. Pure: receipts in, counts and names out.
//!
//! Invariant: a node is in exactly one category, and what it answered first stays: a receipt that comes twice, or a
//! `stale` for the broker's second delivery of a result that was stored, changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::wire::{ErrorKind, NodeName, Outcome, PluginError, PluginName, Receipt, RunId};

/// Whom a run waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// These, and it ends when all of them have answered.
    Nodes(BTreeSet<NodeName>),
    /// Nobody can say (the store is away): it waits for whoever answers until its deadline.
    Unknown,
}

/// What a node said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Its result is in the store.
    Answered(Outcome),
    /// It gave no value, or the value is a dead letter.
    Failed(Failure),
    /// Its client has no such plugin, or may not run it.
    Refused(Failure),
    /// Its client heard the command after the deadline.
    Expired(Failure),
    /// It said nothing: the reason, where more is known than that.
    Silent(Option<String>),
}

/// Why a node gave no value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// For programs: an error kind of the wire, or `dead_lettered`.
    pub kind: String,
    /// For people.
    pub message: String,
    /// The program's exit status, where it had one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit: Option<i32>,
}

/// How many nodes are in each category.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Nodes that the run waits for; none if nobody can say.
    pub expected: Option<usize>,
    /// Their results are in the store.
    pub answered: usize,
    /// They gave no value.
    pub failed: usize,
    /// They have no such plugin.
    pub refused: usize,
    /// They heard too late.
    pub expired: usize,
    /// They said nothing.
    pub silent: usize,
    /// Nodes among all these that nobody expected.
    pub new: usize,
}

/// A run while it gathers answers.
#[derive(Debug, Clone)]
pub struct Run {
    id: RunId,
    plugin: PluginName,
    expected: Expected,
    waiting: BTreeSet<NodeName>,
    answers: BTreeMap<NodeName, Answer>,
}

impl Run {
    /// A run that nobody has answered.
    pub fn new(id: RunId, plugin: PluginName, expected: Expected) -> Self {
        let waiting = match &expected {
            Expected::Nodes(nodes) => nodes.clone(),
            Expected::Unknown => BTreeSet::new(),
        };
        Self {
            id,
            plugin,
            expected,
            waiting,
            answers: BTreeMap::new(),
        }
    }

    /// Its id.
    pub fn id(&self) -> RunId {
        self.id
    }

    /// The plugin that was asked for.
    pub fn plugin(&self) -> &PluginName {
        &self.plugin
    }

    /// Takes a receipt. Says whether it changed anything.
    pub fn on_receipt(&mut self, receipt: Receipt) -> bool {
        if receipt.plugin != self.plugin {
            return false;
        }
        match answer_of(receipt.outcome, receipt.error, receipt.reason) {
            Some(answer) => self.record(receipt.node, answer),
            None => false,
        }
    }

    /// Records an answer that was found by other means. Says whether it changed anything: only silence is
    /// overruled, and never by silence.
    pub fn record(&mut self, node: NodeName, answer: Answer) -> bool {
        let spoke = |answer: &Answer| !matches!(answer, Answer::Silent(_));
        match self.answers.get(&node) {
            Some(earlier) if spoke(earlier) || !spoke(&answer) => false,
            _ => {
                self.waiting.remove(&node);
                self.answers.insert(node, answer);
                true
            }
        }
    }

    /// Whether there is nobody left to wait for. An empty expectation waits: it may only be that the store does
    /// not know the nodes yet.
    pub fn is_settled(&self) -> bool {
        matches!(&self.expected, Expected::Nodes(nodes) if !nodes.is_empty())
            && self.waiting.is_empty()
    }

    /// Expected nodes that no receipt has told of, those called silent included.
    pub fn unheard(&self) -> Vec<NodeName> {
        let silent = self
            .answers
            .iter()
            .filter(|(_, answer)| matches!(answer, Answer::Silent(_)));
        let silent = silent.map(|(node, _)| node);
        self.waiting.iter().chain(silent).cloned().collect()
    }

    /// Calls all that are still waited for silent.
    pub fn end(&mut self) {
        for node in std::mem::take(&mut self.waiting) {
            self.answers.insert(node, Answer::Silent(None));
        }
    }

    /// Whether nobody expected this node.
    pub fn is_new(&self, node: &NodeName) -> bool {
        !matches!(&self.expected, Expected::Nodes(nodes) if nodes.contains(node))
    }

    /// All answers, by node.
    pub fn answers(&self) -> impl Iterator<Item = (&NodeName, &Answer)> {
        self.answers.iter()
    }

    /// How many nodes are in each category now; those waited for are in none.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts {
            expected: match &self.expected {
                Expected::Nodes(nodes) => Some(nodes.len()),
                Expected::Unknown => None,
            },
            ..Counts::default()
        };
        for (node, answer) in &self.answers {
            *match answer {
                Answer::Answered(_) => &mut counts.answered,
                Answer::Failed(_) => &mut counts.failed,
                Answer::Refused(_) => &mut counts.refused,
                Answer::Expired(_) => &mut counts.expired,
                Answer::Silent(_) => &mut counts.silent,
            } += 1;
            counts.new += usize::from(self.is_new(node));
        }
        counts
    }
}

impl Counts {
    /// Nodes that were heard of, in whatever category.
    pub fn heard(self) -> usize {
        self.answered + self.failed + self.refused + self.expired
    }

    /// Whether it is known who had to answer, and every node did, with a result.
    pub fn is_complete(self) -> bool {
        let others = self.failed + self.refused + self.expired + self.silent;
        self.expected.is_some_and(|expected| expected > 0) && others == 0
    }
}

/// What a receipt says; nothing for one that is no end.
fn answer_of(
    outcome: Outcome,
    error: Option<PluginError>,
    reason: Option<String>,
) -> Option<Answer> {
    let dead_letter = || Failure {
        kind: Outcome::DeadLettered.as_str().to_owned(),
        message: reason.unwrap_or_else(|| "no reason was given".to_owned()),
        exit: None,
    };
    match (outcome, error) {
        (Outcome::Requeued, _) => None,
        (Outcome::DeadLettered, _) => Some(Answer::Failed(dead_letter())),
        (_, Some(error)) => Some(Answer::from(error)),
        (outcome, None) => Some(Answer::Answered(outcome)),
    }
}

impl From<PluginError> for Answer {
    fn from(error: PluginError) -> Self {
        let failure = Failure {
            kind: error.kind.as_str().to_owned(),
            message: error.message,
            exit: error.exit,
        };
        match error.kind {
            ErrorKind::Refused => Self::Refused(failure),
            ErrorKind::Expired => Self::Expired(failure),
            _ => Self::Failed(failure),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(expected: &[&str]) -> Run {
        let nodes = expected.iter().map(|name| name.parse().unwrap()).collect();
        Run::new(
            RunId::generate(),
            "rpms".parse().unwrap(),
            Expected::Nodes(nodes),
        )
    }

    fn receipt(node: &str, outcome: Outcome, error: Option<ErrorKind>) -> Receipt {
        Receipt {
            node: node.parse().unwrap(),
            plugin: "rpms".parse().unwrap(),
            outcome,
            error: error.map(|kind| PluginError {
                kind,
                message: "why".to_owned(),
                exit: Some(1),
                stderr: None,
            }),
            reason: (outcome == Outcome::DeadLettered).then(|| "forbidden".to_owned()),
        }
    }

    /// Goal: every outcome and error kind lands in its category.
    #[test]
    fn receipts_land_in_their_category() {
        let mut run = run(&["a", "b", "c", "d", "e", "f", "g"]);
        assert!(run.on_receipt(receipt("a", Outcome::Stored, None)));
        assert!(run.on_receipt(receipt("b", Outcome::Unchanged, None)));
        assert!(run.on_receipt(receipt("c", Outcome::Stored, Some(ErrorKind::Timeout))));
        assert!(run.on_receipt(receipt("d", Outcome::Stored, Some(ErrorKind::Refused))));
        assert!(run.on_receipt(receipt("e", Outcome::Stored, Some(ErrorKind::Expired))));
        assert!(run.on_receipt(receipt("f", Outcome::DeadLettered, None)));
        assert!(!run.on_receipt(receipt("g", Outcome::Requeued, None)));
        assert!(run.on_receipt(receipt("z", Outcome::Superseded, None)));
        assert!(!run.is_settled());
        run.end();
        let expected = Counts {
            expected: Some(7),
            answered: 3,
            failed: 2,
            refused: 1,
            expired: 1,
            silent: 1,
            new: 1,
        };
        assert_eq!(run.counts(), expected);
        let failure = run
            .answers()
            .find(|(node, _)| node.as_str() == "f")
            .unwrap()
            .1
            .clone();
        assert!(
            matches!(failure, Answer::Failed(f) if f.kind == "dead_lettered" && f.message == "forbidden")
        );
    }

    /// Goal: receipts of another plugin of the run are not ours.
    #[test]
    fn other_plugins_do_not_count() {
        let mut run = run(&["a"]);
        let mut other = receipt("a", Outcome::Stored, None);
        other.plugin = "dpkg".parse().unwrap();
        assert!(!run.on_receipt(other) && !run.is_settled());
    }

    /// Goal: a node without a queue is silent at once and ends the wait, and a receipt still overrules it.
    #[test]
    fn silence_is_overruled_by_a_receipt() {
        let mut run = run(&["a"]);
        assert!(run.record(
            "a".parse().unwrap(),
            Answer::Silent(Some("no queue".to_owned()))
        ));
        assert!(run.is_settled());
        assert_eq!(run.unheard().len(), 1);
        assert!(run.on_receipt(receipt("a", Outcome::Stored, None)));
        assert!(run.counts().is_complete() && run.unheard().is_empty());
    }

    /// Goal: with nobody known, or nobody to expect, a run waits to its end and is never complete.
    #[test]
    fn without_expectation_nothing_is_complete() {
        let mut unknown = Run::new(
            RunId::generate(),
            "rpms".parse().unwrap(),
            Expected::Unknown,
        );
        for run in [&mut unknown, &mut run(&[])] {
            run.on_receipt(receipt("a", Outcome::Stored, None));
            assert!(!run.is_settled() && !run.counts().is_complete());
            assert_eq!(run.counts().new, 1);
        }
    }

    fn receipts() -> impl Strategy<Value = Vec<Receipt>> {
        let kinds = prop::sample::select(vec![
            None,
            Some(ErrorKind::Refused),
            Some(ErrorKind::Expired),
            Some(ErrorKind::Failed),
        ]);
        let one = ("[a-f]", prop::sample::select(Outcome::ALL.to_vec()), kinds);
        prop::collection::vec(
            one.prop_map(|(node, outcome, kind)| receipt(&node, outcome, kind)),
            0..40,
        )
    }

    proptest! {
        /// Every node is in exactly one category, repeated receipts change nothing, and a run is settled exactly when
        /// every expected node has been heard of.
        #[test]
        fn every_node_is_counted_once(receipts in receipts()) {
            let mut run = run(&["a", "b", "c"]);
            for receipt in &receipts {
                run.on_receipt(receipt.clone());
                let counts = run.counts();
                prop_assert!(!run.on_receipt(receipt.clone()));
                prop_assert_eq!(run.counts(), counts);
            }
            let settled = run.is_settled();
            run.end();
            let counts = run.counts();
            prop_assert_eq!(settled, counts.silent == 0);
            prop_assert_eq!(counts.heard() + counts.silent, 3 + counts.new);
            prop_assert_eq!(run.answers().count(), counts.heard() + counts.silent);
        }
    }
}
