//! The verifier: the ledger against the store, the dead letters, the queues and the server's counters.
//!
//! Everything that was sent must be explained, and everything that is there, too. The judgements are pure (`node`,
//! `counters`, `dead`); this file fetches what they judge, a hundred documents at a time.

mod counters;
mod dead;
mod node;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde_json::value::RawValue;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vogeler::broker::Broker;
use vogeler::broker::topology::QueueType;
use vogeler::dead::{DeadLetters, Filter};
use vogeler::store::Store;
use vogeler::wire::NodeName;

use crate::ledger::{Book, Hash, Ledger};
use crate::plan::Plan;
use crate::stats::ServerCounts;
use crate::verdict::{Finding, Verdict};
pub(crate) use node::Remake;
use node::Scale;

/// Documents read at once.
const LOAD_COUNT_MAX: usize = 100;
/// Names of simulated machines end so; what else is in the store is somebody else's.
pub(crate) const OUR_DOMAIN: &str = ".loadtest.example.com";
/// Pause before it is looked again.
const AGAIN: Duration = Duration::from_millis(500);

/// What is verified, and against what.
pub(crate) struct Case<'a> {
    /// The plan, with the faults of the command line.
    pub(crate) plan: &'a Plan,
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
}

impl Case<'_> {
    /// Verifies until nothing is found or the time is up: what the server has not settled yet is not lost yet.
    /// `counts` scrapes the server.
    pub(crate) async fn verify_within(
        &self,
        time: Duration,
        mut counts: impl AsyncFnMut() -> anyhow::Result<ServerCounts>,
    ) -> anyhow::Result<Verdict> {
        let deadline = Instant::now() + time;
        loop {
            let verdict = self.verify(&counts().await?).await;
            match verdict {
                Ok(verdict) if verdict.is_good() => return Ok(verdict),
                Err(error) if Instant::now() >= deadline => return Err(error),
                Ok(verdict) if Instant::now() >= deadline => return Ok(verdict),
                _ => tokio::time::sleep(AGAIN).await,
            }
        }
    }

    /// Compares everything once.
    pub(crate) async fn verify(&self, counts: &ServerCounts) -> anyhow::Result<Verdict> {
        let nodes = self.nodes().await?;
        let mut verdict = Verdict::default();
        let owners = owners(&self.ledger.book());
        for chunk in nodes.chunks(LOAD_COUNT_MAX) {
            let documents = self.store.load(chunk).await?;
            let documents: HashMap<&NodeName, &RawValue> = documents
                .iter()
                .map(|(node, document)| (node, &*document.json))
                .collect();
            self.judge(chunk, &documents, &owners, &mut verdict);
        }
        let letters = DeadLetters {
            broker: self.broker,
            queue_type: self.queue_type,
            stop: CancellationToken::new(),
        };
        let letters = letters.list(&Filter::default(), None).await?.letters;
        self.judge_queues(&mut verdict).await?;
        let book = self.ledger.book();
        dead::judge(&book, &letters, self.plan.redelivers(), &mut verdict);
        verdict.counters_disagree = counters::judge(&book, counts, self.plan.redelivers());
        drop(book);
        Ok(verdict)
    }

    /// Who sent something, and who is in the store under a name of ours.
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
        owners: &HashMap<Hash, u32>,
        verdict: &mut Verdict,
    ) {
        let book = self.ledger.book();
        let scale = Scale {
            owners,
            book: &book,
            redelivers: self.plan.redelivers(),
            forgets: !self.plan.faults.is_empty(),
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
            let ready = depth.map_or(0, |depth| depth.ready);
            if ready > 0 {
                verdict.lost.push(Finding {
                    node: "-".to_owned(),
                    plugin: None,
                    seq: None,
                    what: format!("{ready} messages still wait in {name}"),
                });
            }
        }
        Ok(())
    }
}

/// Who sent which content.
fn owners(book: &Book) -> HashMap<Hash, u32> {
    book.entries
        .iter()
        .map(|entry| (entry.hash, entry.node))
        .collect()
}

#[cfg(test)]
mod tests;
