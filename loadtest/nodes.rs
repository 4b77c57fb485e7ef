//! Who is in the fleet: every node with its distribution, its clock, and whether it is a real client.
//!
//! A plan goes in. Pure: the same plan gives the same fleet.

use vogeler::wire::{NameError, NodeName, PluginName};

use crate::payload::Machine;
use crate::plan::{Distribution, Plan};
use crate::rng::Draws;

/// How far wrong clocks are off, in microseconds. The server takes a clock that is two days ahead for a broken one.
const SKEWS: [i64; 4] = [-6 * HOUR, -HOUR, 3 * HOUR, 48 * HOUR];
const HOUR: i64 = 3_600_000_000;

/// One node.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    /// What it prints.
    pub(crate) machine: Machine,
    /// Its name, checked.
    pub(crate) name: NodeName,
    /// Whether it is the product's own client.
    pub(crate) is_real: bool,
    /// Whether it comes only while the load runs.
    pub(crate) joins: bool,
    /// How far its clock is off, in microseconds.
    pub(crate) skew_micros: i64,
}

/// The fleet: real clients first, then light ones, then those that join.
#[derive(Debug, Clone)]
pub(crate) struct Nodes {
    /// All nodes.
    pub(crate) members: Vec<Member>,
    /// The plan's plugins, in its order.
    pub(crate) plugins: Vec<PluginName>,
}

impl Nodes {
    /// The fleet of a checked plan.
    pub(crate) fn new(plan: &Plan) -> Result<Self, NameError> {
        let count = plan.nodes + plan.joins;
        let members = (0..count).map(|number| member(plan, number));
        let plugins = plan
            .plugins
            .iter()
            .map(|plugin| PluginName::new(&plugin.name));
        Ok(Self {
            members: members.collect::<Result<_, _>>()?,
            plugins: plugins.collect::<Result<_, _>>()?,
        })
    }

    /// The machines alone.
    pub(crate) fn machines(&self) -> Vec<Machine> {
        self.members
            .iter()
            .map(|member| member.machine.clone())
            .collect()
    }
}

fn member(plan: &Plan, number: usize) -> Result<Member, NameError> {
    let mut draws = Draws::of(plan.seed, &[number as u64, 3]);
    let machine = Machine::new(plan.seed, number, distribution(plan, &mut draws));
    let is_real = number < plan.real_clients;
    // A real client reads this machine's clock.
    let is_skewed = draws.happens(plan.clock_skew_rate) && !is_real;
    let skew = SKEWS[draws.index(SKEWS.len())];
    Ok(Member {
        name: NodeName::new(&machine.name)?,
        machine,
        is_real,
        joins: number >= plan.nodes,
        skew_micros: if is_skewed { skew } else { 0 },
    })
}

fn distribution(plan: &Plan, draws: &mut Draws) -> Distribution {
    let total: f64 = plan.distributions.values().sum();
    let mut left = draws.share() * total;
    for (distribution, weight) in &plan.distributions {
        left -= weight;
        if left < 0.0 {
            return *distribution;
        }
    }
    Distribution::Debian
}
