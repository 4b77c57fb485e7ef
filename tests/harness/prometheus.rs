//! A real Prometheus (Debian's) on a free loopback port, with the project's rules, scraping what a test names.

use std::fmt::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::process::{Service, free_port, wait_until};

const START_PATIENCE: Duration = Duration::from_mins(1);

/// A running Prometheus.
#[derive(Debug)]
pub(crate) struct Prometheus {
    port: u16,
    client: reqwest::Client,
    /// Held for as long as it is asked.
    _service: Service,
}

/// Something to scrape, every second.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) job: &'static str,
    /// `HOST:PORT`.
    pub(crate) address: String,
    pub(crate) path: &'static str,
}

impl Prometheus {
    /// Starts one that scrapes `targets` and evaluates the rules of `rule_files`.
    pub(crate) fn start(targets: &[Target], rule_files: &[&str]) -> Self {
        super::install_services();
        vogeler::tls::install_crypto_provider();
        let folder = tempfile::tempdir().unwrap().keep();
        let config = folder.join("prometheus.yml");
        std::fs::write(&config, configuration(targets, rule_files)).unwrap();
        let port = free_port();
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.join("data").display()
            ))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .arg("--log.level=warn")
            .stdout(Stdio::null());
        let mut service = Service::start(&mut command, &folder).unwrap();
        let listens = || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
        let is_up = wait_until(START_PATIENCE, || !service.is_running() || listens());
        assert!(is_up && service.is_running(), "Prometheus does not start");
        Self {
            port,
            client: reqwest::Client::new(),
            _service: service,
        }
    }

    /// The series that `expression` gives now, or what Prometheus does not like about it.
    pub(crate) async fn query(&self, expression: &str) -> Result<Vec<Value>, String> {
        let data = self.get("query", &[("query", expression)]).await?;
        let result = data["result"].as_array().cloned().unwrap_or_default();
        Ok(result)
    }

    /// All rules with their health, as Prometheus evaluated them last.
    pub(crate) async fn rules(&self) -> Result<Vec<Value>, String> {
        let data = self.get("rules", &[]).await?;
        let groups = data["groups"].as_array().cloned().unwrap_or_default();
        let of_group = |group: &Value| group["rules"].as_array().cloned().unwrap_or_default();
        Ok(groups.iter().flat_map(of_group).collect())
    }

    async fn get(&self, what: &str, parameters: &[(&str, &str)]) -> Result<Value, String> {
        let url = format!("http://127.0.0.1:{}/api/v1/{what}", self.port);
        let url = url::Url::parse_with_params(&url, parameters).unwrap();
        let answer = self
            .client
            .get(url)
            .send()
            .await
            .map_err(|error| error.to_string())?;
        let body: Value = answer.json().await.map_err(|error| error.to_string())?;
        if body["status"] == "success" {
            Ok(body["data"].clone())
        } else {
            Err(body["error"].to_string())
        }
    }
}

fn configuration(targets: &[Target], rule_files: &[&str]) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut text =
        "global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files:\n".to_owned();
    for file in rule_files {
        writeln!(text, "  - {}", root.join(file).display()).unwrap();
    }
    text.push_str("scrape_configs:\n");
    for Target { job, address, path } in targets {
        writeln!(text, "  - job_name: {job}\n    metrics_path: {path}").unwrap();
        writeln!(text, "    static_configs: [{{targets: ['{address}']}}]").unwrap();
    }
    text
}
