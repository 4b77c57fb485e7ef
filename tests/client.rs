//! The client with real programs: what a plugin may do wrong, the plugins that ship, and a client on the memory broker.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail like tests"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use vogeler::broker::memory::MemoryBroker;
use vogeler::broker::topology::{self, Exchange, QueueType};
use vogeler::broker::{Broker, Consumer, Link, Message, Properties};
use vogeler::client::execute::{self, Execution, Limits, STDERR_BYTES_MAX, Supervisor};
use vogeler::client::plugin::{Plugin, Registry};
use vogeler::client::{Client, ClientError};
use vogeler::config;
use vogeler::wire::{Command, Content, ErrorKind, PluginError, PluginResult, RunId};

const DEADLINE: Duration = Duration::from_secs(20);
const LIMITS: Limits = Limits {
    timeout: Duration::from_secs(10),
    output_bytes_max: 1024 * 1024,
};

fn supervisor() -> Supervisor {
    Supervisor::at(env!("CARGO_BIN_EXE_vogeler"))
}

async fn execute(plugin: &Plugin, limits: Limits) -> Execution {
    execute::execute(plugin, limits, &supervisor()).await
}

/// A folder for one test's plugin files, scripts and state.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        // Whatever the umask: clients refuse what others may write.
        for (path, mode) in [(path.parent().unwrap(), 0o755), (&*path, 0o644)] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
        path
    }

    /// The plugin `x` with these keys, as a plugin file gives it.
    fn plugin(&self, keys: &str) -> Plugin {
        self.write("plugins/x.cfg", format!("[x]\n{keys}\n"));
        let mut registry = Registry::load(&self.path("plugins")).unwrap();
        assert_eq!(registry.problems, []);
        registry.plugins.remove("x").unwrap()
    }

    /// Keys of a plugin that runs `script` with a shell.
    fn script(&self, format: &str, script: &str) -> String {
        let path = self.write("script.sh", script);
        format!("command = sh {}\nresult_format = {format}", path.display())
    }

    async fn run_script(&self, format: &str, script: &str) -> Execution {
        execute(&self.plugin(&self.script(format, script)), LIMITS).await
    }
}

fn error_of(execution: Execution) -> PluginError {
    match execution.content {
        Content::Error(error) => error,
        Content::Value { json, .. } => panic!("a value: {json}"),
    }
}

