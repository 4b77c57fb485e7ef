//! The supervisor: a small process of our own between the client and each plugin, which ends all that the plugin started.
//!
//! ```text
//! client ─starts─▶ supervisor (this program, re-executed) ─starts─▶ the plugin's program ─▶ whatever that starts
//!    ◀── "started", "ended", "gone" ── socket on the supervisor's stdin ── its end means: kill all ──▶
//! ```
//!
//! Invariant: the kernel gives every orphan below a *subreaper* to that subreaper, whatever session or group the
//! orphan moved to. So a supervisor without children has no descendants, and knows exactly when nothing is left. It
//! also notices that the client is gone, however that ended, because the socket ends with it.
//!
//! It is a process, not a task, because two plugins may run at once and the orphans of each must be told apart. It
//! keeps the client's user when the program runs as another (`user =`), so that it may kill the program.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, set_child_subreaper, wait};
use rustix::stdio::{dup2_stderr, dup2_stdout};
use serde::{Deserialize, Serialize};

use super::user::User;

/// The name (argument 0) that makes this program a supervisor.
pub(super) const NAME: &str = "vogeler-plugin";
/// How long killed programs may take to vanish. A program that hangs in the kernel is left running.
pub(super) const KILL_MAX: Duration = Duration::from_secs(4);
/// Pause between two scans for remaining processes.
const LOOK_PAUSE: Duration = Duration::from_millis(5);
/// The supervisor gives up after this many consecutive scans in which it could kill nothing.
const FUTILE_LOOKS_MAX: u32 = 20;
/// Fields of `/proc/PID/stat` between the parent's number and the number of threads, see proc(5).
const THREADS_AFTER_PARENT: usize = 15;
/// Most processes named.
const NAMES_MAX: usize = 5;

/// What a supervisor says to its client, one JSON text a line.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Said {
    /// The program runs; it leads a process group of its own.
    Started {
        /// The program's process.
        pid: i32,
    },
    /// The program could not be started. Nothing follows.
    NotStarted {
        /// Why, for people.
        message: String,
    },
    /// The program ended. What it started may still run.
    Ended {
        /// The status as `wait` gives it.
        status: i32,
    },
    /// The answer to a request for the end. Nothing follows.
    Gone {
        /// Programs that were killed.
        killed: Vec<String>,
        /// Programs that could not be killed.
        left: Vec<String>,
    },
}

/// Acts as the supervisor if `args`, the program's own arguments, ask for it.
pub fn run_if_asked(args: &[OsString]) -> Option<ExitCode> {
    let [name, _plugin, user, program, arguments @ ..] = args else {
        return None;
    };
    if name != NAME {
        return None;
    }
    Some(match run(user, program, arguments) {
        Ok(()) => ExitCode::SUCCESS,
        // The client is gone, or hears it by the end of the socket.
        Err(_) => ExitCode::FAILURE,
    })
}

/// The arguments (after [`NAME`]) that start `program` under supervision. [`run_if_asked`] reads them.
pub(super) fn arguments<'a>(
    plugin: &'a str,
    user: Option<&'a str>,
    program: &'a str,
    arguments: &'a [String],
) -> impl Iterator<Item = &'a str> {
    let first = [plugin, user.unwrap_or_default(), program];
    first
        .into_iter()
        .chain(arguments.iter().map(String::as_str))
}

fn run(user: &OsStr, program: &OsStr, arguments: &[OsString]) -> io::Result<()> {
    let client = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    set_child_subreaper(Some(getpid()))?;
    let main = match start(user, program, arguments) {
        Ok(main) => main,
        Err(message) => return say(&client, &Said::NotStarted { message }),
    };
    // From here on, only the plugin holds the pipes: when they close, it has ended.
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdout(&nothing)?;
    dup2_stderr(&nothing)?;
    let pid = main.as_raw_nonzero().get();
    say(&client, &Said::Started { pid }).ok();

    let (all_gone, is_all_gone) = mpsc::sync_channel(1);
    let teller = client.try_clone()?;
    std::thread::spawn(move || reap(main, &teller, &all_gone));
    // The client sends nothing. This returns when the client stops listening or is gone.
    io::copy(&mut &client, &mut io::sink()).ok();
    let (killed, left) = kill_all(&is_all_gone);
    say(&client, &Said::Gone { killed, left })
}

fn say(mut client: &UnixStream, said: &Said) -> io::Result<()> {
    let mut line = serde_json::to_vec(said)?;
    line.push(b'\n');
    client.write_all(&line)
}

/// Starts the program, as `user` unless that is empty.
fn start(user: &OsStr, program: &OsStr, arguments: &[OsString]) -> Result<Pid, String> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .process_group(0);
    let spawned = if user.is_empty() {
        command.spawn()
    } else {
        let user = User::find(&user.to_string_lossy()).map_err(|error| error.to_string())?;
        user.spawn(command)
    };
    let program = program.to_string_lossy();
    let child = spawned.map_err(|error| format!("{program:?} cannot be started: {error}"))?;
    Ok(Pid::from_child(&child))
}

