//! The load tester as an operator runs it: its exit code, and what the report says.

use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::installation::Installation;
use crate::harness::pouch;
use crate::harness::process::{Service, wait_until};
use crate::harness::rabbit::Rabbit;

const PROGRAM: &str = env!("CARGO_BIN_EXE_vogeler-loadtest");

/// A few seconds of load that debug binaries on a slow machine bear.
const SHORT: &str = r#"
name = "short"
description = "A few seconds."
seed = 5
nodes = 20
connections = { shared = 2 }
poison_rate = 0.01
duplicate_rate = 0.05
length = { rate = 40, duration = "8s" }
plugins = [{ name = "facter", kind = "facts" }, { name = "processes", kind = "processes" }]
"#;

/// What a debug build is held to beside other tests on a slow machine: that it ends, and that all is right. How fast it
/// is, release runs on a quiet machine tell.
const OF_CI: [&str; 6] = [
    "--bound",
    "p99_tester_lag=60s",
    "--bound",
    "tester_cpu_max=1",
    "--bound",
    "p99_published_to_stored=60s",
];
/// A run that takes longer hangs.
const PATIENCE: Duration = Duration::from_mins(6);

/// What a run left.
struct Ran {
    code: Option<i32>,
    text: String,
    folder: tempfile::TempDir,
}

impl Ran {
    fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(name))
            .unwrap_or_else(|error| panic!("{name}: {error}: {}", self.text))
    }

    fn report(&self) -> Value {
        serde_json::from_str(&self.file("report.json")).unwrap()
    }
}

fn command(plan: &str, arguments: &[&str], folder: &Path) -> Command {
    let mut command = Command::new(PROGRAM);
    command
        .arg(plan)
        .args(OF_CI)
        .args(arguments)
        .arg("--report")
        .arg(folder)
        .env_remove("VOGELER_LOADTEST_COUCH");
    command
}

fn run(plan: &str, arguments: &[&str]) -> Ran {
    run_into(tempfile::tempdir().unwrap(), plan, arguments)
}

/// A run whose report goes into `folder`.
fn run_into(folder: tempfile::TempDir, plan: &str, arguments: &[&str]) -> Ran {
    let printed = tempfile::tempdir().unwrap();
    let [out, err] = ["out", "err"].map(|name| printed.path().join(name));
    let mut command = command(plan, arguments, folder.path());
    command
        .stdout(File::create(&out).unwrap())
        .stderr(File::create(&err).unwrap());
    let mut service = Service::start(&mut command, printed.path()).unwrap();
    let is_over = wait_until(PATIENCE, || !service.is_running());
    let text = [out, err].map(|path| std::fs::read_to_string(path).unwrap());
    assert!(is_over, "{plan} hangs: {text:?}");
    Ran {
        code: service.code(),
        text: text.concat(),
        folder,
    }
}

fn plan_file(folder: &Path, text: &str) -> String {
    let path = folder.join("plan.toml");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// The value at a JSON pointer as a number.
fn number(report: &Value, pointer: &str) -> f64 {
    let value = report.pointer(pointer).and_then(Value::as_f64);
    value.unwrap_or_else(|| panic!("no {pointer} in {report}"))
}

/// Goal: `smoke` passes, and its report has what it promises, in all forms.
#[test]
fn smoke_passes() {
    let ran = run("smoke", &[]);
    assert_eq!(ran.code, Some(0), "{}", ran.text);
    assert!(
        ran.text.contains("PASSED: all bounds hold."),
        "{}",
        ran.text
    );
    let report = ran.report();
    assert_eq!(report["passed"], true);
    assert_eq!(report["plan"]["seed"], 1);
    for pointer in [
        "/verdict/checked",
        "/rates/settled",
        "/rates/dedup",
        "/rates/writes_per_result",
        "/latencies/publish_to_confirmed/p99",
        "/latencies/published_to_stored/p99",
        "/latencies/tester_lag/p99",
    ] {
        assert!(number(&report, pointer) > 0.0, "{pointer}: {report}");
    }
    assert_eq!(report["totals"]["received"], report["totals"]["confirmed"]);
    assert_eq!(report["totals"]["is_complete"], true);
    // Nobody need wonder what it does, on a pipe either.
    for phase in [
        "starting the services",
        "lost so far 0",
        "verifying",
        "stopping",
    ] {
        assert!(ran.text.contains(phase), "{phase}: {}", ran.text);
    }
    let who: Vec<&str> = report["resources"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["who"].as_str().unwrap())
        .collect();
    assert_eq!(who, ["tester", "server", "broker", "store"]);
    for (index, who) in who.iter().enumerate() {
        assert!(
            number(&report, &format!("/resources/{index}/cpu_seconds")) > 0.0,
            "{who}"
        );
        assert!(
            number(&report, &format!("/resources/{index}/rss_mb_peak")) > 1.0,
            "{who}"
        );
    }
    assert_eq!(report["runners"].as_array().unwrap().len(), 2);
    assert!(
        report["timeline"].as_array().unwrap().len() >= 10,
        "{report}"
    );
    assert!(
        ran.file("report.md")
            .contains("| stored, and its receipt here |")
    );
    for plot in ["rate.svg", "lag.svg", "depth.svg", "cpu.svg"] {
        assert!(ran.file(plot).contains("<polyline"), "{plot}");
    }
}

/// Goal: a server that is killed with -9 under load is started again, recovers, and nothing is lost.
#[test]
fn a_killed_server_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan_file(
        folder.path(),
        &format!("{SHORT}[bounds]\nrecovery = \"60s\"\n"),
    );
    let ran = run(&plan, &["--fault", "kill_server@3s+1s"]);
    assert_eq!(ran.code, Some(0), "{}", ran.text);
    let report = ran.report();
    assert_eq!(report["faults"][0]["kind"], "kill_server");
    assert_eq!(report["plan"]["faults"][0]["kind"], "kill_server");
    assert_eq!(report["totals"]["server_restarts"], 1);
    assert_eq!(report["totals"]["is_complete"], false);
    for part in ["kill_server begins", "kill_server is over", "at least"] {
        assert!(ran.text.contains(part), "{part}: {}", ran.text);
    }
    assert!(number(&report, "/faults/0/recovery") < 60.0, "{report}");
    let starts = ran
        .file("server.log")
        .matches("vogeler::server: starting")
        .count();
    assert_eq!(starts, 2, "{}", ran.file("server.log"));
}

