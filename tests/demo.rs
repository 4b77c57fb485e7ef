//! `vogeler demo`, as the README has it: the whole system in one process, on this machine's own plugins.

use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use crate::harness::installation::Installation;
use crate::harness::process::wait_until;

const PATIENCE: Duration = Duration::from_mins(1);

/// A set-up with nothing in it: the demo brings its own broker, store and folder.
fn nothing() -> Installation {
    Installation::new("memory:", "memory:")
}

/// The lines of `text` that start with `start`, without it.
fn after<'a>(text: &'a str, start: &str) -> Vec<&'a str> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix(start))
        .collect()
}

/// Removes what a demo leaves for its reader.
fn clean_up(output: &str) {
    for store in after(output, "export VOGELER_STORE_DSN=sqlite:") {
        let folder = Path::new(store).parent().unwrap();
        assert!(
            folder.starts_with(std::env::temp_dir()),
            "{}",
            folder.display()
        );
        std::fs::remove_dir_all(folder).unwrap();
    }
}

/// Goal: all clients answer every run, every result is accounted for, and the question has its answer.
#[test]
fn the_demo_does_the_main_job() {
    let answer = nothing().vogeler(&["demo", "--nodes", "10"]).ok();
    let runs = answer.stdout.matches(" on all: 10 of 10 answered").count();
    assert!(runs >= 4, "{}", answer.stdout);
    // Each client's own report, and one result a run.
    let stored = 10 * (runs + 1);
    assert!(
        answer.stdout.contains(&format!(
            "received {stored} results of 10 nodes: {stored} stored, "
        )),
        "{}",
        answer.stdout
    );
    assert!(answer.stdout.contains("\"doc_type\": \"SystemRecord\""));
    let found = answer.stdout.split("find --package bash\n").nth(1).unwrap();
    assert!(found.starts_with("node01.demo\n"), "{found}");
    clean_up(&answer.stdout);
}

/// Goal: with --keep a second terminal can ask the store while the demo runs, and Ctrl-C ends it cleanly.
#[test]
fn the_kept_demo_answers_a_second_terminal() {
    let demo = nothing();
    let mut running = demo.start_vogeler(&["demo", "--nodes", "5", "--keep"]);
    assert!(
        wait_until(PATIENCE, || running
            .log()
            .contains("It stays up until Ctrl-C")),
        "{}",
        running.log()
    );
    let log = running.log();
    let store = after(&log, "export VOGELER_STORE_DSN=")[0].to_owned();
    let second = Installation::new("memory:", &store);
    let listed = second.vogeler(&["node", "list", "--json"]).ok().json();
    assert_eq!(listed.as_array().map(Vec::len), Some(5));
    second.vogeler(&["find", "--package", "bash"]).ok();
    running.signal(Signal::INT);
    assert_eq!(running.wait(PATIENCE).code(), Some(0), "{}", running.log());
    clean_up(&log);
}
