//! Real clients: the product's own, in this process, each with a connection and a folder of its own.
//!
//! Their plugins are stubs that print what a machine of their flavour would (`cat` of a file; by its path, since a program
//! that has to be looked up is started by a fork of this large process). They answer commands, and
//! report themselves when they start; a tap notes all of it in the ledger.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use vogeler::client::Client;
use vogeler::config;
use vogeler::wire::Group;

use super::tap::Tap;
use super::{Fleet, Start, Target};
use crate::plan::REAL_GROUP;
use crate::roster::Member;

/// The real clients of a fleet.
#[derive(Debug)]
pub(super) struct Clients {
    tasks: JoinSet<anyhow::Result<()>>,
    stop: CancellationToken,
    /// Deleted when this is dropped.
    _folder: TempDir,
}

impl Clients {
    /// Starts each when it is due in the ramp.
    pub(super) fn start(
        fleet: &Fleet,
        target: &Target,
        start: Start,
        stop: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("no folder for the real clients")?;
        let stop = stop.child_token();
        let mut tasks = JoinSet::new();
        let members = fleet.roster.members.iter().zip(&fleet.schedule.starts);
        for (member, due) in members.filter(|(member, _)| member.is_real) {
            let due = start.at(*due);
            let config = config(folder.path(), member)?;
            let (fleet, member, stop) = (fleet.clone(), member.clone(), stop.clone());
            let inner = target.brokers.open();
            tasks.spawn(async move {
                if stop
                    .run_until_cancelled(tokio::time::sleep_until(due))
                    .await
                    .is_none()
                {
                    return Ok(());
                }
                fleet.stats.clients.add();
                let tap = Tap {
                    inner: Arc::clone(&inner),
                    fleet: fleet.clone(),
                    start,
                };
                let new = move || {
                    write_plugins(&fleet, &member, &config.plugins)?;
                    anyhow::Ok(Client::new(config, Arc::new(tap))?)
                };
                let client = tokio::task::spawn_blocking(new).await??;
                let name = client.node().clone();
                let ran = client.run(stop).await;
                inner.close().await;
                ran.with_context(|| format!("the real client {name}"))
            });
        }
        Ok(Self {
            tasks,
            stop,
            _folder: folder,
        })
    }

    /// Ends them. One that had to end before is an error.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended??;
        }
        Ok(())
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
    for (generator, plugin) in fleet.generators.iter().zip(&fleet.roster.plugins) {
        let output = folder.join(format!("{plugin}.json"));
        std::fs::write(&output, generator.value(&member.machine, 0))?;
        let path = output.display();
        write!(
            sections,
            "[{plugin}]\ncommand = /bin/cat {path}\nresult_format = json\n\n"
        )?;
    }
    std::fs::write(folder.join("stubs.cfg"), sections)?;
    Ok(())
}
