//! The gauges that are set when `/metrics` is asked, not at every change.
//!
//! Reads links, agreement, settings and what is held; changes nothing but gauges. Holds the byte budget instead of the
//! intake, and the router only weakly: whoever holds these keeps the server from ending.

use std::sync::{Arc, Weak};

use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::held::Held;
use super::partitions::{Agreement, Downstream, Partitions};
use super::router::Router;
use crate::broker::{Broker, Link};
use crate::config::Config;
use crate::telemetry::{Part, Partition, catalogue, last_write, record_up};

/// Sets the gauges of a server at each scrape.
#[derive(Debug)]
pub struct Gauges {
    agreement: watch::Receiver<Agreement>,
    broker: watch::Receiver<Link>,
    store: watch::Receiver<Link>,
    held: Held,
    router: Weak<Router>,
    budget: (Arc<Semaphore>, usize),
    stop: CancellationToken,
    partitions: u16,
}

impl Gauges {
    /// Reads from these parts of the server.
    pub(super) fn new(
        config: &Config,
        downstream: &Downstream,
        partitions: &Partitions,
        broker: &Arc<dyn Broker>,
        store: watch::Receiver<Link>,
    ) -> Self {
        Self {
            agreement: partitions.agreement(),
            broker: broker.link(),
            store,
            held: downstream.held.clone(),
            router: downstream.intake.router(),
            budget: downstream.intake.budget(),
            stop: downstream.stop.clone(),
            partitions: config.broker.partitions,
        }
    }

    /// Sets them as things are now.
    pub fn export(&self) {
        let up = |link: &watch::Receiver<Link>| *link.borrow() == Link::Up;
        record_up(Part::Broker, up(&self.broker));
        record_up(Part::Store, up(&self.store));
        let is_draining = self.stop.is_cancelled();
        catalogue::DRAINING
            .get()
            .set(f64::from(u8::from(is_draining)));
        catalogue::PARTITIONS.get().set(f64::from(self.partitions));
        let agreement = self.agreement.borrow().clone();
        let owned = agreement.owned();
        catalogue::PARTITIONS_OWNED.get().set(float(owned.len()));
        catalogue::SERVERS.get().set(float(agreement.servers()));
        catalogue::SERVERS_LEFT_OUT
            .get()
            .set(float(agreement.left_out()));
        let known = self.router.upgrade().map_or(0, |router| router.known());
        catalogue::KNOWN_NODES.get().set(float(known));
        let last_write = last_write().map_or(0.0, |at| at.as_duration().as_secs_f64());
        catalogue::LAST_WRITE_TIMESTAMP_SECONDS
            .get()
            .set(last_write);
        self.export_held(&owned);
    }

    fn export_held(&self, owned: &[u16]) {
        let (budget, total) = &self.budget;
        let in_flight = total.saturating_sub(budget.available_permits());
        catalogue::BYTES_IN_FLIGHT.get().set(float(in_flight));
        catalogue::BYTES_IN_FLIGHT_LIMIT.get().set(float(*total));
        let now = Instant::now();
        let (mut limit, mut waiting) = (0, 0);
        for (partition, held) in (0..).zip(self.held.all()) {
            waiting += held.waiting_bytes;
            limit += usize::from(held.prefetch) * usize::from(owned.contains(&partition));
            let partition = Partition(partition);
            let age = held
                .oldest
                .map(|taken| now.saturating_duration_since(taken));
            catalogue::QUEUE_MESSAGES_UNACKED
                .of(partition)
                .set(float(held.count));
            catalogue::QUEUE_LAG_SECONDS
                .of(partition)
                .set(age.unwrap_or_default().as_secs_f64());
            catalogue::QUEUE_PREFETCH
                .of(partition)
                .set(f64::from(held.prefetch));
        }
        catalogue::PREFETCH_LIMIT.get().set(float(limit));
        catalogue::BYTES_WAITING.get().set(float(waiting));
    }
}

#[allow(clippy::cast_precision_loss, reason = "a gauge is a float")]
fn float(count: usize) -> f64 {
    count as f64
}
