//! What a client must not lose: results on a disk that is full, that cannot be read, that has no room, and who may read them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::Value;

use crate::harness::installation::Installation;
use crate::harness::process::wait_until;
use crate::harness::rabbit::Rabbit;

const PATIENCE: Duration = Duration::from_mins(2);
const NODE: &str = "web01";

/// A set-up whose HTTP side is the client's.
fn installation(plugins: &str) -> Installation {
    let folder = "sqlite:/nonexistent/not-used";
    let mut v = Installation::new(Rabbit::shared().fresh_vhost().as_str(), folder);
    v.plugin_file("test.cfg", plugins);
    let address = v.http_address();
    v.set("VOGELER_CLIENT_HTTP_LISTEN", &address);
    v
}

/// Makes the queues, and nothing else: there is no server here.
fn set_up(v: &Installation) {
    let mut queues = Installation::new(v.broker(), "memory:");
    queues.set("VOGELER_BROKER_PARTITIONS", "1");
    queues.vogeler(&["admin", "setup"]).ok();
}

fn becomes(v: &Installation, series: &str, will_do: impl Fn(f64) -> bool) {
    let arrived = wait_until(PATIENCE, || v.metric(series).is_some_and(&will_do));
    assert!(arrived, "{series} is {:?}", v.metric(series));
}

fn lost(reason: &str) -> String {
    format!("vogeler_client_spool_dropped_total{{reason=\"{reason}\"}}")
}

fn ran() -> &'static str {
    "vogeler_client_commands_total{outcome=\"ran\"}"
}

/// Waits until the client is ready, or is not; gives what it says of its spool.
fn spool_is(v: &Installation, ok: bool) -> Value {
    let mut body = Value::Null;
    let arrived = wait_until(PATIENCE, || {
        let Some((status, said)) = v.get("/readyz") else {
            return false;
        };
        body = serde_json::from_str(&said).unwrap();
        (status == 200) == ok && body["spool"]["ok"] == ok
    });
    assert!(arrived, "the spool is not {ok}: {body}");
    body["spool"].clone()
}

fn spooled(v: &Installation, extension: &str) -> Vec<PathBuf> {
    let folder = v.file("state").join(NODE).join("spool");
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    let paths = files.map(|file| file.path());
    let mut paths: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    paths.sort();
    paths
}

