//! What the server's `/readyz` and status page show: connections, partitions, accounts, runs.
//!
//! Reads links, agreement, metrics and runs. Invariant: ready only while broker and store can be used, neither a dead
//! letter nor a forwarded result is refused, and the server is not stopping.

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::rates::SHORT;
use super::{About, Column, Figure, Report, Seen, Table, Watched, text};
use crate::broker::Link;
use crate::config::{Config, span};
use crate::http::{Probe, part};
use crate::ingest::{Agreement, RunSeen, Runs, Topology};
use crate::telemetry::{self, Partition, Snapshot, catalogue as c};
use crate::wire::Outcome;

/// Counters whose rates are shown.
static WATCHED: Watched = &[
    ("Results received", &c::RESULTS_RECEIVED),
    ("Documents written", &c::DOCUMENTS_WRITTEN),
    ("Results redelivered", &c::RESULTS_REDELIVERED),
    ("Dead letters", &c::DEAD_LETTERS),
];
/// Index of the results received in [`WATCHED`].
const RECEIVED: usize = 0;
/// Index of the documents written in [`WATCHED`].
const WRITTEN: usize = 1;

/// What the server's endpoints answer from.
#[derive(Debug)]
pub struct Health {
    /// What this process is.
    pub about: About,
    /// Whether the broker can be used.
    pub broker: watch::Receiver<Link>,
    /// Whether the store can be used.
    pub store: watch::Receiver<Link>,
    /// Whether the broker takes dead letters.
    pub dead_letters: watch::Receiver<Link>,
    /// Whether the broker takes results that belong in another queue.
    pub forwards: watch::Receiver<Link>,
    /// What is known of exchanges and queues.
    pub topology: watch::Receiver<Topology>,
    /// Which partitions this server should own.
    pub agreement: watch::Receiver<Agreement>,
    /// The last runs.
    pub runs: Runs,
    /// Cancelled when the server begins to stop.
    pub stopping: CancellationToken,
}

impl Probe for Health {
    fn readiness(&self) -> (bool, Value) {
        let topology = self.topology.borrow();
        let (is_ready, mut body) = readiness(
            [
                &self.broker.borrow(),
                &self.store.borrow(),
                &self.dead_letters.borrow(),
                &self.forwards.borrow(),
            ],
            topology.is_well(),
            self.stopping.is_cancelled(),
        );
        body["topology"] = topology_part(&topology);
        let agreement = self.agreement.borrow();
        body["partitions"] = json!({
            "owned": agreement.owned(), "servers": agreement.servers(), "left_out": agreement.left_out(),
        });
        body["last_write"] = json!({"at": telemetry::last_write()});
        (is_ready, body)
    }

    fn about(&self) -> &About {
        &self.about
    }

    fn watched(&self) -> Watched {
        WATCHED
    }

    fn report(&self, seen: &Seen<'_>) -> Report {
        let owned = self.agreement.borrow().owned();
        Report {
            figures: figures(seen),
            tables: vec![
                partitions(seen.metrics, &owned),
                accounts(seen.metrics),
                runs(&self.runs.newest_first(), seen),
            ],
        }
    }
}

/// Whether the server is ready, and the reasons: one member per part.
fn readiness(parts: [&Link; 4], is_topology_well: bool, is_draining: bool) -> (bool, Value) {
    let [broker, store, dead_letters, forwards] = parts;
    let is_ready = parts.iter().all(|link| **link == Link::Up) && is_topology_well && !is_draining;
    (
        is_ready,
        json!({
            "ready": is_ready,
            "broker": part(broker),
            "store": part(store),
            "dead_letters": part(dead_letters),
            "forwards": part(forwards),
            "draining": is_draining,
        }),
    )
}

