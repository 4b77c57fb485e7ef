//! `vogeler demo`: the whole system in one process, with nothing to install.
//!
//! A memory broker, an SQLite store in a fresh folder, the server, and a fleet of clients that really run plugins
//! on this machine; then a runner asks, and the answers are shown. What it prints is what really came back.

use std::io::IsTerminal;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{answer, answer_json};
use crate::broker::Broker;
use crate::broker::memory::MemoryBroker;
use crate::client::Client;
use crate::client::execute::Supervisor;
use crate::client::plugin::Registry;
use crate::config::{Config, StoreDsn};
use crate::ingest::Server;
use crate::log;
use crate::runner::progress::Progress;
use crate::runner::report::WIDTH_DEFAULT;
use crate::runner::{self, Report, RunRequest, Target};
use crate::shipped;
use crate::store::{self, Designs, Query, Store};
use crate::telemetry::Ledger;
use crate::wire::{NodeName, Outcome, PluginName, RunId};

/// The plugin files of a checkout, which the demo is started in.
const CHECKOUT: &str = "etc/vogeler/plugins";
/// Plugins the demo asks for, where this machine has their programs: all are quick.
const ASKED: [&str; 6] = [
    "os-release",
    "kernel",
    "memory",
    "processes",
    "dpkg",
    "rpms",
];
/// What `find --package` is asked.
const PACKAGE: &str = "bash";
/// Longest wait for all clients to have reported themselves, and for each run.
const PATIENCE: Duration = Duration::from_mins(1);
const REPORT_POLL: Duration = Duration::from_millis(50);
/// Members of an array or object shown before "… more".
const SHOWN_MAX: usize = 4;
/// Nodes listed by name before "… more".
const NAMES_MAX: usize = 8;

/// Arguments of `vogeler demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Clients in the fleet
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u16).range(1..=1000))]
    nodes: u16,
    /// Folder whose *.cfg name the plugins [default: etc/vogeler/plugins, or client.plugins, or else those in the program]
    #[arg(long, value_name = "DIR")]
    plugins: Option<PathBuf>,
    /// Stay up until Ctrl-C, for commands from a second terminal
    #[arg(long)]
    keep: bool,
}

/// What runs while the demo does.
struct Fleet {
    broker: Arc<MemoryBroker>,
    store: Arc<dyn Store>,
    server: Server,
    clients: JoinSet<anyhow::Result<()>>,
    stop_clients: CancellationToken,
    config: Config,
}

/// Runs the demo; exit code 0 if every client answered every run.
pub(super) async fn run(
    args: Args,
    mut config: Config,
    stop: CancellationToken,
) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let folder = std::env::temp_dir().join(format!("vogeler-demo-{}", RunId::generate()));
    make_folder(&folder)?;
    if let Some(plugins) = args.plugins.clone() {
        config.client.plugins = plugins;
    } else if Path::new(CHECKOUT).is_dir() {
        config.client.plugins = copy_plugins(&folder)?;
    }
    if !config.client.plugins.is_dir() && args.plugins.is_none() {
        let plugins = folder.join("plugins");
        make_folder(&plugins)?;
        for file in shipped::FILES {
            file.lay_down(&folder, false)
                .with_context(|| format!("cannot write into {}", folder.display()))?;
        }
        close_files(&plugins)?;
        config.client.plugins = plugins;
    }
    config.store.dsn = StoreDsn::Sqlite(folder.join("nodes.db"));
    config.store.create = true;

    let plugins = choose_plugins(&config)?;
    let fleet = Fleet::start(&args, config, &folder).await?;
    let is_complete = tokio::select! {
        shown = fleet.show(&args, &plugins, &stop) => shown?,
        () = stop.cancelled() => false,
    };
    answer(&format!("\nDone in {:.1?}.\n", started.elapsed()))?;
    answer(&further(&fleet.config, &folder, args.keep))?;
    if args.keep && !stop.is_cancelled() {
        stop.cancelled().await;
    }
    fleet.stop().await?;
    Ok(ExitCode::from(if is_complete { 0 } else { super::EXIT_NO }))
}

/// A folder for this user alone.
fn make_folder(folder: &Path) -> anyhow::Result<()> {
    let made = std::fs::DirBuilder::new().mode(0o700).create(folder);
    made.with_context(|| format!("cannot make {}", folder.display()))
}

/// Whatever the umask: clients refuse what others may write.
fn close_files(folder: &Path) -> anyhow::Result<()> {
    for file in std::fs::read_dir(folder)? {
        std::fs::set_permissions(file?.path(), std::fs::Permissions::from_mode(0o600))?;
    }
    Ok(())
}

