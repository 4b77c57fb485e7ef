//! One queue in memory: what waits, who consumes, what each holds unsettled. No clock, no channel.
//!
//! Invariant: every message that came in is ready, held by exactly one seat, acked, or expired; what goes back goes to
//! its old place, so order is kept.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::topic;
use crate::broker::Message;
use crate::broker::topology::{Binding, Consumers, Exchange, Lifetime, Queue};

/// A message in a queue.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    /// Place in the queue.
    order: u64,
    pub(super) message: Arc<Message>,
    pub(super) redelivered: bool,
    expires_at: Option<Instant>,
}

/// A consumer's place at a queue.
#[derive(Debug)]
struct Seat {
    id: u64,
    prefetch: usize,
    held: BTreeMap<u64, Stored>,
    /// Cancelled when the session is cut; a fresh one takes over.
    session: CancellationToken,
    wake: Arc<Notify>,
    is_stopped: bool,
}

/// One queue.
#[derive(Debug)]
pub(super) struct MemoryQueue {
    spec: Queue,
    direct: HashMap<Exchange, HashSet<String>>,
    ready: VecDeque<Stored>,
    seats: Vec<Seat>,
    order: u64,
    tag: u64,
    unused_since: Instant,
}

impl MemoryQueue {
    pub(super) fn new(spec: &Queue, now: Instant) -> Self {
        let mut queue = Self {
            spec: Queue {
                bindings: Vec::new(),
                ..spec.clone()
            },
            direct: HashMap::new(),
            ready: VecDeque::new(),
            seats: Vec::new(),
            order: 0,
            tag: 0,
            unused_since: now,
        };
        queue.bind(spec);
        queue
    }

    /// Adds the bindings of `spec`.
    pub(super) fn bind(&mut self, spec: &Queue) {
        for binding in &spec.bindings {
            if binding.exchange.is_topic() {
                if !self.spec.bindings.contains(binding) {
                    self.spec.bindings.push(binding.clone());
                }
            } else {
                let keys = self.direct.entry(binding.exchange).or_default();
                keys.insert(binding.key.clone());
            }
        }
    }

    /// Removes those of `bindings` that it has.
    pub(super) fn unbind(&mut self, bindings: &[Binding]) {
        for binding in bindings {
            if binding.exchange.is_topic() {
                self.spec.bindings.retain(|own| own != binding);
            } else if let Some(keys) = self.direct.get_mut(&binding.exchange) {
                keys.remove(&binding.key);
            }
        }
    }

    /// How `spec` differs from this queue; none if they agree.
    pub(super) fn mismatch(&self, spec: &Queue) -> Option<String> {
        let own = &self.spec;
        if own.lifetime != spec.lifetime {
            return Some(format!(
                "lifetime {:?}, not {:?}",
                own.lifetime, spec.lifetime
            ));
        }
        // Only a durable queue has a choice of type.
        if own.lifetime == Lifetime::Durable && own.queue_type != spec.queue_type {
            return Some(format!(
                "type {:?}, not {:?}",
                own.queue_type, spec.queue_type
            ));
        }
        let is_single = |queue: &Queue| queue.consumers == Consumers::SingleActive;
        (is_single(own) != is_single(spec))
            .then(|| format!("single active consumer {}", is_single(own)))
    }

    pub(super) fn takes(&self, exchange: Exchange, key: &str) -> bool {
        if !exchange.is_topic() {
            return self
                .direct
                .get(&exchange)
                .is_some_and(|keys| keys.contains(key));
        }
        let mut bindings = self.spec.bindings.iter();
        bindings.any(|binding| binding.exchange == exchange && topic::matches(&binding.key, key))
    }

    /// Whether it was unused for as long as its lifetime allows.
    pub(super) fn is_expired(&self, now: Instant) -> bool {
        match self.spec.lifetime {
            Lifetime::Expires(after) => {
                self.seats.is_empty() && now.duration_since(self.unused_since) >= after
            }
            Lifetime::Durable | Lifetime::Exclusive => false,
        }
    }

    pub(super) fn is_exclusive(&self) -> bool {
        self.spec.lifetime == Lifetime::Exclusive
    }

    /// Drops expired messages at the front, then counts the ready and the held ones.
    pub(super) fn count(&mut self, now: Instant) -> usize {
        self.ready_count(now) + self.seats.iter().map(|seat| seat.held.len()).sum::<usize>()
    }

    /// Drops expired messages at the front, then counts the ready ones.
    pub(super) fn ready_count(&mut self, now: Instant) -> usize {
        let is_late = |stored: &Stored| stored.expires_at.is_some_and(|at| at <= now);
        while self.ready.front().is_some_and(is_late) {
            self.ready.pop_front();
        }
        self.ready.len()
    }

    pub(super) fn seat_count(&self) -> usize {
        self.seats.len()
    }

    pub(super) fn push(&mut self, message: Arc<Message>, now: Instant) {
        self.order += 1;
        self.ready.push_back(Stored {
            order: self.order,
            redelivered: false,
            expires_at: message.properties.expiration.map(|after| now + after),
            message,
        });
        self.wake();
    }

    pub(super) fn sit(&mut self, id: u64, prefetch: usize) -> Arc<Notify> {
        let wake = Arc::new(Notify::new());
        self.seats.push(Seat {
            id,
            prefetch,
            held: BTreeMap::new(),
            session: CancellationToken::new(),
            wake: Arc::clone(&wake),
            is_stopped: false,
        });
        wake
    }

    /// The session of a seat; none if the seat is gone.
    pub(super) fn session(&self, id: u64) -> Option<CancellationToken> {
        self.seats
            .iter()
            .find(|seat| seat.id == id)
            .map(|seat| seat.session.clone())
    }

