//! Who has answered a run so far. Pure: receipts in, counts and names out.
//!
//! Invariants: a node is in exactly one category. Its first answer stays: a repeated receipt changes nothing, nor does
//! a `stale` for the broker's second delivery of a stored result. A node whose receipt may be lost is unknown, never
//! silent.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::wire::{ErrorKind, NodeName, Outcome, PluginError, PluginName, Receipt, RunId};

/// The reason given for a silent node if its schedule or another run stored a result meanwhile.
const OVERTAKEN: &str =
    "no answer before the deadline; another run's newer result is stored meanwhile";

/// Whom a run waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// These nodes. The run ends once all of them have answered.
    Nodes(BTreeSet<NodeName>),
    /// Nobody can say, since the store is away. The run takes answers from any node until its deadline.
    Unknown,
}

/// What a node said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A receipt or the store says that its result is in the store, or a newer one that came at the same time.
    Answered(Kept),
    /// It gave a value, and the store keeps a newer one.
    Older,
    /// A server says that its result is stale, but not whether it is a copy of the stored one or older. The store can
    /// tell.
    Stale,
    /// It gave no value, or the value is a dead letter.
    Failed(Failure),
    /// Its client has no such plugin, or may not run it.
    Refused(Failure),
    /// Its client heard the command after the deadline.
    Expired(Failure),
    /// It said nothing. Holds the reason, if one is known.
    Silent(Option<String>),
    /// Nobody can know whether it said something. Holds the reason.
    Unknown(String),
}

/// How the store keeps a node's result. The words are members of the report's JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// It was written.
    Stored,
    /// The store had the same content already.
    Unchanged,
    /// It is stored, and was delivered a second time; the receipt of the first delivery did not come.
    Copy,
    /// A newer result of the node overtook it, and that one is stored.
    Superseded,
}

/// What the store's bookkeeping says of a node without a conclusive receipt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trace {
    /// The newest result is of this run: its value, or the error that it reported.
    Ours(Option<PluginError>),
    /// The newest result is of another run, and was collected and stored after this run began.
    Newer,
    /// Nothing since the run began.
    Nothing,
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
    /// Their results are older than what is stored.
    pub older: usize,
    /// They gave no value.
    pub failed: usize,
    /// They have no such plugin.
    pub refused: usize,
    /// They heard too late.
    pub expired: usize,
    /// They said nothing.
    pub silent: usize,
    /// Whether they answered cannot be known.
    pub unknown: usize,
    /// Nodes in any of these categories that nobody expected.
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
    /// Nodes of which the store has a newer result of another run, which is no answer to this run.
    overtaken: BTreeSet<NodeName>,
    /// Why receipts may have been lost; none if none can be.
    doubt: Option<String>,
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
            overtaken: BTreeSet::new(),
            doubt: None,
        }
    }

    /// Its id.
    pub fn id(&self) -> RunId {
        self.id
    }

    /// The plugin that the run asks for.
    pub fn plugin(&self) -> &PluginName {
        &self.plugin
    }

    /// Takes a receipt. Returns whether it changed anything.
    pub fn on_receipt(&mut self, receipt: Receipt) -> bool {
        if receipt.plugin != self.plugin {
            return false;
        }
        let node = receipt.node.clone();
        match answer_of(receipt) {
            Some(answer) => self.record(node, answer),
            None => false,
        }
    }

    /// Takes what the store says of a node that is [`unheard`](Self::unheard). Returns whether it changed anything.
    pub fn on_trace(&mut self, node: NodeName, trace: Trace) -> bool {
        let is_stale = self.answers.get(&node) == Some(&Answer::Stale);
        let answer = match trace {
            Trace::Ours(Some(error)) => Answer::from(error),
            Trace::Ours(None) if is_stale => Answer::Answered(Kept::Copy),
            Trace::Ours(None) => Answer::Answered(Kept::Stored),
            // Stale means that the store has a result at least as new; this one is another run's.
            Trace::Newer | Trace::Nothing if is_stale => Answer::Older,
            Trace::Newer => {
                self.overtaken.insert(node);
                return false;
            }
            Trace::Nothing => return false,
        };
        self.record(node, answer)
    }

    /// From now on receipts may have been lost, for this reason. [`end`](Self::end) then calls no node silent.
    pub fn doubt(&mut self, reason: String) {
        self.doubt.get_or_insert(reason);
    }

    /// Records an answer. Returns whether it changed anything: an answer replaces only one that is less certain, so
    /// the first thing a node said stays.
    pub fn record(&mut self, node: NodeName, answer: Answer) -> bool {
        let earlier = self.answers.get(&node).map_or(0, certainty);
        if certainty(&answer) <= earlier {
            return false;
        }
        self.waiting.remove(&node);
        self.answers.insert(node, answer);
        true
    }

    /// Whether there is nobody left to wait for. A run that expects no node is never settled: the store may not know
    /// the nodes yet.
    pub fn is_settled(&self) -> bool {
        matches!(&self.expected, Expected::Nodes(nodes) if !nodes.is_empty())
            && self.waiting.is_empty()
    }

    /// Nodes of which the store may know more than the receipts said.
    pub fn unheard(&self) -> Vec<NodeName> {
        let open = self
            .answers
            .iter()
            .filter(|(_, answer)| certainty(answer) < CERTAIN);
        let open = open.map(|(node, _)| node);
        self.waiting.iter().chain(open).cloned().collect()
    }

    /// Calls every node still waited for silent, or unknown if receipts may have been lost.
    pub fn end(&mut self) {
        for node in std::mem::take(&mut self.waiting) {
            let overtaken = self.overtaken.contains(&node).then(|| OVERTAKEN.to_owned());
            let answer = match &self.doubt {
                Some(reason) => Answer::Unknown(reason.clone()),
                None => Answer::Silent(overtaken),
            };
            self.answers.insert(node, answer);
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

    /// How many nodes are in each category now. A node still waited for is in none.
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
                Answer::Older => &mut counts.older,
                Answer::Failed(_) => &mut counts.failed,
                Answer::Refused(_) => &mut counts.refused,
                Answer::Expired(_) => &mut counts.expired,
                Answer::Silent(_) => &mut counts.silent,
                Answer::Unknown(_) | Answer::Stale => &mut counts.unknown,
            } += 1;
            counts.new += usize::from(self.is_new(node));
        }
        counts
    }
}

