//! The whole system as an operator runs it: the real binary on a real RabbitMQ and a CouchDB-protocol server.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use vogeler::broker::topology::Exchange;
use vogeler::broker::{self, Message, Properties};
use vogeler::config;

use crate::harness::installation::Installation;
use crate::harness::load::Load;
use crate::harness::pipeline::{eventually, in_system};
use crate::harness::pouch;
use crate::harness::process::wait_until;
use crate::harness::rabbit::Rabbit;

const PATIENCE: Duration = Duration::from_mins(1);

const PLUGINS: &str = "
[facts]
command = facter -j
result_format = json
success = 0 1

[facts-yaml]
command = facter -y
result_format = yaml
success = 0 1

[rpms]
command = printf 'bash-5.1.8-6.el9\\nopenssl-3.0.7-1.el9\\n'
result_format = output

[broken]
command = sh -c 'echo no such thing >&2; exit 3'
result_format = output
";

fn installation() -> Installation {
    let installation =
        Installation::new(Rabbit::shared().fresh_vhost().as_str(), &pouch::fresh_dsn());
    installation.plugin_file("test.cfg", PLUGINS);
    installation
}

/// What this machine's own facter says is its family.
fn family() -> Value {
    let output = Command::new("facter").args(["-j", "os"]).output().unwrap();
    let facts: Value = serde_json::from_slice(&output.stdout).unwrap();
    facts["os"]["family"].clone()
}

fn names(report: &Value, category: &str) -> Vec<String> {
    let nodes = report["nodes"][category].as_array().unwrap();
    nodes
        .iter()
        .map(|node| node["node"].as_str().unwrap().to_owned())
        .collect()
}

/// Goal: the steps of docs/INSTALL.md work in their order, on real facts, and every question has its answer.
#[test]
fn the_readme_step_by_step() {
    let v = installation();
    let before = v.vogeler(&["admin", "status"]);
    assert_eq!(before.code, 1, "nothing is set up: {before:?}");
    let first = v.vogeler(&["admin", "setup"]).ok().stdout;
    assert!(first.contains("created database"), "{first}");
    v.vogeler(&["admin", "setup"]).ok();

    let server = v.server();
    let web01 = v.client("web01.example.com", "web");
    let _db01 = v.client("db01.example.com", "db");
    assert!(
        wait_until(PATIENCE, || v
            .vogeler(&["node", "list"])
            .stdout
            .contains("db01.example.com")),
        "{}",
        server.log()
    );

    let report = v
        .vogeler(&["run", "facts", "-n", "all", "--json"])
        .ok()
        .json();
    assert_eq!(
        names(&report, "answered"),
        ["db01.example.com", "web01.example.com"]
    );
    let classic = v
        .linked("vogeler-runner", &["-c", "rpms", "-n", "all"])
        .ok();
    assert!(classic.stdout.contains("2 of 2 answered"), "{classic:?}");
    v.vogeler(&["run", "facts-yaml", "-n", "web01.example.com"])
        .ok();
    let group = v
        .vogeler(&["run", "rpms", "-n", "@web", "--json"])
        .ok()
        .json();
    assert_eq!(names(&group, "answered"), ["web01.example.com"]);

    for pointer in ["/facts/os/family", "/facts-yaml/os/family"] {
        let shown = v
            .vogeler(&["node", "show", "web01.example.com", pointer])
            .ok();
        assert_eq!(shown.json(), family(), "{pointer}");
    }
    let listed = v.vogeler(&["node", "list", "--json"]).ok().json();
    assert_eq!(listed.as_array().map(Vec::len), Some(2), "{listed}");
    let wanted = format!("/facts/os/family={}", family().as_str().unwrap());
    for question in [
        &["find", "--plugin", "rpms", "--contains", "openssl"][..],
        &["find", "--where", &wanted],
        &["find", "--package", "bash"],
    ] {
        let found = v.vogeler(question).ok().stdout;
        assert!(found.contains("web01.example.com"), "{question:?}: {found}");
    }
    assert_eq!(v.vogeler(&["find", "--package", "bas"]).code, 1);

    let status = v.vogeler(&["admin", "status", "--json"]).ok().json();
    assert_eq!(status["store"]["documents"], 2, "{status}");
    drop(web01);
    assert_eq!(server.stop().code(), Some(0));
}

/// Goal: a run names who failed, refused and stayed silent, with the reason, and its exit code says so.
#[test]
fn a_run_names_names() {
    let v = installation();
    v.vogeler(&["admin", "setup"]).ok();
    let _server = v.server();
    let web01 = v.client("web01.example.com", "");
    let web02 = v.client("web02.example.com", "");
    assert!(wait_until(PATIENCE, || v
        .vogeler(&["node", "list"])
        .stdout
        .contains("web02.example.com")));
    v.vogeler(&["run", "rpms", "-n", "all"]).ok();

    let refused = v.vogeler(&["run", "nonesuch", "-n", "web01.example.com", "--json"]);
    assert_eq!(refused.code, 1);
    let refused = refused.json();
    assert_eq!(names(&refused, "refused"), ["web01.example.com"]);
    assert!(
        refused.to_string().contains("rpms"),
        "it says what there is: {refused}"
    );

    let failed = v.vogeler(&["run", "broken", "-n", "all", "--json"]);
    assert_eq!(failed.code, 1);
    let failed = failed.json();
    assert_eq!(
        names(&failed, "failed"),
        ["web01.example.com", "web02.example.com"]
    );
    assert!(
        failed["nodes"]["failed"][0].to_string().contains('3'),
        "{failed}"
    );
    let shown = v
        .vogeler(&[
            "node",
            "show",
            "web01.example.com",
            "/vogeler/plugins/broken/last_error",
        ])
        .ok();
    assert!(
        shown.stdout.contains("no such thing"),
        "the end of stderr travels: {shown:?}"
    );

    assert!(web02.stop().success());
    let silent = v.vogeler(&["run", "rpms", "-n", "all", "--timeout", "2s"]);
    assert_eq!(silent.code, 1);
    assert!(
        silent.stdout.contains("silent (1): web02.example.com"),
        "{}",
        silent.stdout
    );
    let unknown = v.vogeler(&["run", "rpms", "-n", "web09.example.com", "--timeout", "2s"]);
    assert_eq!(unknown.code, 1);
    assert!(
        unknown.stdout.contains("web09.example.com"),
        "{}",
        unknown.stdout
    );
    drop(web01);
}

