//! Services that end when the test process ends, however it ends.
//!
//! Beside every service a small shell waits on a pipe that only this process holds open. When this process returns,
//! panics or is killed, the pipe ends, and the shell ends the service's process group and removes its folder.

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Waits for the end of its input, then ends process group `$1` and removes folder `$2`. (`kill` of some shells takes
/// no `--`.)
const GUARD: &str = r#"
    cat >/dev/null
    kill -TERM "-$1" 2>/dev/null
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        kill -0 "-$1" 2>/dev/null || break
        sleep 0.2
    done
    kill -KILL "-$1" 2>/dev/null
    rm -rf -- "$2"
"#;
/// Pause between two looks at a condition.
const POLL: Duration = Duration::from_millis(20);

/// A service under guard. Dropping it ends the service; a static is never dropped, and the guard ends it all the same.
#[derive(Debug)]
pub(crate) struct Guarded {
    service: Child,
    /// Its input is the pipe.
    guard: Child,
}

impl Guarded {
    /// Starts `command` in a process group of its own. `folder` is removed when the service ended.
    pub(crate) fn spawn(command: &mut Command, folder: &Path) -> Self {
        let service = command
            .process_group(0)
            .stdin(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
        let guard = Command::new("sh")
            .args(["-c", GUARD, "guard"])
            .arg(service.id().to_string())
            .arg(folder)
            // Ctrl-C ends the tests, and must not end the guard first.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { service, guard }
    }

    /// Whether the service still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.service.try_wait(), Ok(None))
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // Ends the guard's input; it ends the service.
        drop(self.guard.stdin.take());
        // Reaped here, so that the guard sees the group empty as soon as it is.
        self.service.wait().ok();
        self.guard.wait().ok();
    }
}

/// A loopback port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// Looks until `condition` gives something; panics with `what` after `deadline`.
pub(crate) fn wait_for<T>(
    what: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> Option<T>,
) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(
            start.elapsed() < deadline,
            "{what}: not within {deadline:?}"
        );
        std::thread::park_timeout(POLL);
    }
}

/// Goal: a service ends with its guard, together with what it started, and its folder goes.
#[test]
fn a_guarded_service_ends_with_its_guard() {
    let folder = tempfile::tempdir().unwrap().keep();
    let mark = folder.join("child");
    let script = format!("sleep 600 & echo $! > '{}'; wait", mark.display());
    let mut guarded = Guarded::spawn(Command::new("sh").args(["-c", &script]), &folder);
    let child = wait_for("the child's pid", Duration::from_secs(5), || {
        let text = std::fs::read_to_string(&mark).ok()?;
        text.trim().parse::<u32>().ok()
    });
    assert!(guarded.is_running());
    drop(guarded);
    assert!(!folder.exists());
    // A zombie that nobody reaped yet is as good as gone.
    wait_for("the child's end", Duration::from_secs(5), || {
        let stat = std::fs::read_to_string(format!("/proc/{child}/stat"));
        stat.map_or(Some(()), |stat| stat.contains(") Z ").then_some(()))
    });
}