/// Goal: on services that are given nothing but the server is started, a missed bound is exit code 1 and is named,
/// and an earlier report is compared with.
#[test]
fn a_missed_bound_fails_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan_file(folder.path(), &format!("{SHORT}[bounds]\nrate_min = 1e6\n"));
    let broker = Rabbit::shared().fresh_vhost();
    let first = run(
        &plan,
        &["--broker", broker.as_str(), "--store", &pouch::fresh_dsn()],
    );
    assert_eq!(first.code, Some(1), "{}", first.text);
    assert!(first.text.contains("FAILED: 1 of"), "{}", first.text);
    let report = first.report();
    let missed = report["bounds"]
        .as_array()
        .unwrap()
        .iter()
        .find(|bound| bound["holds"] == false);
    assert_eq!(missed.unwrap()["what"], "settled a second", "{report}");

    let broker = Rabbit::shared().fresh_vhost();
    let old = first.folder.path().join("report.json");
    let arguments = [
        "--broker",
        broker.as_str(),
        "--store",
        &pouch::fresh_dsn(),
        "--compare",
        old.to_str().unwrap(),
        "--seed",
        "6",
    ];
    let second = run(&plan, &arguments);
    assert!(second.text.contains("new : old"), "{}", second.text);
    assert!(
        second
            .text
            .contains("The seeds of the two runs differ: 5; 6."),
        "{}",
        second.text
    );
    assert_ne!(second.report()["fingerprint"], report["fingerprint"]);
}

/// Goal: what cannot be run is exit code 2 and says what is wrong, where, and what to do; nothing is started.
#[test]
fn a_broken_plan_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let misspelt = plan_file(folder.path(), &SHORT.replace("poison_rate", "poison_rat"));
    let cases: [(&str, &[&str], &str); 4] = [
        (&misspelt, &[], "unknown field `poison_rat`"),
        ("no-such-plan", &[], "bundled plans: smoke"),
        (
            "smoke",
            &[
                "--fault",
                "kill_broker@1s+1s",
                "--broker",
                "amqp://127.0.0.1:1/x",
            ],
            "did not start",
        ),
        (
            "smoke",
            &["--compare", "/nonexistent.json"],
            "--compare /nonexistent.json",
        ),
    ];
    for (plan, arguments, why) in cases {
        let ran = run(plan, arguments);
        assert_eq!(ran.code, Some(2), "{}", ran.text);
        assert!(ran.text.contains(why), "{}", ran.text);
        assert_eq!(std::fs::read_dir(ran.folder.path()).unwrap().count(), 0);
    }
}

