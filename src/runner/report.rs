//! The report of a run: who answered, failed, refused, expired and stayed silent, by name.
//!
//! It comes as text for people and as JSON for programs. The members of the JSON are a promise: new ones may come,
//! existing ones do not change.

use std::fmt::Write;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::{Answer, Counts, Failure, Kept, Run, Target};
use crate::terminal;
use crate::wire::{NodeName, PluginName, RunId};

/// Names shown per category, unless all are asked for.
const NAMES_SHOWN: usize = 30;
/// Reasons shown per category, unless all are asked for.
const REASONS_SHOWN: usize = 10;
/// Width of the text if the terminal does not give one.
pub const WIDTH_DEFAULT: usize = 100;
/// Silence without a known reason.
const NO_RECEIPT: &str = "no answer before the deadline";
/// The title of results that are older than the stored ones.
const OLDER: &str = "older than what is stored";
/// The reason given if a server calls a result stale and says no more.
const STALE: &str = "a server that is older than this runner says stale, and not whether the stored result is this one";

/// How a run ended.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The run's id.
    pub run: RunId,
    /// The plugin that was asked for.
    pub plugin: PluginName,
    /// Whom the run asked, as the operator wrote it.
    pub target: Target,
    /// When clients stop answering it.
    pub deadline: Timestamp,
    /// How long the run took, in milliseconds.
    pub duration_ms: u64,
    /// Whether the expected nodes are known, and every node answered with a result.
    pub complete: bool,
    /// How many nodes are in each category.
    pub counts: Counts,
    /// The nodes of each category, by name.
    pub nodes: Nodes,
    /// What else the operator should know, such as why the report may be incomplete.
    pub notes: Vec<String>,
}

/// The nodes of each category, by name.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Nodes {
    /// Their results are in the store.
    pub answered: Vec<Answered>,
    /// Their results are older than what is stored.
    pub older: Vec<NodeName>,
    /// They gave no value, or their value is a dead letter.
    pub failed: Vec<Failed>,
    /// They have no such plugin.
    pub refused: Vec<Failed>,
    /// They heard too late.
    pub expired: Vec<Failed>,
    /// They said nothing.
    pub silent: Vec<Silent>,
    /// Whether they answered cannot be known.
    pub unknown: Vec<Silent>,
}

/// A node whose result is in the store.
#[derive(Debug, Clone, Serialize)]
pub struct Answered {
    /// Its name.
    pub node: NodeName,
    /// How the store keeps it.
    pub outcome: Kept,
    /// Whether nobody expected the node.
    pub new: bool,
}

/// A node that gave no value.
#[derive(Debug, Clone, Serialize)]
pub struct Failed {
    /// Its name.
    pub node: NodeName,
    /// Why.
    #[serde(flatten)]
    pub failure: Failure,
}

/// A node that said nothing, as far as is known.
#[derive(Debug, Clone, Serialize)]
pub struct Silent {
    /// Its name.
    pub node: NodeName,
    /// Why, as far as known.
    pub reason: String,
}

impl Report {
    /// The report of `run` as it is now.
    pub fn new(
        run: &Run,
        target: &Target,
        deadline: Timestamp,
        duration: Duration,
        notes: Vec<String>,
    ) -> Self {
        let mut named = Nodes::default();
        for (node, answer) in run.answers() {
            let failed = |failure: &Failure| Failed {
                node: node.clone(),
                failure: failure.clone(),
            };
            let unheard = |reason: &str| Silent {
                node: node.clone(),
                reason: reason.to_owned(),
            };
            match answer {
                Answer::Answered(outcome) => named.answered.push(Answered {
                    node: node.clone(),
                    outcome: *outcome,
                    new: run.is_new(node),
                }),
                Answer::Older => named.older.push(node.clone()),
                Answer::Failed(failure) => named.failed.push(failed(failure)),
                Answer::Refused(failure) => named.refused.push(failed(failure)),
                Answer::Expired(failure) => named.expired.push(failed(failure)),
                Answer::Silent(reason) => {
                    let reason = reason.as_deref().unwrap_or(NO_RECEIPT);
                    named.silent.push(unheard(reason));
                }
                Answer::Stale => named.unknown.push(unheard(STALE)),
                Answer::Unknown(reason) => named.unknown.push(unheard(reason)),
            }
        }
        let counts = run.counts();
        Self {
            run: run.id(),
            plugin: run.plugin().clone(),
            target: target.clone(),
            deadline,
            duration_ms: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
            complete: counts.is_complete(),
            counts,
            nodes: named,
            notes,
        }
    }

