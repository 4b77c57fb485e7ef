use std::collections::{HashMap, HashSet};
use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn plan() -> Plan {
    let mut plan = Plan::load("smoke").unwrap();
    plan.real_clients = 4;
    plan.nodes = 54;
    plan.joins = 5;
    plan.leaves = 6;
    plan.ramp = Duration::from_secs(10);
    plan.length = Length::Duration {
        rate: 100.0,
        duration: Duration::from_mins(1),
    };
    plan
}

fn schedule(plan: &Plan) -> Schedule {
    Schedule::new(plan, &Nodes::new(plan).unwrap())
}

fn results(schedule: &Schedule) -> impl Iterator<Item = &Sending> {
    let is_result = |sending: &&Sending| matches!(sending.kind, Kind::Result | Kind::Late);
    schedule.sendings.iter().filter(is_result)
}

/// Goal: the rate is the plan's once the ramp is over, and rises evenly before.
#[test]
fn the_rate_is_the_planned_one() {
    let plan = Plan {
        joins: 0,
        leaves: 0,
        ..plan()
    };
    let schedule = schedule(&plan);
    let between = |from: u64, to: u64| {
        let window = from * 1_000_000..to * 1_000_000;
        results(&schedule)
            .filter(|sending| window.contains(&sending.at))
            .count()
    };
    for from in [10, 20, 30, 40, 50] {
        let count = between(from, from + 10);
        assert!((900..=1100).contains(&count), "{from}: {count}");
    }
    let ramp = between(0, 10);
    assert!((300..=700).contains(&ramp), "{ramp}");
}

/// Goal: a count is kept to exactly that many results.
#[test]
fn a_count_is_kept() {
    let plan = Plan {
        length: Length::Count {
            rate: 200.0,
            count: 2_345,
        },
        ..plan()
    };
    assert_eq!(results(&schedule(&plan)).count(), 2_345);
}

/// Goal: no node sends before it starts or after it leaves, and one that comes back brings new content.
#[test]
fn joins_and_leaves_are_kept() {
    let plan = plan();
    let schedule = schedule(&plan);
    assert_eq!(schedule.departures.len(), 6);
    let back = schedule
        .departures
        .iter()
        .filter(|departure| departure.returns.is_some());
    assert_eq!(back.count(), 3);
    for sending in &schedule.sendings {
        assert!(sending.at >= schedule.starts[sending.node as usize]);
        assert!(sending.node >= 4, "real clients are not scheduled");
        let departure = schedule
            .departures
            .iter()
            .find(|departure| departure.node == sending.node);
        if let Some(departure) = departure.filter(|departure| departure.at <= sending.at) {
            assert!(departure.returns <= Some(sending.at) && departure.returns.is_some());
            assert!(sending.version >= LIFE_VERSIONS);
        }
    }
    let joined: HashSet<_> = schedule
        .sendings
        .iter()
        .filter(|sending| sending.node >= 54)
        .map(|s| s.node)
        .collect();
    assert!(!joined.is_empty());
}

proptest! {
    /// Whatever the plan, sendings are sorted by time, and a node collects a plugin at most once a tick. A late result
    /// comes after the next one of its plugin, and a copy after what it copies. The same seed gives the same schedule.
    #[test]
    fn schedules_are_sound(
        seed: u64, nodes in 2..30_usize, rate in 1.0..3000.0_f64, late in 0.0..0.5_f64, duplicates in 0.0..0.5_f64,
        poison in 0.0..0.5_f64, leaves in 0..2_usize,
    ) {
        let plan = Plan {
            seed, nodes, leaves, real_clients: 0,
            late_rate: late, duplicate_rate: duplicates, poison_rate: poison,
            length: Length::Count { rate, count: 500 },
            ..plan()
        };
        let made = schedule(&plan);
        prop_assert_eq!(&made, &schedule(&plan));
        prop_assert!(made.sendings.is_sorted_by_key(|sending| sending.at));
        let mut seen = HashSet::new();
        let mut newest: HashMap<(u32, u16), u64> = HashMap::new();
        for sending in &made.sendings {
            let key = (sending.tick, sending.node, sending.plugin);
            let series = (sending.node, sending.plugin);
            match sending.kind {
                Kind::Result | Kind::Late => prop_assert!(seen.insert(key), "{:?}", sending),
                Kind::Duplicate => prop_assert!(seen.contains(&key), "{:?}", sending),
                Kind::Poison(form) => prop_assert!(form < POISONS),
            }
            if sending.kind == Kind::Late {
                prop_assert!(newest.get(&series) > Some(&sending.collected), "{:?}", sending);
            }
            let entry = newest.entry(series).or_default();
            *entry = sending.collected.max(*entry);
        }
    }
}
