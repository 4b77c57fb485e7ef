//! Lengths of time in plans and reports, written as everywhere in Vogeler: `250ms`, `60s`.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serializer};
use vogeler::config::span;

pub(crate) fn serialize<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&span::format(*time))
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Duration, D::Error> {
    span::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

/// A length of time that may be absent.
pub(crate) mod option {
    use super::{Deserialize, Deserializer, Duration, Serializer, span};

    #[allow(clippy::ref_option, reason = "serde calls it so")]
    pub(crate) fn serialize<S: Serializer>(
        time: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => super::serialize(time, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| span::parse(&text))
            .transpose()
            .map_err(serde::de::Error::custom)
    }
}