/// Goal: services that are not there are named within seconds, with what was meant and why it is not there; nothing is
/// started, and the report of an earlier run is gone.
#[test]
fn dead_services_are_named_at_once() {
    let (broker, store) = ("amqp://127.0.0.1:1/x", "couch://127.0.0.1:1/x");
    let pouch = pouch::url().to_string();
    let no_server = format!("{pouch}metrics");
    let mut wrong = pouch::url();
    wrong.set_password(Some("wrong")).unwrap();
    let given = ["--broker", broker, "--store", store, "--metrics"];
    let metrics = |url| [&given[..], &[url]].concat();
    let cases: [(&[&str], &[&str]); 5] = [
        (
            &metrics("http://127.0.0.1:1/metrics"),
            &["--metrics", "Connection refused"],
        ),
        (&metrics(&no_server), &["--metrics", "404"]),
        (&given[..4], &["127.0.0.1:1", "Connection refused"]),
        (
            &["--couch", wrong.as_str()],
            &["--couch", "401", "password"],
        ),
        (
            &["--couch", "127.0.0.1:5984"],
            &["--couch", "wants http://"],
        ),
    ];
    for (arguments, why) in cases {
        let folder = tempfile::tempdir().unwrap();
        let report = folder.path().join("report.json");
        std::fs::write(&report, r#"{"passed":true}"#).unwrap();
        let ran = run_into(folder, "smoke", arguments);
        assert_eq!(ran.code, Some(2), "{}", ran.text);
        assert!(why.iter().all(|why| ran.text.contains(why)), "{}", ran.text);
        // A password is never printed.
        assert!(!ran.text.contains("cret%40"), "{}", ran.text);
        assert!(!report.exists(), "{}", ran.text);
    }
    let output = command("smoke", &[], Path::new("/proc/nowhere")).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("--report wants a folder"), "{text}");
}

/// Goal: a server that is given is loaded as it is, with the partitions and the type of queues that it has, and neither stopped nor changed;
/// what an earlier run left, or a server that nobody named, is refused.
#[test]
fn a_given_server_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan_file(folder.path(), SHORT);
    let (broker, store) = (Rabbit::shared().fresh_vhost(), pouch::fresh_dsn());
    let mut installation = Installation::new(broker.as_str(), &store);
    installation.set("VOGELER_BROKER_PARTITIONS", "3");
    installation.set("VOGELER_BROKER_QUEUE_TYPE", "classic");
    installation.vogeler(&["admin", "setup"]).ok();
    let mut server = installation.server();
    let metrics = format!("http://{}/metrics", installation.http_address());
    let vhost = broker.path().trim_start_matches('/');
    let bindings = || {
        let rabbit = Rabbit::shared();
        let columns = ["source_name", "destination_name", "routing_key"];
        let all = rabbit.ctl(&[&["list_bindings", "-q", "-p", vhost], &columns[..]].concat());
        let is_of_results = |line: &&str| line.contains("vogeler.results.");
        let mut lines: Vec<String> = all
            .lines()
            .filter(is_of_results)
            .map(str::to_owned)
            .collect();
        lines.sort();
        lines
    };
    let before = bindings();
    assert!(before.len() >= 256, "{before:?}");

    let given = ["--broker", broker.as_str(), "--store", &store];
    let with_server = [&given[..], &["--metrics", &metrics]].concat();
    let ran = run(&plan, &with_server);
    assert_eq!(ran.code, Some(0), "{}", ran.text);
    assert!(server.is_running());
    assert_eq!(bindings(), before);

    let again = run(&plan, &with_server);
    assert_eq!(again.code, Some(2), "{}", again.text);
    assert!(again.text.contains("of an earlier run"), "{}", again.text);
    let fresh = pouch::fresh_dsn();
    let unnamed = run(&plan, &["--broker", broker.as_str(), "--store", &fresh]);
    assert_eq!(unnamed.code, Some(2), "{}", unnamed.text);
    assert!(
        unnamed.text.contains("name that server with --metrics"),
        "{}",
        unnamed.text
    );
    assert_eq!(bindings(), before);
    server.stop();
}

/// Goal: Ctrl-C ends a run while its services start and under load, within seconds, with all that it started.
#[test]
fn ctrl_c_leaves_nothing() {
    let plan_folder = tempfile::tempdir().unwrap();
    let plan = plan_file(
        plan_folder.path(),
        &SHORT
            .replace("\"8s\"", "\"100s\"")
            .replace("nodes", "real_clients = 2\nnodes"),
    );
    let (report, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let entries = || std::fs::read_dir(scratch.path()).unwrap().count();
    // A CouchDB that takes connections and never answers: what starts waits for it.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("http://u:p@{}", listener.local_addr().unwrap());
    // The clients' folder is the fourth, after RabbitMQ's, pouchdb-server's and the server's.
    let cases: [(&[&str], usize, &str); 2] = [
        (&["--couch", &silent], 1, "starting"),
        (&[], 4, "under load"),
    ];
    for (arguments, folders, when) in cases {
        let mut command = command(&plan, arguments, report.path());
        command
            .env("TMPDIR", scratch.path())
            .stdout(File::create("/dev/null").unwrap());
        let nowhere = plan_folder.path().join("nothing");
        let mut service = Service::start(&mut command, &nowhere).unwrap();
        assert!(wait_until(PATIENCE, || entries() >= folders), "{when}");
        // To it alone: what it started must not be ended by the test.
        let pid = Pid::from_raw(service.pid().parse().unwrap()).unwrap();
        kill_process(pid, Signal::INT).unwrap();
        let patience = Duration::from_secs(20);
        assert!(wait_until(patience, || !service.is_running()), "{when}");
        assert_eq!(service.code(), Some(2), "{when}");
        assert!(wait_until(patience, || entries() == 0), "{when}");
    }
}
