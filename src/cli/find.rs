//! `vogeler find`: which nodes have something. Asks the store one [`Query`] and prints the names, one a line.

use std::process::ExitCode;

use super::node::{exit_code, no};
use super::{answer, answer_exact};
use crate::config::Config;
use crate::hash::Pointer;
use crate::store::{self, Query};
use crate::wire::PluginName;

const EXAMPLES: &str = "\
Examples:
  vogeler find --package openssl                     a package of exactly this name, by any package manager
  vogeler find --plugin rpms --contains openssl-3.0  a line, key or number of the value contains this text
  vogeler find --plugin ohai                         the document has a value of this plugin
  vogeler find --where /facter/os/family=Debian      the document has exactly this value there

On CouchDB the first --where on a path builds an index of it, which takes a while on a large fleet.

Exit code: 0 if a node was found, 1 if none, 2 on an error.";

/// Arguments of `vogeler find`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
#[command(group(clap::ArgGroup::new("question").required(true).args(["plugin", "condition", "package"])))]
pub struct Args {
    /// Nodes whose document has a value of this plugin
    #[arg(long, value_name = "PLUGIN")]
    plugin: Option<PluginName>,
    /// Only those where a line, key or other scalar of the value contains this text; case counts
    #[arg(long, value_name = "TEXT", requires = "plugin", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    contains: Option<String>,
    /// Nodes whose document has this value at this JSON pointer
    #[arg(long = "where", value_name = "/POINTER=VALUE", value_parser = parse_condition)]
    condition: Option<Condition>,
    /// Nodes that have a package of exactly this name (rpms, dpkg, pip, gem, npm)
    #[arg(long, value_name = "NAME")]
    package: Option<String>,
    /// Print the names as a JSON array
    #[arg(long)]
    json: bool,
}

/// `/pointer=value`.
#[derive(Debug, Clone, PartialEq)]
struct Condition {
    pointer: Pointer,
    value: String,
}

/// The value begins after the first `=`: a path whose keys hold one cannot be asked for, a value may.
fn parse_condition(text: &str) -> Result<Condition, String> {
    let (pointer, value) = text
        .split_once('=')
        .ok_or("it must be /POINTER=VALUE, such as /facter/os/family=Debian")?;
    if pointer.is_empty() {
        return Err(
            "the pointer before '=' must name a member, such as /facter/os/family".to_owned(),
        );
    }
    Ok(Condition {
        pointer: Pointer::parse(pointer).map_err(|error| error.to_string())?,
        value: value.to_owned(),
    })
}

impl Args {
    /// The question asked; none is left out by clap's group.
    fn query(self) -> anyhow::Result<Query> {
        Ok(match self {
            Self {
                plugin: Some(plugin),
                contains: Some(text),
                ..
            } => Query::Contains { plugin, text },
            Self {
                plugin: Some(plugin),
                ..
            } => Query::Has { plugin },
            Self {
                condition: Some(Condition { pointer, value }),
                ..
            } => Query::Where { pointer, value },
            Self {
                package: Some(name),
                ..
            } => Query::Package { name },
            _ => anyhow::bail!("one of --plugin, --where and --package is needed"),
        })
    }
}

/// Prints the names of the nodes found. Exit code 1 where there is none.
pub async fn run(args: Args, config: Config) -> anyhow::Result<ExitCode> {
    let json = args.json;
    let query = args.query()?;
    let store = store::open(&config.store)?;
    let found = store.find(&query).await;
    store.close().await;
    let found = found?;
    if json {
        answer_exact(&format!("{}\n", serde_json::to_string_pretty(&found)?))?;
    } else if found.is_empty() {
        return Ok(no("no node has it"));
    } else {
        let lines: Vec<String> = found.iter().map(|node| format!("{node}\n")).collect();
        answer(&lines.concat())?;
    }
    Ok(exit_code(!found.is_empty()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn query(line: &str) -> Result<Query, String> {
        let words = std::iter::once("find").chain(line.split_whitespace());
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        line.args.query().map_err(|error| error.to_string())
    }

    /// Goal: each spelling asks its question; a value may hold '='.
    #[test]
    fn each_spelling_asks_its_question() {
        let plugin: PluginName = "rpms".parse().unwrap();
        let text = "x".to_owned();
        let pointer = Pointer::parse("/a/b").unwrap();
        let value = "c=d".to_owned();
        assert_eq!(
            query("--plugin rpms --contains x").unwrap(),
            Query::Contains {
                plugin: plugin.clone(),
                text
            }
        );
        assert_eq!(query("--plugin rpms").unwrap(), Query::Has { plugin });
        assert_eq!(
            query("--where /a/b=c=d").unwrap(),
            Query::Where { pointer, value }
        );
        assert_eq!(
            query("--package x").unwrap(),
            Query::Package {
                name: "x".to_owned()
            }
        );
    }

    /// Goal: no question, two questions and half a question are usage errors that name the flag.
    #[test]
    fn bad_questions_are_usage_errors() {
        for (line, expected) in [
            ("", "--plugin"),
            ("--plugin a --package b", "--package"),
            ("--contains x", "--plugin"),
            ("--plugin a --contains=", "--contains"),
            ("--where /a", "/POINTER=VALUE"),
            ("--where a=b", "JSON pointer"),
            ("--where =b", "must name a member"),
        ] {
            let error = query(line).unwrap_err();
            assert!(error.contains(expected), "{line}: {error}");
        }
    }
}
