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
mod flavour;
mod fleet;
mod ledger;
mod live;
mod plan;
mod report;
mod roster;
mod run;
mod schedule;
mod seeded;
mod services;
mod span;
mod stats;
mod verdict;
mod verify;
mod watch;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
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
    let asked = run::Asked {
        plan: &plan,
        given: &args.given(),
        folder: &folder,
        live: live::Live::new(args.quiet),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("no runtime")?;
    let report = runtime.block_on(async {
        let shutdown = Shutdown::on_signals().context("cannot listen for signals")?;
        run::run(&asked, &shutdown.stop).await
    })?;
    write(&report, &folder)?;
    if !args.quiet {
        answer(&report::terminal(&report));
        if let Some(old) = &old {
            answer(&format!("\n{}", report::compare::table(old, &report)));
        }
        answer(&format!(
            "\nReport, plots and the server's log are in {}\n",
            folder.display()
        ));
    }
    Ok(report)
}

/// Writes report.json, report.md and the plots.
fn write(report: &Report, folder: &Path) -> anyhow::Result<()> {
    let write = |name: &str, text: String| {
        let path = folder.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    write("report.json", serde_json::to_string_pretty(report)? + "\n")?;
    write("report.md", report::markdown(report))?;
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
