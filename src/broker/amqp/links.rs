//! Whether the broker can be used: what is known of both connections, told as one.
//!
//! Invariant: a change of state is told and logged once, however often its reason is worded anew.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::broker::Link;
use crate::telemetry::{Part, record_reconnect};

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Consume,
    Publish,
    /// For one queue whose sessions break, so that they break no others. Only the queue's state is reported for it.
    Aside,
}

impl Role {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Consume => "vogeler consume",
            Self::Publish => "vogeler publish",
            Self::Aside => "vogeler consume aside",
        }
    }
}

/// What is known of both connections, reported as one. Consumers are always trying, so where there is one, its state counts.
#[derive(Debug)]
pub(super) struct Links {
    known: Mutex<Known>,
    told: watch::Sender<Link>,
}

#[derive(Debug)]
struct Known {
    consume: Link,
    publish: Link,
    /// Queues that are not consumed though the broker is there, and why.
    stuck: BTreeMap<String, String>,
}

impl Known {
    fn overall(&self) -> Link {
        let link = match &self.consume {
            Link::Unknown => &self.publish,
            known => known,
        };
        match (link, self.stuck.first_key_value()) {
            (Link::Up, Some((queue, why))) => Link::Down {
                reason: format!("the queue {queue} is stuck: {why}"),
            },
            _ => link.clone(),
        }
    }
}

impl Links {
    pub(super) fn new() -> Self {
        Self {
            known: Mutex::new(Known {
                consume: Link::Unknown,
                publish: Link::Unknown,
                stuck: BTreeMap::new(),
            }),
            told: watch::Sender::new(Link::Unknown),
        }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Link> {
        self.told.subscribe()
    }

    /// Notes the state of one connection, and logs it if it changed.
    pub(super) fn set(&self, role: Role, address: &str, link: Link) {
        let mut known = self.known();
        let slot = match role {
            Role::Consume => &mut known.consume,
            Role::Publish => &mut known.publish,
            Role::Aside => return,
        };
        if !same_state(slot, &link) {
            match &link {
                Link::Unknown => {}
                Link::Up => {
                    tracing::info!(target: "vogeler::broker", broker = address, connection = role.name(), "connected");
                }
                Link::Down { reason } => {
                    tracing::warn!(target: "vogeler::broker", broker = address, connection = role.name(), reason, "not connected");
                }
            }
        }
        *slot = link;
        self.tell(&known);
    }

    /// Notes that the sessions of `queue` break again and again, and why; or, without a reason, that one holds.
    pub(super) fn set_stuck(&self, queue: &str, why: Option<String>) {
        let mut known = self.known();
        match why {
            Some(why) => {
                let was = known.stuck.insert(queue.to_owned(), why.clone());
                if was.is_none() {
                    tracing::error!(target: "vogeler::broker", queue, why, "a queue is stuck");
                }
            }
            None => {
                if known.stuck.remove(queue).is_some() {
                    tracing::info!(target: "vogeler::broker", queue, "the queue is stuck no more");
                }
            }
        }
        self.tell(&known);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, known: &Known) {
        let overall = known.overall();
        self.told.send_if_modified(|told| {
            let changed = !same_state(told, &overall);
            if changed && overall == Link::Up && *told != Link::Unknown {
                record_reconnect(Part::Broker);
            }
            *told = overall;
            changed
        });
    }
}

/// Whether two links are the same but for the words of the reason.
fn same_state(left: &Link, right: &Link) -> bool {
    std::mem::discriminant(left) == std::mem::discriminant(right)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a link changes once per change of state, and consumers' state counts where there is one.
    #[test]
    fn links_tell_changes_of_state_once() {
        let links = Links::new();
        let mut told = links.subscribe();
        let down = |reason: &str| Link::Down {
            reason: reason.to_owned(),
        };
        links.set(Role::Publish, "h", down("one"));
        assert!(told.has_changed().unwrap());
        told.mark_unchanged();
        links.set(Role::Publish, "h", down("two"));
        assert!(!told.has_changed().unwrap());
        assert_eq!(*told.borrow(), down("two"));
        links.set(Role::Consume, "h", Link::Up);
        assert_eq!(*told.borrow_and_update(), Link::Up);
        links.set(Role::Publish, "h", down("three"));
        assert_eq!(*told.borrow(), Link::Up);
    }

    /// Goal: a stuck queue is reported by its name as long as it is stuck, but a connection that is away comes first.
    #[test]
    fn a_stuck_queue_is_told() {
        let links = Links::new();
        let told = links.subscribe();
        links.set(Role::Consume, "h", Link::Up);
        links.set_stuck("q", Some("5 times".to_owned()));
        links.set(Role::Aside, "h", Link::Up);
        let stuck = Link::Down {
            reason: "the queue q is stuck: 5 times".to_owned(),
        };
        assert_eq!(*told.borrow(), stuck);
        links.set(
            Role::Consume,
            "h",
            Link::Down {
                reason: "gone".to_owned(),
            },
        );
        assert!(matches!(&*told.borrow(), Link::Down { reason } if reason == "gone"));
        links.set(Role::Consume, "h", Link::Up);
        assert_eq!(*told.borrow(), stuck);
        links.set_stuck("q", None);
        assert_eq!(*told.borrow(), Link::Up);
    }
}
