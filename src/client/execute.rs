//! Runs a plugin under a supervisor: without a shell, bounded in time and output, and with nothing left running
//! afterwards.
//!
//! Goes in: a plugin. Comes out: content and duration. An [`Execution`] always comes back, at the latest [`REAP_MAX`]
//! after the timeout. Invariant: when the execution ends or is dropped, or this process dies, everything that the
//! plugin started is killed (`supervise.rs` sees to it). What could not be killed is reported.
//!
//! The plugin has ended when its program has ended and nobody holds its output any more. A background program that may
//! still print belongs to the answer; one that does not hold the output (a daemon) is killed at the end.
//!
//! The program gets an environment of three variables ([`PATH`], `LANG=C.UTF-8`, `HOME=/`; with `user =` also `USER`
//! and `LOGNAME`, and that user's `HOME`). It works in `/` and has no input. So what it prints depends on the machine,
//! not on who started the client.

use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use super::plugin::Plugin;
use super::supervise::{self, KILL_MAX, Said};
use crate::format::{self, FormatError};
use crate::hash;
use crate::wire::{Content, ErrorKind, PluginError};

/// Where programs are looked up.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How much of the end of standard error is kept, in bytes.
pub const STDERR_BYTES_MAX: usize = 4096;
/// Longest wait for the supervisor to kill what still runs. The supervisor itself gives up a little sooner.
pub const REAP_MAX: Duration = KILL_MAX.saturating_add(Duration::from_secs(1));
const READ_BYTES: usize = 16 * 1024;
/// This very program, also after a package has replaced its file.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// The program that supervises plugins when started with the supervisor's arguments: `vogeler` itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Supervisor(PathBuf);

impl Supervisor {
    /// The running program. Its `main` must call [`supervise::run_if_asked`].
    pub fn this_program() -> Self {
        Self(PathBuf::from(THIS_PROGRAM))
    }

    /// Another program: `vogeler`, for tests and tools that use the library.
    pub fn at(program: impl Into<PathBuf>) -> Self {
        Self(program.into())
    }
}

/// What bounds an execution.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How long a plugin may take if it sets no timeout of its own.
    pub timeout: Duration,
    /// How much a plugin may print, in bytes.
    pub output_bytes_max: usize,
}

/// The outcome of running a plugin.
#[derive(Debug)]
pub struct Execution {
    /// The value, or the error in its place.
    pub content: Content,
    /// How long the program ran.
    pub duration: Duration,
}

/// Runs `plugin` under `supervisor`.
pub async fn execute(plugin: &Plugin, limits: Limits, supervisor: &Supervisor) -> Execution {
    let start = Instant::now();
    let output = output_of(plugin, limits, supervisor).await;
    let duration = start.elapsed();
    let content = match output {
        Ok(output) => content_of(plugin, output).await,
        Err(error) => Content::Error(error),
    };
    Execution { content, duration }
}

/// Formats and hashes outside the runtime's threads, since megabytes of YAML take a while.
async fn content_of(plugin: &Plugin, output: Vec<u8>) -> Content {
    let format = plugin.format;
    let volatile = plugin.volatile.clone();
    let formatted = tokio::task::spawn_blocking(move || {
        let json = format::value_of(format, &output)?;
        let hash = hash::content_hash(&json, &volatile)?;
        Ok::<_, FormatError>(Content::Value { json, hash })
    });
    let error = match formatted.await {
        Ok(Ok(content)) => return content,
        Ok(Err(error)) => failure(
            ErrorKind::BadOutput,
            format!("the output is not {format}: {error}"),
        ),
        Err(error) => failure(
            ErrorKind::Failed,
            format!("reading the output as {format} failed: {error}"),
        ),
    };
    Content::Error(error)
}

fn failure(kind: ErrorKind, message: String) -> PluginError {
    PluginError {
        kind,
        message,
        exit: None,
        stderr: None,
    }
}

