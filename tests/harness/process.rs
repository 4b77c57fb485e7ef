//! A service that the tests start: its own process group, and a guard that ends it when the test process is gone.
//!
//! The guard is a shell that reads a pipe from the test process. However that process ends, kill -9 included, the pipe
//! closes, and the guard kills the group and removes the folder.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

/// The group gets a kill until it is empty: a process may be forking while it is killed. (`kill` of dash takes no `--`.)
const GUARD: &str = r#"
cat >/dev/null
[ -z "$1" ] || for try in 1 2 3 4 5 6 7 8 9 10; do kill -s KILL -- "-$1" 2>/dev/null || break; sleep 0.2; done
rm -rf -- "$2"
"#;

/// A running service.
#[derive(Debug)]
pub(crate) struct Service {
    child: Child,
    guard: Child,
}

impl Service {
    /// Starts `command` in a process group of its own. When this process ends, the group is killed and `folder` is
    /// removed.
    pub(crate) fn start(command: &mut Command, folder: &Path) -> io::Result<Self> {
        let child = command.stdin(Stdio::null()).process_group(0).spawn()?;
        let guard = guard(&child.id().to_string(), folder)?;
        Ok(Self { child, guard })
    }

    /// The first process's id, as /proc has it.
    #[allow(dead_code, reason = "the bench shares this file, and asks for it")]
    pub(crate) fn pid(&self) -> String {
        self.child.id().to_string()
    }

    /// Sends `signal` to the whole group.
    pub(crate) fn signal(&self, signal: Signal) {
        // An error says that the group is gone already.
        kill_process_group(self.group(), signal).ok();
    }

    /// Whether the first process still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// The first process's exit code, once it ended by itself.
    #[allow(dead_code, reason = "the bench shares this file, and asks nothing")]
    pub(crate) fn code(&mut self) -> Option<i32> {
        self.child.try_wait().ok().flatten()?.code()
    }

    /// Asks the service to end, and kills what is left of the group after `patience`.
    pub(crate) fn stop(mut self, patience: Duration) {
        let pid = self.group();
        rustix::process::kill_process(pid, Signal::TERM).ok();
        wait_until(patience, || !self.is_running());
    }

    fn group(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        drop(self.child.wait());
        // The guard goes last, and without doing its work: the folder may be used again.
        drop(self.guard.kill());
        drop(self.guard.wait());
    }
}

/// Starts a guard over a process group (none, if it has no name) and a folder.
fn guard(group: &str, folder: &Path) -> io::Result<Child> {
    Command::new("/bin/sh")
        .args(["-c", GUARD, "guard", group])
        .arg(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
}

/// A temporary folder that goes with this value, or with this process, however that ends.
#[allow(
    dead_code,
    reason = "the load tester shares this file, and keeps its real clients in one"
)]
#[derive(Debug)]
pub(crate) struct GuardedFolder {
    folder: tempfile::TempDir,
    guard: Child,
}

#[allow(dead_code, reason = "as above")]
impl GuardedFolder {
    /// Makes one.
    pub(crate) fn new() -> io::Result<Self> {
        let folder = tempfile::Builder::new().tempdir_in(scratch())?;
        let guard = guard("", folder.path())?;
        Ok(Self { folder, guard })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for GuardedFolder {
    fn drop(&mut self) {
        // The folder goes with its own value.
        drop(self.guard.kill());
        drop(self.guard.wait());
    }
}

/// Polls `condition` until it holds, at most `patience`; says whether it did.
#[expect(
    clippy::disallowed_methods,
    reason = "polls from a test's own thread, with a deadline"
)]
pub(crate) fn wait_until(patience: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    true
}

/// Where services keep their folders: the load tester, which shares this file, has no folder of Cargo's.
pub(crate) fn scratch() -> PathBuf {
    option_env!("CARGO_TARGET_TMPDIR").map_or_else(std::env::temp_dir, PathBuf::from)
}

/// A loopback port that nothing listens on now. The kernel gives it to no outgoing connection either (they begin at
/// 32768): while a service is down, those who try to reach it would take its port sooner or later, and it could not
/// come back.
pub(crate) fn free_port() -> u16 {
    loop {
        let drawn = RandomState::new().build_hasher().finish() % 22_000;
        let port = 10_000 + u16::try_from(drawn).expect("below 22,000");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Goal: a service ends with its guard's pipe, together with what it started, and its folder goes.
#[test]
fn a_service_ends_with_its_guard() {
    let folder = tempfile::tempdir().unwrap().keep();
    let mark = folder.join("child");
    let script = format!("sleep 600 & echo $! > '{}'; wait", mark.display());
    let mut command = Command::new("sh");
    let mut service = Service::start(command.args(["-c", &script]), &folder).unwrap();
    let patience = Duration::from_secs(10);
    let child = || {
        std::fs::read_to_string(&mark)
            .ok()?
            .trim()
            .parse::<u32>()
            .ok()
    };
    assert!(wait_until(patience, || child().is_some()));
    let stat = format!("/proc/{}/stat", child().unwrap());
    assert!(service.is_running());
    // What happens when this process ends, however it ends.
    drop(service.guard.stdin.take());
    assert!(wait_until(patience, || !service.is_running()));
    // A zombie that nobody reaped yet is as good as gone.
    let is_gone = || std::fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z "));
    assert!(wait_until(patience, is_gone));
    assert!(wait_until(patience, || !folder.exists()));
}

/// Goal: a folder goes with its value, and with the pipe of its guard.
#[test]
fn a_guarded_folder_goes() {
    let folder = GuardedFolder::new().unwrap();
    let path = folder.path().to_owned();
    std::fs::write(path.join("file"), "x").unwrap();
    drop(folder);
    assert!(!path.exists());
    let mut folder = GuardedFolder::new().unwrap();
    let path = folder.path().to_owned();
    drop(folder.guard.stdin.take());
    assert!(wait_until(Duration::from_secs(10), || !path.exists()));
}
