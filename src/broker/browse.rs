//! Going through a queue without changing it, except for what is taken out on purpose.
//!
//! Messages flow out in the order of the queue, and the broker holds them until the browser is closed. The browser keeps no
//! body, only how much is held. Invariant: what is not taken out is in the queue again, in its old order, once the browser
//! is closed or its connection broke; meanwhile nobody else sees it.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::{BrokerError, Properties};

/// One browser of one queue, made by [`Broker::browse`](super::Broker::browse). An error means that the connection
/// broke: everything that was not taken out before is in the queue again.
#[async_trait]
pub trait QueueBrowser: fmt::Debug + Send {
    /// How many messages in the queue are ready; those that this browser holds do not count. 0 if there is no such queue.
    async fn ready(&mut self) -> Result<u64, BrokerError>;

    /// The next message; none if none comes within `patience`, or if no more can be held.
    async fn next(&mut self, patience: Duration) -> Result<Option<Browsed>, BrokerError>;

    /// Whether what is undecided should be taken out before [`next`](Self::next): there is no room for it later, and it
    /// costs a request for each message.
    fn is_share_full(&self) -> bool;

    /// Whether as much is held as can be.
    fn is_full(&self) -> bool;

    /// Takes messages out of the queue for good.
    async fn take_out(&mut self, places: Vec<Place>) -> Result<(), BrokerError>;

    /// Gives back what is held. It is in the queue a moment later: [`ready`](Self::ready) tells.
    async fn give_back(&mut self) -> Result<(), BrokerError>;

    /// Closes the browser and its connection.
    async fn close(self: Box<Self>);
}

/// A message that a browser read.
#[derive(Debug)]
pub struct Browsed {
    /// The payload.
    pub body: Bytes,
    /// What travelled beside it.
    pub properties: Properties,
    /// Where it is, for [`QueueBrowser::take_out`].
    pub place: Place,
}

/// Where a browser holds a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub(super) channel: usize,
    pub(super) tag: u64,
}
