//! The server under test: the real binary, which lies beside this one, as a process of its own.
//!
//! Invariant: it gets its settings from the plan and from here only, never from the operator's environment or files.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::Signal;
use tokio_util::sync::CancellationToken;
use url::Url;
use vogeler::config::Config;

use super::process::{Service, free_port};
use super::{GIVEN_PATIENCE, Given, READY_PAUSE, blocking, http_client, local_port};
use crate::stats::ServerCounts;
use crate::watch::counts;

const PROGRAM: &str = "vogeler";
/// Lines of the log that an error shows.
const LAST_WORDS: usize = 5;
/// Characters that an error shows of the answer of a server that is not ready.
const OBSTACLE_CHARACTERS_MAX: usize = 300;
/// Longest time for a stop, which drains; past it the server is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(40);

/// The server of a run, given or started here.
#[derive(Debug)]
pub(crate) struct ServerService {
    metrics: Url,
    http: reqwest::Client,
    /// None if it was given.
    process: Option<Arc<Mutex<ServerProcess>>>,
}

/// What a server is started with.
#[derive(Debug)]
pub(super) struct Start<'a> {
    /// Settings of the plan, as the server's configuration file has them, without DSNs.
    pub(super) settings: &'a toml::Table,
    /// With its password.
    pub(super) broker_dsn: &'a str,
    /// With its password.
    pub(super) store_dsn: &'a str,
    /// Where the server's log goes.
    pub(super) log: &'a Path,
}

impl ServerService {
    /// Starts one; it need not be ready yet.
    pub(super) fn start(start: &Start<'_>) -> anyhow::Result<Self> {
        let process = ServerProcess::start(start)?;
        let metrics = format!("http://127.0.0.1:{}/metrics", process.port).parse()?;
        Ok(Self {
            metrics,
            http: http_client()?,
            process: Some(Arc::new(Mutex::new(process))),
        })
    }

    /// The given server, if there is one: it must be ready, and have counts.
    pub(super) async fn given(given: &Given) -> anyhow::Result<Option<Self>> {
        let Some(metrics) = &given.metrics else {
            return Ok(None);
        };
        let server = Self {
            metrics: metrics.clone(),
            http: http_client()?,
            process: None,
        };
        let wanted =
            "--metrics wants the /metrics of a vogeler server that runs, on --broker and --store";
        let ready = server.wait_until_ready(GIVEN_PATIENCE).await;
        ready.context(wanted)?;
        let counts = server.counts().await;
        counts
            .context("what is there prints no counters of a server")
            .context(wanted)?;
        Ok(Some(server))
    }

    /// Its HTTP port, if it is on this machine.
    pub(crate) fn port(&self) -> Option<u16> {
        local_port(self.metrics.as_str(), 80)
    }

    /// Waits until it is ready: it consumes, and the store is there.
    pub(super) async fn wait_until_ready(&self, patience: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + patience;
        let mut ready = self.metrics.clone();
        ready.set_path("/readyz");
        loop {
            let Some(obstacle) = self.obstacle(&ready).await else {
                return Ok(());
            };
            let last_words = self.lock().and_then(|mut process| process.last_words());
            if let Some(words) = last_words {
                bail!("the server ended by itself:\n{words}");
            }
            if Instant::now() > deadline {
                bail!("the server is not ready within {patience:?}: {obstacle}");
            }
            tokio::time::sleep(READY_PAUSE).await;
        }
    }

    /// Why it is not ready; none if it is.
    async fn obstacle(&self, ready: &Url) -> Option<String> {
        let answer = match self.http.get(ready.clone()).send().await {
            Ok(answer) => answer,
            Err(error) => return Some(format!("{:#}", anyhow::Error::new(error))),
        };
        let status = answer.status();
        if status.is_success() {
            return None;
        }
        let text = answer.text().await.unwrap_or_default();
        let said: String = text.trim().chars().take(OBSTACLE_CHARACTERS_MAX).collect();
        let path = ready.path();
        Some(format!("{path} answers {status}: {said}"))
    }

    /// What it counted so far; none while it does not answer.
    pub(crate) async fn counts(&self) -> Option<ServerCounts> {
        let answer = self.http.get(self.metrics.clone()).send().await.ok()?;
        counts::parse(&answer.text().await.ok()?)
    }

    /// Kills it without notice.
    pub(crate) async fn kill(&self) -> anyhow::Result<()> {
        self.with_process(ServerProcess::kill).await
    }

    /// Starts it again, on the same port.
    pub(crate) async fn restart(&self) -> anyhow::Result<()> {
        self.with_process(ServerProcess::run).await?
    }

