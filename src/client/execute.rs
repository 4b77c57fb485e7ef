//! Runs a plugin: one process group, no shell, bounded in time and output, gone when we are done with it.
//!
//! A plugin in, content and duration out; an [`Execution`] always comes back, at the latest [`REAP_MAX`] after the
//! timeout. Invariant: when the future ends or is dropped before the program did, the whole process group is killed.
//!
//! The program sees an environment of three variables ([`PATH`], `LANG=C.UTF-8`, `HOME=/`), works in `/`, and reads
//! nothing: what it prints depends on the machine, not on who started the client.

use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

use super::plugin::Plugin;
use crate::format::{self, FormatError};
use crate::hash;
use crate::wire::{Content, ErrorKind, PluginError};

/// Where programs are looked up.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How much of the end of standard error is kept, in bytes.
pub const STDERR_BYTES_MAX: usize = 4096;
/// Longest wait for a killed program to vanish; one that hangs in the kernel is left to it.
pub const REAP_MAX: Duration = Duration::from_secs(5);
const READ_BYTES: usize = 16 * 1024;

/// What bounds an execution.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How long it may take, for a plugin that names no time of its own.
    pub timeout: Duration,
    /// How much it may print, in bytes.
    pub output_bytes_max: usize,
}

/// What came of running a plugin.
#[derive(Debug)]
pub struct Execution {
    /// The value, or the error in its place.
    pub content: Content,
    /// How long the program ran.
    pub duration: Duration,
}

/// Runs `plugin`.
pub async fn execute(plugin: &Plugin, limits: Limits) -> Execution {
    let start = Instant::now();
    let output = output_of(plugin, limits).await;
    let duration = start.elapsed();
    let content = match output {
        Ok(output) => content_of(plugin, output).await,
        Err(error) => Content::Error(error),
    };
    Execution { content, duration }
}

/// Formats and hashes away from the runtime's threads: megabytes of YAML take a while.
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
async fn output_of(plugin: &Plugin, limits: Limits) -> Result<Vec<u8>, PluginError> {
    let mut process = Process::start(plugin)?;
    let timeout = plugin.timeout.unwrap_or(limits.timeout);
    let mut stderr = Tail::default();
    let ended = {
        let run = process.run(limits.output_bytes_max, &mut stderr);
        tokio::time::timeout(timeout, run).await
    };
    let mut error = match ended {
        Ok(Ok((status, output))) if is_success(plugin, status) => return Ok(output),
        Ok(Ok((status, _))) => exit_failure(status),
        Ok(Err(stop)) => {
            process.kill().await;
            stop.into_failure(limits)
        }
        Err(_elapsed) => {
            process.kill().await;
            failure(
                ErrorKind::Timeout,
                format!("it, or a program it started, still ran after {timeout:?} and was killed"),
            )
        }
    };
    error.stderr = stderr.into_text();
    Err(error)
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
    Io(std::io::Error),
}

impl From<std::io::Error> for Stop {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

impl Stop {
    fn into_failure(self, limits: Limits) -> PluginError {
        match self {
            Self::OutputTooLarge => failure(
                ErrorKind::OutputTooLarge,
                format!(
                    "it printed more than {} bytes and was killed; raise client.output_bytes_max if it must",
                    limits.output_bytes_max
                ),
            ),
            Self::Io(error) => failure(
                ErrorKind::Failed,
                format!("its output cannot be read: {error}"),
            ),
        }
    }
}

/// A program that runs, and the group that it leads.
#[derive(Debug)]
struct Process {
    /// Dropped before the child: as long as the leader is not reaped, its number is nobody else's.
    group: Group,
    child: Child,
}

impl Process {
    fn start(plugin: &Plugin) -> Result<Self, PluginError> {
        let mut command = Command::new(&plugin.program);
        command
            .args(&plugin.arguments)
            .env_clear()
            .env("PATH", PATH)
            .env("LANG", "C.UTF-8")
            .env("HOME", "/")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        let child = command.spawn().map_err(|error| {
            let message = format!("{:?} cannot be started: {error}", plugin.program);
            failure(ErrorKind::NotStarted, message)
        })?;
        let leader = child.id().and_then(|id| i32::try_from(id).ok());
        Ok(Self {
            group: Group(leader.and_then(Pid::from_raw)),
            child,
        })
    }

    /// Reads until nobody holds the pipes any more, and only then reaps the leader: whoever kills the group before
    /// that can hit no stranger.
    async fn run(
        &mut self,
        output_bytes_max: usize,
        stderr: &mut Tail,
    ) -> Result<(ExitStatus, Vec<u8>), Stop> {
        let stdout = read_capped(self.child.stdout.take(), output_bytes_max);
        let stderr = read_tail(self.child.stderr.take(), stderr);
        let (output, ()) = tokio::try_join!(stdout, stderr)?;
        let status = self.child.wait().await?;
        self.group.0 = None;
        Ok((status, output))
    }

    async fn kill(&mut self) {
        self.group.kill();
        let reaped = tokio::time::timeout(REAP_MAX, self.child.wait()).await;
        if reaped.is_err() {
            tracing::warn!(target: "vogeler::client", pid = self.child.id(), "a killed program does not end; it is left to the kernel");
        }
    }
}

/// A process group that is killed when it is dropped; none once its leader is reaped.
#[derive(Debug)]
struct Group(Option<Pid>);

impl Group {
    fn kill(&mut self) {
        // An error says that the group is gone already, which is all that is wanted.
        if let Some(group) = self.0.take()
            && let Err(error) = kill_process_group(group, Signal::KILL)
        {
            tracing::debug!(target: "vogeler::client", %error, "the process group was gone");
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
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

    /// As text without outer white space, none if there is none. Bytes that are not UTF-8 become U+FFFD.
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