/// What the program printed, if all went well.
async fn output_of(
    plugin: &Plugin,
    limits: Limits,
    supervisor: &Supervisor,
) -> Result<Vec<u8>, PluginError> {
    let mut process = Process::start(plugin, supervisor)?;
    let timeout = plugin.timeout.unwrap_or(limits.timeout);
    let mut stderr = Tail::default();
    let ended = {
        let run = process.run(limits.output_bytes_max, &mut stderr);
        tokio::time::timeout(timeout, run).await
    };
    let left = process.end(plugin).await;
    let mut error = match ended {
        Ok(Ok((status, output))) if is_success(plugin, status) => return Ok(output),
        Ok(Ok((status, _))) => exit_failure(status),
        Ok(Err(stop)) => stop.into_failure(limits, &left),
        Err(_elapsed) => {
            let text = format!("it, or a program it started, still ran after {timeout:?} and");
            failure(ErrorKind::Timeout, format!("{text} {}", killed(&left)))
        }
    };
    error.stderr = stderr.into_text();
    Err(error)
}

/// What became of the programs at the end, for people.
fn killed(left: &[String]) -> String {
    if left.is_empty() {
        return "was killed".to_owned();
    }
    format!("could not be killed: {} still there", left.join(", "))
}

fn is_success(plugin: &Plugin, status: ExitStatus) -> bool {
    status
        .code()
        .is_some_and(|code| plugin.success.contains(&code))
}

fn exit_failure(status: ExitStatus) -> PluginError {
    PluginError {
        exit: status.code(),
        // "exit status: 3", or "signal: 9 (SIGKILL)".
        ..failure(ErrorKind::ExitStatus, format!("it ended with {status}"))
    }
}

/// Why a running program is stopped.
#[derive(Debug)]
enum Stop {
    OutputTooLarge,
    NotStarted(String),
    Io(std::io::Error),
    /// The supervisor was killed, so nobody waits for the program any more.
    SupervisorGone,
}

impl From<std::io::Error> for Stop {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

impl Stop {
    fn into_failure(self, limits: Limits, left: &[String]) -> PluginError {
        match self {
            Self::OutputTooLarge => failure(
                ErrorKind::OutputTooLarge,
                format!(
                    "it printed more than {} bytes and {}; raise client.output_bytes_max if it must",
                    limits.output_bytes_max,
                    killed(left),
                ),
            ),
            Self::NotStarted(message) => failure(ErrorKind::NotStarted, message),
            Self::Io(error) => failure(
                ErrorKind::Failed,
                format!("its output cannot be read: {error}"),
            ),
            Self::SupervisorGone => failure(
                ErrorKind::Failed,
                "the process of vogeler that watches over it was killed; what it started may still run"
                    .to_owned(),
            ),
        }
    }
}

/// A running program, seen through its supervisor.
#[derive(Debug)]
struct Process {
    /// What the supervisor says. Dropping it asks the supervisor to end the program.
    said: BufReader<UnixStream>,
    supervisor: Child,
    /// The program's process group.
    group: Option<Pid>,
}

impl Process {
    fn start(plugin: &Plugin, supervisor: &Supervisor) -> Result<Self, PluginError> {
        let started = Self::start_supervisor(plugin, supervisor);
        started.map_err(|error| {
            let Supervisor(supervisor) = supervisor;
            let message = format!(
                "{:?} cannot be started: its supervisor, {}, cannot be: {error}",
                plugin.program,
                supervisor.display()
            );
            failure(ErrorKind::NotStarted, message)
        })
    }

    fn start_supervisor(plugin: &Plugin, supervisor: &Supervisor) -> std::io::Result<Self> {
        let (said, stdin) = std::os::unix::net::UnixStream::pair()?;
        said.set_nonblocking(true)?;
        let user = plugin.user.as_deref();
        let name = plugin.name.as_str();
        let arguments = supervise::arguments(name, user, &plugin.program, &plugin.arguments);
        let supervisor = Command::new(&supervisor.0)
            .arg0(supervise::NAME)
            .args(arguments)
            .env_clear()
            .env("PATH", PATH)
            .env("LANG", "C.UTF-8")
            .env("HOME", "/")
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(stdin)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        Ok(Self {
            said: BufReader::new(UnixStream::from_std(said)?),
            supervisor,
            group: None,
        })
    }

    /// Runs until the program has ended and nobody holds the pipes any more.
    async fn run(
        &mut self,
        output_bytes_max: usize,
        stderr: &mut Tail,
    ) -> Result<(ExitStatus, Vec<u8>), Stop> {
        let stdout = read_capped(self.supervisor.stdout.take(), output_bytes_max);
        let stderr = read_tail(self.supervisor.stderr.take(), stderr);
        let status = status(&mut self.said, &mut self.group);
        let (output, (), status) = tokio::try_join!(stdout, stderr, status)?;
        Ok((status, output))
    }

