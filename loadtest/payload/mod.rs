//! What the plugins of a simulated machine print: facts, packages and processes of its distribution.
//!
//! Seed, node, plugin and version go in, a JSON text comes out. Pure: the same input always gives the same bytes, and
//! no two nodes or versions give equal ones, so that content shows whose it is.

mod facts;
mod packages;
mod processes;
mod words;

use std::fmt::Write as _;

use crate::plan::{Distribution, Plan, PluginKind};
use crate::rng::Draws;

/// Smallest and largest facts, in bytes.
const FACTS_BYTES: [usize; 2] = [5_000, 100_000];
/// Smallest and largest package list, in bytes: some 400 to 4,000 packages.
const PACKAGES_BYTES: [usize; 2] = [15_000, 150_000];
/// Smallest and largest process list, in bytes: some 100 to 600 processes.
const PROCESSES_BYTES: [usize; 2] = [5_000, 30_000];
/// Most nodes, and versions of each, that the fingerprint covers.
const FINGERPRINT_NODES: usize = 20;
const FINGERPRINT_VERSIONS: u32 = 3;

/// A simulated machine: what determines its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Machine {
    /// Its number in the fleet.
    pub(crate) number: u64,
    /// Its full name.
    pub(crate) name: String,
    /// Its operating system.
    pub(crate) distribution: Distribution,
}

impl Machine {
    /// Machine `number` of a fleet of this seed.
    pub(crate) fn new(seed: u64, number: usize, distribution: Distribution) -> Self {
        let number = number as u64;
        let role = Draws::of(seed, &[number, 1]).pick(&words::ROLES);
        let name = format!(
            "{}-{role}-{number:05}.loadtest.example.com",
            distribution.as_str()
        );
        Self {
            number,
            name,
            distribution,
        }
    }
}

/// Makes the values of one plugin.
#[derive(Debug, Clone)]
pub(crate) struct Generator {
    seed: u64,
    /// The plugin's place in the plan, so that two of one kind differ.
    plugin: u64,
    kind: PluginKind,
    bytes: [usize; 2],
}

impl Generator {
    /// The generators of a plan's plugins, in its order.
    pub(crate) fn of_plan(plan: &Plan) -> Vec<Self> {
        let plugins = plan.plugins.iter().enumerate();
        plugins
            .map(|(index, plugin)| Self {
                seed: plan.seed,
                plugin: index as u64,
                kind: plugin.kind,
                bytes: plugin.bytes.unwrap_or(match plugin.kind {
                    PluginKind::Facts | PluginKind::Custom => FACTS_BYTES,
                    PluginKind::Packages => PACKAGES_BYTES,
                    PluginKind::Processes => PROCESSES_BYTES,
                }),
            })
            .collect()
    }

    /// The value on `machine` after `version` changes: compact JSON.
    pub(crate) fn value(&self, machine: &Machine, version: u32) -> String {
        let mut draws = Draws::of(self.seed, &[machine.number, 2, self.plugin]);
        let bytes = draws.magnitude(self.bytes[0], self.bytes[1]);
        let version = u64::from(version);
        match self.kind {
            PluginKind::Facts => facts::text(machine, version, bytes, &mut draws),
            PluginKind::Packages => packages::text(machine, version, bytes, &mut draws),
            PluginKind::Processes => processes::text(machine, version, bytes, &mut draws),
            PluginKind::Custom => custom(machine, version, bytes, &mut draws),
        }
    }
}

/// Meaningless text.
fn custom(machine: &Machine, version: u64, bytes: usize, draws: &mut Draws) -> String {
    let mut text = format!(
        r#"{{"node":"{}","version":{version},"text":""#,
        machine.name
    );
    while text.len() + 18 < bytes {
        push(&mut text, format_args!("{:016x}", draws.next()));
    }
    text.push_str("\"}");
    text
}

/// Appends to `text`; writing to a `String` cannot fail.
fn push(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).unwrap_or_default();
}

/// Adds what a plan's fleet prints to a fingerprint: some machines from all over it, all plugins, some versions.
pub(crate) fn fingerprint(plan: &Plan, machines: &[Machine], hasher: &mut blake3::Hasher) {
    let step = machines.len().div_ceil(FINGERPRINT_NODES).max(1);
    for machine in machines.iter().step_by(step) {
        hasher.update(machine.name.as_bytes());
        for generator in Generator::of_plan(plan) {
            for version in 0..FINGERPRINT_VERSIONS {
                hasher.update(generator.value(machine, version).as_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests;