/// Copies the plugin files of a checkout, which a developer's umask may have left writable for a group: a client refuses
/// those. What belongs to somebody else is not copied.
fn copy_plugins(folder: &Path) -> anyhow::Result<PathBuf> {
    let copies = folder.join("plugins");
    make_folder(&copies)?;
    let own = rustix::process::geteuid().as_raw();
    for file in std::fs::read_dir(CHECKOUT).context(CHECKOUT)? {
        let file = file?;
        let metadata = file.metadata()?;
        let is_ours = metadata.uid() == 0 || metadata.uid() == own;
        if !metadata.is_file() || !is_ours {
            continue;
        }
        let copy = copies.join(file.file_name());
        let read = std::fs::read(file.path());
        read.and_then(|text| std::fs::write(&copy, text))
            .with_context(|| format!("cannot copy {}", file.path().display()))?;
    }
    close_files(&copies)?;
    Ok(copies)
}

/// Says which plugins this machine can run, and gives those the demo asks for.
fn choose_plugins(config: &Config) -> anyhow::Result<Vec<PluginName>> {
    let registry = Registry::load(&config.client.plugins)?;
    let (here, missing): (Vec<_>, Vec<_>) = registry
        .plugins
        .values()
        .partition(|plugin| plugin.is_runnable());
    let names = |plugins: &[&crate::client::plugin::Plugin]| {
        plugins
            .iter()
            .map(|plugin| plugin.name.as_str())
            .collect::<Vec<_>>()
            .join(" ")
    };
    answer(&format!(
        "Plugins that this machine can run:  {}\n",
        names(&here)
    ))?;
    if !missing.is_empty() {
        answer(&format!(
            "Their programs are not here:        {}\n",
            names(&missing)
        ))?;
    }
    let asked = here
        .iter()
        .filter(|plugin| ASKED.contains(&plugin.name.as_str()));
    let asked: Vec<_> = asked.map(|plugin| plugin.name.clone()).collect();
    anyhow::ensure!(
        !asked.is_empty(),
        "none of the plugins {ASKED:?} is in {}",
        config.client.plugins.display()
    );
    Ok(asked)
}

impl Fleet {
    /// Starts everything, and waits until every client has reported itself.
    async fn start(args: &Args, config: Config, folder: &Path) -> anyhow::Result<Self> {
        let broker = Arc::new(MemoryBroker::new());
        let store = store::open(&config.store)?;
        store.setup(Designs::Shipped).await?;
        let ledger = Arc::new(Ledger::default());
        let server = Server::start(
            &config,
            Arc::clone(&broker) as Arc<dyn Broker>,
            Arc::clone(&store),
            ledger,
        )
        .await?;
        let stop_clients = CancellationToken::new();
        let mut clients = JoinSet::new();
        for number in 1..=args.nodes {
            let node: NodeName = format!("node{number:02}.demo").parse()?;
            let mut settings = config.client.clone();
            settings.state = folder.join("clients").join(node.as_str());
            settings.groups = vec![if number % 2 == 0 { "even" } else { "odd" }.parse()?];
            settings.node = Some(node);
            std::fs::create_dir_all(&settings.state)?;
            let broker = Arc::clone(&broker) as Arc<dyn Broker>;
            let client = Client::new(settings, broker, Supervisor::this_program())?;
            let stop = stop_clients.clone();
            clients.spawn(async move { Ok(client.run(stop).await?) });
        }
        let mut fleet = Self {
            broker,
            store,
            server,
            clients,
            stop_clients,
            config,
        };
        fleet.wait_for_clients(usize::from(args.nodes)).await?;
        answer(&format!(
            "{} clients, one server, one store: all in this process.\n",
            args.nodes
        ))?;
        Ok(fleet)
    }

