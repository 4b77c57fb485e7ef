//! `vogeler client`: the agent on a node; or a look at its plugins without any broker.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::broker::{self, Link};
use crate::client::execute::{Limits, Supervisor, execute};
use crate::client::plugin::{Plugin, Registry};
use crate::client::{Client, host_label};
use crate::config::{Config, HttpHost, span};
use crate::http::{self, Hosts};
use crate::shutdown;
use crate::status::client::settings;
use crate::telemetry::{Part, Role, Telemetry, record_up};
use crate::terminal;
use crate::wire::{Content, NodeName, PluginError};

/// Hear commands, run plugins, publish their results.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Args {
    /// Folder whose *.cfg name the plugins that may run [default: client.plugins]
    #[arg(long, value_name = "DIR")]
    pub plugins: Option<PathBuf>,
    /// This machine's name [default: client.node, or the host name]
    #[arg(long, value_name = "NAME")]
    pub node: Option<NodeName>,
    /// List the registered plugins, and what is wrong in their files; exit 1 if anything is
    #[arg(long, conflicts_with = "once")]
    pub list: bool,
    /// Run one plugin and print its value; send nothing
    #[arg(long, value_name = "PLUGIN")]
    pub once: Option<String>,
}

/// Runs the subcommand until it is done or `stop`.
pub async fn run(
    args: Args,
    mut config: Config,
    stop: CancellationToken,
) -> anyhow::Result<ExitCode> {
    if let Some(plugins) = args.plugins {
        config.client.plugins = plugins;
    }
    config.client.node = args.node.or(config.client.node);
    if args.list {
        let registry = Registry::load(&config.client.plugins)?;
        return list(
            &registry,
            &mut io::stdout().lock(),
            &mut io::stderr().lock(),
        );
    }
    if let Some(name) = args.once {
        return tokio::select! {
            code = once(&name, &config) => code,
            () = stop.cancelled() => anyhow::bail!("stopped; the plugin was killed"),
        };
    }
    let reload = Arc::new(Notify::new());
    let notify = Arc::clone(&reload);
    shutdown::on_hangup(move || notify.notify_one()).context("cannot listen for SIGHUP")?;
    let broker = broker::open(&config.broker);
    // The metrics come first: what is recorded before them is lost.
    let endpoints = match config.client.http_listen {
        Some(listen) => {
            let hosts = config.http.hosts.clone();
            Some(Endpoints::open(listen, hosts, broker.link()).await?)
        }
        None => None,
    };
    let settings = settings(&config);
    let client = Client::new(config.client, broker.clone(), Supervisor::this_program())?;
    let http_stop = CancellationToken::new();
    let http = endpoints.map(|endpoints| {
        let probe = client.probe(settings, stop.clone());
        let telemetry = endpoints.telemetry;
        tokio::spawn(http::serve(
            endpoints.listener,
            telemetry,
            probe,
            endpoints.hosts,
            http_stop.clone(),
        ))
    });
    let ran = client.reload_when(reload).run(stop).await;
    broker.close().await;
    http_stop.cancel();
    if let Some(http) = http
        && let Err(error) = http.await
    {
        tracing::warn!(target: "vogeler::client", %error, "http ended early");
    }
    ran?;
    Ok(ExitCode::SUCCESS)
}

/// What `client.http_listen` asks for, before there is a client to tell of.
struct Endpoints {
    listener: TcpListener,
    telemetry: Telemetry,
    hosts: Hosts,
}

impl Endpoints {
    async fn open(
        listen: SocketAddr,
        hosts: Vec<HttpHost>,
        broker: watch::Receiver<Link>,
    ) -> anyhow::Result<Self> {
        let telemetry = Telemetry::install(Role::Client).context("cannot set up the metrics")?;
        let telemetry =
            telemetry.observing(move || record_up(Part::Broker, *broker.borrow() == Link::Up));
        let listener = TcpListener::bind(listen)
            .await
            .with_context(|| format!("cannot listen on client.http_listen = {listen}"))?;
        let address = listener.local_addr().unwrap_or(listen);
        tracing::info!(target: "vogeler::client", http = %address, "metrics and probes");
        Ok(Self {
            listener,
            telemetry,
            hosts: Hosts::new(listen.ip(), &host_label(), hosts),
        })
    }
}

