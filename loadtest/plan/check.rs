//! The rules for a plan beyond its shape, and the errors that say what to do.

use std::fmt::Display;
use std::time::Duration;

use vogeler::config::Config;
use vogeler::runner::Target;
use vogeler::wire::PluginName;

use super::{Connections, Distribution, Length, Plan, PluginKind, PluginPlan};

/// Most nodes: the ledger and the names are in memory.
const NODES_MAX: usize = 100_000;
/// Most results: each has a ledger entry of some 200 bytes.
const RESULTS_MAX: usize = 5_000_000;
/// Most messages that become dead letters: half of what one look goes through.
const POISON_MAX: usize = 10_000;
/// Most real clients: each has a connection and a folder, and runs processes.
const REAL_CLIENTS_MAX: usize = 1_000;
/// Most connections: each is a file descriptor here and one at the broker.
const CONNECTIONS_MAX: usize = 5_000;
/// Most bytes of a value, by the server's default `message_bytes_max`.
const VALUE_BYTES_MAX: usize = 4_000_000;
/// Longest run, and longest wait in a run.
const LENGTH_MAX: Duration = Duration::from_hours(24);

/// Why a plan cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlanError {
    /// Neither a bundled plan nor a file.
    #[error("cannot read plan {path}; name a file, or one of the bundled plans: {bundled}")]
    Read {
        /// The name that was given.
        path: String,
        /// The bundled plans.
        bundled: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, or a value of another kind.
    #[error("plan {origin}")]
    Toml {
        /// Which plan.
        origin: String,
        /// Where and what.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A value that is not allowed.
    #[error("plan {origin}: {key} is {value}: {rule}")]
    Value {
        /// Which plan.
        origin: String,
        /// Which key.
        key: String,
        /// What it is.
        value: String,
        /// What is allowed, or what to do.
        rule: String,
    },
}

/// Keeps the first thing that is wrong.
struct Check<'a> {
    origin: &'a str,
}

impl Check<'_> {
    #[allow(
        clippy::needless_pass_by_value,
        reason = "numbers and short texts, written where they are checked"
    )]
    fn holds(
        &self,
        is_good: bool,
        key: &str,
        value: impl Display,
        rule: &str,
    ) -> Result<(), PlanError> {
        if is_good {
            return Ok(());
        }
        Err(PlanError::Value {
            origin: self.origin.to_owned(),
            key: key.to_owned(),
            value: value.to_string(),
            rule: rule.to_owned(),
        })
    }

    fn share(&self, key: &str, value: f64) -> Result<(), PlanError> {
        self.holds(
            (0.0..=1.0).contains(&value),
            key,
            value,
            "a share is 0 to 1",
        )
    }

    fn count(&self, key: &str, value: usize, max: usize) -> Result<(), PlanError> {
        self.holds(value <= max, key, value, &format!("at most {max}"))
    }

    fn time(&self, key: &str, value: Duration) -> Result<(), PlanError> {
        let text = vogeler::config::span::format(value);
        self.holds(value <= LENGTH_MAX, key, text, "at most 24h")
    }
}

impl Plan {
    /// Whether it can be run. `origin` is named in the error.
    pub(crate) fn check(&self, origin: &str) -> Result<(), PlanError> {
        let check = Check { origin };
        self.check_fleet(&check)?;
        self.check_load(&check)?;
        check.holds(
            !self.plugins.is_empty(),
            "plugins",
            "empty",
            "name at least one plugin",
        )?;
        for (index, plugin) in self.plugins.iter().enumerate() {
            let is_first = !self.plugins[..index]
                .iter()
                .any(|other| other.name == plugin.name);
            check.holds(
                is_first,
                "plugins.name",
                &plugin.name,
                "a plugin may be planned once",
            )?;
            check_plugin(&check, plugin)?;
        }
        self.check_runners(&check)?;
        for fault in &self.faults {
            check.time("faults.at", fault.at)?;
            check.time("faults.lasts", fault.lasts)?;
        }
        self.check_server(&check)
    }