/// Goal: a runner and a client of 2010 are understood: the bare command, the empty routing key, text values, errors.
#[test]
fn peers_of_2010_are_understood() {
    let v = installation();
    v.vogeler(&["admin", "setup"]).ok();
    let _server = v.server();
    let _client = v.client("new.example.com", "");
    let broker_config = config::Broker {
        dsn: v.broker().parse().unwrap(),
        ..config::Broker::default()
    };
    in_system(async {
        let broker = broker::open(&broker_config);
        let publish = async |exchange, routing_key: &str, body: &'static str| {
            let message = Message {
                exchange,
                routing_key: routing_key.to_owned(),
                body: body.into(),
                properties: Properties::default(),
                persistent: false,
                mandatory: true,
            };
            broker.publish(message).await.unwrap();
        };
        publish(Exchange::Commands, "broadcasts.*", "\"rpms\"").await;
        publish(
            Exchange::Results,
            "",
            r#"{"syskey": "old.example.com", "rpm": "bash-3.2\nzsh-4.3\n", "format": "output"}"#,
        )
        .await;
        publish(
            Exchange::Results,
            "",
            r#"{"syskey": "old.example.com", "ohai": "{\"os\": \"linux\"}", "format": "json"}"#,
        )
        .await;
        publish(Exchange::Results, "", r#"{"syskey": "old.example.com", "last_error": {"timestamp": "2010-10-04", "message": "Plugin x is not authorized"}, "format": "pydict"}"#).await;
        let shown = |node: &str, pointer: &str| {
            let answer = v.vogeler(&["node", "show", node, pointer]);
            (answer.code == 0).then(|| answer.json())
        };
        eventually("the new client answered the old command", async || {
            shown("new.example.com", "/rpms/0")
        })
        .await;
        let rpm = eventually("the old result is there", async || {
            shown("old.example.com", "/rpm")
        })
        .await;
        assert_eq!(rpm, json!(["bash-3.2", "zsh-4.3"]));
        let os = eventually("so is the other", async || {
            shown("old.example.com", "/ohai/os")
        })
        .await;
        assert_eq!(os, "linux");
        let error = eventually("and its error", async || {
            shown("old.example.com", "/last_error/message")
        })
        .await;
        assert_eq!(error, "Plugin x is not authorized");
        broker.close().await;
    });
}

/// Goal: killed with -9 twice in the middle of a load, the server loses nothing and takes nothing back.
#[test]
fn kill_9_of_the_server_loses_nothing() {
    let v = installation();
    v.vogeler(&["admin", "setup"]).ok();
    let mut server = v.server();
    let load = Load::start(&v, 300, 8);
    for stored in [100.0, 50.0] {
        let is_busy = wait_until(PATIENCE, || {
            v.metric("vogeler_results_total{outcome=\"stored\"}")
                .unwrap_or(0.0)
                >= stored
        });
        assert!(is_busy, "{}", server.log());
        server.kill();
        server = v.server();
    }
    assert_eq!(load.lost(), [], "{}", server.log());
    assert_eq!(server.stop().code(), Some(0));
}

/// Goal: SIGTERM under load drains and ends with exit code 0; the rest of the load finds the next server.
#[test]
fn sigterm_under_load_loses_nothing() {
    let v = installation();
    v.vogeler(&["admin", "setup"]).ok();
    let server = v.server();
    let load = Load::start(&v, 200, 5);
    assert!(wait_until(PATIENCE, || v
        .metric("vogeler_results_total{outcome=\"stored\"}")
        .unwrap_or(0.0)
        >= 50.0));
    assert_eq!(server.stop().code(), Some(0));
    let server = v.server();
    assert_eq!(load.lost(), [], "{}", server.log());
}

/// Goal: without its database the server stays alive, is not ready and says why; `admin setup` mends it, no restart.
#[test]
fn a_missing_database_is_waited_for() {
    let v = installation();
    let mut server = v.unready_server();
    let is_unready = wait_until(PATIENCE, || {
        v.get("/readyz")
            .is_some_and(|(status, body)| status == 503 && body.contains("vogeler admin setup"))
    });
    assert!(is_unready, "{}", server.log());
    assert_eq!(v.get("/livez").map(|(status, _)| status), Some(200));
    let load = Load::start(&v, 5, 1);
    v.vogeler(&["admin", "setup"]).ok();
    assert_eq!(load.lost(), [], "{}", server.log());
    assert!(wait_until(PATIENCE, || v
        .get("/readyz")
        .is_some_and(|(status, _)| status == 200)));
    assert!(server.is_running());
    let (_, metrics) = v.get("/metrics").unwrap();
    assert!(
        !metrics.contains(" summary"),
        "histograms have buckets: {metrics}"
    );
}
