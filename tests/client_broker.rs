//! A client and its broker, both real: two clients of one name, groups that were left, credentials that are refused,
//! results that are too large.

use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use vogeler::broker::topology::Exchange;
use vogeler::broker::{self, BrokerError, Message, Properties};
use vogeler::config;

use crate::harness::installation::{Installation, Running};
use crate::harness::pipeline::in_system;
use crate::harness::process::wait_until;
use crate::harness::rabbit::{PASSWORD, Rabbit, USER};

const PATIENCE: Duration = Duration::from_mins(3);
const NODE: &str = "web01";
const PLUGINS: &str = "
[small]
command = echo fine
[big]
command = sh -c 'head -c 200000 /dev/urandom | base64'
result_format = raw
";

/// A set-up whose HTTP side is a client's.
fn installation(broker: &str, name: &str) -> Installation {
    let mut v = Installation::new(broker, "memory:");
    v.plugin_file("test.cfg", PLUGINS);
    let address = v.http_address();
    v.set("VOGELER_CLIENT_HTTP_LISTEN", &address);
    v.set("VOGELER_CLIENT_NODE", name);
    v.set("VOGELER_CLIENT_STATE", &v.path("state"));
    v
}

fn until(what: &str, is_so: impl FnMut() -> bool) {
    assert!(wait_until(PATIENCE, is_so), "waited in vain until {what}");
}

fn readiness(v: &Installation) -> (u16, Value) {
    let (status, body) = v.get("/readyz").unwrap_or_default();
    (status, serde_json::from_str(&body).unwrap_or_default())
}

fn until_ready(v: &Installation, running: &Running) {
    let is_ready = wait_until(PATIENCE, || readiness(v).0 == 200);
    assert!(is_ready, "{:?}\n{}", readiness(v), running.log());
}

/// Publishes a command for the plugin `small`.
fn ask(broker: &str, routing_key: &str) -> Result<(), BrokerError> {
    let dsn = broker.parse().unwrap();
    let message = Message {
        exchange: Exchange::Commands,
        routing_key: routing_key.to_owned(),
        body: Bytes::from_static(b"\"small\""),
        properties: Properties::default(),
        persistent: true,
        mandatory: true,
    };
    let mut asked = Ok(());
    let sent = &mut asked;
    in_system(async move {
        let broker = broker::open(&config::Broker {
            dsn,
            ..config::Broker::default()
        });
        *sent = broker.publish(message).await;
        broker.close().await;
    });
    asked
}

fn of_command(outcome: &str) -> String {
    format!("vogeler_client_commands_total{{outcome=\"{outcome}\"}}")
}

fn confirmed(v: &Installation) -> f64 {
    let series = "vogeler_client_published_total{outcome=\"confirmed\"}";
    v.metric(series).unwrap_or(-1.0)
}

/// Goal: the second client of a name hears and publishes nothing, says once what to do, is not ready, and takes over
/// when the first is gone.
#[test]
fn the_second_client_of_a_name_waits() {
    let dsn = Rabbit::shared().fresh_vhost();
    let (first, second) = (
        installation(dsn.as_str(), NODE),
        installation(dsn.as_str(), NODE),
    );
    first.vogeler(&["admin", "setup"]);
    let one = first.start_vogeler(&["client"]);
    until_ready(&first, &one);
    let mut two = second.start_vogeler(&["client"]);
    until("the second one says why it is not ready", || {
        let (status, body) = readiness(&second);
        let reason = body["commands"]["reason"].as_str().unwrap_or_default();
        status == 503 && reason.contains("client.node") && body["broker"]["ok"] == true
    });
    for _ in 0..4 {
        ask(dsn.as_str(), NODE).unwrap();
    }
    until("the first one has them all", || {
        first.metric(&of_command("ran")) == Some(4.0)
    });
    assert_eq!(second.metric(&of_command("ran")), Some(0.0));
    assert!(confirmed(&second) < 1.0, "two clients publish for one node");
    assert_eq!(second.metric("vogeler_client_listening"), Some(0.0));
    assert!(two.is_running());

    one.kill();
    until_ready(&second, &two);
    let said = two.log().matches("commands are not heard").count();
    assert_eq!(said, 1, "{}", two.log());
    ask(dsn.as_str(), NODE).unwrap();
    until("the second one has it", || {
        second.metric(&of_command("ran")) == Some(1.0) && confirmed(&second) >= 2.0
    });
    assert_eq!(second.metric("vogeler_client_listening"), Some(1.0));
}

