//! The schedule: what the light clients send, and when. Pure.
//!
//! A plan and its fleet go in, a list of sendings by time comes out: an open loop that no answer of the server can slow
//! down. Each node runs each plugin at a fixed interval, as timers do. Invariant: a node collects a plugin at most once
//! a tick. So run (one for each tick), node and plugin identify one result.

mod series;

use crate::nodes::Nodes;
use crate::plan::{Length, Plan};
use crate::rng::Draws;
use series::Series;

/// Longest tick, in microseconds. Results of one tick share a run, so a longer one means fewer receipt messages.
const TICK_MICROS_MAX: u64 = 1_000_000;
/// Nodes leave in the first part of the time after the ramp, so that those that come back have time to report.
const LEAVES_UNTIL: f64 = 0.6;
/// A node that comes back is away for this share of the load.
const AWAY: f64 = 0.15;
/// A machine that comes back is this many versions ahead of the one that left, so that its content is new.
const LIFE_VERSIONS: u32 = 1_000_000;

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A result, on time.
    Result,
    /// A result that comes after a newer one of its plugin.
    Late,
    /// The same bytes again.
    Duplicate,
    /// A message that is no result; the number says in which way.
    Poison(u8),
}

/// Number of ways in which a message can be no result.
pub(crate) const POISONS: u8 = 6;

/// One message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sending {
    /// When it is due, in microseconds from the start.
    pub(crate) at: u64,
    /// When the plugin ran, by the true clock; adding the node's skew gives the sequence.
    pub(crate) collected: u64,
    /// Which of the nodes.
    pub(crate) node: u32,
    /// Which plugin of the plan.
    pub(crate) plugin: u16,
    /// The tick that it was collected in, which stands for its run.
    pub(crate) tick: u32,
    /// How often the content had changed by then.
    pub(crate) version: u32,
    /// What it is.
    pub(crate) kind: Kind,
}

/// A node that leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Departure {
    /// Which node.
    pub(crate) node: u32,
    /// When, in microseconds from the start.
    pub(crate) at: u64,
    /// When it comes back, if it does.
    pub(crate) returns: Option<u64>,
}

/// Everything that the light clients will do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Schedule {
    /// By time.
    pub(crate) sendings: Vec<Sending>,
    /// By time.
    pub(crate) departures: Vec<Departure>,
    /// When each node starts, in microseconds.
    pub(crate) starts: Vec<u64>,
    /// Number of ticks.
    pub(crate) ticks: u32,
    /// When the last message is due, in microseconds.
    pub(crate) end: u64,
}

impl Schedule {
    /// The schedule of a checked plan.
    pub(crate) fn new(plan: &Plan, nodes: &Nodes) -> Self {
        let intervals = intervals(plan);
        let end = end(plan, &intervals);
        let starts = starts(plan, nodes, end);
        let departures = departures(plan, end);
        let tick = intervals
            .iter()
            .copied()
            .min()
            .unwrap_or(1)
            .clamp(1, TICK_MICROS_MAX);
        let mut sendings = Vec::new();
        for (node, member) in nodes
            .members
            .iter()
            .enumerate()
            .filter(|(_, member)| !member.is_real)
        {
            let departure = departures
                .iter()
                .find(|departure| departure.node == index(node));
            for (plugin, interval) in intervals.iter().enumerate() {
                let mut draws = Draws::of(plan.seed, &[member.machine.number, 4, plugin as u64]);
                let mut series = Series {
                    plan,
                    node: index(node),
                    plugin: u16::try_from(plugin).unwrap_or(u16::MAX),
                    interval: *interval,
                    tick,
                    draws: &mut draws,
                    sendings: &mut sendings,
                };
                let leaves = departure.map_or(end, |departure| departure.at.min(end));
                series.fill(starts[node], leaves, 0);
                if let Some(returns) = departure.and_then(|departure| departure.returns) {
                    series.fill(returns, end, LIFE_VERSIONS);
                }
            }
        }
        sendings
            .sort_by_key(|sending| (sending.at, sending.node, sending.plugin, sending.collected));
        if let Length::Count { count, .. } = plan.length {
            cut(&mut sendings, count);
        }
        Self {
            ticks: sendings
                .iter()
                .map(|sending| sending.tick + 1)
                .max()
                .unwrap_or(0),
            end: sendings.last().map_or(0, |sending| sending.at),
            starts,
            departures,
            sendings,
        }
    }

