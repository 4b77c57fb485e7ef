//! The gauges that are read when `/metrics` is asked, rather than told of every change.
//!
//! Reads links, agreement, settings and what is held; changes nothing but gauges. Holds the byte budget and not the
//! intake, and the router only weakly: who holds those keeps the server from ending.

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
    prefetch: u16,
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
            prefetch: config.server.prefetch,
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
        let (owned, servers) = {
            let agreement = self.agreement.borrow();
            (float(agreement.owned().len()), float(agreement.servers()))
        };
        catalogue::PARTITIONS_OWNED.get().set(owned);
        catalogue::SERVERS.get().set(servers);
        let limit = owned * f64::from(self.prefetch);
        catalogue::PREFETCH_LIMIT.get().set(limit);
        let known = self.router.upgrade().map_or(0, |router| router.known());
        catalogue::KNOWN_NODES.get().set(float(known));
        let last_write = last_write().map_or(0.0, |at| at.as_duration().as_secs_f64());
        catalogue::LAST_WRITE_TIMESTAMP_SECONDS
            .get()
            .set(last_write);
        self.export_held();
    }

    fn export_held(&self) {
        let (budget, total) = &self.budget;
        let in_flight = total.saturating_sub(budget.available_permits());
        catalogue::BYTES_IN_FLIGHT.get().set(float(in_flight));
        catalogue::BYTES_IN_FLIGHT_LIMIT.get().set(float(*total));
        let now = Instant::now();
        for (partition, (count, oldest)) in (0..).map(Partition).zip(self.held.all()) {
            let age = oldest.map(|taken| now.saturating_duration_since(taken));
            catalogue::QUEUE_MESSAGES_UNACKED
                .of(partition)
                .set(float(count));
            catalogue::QUEUE_LAG_SECONDS
                .of(partition)
                .set(age.unwrap_or_default().as_secs_f64());
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "a gauge is a float")]
fn float(count: usize) -> f64 {
    count as f64
}
