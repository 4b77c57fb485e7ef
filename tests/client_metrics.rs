//! What a client tells of itself: a real one on a real RabbitMQ that comes and goes, scraped as Prometheus would.

use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use vogeler::broker::topology::Exchange;
use vogeler::broker::{self, Message, Properties};
use vogeler::config;
use vogeler::telemetry::{Role, catalogue};

use crate::harness::installation::Installation;
use crate::harness::pipeline::in_system;
use crate::harness::process::wait_until;
use crate::harness::proxy::Proxy;
use crate::harness::rabbit::Rabbit;

const PATIENCE: Duration = Duration::from_mins(2);
const NODE: &str = "web01";
const SPOOL_COUNT_MAX: &str = "4";
const DROPPED: &str = "vogeler_client_spool_dropped_total{reason=\"full\"}";
/// The default, 64 MiB.
const SPOOL_BYTES_MAX: f64 = 67_108_864.0;

const PLUGINS: &str = "
[good]
command = echo fine
[broken]
command = sh -c 'exit 3'
[slow]
command = sleep 60
timeout = 1s
[often]
command = date +%s%N
every = 1s
";

/// A set-up whose HTTP side is the client's, and the way to its broker.
fn installation(folder: &tempfile::TempDir) -> (Installation, Proxy) {
    let mut dsn = Rabbit::shared().fresh_vhost();
    let proxy = Proxy::tcp(dsn.port().unwrap());
    dsn.set_port(Some(proxy.port())).unwrap();
    let store = format!("sqlite:{}", folder.path().join("store").display());
    let mut v = Installation::new(dsn.as_str(), &store);
    v.plugin_file("test.cfg", PLUGINS);
    let address = v.http_address();
    v.set("VOGELER_CLIENT_HTTP_LISTEN", &address);
    v.set("VOGELER_CLIENT_SPOOL_COUNT_MAX", SPOOL_COUNT_MAX);
    (v, proxy)
}

/// Waits until a series has a value that will do.
fn becomes(v: &Installation, series: &str, will_do: impl Fn(f64) -> bool) {
    let arrived = wait_until(PATIENCE, || v.metric(series).is_some_and(&will_do));
    assert!(arrived, "{series} is {:?}", v.metric(series));
}

fn at_least(v: &Installation, series: &str, least: f64) {
    becomes(v, series, |value| value >= least);
}

fn is(v: &Installation, series: &str, expected: f64) {
    becomes(v, series, |value| (value - expected).abs() < 0.01);
}

fn readiness(v: &Installation) -> Option<(u16, Value)> {
    let (status, body) = v.get("/readyz")?;
    Some((status, serde_json::from_str(&body).unwrap()))
}

/// Waits until the client is ready, or is not, with `part` saying `ok` likewise.
fn ready(v: &Installation, part: &str, ok: bool) -> Value {
    let mut body = Value::Null;
    let expected = if ok { 200 } else { 503 };
    let arrived = wait_until(PATIENCE, || {
        let (status, said) = readiness(v).unwrap_or((0, Value::Null));
        body = said;
        status == expected && body[part]["ok"] == ok
    });
    assert!(arrived, "{part} is not {ok}: {body}");
    body
}

