//! Logging: what is logged, how it looks, and where it goes (stderr: stdout is for answers).
//!
//! Targets name the stage (`vogeler::store`, `vogeler::ingest`, …), so that one stage can be made loud with
//! `info,vogeler::store=debug`. Libraries log from `warn` on unless a directive names them. lapin logs nothing, since
//! it calls every ordinary end of a channel an error and prints the bodies of returned messages.

use std::io::IsTerminal;
use std::str::FromStr;

use tracing::field::Field;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::{Directive, LevelFilter};
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use crate::config::{Log, LogFormat};
use crate::status::journal::Recorder;
use crate::terminal;

/// What libraries log unless a directive names them: the rest interests only their authors.
const LIBRARIES: [&str; 9] = [
    "lapin=off",
    "reqwest=warn",
    "hyper=warn",
    "hyper_util=warn",
    "h2=warn",
    "rustls=warn",
    "tower=warn",
    "actix=warn",
    "opentelemetry=warn",
];

/// The filter that `level` asks for. The error says what is allowed.
pub fn filter(level: &str) -> Result<EnvFilter, String> {
    let mut filter = EnvFilter::default();
    for library in LIBRARIES {
        filter = filter.add_directive(directive(library)?);
    }
    for part in level.split(',').map(str::trim) {
        filter = filter.add_directive(directive(part)?);
    }
    Ok(filter)
}

/// One directive. A bare word must be a level: tracing itself would take a misspelt level for a target.
fn directive(text: &str) -> Result<Directive, String> {
    let error = || {
        format!(
            "{text:?} is not understood; allowed are error, warn, info, debug, trace, off, and TARGET=LEVEL such as vogeler::store=debug, separated by commas"
        )
    };
    let level = text.rsplit('=').next().unwrap_or(text);
    LevelFilter::from_str(level).map_err(|_| error())?;
    text.parse().map_err(|_| error())
}

/// Whether the operator asked for output without colours and cursor movements (<https://no-color.org>).
pub fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// The least level that the status page shows.
const JOURNAL: &str = "warn";

/// Starts logging to stderr, at `level_default` unless a level is set, and warnings to the journal of the status page.
/// If logging runs already (in tests), it stays as it is.
pub fn init(log: &Log, level_default: &str) -> Result<(), String> {
    let level = filter(log.level.as_deref().unwrap_or(level_default))?;
    let lines = fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && !no_color());
    let lines = match log.format {
        LogFormat::Text => lines.fmt_fields(fields()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let started = tracing_subscriber::registry()
        .with(lines.with_filter(level))
        .with(Recorder.with_filter(filter(JOURNAL)?))
        .try_init();
    if started.is_err() {
        tracing::debug!(target: "vogeler::log", "logging was started before");
    }
    Ok(())
}

/// How fields look in lines for people: as by default, except that foreign text cannot steer the terminal.
fn fields() -> impl for<'a> FormatFields<'a> + Send + Sync + 'static {
    debug_fn(write_field).delimited(" ")
}

fn write_field(
    writer: &mut Writer<'_>,
    field: &Field,
    value: &dyn std::fmt::Debug,
) -> std::fmt::Result {
    let text = format!("{value:?}");
    let text = terminal::line(&text);
    match field.name() {
        "message" => write!(writer, "{text}"),
        name if writer.has_ansi_escapes() => {
            write!(writer, "\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m{text}")
        }
        name => write!(writer, "{name}={text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: levels and directives are understood, and libraries stay quiet unless named.
    #[test]
    fn levels_and_directives_are_understood() {
        let text = filter("debug").unwrap().to_string();
        assert!(
            text.contains("debug") && text.contains("lapin=off"),
            "{text}"
        );
        let text = filter("info, vogeler::store=debug,lapin=trace")
            .unwrap()
            .to_string();
        assert!(text.contains("vogeler::store=debug"), "{text}");
        assert!(
            text.contains("lapin=trace") && !text.contains("lapin=off"),
            "{text}"
        );
    }

    /// Goal: a misspelt level is an error that lists the levels, not a filter that shows nothing.
    #[test]
    fn misspelt_levels_are_errors() {
        for level in ["verbose", "inf", "", "vogeler::store=loud", "info,,debug"] {
            let error = filter(level).unwrap_err();
            assert!(
                error.contains("error, warn, info, debug, trace"),
                "{level}: {error}"
            );
        }
    }
}
