//! A real RabbitMQ on free loopback ports, with its own node name, cookie, epmd and folders; one for all tests of the
//! process, and private ones for tests that stop or break theirs. Virtual hosts are made at the start, one a test.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use super::process::{Service, free_port, wait_until};

const BIN: &str = "/usr/lib/rabbitmq/bin";
/// So many of the last lines of its logs are shown when it does not start.
const LOG_LINES: usize = 30;
/// Virtual hosts `t0`, `t1`, … that exist from the start.
const VHOSTS: usize = 128;
/// Starting takes 5 to 20 s on two cores, and took over 2 minutes on two that were busy with six times their load.
const START_PATIENCE: Duration = Duration::from_mins(5);
const STOP_PATIENCE: Duration = Duration::from_mins(1);
pub(crate) const USER: &str = "vogeler";
/// Holds what a URL must escape.
pub(crate) const PASSWORD: &str = "pa55/w@rd:ü?";
const PASSWORD_ESCAPED: &str = "pa55%2Fw%40rd%3A%C3%BC%3F";
/// Salt `01020304` and SHA-256 of salt and password, as RabbitMQ keeps it.
const PASSWORD_HASH: &str = "AQIDBI0xoBo1J2od+R/vnrfTIlFksgEsxJmIPIuDZHotyd0K";

/// A RabbitMQ server.
#[derive(Debug)]
pub(crate) struct Rabbit {
    node: String,
    folder: PathBuf,
    port: u16,
    dist_port: u16,
    epmd_port: u16,
    /// Of the broker's own metrics, where they are asked for.
    metrics_port: Option<u16>,
    vhosts_used: AtomicUsize,
    server: Option<Service>,
    /// Ends with this value.
    _epmd: Service,
}

