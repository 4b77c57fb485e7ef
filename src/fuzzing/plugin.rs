//! `plugin_file`: an INI file of plugins.

use std::path::Path;
use std::time::Duration;

use super::assert_text;
use crate::client::plugin::Registry;
use crate::wire::{CLIENT_PLUGIN, Format, PluginName};

/// A section appended to the input: it must not be lost, whatever stands before it.
const GOOD: &str = "\n[fuzz-good]\ncommand = /bin/true 'a b'\n";
const GOOD_NAME: &str = "fuzz-good";

/// Problems have a line, plugins are complete, and a broken section does not affect the others.
pub fn plugin_file(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let file = Path::new("fuzz.cfg");
    let registry = registry(file, text);
    let lines = text.lines().count();
    for problem in &registry.problems {
        assert!(
            (1..=lines).contains(&problem.line),
            "line {} of {lines}",
            problem.line
        );
        assert!(!problem.message.is_empty());
    }
    for (name, plugin) in &registry.plugins {
        assert_eq!(*name, plugin.name);
        assert!(PluginName::new(name.as_str()).is_ok() && name.as_str() != CLIENT_PLUGIN);
        assert!(!plugin.program.is_empty());
        assert!(Format::OF_PLUGINS.contains(&plugin.format));
        assert!(!plugin.success.is_empty() && plugin.success.iter().all(|s| (0..=255).contains(s)));
        let spans = [plugin.timeout, plugin.every].into_iter().flatten();
        let allowed = Duration::from_secs(1)..=Duration::from_hours(31 * 24);
        assert!(spans.into_iter().all(|span| allowed.contains(&span)));
        assert!(!plugin.description.contains('\n'));
        assert!((1..=lines).contains(&plugin.place.line));
        assert_text(&plugin.place);
    }
    let more = self::registry(file, &format!("{text}{GOOD}"));
    assert!(
        more.plugins.contains_key(GOOD_NAME),
        "the section behind it got lost"
    );
    for (name, plugin) in &registry.plugins {
        let same = more
            .plugins
            .get(name)
            .expect("it was there without the section behind it");
        assert_eq!(format!("{plugin:?}"), format!("{same:?}"));
    }
}

fn registry(file: &Path, text: &str) -> Registry {
    let mut registry = Registry::default();
    registry.add(file, text);
    registry
}
