//! A node leaves: once all that it sent is settled, its document is deleted, as an operator does for machines that are
//! gone. Nothing that it sent may ever be in the store again.
//!
//! If the plan has faults that make the broker redeliver, nothing is deleted: a redelivered copy rightly brings a
//! document back.

use std::sync::Arc;
use std::time::Duration;

use serde_json::value::to_raw_value;
use tokio::time::Instant;
use vogeler::store::{Store, StoreError, Verdict, Write};
use vogeler::wire::NodeName;

use super::light::Light;

const PAUSE: Duration = Duration::from_millis(100);
/// Longest wait until the node's last result is settled; past it the document stays.
const SETTLE_MAX: Duration = Duration::from_secs(30);
/// Tries of one deletion, at most: conflicts end with the server's last write.
const TRIES_MAX: u32 = 20;

/// Deletes documents.
#[derive(Debug, Clone)]
pub(crate) enum Deleter {
    /// In a CouchDB, where a deletion is a write.
    Couch(Arc<dyn Store>),
    /// In the store of a test.
    #[cfg(test)]
    Memory(vogeler::store::memory::MemoryStore),
    /// The store cannot delete: the nodes only fall silent.
    Nobody,
}

/// Sees one node off.
pub(super) async fn leave(light: Arc<Light>, deleter: Deleter, node: u32) {
    let name = &light.fleet.nodes.members[node as usize].name;
    if !light.fleet.plan.redelivers() && is_settled(&light, node, name).await {
        // While the store is away it is unknown whether the document is deleted: the node cannot come back.
        let is_gone = loop {
            match deleter.delete(name).await {
                Ok(is_gone) => break is_gone,
                Err(error) if light.is_stopped() => {
                    tracing::error!(%error, node = %name, "the document of a node that left cannot be deleted");
                    return;
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        };
        if is_gone {
            light.fleet.ledger.deleted(name);
        }
    }
    light.set_leaving(node, false);
}

async fn is_settled(light: &Light, node: u32, name: &NodeName) -> bool {
    let deadline = Instant::now() + SETTLE_MAX;
    while Instant::now() < deadline && !light.is_stopped() {
        if light.is_sent(node) && light.fleet.ledger.is_settled(name) {
            return true;
        }
        tokio::time::sleep(PAUSE).await;
    }
    false
}

impl Deleter {
    /// Says whether the document is gone for certain.
    async fn delete(&self, node: &NodeName) -> Result<bool, StoreError> {
        let store = match self {
            Self::Couch(store) => store,
            #[cfg(test)]
            Self::Memory(store) => {
                store.delete(node);
                return Ok(true);
            }
            Self::Nobody => return Ok(false),
        };
        for _ in 0..TRIES_MAX {
            let stored = store.load(std::slice::from_ref(node)).await?;
            let Some(stored) = stored.get(node) else {
                return Ok(true);
            };
            let Ok(json) = to_raw_value(&serde_json::json!({"_deleted": true})) else {
                return Ok(false);
            };
            let write = Write {
                id: node.clone(),
                revision: Some(stored.revision.clone()),
                json,
            };
            match store.write(vec![write]).await?.get(node) {
                Some(Verdict::Stored(_)) => return Ok(true),
                Some(Verdict::Refused { .. }) => return Ok(false),
                _ => tokio::time::sleep(PAUSE).await,
            }
        }
        Ok(false)
    }
}
