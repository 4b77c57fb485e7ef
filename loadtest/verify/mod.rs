//! The verifier: the ledger against the store, the dead letters, the queues and the server's counters.
//!
//! Everything that was sent must be explained, and so must everything that is found. The judgements are pure (`node`,
//! `fault_window`, `counters`, `dead`); this file fetches what they judge, a hundred documents at a time, once server
//! and queues are idle.

mod counters;
mod dead;
mod fault_window;
mod node;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde_json::value::RawValue;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vogeler::broker::Broker;
use vogeler::broker::topology::QueueType;
use vogeler::dead::{DeadLetters, Filter};
use vogeler::store::Store;
use vogeler::wire::NodeName;

use crate::faults::FaultRecord;
use crate::ledger::{Book, Hash, Ledger};
use crate::plan::Plan;
use crate::stats::ServerCounts;
use crate::verdict::{Finding, Verdict};
use fault_window::Excuses;
use node::NodeJudge;
pub(crate) use node::Remake;

/// Documents read at once.
const LOAD_COUNT_MAX: usize = 100;
/// Suffix of the names of simulated machines. All other documents in the store are somebody else's.
pub(crate) const OUR_DOMAIN: &str = ".loadtest.example.com";
/// Pause between two looks.
const AGAIN: Duration = Duration::from_millis(500);

/// What is verified, and against what.
pub(crate) struct VerifyInput<'a> {
    /// The plan, with the faults of the command line.
    pub(crate) plan: &'a Plan,
    /// The faults, with the times that they really had.
    pub(crate) faults: &'a [FaultRecord],
    /// What was sent.
    pub(crate) ledger: &'a Ledger,
    /// The store, not through a proxy.
    pub(crate) store: &'a dyn Store,
    /// The broker, not through a proxy.
    pub(crate) broker: &'a dyn Broker,
    /// How the broker keeps the dead letters.
    pub(crate) queue_type: QueueType,
    /// The partition queues.
    pub(crate) queues: &'a [String],
    /// Makes values again.
    pub(crate) remake: &'a Remake<'a>,
    /// What is the run's own.
    pub(crate) own: Ownership,
}

/// Which parts the run has for itself, so that nothing of others can be in them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ownership {
    /// The broker.
    pub(crate) broker: bool,
    /// The server.
    pub(crate) server: bool,
    /// Whether documents can be deleted when their nodes leave.
    pub(crate) deletes: bool,
}

