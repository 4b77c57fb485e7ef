//! The plans that the binary carries.

/// Their names.
pub(crate) const NAMES: [&str; 9] = [
    "smoke",
    "blowout",
    "steady",
    "burst",
    "unchanged",
    "broker-restart",
    "store-outage",
    "server-kill",
    "ten-thousand",
];

/// The TOML text of one.
pub(super) fn text(name: &str) -> Option<&'static str> {
    Some(match name {
        "smoke" => include_str!("../plans/smoke.toml"),
        "blowout" => include_str!("../plans/blowout.toml"),
        "steady" => include_str!("../plans/steady.toml"),
        "burst" => include_str!("../plans/burst.toml"),
        "unchanged" => include_str!("../plans/unchanged.toml"),
        "broker-restart" => include_str!("../plans/broker-restart.toml"),
        "store-outage" => include_str!("../plans/store-outage.toml"),
        "server-kill" => include_str!("../plans/server-kill.toml"),
        "ten-thousand" => include_str!("../plans/ten-thousand.toml"),
        _ => return None,
    })
}
