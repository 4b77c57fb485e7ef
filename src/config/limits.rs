//! The limits of every number and length of time, and the relations between values. The check and the error messages read
//! one table; a test makes sure that it covers every numeric key.

use std::time::Duration;

use serde_json::Value;

use super::{Config, ConfigError, Origin, keys, span};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;
const MS: u64 = 1;
const SECOND: u64 = 1000 * MS;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// What a key's value may be, both ends included.
#[derive(Debug, Clone, Copy)]
pub(super) enum Limit {
    /// A whole number.
    Count(u64, u64),
    /// A number of bytes.
    Bytes(u64, u64),
    /// A length of time, in milliseconds.
    Span(u64, u64),
}

/// Every key that has a limit. A value above the upper end can only be a slip, or breaks something else: RabbitMQ lets
/// a delivery stay unsettled for less than its consumer timeout of 30 min, so pauses end at 10 min.
const LIMITS: &[(&str, Limit)] = &[
    ("broker.partitions", Limit::Count(1, 256)),
    ("broker.heartbeat", Limit::Span(SECOND, 10 * MINUTE)),
    ("broker.connect_timeout", Limit::Span(100 * MS, 10 * MINUTE)),
    ("broker.publish_timeout", Limit::Span(100 * MS, 10 * MINUTE)),
    ("broker.reconnect_max", Limit::Span(100 * MS, 10 * MINUTE)),
    ("broker.refused_pause_max", Limit::Span(SECOND, HOUR)),
    ("store.timeout", Limit::Span(100 * MS, 10 * MINUTE)),
    ("store.request_bytes_max", Limit::Bytes(64 * KIB, 4 * GIB)),
    ("store.gzip_bytes_min", Limit::Bytes(0, 4 * GIB)),
    ("server.prefetch", Limit::Count(1, 2000)),
    (
        "server.bytes_in_flight_max",
        Limit::Bytes(64 * KIB, 1024 * GIB),
    ),
    ("server.message_bytes_max", Limit::Bytes(KIB, GIB)),
    ("server.amplification_max", Limit::Count(2, 1_000_000)),
    ("server.node_mailbox", Limit::Count(1, 65_536)),
    ("server.node_idle", Limit::Span(SECOND, DAY)),
    ("server.batch_count_max", Limit::Count(1, 10_000)),
    ("server.batch_bytes_max", Limit::Bytes(KIB, 4 * GIB)),
    ("server.linger", Limit::Span(0, MINUTE)),
    ("server.linger_max", Limit::Span(0, MINUTE)),
    ("server.writes_in_flight", Limit::Count(1, 256)),
    ("server.write_target", Limit::Span(MS, MINUTE)),
    ("server.freshness", Limit::Span(0, 365 * DAY)),
    (
        "server.document_cache_bytes_max",
        Limit::Bytes(0, 1024 * GIB),
    ),
    ("server.conflict_retries_max", Limit::Count(0, 1000)),
    ("server.retry_max", Limit::Span(100 * MS, 10 * MINUTE)),
    ("server.refused_pause", Limit::Span(100 * MS, 10 * MINUTE)),
    // After its consumer timeout of 30 min RabbitMQ closes the channel.
    ("server.hold_max", Limit::Span(SECOND, 25 * MINUTE)),
    ("server.drain_timeout", Limit::Span(0, HOUR)),
    ("server.redeclare_every", Limit::Span(SECOND, HOUR)),
    ("server.receipt_linger", Limit::Span(0, MINUTE)),
    ("server.stale_after", Limit::Span(MINUTE, 365 * DAY)),
    ("client.concurrency", Limit::Count(1, 256)),
    ("client.timeout", Limit::Span(100 * MS, DAY)),
    ("client.output_bytes_max", Limit::Bytes(KIB, GIB)),
    ("client.zstd_bytes_min", Limit::Bytes(0, GIB)),
    ("client.spool_count_max", Limit::Count(1, 1_000_000)),
    ("client.spool_bytes_max", Limit::Bytes(64 * KIB, 1024 * GIB)),
];

/// The limit of a dotted key, if it has one.
pub(super) fn limit_of(key: &str) -> Option<Limit> {
    LIMITS
        .iter()
        .find(|(name, _)| *name == key)
        .map(|(_, limit)| *limit)
}

impl Limit {
    /// Whether `value`, in the form of a serialised configuration, is within the limit.
    fn holds(self, value: &Value) -> bool {
        match self {
            Self::Count(min, max) | Self::Bytes(min, max) => value
                .as_u64()
                .is_some_and(|number| (min..=max).contains(&number)),
            Self::Span(min, max) => value
                .as_str()
                .and_then(|text| span::parse(text).ok())
                .is_some_and(|span| (millis(min)..=millis(max)).contains(&span)),
        }
    }

