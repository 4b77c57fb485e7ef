//! Plugin files of a running client: read again, refused, and plugins that take the client with them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::client_processes::command;
use crate::harness::installation::{Installation, Running};
use crate::harness::process::wait_until;
use crate::harness::rabbit::Rabbit;

const PATIENCE: Duration = Duration::from_mins(2);
const NODE: &str = "web01";

/// A server and its set-up, on SQLite.
fn installation(folder: &tempfile::TempDir) -> (Installation, Running) {
    let store = format!("sqlite:{}", folder.path().join("store").display());
    let v = Installation::new(Rabbit::shared().fresh_vhost().as_str(), &store);
    v.vogeler(&["admin", "setup"]).ok();
    let server = v.server();
    (v, server)
}

/// A part of the node's document, once it is as wanted.
fn shown(v: &Installation, pointer: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    let mut found = Value::Null;
    let arrived = wait_until(PATIENCE, || {
        let answer = v.vogeler(&["node", "show", NODE, pointer]);
        found = serde_json::from_str(&answer.stdout).unwrap_or_default();
        is_so(&found)
    });
    assert!(arrived, "{pointer} is {found}");
    found
}

/// Goal: SIGHUP reads the plugin files again and ends nothing: what runs goes on, what is new runs, a broken file keeps its
/// last good version and says so, and the node's document has all that. A server goes on, too.
#[test]
fn a_hangup_reloads_the_plugins() {
    let folder = tempfile::tempdir().unwrap();
    let (v, mut server) = installation(&folder);
    let (started, go) = (v.file("started"), v.file("go"));
    let slow = format!(
        "[slow]\ncommand = sh -c 'echo > {}; until [ -e {} ]; do sleep 0.02; done; echo slow'\n",
        started.display(),
        go.display()
    );
    v.plugin_file("a.cfg", &slow);
    let mut client = v.client(NODE, "");
    shown(&v, "/client/plugins", |plugins| {
        *plugins == serde_json::json!(["slow"])
    });
    command(&v, NODE, r#"{"v":2,"plugin":"slow"}"#);
    assert!(wait_until(PATIENCE, || started.exists()));

    v.plugin_file("a.cfg", "[slow]\nno key of ours = 1\n");
    v.plugin_file("b.cfg", "[new]\ncommand = echo new\n");
    client.signal(Signal::HUP);
    server.signal(Signal::HUP);
    shown(&v, "/client/plugins", |plugins| {
        *plugins == serde_json::json!(["new", "slow"])
    });
    let problems = shown(&v, "/client/problems", |problems| !problems[0].is_null());
    let problem = problems[0].as_str().unwrap();
    assert!(
        problem.contains("a.cfg:2:") && problem.contains("last good version"),
        "{problem}"
    );
    command(&v, NODE, r#"{"v":2,"plugin":"new"}"#);
    shown(&v, "/new", |new| *new == serde_json::json!(["new"]));
    fs::write(&go, "").unwrap();
    shown(&v, "/slow", |slow| *slow == serde_json::json!(["slow"]));
    command(&v, NODE, r#"{"v":2,"plugin":"slow"}"#);
    assert!(client.is_running() && server.is_running());
    assert!(wait_until(PATIENCE, || server.log().contains("SIGHUP")));
}

/// Goal: a plugin file that others may write is refused, with the reason in `--list`, the log, the node's document and the
/// probe; the client itself goes on.
#[test]
fn a_file_that_others_may_write_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (mut v, server) = installation(&folder);
    v.plugin_file("a.cfg", "[evil]\ncommand = echo evil\n");
    let file = v.file("plugins/a.cfg");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
    let listed = v.vogeler(&["client", "--list"]);
    assert_eq!(listed.code, 1);
    assert!(!listed.stdout.contains("evil"), "{}", listed.stdout);
    let client = v.client(NODE, "");
    let problems = shown(&v, "/client/problems", |problems| !problems[0].is_null());
    let reason = problems[0].as_str().unwrap();
    assert!(
        reason.contains("mode 0666") && reason.contains("chmod go-w"),
        "{reason}"
    );
    assert!(client.log().contains("mode 0666"), "{}", client.log());
    drop(client);

    // The server's address is the client's from here on.
    assert!(server.stop().success());
    let address = v.http_address();
    v.set("VOGELER_CLIENT_HTTP_LISTEN", &address);
    let client = v.client(NODE, "");
    let ready = || {
        let (status, body) = v.get("/readyz")?;
        let body: Value = serde_json::from_str(&body).ok()?;
        Some((status, body["plugins"]["ok"].as_bool()?))
    };
    assert!(wait_until(PATIENCE, || ready() == Some((503, false))));
    assert_eq!(v.metric("vogeler_client_plugin_problems"), Some(1.0));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    client.signal(Signal::HUP);
    assert!(wait_until(PATIENCE, || ready().is_some_and(|(_, is_ok)| is_ok)));
}

/// What kills the client, whoever stands between it and the plugin.
const KILL_CLIENT: &str = "p=$PPID; until tr '\\0' ' ' < /proc/$p/cmdline | grep -q ' client $'; do p=$(ps -o ppid= -p $p | tr -d ' '); done; kill -9 $p";

/// Goal: a plugin that kills its client runs once, though the client is started again and the command comes again: the run
/// hears "interrupted". The same plugin runs for the next run.
#[test]
fn a_poison_command_runs_once() {
    let folder = tempfile::tempdir().unwrap();
    let (v, _server) = installation(&folder);
    let ran = v.file("ran");
    let script = v.file("poison.sh");
    fs::write(
        &script,
        format!("echo run >> {}\n{KILL_CLIENT}\nsleep 60\n", ran.display()),
    )
    .unwrap();
    v.plugin_file(
        "a.cfg",
        &format!("[poison]\ncommand = sh {}\n", script.display()),
    );
    let runs = || fs::read_to_string(&ran).unwrap_or_default().lines().count();

    for round in 1..=2 {
        let mut client = v.client(NODE, "");
        shown(&v, "/client/plugins", |plugins| !plugins.is_null());
        let run = v.start_vogeler(&["run", "poison", "-n", NODE, "--json", "--timeout", "90s"]);
        assert!(
            wait_until(PATIENCE, || !client.is_running()),
            "{}",
            client.log()
        );
        let mut client = v.client(NODE, "");
        let (mut run, log) = (run, v.file("run.log"));
        run.wait(PATIENCE);
        let text = fs::read_to_string(&log).unwrap();
        assert!(text.matches("\"interrupted\"").count() >= round, "{text}");
        assert!(client.is_running());
        assert_eq!(runs(), round);
        assert!(client.stop().success());
    }
}

/// Goal: a scheduled plugin that kills its client is told of at the next start, and runs again only when it is due.
#[test]
fn a_poison_schedule_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let (v, _server) = installation(&folder);
    let script = v.file("poison.sh");
    fs::write(&script, format!("{KILL_CLIENT}\nsleep 60\n")).unwrap();
    v.plugin_file(
        "a.cfg",
        &format!("[poison]\ncommand = sh {}\nevery = 5s\n", script.display()),
    );
    let mut client = v.client(NODE, "");
    assert!(wait_until(PATIENCE, || !client.is_running()));
    v.plugin_file(
        "a.cfg",
        &format!("[poison]\ncommand = sh {}\n", script.display()),
    );
    let client = v.client(NODE, "");
    let state = shown(&v, "/vogeler/plugins/poison", |state| !state.is_null());
    assert!(state.to_string().contains("\"interrupted\""), "{state}");
    assert!(client.stop().success());
}
