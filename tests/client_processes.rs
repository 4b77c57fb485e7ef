//! What a plugin starts, and who it runs as: nothing of it is left, its neighbour is untouched, and its files are ours.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use vogeler::broker::topology::Exchange;
use vogeler::broker::{self, Message, Properties};
use vogeler::client::execute::{self, Execution, Limits, Supervisor};
use vogeler::client::plugin::{Plugin, Registry};
use vogeler::config;
use vogeler::wire::{Content, ErrorKind};

use crate::harness::installation::Installation;
use crate::harness::pipeline::in_system;
use crate::harness::process::wait_until;
use crate::harness::rabbit::Rabbit;

const PATIENCE: Duration = Duration::from_mins(1);
const LIMITS: Limits = Limits {
    timeout: PATIENCE,
    output_bytes_max: 1024 * 1024,
};
/// What a program does that wants to get away: a session of its own, twice forked, without the pipes.
const ESCAPE: &str = "(setsid sh -c 'echo $$ > MARK; exec sleep 600' >/dev/null 2>&1 &) ; until [ -s MARK ]; do sleep 0.02; done;";

fn write(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A plugin that runs `script`, in which `MARK` is a file of its own, with these further keys.
fn plugin(folder: &Path, name: &str, script: &str, keys: &str) -> (Plugin, PathBuf) {
    let mark = folder.join(format!("{name}.mark"));
    let file = folder.join(format!("{name}.sh"));
    write(
        &file,
        &script.replace("MARK", mark.to_str().unwrap()),
        0o755,
    );
    let section = format!("[{name}]\ncommand = sh {}\n{keys}\n", file.display());
    write(&folder.join(format!("{name}.cfg")), &section, 0o644);
    let mut registry = Registry::load(folder).unwrap();
    assert_eq!(registry.problems, []);
    (registry.plugins.remove(name).unwrap(), mark)
}

async fn run(plugin: &Plugin) -> Execution {
    let supervisor = Supervisor::at(env!("CARGO_BIN_EXE_vogeler"));
    execute::execute(plugin, LIMITS, &supervisor).await
}

/// Sends a command to a node as it is, whatever it is.
pub(crate) fn command(v: &Installation, node: &str, body: &'static str) {
    let message = Message {
        exchange: Exchange::Commands,
        routing_key: node.to_owned(),
        body: Bytes::from_static(body.as_bytes()),
        properties: Properties::default(),
        persistent: true,
        mandatory: true,
    };
    in_system(async {
        let broker = broker::open(&config::Broker {
            dsn: v.broker().parse().unwrap(),
            ..config::Broker::default()
        });
        broker.publish(message).await.unwrap();
        broker.close().await;
    });
}

/// The process that a plugin wrote down.
fn pid_in(mark: &Path) -> Option<u32> {
    fs::read_to_string(mark).ok()?.trim().parse().ok()
}

fn runs(mark: &Path) -> bool {
    let pid = pid_in(mark).expect("it was started");
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

/// Goal: a program that left its group and session is gone when the timeout's report comes, and so is one that stays behind
/// after a good end; the neighbour that runs at the same time loses nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn setsid_escapes_no_kill() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let neighbour = format!(
        "{ESCAPE} until [ -e {}/go ]; do sleep 0.02; done; kill -0 $(cat MARK) && echo untouched",
        folder.display()
    );
    let (neighbour, neighbours) = plugin(folder, "neighbour", &neighbour, "result_format = string");
    let neighbour = tokio::spawn(async move { run(&neighbour).await });
    assert!(wait_until(PATIENCE, || pid_in(&neighbours).is_some()));

    let (hangs, mark) = plugin(
        folder,
        "hangs",
        &format!("{ESCAPE} sleep 600"),
        "timeout = 2s",
    );
    let Content::Error(error) = run(&hangs).await.content else {
        panic!("it cannot end well");
    };
    assert_eq!(error.kind, ErrorKind::Timeout);
    assert!(error.message.ends_with("and was killed"), "{error:?}");
    assert!(!runs(&mark), "it is gone when the report says so");

    let (ends, mark) = plugin(folder, "ends", &format!("{ESCAPE} echo fine"), "");
    let Content::Value { json, .. } = run(&ends).await.content else {
        panic!("it ends well");
    };
    assert_eq!(json.get(), r#"["fine"]"#);
    assert!(!runs(&mark), "a plugin leaves no daemon behind");

    assert!(runs(&neighbours));
    fs::write(folder.join("go"), "").unwrap();
    let Content::Value { json, .. } = neighbour.await.unwrap().content else {
        panic!("the neighbour ends well");
    };
    assert_eq!(json.get(), r#""untouched""#);
    assert!(!runs(&neighbours));
}

/// Goal: a process whose first thread ended, which the kernel shows as a zombie, is killed and named all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_without_its_first_thread_is_killed() {
    const HEADLESS: &str = "#include <pthread.h>\n#include <unistd.h>\n\
        static void *work(void *none) { sleep(600); return none; }\n\
        int main(void) { pthread_t one; pthread_create(&one, 0, work, 0); pthread_exit(0); }\n";
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (source, headless) = (folder.join("headless.c"), folder.join("headless"));
    fs::write(&source, HEADLESS).unwrap();
    let mut compile = std::process::Command::new("cc");
    compile
        .arg("-pthread")
        .arg("-o")
        .arg(&headless)
        .arg(&source);
    if !compile.status().is_ok_and(|status| status.success()) {
        return;
    }
    let script = format!("setsid {} & echo $! > MARK; sleep 600", headless.display());
    let (hangs, mark) = plugin(folder, "hangs", &script, "timeout = 2s");
    let Content::Error(error) = run(&hangs).await.content else {
        panic!("it cannot end well");
    };
    assert!(error.message.ends_with("and was killed"), "{error:?}");
    let pid = pid_in(&mark).unwrap();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    assert!(stat.is_err(), "{stat:?}");
}

/// Goal: one that forks without end, each child in a session of its own, is ended too.
#[tokio::test]
async fn a_fork_storm_is_ended() {
    let folder = tempfile::tempdir().unwrap();
    let storm = "echo $$ > MARK; for i in 1 2 3 4 5 6 7 8; do (while :; do setsid sleep 0.1 & sleep 0.02; done) >/dev/null 2>&1 & done; wait";
    let (storm, mark) = plugin(folder.path(), "storm", storm, "timeout = 1s");
    let Content::Error(error) = run(&storm).await.content else {
        panic!("it cannot end well");
    };
    assert!(error.message.ends_with("and was killed"), "{error:?}");
    assert!(!runs(&mark));
}

/// Goal: a plugin that kills who watches over it is an error that says what may be left, and its own group goes.
#[tokio::test]
async fn a_killed_supervisor_is_said() {
    let folder = tempfile::tempdir().unwrap();
    // A supervisor that dies before it could tell what it started leaves that running: the message says so, too.
    let (rude, mark) = plugin(
        folder.path(),
        "rude",
        "echo $$ > MARK; sleep 2; kill -9 $PPID; sleep 600",
        "",
    );
    let Content::Error(error) = run(&rude).await.content else {
        panic!("it cannot end well");
    };
    assert_eq!(error.kind, ErrorKind::Failed);
    assert!(error.message.contains("may still run"), "{error:?}");
    assert!(wait_until(PATIENCE, || !runs(&mark)));
}

/// Goal: a client that is killed without notice leaves nothing of its plugins running.
#[test]
fn a_killed_client_leaves_nothing_behind() {
    let v = Installation::new(Rabbit::shared().fresh_vhost().as_str(), "memory:");
    let mark = v.file("mark");
    let script = format!("{ESCAPE} sleep 600").replace("MARK", mark.to_str().unwrap());
    let file = v.file("script.sh");
    fs::write(&file, script).unwrap();
    v.plugin_file(
        "x.cfg",
        &format!(
            "[x]\ncommand = sh {}\nevery = 1s\ntimeout = 5m\n",
            file.display()
        ),
    );
    let client = v.client("web01", "");
    assert!(
        wait_until(PATIENCE, || pid_in(&mark).is_some()),
        "{}",
        client.log()
    );
    client.kill();
    assert!(wait_until(PATIENCE, || !runs(&mark)));
}

/// Goal: `user =` gives a plugin that user's number, group and home, and nothing of ours. Only root can test it.
#[tokio::test]
async fn a_plugin_runs_as_another_user() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let script = "printf '{\"uid\": [%s, %s], \"groups\": \"%s\", \"env\": \"%s %s %s\"}' $(id -u) $(id -ru) \"$(id -G)\" $HOME $USER $LOGNAME";
    let keys = "user = nobody\nresult_format = json";
    let (mut plugin, _) = plugin(folder.path(), "who", script, keys);
    let content = run(&plugin).await.content;
    let Content::Value { json, .. } = content else {
        panic!("{content:?}");
    };
    let said: Value = serde_json::from_str(json.get()).unwrap();
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let line = passwd.lines().find(|line| line.starts_with("nobody:"));
    let fields: Vec<_> = line.unwrap().split(':').collect();
    let (uid, gid, home) = (fields[2], fields[3], fields[5]);
    let number: u32 = uid.parse().unwrap();
    assert_eq!(said["uid"], serde_json::json!([number, number]));
    assert_eq!(said["groups"], gid);
    assert_eq!(said["env"], format!("{home} nobody nobody"));

    // A program that this user may not start is no other error than one that is not there.
    plugin.program = "/root".to_owned();
    let Content::Error(error) = run(&plugin).await.content else {
        panic!("it cannot start");
    };
    assert_eq!(error.kind, ErrorKind::NotStarted, "{error:?}");
}