    /// The report for people. Lines have at most `width` characters unless a name is longer. Long lists are shortened
    /// unless `verbose`.
    pub fn text(&self, width: usize, verbose: bool) -> String {
        let mut text = String::new();
        let names_max = if verbose { usize::MAX } else { NAMES_SHOWN };
        let answered = self.nodes.answered.iter();
        let answered: Vec<_> = answered.map(Answered::word).collect();
        names(&mut text, "answered", &answered, names_max, width);
        let older: Vec<_> = self.nodes.older.iter().map(ToString::to_string).collect();
        names(&mut text, OLDER, &older, names_max, width);
        for (title, failed) in [
            ("failed", &self.nodes.failed),
            ("refused", &self.nodes.refused),
            ("expired", &self.nodes.expired),
        ] {
            let lines: Vec<_> = failed.iter().map(Failed::line).collect();
            reasons(&mut text, title, &lines, verbose);
        }
        let (plain, special): (Vec<_>, Vec<_>) = self
            .nodes
            .silent
            .iter()
            .partition(|silent| silent.reason == NO_RECEIPT);
        let plain: Vec<_> = plain.iter().map(|silent| silent.node.to_string()).collect();
        names(&mut text, "silent", &plain, names_max, width);
        let special: Vec<_> = special.into_iter().map(Silent::line).collect();
        reasons(&mut text, "silent", &special, verbose);
        let unknown: Vec<_> = self.nodes.unknown.iter().map(Silent::line).collect();
        reasons(&mut text, "unknown", &unknown, verbose);
        for note in &self.notes {
            line(&mut text, format_args!("note: {}", terminal::line(note)));
        }
        line(&mut text, format_args!("{}", self.summary()));
        text
    }

    /// One line with the counts.
    pub fn summary(&self) -> String {
        let counts = self.counts;
        let (plugin, target, answered) = (&self.plugin, &self.target, counts.answered);
        let mut summary = match counts.expected {
            // Not "0 of 0", which sounds like a success.
            Some(0) => {
                format!("{plugin} on {target}: {answered} answered, no node of {target} is known")
            }
            Some(expected) => format!("{plugin} on {target}: {answered} of {expected} answered"),
            None => format!("{plugin} on {target}: {answered} answered"),
        };
        for (count, what) in [
            (counts.older, OLDER),
            (counts.failed, "failed"),
            (counts.refused, "refused"),
            (counts.expired, "expired"),
            (counts.silent, "silent"),
            (counts.unknown, "unknown"),
            (counts.new, "new"),
        ] {
            if count > 0 {
                line_part(&mut summary, format_args!(", {count} {what}"));
            }
        }
        let (seconds, tenths) = (self.duration_ms / 1000, self.duration_ms % 1000 / 100);
        line_part(
            &mut summary,
            format_args!(", in {seconds}.{tenths} s (run {})", self.run),
        );
        summary
    }
}

impl Failed {
    fn line(&self) -> String {
        let exit = self
            .failure
            .exit
            .map_or_else(String::new, |exit| format!(" (exit status {exit})"));
        let message: Vec<_> = self.failure.message.split_whitespace().collect();
        format!(
            "{}  {}: {}{exit}",
            self.node,
            self.failure.kind,
            terminal::line(&message.join(" "))
        )
    }
}

impl Answered {
    /// The name, and any remarks on the answer.
    fn word(&self) -> String {
        let mut remarks: Vec<_> = self.outcome.remark().into_iter().collect();
        if self.new {
            remarks.push("new");
        }
        match &remarks[..] {
            [] => self.node.to_string(),
            remarks => format!("{} ({})", self.node, remarks.join(", ")),
        }
    }
}

impl Silent {
    fn line(&self) -> String {
        format!("{}  {}", self.node, terminal::line(&self.reason))
    }
}

/// `title (count): name, name, …` in lines of `width`.
fn names(text: &mut String, title: &str, names: &[String], shown: usize, width: usize) {
    if names.is_empty() {
        return;
    }
    let mut current = format!("{title} ({}):", names.len());
    for (index, name) in names.iter().take(shown).enumerate() {
        let comma = if index + 1 < names.len() { "," } else { "" };
        if current.chars().count() + name.chars().count() + 2 > width && index > 0 {
            line(text, format_args!("{current}"));
            " ".clone_into(&mut current);
        }
        line_part(&mut current, format_args!(" {name}{comma}"));
    }
    if names.len() > shown {
        line_part(
            &mut current,
            format_args!(" … and {} more (--verbose)", names.len() - shown),
        );
    }
    line(text, format_args!("{current}"));
}

/// `title (count):`, then one line per node.
fn reasons(text: &mut String, title: &str, lines: &[String], verbose: bool) {
    if lines.is_empty() {
        return;
    }
    let shown = if verbose { usize::MAX } else { REASONS_SHOWN };
    line(text, format_args!("{title} ({}):", lines.len()));
    for reason in lines.iter().take(shown) {
        line(text, format_args!("  {reason}"));
    }
    if lines.len() > shown {
        line(
            text,
            format_args!("  … and {} more (--verbose)", lines.len() - shown),
        );
    }
}

