//! The command line as an operator meets it, where no services are needed: help, names, configuration errors, exit
//! codes, redaction.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command as Process, Stdio};

use assert_cmd::Command;
use predicates::prelude::PredicateBooleanExt;
use predicates::str::{contains, is_empty, is_match, starts_with};

const PROGRAM: &str = env!("CARGO_BIN_EXE_vogeler");

/// The program with an environment of its own: no `VOGELER_*` of the machine, no `/etc/vogeler`.
fn vogeler(args: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command
        .env_clear()
        .env("VOGELER_CONFIG", "/dev/null")
        .args(args);
    command
}

/// A run that fails before it reaches a broker or store: whatever is wrong with it is said on stderr, with exit 2.
fn fails(command: &mut Command) -> String {
    let assert = command.assert().code(2).stdout(is_empty());
    String::from_utf8(assert.get_output().stderr.clone()).unwrap()
}

fn config(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

/// Goal: help and version go to stdout with exit 0, show examples, and list every subcommand.
#[test]
fn help_and_version_are_answers() {
    let help = vogeler(&["--help"]).assert().code(0).stderr(is_empty());
    let mut help = help.stdout(contains("vogeler run rpms -n all"));
    for subcommand in ["server", "client", "run", "admin", "node", "find", "demo"] {
        help = help.stdout(is_match(format!("(?m)^  {subcommand} ")).unwrap());
        vogeler(&[subcommand, "--help"])
            .assert()
            .code(0)
            .stdout(contains("Usage: vogeler "));
    }
    vogeler(&["--version"])
        .assert()
        .code(0)
        .stdout(starts_with("vogeler 0."));
    vogeler(&["run", "--help"])
        .assert()
        .stdout(contains("Exit code: 0 if every node asked"));
    vogeler(&["admin", "setup", "--help"])
        .assert()
        .stdout(contains("--designs <DIR>"));
}

/// Goal: usage errors are exit 2, start with the program's name, and say what is missing.
#[test]
fn usage_errors_say_what_is_missing() {
    for (args, expected) in [
        (&["run"][..], "--nodes <TARGET>"),
        (&["run", "rpms"], "--nodes <TARGET>"),
        (&["run", "-n", "all"], "<PLUGIN>"),
        (
            &["run", "rpms", "-c", "rpms", "-n", "all"],
            "cannot be used with",
        ),
        (&["run", "_id", "-n", "all"], "may not start with '_'"),
        (&["run", "rpms", "-n", "a,all"], "\"all\" must stand alone"),
        (
            &["run", "rpms", "-n", "all", "--timeout", "soon"],
            "is not a length of time such as",
        ),
        (
            &["run", "rpms", "-n", "all", "--timeout", "0s"],
            "up to 168h",
        ),
        (&["rnu"], "unrecognized subcommand 'rnu'"),
        (&["admin"], "setup"),
    ] {
        let error = fails(&mut vogeler(args));
        assert!(error.contains(expected), "{args:?}: {error}");
    }
    assert!(fails(&mut vogeler(&["rnu"])).starts_with("vogeler: "));
}

/// Goal: the program behaves by the name it is called with, as the packages' links and the users of 2010 expect.
#[test]
fn links_behave_as_their_subcommand() {
    for (name, expected) in [
        ("vogeler-server", "Usage: vogeler server"),
        ("vogeler-client", "Usage: vogeler client"),
        ("vogeler-runner", "Usage: vogeler run"),
        ("vogeler-admin", "Usage: vogeler admin"),
    ] {
        let output = Process::new(PROGRAM)
            .arg0(name)
            .arg("--help")
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.status.success() && text.contains(expected),
            "{name}: {text}"
        );
    }
    let mut classic = Process::new(PROGRAM);
    classic.env_clear().env("VOGELER_CONFIG", "/nonexistent");
    let output = classic
        .arg0("/usr/bin/vogeler-runner")
        .args(["-c", "rpms", "-n", "all"])
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    // Past the command line, stopped by the configuration.
    assert!(
        error.contains("cannot read the configuration /nonexistent"),
        "{error}"
    );
}

