//! The server under test: the real binary as its own process, watched from outside.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use url::Url;

use crate::process::{Service, free_port, wait_until};

/// Pause between two looks at the metrics: rendering them costs the server CPU, too.
const LOOK_EVERY: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_mins(3);
/// A server that uses at most [`IDLE_CPU_MAX`] seconds of CPU (two ticks) in this time has nothing to do.
const IDLE_LOOK: Duration = Duration::from_millis(500);
const IDLE_CPU_MAX: f64 = 0.02;
/// Clock ticks a second in /proc; the same on every Linux.
const TICKS: f64 = 100.0;

/// A running server.
pub(crate) struct Server {
    /// None once stopped.
    service: Option<Service>,
    pid: String,
    metrics: String,
    http: reqwest::Client,
    _folder: tempfile::TempDir,
}

/// The figures of one drain.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Drain {
    pub(crate) seconds: f64,
    /// User and system time, in seconds.
    pub(crate) cpu: f64,
    pub(crate) documents: f64,
}

impl Server {
    /// Starts it, and waits until it answers.
    pub(crate) async fn start(amqp: &Url, store: &Url, database: &str) -> Self {
        let server = Self::launch(amqp, store, database, true);
        let deadline = Instant::now() + PATIENCE;
        while server.scrape().await.is_none() {
            assert!(Instant::now() < deadline, "the server does not start");
            tokio::time::sleep(LOOK_EVERY).await;
        }
        server
    }

    /// Starts it and waits for nothing. Without metrics it answers no request: only its CPU and the queues show what it
    /// does.
    pub(crate) fn launch(amqp: &Url, store: &Url, database: &str, with_metrics: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let dsn = format!(
            "couch{}/{database}",
            store
                .as_str()
                .trim_start_matches("http")
                .trim_end_matches('/')
        );
        let program = std::env::var("VOGELER_BENCH_SERVER");
        let mut command = Command::new(program.as_deref().unwrap_or(env!("CARGO_BIN_EXE_vogeler")));
        command
            .arg("server")
            .env("VOGELER_BROKER_DSN", amqp.as_str())
            .env("VOGELER_STORE_DSN", dsn)
            .env("VOGELER_HTTP_LISTEN", format!("127.0.0.1:{port}"))
            .env("VOGELER_HTTP_ENABLED", with_metrics.to_string())
            .env("VOGELER_LOG_LEVEL", "warn")
            .current_dir(folder.path())
            .stdout(Stdio::null());
        let service = Service::start(&mut command, folder.path()).unwrap();
        let pid = service.pid();
        Self {
            service: Some(service),
            pid,
            metrics: format!("http://127.0.0.1:{port}/metrics"),
            http: reqwest::Client::builder()
                .no_proxy()
                .tls_certs_only([])
                .build()
                .unwrap(),
            _folder: folder,
        }
    }

    /// Freezes it, or lets it run on: messages published while it is frozen make a backlog.
    pub(crate) fn pause(&self, is_paused: bool) {
        let signal = if is_paused {
            Signal::STOP
        } else {
            Signal::CONT
        };
        self.service.as_ref().unwrap().signal(signal);
    }

    /// Stops it in order.
    pub(crate) async fn stop(&mut self) {
        let service = self.service.take().unwrap();
        tokio::task::spawn_blocking(|| service.stop(Duration::from_secs(30)))
            .await
            .unwrap();
    }

    /// Waits until `count` deliveries more than `before` are settled.
    pub(crate) async fn drain(&self, before: f64, count: usize) -> Drain {
        let (started, cpu) = (Instant::now(), self.cpu());
        let documents = self.count("vogeler_documents_written_total ").await;
        while self.settled().await < before + count as f64 {
            assert!(started.elapsed() < PATIENCE, "the backlog does not drain");
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Drain {
            seconds: started.elapsed().as_secs_f64(),
            cpu: self.cpu() - cpu,
            documents: self.count("vogeler_documents_written_total ").await - documents,
        }
    }

    /// Waits until it does next to nothing.
    pub(crate) async fn until_idle(&self) {
        let started = Instant::now();
        loop {
            let before = self.cpu();
            tokio::time::sleep(IDLE_LOOK).await;
            if self.cpu() - before <= IDLE_CPU_MAX {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "the server does not rest");
        }
    }

    /// Deliveries that ended so far.
    pub(crate) async fn settled(&self) -> f64 {
        self.count("vogeler_results_total{").await
    }

    /// The sum of a metric's series.
    pub(crate) async fn count(&self, prefix: &str) -> f64 {
        let text = self.scrape().await.unwrap_or_default();
        let lines = text.lines().filter(|line| line.starts_with(prefix));
        lines
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// User and system time so far, in seconds.
    pub(crate) fn cpu(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        let ticks: f64 = [11, 12]
            .map(|index: usize| fields[index].parse::<f64>().unwrap())
            .iter()
            .sum();
        ticks / TICKS
    }

    /// Resident memory, in MB.
    pub(crate) fn rss(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        let kib: f64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib * 1024.0 / 1e6
    }

    async fn scrape(&self) -> Option<String> {
        let answer = self.http.get(&self.metrics).send().await.ok()?;
        answer.text().await.ok()
    }
}

/// Waits for a condition on a thread of its own.
pub(crate) async fn until(
    patience: Duration,
    condition: impl FnMut() -> bool + Send + 'static,
) -> bool {
    tokio::task::spawn_blocking(move || wait_until(patience, condition))
        .await
        .unwrap()
}