/// A small disk at a folder; gone when dropped. None where we may not mount.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn at(folder: &Path) -> Option<Self> {
        fs::create_dir_all(folder).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=256k,mode=0700", "tmpfs"]);
        let is_mounted = mount
            .arg(folder)
            .status()
            .is_ok_and(|status| status.success());
        is_mounted.then(|| Self(folder.to_owned()))
    }

    fn fill(&self) {
        // Ends with "no space left", as it should.
        drop(fs::write(self.0.join("filler"), vec![b'x'; 1024 * 1024]));
    }

    fn empty(&self) {
        fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

/// Goal: while the disk is full the client says so and counts what is lost; what a command asked for is not lost and its
/// plugin not run twice, whether the disk was full before or became so while the plugin ran.
#[test]
fn a_full_disk_is_said_and_loses_nothing_that_was_asked_for() {
    let mut v = installation("");
    let state = v.file("state").join(NODE);
    let Some(disk) = SmallDisk::at(&state) else {
        return;
    };
    let runs = v.file("runs");
    let fills = format!(
        "echo run >> {}; head -c 1M /dev/zero > {}/filler; echo done",
        runs.display(),
        state.display()
    );
    v.plugin_file(
        "test.cfg",
        &format!("[often]\ncommand = date +%s%N\nevery = 1s\n[fills]\ncommand = sh -c '{fills}'\n"),
    );
    v.set("VOGELER_CLIENT_SPOOL_COUNT_MAX", "20");
    set_up(&v);
    let client = v.client(NODE, "");
    becomes(&v, "vogeler_client_last_publish_timestamp_seconds", |at| {
        at > 0.0
    });
    spool_is(&v, true);

    disk.fill();
    let spool = spool_is(&v, false);
    assert!(
        spool["reason"].as_str().unwrap().contains("No space left"),
        "{spool}"
    );
    becomes(&v, &lost("unwritable"), |count| count >= 2.0);
    disk.empty();
    spool_is(&v, true);

    // Its plugin fills the disk: the result is held, and written later.
    crate::client_processes::command(&v, NODE, r#"{"v":2,"plugin":"fills"}"#);
    let held = wait_until(PATIENCE, || client.log().contains("held in memory"));
    assert!(held, "{}", client.log());
    spool_is(&v, false);
    assert_eq!(v.metric(ran()), Some(0.0));
    disk.empty();
    becomes(&v, ran(), |count| count >= 1.0);
    spool_is(&v, true);
    assert_eq!(fs::read_to_string(&runs).unwrap(), "run\n");
    assert_eq!(
        v.metric("vogeler_client_commands_total{outcome=\"requeued\"}"),
        Some(0.0)
    );
    assert!(client.stop().success());
}

/// Goal: on a disk that is full of results that newer ones supersede, plugins go on: the old results go, the newest are kept.
#[test]
fn on_a_disk_full_of_old_results_plugins_go_on() {
    let mut v = installation("[often]\ncommand = date +%s%N\nevery = 1s\n");
    let Some(disk) = SmallDisk::at(&v.file("state").join(NODE)) else {
        return;
    };
    v.set("VOGELER_CLIENT_SPOOL_COUNT_MAX", "100");
    // Nobody takes results.
    let client = v.client(NODE, "");
    assert!(wait_until(PATIENCE, || spooled(&v, "result").len() >= 8));
    disk.fill();
    let oldest = spooled(&v, "result").remove(0);
    let before = spooled(&v, "result").pop().unwrap();
    becomes(&v, &lost("full"), |count| count >= 4.0);
    let files = spooled(&v, "result");
    let after = files.last().unwrap();
    assert!(*after > before, "{files:?}");
    // The oldest is the client's report of itself, and the newest of its plugin.
    assert_eq!(files[0], oldest);
    assert_eq!(
        v.metric(&lost("unwritable")).unwrap_or(0.0).to_string(),
        "0"
    );
    assert!(client.stop().success());
}

/// Goal: a result that cannot be read now (no file descriptors) is not set aside but published when it can be.
#[test]
fn what_cannot_be_read_now_is_read_later() {
    let v = installation("[hello]\ncommand = echo hello\n");
    let client = v.client(NODE, "");
    // Nobody takes results yet: the client's report of itself waits, and is tried again and again.
    assert!(wait_until(PATIENCE, || spooled(&v, "result").len() == 1));
    let few = Rlimit {
        current: Some(3),
        ..getrlimit(Resource::Nofile)
    };
    let pid = Pid::from_raw(i32::try_from(client.id()).unwrap());
    let before = prlimit(pid, Resource::Nofile, few).unwrap();
    assert!(
        wait_until(PATIENCE, || client
            .log()
            .contains("cannot be read; it stays")),
        "{}",
        client.log()
    );
    assert_eq!(spooled(&v, "result").len(), 1);
    prlimit(pid, Resource::Nofile, before).unwrap();
    set_up(&v);
    becomes(
        &v,
        "vogeler_client_published_total{outcome=\"confirmed\"}",
        |count| count >= 1.0,
    );
    spool_is(&v, true);
    assert_eq!(spooled(&v, "bad"), Vec::<PathBuf>::new());
    let said = client.log().matches("cannot be read; it stays").count();
    assert_eq!(said, 1, "a state is said once");
}

/// Goal: a damaged file is set aside, counted and said until somebody looks after it; the results behind it are published.
#[test]
fn a_damaged_result_is_said() {
    let v = installation("[often]\ncommand = date +%s%N\nevery = 1s\n");
    let client = v.client(NODE, "");
    assert!(wait_until(PATIENCE, || spooled(&v, "result").len() >= 2));
    let damaged = spooled(&v, "result").remove(0);
    fs::write(&damaged, "not what was written").unwrap();
    let spool = spool_is(&v, false);
    assert!(
        spool["reason"].as_str().unwrap().contains("*.bad"),
        "{spool}"
    );
    becomes(&v, &lost("damaged"), |count| (count - 1.0).abs() < 0.1);
    set_up(&v);
    becomes(
        &v,
        "vogeler_client_published_total{outcome=\"confirmed\"}",
        |count| count >= 1.0,
    );
    let bad = spooled(&v, "bad");
    assert_eq!(bad, [damaged.with_extension("bad")]);
    fs::remove_file(&bad[0]).unwrap();
    spool_is(&v, true);
    assert!(client.stop().success());
}

/// Goal: when the spool is full, the newest result of a plugin that rarely runs outlives all the old ones of a busy one.
#[test]
fn the_newest_of_every_plugin_is_kept() {
    let mut v =
        installation("[often]\ncommand = date +%s%N\nevery = 1s\n[rare]\ncommand = echo rare\n");
    v.set("VOGELER_CLIENT_SPOOL_COUNT_MAX", "4");
    let client = v.client(NODE, "");
    crate::client_processes::command(&v, NODE, r#"{"v":2,"plugin":"rare"}"#);
    becomes(&v, &lost("full"), |count| count >= 4.0);
    let has = |plugin: &str| {
        let end = format!(" {plugin}\n");
        spooled(&v, "result").iter().any(|path| {
            let text = fs::read(path).unwrap_or_default();
            String::from_utf8_lossy(&text).contains(&end)
        })
    };
    assert!(wait_until(PATIENCE, || has("rare")
        && has("client")
        && has("often")));
    assert!(client.stop().success());
}

/// Goal: whatever the umask, and whatever an earlier release left, nobody else may look into results.
#[test]
fn results_are_for_their_owner() {
    let v = installation("[often]\ncommand = date +%s%N\nevery = 1s\n");
    let state = v.file("state").join(NODE);
    let spool = state.join("spool");
    fs::create_dir_all(&spool).unwrap();
    let leftover = spool.join("00000000000000000001.bad");
    fs::write(&leftover, "x").unwrap();
    for (path, mode) in [(&state, 0o755), (&spool, 0o755), (&leftover, 0o644)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let client = v.client_with_umask(NODE, "000");
    assert!(wait_until(PATIENCE, || spooled(&v, "result").len() >= 2));
    client.kill();
    let mut found = vec![state];
    let mut at = 0;
    while let Some(path) = found.get(at).cloned() {
        at += 1;
        let metadata = fs::metadata(&path).unwrap();
        let expected = if metadata.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(
            metadata.permissions().mode() & 0o7777,
            expected,
            "{}",
            path.display()
        );
        if metadata.is_dir() {
            found.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        }
    }
    assert!(found.len() > 5, "{found:?}");
}
