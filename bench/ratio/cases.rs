//! The cases: each ceiling and each figure of the server in turn, round after round, so that other load on the machine
//! affects all of them alike.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use url::Url;
use vogeler::config;

use crate::broker::{Prepared, Rabbit, confirmed, node, prepare, send};
use crate::null_store::Writes;
use crate::server::{Drain, Server, until};
use crate::store::Database;
use crate::table::{Table, median};

const SMALL: usize = 2_000;
const LARGE: usize = 20_000;
/// Number of the first node with large results.
const LARGE_NODES: usize = 500_000;
/// Longest wait for the actors of idle nodes to stop.
const IDLE_PATIENCE: Duration = Duration::from_secs(30);
/// Longest wait for a server without metrics to settle a backlog.
const DRAIN_PATIENCE: Duration = Duration::from_mins(3);
/// Results of each node in the cases in which results coalesce.
const TEN: usize = 10;
/// Backlogs drained for one figure of the metrics' cost: several, since CPU is counted in hundredths of a second.
const METRICS_DRAINS: usize = 4;
/// Highest rate for the latency, in results/s: past it, RabbitMQ's own queueing is measured.
const RATE_MAX: f64 = 4_000.0;

/// Where everything runs.
pub(crate) struct Services {
    pub(crate) amqp: Url,
    pub(crate) store: Url,
    /// The write times, if the store is the null store.
    pub(crate) null: Option<Writes>,
}

/// How much is measured.
pub(crate) struct Plan {
    rounds: usize,
    small: usize,
    large: usize,
    known: usize,
}

impl Plan {
    pub(crate) fn full() -> Self {
        Self {
            rounds: 5,
            small: 4_000,
            large: 800,
            known: 100_000,
        }
    }

    pub(crate) fn quick() -> Self {
        Self {
            rounds: 2,
            small: 2_000,
            large: 300,
            known: 10_000,
        }
    }
}

/// Samples by name.
#[derive(Default)]
struct Samples(HashMap<&'static str, Vec<f64>>);

impl Samples {
    fn add(&mut self, name: &'static str, value: f64) {
        self.0.entry(name).or_default().push(value);
    }

    fn of(&self, name: &str) -> Vec<f64> {
        self.0.get(name).cloned().unwrap_or_default()
    }

    /// Sample by sample, since those of one round belong together.
    fn ratio(&self, name: &str, of: &str) -> Vec<f64> {
        self.of(name)
            .iter()
            .zip(self.of(of))
            .map(|(one, other)| one / other)
            .collect()
    }

    fn text(&self, name: &str) -> String {
        format!("{:.0}", median(&self.of(name)))
    }
}

struct Bench<'a> {
    services: &'a Services,
    plan: &'a Plan,
    rabbit: Rabbit,
    database: Database,
    database_name: String,
    server: Server,
    samples: Samples,
    content: u64,
}

/// Measures everything on one store.
pub(crate) async fn run(name: &str, services: &Services, plan: &Plan, only: Option<&str>) -> Table {
    let wants = |case: &str| only.is_none_or(|only| only == case);
    let database_name = format!("vogeler_bench_{}", std::process::id());
    let mut ceiling = Database::create(&services.store, &format!("{database_name}_ceiling")).await;
    let mut large = Database::create(&services.store, &format!("{database_name}_large")).await;
    let database = Database::create(&services.store, &database_name).await;
    let rabbit = Rabbit::connect(&services.amqp).await;
    let server = Server::start(&services.amqp, &services.store, &database_name).await;
    let samples = Samples::default();
    let mut bench = Bench {
        services,
        plan,
        rabbit,
        database,
        database_name,
        server,
        samples,
        content: 0,
    };
    let shape = ceiling.best_shape(plan.small, SMALL).await;
    let large_shape = large.best_shape(plan.large, LARGE).await;
    bench.warm_up(wants("large")).await;
    for round in 1..=plan.rounds {
        eprintln!("{name}: round {round} of {}", plan.rounds);
        let at_best = ceiling.post(plan.small, SMALL, shape).await;
        bench.samples.add("store", at_best.documents_per_second);
        if wants("changed") {
            bench.measure_changed().await;
        }
        if wants("ten") {
            bench.measure_ten().await;
        }
        if wants("latency") {
            // The time of one `_bulk_docs` as large as the server's when it has much to write, with nothing else in
            // flight. At the ceiling's shape and concurrency the time would be that of the queue in front of the store,
            // which must not excuse the server.
            let batch = config::Server::default().batch_count_max;
            let alone = ceiling.request(plan.small, SMALL, batch).await;
            bench.samples.add("request", alone * 1e3);
            let half = at_best.documents_per_second / 2.0;
            bench.measure_latency(half).await;
        }
        if wants("large") {
            let ceiling = large.post(plan.large, LARGE, large_shape).await;
            bench
                .samples
                .add("large store", ceiling.documents_per_second);
            bench.measure_large().await;
        }
        // These come last, since they restart the server: the cases above measure a server that knows its nodes.
        if wants("unchanged") {
            bench.measure_unchanged().await;
        }
        if wants("metrics") {
            bench.measure_metrics(round).await;
        }
        if wants("unchanged") || wants("metrics") {
            bench.warm_up(wants("large")).await;
        }
    }
    if wants("memory") {
        bench.measure_memory().await;
    }
    let table = bench.table(name, shape, large_shape);
    bench.server.stop().await;
    bench.rabbit.clean_up().await;
    for database in [&bench.database, &ceiling, &large] {
        database.delete().await;
    }
    table
}

