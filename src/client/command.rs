//! What a client does about a command: decided here, done elsewhere.

use jiff::Timestamp;

use super::plugin::{Plugin, Registry};
use crate::telemetry::CommandOutcome;
use crate::wire::{CLIENT_PLUGIN, Command, ErrorKind, PluginError};

/// Most plugin names listed in the answer to an unknown one.
const NAMES_MAX: usize = 50;

/// What to do.
#[derive(Debug)]
pub(super) enum Decision<'r> {
    /// Run this plugin.
    Run(&'r Plugin),
    /// Report the client itself.
    About,
    /// Run nothing, and give the reason.
    Decline(CommandOutcome, PluginError),
}

/// Decides at `now`. A command only chooses among the plugins of this node's own files.
pub(super) fn decide<'r>(
    command: &Command,
    registry: &'r Registry,
    now: Timestamp,
) -> Decision<'r> {
    if let Some(deadline) = command.deadline.filter(|_| command.is_expired(now)) {
        let message =
            format!("the command came to run at {now}, after the run's deadline {deadline}");
        return decline(CommandOutcome::Expired, ErrorKind::Expired, message);
    }
    if command.filter.is_some() {
        let message = "the command has a filter, and this client knows none: it does not run what it may be meant to skip";
        let message = message.to_owned();
        return decline(CommandOutcome::Refused, ErrorKind::Refused, message);
    }
    if command.plugin.as_str() == CLIENT_PLUGIN {
        return Decision::About;
    }
    match registry.plugins.get(&command.plugin) {
        Some(plugin) => Decision::Run(plugin),
        None => decline(
            CommandOutcome::UnknownPlugin,
            ErrorKind::Refused,
            unknown(command, registry),
        ),
    }
}

fn unknown(command: &Command, registry: &Registry) -> String {
    let mut names: Vec<_> = registry.names().take(NAMES_MAX).collect();
    if registry.plugins.len() > NAMES_MAX {
        names.push("…");
    }
    let plugin = command.plugin.as_str();
    if names.is_empty() {
        return format!("there is no plugin {plugin:?} on this node, nor any other");
    }
    format!(
        "there is no plugin {plugin:?} on this node; it has {}",
        names.join(", ")
    )
}

fn decline(outcome: CommandOutcome, kind: ErrorKind, message: String) -> Decision<'static> {
    let error = PluginError {
        kind,
        message,
        exit: None,
        stderr: None,
    };
    Decision::Decline(outcome, error)
}

#[cfg(test)]
mod tests {
    use super::super::plugin::tests::registry;
    use super::*;

    fn decline_of(command: &str, registry: &Registry) -> PluginError {
        let command = Command::decode(command.as_bytes()).unwrap();
        let now = "2026-11-22T14:00:01Z".parse().unwrap();
        match decide(&command, registry, now) {
            Decision::Decline(_, error) => error,
            other => panic!("{other:?}"),
        }
    }

    /// Goal: a command past its deadline, with a filter, or for an unknown plugin runs nothing and gets the reason.
    #[test]
    fn what_may_not_run_is_declined() {
        let registry = registry("[rpms]\ncommand = rpm -qa\n[dpkg]\ncommand = dpkg -l\n");
        let expired = decline_of(
            r#"{"v":2,"plugin":"rpms","deadline":"2026-11-22T14:00:00Z"}"#,
            &registry,
        );
        assert_eq!(expired.kind, ErrorKind::Expired);
        assert!(
            expired.message.contains("2026-11-22T14:00:00Z"),
            "{}",
            expired.message
        );
        let filtered = decline_of(r#"{"v":2,"plugin":"rpms","filter":{}}"#, &registry);
        assert_eq!(filtered.kind, ErrorKind::Refused);
        let unknown = decline_of(r#""rpm""#, &registry);
        assert_eq!(unknown.kind, ErrorKind::Refused);
        assert_eq!(
            unknown.message,
            "there is no plugin \"rpm\" on this node; it has dpkg, rpms"
        );
    }

    /// Goal: both wire versions choose a plugin; the built-in one needs no file.
    #[test]
    fn a_command_chooses_a_plugin() {
        let registry = registry("[rpms]\ncommand = rpm -qa\n");
        for body in [
            &b"\"rpms\""[..],
            br#"{"v":2,"plugin":"rpms","deadline":"2026-11-22T14:00:00Z"}"#,
        ] {
            let command = Command::decode(body).unwrap();
            let now = "2026-11-22T14:00:00Z".parse().unwrap();
            assert!(
                matches!(decide(&command, &registry, now), Decision::Run(plugin) if plugin.program == "rpm")
            );
        }
        let about = Command::decode(b"\"client\"").unwrap();
        assert!(matches!(
            decide(&about, &registry, Timestamp::UNIX_EPOCH),
            Decision::About
        ));
    }
}
