//! What a client says of itself and its machine: the built-in plugin `client`, and the node's default name.

use std::fs;

use serde::Serialize;
use serde_json::value::RawValue;

use super::plugin::Registry;
use crate::wire::{Group, NameError, NodeName, WIRE_VERSION};

const HOST_NAME_FILE: &str = "/proc/sys/kernel/hostname";
const KERNEL_FILE: &str = "/proc/sys/kernel/osrelease";
const OS_FILE: &str = "/etc/os-release";

/// The machine's name cannot be read, or is not a valid node name.
#[derive(Debug, thiserror::Error)]
pub enum HostNameError {
    /// The system does not give it.
    #[error("{HOST_NAME_FILE} cannot be read: {0}; set client.node")]
    Unreadable(#[from] std::io::Error),
    /// It breaks a rule for node names.
    #[error("the host name is not usable: {0}; set client.node")]
    Name(#[from] NameError),
}

/// The machine's host name, as the kernel knows it.
pub fn host_name() -> Result<NodeName, HostNameError> {
    Ok(NodeName::new(fs::read_to_string(HOST_NAME_FILE)?.trim())?)
}

/// The host name for people to read; empty if there is no usable one.
pub fn host_label() -> String {
    host_name().map_or_else(|_| String::new(), |host| host.to_string())
}

/// The value of the plugin `client`.
#[derive(Serialize)]
struct About<'a> {
    version: &'static str,
    wire: u8,
    groups: &'a [Group],
    plugins: Vec<&'a str>,
    /// Sections of plugin files that were not understood.
    problems: Vec<String>,
    os: Os,
}

#[derive(Serialize)]
struct Os {
    name: Option<String>,
    kernel: Option<String>,
    architecture: &'static str,
}

/// Describes this client. The result is the same at every start of an unchanged machine.
pub(super) fn about(
    groups: &[Group],
    registry: &Registry,
) -> Result<Box<RawValue>, serde_json::Error> {
    let kernel = fs::read_to_string(KERNEL_FILE).ok();
    serde_json::value::to_raw_value(&About {
        version: env!("CARGO_PKG_VERSION"),
        wire: WIRE_VERSION,
        groups,
        plugins: registry.names().collect(),
        problems: registry.problems.iter().map(ToString::to_string).collect(),
        os: Os {
            name: fs::read_to_string(OS_FILE)
                .ok()
                .as_deref()
                .and_then(os_name),
            kernel: kernel.map(|kernel| kernel.trim().to_owned()),
            architecture: std::env::consts::ARCH,
        },
    })
}

fn os_name(release: &str) -> Option<String> {
    let line = release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(line.trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a client says what it is, where it belongs and what it can run.
    #[test]
    fn a_client_describes_itself() {
        let registry = super::super::plugin::tests::registry("[a]\ncommand = x\n[b]\n");
        let about = about(&["web".parse().unwrap()], &registry).unwrap();
        let about: serde_json::Value = serde_json::from_str(about.get()).unwrap();
        assert_eq!(about["wire"], 2);
        assert_eq!(about["groups"][0], "web");
        assert_eq!(about["plugins"], serde_json::json!(["a"]));
        assert!(
            about["problems"][0]
                .as_str()
                .unwrap()
                .starts_with("x.cfg:3: ")
        );
        assert_eq!(about["os"]["architecture"], std::env::consts::ARCH);
        assert_eq!(
            os_name("A=b\nPRETTY_NAME=\"Debian 12\"\n").as_deref(),
            Some("Debian 12")
        );
    }
}