/// What `/readyz` says of exchanges and queues.
fn topology_part(topology: &Topology) -> Value {
    let mut part = json!({"ok": topology.is_well()});
    if !topology.is_well() {
        let reason = topology.reason.as_deref();
        part["reason"] = json!(reason.unwrap_or("gone from the broker; declaring it again"));
        part["missing"] = json!(topology.missing);
    }
    if let Some((names, at)) = &topology.restored {
        part["restored"] = json!({"names": names, "at": at});
    }
    part
}

/// The settings that the page shows. DSNs show no password.
pub fn settings(config: &Config) -> Vec<(&'static str, String)> {
    let server = &config.server;
    vec![
        ("broker.dsn", config.broker.dsn.to_string()),
        ("broker.partitions", config.broker.partitions.to_string()),
        ("store.dsn", config.store.dsn.to_string()),
        ("server.prefetch", server.prefetch.to_string()),
        ("server.batch_count_max", server.batch_count_max.to_string()),
        ("server.linger", span::format(server.linger)),
        ("server.freshness", span::format(server.freshness)),
        ("http.listen", config.http.listen.to_string()),
        ("server.stale_after", span::format(server.stale_after)),
    ]
}

fn figures(seen: &Seen<'_>) -> Vec<Figure> {
    let metrics = seen.metrics;
    let lags = metrics.all(&c::QUEUE_LAG_SECONDS).iter();
    let lag = lags.map(|series| series.value).fold(0.0, f64::max);
    let written = telemetry::last_write();
    let written = written.map_or_else(|| "never".to_owned(), |at| text::ago(at, seen.now));
    let [count, sum] = metrics.count_and_sum(&c::PUBLISHED_TO_STORED_SECONDS);
    let took = if count > 0.0 {
        text::seconds(sum / count)
    } else {
        text::NOTHING.to_owned()
    };
    let figure = Figure::new;
    vec![
        figure("Results", per_second(seen, RECEIVED), "received, last 10 s"),
        figure("Documents", per_second(seen, WRITTEN), "written, last 10 s"),
        figure(
            "Backlog",
            text::count(metrics.sum(&c::QUEUE_MESSAGES_READY)),
            "results that wait in the broker",
        ),
        figure(
            "Lag",
            text::seconds(lag),
            "age of the oldest result taken and not settled",
        ),
        figure("Published to stored", took, "mean since the start"),
        figure("Last write", written, "when a document was last written"),
        figure(
            "Dead letters",
            text::count(metrics.sum(&c::DEAD_LETTERS_WAITING)),
            "wait for you in vogeler.dead",
        ),
        figure(
            "Servers",
            text::count(metrics.sum(&c::SERVERS)),
            "share the partitions, this one included",
        ),
        figure(
            "Left out",
            text::count(metrics.sum(&c::SERVERS_LEFT_OUT)),
            "announce themselves as servers and are not there",
        ),
    ]
}

fn per_second(seen: &Seen<'_>, index: usize) -> String {
    format!("{} /s", text::rate(seen.rates.over(index, SHORT)))
}

fn partitions(metrics: &Snapshot, owned: &[u16]) -> Table {
    use Column::{Number, Text};
    // Every server reports every partition.
    let count = metrics.all(&c::QUEUE_MESSAGES_UNACKED).len();
    let row = |number: u16| {
        let partition = Partition(number);
        let of = |gauge| {
            metrics
                .of(gauge, partition)
                .map_or_else(|| text::NOTHING.to_owned(), text::count)
        };
        let lag = metrics.of(&c::QUEUE_LAG_SECONDS, partition).unwrap_or(0.0);
        vec![
            number.to_string(),
            yes_no(owned.contains(&number)).to_owned(),
            of(&c::QUEUE_MESSAGES_READY),
            of(&c::QUEUE_MESSAGES_UNACKED),
            text::seconds(lag),
            of(&c::QUEUE_PREFETCH),
            of(&c::QUEUE_CONSUMERS),
        ]
    };
    Table {
        title: "Partitions",
        note: "Backlog and consumers as the broker counted them within the last seconds.",
        head: vec![
            Number("Partition"),
            Text("Ours"),
            Number("Backlog"),
            Number("Held here"),
            Number("Lag"),
            Number("Prefetch"),
            Number("Consumers"),
        ],
        rows: (0..).take(count).map(row).collect(),
        empty: "None are known yet.",
    }
}

