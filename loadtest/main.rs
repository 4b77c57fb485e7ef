//! `vogeler-loadtest`: loads a server with a simulated fleet, and verifies that nothing is lost.
//!
//! ```text
//! plan ──▶ services (RabbitMQ, store, server) ──▶ fleet ──sends──▶ broker ──▶ server ──▶ store
//!                     ▲ faults                      │ ledger                               │
//!                     └ watch (samples)             └───────────▶ verify ◀─────────────────┘ ──▶ report
//! ```
//!
//! Invariant: the exit code is 0 only if every message was compared with what became of it and every bound holds.

mod args;
mod faults;
mod fleet;
mod ledger;
mod nodes;
mod payload;
mod plan;
mod progress;
mod report;
mod rng;
mod run;
mod schedule;
mod services;
mod span;
mod stats;
mod verdict;
mod verify;
mod watch;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, anyhow, bail};
use clap::Parser as _;
use vogeler::cli::{EXIT_ERROR, EXIT_NO};
use vogeler::config::Log;
use vogeler::shutdown::Shutdown;

use args::Args;
use report::Report;

fn main() -> ExitCode {
    let args = Args::parse();
    match start(&args) {
        Ok(report) if report.passed => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(EXIT_NO),
        Err(error) => {
            complain(&format!("vogeler-loadtest: {error:#}"));
            ExitCode::from(EXIT_ERROR)
        }
    }
}

fn start(args: &Args) -> anyhow::Result<Report> {
    let plan = args.plan()?;
    let old = args
        .compare
        .as_deref()
        .map(report::compare::load)
        .transpose()?;
    let folder = args.report_folder(&plan);
    vogeler::log::init(&Log::default(), "error").map_err(anyhow::Error::msg)?;
    let spec = run::RunSpec {
        plan: &plan,
        given: &args.given(),
        folder: &folder,
        progress: progress::Progress::new(args.quiet),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("no runtime")?;
    prepare(&folder)?;
    let shutdown = runtime
        .block_on(async { Shutdown::on_signals() })
        .context("cannot listen for signals")?;
    let ran = runtime.block_on(async {
        tokio::select! {
            report = run::run(&spec, &shutdown.stop) => report,
            () = shutdown.at_once.cancelled() => Err(anyhow!("ended at once by a second signal")),
        }
    });
    // This does not wait for a RabbitMQ that is just starting: it ends with this process.
    runtime.shutdown_background();
    let report = ran?;
    if !args.quiet {
        answer(&report::terminal(&report));
        if let Some(old) = &old {
            answer(&format!("\n{}", report::compare::table(old, &report)));
        }
    }
    write(&report, &folder)?;
    if !args.quiet {
        answer(&format!(
            "\nReport, plots and the server's log are in {}\n",
            folder.display()
        ));
    }
    if shutdown.stop.is_cancelled() {
        bail!("interrupted after the report was made, while its services were ending");
    }
    Ok(report)
}

/// Makes the folder, and removes an earlier run's report from it, which must not be taken for this run's.
fn prepare(folder: &Path) -> anyhow::Result<()> {
    let wanted = |path: &Path| {
        let path = path.display();
        format!("--report wants a folder that can be written: {path}")
    };
    std::fs::create_dir_all(folder).with_context(|| wanted(folder))?;
    let plots = report::plot::FILES.map(|(file, _)| file);
    for file in [report::JSON, report::MARKDOWN, report::LOG]
        .into_iter()
        .chain(plots)
    {
        // Created first: an operator should learn before the run, not after it, that nothing can be written.
        let path = folder.join(file);
        let created = std::fs::File::create(&path);
        let removed = created.and_then(|_| std::fs::remove_file(&path));
        removed.with_context(|| wanted(&path))?;
    }
    Ok(())
}

/// Writes report.json, report.md and the plots.
fn write(report: &Report, folder: &Path) -> anyhow::Result<()> {
    let write = |name: &str, text: String| {
        let path = folder.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    write(report::JSON, serde_json::to_string_pretty(report)? + "\n")?;
    write(report::MARKDOWN, report::markdown(report))?;
    report::plot::write(report, folder)
}

#[allow(clippy::print_stdout, reason = "the report goes to the terminal")]
fn answer(text: &str) {
    print!("{text}");
}

#[allow(clippy::print_stderr, reason = "errors go to the terminal")]
pub(crate) fn complain(text: &str) {
    eprintln!("{text}");
}
