//! `vogeler run`: ask nodes to run a plugin, and wait for who answers.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::broker::{self, Broker};
use crate::config::{Config, span};
use crate::log;
use crate::runner::progress::Progress;
use crate::runner::report::WIDTH_DEFAULT;
use crate::runner::{self, Report, RunRequest, Target};
use crate::store;
use crate::terminal;
use crate::wire::{PluginName, RunId};

/// Longest run: a command that waits longer in a queue is no question any more.
const TIMEOUT_MAX: Duration = Duration::from_hours(7 * 24);
const EXAMPLES: &str = "\
Examples:
  vogeler run rpms -n all
  vogeler run facter -n web01.example.com,web02.example.com --timeout 5min
  vogeler run ohai -n @web --json
  vogeler-runner -c rpms -n all

Answered means that the store has what the node gave: stored, unchanged (it had the same already), a copy (stored, and
delivered twice) or superseded (a newer result overtook it). What is older than what is stored is no answer. A node is
silent if it said nothing, whatever its schedule gave meanwhile, and unknown if receipts may have been lost, or the run
was stopped, and the store tells nothing of this run either.

Exit code: 0 if every node asked is answered, 1 if any is older, failed, refused, expired, silent or unknown, 2 on an error.";

/// Arguments of `vogeler run`.
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The plugin to run, by the name that the clients' plugin files give it
    #[arg(value_name = "PLUGIN", required_unless_present = "command")]
    plugin: Option<PluginName>,
    /// The same, spelled as in 2010
    #[arg(
        short = 'c',
        long = "command",
        short_alias = 'x',
        value_name = "PLUGIN",
        conflicts_with = "plugin"
    )]
    command: Option<PluginName>,
    /// Whom to ask: all, NAME[,NAME…] or @GROUP
    #[arg(short = 'n', long = "nodes", value_name = "TARGET")]
    nodes: Target,
    /// How long to wait; nodes that hear the command later do not run it
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_timeout)]
    timeout: Duration,
    /// Print the run's id as soon as the broker has the command, and wait for nobody
    #[arg(long)]
    no_wait: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    /// Print all names and reasons, however many
    #[arg(short, long)]
    verbose: bool,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    let timeout = span::parse(text)?;
    if timeout.is_zero() || timeout > TIMEOUT_MAX {
        return Err("a run may take longer than nothing and up to 168h".to_owned());
    }
    Ok(timeout)
}

/// Asks, waits, reports.
pub async fn run(args: Args, config: Config, stop: CancellationToken) -> anyhow::Result<ExitCode> {
    let Some(plugin) = args.plugin.clone().or_else(|| args.command.clone()) else {
        anyhow::bail!("which plugin?");
    };
    let request = RunRequest {
        run: RunId::generate(),
        plugin,
        target: args.nodes.clone(),
        timeout: args.timeout,
    };
    let store = store::open(&config.store)?;
    let broker = broker::open(&config.broker);
    let result = if args.no_wait {
        runner::send(&*broker, &*store, &request).await
    } else {
        watch(&args, &*broker, &*store, &request, &stop).await
    };
    broker.close().await;
    store.close().await;
    let report = result?;
    show(&args, &report)?;
    let done = args.no_wait || report.complete;
    Ok(ExitCode::from(if done { 0 } else { super::EXIT_NO }))
}

/// Runs with progress on stderr.
async fn watch(
    args: &Args,
    broker: &dyn Broker,
    store: &dyn store::Store,
    request: &RunRequest,
    stop: &CancellationToken,
) -> Result<Report, runner::RunError> {
    let mut progress = if args.quiet {
        Progress::Quiet
    } else {
        Progress::on_stderr(std::io::stderr().is_terminal() && !log::no_color())
    };
    let mut observer = |run: &runner::Run| progress.update(run);
    let result = runner::run(broker, store, request, &mut observer, stop).await;
    progress.finish();
    result
}

fn show(args: &Args, report: &Report) -> anyhow::Result<()> {
    if args.json {
        super::answer_exact(&format!("{}\n", serde_json::to_string_pretty(report)?))?;
    } else if args.no_wait {
        let silent = report.nodes.silent.iter();
        let silent =
            silent.map(|silent| format!("{}  {}\n", silent.node, terminal::line(&silent.reason)));
        super::answer(&format!("{}\n{}", report.run, silent.collect::<String>()))?;
    } else {
        super::answer(&report.text(WIDTH_DEFAULT, args.verbose))?;
    }
    Ok(())
}