impl Counts {
    /// Nodes that answered, in any category.
    pub fn heard(self) -> usize {
        self.answered + self.older + self.failed + self.refused + self.expired
    }

    /// Whether the expected nodes are known, and every node answered with a result.
    pub fn is_complete(self) -> bool {
        let others = self.heard() - self.answered + self.silent + self.unknown;
        self.expected.is_some_and(|expected| expected > 0) && others == 0
    }
}

/// The certainty of what a node said itself: nothing overrules it.
const CERTAIN: u8 = 3;

/// How certain an answer is; 0 stands for no answer.
fn certainty(answer: &Answer) -> u8 {
    match answer {
        Answer::Silent(_) | Answer::Unknown(_) => 1,
        Answer::Stale => 2,
        _ => CERTAIN,
    }
}

/// The answer in a receipt; none if the receipt is not final.
fn answer_of(receipt: Receipt) -> Option<Answer> {
    let kept = match receipt.outcome {
        Outcome::Requeued => return None,
        Outcome::DeadLettered => {
            let message = receipt.reason;
            return Some(Answer::Failed(Failure {
                kind: Outcome::DeadLettered.as_str().to_owned(),
                message: message.unwrap_or_else(|| "no reason was given".to_owned()),
                exit: None,
            }));
        }
        Outcome::Stored => Answer::Answered(Kept::Stored),
        Outcome::Unchanged => Answer::Answered(Kept::Unchanged),
        Outcome::Superseded => Answer::Answered(Kept::Superseded),
        Outcome::Stale => match receipt.copy {
            Some(true) => Answer::Answered(Kept::Copy),
            Some(false) => Answer::Older,
            None => Answer::Stale,
        },
    };
    Some(receipt.error.map_or(kept, Answer::from))
}

