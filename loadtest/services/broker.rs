//! RabbitMQ: started for the run as the tests start theirs, or given.
//!
//! If a fault cuts connections, a proxy stands before it, for fleet and server alike.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, bail};
use vogeler::broker::topology::{self, QueueType};
use vogeler::broker::{self, Broker, BrokerError};
use vogeler::config::{self, BrokerDsn, Config};

use super::proxy::Proxy;
use super::rabbit::Rabbit;
use super::{blocking, local_port, with_port};

const PORT_DEFAULT: u16 = 5672;

/// The broker of a run.
#[derive(Debug)]
pub(crate) struct BrokerService {
    /// None if it was given.
    rabbit: Option<Arc<Mutex<Rabbit>>>,
    proxy: Option<Proxy>,
    /// The DSN that goes past the proxy.
    direct: String,
    /// As fleet and server reach it.
    dsn: String,
}

impl BrokerService {
    /// Starts RabbitMQ unless one is given.
    pub(super) async fn start(given: Option<&str>, with_proxy: bool) -> anyhow::Result<Self> {
        let rabbit = match given {
            Some(_) => None,
            None => Some(blocking("the start of RabbitMQ", Rabbit::private).await?),
        };
        let direct = match (given, &rabbit) {
            (Some(dsn), _) => dsn.to_owned(),
            (None, Some(rabbit)) => rabbit.fresh_vhost().into(),
            (None, None) => bail!("neither given nor started"),
        };
        if direct.parse::<BrokerDsn>().context("--broker")? == BrokerDsn::Memory {
            bail!("--broker: memory: is one process, and the server is another one");
        }
        let port = local_port(&direct, PORT_DEFAULT);
        let proxy = with_proxy.then(|| port.context("connections can be cut on this machine only"));
        let proxy = proxy.transpose()?.map(Proxy::tcp);
        let dsn = proxy.as_ref().map_or_else(
            || Ok(direct.clone()),
            |proxy| with_port(&direct, proxy.port()),
        )?;
        Ok(Self {
            rabbit: rabbit.map(|rabbit| Arc::new(Mutex::new(rabbit))),
            proxy,
            direct,
            dsn,
        })
    }

    /// As fleet and server reach it, with its password.
    pub(crate) fn dsn(&self) -> &str {
        &self.dsn
    }

    /// Its port, if it is on this machine.
    pub(crate) fn port(&self) -> Option<u16> {
        local_port(&self.direct, PORT_DEFAULT)
    }

    /// A connection of its own past the proxy, for looks that faults do not disturb.
    pub(crate) fn direct(&self) -> anyhow::Result<Arc<dyn Broker>> {
        let dsn = self.direct.parse()?;
        Ok(broker::open(&config::Broker {
            dsn,
            ..config::Broker::default()
        }))
    }

    /// Refuses a given broker that is in use, or that the given server does not work with, before anything is changed.
    /// Takes the number and type of queues from the given server: the plan's settings do not apply to it.
    pub(super) async fn check(
        &self,
        settings: &mut config::Broker,
        has_server: bool,
    ) -> anyhow::Result<()> {
        if self.rabbit.is_some() {
            return Ok(());
        }
        let broker = self.direct()?;
        let checked = Self::check_queues(&*broker, settings, has_server).await;
        broker.close().await;
        checked.context("--broker")
    }

    async fn check_queues(
        broker: &dyn Broker,
        settings: &mut config::Broker,
        has_server: bool,
    ) -> anyhow::Result<()> {
        let found = broker::setup::old_queues(broker, 0).await?;
        let waiting: u64 = found.iter().map(|(_, depth)| depth.ready).sum();
        let consumers: u64 = found.iter().map(|(_, depth)| depth.consumers).sum();
        if waiting > 0 {
            bail!(
                "{waiting} messages wait in vogeler.results.*: give an empty virtual host, or let a server drain them first"
            );
        }
        if !has_server && consumers > 0 {
            bail!(
                "a server works on this virtual host: give an empty one, or name that server with --metrics"
            );
        }
        if has_server {
            let last = found.last().filter(|_| consumers > 0);
            let (last, _) = last.context(
                "no server consumes vogeler.results.* here: give the virtual host of the server of --metrics",
            )?;
            settings.partitions = last + 1;
            // The queues exist, so declaring them only shows which type they have.
            let dead = topology::server_queues(0, settings.queue_type);
            if let Err(BrokerError::Mismatch { .. }) = broker.declare(&dead).await {
                settings.queue_type = match settings.queue_type {
                    QueueType::Quorum => QueueType::Classic,
                    QueueType::Classic => QueueType::Quorum,
                };
            }
        }
        Ok(())
    }

    /// Declares what the server declares.
    pub(super) async fn set_up(&self, config: &Config) -> anyhow::Result<()> {
        let broker = self.direct()?;
        let settings = &config.broker;
        let done = broker::setup::set_up(&*broker, settings.partitions, settings.queue_type).await;
        broker.close().await;
        done.map(drop).context("cannot set up the broker")
    }

    /// Stops it, in order or by a kill. What is durable stays.
    pub(crate) async fn go_down(&self, is_killed: bool) -> anyhow::Result<()> {
        self.with_rabbit("the stop of RabbitMQ", move |rabbit| {
            if is_killed {
                rabbit.kill();
            } else {
                rabbit.stop();
            }
        })
        .await
    }

    /// Starts it again.
    pub(crate) async fn come_up(&self) -> anyhow::Result<()> {
        self.with_rabbit("the start of RabbitMQ", Rabbit::start)
            .await
    }

    async fn with_rabbit(
        &self,
        what: &str,
        act: impl FnOnce(&mut Rabbit) + Send + 'static,
    ) -> anyhow::Result<()> {
        let rabbit = self
            .rabbit
            .clone()
            .context("this run did not start the broker")?;
        blocking(what, move || {
            act(&mut rabbit.lock().unwrap_or_else(PoisonError::into_inner));
        })
        .await
    }

    /// Cuts all connections, and refuses new ones until told otherwise.
    pub(crate) fn refuse(&self, is_refusing: bool) {
        if let Some(proxy) = &self.proxy {
            proxy.refuse(is_refusing);
        }
    }

    /// Ends what was started here.
    pub(super) async fn stop(self) {
        // No failure matters here: nobody needs this RabbitMQ any more.
        drop(blocking("the end of RabbitMQ", move || drop(self)).await);
    }
}
