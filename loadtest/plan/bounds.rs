//! The bounds of a plan, and `--bound KEY=VALUE` in place of one (`p99_tester_lag=5s`, `rate_min=300`).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::span;

/// What must hold. The verifier's counts have no key here: they must always be 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Bounds {
    /// 99 of 100 results are stored (settled) within this, counted from the time they were due.
    #[serde(with = "span::option", skip_serializing_if = "Option::is_none")]
    pub(crate) p99_published_to_stored: Option<Duration>,
    /// Least results settled per second, over the whole load.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rate_min: Option<f64>,
    /// After each fault the backlog is gone within this.
    #[serde(with = "span::option", skip_serializing_if = "Option::is_none")]
    pub(crate) recovery: Option<Duration>,
    /// 99 of 100 results are made at most this long after they were due, and 99 of 100 of the tester's timers are as
    /// punctual. Past it the tester is the bottleneck, and the run does not pass. Default 250 ms.
    #[serde(with = "span")]
    pub(crate) p99_tester_lag: Duration,
    /// Share of all cores that the tester itself may use in its busiest 10 s; past it the tester is the bottleneck.
    /// Default 0.9.
    pub(crate) tester_cpu_max: f64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            p99_published_to_stored: None,
            rate_min: None,
            recovery: None,
            p99_tester_lag: Duration::from_millis(250),
            tester_cpu_max: 0.9,
        }
    }
}

impl Bounds {
    /// These bounds with one value replaced, by `KEY=VALUE` as in a plan; quotes are not needed.
    pub(crate) fn with(&self, spec: &str) -> Result<Self, String> {
        let (key, value) = spec.split_once('=').ok_or_else(|| {
            format!("{spec:?} is no bound: write KEY=VALUE, such as p99_tester_lag=5s")
        })?;
        let number = value.parse().map(toml::Value::Float);
        let value = number.unwrap_or_else(|_| toml::Value::String(value.to_owned()));
        let mut table = toml::Table::try_from(self).map_err(|error| error.to_string())?;
        table.insert(key.to_owned(), value);
        table
            .try_into()
            .map_err(|error| format!("{spec}: {}", error.message()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: one bound is replaced and all others stay; a misspelt one is an error that names the bounds that exist.
    #[test]
    fn one_bound_is_replaced() {
        let bounds = Bounds::default().with("recovery=7s").unwrap();
        let bounds = bounds.with("rate_min=300").unwrap();
        let expected = Bounds {
            recovery: Some(Duration::from_secs(7)),
            rate_min: Some(300.0),
            ..Bounds::default()
        };
        assert_eq!(bounds, expected);
        for (spec, why) in [
            ("recovery", "no bound"),
            ("recovery=7", "recovery=7"),
            ("recovry=7s", "expected one of"),
            ("rate_min=much", "rate_min=much"),
        ] {
            let error = bounds.with(spec).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