    async fn wait_for_clients(&mut self, count: usize) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.store.nodes().await?.len() < count {
            if let Some(ended) = self.clients.try_join_next() {
                ended??;
            }
            anyhow::ensure!(
                Instant::now() < deadline,
                "not all clients reported themselves within {PATIENCE:?}"
            );
            tokio::time::sleep(REPORT_POLL).await;
        }
        Ok(())
    }

    /// Asks, and shows what came back. Says whether all answered.
    async fn show(
        &self,
        args: &Args,
        plugins: &[PluginName],
        stop: &CancellationToken,
    ) -> anyhow::Result<bool> {
        let mut is_complete = true;
        for (index, plugin) in plugins.iter().enumerate() {
            answer(&format!("\n$ vogeler run {plugin} -n all\n"))?;
            let report = self.ask(plugin, stop).await?;
            // The names once; after that only if somebody is missing.
            let is_whole = index == 0 || !report.complete;
            let text = if is_whole {
                report.text(WIDTH_DEFAULT, false)
            } else {
                format!("{}\n", report.summary())
            };
            answer(&text)?;
            is_complete &= report.complete;
        }
        let sample: NodeName = "node01.demo".parse()?;
        let documents = self.store.load(std::slice::from_ref(&sample)).await?;
        if let Some(stored) = documents.get(&sample) {
            let document = abridged(&serde_json::from_str(stored.json.get())?, 0);
            answer(&format!(
                "\n$ vogeler node show {sample}        (long lists cut)\n"
            ))?;
            answer_json(&document.to_string())?;
        }
        let query = Query::Package {
            name: PACKAGE.to_owned(),
        };
        let found = self.store.find(&query).await?;
        answer(&format!(
            "\n$ vogeler find --package {PACKAGE}\n{}\n",
            listed(&found)
        ))?;
        let counts = self.server.counts();
        let ended: Vec<String> = Outcome::ALL
            .iter()
            .map(|outcome| format!("{} {}", counts.of(*outcome), outcome.as_str()))
            .collect();
        answer(&format!(
            "\nThe server received {} results of {} nodes: {}; {} in flight.\n",
            counts.received,
            args.nodes,
            ended.join(", "),
            counts.in_flight()
        ))?;
        Ok(is_complete)
    }

    async fn ask(&self, plugin: &PluginName, stop: &CancellationToken) -> anyhow::Result<Report> {
        let request = RunRequest {
            run: RunId::generate(),
            plugin: plugin.clone(),
            target: Target::All,
            timeout: PATIENCE,
        };
        let mut progress = Progress::on_stderr(std::io::stderr().is_terminal() && !log::no_color());
        let mut observer = |run: &runner::Run| progress.update(run);
        let report = runner::run(&*self.broker, &*self.store, &request, &mut observer, stop).await;
        progress.finish();
        Ok(report?)
    }

    async fn stop(mut self) -> anyhow::Result<()> {
        self.stop_clients.cancel();
        while let Some(ended) = self.clients.join_next().await {
            ended??;
        }
        self.server.stop().await;
        self.broker.close().await;
        self.store.close().await;
        Ok(())
    }
}

/// A value with long arrays and objects cut, so that a document fits a screen. The document's own level stays whole.
fn abridged(value: &Value, depth: usize) -> Value {
    let shown_max = if depth == 0 { usize::MAX } else { SHOWN_MAX };
    let more = |count: usize| format!("… {} more", count.saturating_sub(shown_max));
    match value {
        Value::Array(items) => {
            let mut shown: Vec<Value> = items
                .iter()
                .take(shown_max)
                .map(|item| abridged(item, depth + 1))
                .collect();
            if items.len() > shown_max {
                shown.push(Value::String(more(items.len())));
            }
            Value::Array(shown)
        }
        Value::Object(members) => {
            let mut shown: serde_json::Map<String, Value> = members
                .iter()
                .take(shown_max)
                .map(|(key, value)| (key.clone(), abridged(value, depth + 1)))
                .collect();
            if members.len() > shown_max {
                shown.insert("…".to_owned(), Value::String(more(members.len())));
            }
            Value::Object(shown)
        }
        other => other.clone(),
    }
}

/// The first names, and how many more.
fn listed(nodes: &[NodeName]) -> String {
    let names = nodes
        .iter()
        .take(NAMES_MAX)
        .map(NodeName::as_str)
        .collect::<Vec<_>>()
        .join("\n");
    match nodes.len().saturating_sub(NAMES_MAX) {
        _ if nodes.is_empty() => "(no node)".to_owned(),
        0 => names,
        more => format!("{names}\n… {more} more"),
    }
}

/// What to type next.
fn further(config: &Config, folder: &Path, is_kept: bool) -> String {
    let program = std::env::current_exe()
        .map_or_else(|_| "vogeler".to_owned(), |path| path.display().to_string());
    let store = &config.store.dsn;
    let intro = if is_kept {
        "It stays up until Ctrl-C. In a second terminal"
    } else {
        "The store is still there. Look further"
    };
    format!(
        "\n{intro}:\n\
         \x20 export VOGELER_STORE_DSN={store}\n\
         \x20 {program} node list\n\
         \x20 {program} node show node01.demo /os-release\n\
         \x20 {program} find --plugin processes --contains init\n\
         \x20 {program} find --where /os-release/ID=debian\n\
         Then delete {}. docs/INSTALL.md has the set-up for real machines.\n",
        folder.display()
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Goal: the sample shows every key of the document, and only the beginning of what is long.
    #[test]
    fn long_values_are_cut_and_say_so() {
        let document = json!({"a": 1, "b": 2, "c": 3, "d": 4, "e": [1, 2, 3, 4, 5, 6]});
        let shown = abridged(&document, 0);
        assert_eq!(shown["e"], json!([1, 2, 3, 4, "… 2 more"]));
        assert_eq!(shown.as_object().map(serde_json::Map::len), Some(5));
    }
}
