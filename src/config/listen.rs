//! Addresses to listen on as operators write them: `127.0.0.1:9877`, `[::1]:9877`.

use std::net::SocketAddr;

use serde::{Deserialize, Deserializer};

/// Reads an address; the error says how one is written.
pub(super) fn deserialize<'de, D>(deserializer: D) -> Result<SocketAddr, D::Error>
where
    D: Deserializer<'de>,
{
    let text = String::deserialize(deserializer)?;
    text.trim().parse().map_err(|_| {
        serde::de::Error::custom(format!(
            "{text:?} is no address to listen on: write ADDRESS:PORT, such as \"127.0.0.1:9877\", \"[::1]:9877\" or \
             \"0.0.0.0:9877\"; a name of a host will not do"
        ))
    })
}

/// Like [`deserialize`], for an optional setting.
pub(super) fn option<'de, D>(deserializer: D) -> Result<Option<SocketAddr>, D::Error>
where
    D: Deserializer<'de>,
{
    deserialize(deserializer).map(Some)
}