impl Bench<'_> {
    /// Publishes a backlog while the server sleeps, then lets it drain.
    async fn drain(&self, messages: &[Prepared]) -> Drain {
        let before = self.server.settled().await;
        self.server.pause(true);
        self.rabbit.publish(messages).await;
        self.server.pause(false);
        self.server.drain(before, messages.len()).await
    }

    /// Drains `each` new results of each of `nodes`, round-robin.
    async fn changed(&mut self, nodes: usize, each: usize, bytes: usize) -> Drain {
        let mut messages = Vec::with_capacity(nodes * each);
        for _ in 0..each {
            self.content += 1;
            messages.extend((0..nodes).map(|number| prepare(&node(number), bytes, self.content)));
        }
        self.drain(&messages).await
    }

    async fn measure_changed(&mut self) {
        let count = self.plan.small;
        let drain = self.changed(count, 1, SMALL).await;
        self.samples.add("changed", count as f64 / drain.seconds);
        self.samples
            .add("changed cpu", drain.cpu * 1e6 / count as f64);
    }

    async fn measure_ten(&mut self) {
        let nodes = self.plan.small / 2;
        let drain = self.changed(nodes, TEN, SMALL).await;
        self.samples
            .add("ten", (nodes * TEN) as f64 / drain.seconds);
        self.samples.add("ten documents", drain.documents);
    }

    async fn measure_unchanged(&mut self) {
        let nodes = self.plan.small / 2;
        self.changed(nodes, 1, SMALL).await;
        self.samples
            .add("broker", self.rabbit.ceiling(&self.again(nodes)).await);
        let drain = self.drain(&self.again(nodes)).await;
        let results = (nodes * TEN) as f64;
        self.samples.add("warm", results / drain.seconds);
        self.samples.add("warm cpu", drain.cpu * 1e6 / results);
        self.restart_with(&self.again(nodes)).await;
    }

    /// Ten results of each of `nodes`, with the same content as the last ones.
    fn again(&self, nodes: usize) -> Vec<Prepared> {
        (0..nodes * TEN)
            .map(|n| prepare(&node(n % nodes), SMALL, self.content))
            .collect()
    }

    /// Measures the CPU for unchanged results of a server with metrics and of one without, one after the other.
    async fn measure_metrics(&mut self, round: usize) {
        let nodes = self.plan.small / 2;
        let results = (nodes * TEN * METRICS_DRAINS) as f64;
        self.server.stop().await;
        // The order changes from round to round.
        for with_metrics in [round.is_multiple_of(2), !round.is_multiple_of(2)] {
            let Services { amqp, store, .. } = self.services;
            let mut server = Server::launch(amqp, store, &self.database_name, with_metrics);
            self.rabbit.wait_until_taken().await;
            self.content += 1;
            let first: Vec<Prepared> = (0..nodes)
                .map(|n| prepare(&node(n), SMALL, self.content))
                .collect();
            self.drain_unseen(&server, &first).await;
            let mut cpu = 0.0;
            for _ in 0..METRICS_DRAINS {
                cpu += self.drain_unseen(&server, &self.again(nodes)).await;
            }
            server.stop().await;
            assert_eq!(self.rabbit.ready().await, 0, "not all was settled");
            let name = if with_metrics { "metered" } else { "unmetered" };
            self.samples.add(name, cpu * 1e6 / results);
        }
        self.server = self.start().await;
    }

    /// Drains a backlog with a server that does not show its progress. Returns the CPU that it took, in seconds, which
    /// includes the scrapes if there are metrics.
    async fn drain_unseen(&self, server: &Server, messages: &[Prepared]) -> f64 {
        server.pause(true);
        self.rabbit.publish(messages).await;
        let cpu = server.cpu();
        server.pause(false);
        let deadline = Instant::now() + DRAIN_PATIENCE;
        loop {
            self.rabbit.wait_until_taken().await;
            server.settled().await;
            server.until_idle().await;
            // A session that changes its prefetch gives its deliveries back.
            let ready = self.rabbit.ready().await;
            if ready == 0 {
                return server.cpu() - cpu;
            }
            assert!(
                Instant::now() < deadline,
                "the server rests with {ready} messages ready"
            );
        }
    }

    /// Drains a backlog with a server that knows nothing yet.
    async fn restart_with(&mut self, messages: &[Prepared]) {
        self.server.stop().await;
        self.rabbit.publish(messages).await;
        self.rabbit.wait_for(messages.len()).await;
        self.server = self.start().await;
        let started = until_first(&self.server).await;
        self.server.drain(0.0, messages.len()).await;
        let seconds = started.elapsed().as_secs_f64();
        self.samples.add("cold", messages.len() as f64 / seconds);
    }

    async fn start(&self) -> Server {
        Server::start(
            &self.services.amqp,
            &self.services.store,
            &self.database_name,
        )
        .await
    }

    /// Writes every node once, unmeasured, since the first write of a node reads its document. Then takes enough small
    /// results for every partition to reach its full prefetch.
    async fn warm_up(&mut self, with_large: bool) {
        let nodes = self.plan.small;
        self.changed(nodes, 1, SMALL).await;
        self.drain(&self.again(nodes)).await;
        if with_large {
            self.changed_large().await;
        }
    }

    /// Drains a new large result of each of the large nodes. They are nodes of their own, so that small documents stay
    /// small.
    async fn changed_large(&mut self) -> Drain {
        self.content += 1;
        let nodes = LARGE_NODES..LARGE_NODES + self.plan.large;
        let messages: Vec<Prepared> = nodes
            .map(|n| prepare(&node(n), LARGE, self.content))
            .collect();
        self.drain(&messages).await
    }

    async fn measure_large(&mut self) {
        let count = self.plan.large;
        let drain = self.changed_large().await;
        self.samples.add("large", count as f64 / drain.seconds);
        self.samples
            .add("large cpu", drain.cpu * 1e6 / count as f64);
    }

    /// Publishes at a steady rate, each result from another node, and measures when each is stored.
    async fn measure_latency(&mut self, rate: f64) {
        let rate = rate.min(RATE_MAX);
        self.content += 1;
        let messages: Vec<Prepared> = (0..self.plan.small)
            .map(|n| prepare(&node(n), SMALL, self.content))
            .collect();
        let (seen, listener) = match &self.services.null {
            Some(writes) => (std::sync::Arc::clone(writes), None),
            None => {
                let (seen, task) = self.database.listen();
                (seen, Some(task))
            }
        };
        tokio::time::sleep(Duration::from_millis(500)).await;
        seen.lock().unwrap().clear();
        let before = self.server.settled().await;
        let channel = self.rabbit.channel().await;
        let started = Instant::now();
        let mut sent = Vec::with_capacity(messages.len());
        let mut confirms = Vec::with_capacity(messages.len());
        for (index, message) in messages.iter().enumerate() {
            let due = started + Duration::from_secs_f64(index as f64 / rate);
            tokio::time::sleep_until(due.into()).await;
            sent.push(Instant::now());
            confirms.push(send(&channel, message).await);
        }
        confirmed(confirms).await;
        self.server.drain(before, messages.len()).await;
        let all = seen.clone();
        let count = messages.len();
        let ids = move || all.lock().unwrap().len() >= count;
        assert!(
            until(Duration::from_secs(20), ids).await,
            "not all changes were seen"
        );
        channel.close(200, "done".into()).await.unwrap();
        if let Some(listener) = listener {
            listener.abort();
        }
        let seen = seen.lock().unwrap();
        let mut times: Vec<f64> = sent
            .iter()
            .enumerate()
            .filter_map(|(n, sent)| {
                Some((*seen.get(node(n).as_str())? - *sent).as_secs_f64() * 1e3)
            })
            .collect();
        times.sort_by(f64::total_cmp);
        self.samples.add("p99", times[times.len() * 99 / 100]);
        self.samples.add("p50", times[times.len() / 2]);
    }

    /// Measures the memory of a server that knows many nodes and has nothing to do.
    async fn measure_memory(&mut self) {
        self.server.stop().await;
        self.server = self.start().await;
        for start in (0..self.plan.known).step_by(10_000) {
            let messages: Vec<Prepared> = (start..start + 10_000)
                .map(|n| prepare(&node(n), 200, 0))
                .collect();
            let before = self.server.settled().await;
            self.rabbit.publish(&messages).await;
            self.server.drain(before, messages.len()).await;
        }
        let deadline = Instant::now() + IDLE_PATIENCE;
        while self.server.count("vogeler_node_actors ").await > 0.0 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        self.samples
            .add("actors", self.server.count("vogeler_node_actors ").await);
        self.samples.add("rss", self.server.rss());
    }

    fn table(&self, name: &str, shape: (usize, usize), large: (usize, usize)) -> Table {
        let s = &self.samples;
        let mut table = Table::new(name);
        let store = format!(
            "{} documents/s, {} × {} in flight",
            s.text("store"),
            shape.0,
            shape.1
        );
        let ceiling = "× store ceiling";
        table.at_least(
            "every result changes a different node, 2 KB",
            ceiling,
            0.8,
            s.ratio("changed", "store"),
            format!("{} of {store}", s.text("changed")),
        );
        table.at_least(
            "the same, 20 KB",
            ceiling,
            0.8,
            s.ratio("large", "large store"),
            format!(
                "{} of {} documents/s, {} × {} in flight",
                s.text("large"),
                s.text("large store"),
                large.0,
                large.1
            ),
        );
        table.at_least(
            "ten results per node",
            ceiling,
            5.0,
            s.ratio("ten", "store"),
            format!(
                "{} results/s in {} writes of {}",
                s.text("ten"),
                s.text("ten documents"),
                self.plan.small / 2 * TEN
            ),
        );
        table.at_least(
            "nothing has changed, warm",
            "× broker ceiling",
            0.6,
            s.ratio("warm", "broker"),
            format!("{} of {} results/s", s.text("warm"), s.text("broker")),
        );
        table.at_least(
            "nothing has changed, after a restart",
            ceiling,
            3.0,
            s.ratio("cold", "store"),
            format!("{} results/s", s.text("cold")),
        );
        table.at_most(
            "server CPU per stored result, 2 KB",
            "µs",
            60.0,
            s.of("changed cpu"),
            String::new(),
        );
        table.at_most(
            "server CPU per unchanged result",
            "µs",
            25.0,
            s.of("warm cpu"),
            String::new(),
        );
        table.at_most(
            "server CPU with metrics, nothing has changed",
            "× without",
            1.03,
            s.ratio("metered", "unmetered"),
            format!(
                "{} of {} µs a result",
                s.text("metered"),
                s.text("unmetered")
            ),
        );
        table.at_most(
            "resident memory, known nodes idle",
            "MB",
            150.0,
            s.of("rss"),
            format!("{} actors", s.text("actors")),
        );
        let linger = config::Server::default().linger.as_secs_f64() * 1e3;
        let target = linger + 3.0 * median(&s.of("request"));
        table.at_most(
            "publish → stored at half the ceiling, p99",
            "ms",
            target,
            s.of("p99"),
            format!(
                "p50 {} ms, one _bulk_docs alone {} ms",
                s.text("p50"),
                s.text("request")
            ),
        );
        table
    }
}

async fn until_first(server: &Server) -> Instant {
    while server.count("vogeler_results_received_total ").await < 1.0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Instant::now()
}
