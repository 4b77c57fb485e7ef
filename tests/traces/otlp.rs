//! The export of spans, by a build with the feature `otlp`, to a collector that the test plays.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::response::Json;
use axum::routing::post;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::*;

/// A span as it was exported, and by whom.
#[derive(Debug, Clone)]
struct Exported {
    service: String,
    span: Value,
}

impl Exported {
    fn text(&self, key: &str) -> &str {
        self.span[key].as_str().unwrap_or_default()
    }

    fn attribute(&self, key: &str) -> Option<&str> {
        let mut attributes = self.span["attributes"].as_array()?.iter();
        let found = attributes.find(|attribute| attribute["key"] == key)?;
        found["value"]["stringValue"].as_str()
    }
}

type Spans = Arc<Mutex<Vec<Exported>>>;

/// Takes OTLP over HTTP, in JSON.
struct Collector {
    url: String,
    spans: Spans,
    stop: CancellationToken,
}

impl Collector {
    fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (spans, stop) = (Spans::default(), CancellationToken::new());
        let routes = Router::new()
            .route("/v1/traces", post(take))
            .with_state(Arc::clone(&spans));
        let stopped = stop.clone().cancelled_owned();
        std::thread::spawn(move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            runtime.enable_all().build().unwrap().block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let serve = axum::serve(listener, routes).with_graceful_shutdown(stopped);
                serve.await.unwrap();
            });
        });
        Self { url, spans, stop }
    }

    /// The spans of the trace of `run`, as soon as there are three.
    fn of_run(&self, run: &str) -> [Exported; 3] {
        let trace = run.replace('-', "");
        let spans = || -> Vec<_> {
            let all = self.spans.lock().unwrap();
            let ours = all.iter().filter(|span| span.text("traceId") == trace);
            ours.cloned().collect()
        };
        let arrived = wait_until(PATIENCE, || spans().len() == 3);
        assert!(arrived, "{trace}: {:#?}", self.spans.lock().unwrap());
        let spans = spans();
        ["run", "plugin", "result"].map(|name| {
            let mut named = spans.iter().filter(|span| span.text("name") == name);
            named
                .next()
                .unwrap_or_else(|| panic!("no {name}: {spans:#?}"))
                .clone()
        })
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn take(State(spans): State<Spans>, Json(body): Json<Value>) -> Json<Value> {
    let mut spans = spans.lock().unwrap();
    for of_resource in body["resourceSpans"].as_array().unwrap() {
        let attributes = of_resource["resource"]["attributes"].as_array().unwrap();
        let service = attributes.iter().find(|a| a["key"] == "service.name");
        let service = service.unwrap()["value"]["stringValue"].as_str().unwrap();
        for of_scope in of_resource["scopeSpans"].as_array().unwrap() {
            for span in of_scope["spans"].as_array().unwrap() {
                spans.push(Exported {
                    service: service.to_owned(),
                    span: span.clone(),
                });
            }
        }
    }
    Json(json!({}))
}

/// Goal: the spans of runner, client and server are one trace, whose id is the run's, each below the one before it; a
/// plugin that fails is a span that failed, and its result is stored all the same.
#[test]
fn three_processes_make_one_trace() {
    let collector = Collector::start();
    let mut v = installation("text");
    v.set("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url);
    v.set("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json");
    v.set("OTEL_BSP_SCHEDULE_DELAY", "200");
    let scene = Scene::on(v);
    for (plugin, error) in [("good", None), ("broken", Some("exit_status"))] {
        let (id, _) = scene.run(plugin);
        let [run, ran, result] = collector.of_run(&id);
        assert_eq!(
            [&run, &ran, &result].map(|span| span.service.as_str()),
            ["vogeler-runner", "vogeler-client", "vogeler-server"]
        );
        assert_eq!(run.text("parentSpanId"), "", "{run:?}");
        assert_eq!(ran.text("parentSpanId"), run.text("spanId"));
        assert_eq!(result.text("parentSpanId"), ran.text("spanId"));
        assert_eq!(ran.attribute("vogeler.node"), Some(NODE));
        assert_eq!(ran.attribute("vogeler.error"), error, "{ran:?}");
        assert_eq!(result.attribute("vogeler.outcome"), Some("stored"));
        assert_eq!(result.attribute("vogeler.run"), Some(id.as_str()));
    }
}
