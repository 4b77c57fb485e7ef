//! The dead letters against what was sent to become one. Pure.
//!
//! Invariant: on the run's own broker every letter is either planned poison or a finding, whatever its headers say: the
//! server names no node for a message that it could not read.

use std::collections::HashMap;

use vogeler::dead::Letter;

use crate::ledger::Book;
use crate::verdict::{Finding, Verdict};

/// Every poisoned message must be a dead letter, and nothing else of ours may be. On a broker of our own every letter
/// is ours.
pub(super) fn judge(
    book: &Book,
    letters: &[Letter],
    (is_own, redelivers): (bool, bool),
    verdict: &mut Verdict,
) {
    let mut found: HashMap<&str, u32> = HashMap::new();
    for letter in letters {
        let id = letter.message_id.as_deref().unwrap_or_default();
        if book.poison.contains_key(id) {
            *found.entry(id).or_default() += 1;
        } else if is_own || is_ours(book, letter) {
            let reason = letter.reason.as_deref().unwrap_or("without a reason");
            let detail = letter.detail.as_deref().unwrap_or_default();
            let what = format!("{id} is a dead letter: {reason}: {detail}");
            verdict.unexplained.push(about(letter, what));
        }
    }
    for (id, poison) in &book.poison {
        verdict.checked += 1;
        let count = found.get(id.as_str()).copied().unwrap_or(0);
        let finding = |what: String| Finding {
            node: "-".to_owned(),
            plugin: None,
            seq: None,
            what,
        };
        if count < poison.confirmed {
            let what = format!(
                "{id} is {count} times in the dead letters, not {}",
                poison.confirmed
            );
            verdict.lost.push(finding(what));
        } else if count > poison.attempts && !redelivers {
            let what = format!(
                "{id} is {count} times in the dead letters, sent {} times",
                poison.attempts
            );
            verdict.unexplained.push(finding(what));
        }
    }
    for (node, plugin, outcome) in &book.strays {
        verdict.unexplained.push(Finding {
            node: node.to_string(),
            plugin: Some(plugin.to_string()),
            seq: None,
            what: format!(
                "a receipt ({}) of a result that was not sent",
                outcome.as_str()
            ),
        });
    }
}

fn is_ours(book: &Book, letter: &Letter) -> bool {
    let node = node(letter).and_then(|node| node.parse().ok());
    node.is_some_and(|node| book.nodes.find(&node).is_some())
}

/// The letter's node: as the server names it, or else from the sender's message id, NODE/SEQ.
fn node(letter: &Letter) -> Option<&str> {
    let sender = letter.message_id.as_deref();
    let sender = sender.and_then(|id| Some(id.rsplit_once('/')?.0));
    letter.node.as_deref().or(sender)
}

fn about(letter: &Letter, what: String) -> Finding {
    Finding {
        node: node(letter).unwrap_or("-").to_owned(),
        plugin: letter.plugin.clone(),
        seq: None,
        what,
    }
}
