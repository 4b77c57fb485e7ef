//! `vogeler admin dead`: list, count, show, replay and drop dead letters. Arguments and wiring; [`crate::dead`] does it.

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::Subcommand;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::{SignedDuration, Timestamp, civil, tz::TimeZone};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::dead_text::{self, Table};
use crate::broker;
use crate::cli::node::{exit_code, no};
use crate::cli::{EXIT_ERROR, answer, answer_exact, complain, one_line};
use crate::config::Config;
use crate::dead::filter::ID_CHARACTERS_MIN;
use crate::dead::{DeadLetters, Filter, Job, Letter, Progress, Report};
use crate::log;
use crate::terminal;

const EXAMPLES: &str = "\
Examples:
  vogeler admin dead list                            what could not be stored, and why; changes nothing
  vogeler admin dead list --reason forbidden --since 2h --json
  vogeler admin dead count                           how many, by reason
  vogeler admin dead show 3fa9c1                     one letter: its headers and what was sent
  vogeler admin dead replay --reason forbidden --dry-run
  vogeler admin dead replay --reason forbidden       after mending: to the server again
  vogeler admin dead drop --node old.example.com     gone for good
  vogeler admin dead drop --all

A replay is safe to repeat: a letter leaves the queue only after the broker has its message where it came from, and
a message that arrives twice is found stale or unchanged. What still cannot be stored comes back with its replays
counted. The server may run meanwhile, and clients need not. Each of these goes through what is in the queue when it
begins: letters that come meanwhile are the next command's. Until it ends the broker holds the letters for it: others,
the metrics included, see the queue without them.

Exit code: 0 if it is done, 1 if no letter matched, 2 on an error or if a letter could not be replayed.";

/// Letters that could not be replayed and are named with the reason.
const REFUSED_SHOWN_MAX: usize = 20;

/// Arguments of `vogeler admin dead`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List dead letters in the order of the queue, the oldest first
    List {
        #[command(flatten)]
        filter: FilterArgs,
        /// At most so many, the oldest
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        limit: Option<u64>,
        /// Print them as JSON
        #[arg(long)]
        json: bool,
    },
    /// Count dead letters, by reason
    Count {
        #[command(flatten)]
        filter: FilterArgs,
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
    /// Print one letter: what is known of it, its headers, its body
    Show {
        /// Its id, or the beginning of it, or its message id
        #[arg(value_name = "ID", value_parser = parse_id)]
        id: String,
    },
    /// Publish letters where they came from, so that the server tries them again
    Replay {
        #[command(flatten)]
        job: JobArgs,
    },
    /// Forget letters, for good
    Drop {
        #[command(flatten)]
        job: JobArgs,
        /// All of them; needed where no other option says which
        #[arg(long)]
        all: bool,
    },
}

#[derive(Debug, clap::Args)]
struct FilterArgs {
    /// Those of this id, or whose id begins so, or with this message id; may be repeated
    #[arg(long, value_name = "ID", value_parser = parse_id)]
    id: Vec<String>,
    /// Those with this reason, such as forbidden or `not_json`
    #[arg(long)]
    reason: Option<String>,
    /// Those of this node
    #[arg(long)]
    node: Option<String>,
    /// Those of this plugin
    #[arg(long)]
    plugin: Option<String>,
    /// Dead since: 2026-11-22, 2026-11-22T14:00 (UTC), 2026-11-22T14:00:00Z, or 2h for two hours ago
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: Option<Timestamp>,
    /// Dead before, in the same spellings
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    before: Option<Timestamp>,
}

#[derive(Debug, clap::Args)]
struct JobArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// At most so many, in the order of the queue
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Only count what would be done
    #[arg(long)]
    dry_run: bool,
}

impl From<FilterArgs> for Filter {
    fn from(args: FilterArgs) -> Self {
        Self {
            ids: args.id,
            reason: args.reason,
            node: args.node,
            plugin: args.plugin,
            since: args.since,
            before: args.before,
        }
    }
}

impl From<JobArgs> for Job {
    fn from(args: JobArgs) -> Self {
        Self {
            filter: args.filter.into(),
            limit: args.limit,
            dry_run: args.dry_run,
        }
    }
}