/// Goal: each mistake in the configuration is one line that says where, what, and what is allowed, with exit 2.
#[test]
fn configuration_errors_are_one_helpful_line() {
    let run = ["run", "rpms", "-n", "all"];
    let file = config("[server]\nprefetch = 5000\n");
    let path = file.path().to_str().unwrap();
    let error = fails(vogeler(&run).args(["--config", path]));
    assert_eq!(
        error,
        format!(
            "vogeler: {path}:2: server.prefetch = 5000: allowed is a whole number from 1 to 2000\n"
        )
    );
    let file = config("[sever]\nprefetch = 5\n");
    let error = fails(vogeler(&run).arg("--config").arg(file.path()));
    assert!(error.contains(":1: there is no setting sever; "), "{error}");

    for (args, expected) in [
        (
            ["--config", "/nonexistent/x.toml"],
            "vogeler: cannot read the configuration /nonexistent/x.toml: No such file or directory (os error 2)\n",
        ),
        (
            ["--set", "server.prefetch"],
            "vogeler: --set takes SECTION.KEY=VALUE, such as server.prefetch=200\n",
        ),
        (
            ["--set", "server.prefetsh=5"],
            "vogeler: --set server.prefetsh: there is no setting server.prefetsh; did you mean server.prefetch?\n",
        ),
        (
            ["--log-format", "xml"],
            "vogeler: --log-format: log.format = \"xml\": unknown variant `xml`, expected `text` or `json`\n",
        ),
        (
            ["--broker", "redis://h"],
            "vogeler: --broker: broker.dsn: \"redis\" is not a kind of broker; allowed are amqp://USER:PASSWORD@HOST:5672/VHOST, amqps://… (TLS) or memory: (one process)\n",
        ),
        (
            ["--set", "server.prefetch=20"],
            "vogeler: server.batch_count_max × server.writes_in_flight (100 × 4) = 400 must be at most broker.partitions × server.prefetch (16 × 20) = 320: with fewer deliveries than the writes can hold, batches never fill and only ever wait for server.linger\n",
        ),
    ] {
        assert_eq!(fails(vogeler(&run).args(args)), expected);
    }
    let error = fails(vogeler(&run).args(["--log-level", "loud"]));
    assert!(
        error.starts_with("vogeler: --log-level: log.level = \"loud\": "),
        "{error}"
    );
    let error = fails(vogeler(&run).env("VOGELER_SERVER_PREFECH", "5"));
    assert_eq!(
        error,
        "vogeler: the environment variable VOGELER_SERVER_PREFECH sets nothing; did you mean VOGELER_SERVER_PREFETCH?\n"
    );
}

/// Goal: flags win over the environment, that over the file.
#[test]
fn precedence_is_flags_environment_file() {
    let file = config("[log]\nlevel = \"from-file\"\n");
    let command = || {
        let mut command = vogeler(&["run", "rpms", "-n", "all", "--config"]);
        command.arg(file.path());
        command
    };
    assert!(fails(&mut command()).contains(":2: log.level = \"from-file\""));
    let by_variable = || {
        let mut command = command();
        command.env("VOGELER_LOG_LEVEL", "from-variable");
        command
    };
    assert!(fails(&mut by_variable()).contains("VOGELER_LOG_LEVEL: log.level = \"from-variable\""));
    assert!(
        fails(by_variable().args(["--log-level", "from-flag"]))
            .contains("--log-level: log.level = \"from-flag\"")
    );
}

/// Goal: a password is in no message, however wrong the DSN that holds it, and whatever is logged.
#[test]
fn passwords_are_never_shown() {
    let run = [
        "run",
        "rpms",
        "-n",
        "a",
        "--timeout",
        "100ms",
        "--log-level",
        "trace",
    ];
    for dsn in [
        "couch://u:hunter2@h",
        "couch://u:hunter2@h:x/db",
        "http://u:hunter2@h/db",
        "u:hunter2@h",
        "couch://u:hunter2@h/DB",
    ] {
        for command in [
            vogeler(&run).args(["--store", dsn]),
            vogeler(&run).env("VOGELER_STORE_DSN", dsn),
        ] {
            let error = fails(command);
            assert!(
                error.contains("store.dsn") && !error.contains("hunter2"),
                "{error}"
            );
        }
    }
    let secret = config("[store]\ndsn = \"couch://u:hunter2@h\"\n");
    let error = fails(vogeler(&run).arg("--config").arg(secret.path()));
    assert!(
        error.contains(":2: store.dsn: the name of the database is missing"),
        "{error}"
    );
    assert!(!error.contains("hunter2"), "{error}");
}