    /// Adds to a fingerprint what is sent and when, and when nodes start and leave.
    pub(crate) fn fingerprint(&self, hasher: &mut blake3::Hasher) {
        for sending in &self.sendings {
            let kind = match sending.kind {
                Kind::Result => 0,
                Kind::Late => 1,
                Kind::Duplicate => 2,
                Kind::Poison(form) => 3 + u64::from(form),
            };
            let (node, plugin) = (u64::from(sending.node), u64::from(sending.plugin));
            let version = u64::from(sending.version);
            for number in [sending.at, sending.collected, node, plugin, version, kind] {
                hasher.update(&number.to_le_bytes());
            }
        }
        for departure in &self.departures {
            let returns = departure.returns.unwrap_or(u64::MAX);
            for number in [u64::from(departure.node), departure.at, returns] {
                hasher.update(&number.to_le_bytes());
            }
        }
        for start in &self.starts {
            hasher.update(&start.to_le_bytes());
        }
    }
}

/// Keeps the first `count` results, and what came with them.
fn cut(sendings: &mut Vec<Sending>, count: usize) {
    let is_result = |sending: &Sending| matches!(sending.kind, Kind::Result | Kind::Late);
    let mut results = 0;
    let end = sendings.iter().position(|sending| {
        results += usize::from(is_result(sending));
        results > count
    });
    sendings.truncate(end.unwrap_or(sendings.len()));
}

fn index(node: usize) -> u32 {
    u32::try_from(node).unwrap_or(u32::MAX)
}

/// The interval at which a node runs each plugin, in microseconds, so that the nodes make the plan's rate at the end of
/// the ramp.
fn intervals(plan: &Plan) -> Vec<u64> {
    let weights: f64 = plan.plugins.iter().map(|plugin| plugin.weight).sum();
    let light = count(plan.nodes - plan.real_clients);
    let interval = |weight: f64| micros(light * weights / (plan.length.rate() * weight));
    plan.plugins
        .iter()
        .map(|plugin| interval(plugin.weight).max(1))
        .collect()
}

/// When nothing more is collected.
fn end(plan: &Plan, intervals: &[u64]) -> u64 {
    let longest = intervals.iter().copied().max().unwrap_or(0);
    match plan.length {
        Length::Duration { duration, .. } => micros(duration.as_secs_f64()),
        // On average one interval more than needed; the rest is cut.
        Length::Count {
            rate,
            count: results,
        } => micros(plan.ramp.as_secs_f64() + count(results) / rate) + longest,
    }
}

/// When each node starts: the planned nodes during the ramp, in a random order; those that join, during the rest.
fn starts(plan: &Plan, nodes: &Nodes, end: u64) -> Vec<u64> {
    let mut draws = Draws::of(plan.seed, &[5]);
    let mut ranks: Vec<usize> = (0..plan.nodes).collect();
    draws.shuffle(&mut ranks);
    let ramp = plan.ramp.as_secs_f64();
    let late = end.saturating_sub(micros(ramp)).max(1);
    let all = count(plan.nodes);
    let planned = ranks
        .into_iter()
        .map(|rank| micros(ramp * count(rank) / all));
    let mut starts: Vec<u64> = planned.collect();
    let joining = nodes.members.iter().filter(|member| member.joins);
    starts.extend(joining.map(|_| micros(ramp) + draws.below(late)));
    starts
}

fn departures(plan: &Plan, end: u64) -> Vec<Departure> {
    let mut draws = Draws::of(plan.seed, &[6]);
    let mut nodes: Vec<usize> = (plan.real_clients..plan.nodes).collect();
    draws.shuffle(&mut nodes);
    let ramp = micros(plan.ramp.as_secs_f64());
    let span = share(end.saturating_sub(ramp), LEAVES_UNTIL);
    let leaving = nodes.into_iter().take(plan.leaves).enumerate();
    let mut departures: Vec<Departure> = leaving
        .map(|(number, node)| {
            let at = ramp + draws.below(span);
            let returns = at + share(end, AWAY);
            Departure {
                node: index(node),
                at,
                returns: (number % 2 == 0).then_some(returns),
            }
        })
        .collect();
    departures.sort_by_key(|departure| departure.at);
    departures
}

/// Seconds of a run as microseconds, the unit of the schedule and the ledger.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "times are positive, and a day at most"
)]
pub(crate) fn micros(seconds: f64) -> u64 {
    (seconds * 1e6) as u64
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "times are positive, and a day at most"
)]
fn share(time: u64, of: f64) -> u64 {
    (time as f64 * of) as u64
}

#[allow(clippy::cast_precision_loss, reason = "counts of a plan")]
fn count(number: usize) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests;