/// Reaps every child that ends, until none is left.
fn reap(main: Pid, client: &UnixStream, all_gone: &SyncSender<()>) {
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == main => {
                let status = status.as_raw();
                // Failing is harmless: it means that the client is gone, which `run` notices.
                say(client, &Said::Ended { status }).ok();
            }
            Ok(_) | Err(Errno::INTR) => {}
            // No child is left, so there is no descendant, and nobody who could start one.
            Err(_) => break,
        }
    }
    all_gone.send(()).ok();
}

/// Kills all descendants until none is left; says which were killed, and which could not be.
fn kill_all(is_all_gone: &Receiver<()>) -> (Vec<String>, Vec<String>) {
    let start = Instant::now();
    let mut killed = Names::default();
    let mut futile = 0;
    let mut pause = Duration::ZERO;
    loop {
        match is_all_gone.recv_timeout(pause) {
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return (killed.0, Vec::new()),
            Err(RecvTimeoutError::Timeout) => pause = LOOK_PAUSE,
        }
        let mut left = Names::default();
        let mut is_futile = true;
        for process in descendants(getpid()) {
            // A process that ended meanwhile counts as killed.
            let is_refused = kill_process(process.pid, Signal::KILL) == Err(Errno::PERM);
            if !process.is_alive {
                continue;
            }
            is_futile &= is_refused;
            left.add(&process);
            if !is_refused {
                killed.add(&process);
            }
        }
        futile = if is_futile { futile + 1 } else { 0 };
        if start.elapsed() > KILL_MAX || (futile > FUTILE_LOOKS_MAX && !left.0.is_empty()) {
            return (killed.0, left.0);
        }
    }
}

/// The first few processes, by name and number.
#[derive(Debug, Default)]
struct Names(Vec<String>);

impl Names {
    fn add(&mut self, process: &Process) {
        let name = format!("{} (process {})", process.name, process.pid);
        if self.0.len() < NAMES_MAX && !self.0.contains(&name) {
            self.0.push(name);
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Process {
    pid: Pid,
    parent: Pid,
    name: String,
    /// Whether any of its threads runs.
    is_alive: bool,
}

/// All processes below `top`.
fn descendants(top: Pid) -> Vec<Process> {
    let mut children: HashMap<Pid, Vec<Process>> = HashMap::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        // A process whose file cannot be read has just ended.
        let stat = fs::read(process.path().join("stat")).unwrap_or_default();
        if let Some(process) = process_of(&stat) {
            children.entry(process.parent).or_default().push(process);
        }
    }
    let mut found = children.remove(&top).unwrap_or_default();
    let mut next = 0;
    while let Some(process) = found.get(next) {
        let below = children.remove(&process.pid);
        found.extend(below.into_iter().flatten());
        next += 1;
    }
    found
}

/// Reads `/proc/PID/stat`. A process whose first thread has ended shows as a zombie even while other threads run.
fn process_of(stat: &[u8]) -> Option<Process> {
    let stat = String::from_utf8_lossy(stat);
    // The name may hold anything, parentheses too.
    let (pid, rest) = stat.split_once(" (")?;
    let (name, rest) = rest.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    let number = |text: &str| text.parse().ok().and_then(Pid::from_raw);
    let parent = number(fields.next()?)?;
    let threads = fields.nth(THREADS_AFTER_PARENT)?.parse::<u32>().ok()?;
    Some(Process {
        pid: number(pid)?,
        parent,
        name: name.to_owned(),
        is_alive: match state {
            "X" => false,
            "Z" => threads > 1,
            _ => true,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the parent of a process is found whatever the process calls itself; a zombie is alive only while threads
    /// of it run.
    #[test]
    fn the_kernels_line_is_understood() {
        let of = |stat: &str| process_of(stat.as_bytes());
        let line = |state: &str, threads: u32| {
            format!(
                "71 (a) R (b) {state} 12 71 71 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 {threads} 0 99"
            )
        };
        let found = of(&line("S", 1)).unwrap();
        let pid = |pid| Pid::from_raw(pid).unwrap();
        assert_eq!((found.pid, found.parent), (pid(71), pid(12)));
        assert_eq!(found.name, "a) R (b");
        for (state, threads, is_alive) in [
            ("S", 1, true),
            ("Z", 1, false),
            ("Z", 2, true),
            ("X", 1, false),
        ] {
            assert_eq!(of(&line(state, threads)).unwrap().is_alive, is_alive);
        }
        assert_eq!(of(""), None);
        let own = std::process::Command::new("sleep").arg("60").spawn();
        let mut own = own.unwrap();
        let found = descendants(getpid());
        let own_pid = Pid::from_child(&own);
        assert!(
            found
                .iter()
                .any(|found| found.pid == own_pid && found.is_alive)
        );
        own.kill().unwrap();
        own.wait().unwrap();
    }

    /// Goal: a program that is not called as the supervisor does its normal work.
    #[test]
    fn only_its_name_makes_a_supervisor() {
        let args = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        assert!(run_if_asked(&args(&["vogeler", "client", "--list", "x"])).is_none());
        assert!(run_if_asked(&args(&["vogeler-plugin", "x"])).is_none());
    }
}