    /// Has the supervisor kill what is left of the program. Returns what it could not kill.
    async fn end(&mut self, plugin: &Plugin) -> Vec<String> {
        let end = async {
            // An error means that the supervisor is already gone.
            self.said.get_mut().shutdown().await.ok();
            loop {
                match next_said(&mut self.said).await {
                    Ok(Said::Gone { killed, left }) => return Some((killed, left)),
                    Ok(_) => {}
                    // The supervisor has said everything, or was killed.
                    Err(_) => break,
                }
            }
            let ended = self.supervisor.wait().await.ok()?;
            ended.success().then(Default::default)
        };
        let ended = tokio::time::timeout(REAP_MAX, end).await.ok().flatten();
        let Some((killed, left)) = ended else {
            self.kill_blindly();
            return Vec::new();
        };
        if !killed.is_empty() {
            tracing::info!(target: "vogeler::client", plugin = %plugin.name, killed = killed.join(", "), "programs of the plugin still ran and were killed");
        }
        if !left.is_empty() {
            tracing::warn!(target: "vogeler::client", plugin = %plugin.name, left = left.join(", "), "programs of the plugin cannot be killed and still run");
        }
        self.supervisor.wait().await.ok();
        left
    }

    /// Kills the program's own process group: without a supervisor, no more of it is known.
    fn kill_blindly(&mut self) {
        tracing::warn!(target: "vogeler::client", pid = self.supervisor.id(), "a plugin's supervisor was killed or hangs; what the plugin started may still run");
        self.supervisor.start_kill().ok();
        if let Some(group) = self.group.take() {
            kill_process_group(group, Signal::KILL).ok();
        }
    }
}

/// The program's status, once it has ended.
async fn status(
    said: &mut BufReader<UnixStream>,
    group: &mut Option<Pid>,
) -> Result<ExitStatus, Stop> {
    loop {
        match next_said(said).await.map_err(|_| Stop::SupervisorGone)? {
            Said::Started { pid } => *group = Pid::from_raw(pid),
            Said::NotStarted { message } => return Err(Stop::NotStarted(message)),
            Said::Ended { status } => return Ok(ExitStatus::from_raw(status)),
            Said::Gone { .. } => return Err(Stop::SupervisorGone),
        }
    }
}

async fn next_said(said: &mut BufReader<UnixStream>) -> std::io::Result<Said> {
    let mut line = Vec::new();
    said.read_until(b'\n', &mut line).await?;
    Ok(serde_json::from_slice(&line)?)
}

async fn read_capped(
    pipe: Option<impl AsyncRead + Unpin>,
    bytes_max: usize,
) -> Result<Vec<u8>, Stop> {
    let mut output = Vec::new();
    let Some(pipe) = pipe else {
        return Ok(output);
    };
    // One byte more than allowed tells "exactly full" from "too much".
    let mut capped = pipe.take(bytes_max as u64 + 1);
    capped.read_to_end(&mut output).await?;
    if output.len() > bytes_max {
        return Err(Stop::OutputTooLarge);
    }
    Ok(output)
}

async fn read_tail(pipe: Option<impl AsyncRead + Unpin>, tail: &mut Tail) -> Result<(), Stop> {
    let Some(mut pipe) = pipe else {
        return Ok(());
    };
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match pipe.read(&mut buffer).await? {
            0 => return Ok(()),
            read => tail.push(&buffer[..read]),
        }
    }
}

/// The last [`STDERR_BYTES_MAX`] bytes of a stream.
#[derive(Debug, Default)]
struct Tail(Vec<u8>);

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        let excess = self.0.len().saturating_sub(STDERR_BYTES_MAX);
        self.0.drain(..excess);
    }

    /// The text without outer white space; none if it is empty. Bytes that are not UTF-8 become U+FFFD.
    fn into_text(self) -> Option<String> {
        let text = String::from_utf8_lossy(&self.0);
        let text = text.trim();
        (!text.is_empty()).then(|| text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However the stream is cut, its end is kept.
        #[test]
        fn a_tail_keeps_the_end(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 0..6)) {
            let mut tail = Tail::default();
            for piece in &pieces {
                tail.push(piece);
            }
            let whole = pieces.concat();
            let start = whole.len().saturating_sub(STDERR_BYTES_MAX);
            prop_assert_eq!(&tail.0, &whole[start..]);
        }
    }
}
