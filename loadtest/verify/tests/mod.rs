//! Planted losses of every kind must be found, and in their own category.

use std::sync::Arc;

use serde_json::{Value, json};
use vogeler::broker::memory::MemoryBroker;
use vogeler::broker::topology::{self, Exchange};
use vogeler::broker::{Message, Properties};
use vogeler::store::memory::MemoryStore;
use vogeler::wire::{Outcome, Receipt, RunId};

use super::*;
use crate::ledger::{Hash, Sent};

mod faults;

/// A small load that went well, for tests to spoil: two nodes send the plugins `a` and `b` three times each. Sequence N
/// is sent in second N.
struct World {
    plan: Plan,
    faults: Vec<FaultRecord>,
    own: Ownership,
    ledger: Ledger,
    store: MemoryStore,
    broker: Arc<MemoryBroker>,
    runs: Vec<RunId>,
    counts: ServerCounts,
}

const NODES: [&str; 2] = ["x.loadtest.example.com", "y.loadtest.example.com"];
const PLUGINS: [&str; 2] = ["a", "b"];
/// Runs, one a sequence: every sequence is below this.
const RUNS: usize = 64;
const SECOND: u64 = 1_000_000;
/// Microseconds until a receipt comes.
const MOMENT: u64 = 100_000;

fn text(node: &str, plugin: &str, version: u32) -> String {
    format!(r#"{{"of":"{node} {plugin}","version":{version}}}"#)
}

fn name(node: &str) -> NodeName {
    node.parse().unwrap()
}

impl World {
    async fn new() -> Self {
        let mut world = Self {
            plan: Plan::load("smoke").unwrap(),
            faults: Vec::new(),
            own: Ownership {
                broker: true,
                server: true,
                deletes: true,
            },
            ledger: Ledger::default(),
            store: MemoryStore::new(),
            broker: Arc::new(MemoryBroker::new()),
            runs: (0..RUNS).map(|_| RunId::generate()).collect(),
            counts: ServerCounts {
                is_complete: true,
                ..ServerCounts::default()
            },
        };
        let queues = topology::server_queues(1, QueueType::Classic);
        world.broker.declare(&queues).await.unwrap();
        for node in NODES {
            for plugin in PLUGINS {
                for seq in 1..=3 {
                    world.send(node, plugin, seq, Some(Outcome::Stored));
                }
            }
            world.store_all(node, 3);
        }
        world.dead("poison-1", &[]).await;
        world.ledger.attempt_poison("poison-1");
        world.ledger.confirm_poison("poison-1");
        world.count(Outcome::DeadLettered);
        world
    }

    fn count(&mut self, outcome: Outcome) {
        self.counts.received += 1;
        self.counts.ended[outcome as usize] += 1;
    }

    /// Plans and records a fault from second `began` to second `ended`.
    fn fault(&mut self, kind: &str, began: u32, ended: u32) {
        let spec = format!("{kind}@{began}s+{}s", ended - began);
        self.plan.faults.push(spec.parse().unwrap());
        self.faults.push(FaultRecord {
            kind: kind.to_owned(),
            began: began.into(),
            ended: ended.into(),
        });
        // The last counts of a killed server are not known.
        self.counts.is_complete &= kind != "kill_server";
    }

    /// Sends and confirms a result, and settles it with `outcome` if there is one.
    fn send(&mut self, node: &str, plugin: &str, seq: u64, outcome: Option<Outcome>) {
        let run = self.runs[usize::try_from(seq).unwrap()];
        let version = u32::try_from(seq).unwrap();
        let id = self.ledger.sending(&Sent {
            node: name(node),
            plugin: plugin.parse().unwrap(),
            run: Some(run),
            seq,
            hash: Hash::of(text(node, plugin, version).as_bytes()),
            version: Some(version),
            due: seq * SECOND,
            is_late: false,
        });
        self.ledger.attempt(id, seq * SECOND);
        self.ledger.confirm(id, seq * SECOND);
        if let Some(outcome) = outcome {
            self.receipt(node, plugin, seq, outcome);
            self.count(outcome);
        }
    }

    fn receipt(&self, node: &str, plugin: &str, seq: u64, outcome: Outcome) {
        self.receipt_at(seq * SECOND + MOMENT, node, plugin, seq, outcome);
    }

    fn receipt_at(&self, at: u64, node: &str, plugin: &str, seq: u64, outcome: Outcome) {
        let run = self.runs[usize::try_from(seq).unwrap()];
        let receipt = Receipt {
            node: name(node),
            plugin: plugin.parse().unwrap(),
            outcome,
            error: None,
            reason: None,
            copy: None,
        };
        self.ledger.receipt(run, &receipt, at);
    }

    fn document(node: &str, seq: u64) -> Value {
        let mut document = json!({"doc_type": "SystemRecord", "system_name": node});
        for plugin in PLUGINS {
            let text = text(node, plugin, u32::try_from(seq).unwrap());
            let time = "2026-01-01T00:00:00Z";
            document["vogeler"]["plugins"][plugin] = json!({
                "seq": seq, "collected_at": time, "checked_at": time, "run": null,
                "hash": Hash::of(text.as_bytes()).to_wire(), "duration_ms": 1, "format": "json", "last_error": null,
            });
            document[plugin] = serde_json::from_str(&text).unwrap();
        }
        document
    }

    fn put(&self, node: &str, document: &Value) {
        let json = serde_json::value::to_raw_value(document).unwrap();
        self.store.overwrite(&name(node), json);
    }

    fn store_all(&self, node: &str, seq: u64) {
        self.put(node, &Self::document(node, seq));
    }

    /// Changes a node's document.
    fn edit(&self, node: &str, edit: impl FnOnce(&mut Value)) {
        let mut document = Self::document(node, 3);
        edit(&mut document);
        self.put(node, &document);
    }

    /// Stores the first node's plugin `a` with sequence 4, and its others with 3.
    fn store_newer_a(&self) {
        self.store_a(4);
    }

    fn store_a(&self, seq: u64) {
        let newer = Self::document(NODES[0], seq);
        self.edit(NODES[0], |document| {
            document["a"] = newer["a"].clone();
            let state = &newer["vogeler"]["plugins"]["a"];
            document["vogeler"]["plugins"]["a"] = state.clone();
        });
    }

    async fn dead(&self, id: &str, headers: &[(&str, &str)]) {
        let headers = headers
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let message = Message {
            exchange: Exchange::Dead,
            routing_key: String::new(),
            body: "poison".into(),
            properties: Properties {
                message_id: Some(id.to_owned()),
                headers: headers.collect(),
                ..Properties::default()
            },
            persistent: true,
            mandatory: true,
        };
        self.broker.publish(message).await.unwrap();
    }

    async fn verdict(&self) -> Verdict {
        let queue = topology::results_queue_name(0);
        self.case(&[queue])
            .verify(Some(&self.counts))
            .await
            .unwrap()
    }

    fn case<'a>(&'a self, queues: &'a [String]) -> VerifyInput<'a> {
        VerifyInput {
            plan: &self.plan,
            faults: &self.faults,
            ledger: &self.ledger,
            store: &self.store,
            broker: self.broker.as_ref(),
            queue_type: QueueType::Classic,
            queues,
            remake: &|node, plugin, version| Some(text(node.as_str(), plugin.as_str(), version)),
            own: self.own,
        }
    }

    /// The categories in which something was found, and how much.
    async fn found(&self) -> Vec<(&'static str, usize)> {
        let verdict = self.verdict().await;
        let categories = verdict.categories().into_iter();
        categories
            .filter(|(_, found)| !found.is_empty())
            .map(|(name, found)| (name, found.len()))
            .collect()
    }
}

/// Goal: a load that went well has no findings, and everything was looked at.
#[tokio::test]
async fn a_good_load_is_good() {
    let world = World::new().await;
    let verdict = world.verdict().await;
    assert!(verdict.is_good(), "{verdict:?}");
    assert_eq!(verdict.checked, 13);
}

/// Goal: a lost result is found: with no trace of its plugin, of its node, and of its sequence alone.
#[tokio::test]
async fn losses_are_found() {
    let world = World::new().await;
    world.edit(NODES[0], |document| {
        document["vogeler"]["plugins"]
            .as_object_mut()
            .unwrap()
            .remove("a");
    });
    assert_eq!(world.found().await, [("lost", 1)]);

    let world = World::new().await;
    world.store.delete(&name(NODES[1]));
    assert_eq!(world.found().await, [("lost", 2)]);

    let mut world = World::new().await;
    world.fault("kill_server", 4, 5);
    world.send(NODES[0], "a", 4, None);
    assert_eq!(world.found().await, [("lost", 1)]);

    let world = World::new().await;
    world.edit(NODES[0], |document| document["a"] = Value::Null);
    world.edit(NODES[0], |document| {
        document.as_object_mut().unwrap().remove("a");
    });
    assert_eq!(world.found().await, [("lost", 1)]);
}

/// Goal: a message that still waits in a queue is not done.
#[tokio::test]
async fn a_message_in_a_queue_is_found() {
    let world = World::new().await;
    let message = Message {
        exchange: Exchange::Results,
        routing_key: topology::result_key(&name(NODES[0])),
        body: "waiting".into(),
        properties: Properties::default(),
        persistent: true,
        mandatory: true,
    };
    world.broker.publish(message).await.unwrap();
    assert_eq!(world.found().await, [("lost", 1)]);
}

/// Goal: an older result over a newer one that the server called stored is found.
#[tokio::test]
async fn stale_over_newer_is_found() {
    let world = World::new().await;
    world.store_all(NODES[0], 2);
    assert_eq!(world.found().await, [("stale over newer", 2)]);
}

/// Goal: another node's content is found, whole documents and single values, with and without their hash.
#[tokio::test]
async fn mixed_up_nodes_are_found() {
    let world = World::new().await;
    world.put(NODES[0], &World::document(NODES[1], 3));
    assert_eq!(world.found().await, [("mixed-up node", 3)]);

    let world = World::new().await;
    let other = World::document(NODES[1], 3);
    world.edit(NODES[0], |document| document["a"] = other["a"].clone());
    assert_eq!(world.found().await, [("mixed-up node", 1)]);

    let world = World::new().await;
    world.edit(NODES[0], |document| {
        document["vogeler"]["plugins"]["c"] = other["vogeler"]["plugins"]["a"].clone();
        document["c"] = other["a"].clone();
    });
    assert_eq!(world.found().await, [("mixed-up node", 1)]);
}

/// Goal: a deleted document that is back is found, and one that stays deleted is not missed.
#[tokio::test]
async fn resurrections_are_found() {
    let world = World::new().await;
    world.ledger.deleted(&name(NODES[0]));
    assert_eq!(world.found().await, [("resurrected", 2)]);

    let mut world = World::new().await;
    world.ledger.deleted(&name(NODES[0]));
    world.store.delete(&name(NODES[0]));
    assert_eq!(world.found().await, []);
    world.send(NODES[0], "a", 4, Some(Outcome::Stored));
    assert_eq!(world.found().await, [("lost", 1)]);
    world.store_newer_a();
    assert_eq!(
        world.found().await,
        [("resurrected", 1)],
        "b came back with the new document"
    );
}

/// Goal: a receipt that never came is found, unless a fault explains it: then it is only counted.
#[tokio::test]
async fn missing_receipts_are_found() {
    let mut world = World::new().await;
    world.send(NODES[0], "a", 4, None);
    world.count(Outcome::Stored);
    world.store_newer_a();
    assert_eq!(world.found().await, [("missing receipt", 1)]);
    world.fault("cut_broker", 4, 5);
    let verdict = world.verdict().await;
    assert!(verdict.is_good(), "{verdict:?}");
    assert_eq!(verdict.receipts_lost_to_faults, 1);
}

/// Goal: what no cause explains is found: a foreign sequence, a value nobody sent, outcomes that cannot be, a receipt
/// too many, a good result in the dead letters.
#[tokio::test]
async fn the_unexplained_is_found() {
    let world = World::new().await;
    world.edit(NODES[0], |document| {
        document["vogeler"]["plugins"]["a"]["seq"] = json!(99);
    });
    assert_eq!(world.found().await, [("unexplained", 1)]);

    let world = World::new().await;
    world.edit(NODES[0], |document| document["a"]["version"] = json!(77));
    assert_eq!(world.found().await, [("unexplained", 1)]);

    let world = World::new().await;
    world.put(
        "z.loadtest.example.com",
        &World::document("z.loadtest.example.com", 3),
    );
    assert_eq!(world.found().await, [("unexplained", 2)]);

    for outcome in [Outcome::Unchanged, Outcome::Superseded, Outcome::Stale] {
        let mut world = World::new().await;
        world.send(NODES[0], "a", 4, Some(outcome));
        world.store_newer_a();
        assert_eq!(world.found().await, [("unexplained", 1)], "{outcome:?}");
    }

    let mut world = World::new().await;
    world.receipt(NODES[0], "a", 3, Outcome::Stored);
    world.count(Outcome::Stored);
    world.counts.redelivered = 1;
    assert_eq!(world.found().await, [("unexplained", 1)]);

    let world = World::new().await;
    world.dead("x/3", &[("x-vogeler-node", NODES[0])]).await;
    assert_eq!(world.found().await, [("unexplained", 1)]);
}

/// Goal: a client's error does not count as a lost value, before the first value or after it; an error that nobody sent
/// is found.
#[tokio::test]
async fn an_error_leaves_the_value_as_it_was() {
    let message = text(NODES[0], "a", 4);
    for (message, has_value, expected) in [
        (message.as_str(), true, &[][..]),
        (&message, false, &[]),
        ("never sent", true, &[("unexplained", 1)]),
    ] {
        let mut world = World::new().await;
        world.send(NODES[0], "a", 4, Some(Outcome::Stored));
        world.edit(NODES[0], |document| {
            let time = "2026-01-01T00:00:00Z";
            let state = &mut document["vogeler"]["plugins"]["a"];
            state["seq"] = json!(4);
            state["last_error"] = json!({"timestamp": time, "kind": "expired", "message": message});
            if !has_value {
                state["hash"] = Value::Null;
                document.as_object_mut().unwrap().remove("a");
            }
        });
        assert_eq!(world.found().await, expected, "{message} {has_value}");
    }
}

/// Goal: a poisoned message that is no dead letter is lost.
#[tokio::test]
async fn a_lost_dead_letter_is_found() {
    let mut world = World::new().await;
    world.ledger.attempt_poison("poison-2");
    world.ledger.confirm_poison("poison-2");
    world.count(Outcome::DeadLettered);
    assert_eq!(world.found().await, [("lost", 1)]);
}

/// Goal: counters that tell another story are found: one outcome for another, one too many, one in flight.
#[tokio::test]
async fn wrong_counters_are_found() {
    let mut world = World::new().await;
    world.counts.ended[Outcome::Stored as usize] -= 1;
    world.counts.ended[Outcome::Unchanged as usize] += 1;
    // By the receipts alone the poisoned message may be the unchanged one; the stored one is missing.
    assert_eq!(world.found().await, [("counters disagree", 1)]);

    let mut world = World::new().await;
    world.count(Outcome::Requeued);
    world.count(Outcome::Stored);
    assert_eq!(world.found().await, [("counters disagree", 1)]);

    let mut world = World::new().await;
    world.counts.received += 1;
    world.counts.in_flight += 1;
    assert_eq!(world.found().await, [("counters disagree", 1)]);

    let mut world = World::new().await;
    world.counts.received += 1;
    assert_eq!(
        world.found().await,
        [("counters disagree", 1)],
        "the identity"
    );
    // The identity must hold over the lives of a killed server, too; nothing else is known then.
    world.counts.is_complete = false;
    assert_eq!(world.found().await, [("counters disagree", 1)]);
    world.counts.received -= 2;
    assert_eq!(world.found().await, [("counters disagree", 1)]);
    world.counts.received += 1;
    assert_eq!(world.found().await, []);
}

/// Goal: a fault may make the server forget an unchanged result, so that it takes an older one that comes late. This is
/// told apart from an older one that overtook for no reason.
#[tokio::test]
async fn what_a_fault_made_the_server_forget_is_told_apart() {
    let sent = |world: &World, seq: u64, version: u32, is_late: bool, outcome: Outcome| {
        let id = world.ledger.sending(&Sent {
            node: name(NODES[0]),
            plugin: "a".parse().unwrap(),
            run: Some(world.runs[usize::try_from(seq).unwrap()]),
            seq,
            hash: Hash::of(text(NODES[0], "a", version).as_bytes()),
            version: Some(version),
            due: seq * SECOND,
            is_late,
        });
        let at = if is_late { seq + 3 } else { seq } * SECOND;
        world.ledger.attempt(id, at);
        world.ledger.confirm(id, at);
        world.receipt_at(at + MOMENT, NODES[0], "a", seq, outcome);
    };
    for (fault, expected) in [(Some(6), 0), (None, 1), (Some(8), 1)] {
        let mut world = World::new().await;
        world.counts.is_complete = false;
        if let Some(second) = fault {
            world.fault("stop_store", second, second + 1);
        }
        sent(&world, 5, 3, false, Outcome::Unchanged);
        sent(&world, 4, 4, true, Outcome::Superseded);
        world.store_newer_a();
        let verdict = world.verdict().await;
        assert_eq!(verdict.stale_over_newer.len(), expected, "{verdict:?}");
        assert_eq!(verdict.unchanged_forgotten, 1 - expected as u64);
    }
}