impl VerifyInput<'_> {
    /// Waits until nothing is under way, then verifies again and again until nothing is found or `time` is up: a result
    /// that the server has not settled yet is not lost yet. `counts` scrapes the server, and gives none if it does not
    /// answer.
    pub(crate) async fn verify_within(
        &self,
        time: Duration,
        mut counts: impl AsyncFnMut() -> Option<ServerCounts>,
    ) -> anyhow::Result<Verdict> {
        self.wait_until_idle(&mut counts).await;
        let deadline = Instant::now() + time;
        // A delivery that the broker takes back is for a moment neither in its queue nor with the server.
        let looks = if self.plan.redelivers() { 2 } else { 1 };
        let mut good = 0;
        loop {
            let verdict = self.verify(counts().await.as_ref()).await;
            let is_over = Instant::now() >= deadline;
            match verdict {
                Ok(verdict) if verdict.is_good() => {
                    good += 1;
                    if good == looks {
                        return Ok(verdict);
                    }
                }
                Ok(verdict) if is_over => return Ok(verdict),
                Err(error) if is_over => return Err(error),
                _ => good = 0,
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Waits until the server holds nothing and the queues are empty, or the plan's patience is over. What is left then
    /// is a finding.
    async fn wait_until_idle(&self, counts: &mut impl AsyncFnMut() -> Option<ServerCounts>) {
        let deadline = Instant::now() + self.plan.settle_timeout;
        while Instant::now() < deadline {
            let in_flight = counts().await.map(|counts| counts.in_flight);
            let is_idle = in_flight == Some(0) || !self.own.server;
            let mut found = Verdict::default();
            if is_idle && self.judge_queues(&mut found).await.is_ok() && found.is_good() {
                return;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Compares everything once.
    pub(crate) async fn verify(&self, counts: Option<&ServerCounts>) -> anyhow::Result<Verdict> {
        let nodes = self.nodes().await?;
        let mut verdict = Verdict::default();
        let owners = owners(&self.ledger.book());
        let excuses = Excuses::of(self.faults, &self.ledger.book());
        for chunk in nodes.chunks(LOAD_COUNT_MAX) {
            let documents = self.store.load(chunk).await?;
            let documents: HashMap<&NodeName, &RawValue> = documents
                .iter()
                .map(|(node, document)| (node, &*document.json))
                .collect();
            self.judge(chunk, &documents, (&owners, &excuses), &mut verdict);
        }
        let dead = DeadLetters {
            broker: self.broker,
            queue_type: self.queue_type,
            progress: watch::Sender::default(),
            stop: CancellationToken::new(),
        };
        let mut letters = Vec::new();
        let keep = async |letter| {
            letters.push(letter);
            Ok(())
        };
        dead.list(&Filter::default(), None, keep).await?;
        self.judge_queues(&mut verdict).await?;
        let book = self.ledger.book();
        let redelivers = self.plan.redelivers();
        if redelivers && let Some(counts) = counts {
            counters::excuse_given_up(counts, &mut verdict);
        }
        dead::judge(&book, &letters, (self.own.broker, redelivers), &mut verdict);
        verdict.counters_disagree = counters::judge(&book, counts, (self.own.server, redelivers));
        let may_delete = self.plan.leaves > 0 && self.own.deletes && !redelivers;
        verdict.deleted = may_delete.then_some(book.deleted.len() as u64);
        drop(book);
        Ok(verdict)
    }

    /// The nodes that sent something, and those that are in the store under a name of ours.
    async fn nodes(&self) -> anyhow::Result<Vec<NodeName>> {
        let stored = self
            .store
            .nodes()
            .await?
            .into_iter()
            .map(|summary| summary.node);
        let stored = stored.filter(|node| node.as_str().ends_with(OUR_DOMAIN));
        let mut nodes: Vec<NodeName> = self.ledger.book().nodes.all().to_vec();
        let known: HashSet<NodeName> = nodes.iter().cloned().collect();
        nodes.extend(stored.filter(|node| !known.contains(node)));
        Ok(nodes)
    }

    fn judge(
        &self,
        nodes: &[NodeName],
        documents: &HashMap<&NodeName, &RawValue>,
        (owners, excuses): (&HashMap<Hash, u32>, &Excuses),
        verdict: &mut Verdict,
    ) {
        let book = self.ledger.book();
        let scale = NodeJudge {
            owners,
            book: &book,
            excuses,
            remake: self.remake,
        };
        for node in nodes {
            scale.judge(node, documents.get(node).copied(), verdict);
        }
    }

    async fn judge_queues(&self, verdict: &mut Verdict) -> anyhow::Result<()> {
        let names: Vec<&str> = self.queues.iter().map(String::as_str).collect();
        let depths = self.broker.depth(&names).await?;
        for (name, depth) in names.iter().zip(depths) {
            let what = match depth.map(|depth| depth.ready) {
                Some(0) => continue,
                Some(ready) => format!("{ready} messages still wait in {name}"),
                None => format!("the queue {name} is not there, with all that was in it"),
            };
            verdict.lost.push(Finding {
                node: "-".to_owned(),
                plugin: None,
                seq: None,
                what,
            });
        }
        Ok(())
    }
}

/// The node that sent each content.
fn owners(book: &Book) -> HashMap<Hash, u32> {
    book.entries
        .iter()
        .map(|entry| (entry.hash, entry.node))
        .collect()
}

#[cfg(test)]
mod tests;
