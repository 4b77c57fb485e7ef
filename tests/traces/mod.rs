//! One id follows a run through runner, client and server: in the log of each, and in the messages between them.

#[cfg(feature = "otlp")]
mod otlp;

use std::time::Duration;

use serde_json::Value;

use crate::harness::installation::{Installation, Running};
use crate::harness::pouch;
use crate::harness::process::wait_until;
use crate::harness::rabbit::Rabbit;

const PATIENCE: Duration = Duration::from_mins(1);
const NODE: &str = "web01";

/// What `big` prints is more than the server takes in these tests.
const PLUGINS: &str = "
[good]
command = echo fine
[broken]
command = sh -c 'exit 3'
[big]
command = seq 1 2000
";

fn installation(log_format: &str) -> Installation {
    let mut v = Installation::new(Rabbit::shared().fresh_vhost().as_str(), &pouch::fresh_dsn());
    v.plugin_file("test.cfg", PLUGINS);
    v.set("VOGELER_LOG_LEVEL", "debug");
    v.set("VOGELER_LOG_FORMAT", log_format);
    v.set("VOGELER_SERVER_MESSAGE_BYTES_MAX", "4096");
    v.vogeler(&["admin", "setup"]).ok();
    v
}

/// The processes of one set-up, and how they are asked.
struct Scene {
    v: Installation,
    server: Running,
    client: Running,
}

impl Scene {
    fn on(v: Installation) -> Self {
        let (server, client) = (v.server(), v.client(NODE, "web"));
        Self { v, server, client }
    }

    /// Runs a plugin on the node to the end; gives the run's id, and the runner's lines about it.
    fn run(&self, plugin: &str) -> (String, Vec<String>) {
        let args = ["run", plugin, "-n", NODE, "--timeout", "5s", "--json", "-q"];
        let mut runner = self.v.start_vogeler(&args);
        runner.wait(PATIENCE);
        let log = runner.log();
        // The log is of all runs; the report of the last one is at its end.
        let (_, report) = log.rsplit_once("\n{\n").expect("no report");
        let report: Value = serde_json::from_str(&format!("{{{report}")).unwrap();
        let run = report["run"].as_str().unwrap().to_owned();
        let lines = lines_about(&log, &run);
        (run, lines)
    }
}

/// Waits until the log of `running` has lines about `run` with `words`, in this order.
fn follow(running: &Running, run: &str, words: &[&str]) {
    let in_order = || {
        let mut lines = lines_about(&running.log(), run).into_iter();
        words
            .iter()
            .all(|word| lines.any(|line| line.contains(word)))
    };
    assert!(
        wait_until(PATIENCE, in_order),
        "{run}: {words:?} are not all in\n{}",
        running.log()
    );
}

fn lines_about(log: &str, run: &str) -> Vec<String> {
    let about = log.lines().filter(|line| line.contains(run));
    about.map(str::to_owned).collect()
}

fn says(lines: &[String], word: &str) -> bool {
    lines.iter().any(|line| line.contains(word))
}

/// Goal: with nothing but `grep` and the run's id, a result can be followed through all three processes: one that is
/// stored, a plugin that fails, one that the client refuses, and one that ends as a dead letter.
fn a_run_can_be_followed(log_format: &str) {
    let scene = Scene::on(installation(log_format));

    let (run, lines) = scene.run("good");
    for word in ["command", "receipt", "the runner is done"] {
        assert!(says(&lines, word), "{word}: {lines:#?}");
    }
    let heard = ["command received", "plugin ran", "result published"];
    follow(&scene.client, &run, &heard);
    follow(
        &scene.server,
        &run,
        &["result settled", "receipts published"],
    );

    let (run, lines) = scene.run("broken");
    assert!(says(&lines, "1 failed"), "{lines:#?}");
    follow(
        &scene.client,
        &run,
        &["command received", "plugin failed", "result published"],
    );
    follow(&scene.server, &run, &["result settled"]);

    let (run, lines) = scene.run("unheard-of");
    assert!(says(&lines, "1 refused"), "{lines:#?}");
    follow(
        &scene.client,
        &run,
        &["command received", "command declined", "result published"],
    );
    follow(&scene.server, &run, &["result settled"]);

    let (run, _) = scene.run("big");
    follow(
        &scene.client,
        &run,
        &["command received", "plugin ran", "result published"],
    );
    follow(&scene.server, &run, &["too_large"]);
    // The broker counts a dead letter a moment after the server logs it.
    let mut letter = String::new();
    let shown = wait_until(PATIENCE, || {
        let letters = scene.v.vogeler(&["admin", "dead", "list", "--json"]);
        let Some(id) = letters.code.eq(&0).then(|| letters.json()[0]["id"].clone()) else {
            return false;
        };
        letter = scene
            .v
            .vogeler(&["admin", "dead", "show", id.as_str().unwrap()])
            .stdout;
        true
    });
    let trace = format!("00-{}-", run.replace('-', ""));
    assert!(
        shown && letter.contains(&trace),
        "{trace} is not in {letter}"
    );
}

#[test]
fn a_run_can_be_followed_in_text() {
    a_run_can_be_followed("text");
}

#[test]
fn a_run_can_be_followed_in_json() {
    a_run_can_be_followed("json");
}
