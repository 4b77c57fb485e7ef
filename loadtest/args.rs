//! The command line.

use std::path::PathBuf;

use clap::Parser;
use url::Url;

use crate::faults;
use crate::plan::{FaultPlan, Plan};
use crate::services::Given;

const AFTER: &str = "\
Plans: smoke, blowout, steady, burst, unchanged, broker-restart, store-outage, server-kill, ten-thousand, or a TOML file.
Faults: restart_broker, kill_broker, cut_broker, kill_server, stop_store, store_answers_503, swallow_store_answers, slow_store.
Exit code: 0 all bounds hold, 1 a bound is missed or the tester was the bottleneck, 2 the run could not be made.

Examples:
  vogeler-loadtest smoke
  vogeler-loadtest blowout --seed 7 --report /tmp/seven --compare target/loadtest/blowout/report.json
  vogeler-loadtest steady --fault kill_server@20s+2s --fault slow_store:200ms@40s+10s
  VOGELER_LOADTEST_COUCH=http://admin:secret@127.0.0.1:5984 vogeler-loadtest ten-thousand";

/// Loads a server with a simulated fleet, and verifies that nothing is lost, mixed up or set back.
///
/// It starts RabbitMQ, a store and the server (the `vogeler` beside this program) by itself, unless their addresses are
/// given, and never stops or kills what it did not start.
#[derive(Parser)]
#[command(version, after_help = AFTER)]
pub(crate) struct Args {
    /// What to do: a bundled plan, or a file
    plan: String,
    /// Seed in place of the plan's: other nodes, contents and times
    #[arg(long)]
    seed: Option<u64>,
    /// RabbitMQ to use, amqp://USER:PASSWORD@HOST:5672/VHOST: an empty virtual host [default: one of its own]
    #[arg(
        long,
        value_name = "DSN",
        env = "VOGELER_LOADTEST_BROKER",
        hide_env_values = true
    )]
    broker: Option<String>,
    /// Database to use, couch://USER:PASSWORD@HOST:5984/DATABASE: an empty one [default: one of its own]
    #[arg(
        long,
        value_name = "DSN",
        env = "VOGELER_LOADTEST_STORE",
        hide_env_values = true
    )]
    store: Option<String>,
    /// CouchDB to make a database of its own in, and delete it after, http://USER:PASSWORD@HOST:5984 [default: a
    /// pouchdb-server of its own]
    #[arg(
        long,
        value_name = "URL",
        env = "VOGELER_LOADTEST_COUCH",
        hide_env_values = true,
        conflicts_with = "store"
    )]
    couch: Option<String>,
    /// /metrics of a server that works on --broker and --store already [default: a server of its own]
    #[arg(long, value_name = "URL", requires = "broker", requires = "store")]
    metrics: Option<Url>,
    /// One more fault, KIND@AT+LASTS, such as kill_server@10s+2s or slow_store:200ms@5s+10s; may be repeated
    #[arg(long = "fault", value_name = "SPEC")]
    faults: Vec<FaultPlan>,
    /// Another value for one of the plan's bounds, such as p99_tester_lag=5s on a slow machine; may be repeated
    #[arg(long = "bound", value_name = "KEY=VALUE")]
    bounds: Vec<String>,
    /// Folder for report.json, report.md, plots and the server's log [default: target/loadtest/PLAN]
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// Prints the ratios to an earlier run
    #[arg(long, value_name = "REPORT.JSON")]
    pub(crate) compare: Option<PathBuf>,
    /// Neither progress nor table: only errors
    #[arg(long)]
    pub(crate) quiet: bool,
}

impl Args {
    /// The plan, with the seed, the faults and the bounds of the command line in it.
    pub(crate) fn plan(&self) -> anyhow::Result<Plan> {
        let mut plan = Plan::load(&self.plan)?;
        plan.seed = self.seed.unwrap_or(plan.seed);
        plan.faults.extend(&self.faults);
        for spec in &self.bounds {
            let bounds = plan.bounds.with(spec);
            plan.bounds = bounds.map_err(|error| anyhow::anyhow!("--bound {error}"))?;
        }
        plan.check(&self.plan)?;
        faults::check(&plan.faults, &self.given())?;
        Ok(plan)
    }

    /// What runs already.
    pub(crate) fn given(&self) -> Given {
        Given {
            broker: self.broker.clone(),
            store: self.store.clone(),
            couch: self.couch.clone(),
            metrics: self.metrics.clone(),
        }
    }

    /// Where the report goes.
    pub(crate) fn report_folder(&self, plan: &Plan) -> PathBuf {
        let default = || PathBuf::from("target/loadtest").join(&plan.name);
        self.report.clone().unwrap_or_else(default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Args, clap::Error> {
        Args::try_parse_from([&["vogeler-loadtest"], args].concat())
    }

    /// Goal: seed, faults and bounds of the command line are in the plan, and so in the report.
    #[test]
    fn flags_are_part_of_the_plan() {
        let mut words = vec!["smoke", "--seed", "7", "--fault", "kill_server@2s+1s"];
        words.extend(["--bound", "rate_min=5", "--bound", "recovery=9s"]);
        let args = parse(&words).unwrap();
        let plan = args.plan().unwrap();
        assert_eq!((plan.seed, plan.faults.len()), (7, 1));
        assert_eq!(plan.bounds.rate_min, Some(5.0));
        assert_eq!(plan.bounds.recovery.unwrap().as_secs(), 9);
        assert_eq!(
            args.report_folder(&plan),
            PathBuf::from("target/loadtest/smoke")
        );
    }

    /// Goal: the help names all faults that there are.
    #[test]
    fn the_help_is_complete() {
        for fault in crate::plan::FaultKind::NAMES {
            assert!(AFTER.contains(fault), "{fault}");
        }
    }

    /// Goal: what cannot be is refused before anything starts.
    #[test]
    fn contradictions_are_refused() {
        let metrics = "http://127.0.0.1:1/metrics";
        assert!(parse(&["smoke", "--metrics", metrics]).is_err());
        assert!(parse(&["smoke", "--fault", "kill_server"]).is_err());
        assert!(parse(&["smoke", "--store", "couch://x/y", "--couch", "http://x"]).is_err());
        let args = parse(&[
            "smoke",
            "--broker",
            "amqp://x",
            "--fault",
            "kill_broker@1s+1s",
        ])
        .unwrap();
        assert!(
            args.plan()
                .unwrap_err()
                .to_string()
                .contains("did not start")
        );
    }
}
