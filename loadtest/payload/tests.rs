use std::collections::HashSet;

use serde_json::Value;

use super::*;
use crate::plan::PluginPlan;

fn plan() -> Plan {
    Plan::load("smoke").unwrap()
}

fn machines() -> Vec<Machine> {
    let distributions = Distribution::ALL.into_iter().cycle().take(40);
    distributions
        .enumerate()
        .map(|(number, distribution)| Machine::new(7, number, distribution))
        .collect()
}

/// Goal: every value is JSON of the size that its kind promises, and compact as stores give it back.
#[test]
fn values_are_compact_json_of_realistic_size() {
    let mut sizes: Vec<Vec<usize>> = vec![Vec::new(); 3];
    for machine in machines() {
        for (generator, sizes) in Generator::of_plan(&plan()).iter().zip(&mut sizes) {
            let text = generator.value(&machine, 3);
            let [min, max] = generator.bytes;
            assert!(
                (min - min / 10..=max + max / 10).contains(&text.len()),
                "{:?} {}",
                generator.kind,
                text.len()
            );
            let value: Value =
                serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
            match generator.kind {
                PluginKind::Facts => assert_eq!(value["networking"]["fqdn"], machine.name.as_str()),
                _ => assert!(value.as_array().unwrap().len() > 50, "{:?}", generator.kind),
            }
            assert!(!text.contains(": ") || generator.kind == PluginKind::Processes);
            sizes.push(text.len());
        }
    }
    for sizes in sizes {
        let (min, max) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
        assert!(max > &(min * 3), "sizes are spread: {min} to {max}");
    }
}

/// Goal: content shows whose it is: no two nodes, plugins or versions print the same.
#[test]
fn no_two_values_are_equal() {
    let mut plan = plan();
    plan.plugins.push(PluginPlan {
        name: "text".to_owned(),
        kind: PluginKind::Custom,
        weight: 1.0,
        bytes: Some([200, 2000]),
    });
    let mut seen = HashSet::new();
    for machine in machines() {
        for generator in Generator::of_plan(&plan) {
            for version in (0..20).chain([1000, 1001]) {
                assert!(
                    seen.insert(generator.value(&machine, version)),
                    "{machine:?} {version}"
                );
            }
        }
    }
}