fn value_of(content: Content) -> Value {
    match content {
        Content::Value { json, .. } => serde_json::from_str(json.get()).unwrap(),
        Content::Error(error) => panic!("{error:?}"),
    }
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < DEADLINE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Whether the process whose number stands in `file` is gone (or only its entry is left).
fn is_gone(file: &Path) -> bool {
    let Some(pid) = fs::read_to_string(file)
        .ok()
        .filter(|pid| pid.ends_with('\n'))
    else {
        return false;
    };
    fs::read_to_string(format!("/proc/{}/stat", pid.trim()))
        .map_or(true, |stat| stat.contains(") Z "))
}

/// Goal: a plugin that hangs with a child of its own ends at its timeout, and both are gone.
#[tokio::test]
async fn a_hanging_plugin_is_killed_with_its_children() {
    let folder = Folder::new();
    let pids = (folder.path("leader"), folder.path("child"));
    let (leader, child) = (pids.0.display(), pids.1.display());
    let hang = format!("echo $$ > {leader}; sleep 300 & echo $! > {child}; echo said >&2; wait");
    let keys = folder.script("output", &hang) + "\ntimeout = 1s";
    let execution = execute(&folder.plugin(&keys), LIMITS).await;
    assert!(execution.duration < Duration::from_secs(5), "{execution:?}");
    let error = error_of(execution);
    assert_eq!(error.kind, ErrorKind::Timeout);
    assert!(error.message.contains("1s"), "{}", error.message);
    assert_eq!(error.stderr.as_deref(), Some("said"));
    until("both are gone", || is_gone(&pids.0) && is_gone(&pids.1)).await;
}

/// Goal: a child that keeps the pipe open after its parent ended does not hold the client up.
#[tokio::test]
async fn a_child_that_keeps_the_pipe_is_killed() {
    let folder = Folder::new();
    let child = folder.path("child");
    let keys = folder.script(
        "output",
        &format!("sleep 300 & echo $! > {}", child.display()),
    );
    let execution = execute(&folder.plugin(&(keys + "\ntimeout = 1s")), LIMITS).await;
    assert!(execution.duration < Duration::from_secs(5), "{execution:?}");
    assert_eq!(error_of(execution).kind, ErrorKind::Timeout);
    until("the child is gone", || is_gone(&child)).await;
}

/// Goal: when the client stops waiting (stop, panic), the program and its children do not live on.
#[tokio::test]
async fn a_cancelled_execution_leaves_nothing_behind() {
    let folder = Folder::new();
    let child = folder.path("child");
    let script = format!("sleep 300 & echo $! > {}; wait", child.display());
    let plugin = folder.plugin(&folder.script("output", &script));
    let task = tokio::spawn(async move { execute(&plugin, LIMITS).await });
    until("it runs", || child.exists() && !is_gone(&child)).await;
    task.abort();
    until("the child is gone", || is_gone(&child)).await;
}

/// Goal: 100 MB and an endless stream are cut at the cap, in time and without the memory.
#[tokio::test]
async fn too_much_output_is_cut() {
    let folder = Folder::new();
    for script in ["head -c 100000000 /dev/zero", "yes"] {
        let execution = folder.run_script("raw", script).await;
        assert!(execution.duration < Duration::from_secs(5), "{script}");
        let error = error_of(execution);
        assert_eq!(error.kind, ErrorKind::OutputTooLarge);
        assert!(error.message.contains("1048576 bytes"), "{}", error.message);
    }
    let full = folder
        .run_script("raw", "head -c 1048576 /dev/zero | tr '\\0' x")
        .await;
    assert_eq!(
        value_of(full.content).as_str().map(str::len),
        Some(1_048_576)
    );
}

/// Goal: output that is not what the plugin's format says is an error that says where.
#[tokio::test]
async fn bad_output_is_an_error_that_says_where() {
    let folder = Folder::new();
    let level = |n: usize| {
        format!(
            "l{n}: &l{n} [{}]\n",
            vec![format!("*l{}", n - 1); 10].join(",")
        )
    };
    let bomb: String = (1..10).map(level).collect();
    let bomb = folder.write("bomb", format!("l0: &l0 lol\n{bomb}"));
    let bomb = format!("cat {}", bomb.display());
    let cases = [
        ("json", "printf '\"a\\377\"'", "byte 2"),
        ("json", "echo '{\"a\": 1,}'", "line 1 column 9"),
        ("json", "true", "empty"),
        ("yaml", "printf 'a: 1\\nb: [\\n'", "line"),
        ("yaml", bomb.as_str(), "not yaml"),
        ("kv", "echo nonsense", "line 1"),
        ("csv", "printf 'a,b\\n1\\n'", "line: 2"),
    ];
    for (format, script, expected) in cases {
        let execution = folder.run_script(format, script).await;
        assert!(execution.duration < Duration::from_secs(5), "{script}");
        let error = error_of(execution);
        assert_eq!(error.kind, ErrorKind::BadOutput, "{script}: {error:?}");
        assert!(
            error.message.contains(expected),
            "{script}: {}",
            error.message
        );
    }
    let text = folder.run_script("output", "printf 'a\\377b\\n'").await;
    assert_eq!(value_of(text.content), serde_json::json!(["a\u{fffd}b"]));
}

/// Goal: a program that is not there, or may not be run, is `not_started`, with its name.
#[tokio::test]
async fn a_missing_program_is_not_started() {
    let folder = Folder::new();
    let file = folder.write("not-executable", "");
    for program in ["no-such-program".to_owned(), file.display().to_string()] {
        let error =
            error_of(execute(&folder.plugin(&format!("command = {program}")), LIMITS).await);
        assert_eq!(error.kind, ErrorKind::NotStarted);
        assert!(error.message.contains(&program), "{}", error.message);
    }
}

/// Goal: a bad exit is an error even with good output, with the status and the end of stderr, however long that is.
#[tokio::test]
async fn a_bad_exit_is_an_error() {
    let folder = Folder::new();
    let script = "echo '{}'; head -c 1000000 /dev/zero | tr '\\0' x >&2; echo the end >&2; exit 3";
    let error = error_of(folder.run_script("json", script).await);
    assert_eq!((error.kind, error.exit), (ErrorKind::ExitStatus, Some(3)));
    let stderr = error.stderr.unwrap();
    assert!(stderr.ends_with("the end") && stderr.len() <= STDERR_BYTES_MAX);

    let error = error_of(folder.run_script("json", "echo '{}'; kill -9 $$").await);
    assert_eq!((error.kind, error.exit), (ErrorKind::ExitStatus, None));
    assert!(error.message.contains("signal: 9"), "{}", error.message);

    let keys = folder.script("json", "echo '{}'; exit 3") + "\nsuccess = 0 3";
    let value = execute(&folder.plugin(&keys), LIMITS).await;
    assert_eq!(value_of(value.content), serde_json::json!({}));
}

/// Goal: a plugin sees a clean environment, an empty input and the root folder, and no shell touches its arguments.
#[tokio::test]
async fn a_plugin_runs_in_a_clean_place() {
    let folder = Folder::new();
    let run = async |keys: &str| value_of(execute(&folder.plugin(keys), LIMITS).await.content);
    let environment = run("command = env\nresult_format = kv").await;
    let names: Vec<_> = environment.as_object().unwrap().keys().collect();
    assert_eq!(names, ["HOME", "LANG", "PATH"]);
    assert_eq!(run("command = cat\nresult_format = raw").await, "");
    assert_eq!(run("command = pwd\nresult_format = string").await, "/");
    let arguments = run("command = echo '$HOME' `id` * \"a  b\"\nresult_format = string").await;
    assert_eq!(arguments, "$HOME `id` * a  b");
}

fn shipped() -> Registry {
    // Copies, since a checkout may be writable for a group.
    let folder = Folder::new();
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("etc/vogeler/plugins");
    for file in fs::read_dir(checkout).unwrap() {
        let file = file.unwrap();
        let name = file.file_name().into_string().unwrap();
        folder.write(&name, fs::read(file.path()).unwrap());
    }
    Registry::load(folder.0.path()).unwrap()
}

/// Goal: the shipped files are without problems; what every Linux has gives a value here, and the rest gives one
/// or says that its program is not there.
#[tokio::test]
async fn shipped_plugins_work() {
    let registry = shipped();
    assert_eq!(registry.problems, []);
    let limits = Limits {
        timeout: Duration::from_mins(1),
        output_bytes_max: 4 * 1024 * 1024,
    };
    for plugin in registry.plugins.values() {
        let is_system = plugin.place.file.ends_with("system.cfg");
        match execute(plugin, limits).await.content {
            Content::Value { json, .. } => {
                let is_bare = matches!(json.get(), "null" | "[]" | "{}" | "\"\"");
                assert!(
                    !is_bare || plugin.name.as_str() == "disks",
                    "{}: {json}",
                    plugin.name
                );
            }
            Content::Error(error) => {
                let is_absent = error.kind == ErrorKind::NotStarted;
                assert!(is_absent && !is_system, "{}: {error:?}", plugin.name);
            }
        }
    }
}

/// Goal: facter of this machine is understood as JSON and as YAML.
#[tokio::test]
async fn real_facter_is_understood() {
    crate::harness::install_services();
    let folder = Folder::new();
    for (flag, format) in [("-j", "json"), ("-y", "yaml")] {
        let keys = format!(
            "command = facter {flag}\nresult_format = {format}\nsuccess = 0 1\ntimeout = 60s"
        );
        let content = execute(&folder.plugin(&keys), LIMITS).await.content;
        assert_eq!(value_of(content)["kernel"], "Linux");
    }
}

/// A memory broker with the server's queue, and clients on it.
struct Fleet {
    folder: Folder,
    broker: MemoryBroker,
}

impl Fleet {
    fn new(plugins: &str) -> Self {
        let folder = Folder::new();
        folder.write("plugins/all.cfg", plugins);
        Self {
            folder,
            broker: MemoryBroker::new(),
        }
    }

    async fn results(&self) -> Consumer {
        let queue = topology::results_queue(0, 1, QueueType::Classic);
        self.broker
            .declare(std::slice::from_ref(&queue))
            .await
            .unwrap();
        self.broker.consume(&queue, 100).await.unwrap()
    }

    fn client(&self, node: &str) -> Result<Client, ClientError> {
        let config = config::Client {
            node: Some(node.parse().unwrap()),
            groups: vec!["web".parse().unwrap()],
            plugins: self.folder.path("plugins"),
            state: self.folder.path(&format!("state/{node}")),
            concurrency: 1,
            ..config::Client::default()
        };
        Client::new(config, Arc::new(self.broker.clone()), supervisor())
    }

    fn start(&self, node: &str) -> Running {
        let stop = CancellationToken::new();
        let task = tokio::spawn(self.client(node).unwrap().run(stop.clone()));
        Running { stop, task }
    }

    /// Publishes as soon as some client listens to `key`.
    async fn ask(&self, key: &str, body: impl Into<Vec<u8>>) {
        let message = Message {
            exchange: Exchange::Commands,
            routing_key: key.to_owned(),
            body: body.into().into(),
            properties: Properties::default(),
            persistent: true,
            mandatory: true,
        };
        let start = Instant::now();
        while let Err(error) = self.broker.publish(message.clone()).await {
            assert!(
                error.is_retryable() && start.elapsed() < DEADLINE,
                "{error}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn waiting(&self, node: &str) -> u64 {
        let name = format!("vogeler.node.{node}");
        let depth = self.broker.depth(&[&name]).await.unwrap();
        depth[0].unwrap().ready
    }
}

struct Running {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), ClientError>>,
}

impl Running {
    async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(DEADLINE, self.task)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
}

async fn next(results: &mut Consumer) -> PluginResult {
    let delivery = tokio::time::timeout(DEADLINE, results.next())
        .await
        .unwrap()
        .unwrap();
    let body = match delivery.properties.content_encoding.as_deref() {
        Some("zstd") => zstd::bulk::decompress(&delivery.body, 8_000_000).unwrap(),
        None => delivery.body.to_vec(),
        Some(other) => panic!("{other}"),
    };
    delivery.settler.ack();
    PluginResult::decode(&body, jiff::Timestamp::now()).unwrap()
}

/// The next result of `plugin`; others are passed over.
async fn next_of(results: &mut Consumer, plugin: &str) -> PluginResult {
    loop {
        let result = next(results).await;
        if result
            .plugin
            .as_ref()
            .is_some_and(|name| name.as_str() == plugin)
        {
            return result;
        }
    }
}

fn kind_of(result: &PluginResult) -> Option<ErrorKind> {
    match &result.content {
        Content::Error(error) => Some(error.kind),
        Content::Value { .. } => None,
    }
}

const HELLO: &str =
    "[hello]\ncommand = echo hello\n[big]\ncommand = seq 10000\n[slow]\ncommand = sleep 300\n";

/// Goal: a client reports itself, answers commands to all, to it and to its groups, of both wire versions, and
/// every answer names its run; large ones travel packed.
#[tokio::test]
async fn a_client_answers_commands() {
    let fleet = Fleet::new(HELLO);
    let mut results = fleet.results().await;
    let client = fleet.start("web01");
    let about = next_of(&mut results, "client").await;
    assert_eq!(
        value_of(about.content)["plugins"],
        serde_json::json!(["big", "hello", "slow"])
    );

    let mut last = about.seq;
    for key in ["broadcasts.all", "web01", "groups.web"] {
        let run = RunId::generate();
        let command = Command {
            run: Some(run),
            plugin: "hello".parse().unwrap(),
            deadline: None,
            filter: None,
        };
        fleet.ask(key, command.encode().unwrap()).await;
        let result = next_of(&mut results, "hello").await;
        assert_eq!(result.run, Some(run));
        assert!(result.seq > last && result.duration_ms.is_some());
        last = result.seq;
        assert_eq!(value_of(result.content), serde_json::json!(["hello"]));
    }
    fleet.ask("web01", "\"big\"").await;
    let big = next_of(&mut results, "big").await;
    assert_eq!(value_of(big.content).as_array().map(Vec::len), Some(10_000));
    client.stop().await;
    assert_eq!(fleet.waiting("web01").await, 0);
}

/// Goal: what a client may not or cannot run is answered with why; what is no command is dropped, and hurts nothing.
#[tokio::test]
async fn bad_commands_are_answered_or_ignored() {
    let fleet = Fleet::new(HELLO);
    let mut results = fleet.results().await;
    let client = fleet.start("web01");
    fleet.ask("web01", "not json").await;
    fleet.ask("web01", r#"{"v":9,"plugin":"hello"}"#).await;
    fleet
        .ask(
            "web01",
            r#"{"v":2,"plugin":"hello","deadline":"2010-01-01T00:00:00Z"}"#,
        )
        .await;
    let expired = next_of(&mut results, "hello").await;
    assert_eq!(kind_of(&expired), Some(ErrorKind::Expired));
    fleet
        .ask("web01", r#"{"v":2,"plugin":"hello","filter":{"os":"x"}}"#)
        .await;
    assert_eq!(
        kind_of(&next_of(&mut results, "hello").await),
        Some(ErrorKind::Refused)
    );
    fleet.ask("web01", r#""rm""#).await;
    let Content::Error(unknown) = next_of(&mut results, "rm").await.content else {
        panic!()
    };
    assert_eq!(unknown.kind, ErrorKind::Refused);
    assert!(
        unknown.message.contains("big, hello, slow"),
        "{}",
        unknown.message
    );
    client.stop().await;
    assert_eq!(fleet.waiting("web01").await, 0);
}

/// Goal: results that no server takes wait on disk over a restart, and come before the newer ones.
#[tokio::test]
async fn results_survive_a_restart() {
    let fleet = Fleet::new(HELLO);
    let client = fleet.start("web01");
    fleet.ask("web01", "\"hello\"").await;
    let spool = fleet.folder.path("state/web01/spool");
    let spooled = || {
        fs::read_dir(&spool).map_or(0, |files| {
            files
                .filter(|file| {
                    file.as_ref()
                        .unwrap()
                        .path()
                        .extension()
                        .is_some_and(|e| e == "result")
                })
                .count()
        })
    };
    until("both results wait", || spooled() == 2).await;
    client.stop().await;
    assert_eq!(spooled(), 2);

    let mut results = fleet.results().await;
    let client = fleet.start("web01");
    let mut order = Vec::new();
    for _ in 0..3 {
        let result = next(&mut results).await;
        order.push((result.seq, result.plugin.unwrap().to_string()));
    }
    assert!(order.is_sorted(), "{order:?}");
    let plugins: Vec<_> = order.iter().map(|(_, plugin)| plugin.as_str()).collect();
    assert_eq!(plugins, ["client", "hello", "client"]);
    client.stop().await;
    assert_eq!(spooled(), 0);
}

/// Goal: a stop lets the running plugin finish and publishes its result; the command behind it goes back.
#[tokio::test]
async fn a_stop_finishes_what_runs_and_gives_back_the_rest() {
    let fleet = Fleet::new("");
    let (started, release) = (fleet.folder.path("started"), fleet.folder.path("release"));
    let script = format!(
        "echo > {}; until [ -e {} ]; do sleep 0.02; done",
        started.display(),
        release.display()
    );
    fleet.folder.write(
        "plugins/all.cfg",
        format!("[slow]\ncommand = sh -c '{script}'\n"),
    );
    let mut results = fleet.results().await;
    let client = fleet.start("web01");
    fleet.ask("web01", "\"slow\"").await;
    until("the plugin runs", || started.exists()).await;
    fleet.ask("web01", "\"slow\"").await;
    client.stop.cancel();
    fs::write(&release, "").unwrap();
    client.stop().await;
    assert_eq!(kind_of(&next_of(&mut results, "slow").await), None);
    assert_eq!(fleet.waiting("web01").await, 1);
}

/// Goal: a plugin with `every` runs without being asked, again and again.
#[tokio::test]
async fn scheduled_plugins_run_by_themselves() {
    let fleet = Fleet::new("[tick]\ncommand = echo tick\nevery = 1s\n");
    let mut results = fleet.results().await;
    let client = fleet.start("web01");
    let first = next_of(&mut results, "tick").await;
    let second = next_of(&mut results, "tick").await;
    assert_eq!((first.run, second.run), (None, None));
    client.stop().await;
}

/// Goal: a client whose broker is away when it starts runs its schedule all the same, and hears commands later.
#[tokio::test]
async fn a_client_without_a_broker_keeps_its_schedule() {
    let fleet = Fleet::new("[tick]\ncommand = echo tick\nevery = 1s\n");
    let mut results = fleet.results().await;
    fleet.broker.set_link(Link::Down {
        reason: "a test".to_owned(),
    });
    let client = fleet.start("web01");
    let spool = fleet.folder.path("state/web01/spool");
    let spooled = || fs::read_dir(&spool).map_or(0, Iterator::count);
    until("its own report and a tick wait", || spooled() >= 2).await;
    fleet.broker.set_link(Link::Up);
    next_of(&mut results, "tick").await;
    fleet.ask("web01", "\"tick\"").await;
    client.stop().await;
}

/// Goal: many clients live in one process, each with its own state; two on one state folder do not.
#[tokio::test]
async fn many_clients_share_a_process_but_no_state() {
    let fleet = Fleet::new(HELLO);
    let mut results = fleet.results().await;
    let clients: Vec<_> = (0..25)
        .map(|n| fleet.start(&format!("node{n:02}")))
        .collect();
    for _ in &clients {
        next_of(&mut results, "client").await;
    }
    let error = fleet.client("node00").unwrap_err().to_string();
    assert!(
        error.contains("another client") && error.contains("client.state"),
        "{error}"
    );
    for n in 0..25 {
        fleet.ask(&format!("node{n:02}"), "\"hello\"").await;
    }
    let mut answered = std::collections::BTreeSet::new();
    while answered.len() < 25 {
        answered.insert(next_of(&mut results, "hello").await.node);
    }
    for client in clients {
        client.stop().await;
    }
}

/// Goal: a client that cannot start says what to do.
#[tokio::test]
async fn a_client_that_cannot_start_says_why() {
    let fleet = Fleet::new(HELLO);
    let state = fleet.folder.write("state/web01", "a file");
    let error = fleet.client("web01").unwrap_err().to_string();
    assert!(
        error.contains(state.to_str().unwrap()) && error.contains("client.state"),
        "{error}"
    );
    fs::remove_dir_all(fleet.folder.path("plugins")).unwrap();
    let error = fleet.client("web02").unwrap_err().to_string();
    assert!(
        error.contains("plugin folder") && error.contains("client.plugins"),
        "{error}"
    );
}