    fn check_fleet(&self, check: &Check<'_>) -> Result<(), PlanError> {
        check.holds(self.nodes > 0, "nodes", self.nodes, "at least 1")?;
        let all = self.nodes.saturating_add(self.joins);
        check.count("nodes + joins", all, NODES_MAX)?;
        let real = self.real_clients;
        check.count("real_clients", real, REAL_CLIENTS_MAX.min(self.nodes))?;
        let light = self.nodes - real;
        check.holds(
            self.leaves <= light,
            "leaves",
            self.leaves,
            "only light clients leave: at most nodes - real_clients",
        )?;
        check.holds(
            self.joins <= light,
            "joins",
            self.joins,
            "light clients join, each with the rate of the others: at most nodes - real_clients",
        )?;
        let weights = &self.distributions;
        let is_weighted = weights
            .values()
            .all(|weight| *weight >= 0.0 && weight.is_finite())
            && weights.values().sum::<f64>() > 0.0;
        let known = Distribution::ALL.map(Distribution::as_str).join(", ");
        let rule = format!("give at least one of {known} a weight above 0");
        check.holds(is_weighted, "distributions", format!("{weights:?}"), &rule)?;
        match self.connections {
            Connections::PerClient => check.holds(
                light + self.joins <= CONNECTIONS_MAX,
                "connections",
                "per_client",
                &format!("too many for one machine past {CONNECTIONS_MAX} light clients: write {{ shared = 16 }}"),
            ),
            Connections::Shared(count) => check.holds(
                (1..=CONNECTIONS_MAX).contains(&count),
                "connections.shared",
                count,
                &format!("1 to {CONNECTIONS_MAX}"),
            ),
        }
    }

    fn check_load(&self, check: &Check<'_>) -> Result<(), PlanError> {
        let shares = [
            ("change_rate", self.change_rate),
            ("duplicate_rate", self.duplicate_rate),
            ("late_rate", self.late_rate),
            ("clock_skew_rate", self.clock_skew_rate),
            ("poison_rate", self.poison_rate),
            ("bounds.tester_cpu_max", self.bounds.tester_cpu_max),
        ];
        for (key, value) in shares {
            check.share(key, value)?;
        }
        let rate = self.length.rate();
        check.holds(
            rate.is_finite() && rate > 0.0,
            "length.rate",
            rate,
            "results a second, above 0",
        )?;
        check.time("ramp", self.ramp)?;
        check.time("settle_timeout", self.settle_timeout)?;
        if let Length::Duration { duration, .. } = self.length {
            check.time("length.duration", duration)?;
            check.holds(
                self.ramp <= duration,
                "ramp",
                "longer than length.duration",
                "shorten it",
            )?;
        }
        let results = self.length.results(self.ramp);
        check.holds(results > 0, "length", "no result", "make it longer")?;
        check.count("length (results)", results, RESULTS_MAX)?;
        let poison = share_of(results, self.poison_rate);
        check.count("poison_rate (messages)", poison, POISON_MAX)
    }

    fn check_runners(&self, check: &Check<'_>) -> Result<(), PlanError> {
        for runner in &self.runners {
            check.time("runners.at", runner.at)?;
            check.time("runners.deadline", runner.deadline)?;
            let target = runner.target.parse::<Target>();
            let rule = target
                .as_ref()
                .err()
                .map(ToString::to_string)
                .unwrap_or_default();
            check.holds(target.is_ok(), "runners.target", &runner.target, &rule)?;
            let is_planned = self
                .plugins
                .iter()
                .any(|plugin| plugin.name == runner.plugin);
            check.holds(
                is_planned,
                "runners.plugin",
                &runner.plugin,
                "name one of the plan's plugins",
            )?;
        }
        let is_heard = self.runners.is_empty() || self.real_clients > 0;
        check.holds(
            is_heard,
            "real_clients",
            0,
            "runners need real clients to answer them",
        )
    }

    fn check_server(&self, check: &Check<'_>) -> Result<(), PlanError> {
        let known = self.server.clone().try_into::<Config>();
        let rule = known
            .as_ref()
            .err()
            .map(ToString::to_string)
            .unwrap_or_default();
        check.holds(
            known.is_ok(),
            "server",
            "not a server's settings",
            rule.trim(),
        )
    }
}

#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an estimate"
)]
fn share_of(count: usize, share: f64) -> usize {
    (count as f64 * share) as usize
}

fn check_plugin(check: &Check<'_>, plugin: &PluginPlan) -> Result<(), PlanError> {
    let name = PluginName::new(&plugin.name);
    let rule = name
        .as_ref()
        .err()
        .map(ToString::to_string)
        .unwrap_or_default();
    check.holds(name.is_ok(), "plugins.name", &plugin.name, &rule)?;
    let weight = plugin.weight;
    check.holds(
        weight.is_finite() && weight > 0.0,
        "plugins.weight",
        weight,
        "above 0",
    )?;
    let is_sized = plugin.kind != PluginKind::Custom || plugin.bytes.is_some();
    check.holds(
        is_sized,
        "plugins.bytes",
        "missing",
        "kind \"custom\" needs bytes = [MIN, MAX]",
    )?;
    if let Some([min, max]) = plugin.bytes {
        check.holds(
            (1..=max).contains(&min) && max <= VALUE_BYTES_MAX,
            "plugins.bytes",
            format!("[{min}, {max}]"),
            &format!("[MIN, MAX] with 1 ≤ MIN ≤ MAX ≤ {VALUE_BYTES_MAX}"),
        )?;
    }
    Ok(())
}