/// Sends commands to the node as they are, whatever they are.
fn command(v: &Installation, bodies: &[&'static str]) {
    in_system(async {
        let broker = broker::open(&config::Broker {
            dsn: v.broker().parse().unwrap(),
            ..config::Broker::default()
        });
        for body in bodies {
            let message = Message {
                exchange: Exchange::Commands,
                routing_key: NODE.to_owned(),
                body: Bytes::from_static(body.as_bytes()),
                properties: Properties::default(),
                persistent: true,
                mandatory: true,
            };
            broker.publish(message).await.unwrap();
        }
        broker.close().await;
    });
}

fn of_command(outcome: &str) -> String {
    format!("vogeler_client_commands_total{{outcome=\"{outcome}\"}}")
}

fn of_run(plugin: &str, outcome: &str) -> String {
    format!("vogeler_client_plugin_runs_total{{plugin=\"{plugin}\",outcome=\"{outcome}\"}}")
}

fn of_publish(outcome: &str) -> String {
    format!("vogeler_client_published_total{{outcome=\"{outcome}\"}}")
}

/// Before anybody set up the queues a result is returned and waits; afterwards it is published.
fn it_publishes_once_there_is_a_queue(v: &Installation) {
    at_least(v, &of_publish("returned"), 1.0);
    at_least(v, "vogeler_client_spool_messages", 1.0);
    v.vogeler(&["admin", "setup"]).ok();
    at_least(v, &of_publish("confirmed"), 1.0);
    at_least(v, "vogeler_client_publish_seconds_count", 1.0);
    at_least(v, "vogeler_client_last_publish_timestamp_seconds", 1e9);
    is(v, "vogeler_up{part=\"broker\"}", 1.0);
    let body = ready(v, "last_publish", true);
    assert!(body["last_publish"]["at"].is_string(), "{body}");
}

/// Every way in which a command can end moves its own series, and no other.
fn commands_are_counted(v: &Installation) {
    command(
        v,
        &[
            r#""good""#,
            r#"{"v":2,"plugin":"broken"}"#,
            r#"{"v":2,"plugin":"slow"}"#,
            r#""unheard-of""#,
            r#"{"v":2,"plugin":"good","deadline":"2020-01-01T00:00:00Z"}"#,
            r#"{"v":2,"plugin":"good","filter":{}}"#,
            "no command",
        ],
    );
    for (outcome, count) in [
        ("ran", 3.0),
        ("unknown_plugin", 1.0),
        ("expired", 1.0),
        ("refused", 1.0),
        ("invalid", 1.0),
        ("requeued", 0.0),
    ] {
        is(v, &of_command(outcome), count);
    }
    is(v, &of_run("good", "ok"), 1.0);
    is(v, &of_run("broken", "exit_status"), 1.0);
    is(v, &of_run("slow", "timeout"), 1.0);
    let took = "vogeler_client_plugin_seconds";
    is(v, &format!("{took}_count{{plugin=\"slow\"}}"), 1.0);
    at_least(v, &format!("{took}_sum{{plugin=\"slow\"}}"), 1.0);
    at_least(v, &of_run("often", "ok"), 1.0);
}

/// While the broker is away results wait, the oldest go when there is no more room, and the probe says so; when it is
/// back all that waits is published.
fn the_spool_fills_and_drains(v: &Installation, proxy: &Proxy) {
    is(v, "vogeler_client_spool_bytes_limit", SPOOL_BYTES_MAX);
    let most = SPOOL_COUNT_MAX.parse().unwrap();
    is(v, "vogeler_client_spool_messages_limit", most);
    let dropped = v.metric(DROPPED).unwrap();
    proxy.refuse(true);
    is(v, "vogeler_up{part=\"broker\"}", 0.0);
    at_least(v, &of_publish("failed"), 1.0);
    at_least(v, DROPPED, dropped + 1.0);
    is(v, "vogeler_client_spool_messages", most);
    at_least(v, "vogeler_client_spool_bytes", 400.0);
    let body = ready(v, "spool", false);
    assert_eq!(body["broker"]["ok"], false, "{body}");
    assert_eq!(v.get("/livez").map(|(status, _)| status), Some(200));

    proxy.refuse(false);
    at_least(v, "vogeler_reconnects_total{part=\"broker\"}", 1.0);
    is(v, "vogeler_client_spool_messages", 0.0);
    ready(v, "spool", true);
}

/// Goal: the client's part of the catalogue is exported, all of it, as what it is declared, and moves as it says; the
/// probes name what is wrong, and the client is alive all the time.
#[test]
fn a_client_tells_how_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (v, proxy) = installation(&folder);
    let client = v.client(NODE, "web");
    it_publishes_once_there_is_a_queue(&v);
    commands_are_counted(&v);
    the_spool_fills_and_drains(&v, &proxy);

    let (_, exported) = v.get("/metrics").unwrap();
    for metric in catalogue::ALL {
        let (entry, kind) = (metric.entry(), metric.kind().as_str());
        let line = format!("# TYPE {} {kind}\n", entry.name);
        let is_expected = Role::Client.exports(entry.role);
        assert_eq!(exported.contains(&line), is_expected, "{line}{exported}");
    }
    assert!(client.stop().success());
}

/// Goal: a client of which nobody asked it opens no port.
#[test]
fn no_port_is_opened_unasked() {
    let v = Installation::new(Rabbit::shared().fresh_vhost().as_str(), "memory:");
    v.plugin_file("test.cfg", PLUGINS);
    let client = v.client(NODE, "web");
    assert!(!client.log().contains("metrics and probes"));
}