/// Goal: a reader that goes away early is no error and no panic.
#[test]
fn a_broken_pipe_is_no_error() {
    let mut child = Process::new(PROGRAM);
    let mut child = child
        .arg("--help")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut error = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut error)
        .unwrap();
    assert_eq!(
        (child.wait().unwrap().code(), error.as_str()),
        (Some(0), "")
    );
}

/// Goal: `status` in one process with nothing set up answers on both halves, as JSON too, and says which queues miss.
#[test]
fn status_answers_without_services() {
    let memory = ["--broker", "memory:", "--store", "memory:"];
    let output = vogeler(&["admin", "status", "--json"])
        .args(memory)
        .assert()
        .code(0)
        .get_output()
        .stdout
        .clone();
    let status: serde_json::Value = serde_json::from_slice(&output).unwrap();
    assert_eq!(status["broker"]["location"], "memory:");
    assert_eq!(status["broker"]["queues"][0]["queue"], "vogeler.results.0");
    assert_eq!(
        status["broker"]["queues"][0]["ready"],
        serde_json::Value::Null
    );
    assert_eq!(status["store"]["documents"], 0);
    let text = vogeler(&["admin", "status"]).args(memory).assert().code(0);
    text.stdout(contains("vogeler.dead").and(contains("run `vogeler admin setup`")));
}

/// Goal: what ships is listed and laid down, usable as it is; what an operator changed is kept unless told otherwise.
#[test]
fn files_are_laid_down_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    vogeler(&["admin", "files", "--list"])
        .assert()
        .code(0)
        .stdout(contains("  _design/items/views/by_plugin/map.js\n"));
    let write = ["admin", "files", "--write", path];
    let written = vogeler(&write).assert().code(0);
    written.stdout(contains("/vogeler.toml: written").and(contains("kept").not()));
    let plugins = format!("{path}/plugins");
    vogeler(&["client", "--list", "--plugins", &plugins])
        .env("VOGELER_CONFIG", format!("{path}/vogeler.toml"))
        .assert()
        .code(0);
    let changed = folder.path().join("plugins/system.cfg");
    std::fs::write(&changed, "[mine]\ncommand = true\n").unwrap();
    let again = vogeler(&write).assert().code(0);
    again.stdout(contains("system.cfg: kept").and(contains("facts.cfg: is there")));
    assert!(std::fs::read_to_string(&changed).unwrap().contains("mine"));
    let forced = vogeler(&write).arg("--force").assert().code(0);
    forced.stdout(contains("system.cfg: replaced"));
    fails(&mut vogeler(&["admin", "files"]));

    // Where a umask lets a group write, it may not, or the client would refuse the plugins.
    let mut shell = Command::new("sh");
    let script = format!("umask 0002; exec {PROGRAM} admin files --write {path}/shared");
    shell.args(["-c", &script]).env_clear().assert().success();
    let plugins = folder.path().join("shared/plugins");
    let mode = std::fs::metadata(&plugins).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
}

/// Goal: where there are no files, `setup` loads the views that ship and says so, and the questions work; the demo runs.
#[test]
fn no_files_are_needed() {
    let nowhere = tempfile::tempdir().unwrap();
    let dsn = crate::harness::pouch::fresh_dsn();
    let at = |args: &[&str]| {
        let mut command = vogeler(args);
        command
            .current_dir(&nowhere)
            .env("PATH", "/usr/bin:/bin")
            .args(["--broker", "memory:", "--store", &dsn]);
        command
    };
    let find = ["find", "--package", "bash"];
    let setup = at(&["admin", "setup"]).assert().code(0);
    setup.stdout(
        contains("store: loaded _design/packages (1 view)")
            .and(contains("store: design documents of this program")),
    );
    let found = at(&find).assert().code(1);
    found.stderr(contains("no view").not());
    let mut demo = vogeler(&["demo", "--nodes", "2"]);
    demo.current_dir(&nowhere)
        .env("PATH", "/usr/bin:/bin")
        .env("TMPDIR", nowhere.path())
        .env("VOGELER_CLIENT_PLUGINS", nowhere.path().join("none"));
    demo.assert()
        .code(0)
        .stdout(contains("on all: 2 of 2 answered"));
}