impl Kept {
    /// The word for people; none if it would only say that the result is stored.
    pub fn remark(self) -> Option<&'static str> {
        match self {
            Self::Stored => None,
            Self::Unchanged => Some("unchanged"),
            Self::Copy => Some("copy"),
            Self::Superseded => Some("superseded"),
        }
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
            copy: (outcome == Outcome::Stale).then_some(false),
        }
    }

    fn stale(node: &str, copy: Option<bool>) -> Receipt {
        Receipt {
            copy,
            ..receipt(node, Outcome::Stale, None)
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
            ..Counts::default()
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

    /// Goal: a stale result is an answer only if the store has this very result. If an older server leaves that open,
    /// the store decides; without the store, the node is unknown.
    #[test]
    fn stale_is_told_apart() {
        let answer = |run: &Run, node: &str| {
            let mut answers = run.answers().filter(|(name, _)| name.as_str() == node);
            answers.next().unwrap().1.clone()
        };
        let nodes = ["a", "b", "c", "d", "e", "f"];
        let mut run = run(&nodes);
        run.on_receipt(stale("a", Some(true)));
        run.on_receipt(stale("b", Some(false)));
        for node in &nodes[2..] {
            run.on_receipt(stale(node, None));
        }
        assert!(run.is_settled());
        assert_eq!(run.unheard().len(), 4);
        run.on_trace("c".parse().unwrap(), Trace::Ours(None));
        run.on_trace("d".parse().unwrap(), Trace::Newer);
        run.on_trace("e".parse().unwrap(), Trace::Nothing);
        run.end();
        let expected = [
            ("a", Answer::Answered(Kept::Copy)),
            ("b", Answer::Older),
            ("c", Answer::Answered(Kept::Copy)),
            ("d", Answer::Older),
            ("e", Answer::Older),
            ("f", Answer::Stale),
        ];
        for (node, expected) in expected {
            assert_eq!(answer(&run, node), expected, "{node}");
        }
        let counts = run.counts();
        assert_eq!((counts.answered, counts.older, counts.unknown), (2, 3, 1));
        assert!(!counts.is_complete());
        assert!(!run.on_receipt(receipt("b", Outcome::Stored, None)));
    }

    /// Goal: without a receipt, the store's bookkeeping is asked. A node is silent only after that, and only if no
    /// receipt can be lost.
    #[test]
    fn nobody_is_silent_whose_receipt_may_be_lost() {
        for is_doubtful in [false, true] {
            let mut run = run(&["a", "b", "c", "d"]);
            run.record(
                "d".parse().unwrap(),
                Answer::Silent(Some("no queue".to_owned())),
            );
            run.on_trace("a".parse().unwrap(), Trace::Ours(None));
            run.on_trace("b".parse().unwrap(), Trace::Newer);
            run.on_trace("c".parse().unwrap(), Trace::Nothing);
            if is_doubtful {
                run.doubt("the connection broke".to_owned());
                run.doubt("again".to_owned());
            }
            run.end();
            let counts = run.counts();
            let open = if is_doubtful { (1, 2) } else { (3, 0) };
            assert_eq!(
                (counts.answered, counts.silent, counts.unknown),
                (1, open.0, open.1)
            );
            let mut answers = run.answers();
            let (_, overtaken) = answers.find(|(node, _)| node.as_str() == "b").unwrap();
            match overtaken {
                Answer::Silent(Some(reason)) => assert!(reason.contains("another run's newer")),
                Answer::Unknown(reason) => assert_eq!(reason, "the connection broke"),
                other => panic!("{other:?}"),
            }
            assert!(!counts.is_complete());
        }
    }

    /// Goal: receipts for another plugin with the same run are ignored.
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

    /// Goal: if no node is known or expected, a run waits until its end and is never complete.
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

        /// This holds for any events in any order (receipts of old and new servers, what the store says, doubt). A node
        /// is answered only if a receipt says so, or if the store says that this run's value is stored; another run's
        /// value is no answer. It is silent only if it said nothing and nothing can be lost. The run is complete only
        /// if all nodes are answered.
        #[test]
        fn answers_are_never_made_up(
            events in prop::collection::vec(("[a-c]", 0..8_u8), 0..20),
            is_doubtful in any::<bool>(),
        ) {
            let mut run = run(&["a", "b", "c"]);
            if is_doubtful {
                run.doubt("lost".to_owned());
            }
            let mut heard: BTreeMap<String, Vec<u8>> = BTreeMap::new();
            for (node, event) in events {
                let name: NodeName = node.parse().unwrap();
                // The store is asked only about nodes of which too little is known.
                if event >= 5 && !run.unheard().contains(&name) {
                    continue;
                }
                match event {
                    0 => run.on_receipt(receipt(&node, Outcome::Stored, None)),
                    1 => run.on_receipt(receipt(&node, Outcome::Unchanged, None)),
                    2 => run.on_receipt(stale(&node, Some(true))),
                    3 => run.on_receipt(stale(&node, Some(false))),
                    4 => run.on_receipt(stale(&node, None)),
                    5 => run.on_trace(name, Trace::Ours(None)),
                    6 => run.on_trace(name, Trace::Newer),
                    _ => run.on_trace(name, Trace::Nothing),
                };
                heard.entry(node).or_default().push(event);
            }
            run.end();
            for (node, answer) in run.answers() {
                let events = heard.get(node.as_str()).map_or(&[][..], Vec::as_slice);
                let says = |wanted: &[u8]| events.iter().any(|event| wanted.contains(event));
                match answer {
                    Answer::Answered(_) => prop_assert!(says(&[0, 1, 2, 5])),
                    Answer::Older => prop_assert!(says(&[3, 4])),
                    Answer::Stale => prop_assert!(says(&[4])),
                    Answer::Silent(_) => prop_assert!(!is_doubtful && !says(&[0, 1, 2, 3, 4, 5])),
                    Answer::Unknown(_) => prop_assert!(is_doubtful && !says(&[0, 1, 2, 3, 4, 5])),
                    other => prop_assert!(false, "{:?}", other),
                }
            }
            let counts = run.counts();
            prop_assert_eq!(counts.is_complete(), counts.answered == 3);
        }
    }
}