fn line(text: &mut String, content: std::fmt::Arguments<'_>) {
    line_part(text, content);
    text.push('\n');
}

/// Writing to a String cannot fail.
fn line_part(text: &mut String, content: std::fmt::Arguments<'_>) {
    text.write_fmt(content).ok();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::{Expected, Kept};

    fn failure(kind: &str, message: &str, exit: Option<i32>) -> Failure {
        Failure {
            kind: kind.to_owned(),
            message: message.to_owned(),
            exit,
        }
    }

    fn report() -> Report {
        let id = "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap();
        let nodes = ["a", "b", "c", "d", "e", "f", "g", "h"].map(|name| name.parse().unwrap());
        let mut run = Run::new(id, "rpms".parse().unwrap(), Expected::Nodes(nodes.into()));
        for (node, answer) in [
            ("a", Answer::Answered(Kept::Stored)),
            (
                "b",
                Answer::Failed(failure("exit_status", "rpm:\nnot found", Some(127))),
            ),
            (
                "c",
                Answer::Refused(failure("refused", "no plugin rpms", None)),
            ),
            ("d", Answer::Expired(failure("expired", "too late", None))),
            ("e", Answer::Silent(Some("no client queue".to_owned()))),
            ("g", Answer::Older),
            ("h", Answer::Unknown("lost".to_owned())),
            ("y", Answer::Answered(Kept::Copy)),
            ("z", Answer::Answered(Kept::Unchanged)),
        ] {
            run.record(node.parse().unwrap(), answer);
        }
        run.end();
        let deadline = "2026-11-22T14:00:00Z".parse().unwrap();
        let took = Duration::from_millis(3250);
        Report::new(
            &run,
            &Target::All,
            deadline,
            took,
            vec!["beware".to_owned()],
        )
    }

    /// Goal: the text names every node with its reason, and ends with the counts.
    #[test]
    fn the_text_names_everybody() {
        let expected = "\
answered (3): a, y (copy, new), z (unchanged, new)
older than what is stored (1): g
failed (1):
  b  exit_status: rpm: not found (exit status 127)
refused (1):
  c  refused: no plugin rpms
expired (1):
  d  expired: too late
silent (1): f
silent (1):
  e  no client queue
unknown (1):
  h  lost
note: beware
rpms on all: 3 of 8 answered, 1 older than what is stored, 1 failed, 1 refused, 1 expired, 2 silent, 1 unknown, 2 new, in 3.2 s (run 01890a5d-ac96-774b-bcce-b302099a8057)
";
        assert_eq!(report().text(80, false), expected);
    }

    /// Goal: the JSON has the members that scripts read, each by its name.
    #[test]
    fn the_json_is_stable() {
        let json = serde_json::to_value(report()).unwrap();
        let expected = serde_json::json!({
            "run": "01890a5d-ac96-774b-bcce-b302099a8057", "plugin": "rpms", "target": "all",
            "deadline": "2026-11-22T14:00:00Z", "duration_ms": 3250, "complete": false,
            "counts": {"expected": 8, "answered": 3, "older": 1, "failed": 1, "refused": 1, "expired": 1, "silent": 2, "unknown": 1, "new": 2},
            "nodes": {
                "answered": [{"node": "a", "outcome": "stored", "new": false}, {"node": "y", "outcome": "copy", "new": true}, {"node": "z", "outcome": "unchanged", "new": true}],
                "older": ["g"],
                "failed": [{"node": "b", "kind": "exit_status", "message": "rpm:\nnot found", "exit": 127}],
                "refused": [{"node": "c", "kind": "refused", "message": "no plugin rpms"}],
                "expired": [{"node": "d", "kind": "expired", "message": "too late"}],
                "silent": [{"node": "e", "reason": "no client queue"}, {"node": "f", "reason": "no answer before the deadline"}],
                "unknown": [{"node": "h", "reason": "lost"}],
            },
            "notes": ["beware"],
        });
        assert_eq!(json, expected);
    }

    /// Goal: long lists wrap, are shortened with a count, and are whole when asked for.
    #[test]
    fn long_lists_wrap_and_shorten() {
        let nodes: Vec<String> = (0..100).map(|n| format!("node{n:03}")).collect();
        let mut text = String::new();
        names(&mut text, "answered", &nodes, NAMES_SHOWN, 60);
        assert!(
            text.lines().count() > 3 && text.lines().all(|line| line.len() <= 90),
            "{text}"
        );
        assert!(
            text.ends_with("node029, … and 70 more (--verbose)\n"),
            "{text}"
        );
        let mut text = String::new();
        names(&mut text, "answered", &nodes, usize::MAX, 60);
        assert!(
            text.lines().all(|line| line.len() <= 60) && text.ends_with("node099\n"),
            "{text}"
        );
    }
}
