//! The command line: one file a subcommand, arguments and wiring, no logic.
//!
//! Answers go to stdout, everything else to stderr; both through [`terminal`], but for `--json`. Exit codes: 0 done, 1 the answer is "no" or not all answered,
//! 2 an error, printed on one line as `vogeler: what: why: …`. Invariant: a reader that goes away (`| head`) is no error.

pub mod admin;
pub mod client;
pub mod demo;
pub mod find;
mod json;
pub mod node;
pub mod run;
pub mod server;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
use tokio_util::sync::CancellationToken;

use crate::config::{Config, ConfigError, Override};
use crate::terminal;

/// The answer is "no", or not all answered.
pub const EXIT_NO: u8 = 1;
/// Configuration, usage, broker or store: nothing was answered.
pub const EXIT_ERROR: u8 = 2;

const EXAMPLES: &str = "\
Examples:
  vogeler demo                                   see all of it in one process, nothing to install
  vogeler admin setup                            make queues and database, once
  vogeler server                                 ingest results
  vogeler client                                 run plugins on this machine when asked
  vogeler run rpms -n all                        ask all nodes for rpms, and see who answered
  vogeler find --plugin rpms --contains openssl  which nodes have it
  vogeler-runner -c rpms -n all                  the spelling of 2010, through a link to this program

Settings come from flags, then the environment (VOGELER_<SECTION>_<KEY>), then /etc/vogeler/vogeler.toml.";

/// A configuration database for fleets of machines: any command is a plugin, and its result on every machine is one
/// key of that machine's document.
#[derive(Debug, Parser)]
#[command(name = "vogeler", bin_name = "vogeler", version, after_help = EXAMPLES)]
pub struct Cli {
    /// Flags of every subcommand.
    #[command(flatten)]
    pub settings: Settings,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags that every subcommand takes: where settings come from, and the most used settings.
#[derive(Debug, Args)]
#[command(next_help_heading = "Settings")]
pub struct Settings {
    /// The configuration file [default: $VOGELER_CONFIG, or /etc/vogeler/vogeler.toml if it is there]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What carries messages, like --set broker.dsn=…; others see a password in it, in VOGELER_BROKER_DSN they do not
    #[arg(long, global = true, value_name = "DSN")]
    broker: Option<String>,
    /// Where node documents live, like --set store.dsn=…; for a password use VOGELER_STORE_DSN or the file
    #[arg(long, global = true, value_name = "DSN")]
    store: Option<String>,
    /// error, warn, info, debug, trace, or directives such as info,vogeler::store=debug
    #[arg(long, global = true, value_name = "LEVEL")]
    log_level: Option<String>,
    /// text or json
    #[arg(long, global = true, value_name = "FORMAT")]
    log_format: Option<String>,
    /// Any setting, such as --set server.prefetch=200; may be repeated
    #[arg(long, global = true, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
}

impl Settings {
    /// The settings that the flags make; a later one wins over an earlier one.
    pub fn overrides(&self) -> Result<Vec<Override>, ConfigError> {
        let named = [
            ("--broker", "broker.dsn", &self.broker),
            ("--store", "store.dsn", &self.store),
            ("--log-level", "log.level", &self.log_level),
            ("--log-format", "log.format", &self.log_format),
        ];
        let named = named.into_iter().filter_map(|(flag, key, value)| {
            let value = value.clone()?;
            Some(Ok(Override {
                flag: flag.to_owned(),
                key: key.to_owned(),
                value,
            }))
        });
        named
            .chain(
                self.set
                    .iter()
                    .map(|argument| Override::parse_set(argument)),
            )
            .collect()
    }
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Ingest results from the broker into the store
    Server(server::Args),
    /// Run plugins on this machine when asked, and publish their results
    Client(client::Args),
    /// Ask nodes to run a plugin, and wait for who answers
    Run(run::Args),
    /// Set up and look after broker and store
    Admin(admin::Args),
    /// List nodes, show a node document
    Node(node::Args),
    /// Find nodes by what their documents hold
    Find(find::Args),
    /// The whole system in one process, with nothing to install
    Demo(demo::Args),
}

impl Command {
    /// The log level unless one is set: a daemon tells what it does, a command answers and tells only what is wrong.
    pub fn log_level(&self) -> &'static str {
        match self {
            Self::Server(_) | Self::Client(_) => "info",
            _ => "warn",
        }
    }

    /// What this process is called in traces.
    pub fn service(&self) -> &'static str {
        match self {
            Self::Server(_) => "vogeler-server",
            Self::Client(_) => "vogeler-client",
            Self::Run(_) => "vogeler-runner",
            _ => "vogeler",
        }
    }

    /// Runs the subcommand; `stop` asks it to end cleanly.
    pub async fn run(self, config: Config, stop: CancellationToken) -> anyhow::Result<ExitCode> {
        match self {
            Self::Server(args) => Box::pin(server::run(args, config, stop)).await,
            Self::Client(args) => Box::pin(client::run(args, config, stop)).await,
            Self::Run(args) => Box::pin(run::run(args, config, stop)).await,
            Self::Admin(args) => Box::pin(admin::run(args, config, stop)).await,
            Self::Node(args) => Box::pin(node::run(args, config)).await,
            Self::Find(args) => Box::pin(find::run(args, config)).await,
            Self::Demo(args) => Box::pin(demo::run(args, config, stop)).await,
        }
    }
}

