//! The plan: what a load test does and what must hold, read from TOML.
//!
//! TOML text goes in, a checked [`Plan`] comes out. Invariant: unknown keys are errors, and every error says what is
//! wrong, where, and what to do.

mod bounds;
mod bundled;
mod check;
mod fault;
mod length;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(crate) use bounds::Bounds;
pub(crate) use check::PlanError;

pub(crate) use fault::{FaultKind, FaultPlan};
pub(crate) use length::Length;

use crate::span;

/// What a load test does and what must hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plan {
    /// Its name; the bundled plans are called like their file.
    pub(crate) name: String,
    /// What it is for, in a sentence.
    pub(crate) description: String,
    /// Seed of all random draws: same seed, same load.
    pub(crate) seed: u64,
    /// Nodes of the fleet when the ramp is over, real ones included.
    pub(crate) nodes: usize,
    /// Share of each distribution among the nodes, as weights. Default: all alike.
    #[serde(default = "Distribution::all_alike", alias = "flavours")]
    pub(crate) distributions: BTreeMap<Distribution, f64>,
    /// How many of the nodes are the product's own client in this process, and answer commands.
    #[serde(default)]
    pub(crate) real_clients: usize,
    /// AMQP connections of the light clients. A real client always has its own.
    #[serde(default)]
    pub(crate) connections: Connections,
    /// What the nodes collect.
    pub(crate) plugins: Vec<PluginPlan>,
    /// Chance that a result's content differs from the one before. Default 0.2.
    #[serde(default = "default_change_rate")]
    pub(crate) change_rate: f64,
    /// Chance that a result is sent twice, byte for byte.
    #[serde(default)]
    pub(crate) duplicate_rate: f64,
    /// Chance that a result is sent only after the next one of its plugin.
    #[serde(default)]
    pub(crate) late_rate: f64,
    /// Share of nodes whose clock is wrong, by hours or by days.
    #[serde(default)]
    pub(crate) clock_skew_rate: f64,
    /// Chance that a message that is no result is sent along with a result.
    #[serde(default)]
    pub(crate) poison_rate: f64,
    /// Nodes that join while the load runs.
    #[serde(default)]
    pub(crate) joins: usize,
    /// Nodes that leave while the load runs. Their documents are deleted, and half of them come back as new machines.
    #[serde(default)]
    pub(crate) leaves: usize,
    /// Time over which the nodes start. Default none.
    #[serde(default, with = "span")]
    pub(crate) ramp: Duration,
    /// How much is sent.
    pub(crate) length: Length,
    /// Longest wait, after the last result was sent, until the server has settled all. Default 60 s.
    #[serde(default = "default_settle_timeout", with = "span")]
    pub(crate) settle_timeout: Duration,
    /// Runs of operators, at the same time if so planned. They ask the real clients, in the group [`REAL_GROUP`].
    #[serde(default)]
    pub(crate) runners: Vec<RunnerPlan>,
    /// What is broken, and when.
    #[serde(default)]
    pub(crate) faults: Vec<FaultPlan>,
    /// What must hold.
    #[serde(default)]
    pub(crate) bounds: Bounds,
    /// Settings for the server under test, as in `vogeler.toml`: `[server.broker]`, `[server.server]`, ….
    #[serde(default)]
    pub(crate) server: toml::Table,
}

/// The group that all real clients are in.
pub(crate) const REAL_GROUP: &str = "real";

/// The operating system of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Distribution {
    /// Red Hat Enterprise Linux 9.
    Rhel,
    /// CentOS Stream 9.
    Centos,
    /// Debian 12.
    Debian,
    /// Ubuntu 24.04.
    Ubuntu,
}

impl Distribution {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Rhel, Self::Centos, Self::Debian, Self::Ubuntu];

    /// The name in plans and node names.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Rhel => "rhel",
            Self::Centos => "centos",
            Self::Debian => "debian",
            Self::Ubuntu => "ubuntu",
        }
    }

    fn all_alike() -> BTreeMap<Self, f64> {
        Self::ALL
            .into_iter()
            .map(|distribution| (distribution, 1.0))
            .collect()
    }
}

/// How the light clients are connected: `"per_client"`, or `{ shared = 4 }`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Connections {
    /// One connection each, as in a real fleet.
    #[default]
    PerClient,
    /// This many for all of them.
    Shared(usize),
}

/// One plugin of the fleet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PluginPlan {
    /// Its name: the key in the node document.
    pub(crate) name: String,
    /// What its values look like.
    pub(crate) kind: PluginKind,
    /// Its share of all results. Default 1.
    #[serde(default = "default_weight")]
    pub(crate) weight: f64,
    /// Smallest and largest size of a value in bytes, spread over the nodes evenly by order of magnitude. Default: the
    /// kind's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) bytes: Option<[usize; 2]>,
}

/// What a plugin's values look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PluginKind {
    /// Facts as `facter` prints them: nested objects, 5 to 100 KB.
    Facts,
    /// The installed packages: hundreds to thousands of lines.
    Packages,
    /// The process list.
    Processes,
    /// Text of the size that `bytes` names.
    Custom,
}

/// One operator's run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RunnerPlan {
    /// When, from the start of the load.
    #[serde(with = "span")]
    pub(crate) at: Duration,
    /// Which plugin.
    pub(crate) plugin: String,
    /// Whom, as for `vogeler run`. Default `@real`, all real clients; light clients hear no commands.
    #[serde(default = "default_target")]
    pub(crate) target: String,
    /// How long the clients may take. Default 30 s.
    #[serde(default = "default_deadline", with = "span")]
    pub(crate) deadline: Duration,
}

impl Plan {
    /// The plan that `name` means: a bundled one by its name, or a file.
    pub(crate) fn load(name: &str) -> Result<Self, PlanError> {
        if let Some(text) = bundled::text(name) {
            return Self::parse(text, name);
        }
        let path = Path::new(name);
        let text = std::fs::read_to_string(path).map_err(|source| PlanError::Read {
            path: name.to_owned(),
            bundled: bundled::NAMES.join(", "),
            source,
        })?;
        Self::parse(&text, name)
    }

    /// Reads and checks TOML text that came from `origin`.
    pub(crate) fn parse(text: &str, origin: &str) -> Result<Self, PlanError> {
        let plan: Self = toml::from_str(text).map_err(|source| PlanError::Toml {
            origin: origin.to_owned(),
            source: Box::new(source),
        })?;
        plan.check(origin)?;
        Ok(plan)
    }

    /// Whether a fault makes the broker redeliver, or lose a receipt, because it interrupts the broker or the server.
    pub(crate) fn redelivers(&self) -> bool {
        self.faults.iter().any(|fault| fault.kind.redelivers())
    }
}

fn default_change_rate() -> f64 {
    0.2
}

fn default_settle_timeout() -> Duration {
    Duration::from_mins(1)
}

fn default_weight() -> f64 {
    1.0
}

fn default_target() -> String {
    format!("@{REAL_GROUP}")
}

fn default_deadline() -> Duration {
    Duration::from_secs(30)
}

#[cfg(test)]
mod tests;
