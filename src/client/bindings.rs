//! The bindings of the client's queue, remembered on disk, so that a group that the node has left is unbound.
//!
//! AMQP cannot list bindings, and the queue outlives its client by weeks. So the keys are written down before they are
//! bound, and removed after they are unbound. Invariant: a key that this client ever bound and that may still be bound
//! is in the file, as long as the state folder exists. [`Audience`] refuses commands that come by a forgotten key.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::private;
use crate::broker::Delivery;
use crate::broker::topology::{self, Binding, Exchange, Queue};
use crate::wire::{Group, NodeName};

pub(super) const FILE: &str = "bindings.json";
pub(super) const TEMPORARY: &str = "bindings.json.new";

/// The file's content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    queue: String,
    keys: BTreeSet<String>,
}

/// The bindings that a queue should have, and the file that records which others it may have.
#[derive(Debug, Clone)]
pub(super) struct Bindings {
    folder: PathBuf,
    queue: String,
    wanted: BTreeSet<String>,
}

impl Bindings {
    /// The bindings of `queue`, recorded in the folder `state`.
    pub(super) fn new(state: &Path, queue: &Queue) -> Self {
        Self {
            folder: state.to_owned(),
            queue: queue.name.clone(),
            wanted: queue.bindings.iter().map(|b| b.key.clone()).collect(),
        }
    }

    /// Records the keys about to be bound. Returns the bindings to remove after that. Blocks on the disk.
    pub(super) fn begin(&self) -> Vec<Binding> {
        let mut record = self.read();
        let old = record.keys.difference(&self.wanted).cloned().collect();
        record.keys.extend(self.wanted.iter().cloned());
        self.write(&record);
        commands(old)
    }

    /// Records that the old bindings are removed. Blocks on the disk.
    pub(super) fn done(&self) {
        self.write(&Record {
            queue: self.queue.clone(),
            keys: self.wanted.clone(),
        });
    }

    /// Reads the file. Keys of a queue of another name are dropped: that name may belong to another machine now, so
    /// they are not ours to unbind.
    fn read(&self) -> Record {
        let path = self.folder.join(FILE);
        let record = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice::<Record>(&bytes).map_err(io::Error::from),
            Err(error) => Err(error),
        };
        match record {
            Ok(record) if record.queue == self.queue => return record,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(target: "vogeler::client", file = %path.display(), %error, "what this client bound earlier cannot be read; commands of groups that it left are refused as they come");
            }
        }
        Record {
            queue: self.queue.clone(),
            keys: BTreeSet::new(),
        }
    }

    /// Writes the file. A client that cannot write listens all the same: each command's key is checked when it comes.
    fn write(&self, record: &Record) {
        if self.read() == *record {
            return;
        }
        let path = self.folder.join(FILE);
        if let Err(error) = self.replace(&path, record) {
            tracing::error!(target: "vogeler::client", file = %path.display(), %error, "what this client binds cannot be written down");
        }
    }

    fn replace(&self, path: &Path, record: &Record) -> io::Result<()> {
        let beside = self.folder.join(TEMPORARY);
        private::write(path, &beside, &serde_json::to_vec(record)?)
    }
}

/// Bindings of `keys` to the exchange of commands.
pub(super) fn commands(keys: Vec<String>) -> Vec<Binding> {
    let of = |key| Binding {
        exchange: Exchange::Commands,
        key,
    };
    keys.into_iter().map(of).collect()
}

/// The addresses of commands that are for this client: all, this node, or a group that it is in.
#[derive(Debug, Clone)]
pub(super) struct Audience {
    keys: BTreeSet<String>,
}

impl Audience {
    pub(super) fn new(node: &NodeName, groups: &[Group]) -> Self {
        let groups = groups.iter().map(topology::group_key);
        Self {
            keys: groups.chain([node.to_string()]).collect(),
        }
    }

    /// Whether a delivery is meant for this client. What was put straight into its queue is.
    pub(super) fn includes(&self, delivery: &Delivery) -> bool {
        let key = delivery.routing_key.as_str();
        delivery.exchange != Exchange::Commands.name()
            || self.keys.contains(key)
            || topology::is_broadcast(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bindings(state: &Path, node: &str, groups: &[&str]) -> Bindings {
        let groups: Vec<Group> = groups.iter().map(|group| group.parse().unwrap()).collect();
        Bindings::new(
            state,
            &topology::node_queue(&node.parse().unwrap(), &groups),
        )
    }

    fn keys(bindings: Vec<Binding>) -> Vec<String> {
        bindings.into_iter().map(|binding| binding.key).collect()
    }

    /// Goal: old bindings are named until they are unbound, over restarts and changes in between. Another name's
    /// bindings, a lost file and a broken one name nothing.
    #[test]
    fn what_was_bound_is_remembered_until_it_is_unbound() {
        let state = tempfile::tempdir().unwrap();
        let at = |node, groups: &[&str]| bindings(state.path(), node, groups);
        assert!(keys(at("web01", &["a", "b"]).begin()).is_empty());
        assert_eq!(keys(at("web01", &["a"]).begin()), ["groups.b"]);
        // It ended before the unbinding.
        let left = at("web01", &[]);
        assert_eq!(keys(left.begin()), ["groups.a", "groups.b"]);
        left.done();
        assert!(keys(left.begin()).is_empty());
        assert!(keys(at("web02", &[]).begin()).is_empty());
        fs::write(state.path().join(FILE), "{").unwrap();
        assert!(keys(at("web02", &["c"]).begin()).is_empty());
        assert_eq!(keys(at("web02", &[]).begin()), ["groups.c"]);
    }
}