impl Rabbit {
    /// The one that all tests of this process share.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: LazyLock<Rabbit> = LazyLock::new(Rabbit::private);
        &SHARED
    }

    /// Starts another one, for a test that stops or breaks it.
    pub(crate) fn private() -> Self {
        Self::made(None, "[].")
    }

    /// Starts another one that closes channels whose deliveries stay unsettled for `consumer_timeout` or a second longer.
    pub(crate) fn impatient(consumer_timeout: Duration) -> Self {
        let timeout = consumer_timeout.as_millis();
        // A channel looks once a tick; by default that is a minute.
        let settings = format!(
            "[{{rabbit, [{{consumer_timeout, {timeout}}}, {{channel_tick_interval, 1000}}]}}]."
        );
        Self::made(None, &settings)
    }

    /// Starts another one that takes messages of so many bytes at most.
    #[allow(
        dead_code,
        reason = "the bench shares this file, and sends what everybody takes"
    )]
    pub(crate) fn taking_at_most(bytes: u64) -> Self {
        Self::made(
            None,
            &format!("[{{rabbit, [{{max_message_size, {bytes}}}]}}]."),
        )
    }

    /// Starts one that exports metrics of its own; the others go without, since gathering them costs it CPU time.
    #[allow(
        dead_code,
        reason = "the bench shares this file, and measures a plain one"
    )]
    pub(crate) fn exporting() -> Self {
        Self::made(Some(free_port()), "[].")
    }

    /// `advanced` is its `advanced.config`.
    fn made(metrics_port: Option<u16>, advanced: &str) -> Self {
        super::install_services();
        let folder = tempfile::Builder::new()
            .prefix("rabbit-")
            .tempdir_in(super::process::scratch())
            .expect("no folder for RabbitMQ")
            .keep();
        let epmd_port = free_port();
        let mut epmd = Command::new("epmd");
        epmd.args(["-port", &epmd_port.to_string(), "-address", "127.0.0.1"])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut rabbit = Self {
            node: format!("vogeler-{}@localhost", folder_name(&folder)),
            port: free_port(),
            dist_port: free_port(),
            epmd_port,
            metrics_port,
            vhosts_used: AtomicUsize::new(0),
            server: None,
            _epmd: Service::start(&mut epmd, &folder).expect("epmd does not start"),
            folder,
        };
        rabbit.write_configuration(advanced);
        rabbit.start();
        rabbit
    }

    /// A virtual host that no other test uses, as a DSN.
    pub(crate) fn fresh_vhost(&self) -> url::Url {
        let used = self.vhosts_used.fetch_add(1, Ordering::Relaxed);
        assert!(used < VHOSTS, "more tests than virtual hosts: raise VHOSTS");
        self.dsn(USER, PASSWORD_ESCAPED, &format!("t{used}"))
    }

    /// A DSN with the credentials and virtual host given, escaped by the caller.
    pub(crate) fn dsn(&self, user: &str, password: &str, vhost: &str) -> url::Url {
        let text = format!("amqp://{user}:{password}@127.0.0.1:{}/{vhost}", self.port);
        text.parse().expect("a bad DSN")
    }

    /// Where it exports its own metrics.
    #[allow(
        dead_code,
        reason = "the bench shares this file, and measures a plain one"
    )]
    pub(crate) fn metrics_port(&self) -> u16 {
        self.metrics_port.expect("made without metrics")
    }

    /// Starts the server, and waits until it takes connections.
    pub(crate) fn start(&mut self) {
        let log = std::fs::File::create(self.folder.join("output.log")).expect("no log file");
        let mut command = self.command("rabbitmq-server");
        command
            .stdout(log.try_clone().expect("no log file"))
            .stderr(log);
        let mut server =
            Service::start(&mut command, &self.folder).expect("RabbitMQ does not start");
        let is_up = wait_until(START_PATIENCE, || !server.is_running() || greets(self.port));
        assert!(
            is_up && server.is_running(),
            "RabbitMQ is not up: {}",
            self.last_words()
        );
        self.server = Some(server);
    }

    /// The end of what it printed, and of its own log.
    fn last_words(&self) -> String {
        let own = format!("log/{}.log", self.node);
        let end = |file: &str| {
            let text = std::fs::read_to_string(self.folder.join(file)).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            let shown = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
            format!("\n{file}:\n{shown}")
        };
        end("output.log") + &end(&own)
    }

    /// Stops the server in order; what is durable stays.
    pub(crate) fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop(STOP_PATIENCE);
        }
    }

    /// Kills the server without notice.
    pub(crate) fn kill(&mut self) {
        drop(self.server.take());
    }

    /// Freezes the server, or lets it run on: connections stay and nothing answers.
    pub(crate) fn pause(&self, is_paused: bool) {
        if let Some(server) = &self.server {
            server.signal(if is_paused {
                Signal::STOP
            } else {
                Signal::CONT
            });
        }
    }

    /// Ends all connections, as an operator would.
    pub(crate) fn close_all_connections(&self) {
        self.ctl(&["close_all_connections", "--global", "a test"]);
    }

    /// Runs `rabbitmqctl` (1 to 2 s) and gives its output.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> String {
        let mut command = self.command("rabbitmqctl");
        let output = command
            .args(["--node", &self.node])
            .args(arguments)
            .output()
            .expect("rabbitmqctl");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "rabbitmqctl {arguments:?}: {text}{errors}"
        );
        text
    }

    /// What it has logged so far.
    pub(crate) fn log(&self) -> String {
        let files = std::fs::read_dir(self.folder.join("log")).expect("no log folder");
        let read = |file: std::io::Result<std::fs::DirEntry>| {
            std::fs::read_to_string(file.ok()?.path()).ok()
        };
        files.filter_map(read).collect()
    }

    fn write_configuration(&self, advanced: &str) {
        for folder in ["home", "mnesia", "log"] {
            std::fs::create_dir(self.folder.join(folder)).expect("no folder");
        }
        let write = |name: &str, text: &str| {
            std::fs::write(self.folder.join(name), text).expect("no file");
        };
        let definitions = self.folder.join("definitions.json");
        let limit = "disk_free_limit.absolute = 50MB\nvm_memory_high_watermark.relative = 0.4\n";
        let definitions = definitions.display();
        let (plugins, exporter) = match self.metrics_port {
            Some(port) => (
                "[rabbitmq_prometheus].\n",
                format!("prometheus.tcp.ip = 127.0.0.1\nprometheus.tcp.port = {port}\n"),
            ),
            None => ("[].\n", String::new()),
        };
        write(
            "rabbitmq.conf",
            &format!("{limit}load_definitions = {definitions}\nlog.file.level = info\n{exporter}"),
        );
        write("definitions.json", &definitions_json());
        write("advanced.config", advanced);
        write("enabled_plugins", plugins);
        write("rabbitmq-env.conf", "");
    }

    /// A program of RabbitMQ, with the environment that keeps it to its own folders and ports.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(format!("{BIN}/{program}"));
        let at = |name: &str| self.folder.join(name);
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LANG", "C.UTF-8")
            .env("HOME", at("home"))
            .env("ERL_EPMD_PORT", self.epmd_port.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODENAME", &self.node)
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODE_PORT", self.port.to_string())
            .env("RABBITMQ_DIST_PORT", self.dist_port.to_string())
            .env("RABBITMQ_CONF_ENV_FILE", at("rabbitmq-env.conf"))
            .env("RABBITMQ_CONFIG_FILE", at("rabbitmq.conf"))
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", at("advanced.config"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", at("enabled_plugins"))
            .env("RABBITMQ_MNESIA_BASE", at("mnesia"))
            .env("RABBITMQ_LOG_BASE", at("log"))
            .env("RABBITMQ_PID_FILE", at("pid"))
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "-kernel inet_dist_use_interface {127,0,0,1} +sbwt none +sbwtdcpu none +sbwtdio none",
            )
            .current_dir(&self.folder);
        command
    }
}

impl Drop for Rabbit {
    fn drop(&mut self) {
        self.kill();
        drop(std::fs::remove_dir_all(&self.folder));
    }
}

/// Whether an AMQP server answers our greeting.
fn greets(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else {
        return false;
    };
    let patience = Some(Duration::from_secs(5));
    let mut first = [0];
    stream.set_read_timeout(patience).is_ok()
        && stream.write_all(b"AMQP\x00\x00\x09\x01").is_ok()
        && stream.read_exact(&mut first).is_ok()
        && first == [1]
}

fn definitions_json() -> String {
    let vhosts: Vec<String> = (0..VHOSTS).map(|number| format!("t{number}")).collect();
    let all = ".*";
    json!({
        "users": [{
            "name": USER, "password_hash": PASSWORD_HASH,
            "hashing_algorithm": "rabbit_password_hashing_sha256", "tags": [],
        }],
        "vhosts": vhosts.iter().map(|name| json!({"name": name})).collect::<Vec<_>>(),
        "permissions": vhosts.iter().map(|vhost| json!({
            "user": USER, "vhost": vhost, "configure": all, "write": all, "read": all,
        })).collect::<Vec<_>>(),
    })
    .to_string()
}

fn folder_name(folder: &Path) -> String {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    name.trim_start_matches("rabbit-").to_owned()
}
