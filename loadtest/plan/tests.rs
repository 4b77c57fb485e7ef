use std::error::Error as _;

use super::*;

const GOOD: &str = r#"
name = "good"
description = "what tests spoil"
seed = 1
nodes = 10
real_clients = 2
length = { rate = 5, duration = "10s" }
plugins = [{ name = "facter", kind = "facts" }]
"#;

/// Text to add to a good plan, and what the error then says.
const ADDED: [(&str, &str); 17] = [
    ("nodez = 3", "unknown field `nodez`"),
    ("late_rate = 1.5", "late_rate is 1.5: a share is 0 to 1"),
    ("leaves = 9", "only light clients leave"),
    ("joins = 200000", "nodes + joins is 200010: at most 100000"),
    (
        "connections = { shared = 0 }",
        "connections.shared is 0: 1 to 5000",
    ),
    ("connections = \"some\"", "unknown variant `some`"),
    (
        "ramp = \"11s\"",
        "ramp is longer than length.duration: shorten it",
    ),
    ("ramp = \"fast\"", "is not a length of time"),
    (
        "distributions = { rhel = 0 }",
        "give at least one of rhel, centos, debian, ubuntu a weight above 0",
    ),
    ("distributions = { suse = 1 }", "unknown variant `suse`"),
    (
        "[[faults]]\nat = \"1s\"\nlasts = \"1s\"\nkind = \"rain\"",
        "\"rain\" is no fault",
    ),
    (
        "[[faults]]\nat = \"1s\"\nlasts = \"1s\"\nkind = \"slow_store\"",
        "slow_store needs a delay",
    ),
    (
        "[[faults]]\nat = \"1s\"\nkind = \"kill_server\"",
        "missing field `lasts`",
    ),
    (
        "[[runners]]\nat = \"1s\"\nplugin = \"ohai\"",
        "runners.plugin is ohai: name one of the plan's plugins",
    ),
    (
        "[[runners]]\nat = \"1s\"\nplugin = \"facter\"\ntarget = \"@\"",
        "runners.target",
    ),
    ("[bounds]\np99 = \"1s\"", "unknown field `p99`"),
    (
        "[server.server]\nlingers = \"1s\"",
        "unknown field `lingers`",
    ),
];

/// Text to replace in a good plan, its replacement, and what the error then says.
const REPLACED: [(&str, &str, &str); 8] = [
    (
        "real_clients = 2",
        "real_clients = 11",
        "real_clients is 11: at most 10",
    ),
    (
        "kind = \"facts\"",
        "kind = \"custom\"",
        "kind \"custom\" needs bytes",
    ),
    (
        "kind = \"facts\"",
        "kind = \"facts\", bytes = [9, 3]",
        "plugins.bytes is [9, 3]",
    ),
    (
        "kind = \"facts\"",
        "kind = \"facts\", weight = 0",
        "plugins.weight is 0: above 0",
    ),
    ("\"facter\"", "\"_id\"", "may not start with '_'"),
    (
        "duration = \"10s\"",
        "count = 5, duration = \"10s\"",
        "either a duration (\"60s\") or a count",
    ),
    ("rate = 5", "rate = 0", "length.rate is 0"),
    ("nodes = 10", "nodes = 0", "nodes is 0: at least 1"),
];

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

/// Goal: there is a bundled plan for each file of the folder, and none is forgotten.
#[test]
fn every_plan_of_the_folder_is_bundled() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/loadtest/plans");
    let files = std::fs::read_dir(folder).unwrap();
    let mut files: Vec<String> = files
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    let mut names = bundled::NAMES.map(|name| format!("{name}.toml"));
    names.sort();
    assert_eq!(files, names);
}

/// The tester's message for a plan that it cannot use: the error with its cause, and nothing twice.
fn told(plan: Result<Plan, PlanError>) -> String {
    let error = plan.unwrap_err();
    let cause = error.source().map(ToString::to_string);
    let text = format!("{:#}", anyhow::Error::from(error));
    if let Some(cause) = cause {
        assert_eq!(text.matches(&cause).count(), 1, "{text}");
    }
    text
}

/// Goal: each kind of mistake is an error that says where it is and what to do.
#[test]
fn mistakes_are_named() {
    Plan::parse(GOOD, "good").unwrap();
    for (line, expected) in ADDED {
        let error = told(Plan::parse(&format!("{GOOD}{line}\n"), "test.toml"));
        assert!(
            error.contains(expected) && error.contains("test.toml"),
            "{line}: {error}"
        );
    }
    for (good, bad, expected) in REPLACED {
        let error = told(Plan::parse(&GOOD.replace(good, bad), "test.toml"));
        assert!(error.contains(expected), "{bad}: {error}");
    }
    let error = told(Plan::load("smok"));
    assert!(
        error.contains("smok") && error.contains("smoke, blowout"),
        "{error}"
    );
}

/// Goal: runners are a mistake if nobody can hear them.
#[test]
fn runners_need_real_clients() {
    let text = GOOD.replace("real_clients = 2", "real_clients = 0");
    let text = format!("{text}[[runners]]\nat = \"1s\"\nplugin = \"facter\"\n");
    let error = told(Plan::parse(&text, "test.toml"));
    assert!(error.contains("runners need real clients"), "{error}");
}

/// Goal: the command line and the plan read a fault alike, and a mistake in it is named.
#[test]
fn faults_read_from_the_command_line() {
    let fault: FaultPlan = "slow_store:200ms@5s+10s".parse().unwrap();
    let delay = Duration::from_millis(200);
    assert_eq!(fault.kind, FaultKind::SlowStore { delay });
    assert_eq!(
        (fault.at, fault.lasts),
        (Duration::from_secs(5), Duration::from_secs(10))
    );
    for name in FaultKind::NAMES
        .into_iter()
        .filter(|name| *name != "slow_store")
    {
        let fault: FaultPlan = format!("{name}@1s+2s").parse().unwrap();
        assert_eq!(fault.kind.name(), name);
    }
    for (spec, expected) in [
        ("kill_server", "write KIND@AT+LASTS"),
        ("kill_server@10s", "write KIND@AT+LASTS"),
        ("kill_server:1s@1s+1s", "takes no delay"),
        ("kill_it@1s+1s", "is no fault; there are restart_broker"),
        ("kill_server@soon+1s", "is not a length of time"),
    ] {
        let error = spec.parse::<FaultPlan>().unwrap_err();
        assert!(error.contains(expected), "{spec}: {error}");
    }
}
