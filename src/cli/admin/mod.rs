//! `vogeler admin`: set up broker and store, see how they are, and look after dead letters.

mod dead;
mod dead_text;
mod files;
mod setup;
mod status;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use tokio_util::sync::CancellationToken;

use crate::cli::answer;
use crate::config::Config;
use crate::telemetry::reference;

const EXAMPLES: &str = "\
Examples:
  vogeler admin setup            once, and after every upgrade: does only what is missing
  vogeler admin status --json
  vogeler admin files --write /etc/vogeler    commented configuration, plugin files, design documents
  vogeler admin dead list        what could not be stored, and why; `vogeler admin dead --help` says more

Exit code: 0 if both broker and store did, 1 (status) or 2 (setup) if not.";

/// Arguments of `vogeler admin`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Declare exchanges and queues, create the database, load the design documents; idempotent
    Setup {
        /// Folder of design documents [default: /etc/vogeler/_design, or etc/vogeler/_design, or else those in the program]
        #[arg(long, value_name = "DIR")]
        designs: Option<PathBuf>,
    },
    /// Show broker, queues and store
    Status {
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
    /// List or lay down the files that ship: commented configuration, plugin files, design documents
    Files(files::Args),
    /// Print the reference table of all metrics, in Markdown
    Metrics,
    /// List, count, show, replay and drop dead letters: messages that could not be stored
    Dead(dead::Args),
}

/// Does it; `stop` ends a long look at the dead letters early.
pub async fn run(args: Args, config: Config, stop: CancellationToken) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Setup { designs } => setup::run(designs.as_deref(), &config).await,
        Command::Status { json } => status::run(json, &config).await,
        Command::Files(args) => files::run(&args),
        Command::Metrics => {
            answer(&reference())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Dead(args) => dead::run(args, &config, stop).await,
    }
}