    /// The next message for a seat, if one waits, the seat may have it, and its session was not cut.
    pub(super) fn take(
        &mut self,
        id: u64,
        session: &CancellationToken,
        now: Instant,
    ) -> Option<(u64, Stored)> {
        self.ready_count(now);
        let mut live = self.seats.iter().filter(|seat| !seat.is_stopped);
        let is_active = self.spec.consumers != Consumers::SingleActive
            || live.next().is_some_and(|seat| seat.id == id);
        let seat = self.seats.iter_mut().find(|seat| seat.id == id)?;
        if !is_active
            || seat.is_stopped
            || session.is_cancelled()
            || seat.held.len() >= seat.prefetch
        {
            return None;
        }
        let stored = self.ready.pop_front()?;
        self.tag += 1;
        seat.held.insert(self.tag, stored.clone());
        Some((self.tag, stored))
    }

    /// A held message is done. Says whether it was held.
    pub(super) fn ack(&mut self, id: u64, tag: u64) -> bool {
        let mut seats = self.seats.iter_mut();
        let seat = seats.find(|seat| seat.id == id);
        seat.is_some_and(|seat| seat.held.remove(&tag).is_some())
    }

    /// A held message goes back to its place.
    pub(super) fn requeue(&mut self, id: u64, tag: u64) {
        let mut seats = self.seats.iter_mut();
        let stored = seats
            .find(|seat| seat.id == id)
            .and_then(|seat| seat.held.remove(&tag));
        if let Some(stored) = stored {
            self.put_back(stored);
            self.wake();
        }
    }

    /// Whether a seat holds nothing (or is gone).
    pub(super) fn is_settled(&self, id: u64) -> bool {
        let mut seats = self.seats.iter();
        seats
            .find(|seat| seat.id == id)
            .is_none_or(|seat| seat.held.is_empty())
    }

    /// A seat takes no more; another may become the active one.
    pub(super) fn stop(&mut self, id: u64) {
        if let Some(seat) = self.seats.iter_mut().find(|seat| seat.id == id) {
            seat.is_stopped = true;
        }
        self.wake();
    }

    /// All sessions end, as if their connections broke: what they held goes back.
    pub(super) fn cut(&mut self) {
        let mut back = Vec::new();
        for seat in &mut self.seats {
            std::mem::take(&mut seat.session).cancel();
            back.extend(std::mem::take(&mut seat.held).into_values());
        }
        for stored in back {
            self.put_back(stored);
        }
        self.wake();
    }

    /// A seat is left; what it held goes back.
    pub(super) fn leave(&mut self, id: u64, now: Instant) {
        if let Some(index) = self.seats.iter().position(|seat| seat.id == id) {
            let held = self.seats.remove(index).held;
            for stored in held.into_values() {
                self.put_back(stored);
            }
        }
        self.unused_since = now;
        self.wake();
    }

    /// Tells the seats that something changed for them.
    pub(super) fn wake(&self) {
        self.seats.iter().for_each(|seat| seat.wake.notify_one());
    }

    fn put_back(&mut self, mut stored: Stored) {
        stored.redelivered = true;
        let order = stored.order;
        let index = self.ready.partition_point(|other| other.order < order);
        self.ready.insert(index, stored);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::broker::Properties;
    use crate::broker::topology::QueueType;

    fn queue(consumers: Consumers) -> MemoryQueue {
        let spec = Queue {
            name: "q".to_owned(),
            lifetime: Lifetime::Durable,
            queue_type: QueueType::Classic,
            consumers,
            bindings: Vec::new(),
        };
        MemoryQueue::new(&spec, Instant::now())
    }

    fn message(number: usize) -> Arc<Message> {
        Arc::new(Message {
            exchange: Exchange::Results,
            routing_key: String::new(),
            body: Bytes::from(number.to_string()),
            properties: Properties::default(),
            persistent: true,
            mandatory: true,
        })
    }

    proptest! {
        /// Whatever is done, no message is lost or doubled, what waits is in order, and prefetch holds.
        #[test]
        fn nothing_is_lost_or_doubled(
            single_active in any::<bool>(),
            steps in prop::collection::vec((0..7_u8, any::<prop::sample::Index>()), 1..200),
        ) {
            const PREFETCH: usize = 3;
            let now = Instant::now();
            let consumers = if single_active { Consumers::SingleActive } else { Consumers::Shared };
            let mut queue = queue(consumers);
            queue.sit(0, PREFETCH);
            queue.sit(1, PREFETCH);
            let (mut pushed, mut acked) = (0, 0);
            for (step, index) in steps {
                let seat = index.index(2) as u64;
                let tags: Vec<u64> = queue
                    .seats
                    .iter()
                    .filter(|other| other.id == seat)
                    .flat_map(|seat| seat.held.keys().copied())
                    .collect();
                match step {
                    0 | 1 => {
                        pushed += 1;
                        queue.push(message(pushed), now);
                    }
                    2 | 3 => {
                        let session = queue.session(seat).unwrap();
                        queue.take(seat, &session, now);
                    }
                    4 if !tags.is_empty() => {
                        prop_assert!(queue.ack(seat, *index.get(&tags)));
                        acked += 1;
                    }
                    5 if !tags.is_empty() => queue.requeue(seat, *index.get(&tags)),
                    6 => queue.cut(),
                    _ => {}
                }
                prop_assert_eq!(queue.count(now), pushed - acked);
                prop_assert!(queue.ready.iter().is_sorted_by_key(|stored| stored.order));
                prop_assert!(queue.seats.iter().all(|seat| seat.held.len() <= PREFETCH));
                prop_assert!(!single_active || queue.is_settled(1));
            }
        }
    }
}