    /// The limit in words.
    pub(super) fn describe(self) -> String {
        match self {
            Self::Count(min, max) => format!("allowed is a whole number from {min} to {max}"),
            Self::Bytes(min, max) => {
                format!("allowed is a whole number of bytes from {min} to {max}")
            }
            Self::Span(min, max) => format!(
                "allowed is a length of time from \"{}\" to \"{}\", such as \"250ms\", \"60s\", \"15min\" or \"6h\"",
                span::format(millis(min)),
                span::format(millis(max))
            ),
        }
    }
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Checks every limit and relation. `origin` says where a key came from.
pub(super) fn check(config: &Config, origin: impl Fn(&str) -> Origin) -> Result<(), ConfigError> {
    for (section, leaves) in keys::sections(config) {
        for (leaf, value) in leaves {
            let key = format!("{section}.{leaf}");
            if let Some(limit) = limit_of(&key).filter(|limit| !limit.holds(&value)) {
                return Err(ConfigError::Value {
                    origin: origin(&key),
                    key,
                    value: Some(value.to_string()),
                    problem: limit.describe(),
                });
            }
        }
    }
    if let Some(level) = &config.log.level
        && let Err(problem) = crate::log::filter(level)
    {
        return Err(ConfigError::Value {
            key: "log.level".to_owned(),
            value: Some(format!("{level:?}")),
            problem,
            origin: origin("log.level"),
        });
    }
    relations(config)
}

/// Checks a configuration that was made by hand, as [`load`](fn@super::load) checks a loaded one.
pub fn validate(config: &Config) -> Result<(), ConfigError> {
    check(config, |_| Origin::Default)
}

/// Checks the relations between values: all of them for every subcommand, so that a file is valid for all or for none.
fn relations(config: &Config) -> Result<(), ConfigError> {
    let (server, store) = (&config.server, &config.store);
    let pulled = usize::from(config.broker.partitions) * usize::from(server.prefetch);
    let written = server.batch_count_max * server.writes_in_flight;
    at_most(
        &format!(
            "server.batch_count_max × server.writes_in_flight ({} × {})",
            server.batch_count_max, server.writes_in_flight
        ),
        written,
        &format!(
            "broker.partitions × server.prefetch ({} × {})",
            config.broker.partitions, server.prefetch
        ),
        pulled,
        "with fewer deliveries than the writes can hold, batches never fill and only ever wait for server.linger",
    )?;
    at_most(
        "server.batch_bytes_max",
        server.batch_bytes_max,
        "store.request_bytes_max",
        store.request_bytes_max,
        "a batch is one request to the store",
    )?;
    at_most(
        "server.message_bytes_max",
        server.message_bytes_max,
        "store.request_bytes_max",
        store.request_bytes_max,
        "a result must fit into a request to the store",
    )?;
    at_most(
        "server.message_bytes_max",
        server.message_bytes_max,
        "server.bytes_in_flight_max",
        server.bytes_in_flight_max,
        "the largest message could never be pulled",
    )?;
    at_most(
        &format!(
            "server.batch_bytes_max × server.writes_in_flight ({} × {})",
            server.batch_bytes_max, server.writes_in_flight
        ),
        server
            .batch_bytes_max
            .saturating_mul(server.writes_in_flight),
        "server.bytes_in_flight_max",
        server.bytes_in_flight_max,
        "the writes under way hold their bytes until they are settled",
    )?;
    let output = u64::try_from(config.client.output_bytes_max).unwrap_or(u64::MAX);
    at_most(
        "client.output_bytes_max",
        output,
        "client.spool_bytes_max",
        config.client.spool_bytes_max,
        "the largest output must fit into the spool",
    )
}

fn at_most<T: Ord + Copy + std::fmt::Display>(
    small_name: &str,
    small: T,
    large_name: &str,
    large: T,
    why: &str,
) -> Result<(), ConfigError> {
    if small <= large {
        return Ok(());
    }
    Err(ConfigError::Relation {
        problem: format!("{small_name} = {small} must be at most {large_name} = {large}: {why}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the default is valid, and every number and length of time has a limit.
    #[test]
    fn every_number_has_a_limit_that_its_default_keeps() {
        validate(&Config::default()).unwrap();
        for (section, leaves) in keys::sections(&Config::default()) {
            for (leaf, value) in leaves {
                let is_span = value.as_str().is_some_and(|text| span::parse(text).is_ok());
                let key = format!("{section}.{leaf}");
                assert_eq!(
                    limit_of(&key).is_some(),
                    value.is_number() || is_span,
                    "{key} = {value}"
                );
            }
        }
    }

    /// Goal: the error of each broken relation states both sides and the reason.
    #[test]
    fn each_relation_is_checked() {
        type Change = fn(&mut Config);
        let cases: [(Change, &str); 6] = [
            (
                |c| (c.broker.partitions, c.server.prefetch) = (2, 100),
                "server.batch_count_max × server.writes_in_flight (100 × 4) = 400 must be at most broker.partitions × server.prefetch (2 × 100) = 200: with fewer",
            ),
            (
                |c| c.server.batch_bytes_max = 17 << 20,
                "server.batch_bytes_max = 17825792 must be at most store.request_bytes_max = 16777216: a batch is one",
            ),
            (
                |c| c.server.message_bytes_max = 17 << 20,
                "server.message_bytes_max = 17825792 must be at most store.request_bytes_max",
            ),
            (
                |c| c.server.bytes_in_flight_max = 1 << 20,
                "server.message_bytes_max = 8000000 must be at most server.bytes_in_flight_max = 1048576",
            ),
            (
                |c| c.server.bytes_in_flight_max = 8 << 20,
                "server.batch_bytes_max × server.writes_in_flight (4194304 × 4) = 16777216 must be at most server.bytes_in_flight_max = 8388608",
            ),
            (
                |c| c.client.spool_bytes_max = 1 << 20,
                "client.output_bytes_max = 4194304 must be at most client.spool_bytes_max = 1048576",
            ),
        ];
        for (change, expected) in cases {
            let mut config = Config::default();
            change(&mut config);
            let error = validate(&config).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
