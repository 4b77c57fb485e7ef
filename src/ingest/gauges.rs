//! The gauges that are read when `/metrics` is asked, rather than told of every change.
//!
//! Reads links, agreement and settings; changes nothing but gauges.

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::partitions::Agreement;
use crate::broker::Link;
use crate::config::Config;
use crate::telemetry::{Part, catalogue, record_up};

/// Sets the gauges of a server at each scrape.
#[derive(Debug)]
pub struct Gauges {
    agreement: watch::Receiver<Agreement>,
    broker: watch::Receiver<Link>,
    store: watch::Receiver<Link>,
    stop: CancellationToken,
    prefetch: u16,
    partitions: u16,
}

impl Gauges {
    /// Reads these; `links` are the broker's and the store's.
    pub(super) fn new(
        config: &Config,
        agreement: watch::Receiver<Agreement>,
        (broker, store): (watch::Receiver<Link>, watch::Receiver<Link>),
        stop: CancellationToken,
    ) -> Self {
        Self {
            agreement,
            broker,
            store,
            stop,
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
    }
}

#[allow(clippy::cast_precision_loss, reason = "a gauge is a float")]
fn float(count: usize) -> f64 {
    count as f64
}
