//! Vogeler as an operator installs it: the real binary, its settings in the environment, folders of its own.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::process::{free_port, wait_until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_vogeler");
const PATIENCE: Duration = Duration::from_secs(30);
/// What a client logs once it hears commands.
const LISTENS: &str = "client listens";

/// One set-up: a broker, a store, a folder.
#[derive(Debug)]
pub(crate) struct Installation {
    folder: tempfile::TempDir,
    broker: String,
    store: String,
    http_port: u16,
    settings: Vec<(String, String)>,
}

/// What a command printed, and how it ended.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Its exit code.
    pub(crate) code: i32,
    /// What it said.
    pub(crate) stdout: String,
    /// What it complained of.
    pub(crate) stderr: String,
}

impl Answer {
    /// The answer as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// This answer, which must have exit code 0.
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }
}

/// A running `vogeler`; killed when dropped.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    log: PathBuf,
}

impl Installation {
    /// On this broker and store.
    pub(crate) fn new(broker: &str, store: &str) -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            broker: broker.to_owned(),
            store: store.to_owned(),
            http_port: free_port(),
            settings: Vec::new(),
        }
    }

    /// Sets a variable of the environment for everything it starts.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.settings.push((name.to_owned(), value.to_owned()));
    }

    /// The broker's DSN.
    pub(crate) fn broker(&self) -> &str {
        &self.broker
    }

    /// Where the HTTP side answers that [`get`](Self::get) asks: the server's, unless a test gives it to a client.
    pub(crate) fn http_address(&self) -> String {
        format!("127.0.0.1:{}", self.http_port)
    }

    /// A path in its folder.
    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// The store's DSN.
    pub(crate) fn store(&self) -> &str {
        &self.store
    }

    /// Writes a plugin file that clients of this set-up read.
    pub(crate) fn plugin_file(&self, name: &str, text: &str) {
        let folder = self.folder.path().join("plugins");
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join(name);
        std::fs::write(&file, text).unwrap();
        // Whatever the umask: clients refuse what others may write.
        for (path, mode) in [(folder, 0o755), (file, 0o644)] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
    }

    /// A file or folder of this set-up.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// One command of this set-up, for a test that starts it itself.
    pub(crate) fn prepared(&self, args: &[&str]) -> Command {
        self.command(PROGRAM, args)
    }

    /// A folder of its own.
    pub(crate) fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(args)
            .env_clear()
            .env("VOGELER_CONFIG", "/dev/null")
            .env("PATH", "/usr/bin:/bin")
            .env("VOGELER_BROKER_DSN", &self.broker)
            .env("VOGELER_STORE_DSN", &self.store)
            .env("VOGELER_HTTP_LISTEN", self.http_address())
            .env("VOGELER_CLIENT_PLUGINS", self.folder.path().join("plugins"))
            .env("VOGELER_BROKER_RECONNECT_MAX", "500ms")
            .env("VOGELER_SERVER_RETRY_MAX", "500ms")
            .envs(self.settings.iter().cloned())
            .stdin(Stdio::null());
        command
    }

    /// Runs one command to its end.
    pub(crate) fn vogeler(&self, args: &[&str]) -> Answer {
        Self::answer(&mut self.command(PROGRAM, args))
    }

    /// Runs one command through a link of another name.
    pub(crate) fn linked(&self, name: &str, args: &[&str]) -> Answer {
        let link = self.folder.path().join(name);
        if !link.exists() {
            std::os::unix::fs::symlink(PROGRAM, &link).unwrap();
        }
        Self::answer(&mut self.command(link.to_str().unwrap(), args))
    }

    fn answer(command: &mut Command) -> Answer {
        let output = command.output().unwrap();
        // Shown when the test fails.
        eprint!("{}", String::from_utf8_lossy(&output.stderr));
        Answer {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Starts a server, and waits until it is ready.
    pub(crate) fn server(&self) -> Running {
        let mut server = self.start(self.command(PROGRAM, &["server"]), "server");
        let is_ready = wait_until(PATIENCE, || {
            self.get("/readyz").is_some_and(|(status, _)| status == 200) || !server.is_running()
        });
        assert!(
            is_ready && server.is_running(),
            "the server is not ready: {}",
            server.log()
        );
        server
    }

    /// Starts a server that need not become ready.
    pub(crate) fn unready_server(&self) -> Running {
        self.start_vogeler(&["server"])
    }

    /// Starts whatever runs until it is told to end.
    pub(crate) fn start_vogeler(&self, args: &[&str]) -> Running {
        self.start(self.command(PROGRAM, args), args[0])
    }

    /// Starts a client, and waits until it listens.
    pub(crate) fn client(&self, node: &str, groups: &str) -> Running {
        let mut command = self.command(PROGRAM, &["client"]);
        command.env("VOGELER_CLIENT_GROUPS", groups);
        self.start_client(command, node)
    }

    /// Starts a client with this umask, and waits until it listens.
    pub(crate) fn client_with_umask(&self, node: &str, umask: &str) -> Running {
        let script = format!("umask {umask}; exec {PROGRAM} client");
        self.start_client(self.command("/bin/sh", &["-c", &script]), node)
    }

    fn start_client(&self, mut command: Command, node: &str) -> Running {
        let state = self.folder.path().join("state").join(node);
        std::fs::create_dir_all(&state).unwrap();
        command
            .env("VOGELER_CLIENT_NODE", node)
            .env("VOGELER_CLIENT_STATE", state);
        let before = self.log_of(node).matches(LISTENS).count();
        let client = self.start(command, node);
        assert!(
            wait_until(PATIENCE, || client.log().matches(LISTENS).count() > before),
            "{}",
            client.log()
        );
        client
    }

    fn log_of(&self, name: &str) -> String {
        std::fs::read_to_string(self.file(&format!("{name}.log"))).unwrap_or_default()
    }

    fn start(&self, mut command: Command, name: &str) -> Running {
        let log = self.folder.path().join(format!("{name}.log"));
        let file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        let child = command
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        Running { child, log }
    }

    /// Asks the server's HTTP side: status and body.
    pub(crate) fn get(&self, path: &str) -> Option<(u16, String)> {
        use std::io::Write;
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", self.http_port)).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
        .ok()?;
        let mut reader = BufReader::new(stream);
        let mut status = String::new();
        reader.read_line(&mut status).ok()?;
        let mut rest = String::new();
        reader.read_to_string(&mut rest).ok()?;
        let body = rest.split_once("\r\n\r\n")?.1.to_owned();
        Some((status.split(' ').nth(1)?.parse().ok()?, body))
    }

    /// The accounting identity of one scrape: `received`, how many ended, and how many are in flight.
    pub(crate) fn accounts(&self) -> Option<[f64; 3]> {
        let (_, body) = self.get("/metrics")?;
        let sum = |series: &str| -> f64 {
            let values = body.lines().filter_map(|line| {
                let rest = line.strip_prefix(series)?;
                rest.starts_with([' ', '{'])
                    .then(|| rest.split(' ').next_back()?.parse::<f64>().ok())?
            });
            values.sum()
        };
        Some([
            sum("vogeler_results_received_total"),
            sum("vogeler_results_total"),
            sum("vogeler_results_in_flight"),
        ])
    }

    /// One metric's value, labels and all in `series`, from `/metrics`.
    pub(crate) fn metric(&self, series: &str) -> Option<f64> {
        let (_, body) = self.get("/metrics")?;
        body.lines()
            .find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
    }
}

impl Running {
    /// What it has logged so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether it still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Its resident memory, in bytes.
    pub(crate) fn rss_bytes(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kib = line.unwrap().split_whitespace().nth(1).unwrap();
        kib.parse::<u64>().unwrap() * 1024
    }

    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self, patience: Duration) -> ExitStatus {
        let mut status = None;
        assert!(
            wait_until(patience, || {
                status = self.child.try_wait().unwrap();
                status.is_some()
            }),
            "still runs: {}",
            self.log()
        );
        status.unwrap()
    }

    /// Asks it to end, and waits for that.
    pub(crate) fn stop(mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait(PATIENCE)
    }

    /// Ends it without notice.
    pub(crate) fn kill(mut self) {
        self.signal(Signal::KILL);
        self.wait(PATIENCE);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