/// Reads the command line, whatever name the program was invoked by. Help, version and usage errors are printed
/// here; then the exit code is the `Err`.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, ExitCode> {
    let error = match Cli::try_parse_from(expand_name(args.into_iter().collect())) {
        Ok(cli) => return Ok(cli),
        Err(error) => error,
    };
    if !error.use_stderr() {
        // Broken pipe on `--help | head`: nobody is left to tell.
        drop(error.print());
        return Err(ExitCode::SUCCESS);
    }
    let text = error.render().to_string();
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        complain(&text);
    } else {
        let text = text.strip_prefix("error: ").unwrap_or(&text);
        complain(&format!("vogeler: {text}"));
    }
    Err(ExitCode::from(EXIT_ERROR))
}

/// `vogeler-server …` is `vogeler server …`, and so on; `vogeler-runner` is `run`.
fn expand_name(mut args: Vec<OsString>) -> Vec<OsString> {
    let name = args
        .first()
        .and_then(|name| Path::new(name).file_name()?.to_str());
    let subcommand = match name {
        Some("vogeler-server") => "server",
        Some("vogeler-client") => "client",
        Some("vogeler-runner") => "run",
        Some("vogeler-admin") => "admin",
        _ => return args,
    };
    args.insert(1, subcommand.into());
    args
}

/// The exit code of a subcommand that has ended; an error is printed.
pub fn finish(result: anyhow::Result<ExitCode>) -> ExitCode {
    match result {
        Ok(exit_code) => exit_code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("vogeler: {}\n", one_line(&error)));
            ExitCode::from(EXIT_ERROR)
        }
    }
}

/// An error and its causes on one line, without what an outer message repeats of an inner one.
pub fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if line.contains(&text) {
            continue;
        }
        if !line.is_empty() {
            line.push_str(": ");
        }
        line.push_str(&text);
    }
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Prints an answer for people to stdout, safe for their terminal. Use this, not `println!`, which panics when the
/// reader has gone.
pub fn answer(text: &str) -> io::Result<()> {
    answer_exact(&terminal::lines(text))
}

/// Prints an answer for programs to stdout, as it is.
pub fn answer_exact(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Prints a JSON value for people, with a line a member.
fn answer_json(json: &str) -> io::Result<()> {
    let mut stdout = io::BufWriter::new(io::stdout().lock());
    json::print(json, &mut stdout)?;
    stdout.write_all(b"\n")?;
    stdout.flush()
}

/// Prints to stderr what is no answer and no log line, safe for a terminal. With stderr gone, nobody is left to tell.
fn complain(text: &str) {
    drop(
        io::stderr()
            .lock()
            .write_all(terminal::lines(text).as_bytes()),
    );
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io_errors = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>());
    io_errors
        .map(io::Error::kind)
        .any(|kind| kind == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn args(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    /// Goal: clap's own check of the whole command line finds nothing.
    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Goal: each link behaves as its subcommand, with the spelling of 2010 too.
    #[test]
    fn links_are_subcommands() {
        for (line, expanded) in [
            ("/usr/bin/vogeler-server", "/usr/bin/vogeler-server server"),
            (
                "vogeler-client --once rpms",
                "vogeler-client client --once rpms",
            ),
            (
                "./vogeler-runner -c rpms -n all",
                "./vogeler-runner run -c rpms -n all",
            ),
            ("vogeler-admin setup", "vogeler-admin admin setup"),
            ("vogeler run rpms", "vogeler run rpms"),
        ] {
            assert_eq!(expand_name(args(line)), args(expanded));
        }
        for line in [
            "vogeler-runner -c rpms -n all",
            "vogeler-runner -x rpms -n all",
            "vogeler run rpms -n all",
        ] {
            assert!(
                matches!(parse(args(line)).unwrap().command, Command::Run(_)),
                "{line}"
            );
        }
    }

    /// Goal: the flags for single settings and --set become the same overrides, in order.
    #[test]
    fn flags_become_overrides() {
        let cli = parse(args(
            "vogeler run rpms -n all --store memory: --set store.dsn=sqlite:/x",
        ))
        .unwrap();
        let overrides = cli.settings.overrides().unwrap();
        let shown: Vec<_> = overrides
            .iter()
            .map(|o| (&*o.flag, &*o.key, &*o.value))
            .collect();
        assert_eq!(
            shown,
            [
                ("--store", "store.dsn", "memory:"),
                ("--set store.dsn", "store.dsn", "sqlite:/x")
            ]
        );
    }

    /// Goal: causes are joined on one line, and what an outer message already says is not said twice.
    #[test]
    fn errors_are_one_line() {
        let error = anyhow::anyhow!("no route")
            .context("away: no route")
            .context("cannot\nsetup");
        assert_eq!(one_line(&error), "cannot setup: away: no route");
    }
}
