//! Whether the broker can be used: what is known of both connections, told as one.
//!
//! Invariant: a change of state is told and logged once, however often its reason is worded anew.

use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

use crate::broker::Link;
use crate::telemetry::{Part, record_reconnect};

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Consume,
    Publish,
}

impl Role {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Consume => "vogeler consume",
            Self::Publish => "vogeler publish",
        }
    }
}

/// What is known of both connections, told as one: consumers are always trying, so where there is one its state counts.
#[derive(Debug)]
pub(super) struct Links {
    roles: Mutex<(Link, Link)>,
    told: watch::Sender<Link>,
}

impl Links {
    pub(super) fn new() -> Self {
        Self {
            roles: Mutex::new((Link::Unknown, Link::Unknown)),
            told: watch::Sender::new(Link::Unknown),
        }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Link> {
        self.told.subscribe()
    }

    /// Notes the state of one connection, and logs it if it changed.
    pub(super) fn set(&self, role: Role, address: &str, link: Link) {
        let mut roles = self.roles.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = match role {
            Role::Consume => &mut roles.0,
            Role::Publish => &mut roles.1,
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
        let overall = match &roles.0 {
            Link::Unknown => roles.1.clone(),
            known => known.clone(),
        };
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
}
