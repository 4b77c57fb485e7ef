//! `vogeler admin files`: lists what ships in the program, or lays it down.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;

use crate::cli::answer;
use crate::shipped::{FILES, Laid};

/// Arguments of `vogeler admin files`.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Wish {
    /// List them
    #[arg(long)]
    list: bool,
    /// Lay them down below this folder, such as /etc/vogeler; what is there with other content is kept
    #[arg(long, value_name = "DIR")]
    write: Option<PathBuf>,
}

/// Arguments of `vogeler admin files`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    wish: Wish,
    /// Replace what is there with other content
    #[arg(long, requires = "write")]
    force: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let text = match &args.wish.write {
        Some(folder) => write(folder, args.force)?,
        None => list(),
    };
    answer(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn list() -> String {
    let line = |file: &crate::shipped::File| format!("{:7}  {}\n", file.text.len(), file.path);
    FILES.iter().map(line).collect()
}

fn write(folder: &Path, force: bool) -> anyhow::Result<String> {
    let mut lines = Vec::new();
    for file in FILES {
        let path = folder.join(file.path);
        let laid = file
            .lay_down(folder, force)
            .with_context(|| format!("{} cannot be written", path.display()))?;
        let what = match laid {
            Laid::Written => "written",
            Laid::Same => "is there",
            Laid::Kept => "kept as it is: it differs; --force replaces it",
            Laid::Replaced => "replaced",
        };
        lines.push(format!("{}: {what}\n", path.display()));
    }
    Ok(lines.concat())
}