/// A table of what is registered, and to standard error what is not and why.
fn list(
    registry: &Registry,
    out: &mut impl Write,
    err: &mut impl Write,
) -> anyhow::Result<ExitCode> {
    let file = |plugin: &Plugin| {
        let name = plugin.place.file.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    };
    let names = registry.names().map(str::len);
    let files = registry.plugins.values().map(|plugin| file(plugin).len());
    let name_width = names.max().unwrap_or(0).max("PLUGIN".len());
    let file_width = files.max().unwrap_or(0).max("FILE".len());
    let mut row = |name: &str, format: &str, every: &str, file: &str, description: &str| {
        let row =
            format!("{name:name_width$}  {format:6}  {every:6}  {file:file_width$}  {description}");
        writeln!(out, "{}", terminal::line(row.trim_end()))
    };
    row("PLUGIN", "FORMAT", "EVERY", "FILE", "DESCRIPTION")?;
    for plugin in registry.plugins.values() {
        let every = plugin.every.map_or_else(|| "-".to_owned(), span::format);
        let (name, format) = (plugin.name.as_str(), plugin.format.as_str());
        row(name, format, &every, &file(plugin), &plugin.description)?;
    }
    for problem in &registry.problems {
        writeln!(err, "{}", terminal::lines(&problem.to_string()))?;
    }
    Ok(if registry.problems.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Runs one plugin as the agent would, and prints what it would send.
async fn once(name: &str, config: &Config) -> anyhow::Result<ExitCode> {
    let folder = &config.client.plugins;
    let registry = Registry::load(folder)?;
    for problem in &registry.problems {
        super::complain(&format!("{problem}\n"));
    }
    let Some(plugin) = registry.plugins.get(name) else {
        let names: Vec<_> = registry.names().collect();
        anyhow::bail!(
            "there is no plugin {name:?} in {}; it has {}",
            folder.display(),
            names.join(", ")
        );
    };
    let limits = Limits {
        timeout: config.client.timeout,
        output_bytes_max: config.client.output_bytes_max,
    };
    let execution = execute(plugin, limits, &Supervisor::this_program()).await;
    match execution.content {
        Content::Value { json, .. } => {
            super::answer_json(json.get()).context("the value cannot be printed")?;
            Ok(ExitCode::SUCCESS)
        }
        Content::Error(error) => {
            super::complain(&report(name, &error));
            Ok(ExitCode::FAILURE)
        }
    }
}

fn report(name: &str, error: &PluginError) -> String {
    let mut report = format!(
        "plugin {name}: {} ({})\n",
        terminal::line(&error.message),
        error.kind.as_str()
    );
    for line in error.stderr.iter().flat_map(|stderr| stderr.lines()) {
        report.push_str("  stderr: ");
        report.push_str(&terminal::line(line));
        report.push('\n');
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the table has a line for each plugin; problems go to standard error and decide the exit code.
    #[test]
    fn a_list_shows_plugins_and_problems() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.cfg");
        let show = |text: &str| {
            std::fs::write(&file, text).unwrap();
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let registry = Registry::load(folder.path()).unwrap();
            let code = list(&registry, &mut out, &mut err).unwrap();
            let text = |bytes| String::from_utf8(bytes).unwrap();
            (code, text(out), text(err))
        };
        let good = "[rpms]\ndescription = Packages\ncommand = rpm -qa\nevery = 6h\n";
        let (code, out, err) = show(good);
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::SUCCESS));
        assert!(
            out.lines()
                .nth(1)
                .unwrap()
                .starts_with("rpms    output  6h"),
            "{out}"
        );
        assert!(out.ends_with("Packages\n") && err.is_empty(), "{out}{err}");
        let (code, out, err) = show(&format!("{good}[bad]\n"));
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::FAILURE));
        assert_eq!(out.lines().count(), 2);
        assert!(
            err.contains("x.cfg:5: [bad]: \"command\" is missing"),
            "{err}"
        );
    }
}