/// Goal: commands of a group that a client left go nowhere. If it forgot that it was in it, they are not run, and the
/// second one goes nowhere.
#[test]
fn a_client_that_left_a_group_does_not_hear_it() {
    let dsn = Rabbit::shared().fresh_vhost();
    let mut v = installation(dsn.as_str(), NODE);
    let is_heard = |key: &str| match ask(dsn.as_str(), key) {
        Ok(()) => true,
        Err(BrokerError::Unroutable { .. }) => false,
        Err(error) => panic!("{error}"),
    };
    let start = |v: &Installation| {
        let client = v.start_vogeler(&["client"]);
        until_ready(v, &client);
        client
    };
    v.vogeler(&["admin", "setup"]);
    v.set("VOGELER_CLIENT_GROUPS", "a,b");
    let client = start(&v);
    assert!(is_heard("groups.a") && is_heard("groups.b"));
    until("both run", || v.metric(&of_command("ran")) == Some(2.0));
    assert!(client.stop().success());

    v.set("VOGELER_CLIENT_GROUPS", "a");
    let client = start(&v);
    assert!(!is_heard("groups.b"), "the group that was left is bound");
    assert!(is_heard("groups.a"));
    assert!(client.stop().success());

    std::fs::remove_file(v.path("state") + "/bindings.json").unwrap();
    v.set("VOGELER_CLIENT_GROUPS", "c");
    let client = start(&v);
    assert!(is_heard("groups.a"), "nobody could know that it was left");
    until("it is refused, and unbound", || {
        v.metric(&of_command("not_meant")) >= Some(1.0) && !is_heard("groups.a")
    });
    assert!(is_heard("groups.c") && is_heard(NODE));
    until("its own commands run", || {
        v.metric(&of_command("ran")) == Some(2.0)
    });
    assert!(client.stop().success());
}

/// The longest pause between two logins, and for how long logins are counted.
const REFUSED_PAUSE_MAX: &str = "20s";
const COUNTED: Duration = Duration::from_secs(20);
/// Pauses of 0.3, 0.6, 1.2, 2.5, 5, 10 s, each at least half, and two connections at first.
const LOGINS_MAX: usize = 2 * (7 + 2);

/// Goal: server and client outlive refused credentials, at the start and later: they stay, log in rarely, say once what
/// is wrong, are not ready, and recover by themselves.
#[test]
fn refused_credentials_are_waited_for() {
    let rabbit = Rabbit::private();
    let dsn = rabbit.fresh_vhost();
    let mut client = installation(dsn.as_str(), NODE);
    let mut server = Installation::new(dsn.as_str(), "memory:");
    for v in [&mut client, &mut server] {
        v.set("VOGELER_BROKER_REFUSED_PAUSE_MAX", REFUSED_PAUSE_MAX);
    }
    let refused = || rabbit.log().matches("login refused").count();
    rabbit.ctl(&["change_password", USER, "another"]);
    let mut running = [client.start_vogeler(&["client"]), server.unready_server()];
    for round in 0..2 {
        for v in [&client, &server] {
            until("it says that it is refused", || {
                let (status, body) = readiness(v);
                let reason = body["broker"]["reason"].as_str().unwrap_or_default();
                status == 503 && reason.contains("ACCESS_REFUSED")
            });
        }
        let before = refused();
        wait_until(COUNTED, || false);
        let logins = refused() - before;
        assert!(logins <= LOGINS_MAX, "{logins} logins in {COUNTED:?}");
        rabbit.ctl(&["change_password", USER, PASSWORD]);
        for (v, running) in [&client, &server].into_iter().zip(&mut running) {
            assert!(running.is_running(), "{}", running.log());
            until_ready(v, running);
            let said = running.log().matches("refuses the login").count();
            assert_eq!(said, round + 1, "{}", running.log());
            let counted = v.metric("vogeler_broker_logins_refused_total");
            assert!(counted >= Some(1.0), "{counted:?}");
        }
        if round == 0 {
            rabbit.ctl(&["change_password", USER, "another"]);
            rabbit.close_all_connections();
        }
    }
}

/// Goal: a result that the broker will never take ends its run as failed, and holds up nothing behind it.
#[test]
fn a_result_too_large_for_the_broker_is_an_error() {
    let rabbit = Rabbit::taking_at_most(65_536);
    let dsn = rabbit.fresh_vhost();
    let v = installation(dsn.as_str(), NODE);
    let server = Installation::new(dsn.as_str(), &format!("sqlite:{}/store.db", v.path("")));
    server.vogeler(&["admin", "setup"]).ok();
    let _server = server.server();
    let client = v.start_vogeler(&["client"]);
    until_ready(&v, &client);
    let run = |plugin: &str| server.vogeler(&["run", plugin, "-n", NODE, "--timeout", "60s"]);
    let big = run("big");
    assert_ne!(big.code, 0);
    assert!(
        big.stdout.contains("max_message_size of 65536 bytes"),
        "{big:?}\n{}",
        client.log()
    );
    run("small").ok();
    let too_large = v.metric("vogeler_client_published_total{outcome=\"too_large\"}");
    assert_eq!(too_large, Some(1.0));
    assert_eq!(v.metric("vogeler_client_spool_messages"), Some(0.0));
    assert!(client.stop().success());
    let spool = std::fs::read_dir(v.path("state/spool")).unwrap();
    let large = spool.filter(|file| {
        let path = file.as_ref().unwrap().path();
        path.extension().is_some_and(|suffix| suffix == "large")
    });
    assert_eq!(large.count(), 1);
}
