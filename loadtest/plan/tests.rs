use super::*;

/// Goal: every bundled plan is valid, is called like its file, and survives being written and read again.
#[test]
fn bundled_plans_are_valid() {
    for name in bundled::NAMES {
        let plan = Plan::load(name).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(plan.name, name);
        let text = toml::to_string(&plan).unwrap();
        assert_eq!(Plan::parse(&text, name).unwrap(), plan);
    }
}
