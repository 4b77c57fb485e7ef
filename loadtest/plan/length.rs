//! How much is sent: `{ rate = 500, duration = "60s" }` or `{ rate = 500, count = 30000 }`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::span;

/// How much is sent, and at which rate once all nodes have started.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Table", into = "Table")]
pub(crate) enum Length {
    /// A load of this length, the ramp included.
    Duration {
        /// Results a second.
        rate: f64,
        /// How long.
        duration: Duration,
    },
    /// A load of this number of results.
    Count {
        /// Results a second.
        rate: f64,
        /// How many.
        count: usize,
    },
}

impl Length {
    /// Results a second, once all nodes have started.
    pub(crate) fn rate(self) -> f64 {
        match self {
            Self::Duration { rate, .. } | Self::Count { rate, .. } => rate,
        }
    }

    /// About how many results the load has, with a ramp of this length.
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an estimate"
    )]
    pub(crate) fn results(self, ramp: Duration) -> usize {
        match self {
            Self::Count { count, .. } => count,
            Self::Duration { rate, duration } => {
                let ramped = ramp.min(duration).as_secs_f64() / 2.0;
                ((duration.as_secs_f64() - ramped) * rate) as usize
            }
        }
    }
}

/// A length as the plan writes it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    rate: f64,
    #[serde(
        default,
        with = "span::option",
        skip_serializing_if = "Option::is_none"
    )]
    duration: Option<Duration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    count: Option<usize>,
}

impl TryFrom<Table> for Length {
    type Error = String;
    fn try_from(table: Table) -> Result<Self, String> {
        let rate = table.rate;
        match (table.duration, table.count) {
            (Some(duration), None) => Ok(Self::Duration { rate, duration }),
            (None, Some(count)) => Ok(Self::Count { rate, count }),
            _ => Err("length needs either a duration (\"60s\") or a count, not both".to_owned()),
        }
    }
}

impl From<Length> for Table {
    fn from(length: Length) -> Self {
        let (duration, count) = match length {
            Length::Duration { duration, .. } => (Some(duration), None),
            Length::Count { count, .. } => (None, Some(count)),
        };
        Self {
            rate: length.rate(),
            duration,
            count,
        }
    }
}
