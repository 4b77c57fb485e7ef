//! A fault of the plan, or of `--fault KIND[:DELAY]@AT+LASTS` (`kill_server@10s+2s`, `slow_store:200ms@5s+10s`).

use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vogeler::config::span as time;

use crate::span;

/// One fault, when and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Table", into = "Table")]
pub(crate) struct FaultPlan {
    /// When, from the start of the load.
    pub(crate) at: Duration,
    /// What.
    pub(crate) kind: FaultKind,
    /// For how long.
    pub(crate) lasts: Duration,
}

/// What is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FaultKind {
    /// The broker is stopped in order, and started again when the fault ends.
    RestartBroker,
    /// The broker is killed with -9, and started again when the fault ends.
    KillBroker,
    /// All connections to the broker are cut, and new ones refused until the fault ends.
    CutBroker,
    /// The server is killed with -9, and started again when the fault ends.
    KillServer,
    /// The store is stopped, and started again when the fault ends.
    StopStore,
    /// The store answers 503.
    StoreAnswers503,
    /// The store does its work, but its answers are swallowed.
    SwallowStoreAnswers,
    /// The store's answers are late.
    SlowStore {
        /// By how much.
        delay: Duration,
    },
}

impl FaultKind {
    /// The names, as plans write them.
    pub(crate) const NAMES: [&str; 8] = [
        "restart_broker",
        "kill_broker",
        "cut_broker",
        "kill_server",
        "stop_store",
        "store_answers_503",
        "swallow_store_answers",
        "slow_store",
    ];

    /// The name, as plans write it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::RestartBroker => "restart_broker",
            Self::KillBroker => "kill_broker",
            Self::CutBroker => "cut_broker",
            Self::KillServer => "kill_server",
            Self::StopStore => "stop_store",
            Self::StoreAnswers503 => "store_answers_503",
            Self::SwallowStoreAnswers => "swallow_store_answers",
            Self::SlowStore { .. } => "slow_store",
        }
    }

    /// The kind of this name, without a delay.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let delay = (name == "slow_store").then_some(Duration::ZERO);
        Self::read(name, delay).ok()
    }

    /// Whether it makes the broker deliver again, or lose a receipt.
    pub(crate) fn redelivers(self) -> bool {
        matches!(
            self,
            Self::RestartBroker | Self::KillBroker | Self::CutBroker | Self::KillServer
        )
    }

    fn read(name: &str, delay: Option<Duration>) -> Result<Self, String> {
        let kind = match (name, delay) {
            ("slow_store", Some(delay)) => return Ok(Self::SlowStore { delay }),
            ("slow_store", None) => return Err("slow_store needs a delay".to_owned()),
            ("restart_broker", _) => Self::RestartBroker,
            ("kill_broker", _) => Self::KillBroker,
            ("cut_broker", _) => Self::CutBroker,
            ("kill_server", _) => Self::KillServer,
            ("stop_store", _) => Self::StopStore,
            ("store_answers_503", _) => Self::StoreAnswers503,
            ("swallow_store_answers", _) => Self::SwallowStoreAnswers,
            _ => {
                let known = Self::NAMES.join(", ");
                return Err(format!("{name:?} is no fault; there are {known}"));
            }
        };
        if delay.is_some() {
            return Err(format!("{name} takes no delay, only slow_store does"));
        }
        Ok(kind)
    }
}

impl FromStr for FaultPlan {
    type Err = String;
    fn from_str(spec: &str) -> Result<Self, String> {
        let shape = || {
            format!(
                "{spec:?} is no fault: write KIND@AT+LASTS, such as kill_server@10s+2s; kinds are {}",
                FaultKind::NAMES.join(", ")
            )
        };
        let (kind, when) = spec.split_once('@').ok_or_else(shape)?;
        let (at, lasts) = when.split_once('+').ok_or_else(shape)?;
        let (name, delay) = match kind.split_once(':') {
            Some((name, delay)) => (name, Some(time::parse(delay)?)),
            None => (kind, None),
        };
        Ok(Self {
            at: time::parse(at)?,
            kind: FaultKind::read(name, delay)?,
            lasts: time::parse(lasts)?,
        })
    }
}

/// A fault as the plan writes it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    #[serde(with = "span")]
    at: Duration,
    kind: String,
    #[serde(with = "span")]
    lasts: Duration,
    #[serde(
        default,
        with = "span::option",
        skip_serializing_if = "Option::is_none"
    )]
    delay: Option<Duration>,
}

impl TryFrom<Table> for FaultPlan {
    type Error = String;
    fn try_from(table: Table) -> Result<Self, String> {
        Ok(Self {
            at: table.at,
            kind: FaultKind::read(&table.kind, table.delay)?,
            lasts: table.lasts,
        })
    }
}

impl From<FaultPlan> for Table {
    fn from(fault: FaultPlan) -> Self {
        let delay = match fault.kind {
            FaultKind::SlowStore { delay } => Some(delay),
            _ => None,
        };
        Self {
            at: fault.at,
            kind: fault.kind.name().to_owned(),
            lasts: fault.lasts,
            delay,
        }
    }
}