fn accounts(metrics: &Snapshot) -> Table {
    let row = |name: &str, value: f64| vec![name.replace('_', " "), text::count(value)];
    let ended = Outcome::ALL.map(|outcome| {
        let value = metrics.of(&c::RESULTS, outcome).unwrap_or(0.0);
        row(outcome.as_str(), value)
    });
    let mut rows = vec![row("received", metrics.sum(&c::RESULTS_RECEIVED))];
    rows.extend(ended);
    rows.push(row("in flight", metrics.sum(&c::RESULTS_IN_FLIGHT)));
    Table {
        title: "Accounts",
        note: "Deliveries since the start. Those received are all in one of the other lines.",
        head: vec![Column::Text("Deliveries"), Column::Number("Count")],
        rows,
        empty: "",
    }
}

fn runs(runs: &[RunSeen], seen: &Seen<'_>) -> Table {
    use Column::{Number, Text};
    let row = |run: &RunSeen| {
        let outcomes = Outcome::ALL.iter().filter_map(|outcome| {
            let count = run.of(*outcome);
            let word = outcome.as_str().replace('_', " ");
            (count > 0).then(|| format!("{count} {word}"))
        });
        vec![
            run.run.to_string(),
            run.plugin
                .as_ref()
                .map_or_else(|| text::NOTHING.to_owned(), ToString::to_string),
            run.results().to_string(),
            run.failed.to_string(),
            outcomes.collect::<Vec<_>>().join(", "),
            text::moment(run.first_seen),
            text::ago(run.last_seen, seen.now),
        ]
    };
    Table {
        title: "Last runs",
        note: "As far as this server saw them; other servers see the results of their own partitions.",
        head: vec![
            Text("Run"),
            Text("Plugin"),
            Number("Results"),
            Number("Failed"),
            Text("Outcomes"),
            Text("First seen"),
            Text("Last seen"),
        ],
        rows: runs.iter().map(row).collect(),
        empty: "No result of a run was seen yet.",
    }
}

fn yes_no(is: bool) -> &'static str {
    if is { "yes" } else { "no" }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a stop, or any one part that is away, makes the server unready, and the answer names it.
    #[test]
    fn readiness_names_what_is_missing() {
        let down = Link::Down {
            reason: "connection refused".to_owned(),
        };
        let up = &Link::Up;
        assert!(readiness([up; 4], true, false).0);
        for (parts, is_topology_well, is_draining) in [
            ([&down, up, up, up], true, false),
            ([up, &Link::Unknown, up, up], true, false),
            ([up, up, &down, up], true, false),
            ([up, up, up, &down], true, false),
            ([up; 4], false, false),
            ([up; 4], true, true),
        ] {
            assert!(!readiness(parts, is_topology_well, is_draining).0);
        }
        let (_, body) = readiness([&down, up, &down, up], true, true);
        assert_eq!(body["dead_letters"]["reason"], "connection refused");
        assert_eq!(body["broker"]["reason"], "connection refused");
        assert_eq!(body["draining"], true);
    }

    /// Goal: no password is among the settings that are shown.
    #[test]
    fn settings_show_no_password() {
        let mut config = Config::default();
        config.broker.dsn = "amqp://joe:hunter2@broker.example:5672/%2f"
            .parse()
            .unwrap();
        config.store.dsn = "couch://joe:hunter2@store.example:5984/fleet"
            .parse()
            .unwrap();
        let shown = format!("{:?}", settings(&config));
        assert!(
            shown.contains("broker.example") && shown.contains("store.example"),
            "{shown}"
        );
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