/// Goal: `setup` says what it did on each half, and does the other half when one fails.
#[test]
fn setup_does_each_half() {
    let designs = tempfile::tempdir().unwrap();
    let setup = [
        "admin",
        "setup",
        "--broker",
        "memory:",
        "--designs",
        designs.path().to_str().unwrap(),
    ];
    let done = vogeler(&setup)
        .args(["--store", "memory:"])
        .assert()
        .code(0);
    done.stdout(
        contains("broker: queue vogeler.dead").and(contains("broker: exchanges vogeler.master.in")),
    );
    let half = vogeler(&setup)
        .args(["--store", "sqlite:/dev/null/nodes.db"])
        .assert()
        .code(2);
    let half = half.stdout(contains("broker: queue vogeler.dead"));
    half.stderr(contains("vogeler: store: ").and(contains("/dev/null/nodes.db")));
}

/// Goal: a node without a client queue is silent at once, with the reason, as text and as JSON, and the exit code
/// says that not all answered.
#[test]
fn a_run_names_the_silent_at_once() {
    let run = [
        "run",
        "rpms",
        "-n",
        "web01,web02",
        "--timeout",
        "1h",
        "--broker",
        "memory:",
        "--store",
        "memory:",
    ];
    let text = vogeler(&run).assert().code(1);
    text.stdout(
        contains("silent (2):\n  web01  no client queue of this name")
            .and(contains("0 of 2 answered, 2 silent")),
    );
    let output = vogeler(&run)
        .args(["--json", "--quiet"])
        .assert()
        .code(1)
        .stderr(is_empty())
        .get_output()
        .stdout
        .clone();
    let report: serde_json::Value = serde_json::from_slice(&output).unwrap();
    assert_eq!(report["complete"], false);
    assert_eq!(report["counts"]["silent"], 2);
    assert_eq!(report["nodes"]["silent"][1]["node"], "web02");
}

/// Goal: with `--no-wait` the answer is the run's id alone, and without a known node a run says so.
#[test]
fn no_wait_prints_the_id() {
    let memory = ["--broker", "memory:", "--store", "memory:"];
    let sent = vogeler(&["run", "rpms", "-n", "all", "--no-wait"])
        .args(memory)
        .assert()
        .code(0);
    sent.stdout(is_match("^[0-9a-f-]{36}\n$").unwrap());
    let nobody = vogeler(&["run", "rpms", "-n", "@web", "--timeout", "100ms"])
        .args(memory)
        .assert()
        .code(1);
    let nobody = nobody.stdout(contains("note: the store knows no node of @web"));
    // No terminal, so no escape sequence.
    nobody.stderr(
        contains("no node is known: waiting for whoever answers").and(contains("\u{1b}").not()),
    );
}

/// Goal: a broker that is away is an error of one line, without a wait for the run's whole timeout.
#[test]
fn a_broker_that_is_away_is_an_error() {
    // Port 1 on loopback refuses.
    let mut run = vogeler(&[
        "run",
        "rpms",
        "-n",
        "all",
        "--timeout",
        "2s",
        "--store",
        "memory:",
    ]);
    let run = run.args([
        "--broker",
        "amqp://u:hunter2@127.0.0.1:1/%2f",
        "--set",
        "broker.publish_timeout=1s",
    ]);
    let error = fails(run.args(["--log-level", "off"]));
    assert!(
        error.starts_with("vogeler: ") && error.contains("127.0.0.1:1"),
        "{error}"
    );
    assert!(
        !error.contains("hunter2") && error.lines().count() == 1,
        "{error}"
    );
}