/// The beginning of an id that could name half of the queue is a slip of the hand.
fn parse_id(text: &str) -> Result<String, String> {
    if text.len() < ID_CHARACTERS_MIN {
        return Err(format!("at least {ID_CHARACTERS_MIN} characters of it"));
    }
    Ok(text.to_owned())
}

fn parse_time(text: &str) -> Result<Timestamp, String> {
    let utc = |at: civil::DateTime| at.to_zoned(TimeZone::UTC).ok().map(|at| at.timestamp());
    let ago = |span: SignedDuration| Timestamp::now().checked_sub(span.abs()).ok();
    let at = text.parse::<Timestamp>().ok();
    at.or_else(|| text.parse().ok().and_then(utc))
        .or_else(|| text.parse().ok().and_then(ago))
        .ok_or_else(|| {
            "it must be a time such as 2026-11-22, 2026-11-22T14:00 (UTC) or 2026-11-22T14:00:00Z, or a length of \
             time such as 2h, counted back from now"
                .to_owned()
        })
}

/// Does it. The broker is closed whatever happens, which gives back what is held.
pub(super) async fn run(
    args: Args,
    config: &Config,
    stop: CancellationToken,
) -> anyhow::Result<ExitCode> {
    let broker = broker::open(&config.broker);
    let dead = DeadLetters {
        broker: &*broker,
        queue_type: config.broker.queue_type,
        progress: watch::Sender::default(),
        stop,
    };
    let bar = can_draw(&args.command).then(|| tokio::spawn(draw(dead.progress.subscribe())));
    let result = command(args.command, dead, config).await;
    if let Some(bar) = bar {
        // It ends with what it draws, which is gone by now.
        drop(bar.await);
    }
    broker.close().await;
    result
}

async fn command(
    command: Command,
    dead: DeadLetters<'_>,
    config: &Config,
) -> anyhow::Result<ExitCode> {
    let dead = &dead;
    match command {
        Command::List {
            filter,
            limit,
            json,
        } => list(dead, &filter.into(), limit, json).await,
        Command::Count { filter, json } => count(dead, &filter.into(), json).await,
        Command::Show { id } => show(dead, &id, config.server.message_bytes_max).await,
        Command::Replay { job } => {
            let job = job.into();
            finish("replay", &job, &dead.replay(&job).await?)
        }
        Command::Drop { job, all } => {
            let job: Job = job.into();
            anyhow::ensure!(
                all || !job.filter.is_empty(),
                "which dead letters? Name them by --id, --reason, --node, --plugin, --since or --before, or say --all"
            );
            finish("drop", &job, &dead.drop_letters(&job).await?)
        }
    }
}

/// Prints letters as they come, so that nothing waits for the last and none is kept.
async fn list(
    dead: &DeadLetters<'_>,
    filter: &Filter,
    limit: Option<u64>,
    is_json: bool,
) -> anyhow::Result<ExitCode> {
    let mut table = Table::default();
    let mut count = 0_u64;
    let show = async |letter: Letter| {
        count += 1;
        if is_json {
            let before = if count == 1 { "[\n" } else { ",\n" };
            return print(format!("{before}{}", json_item(&letter)?), true).await;
        }
        match table.push(&letter) {
            Some(text) => print(text, false).await,
            None => Ok(()),
        }
    };
    let looked = dead.list(filter, limit, show).await?;
    if is_json {
        answer_exact(if count == 0 { "[]\n" } else { "\n]\n" })?;
    } else {
        answer(&table.finish())?;
    }
    note_left_over(looked.left_over);
    if count == 0 && !is_json {
        return Ok(no(&none_matched(looked.looked)));
    }
    Ok(exit_code(count > 0))
}

/// Prints while the connection goes on: a pager may not read for as long as its reader thinks, and heartbeats go out on
/// this thread.
async fn print(text: String, is_exact: bool) -> io::Result<()> {
    let print = if is_exact { answer_exact } else { answer };
    let printed = tokio::task::spawn_blocking(move || print(&text)).await;
    printed.map_err(io::Error::other)?
}

/// A letter as an item of a JSON array.
fn json_item(letter: &Letter) -> serde_json::Result<String> {
    let text = serde_json::to_string_pretty(letter)?;
    Ok(format!("  {}", text.replace('\n', "\n  ")))
}