    /// Stops it in order, if it was started here. One that does not stop in time, or before `hurry` is cancelled, is
    /// killed.
    pub(super) async fn stop(self, hurry: &CancellationToken) {
        let is_running = || {
            let mut process = self.lock()?;
            Some(process.service.as_mut()?.is_running())
        };
        if let Some(service) = self.lock().as_ref().and_then(|it| it.service.as_ref()) {
            service.signal(Signal::TERM);
        }
        let ended = async {
            while is_running() == Some(true) {
                tokio::time::sleep(READY_PAUSE).await;
            }
        };
        let in_time = tokio::time::timeout(STOP_PATIENCE, ended);
        // The server ends here, whatever the outcome.
        let _: Option<_> = hurry.run_until_cancelled(in_time).await;
        drop(self.with_process(ServerProcess::kill).await);
    }

    async fn with_process<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut ServerProcess) -> T + Send + 'static,
    ) -> anyhow::Result<T> {
        let process = self
            .process
            .clone()
            .context("this run did not start the server")?;
        blocking("the server", move || {
            act(&mut process.lock().unwrap_or_else(PoisonError::into_inner))
        })
        .await
    }

    fn lock(&self) -> Option<MutexGuard<'_, ServerProcess>> {
        Some(
            self.process
                .as_ref()?
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }
}

/// A server of ours, running or not.
#[derive(Debug)]
struct ServerProcess {
    service: Option<Service>,
    program: PathBuf,
    settings: PathBuf,
    broker_dsn: String,
    store_dsn: String,
    port: u16,
    log: PathBuf,
    folder: tempfile::TempDir,
}

impl ServerProcess {
    /// Starts it; it need not be ready yet.
    fn start(start: &Start<'_>) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("no folder for the server")?;
        let settings = folder.path().join("vogeler.toml");
        let text = toml::to_string(start.settings).context("the plan's server settings")?;
        std::fs::write(&settings, text).context("no file for the server's settings")?;
        let mut server = Self {
            service: None,
            program: vogeler_program()?,
            settings,
            broker_dsn: start.broker_dsn.to_owned(),
            store_dsn: start.store_dsn.to_owned(),
            port: free_port(),
            log: start.log.to_owned(),
            folder,
        };
        server.run()?;
        Ok(server)
    }

    /// Starts it again, on the same port.
    fn run(&mut self) -> anyhow::Result<()> {
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.with_context(|| format!("cannot write {}", self.log.display()))?;
        let mut command = Command::new(&self.program);
        command
            .arg("server")
            .env_clear()
            .env("VOGELER_CONFIG", &self.settings)
            .env("VOGELER_BROKER_DSN", &self.broker_dsn)
            .env("VOGELER_STORE_DSN", &self.store_dsn)
            .env("VOGELER_HTTP_LISTEN", format!("127.0.0.1:{}", self.port))
            .env("NO_COLOR", "1")
            .current_dir(self.folder.path())
            .stdout(log.try_clone().context("the server's log")?)
            .stderr(log);
        let service = Service::start(&mut command, self.folder.path())
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        self.service = Some(service);
        Ok(())
    }

    /// Kills it without notice.
    fn kill(&mut self) {
        drop(self.service.take());
    }

    /// The end of its log, if it ended by itself.
    fn last_words(&mut self) -> Option<String> {
        if self.service.as_mut().is_some_and(Service::is_running) {
            return None;
        }
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        Some(lines[lines.len().saturating_sub(LAST_WORDS)..].join("\n"))
    }
}

/// The settings of a plan's table, checked as the server checks them.
pub(super) fn config(settings: &toml::Table) -> anyhow::Result<Config> {
    for section in ["broker", "store"] {
        let has_dsn = settings
            .get(section)
            .and_then(toml::Value::as_table)
            .is_some_and(|section| section.contains_key("dsn"));
        if has_dsn {
            bail!(
                "the plan's settings for the server name a {section}.dsn: give it with --{section}"
            );
        }
    }
    let config: Config = settings
        .clone()
        .try_into()
        .context("the plan's settings for the server")?;
    vogeler::config::validate(&config).context("the plan's settings for the server")?;
    Ok(config)
}

/// The product's binary: beside this one, or beside cargo's folder `deps`, where this one's tests run.
pub(crate) fn vogeler_program() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("where am I?")?;
    let folder = own.parent().filter(|folder| folder.ends_with("deps"));
    let program = folder.unwrap_or(&own).with_file_name(PROGRAM);
    if !program.is_file() {
        let (program, own) = (program.display(), own.display());
        bail!(
            "{program} is not there: build it with `cargo build --bins`, for it must lie beside {own}"
        );
    }
    Ok(program)
}
