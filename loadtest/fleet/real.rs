//! Real clients: the product's own, in this process, each with a connection and a folder of its own.
//!
//! Their plugins are stubs that print what a machine of their distribution would: each is `cat` of a file. It is called
//! by its path, since a program that has to be looked up is started by a fork of this large process. They answer
//! commands, and report themselves when they start; a recording broker notes all of it in the ledger.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use vogeler::broker::Broker;
use vogeler::client::Client;
use vogeler::client::execute::Supervisor;
use vogeler::config;
use vogeler::wire::Group;

use super::recording_broker::RecordingBroker;
use super::{Fleet, Start, Target};
use crate::nodes::Member;
use crate::plan::REAL_GROUP;
use crate::services::{GuardedFolder, vogeler_program};
use crate::verdict::Finding;

/// The real clients of a fleet.
#[derive(Debug)]
pub(super) struct Clients {
    /// One task a client; it returns a finding if the client failed.
    tasks: JoinSet<Option<Finding>>,
    stop: CancellationToken,
    /// Deleted when this is dropped, and with this process.
    _folder: GuardedFolder,
}

impl Clients {
    /// Starts each when it is due in the ramp.
    pub(super) fn start(
        fleet: &Fleet,
        target: &Target,
        start: Start,
        stop: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let folder = GuardedFolder::new().context("no folder for the real clients")?;
        let stop = stop.child_token();
        let mut tasks = JoinSet::new();
        let members = fleet.nodes.members.iter().zip(&fleet.schedule.starts);
        for (member, due) in members.filter(|(member, _)| member.is_real) {
            let due = start.at(*due);
            let config = config(folder.path(), member)?;
            let (fleet, member, stop) = (fleet.clone(), member.clone(), stop.clone());
            let inner = target.brokers.open();
            tasks.spawn(async move {
                let sleep = tokio::time::sleep_until(due);
                stop.run_until_cancelled(sleep).await?;
                let node = member.name.to_string();
                let ran = run(fleet, member, config, inner, start, stop).await;
                ran.err().map(|error| failed(node, &format!("{error:#}")))
            });
        }
        Ok(Self {
            tasks,
            stop,
            _folder: folder,
        })
    }

    /// Ends all clients. Those that failed are findings: the product failed, not the run.
    pub(super) async fn stop(mut self) -> Vec<Finding> {
        self.stop.cancel();
        let mut findings = Vec::new();
        while let Some(ended) = self.tasks.join_next().await {
            let panicked = |error: JoinError| Some(failed("-".to_owned(), &error.to_string()));
            findings.extend(ended.unwrap_or_else(panicked));
        }
        findings
    }
}

/// One client, until `stop`.
async fn run(
    fleet: Fleet,
    member: Member,
    config: config::Client,
    broker: Arc<dyn Broker>,
    start: Start,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    fleet.stats.clients.add();
    let recording = RecordingBroker {
        inner: Arc::clone(&broker),
        fleet: fleet.clone(),
        start,
    };
    let new = move || {
        write_plugins(&fleet, &member, &config.plugins).context("its stub plugins")?;
        let supervisor = Supervisor::at(vogeler_program()?);
        anyhow::Ok(Client::new(config, Arc::new(recording), supervisor)?)
    };
    let client = tokio::task::spawn_blocking(new).await??;
    let ran = client.run(stop).await;
    broker.close().await;
    Ok(ran?)
}

fn failed(node: String, error: &str) -> Finding {
    Finding {
        node,
        plugin: None,
        seq: None,
        what: format!("the real client failed: {error}"),
    }
}

fn config(folder: &Path, member: &Member) -> anyhow::Result<config::Client> {
    let folder = folder.join(member.name.as_str());
    Ok(config::Client {
        node: Some(member.name.clone()),
        groups: vec![Group::new(REAL_GROUP)?],
        plugins: folder.join("plugins"),
        state: folder.join("state"),
        ..config::Client::default()
    })
}

/// A plugin file, and what its plugins print.
fn write_plugins(fleet: &Fleet, member: &Member, folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder)?;
    let mut sections = String::new();
    for (generator, plugin) in fleet.generators.iter().zip(&fleet.nodes.plugins) {
        let output = folder.join(format!("{plugin}.json"));
        std::fs::write(&output, generator.value(&member.machine, 0))?;
        let path = output.display();
        write!(
            sections,
            "[{plugin}]\ncommand = /bin/cat {path}\nresult_format = json\n\n"
        )?;
    }
    let file = folder.join("stubs.cfg");
    std::fs::write(&file, sections)?;
    // Whatever the umask: clients refuse what others may write.
    for (path, mode) in [(folder, 0o700), (&*file, 0o600)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a client that fails, or panics, is a finding; one that ends in order is none.
    #[tokio::test]
    async fn failed_clients_are_findings() {
        let mut tasks = JoinSet::new();
        tasks.spawn(async { None });
        tasks.spawn(async { Some(failed("web01".to_owned(), "no disk")) });
        tasks.spawn(async { panic!("a bug") });
        let clients = Clients {
            tasks,
            stop: CancellationToken::new(),
            _folder: GuardedFolder::new().unwrap(),
        };
        let mut found = clients.stop().await;
        found.sort();
        let [panicked, failed] = &found[..] else {
            panic!("{found:?}");
        };
        assert!(panicked.what.contains("a bug"), "{panicked:?}");
        assert_eq!(failed.node, "web01");
        assert_eq!(failed.what, "the real client failed: no disk");
    }
}