async fn count(dead: &DeadLetters<'_>, filter: &Filter, is_json: bool) -> anyhow::Result<ExitCode> {
    let (count, looked) = dead.count(filter).await?;
    note_left_over(looked.left_over);
    if is_json {
        let text = serde_json::to_string_pretty(&count)?;
        answer_exact(&format!("{text}\n"))?;
    } else if count.letters == 0 {
        return Ok(no(&none_matched(looked.looked)));
    } else {
        answer(&dead_text::counted(&count))?;
    }
    Ok(exit_code(count.letters > 0))
}

async fn show(dead: &DeadLetters<'_>, id: &str, bytes_max: usize) -> anyhow::Result<ExitCode> {
    let (found, others) = dead.find(id).await?;
    let Some(whole) = found else {
        return Ok(no(&format!(
            "no dead letter is called {id}: `vogeler admin dead list` names all"
        )));
    };
    if !others.is_empty() {
        let (first, others) = (whole.letter.id, others.join(", "));
        anyhow::bail!("{id} names several dead letters: {first}, {others}");
    }
    answer(&dead_text::whole(&whole, bytes_max))?;
    Ok(ExitCode::SUCCESS)
}

/// Says what was done, then what was not.
fn finish(verb: &str, job: &Job, report: &Report) -> anyhow::Result<ExitCode> {
    note_left_over(report.left_over);
    let named = report.refused_named.iter().take(REFUSED_SHOWN_MAX);
    let mut more = report.refused;
    for refused in named {
        more -= 1;
        let reason = terminal::line(&refused.reason);
        complain(&format!("vogeler: {}: {reason}\n", refused.id));
    }
    if more > 0 {
        complain(&format!("vogeler: and {more} more\n"));
    }
    if report.matched == 0 && report.stopped.is_none() {
        return Ok(no(&none_matched(report.looked)));
    }
    answer(&dead_text::done(verb, job.dry_run, report))?;
    if let Some(error) = &report.stopped {
        let error = anyhow::anyhow!("{error}");
        complain(&format!("vogeler: ended early: {}\n", one_line(&error)));
    }
    let is_whole = report.refused == 0 && report.stopped.is_none();
    Ok(ExitCode::from(if is_whole { 0 } else { EXIT_ERROR }))
}

fn none_matched(looked: u64) -> String {
    match looked {
        0 => "there are no dead letters".to_owned(),
        looked => format!("none of the {looked} dead letters matches"),
    }
}

fn note_left_over(left_over: u64) {
    if left_over > 0 {
        complain(&format!(
            "vogeler: {left_over} dead letters were not looked at; replay or drop some, and the rest show\n"
        ));
    }
}

/// Draws how far a look has come, on a terminal only: elsewhere it is quiet.
async fn draw(mut progress: watch::Receiver<Progress>) {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} dead letters {elapsed}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    while progress.changed().await.is_ok() {
        let Progress { looked, total } = *progress.borrow_and_update();
        bar.set_length(total);
        bar.set_position(looked);
    }
    bar.finish_and_clear();
}

/// Whether a bar may be drawn: letters that scroll by on the same terminal show themselves how far it is.
fn can_draw(command: &Command) -> bool {
    let is_listed = matches!(command, Command::List { .. }) && std::io::stdout().is_terminal();
    std::io::stderr().is_terminal() && !is_listed && !log::no_color()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a time is given as a person writes it: a day, a time of UTC, an exact time, or how long ago.
    #[test]
    fn times_as_people_write_them() {
        let exact = |text: &str| text.parse::<Timestamp>().unwrap();
        for (text, expected) in [
            ("2026-11-22", "2026-11-22T00:00:00Z"),
            ("2026-11-22T14:00", "2026-11-22T14:00:00Z"),
            ("2026-11-22 14:00:05", "2026-11-22T14:00:05Z"),
            ("2026-11-22T14:00:00+01:00", "2026-11-22T13:00:00Z"),
        ] {
            assert_eq!(parse_time(text).unwrap(), exact(expected), "{text}");
        }
        let ago = Timestamp::now().duration_since(parse_time("2h").unwrap());
        assert!((7_190..7_300).contains(&ago.as_secs()), "{ago:?}");
        assert!(parse_time("noon").unwrap_err().contains("2026-11-22"));
        assert!(parse_id("3fa").is_err() && parse_id("3fa9").is_ok());
    }
}
