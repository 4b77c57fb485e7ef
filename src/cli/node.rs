//! `vogeler node`: what nodes there are, and what is known of one. Reads the store, and nothing else.
//!
//! Documents are printed as the store has them: members in its order, numbers with every digit. A part of one costs no
//! memory beside the document.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::Subcommand;

use super::{EXIT_NO, answer, answer_exact, answer_json, json};
use crate::config::Config;
use crate::hash::Pointer;
use crate::store::{self, NodeSummary, Store};
use crate::wire::NodeName;

const EXAMPLES: &str = "\
Examples:
  vogeler node list
  vogeler node list --json
  vogeler node show web01.example.com
  vogeler node show web01.example.com /facter/os/family

Exit code: 0 if there is what was asked for, 1 if not, 2 on an error.";

/// Arguments of `vogeler node`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List all nodes by name: when the document last changed, its groups, its plugins
    List {
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
    /// Print a node's document as JSON, or the part of it at a JSON pointer
    Show {
        /// Whose document
        #[arg(value_name = "NAME")]
        node: NodeName,
        /// Which part, such as /facter/os
        #[arg(value_name = "JSON-POINTER", default_value = "", hide_default_value = true, value_parser = Pointer::parse)]
        pointer: Pointer,
    },
}

/// Prints the list or the document. Exit code 1 where there is no node, or nothing at the pointer.
pub async fn run(args: Args, config: Config) -> anyhow::Result<ExitCode> {
    let store = store::open(&config.store)?;
    let result = match &args.command {
        Command::List { json } => list(&*store, *json).await,
        Command::Show { node, pointer } => show(&*store, node, pointer).await,
    };
    store.close().await;
    result
}

async fn list(store: &dyn Store, is_json: bool) -> anyhow::Result<ExitCode> {
    let nodes = store.nodes().await?;
    if is_json {
        answer_exact(&format!("{}\n", serde_json::to_string_pretty(&nodes)?))?;
    } else if nodes.is_empty() {
        return Ok(no(
            "no node has a document yet: a client makes its own when it first starts",
        ));
    } else {
        answer(&table(&nodes))?;
    }
    Ok(exit_code(!nodes.is_empty()))
}

async fn show(store: &dyn Store, node: &NodeName, pointer: &Pointer) -> anyhow::Result<ExitCode> {
    let mut found = store.load(std::slice::from_ref(node)).await?;
    let Some(document) = found.remove(node) else {
        return Ok(no(&format!(
            "no node is called {node}: `vogeler node list` names all"
        )));
    };
    let Some(part) = json::at(document.json.get(), pointer.segments()) else {
        let path = pointer.segments().join("/");
        return Ok(no(&format!(
            "the document of {node} has nothing at /{path}"
        )));
    };
    answer_json(part)?;
    Ok(ExitCode::SUCCESS)
}

/// The answer "no", with its reason on stderr.
pub(super) fn no(reason: &str) -> ExitCode {
    super::complain(&format!("vogeler: {reason}\n"));
    exit_code(false)
}

/// 0 for yes, 1 for no.
pub(super) fn exit_code(yes: bool) -> ExitCode {
    ExitCode::from(if yes { 0 } else { EXIT_NO })
}

fn table(nodes: &[NodeSummary]) -> String {
    let header = ["NODE", "UPDATED", "GROUPS", "PLUGINS"].map(str::to_owned);
    let mut rows = vec![header];
    rows.extend(nodes.iter().map(|summary| {
        let groups: Vec<_> = summary.groups.iter().map(ToString::to_string).collect();
        let plugins: Vec<_> = summary.plugins.iter().map(ToString::to_string).collect();
        [
            summary.node.to_string(),
            summary
                .updated_at
                .map_or_else(|| "-".to_owned(), |at| format!("{at:.0}")),
            or_dash(&groups.join(",")),
            or_dash(&plugins.join(" ")),
        ]
    }));
    let width = |column: usize| {
        let widths = rows.iter().map(|row| row[column].chars().count());
        widths.max().unwrap_or(0)
    };
    let (node, updated, groups) = (width(0), width(1), width(2));
    let mut text = String::new();
    for [name, at, of, plugins] in &rows {
        // Writing to a String cannot fail.
        writeln!(text, "{name:node$}  {at:updated$}  {of:groups$}  {plugins}").ok();
    }
    text
}

fn or_dash(text: &str) -> String {
    let text = if text.is_empty() { "-" } else { text };
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the table is aligned, and what is missing is a dash.
    #[test]
    fn the_list_is_a_table() {
        let summary = |node: &str, updated: Option<&str>, plugins: &[&str]| NodeSummary {
            node: node.parse().unwrap(),
            updated_at: updated.map(|text| text.parse().unwrap()),
            plugins: plugins.iter().map(|name| name.parse().unwrap()).collect(),
            groups: Vec::new(),
        };
        let nodes = [
            summary(
                "web01",
                Some("2026-02-03T04:05:06.123Z"),
                &["facter", "rpms"],
            ),
            summary("b", None, &[]),
        ];
        let expected = "NODE   UPDATED               GROUPS  PLUGINS\n\
            web01  2026-02-03T04:05:06Z  -       facter rpms\n\
            b      -                     -       -\n";
        assert_eq!(table(&nodes), expected);
    }
}
