//! The store's side: the store ceiling, a bare loop that posts prepared `_bulk_docs` bodies with known revisions.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;
use url::Url;
use vogeler::document::NodeDocument;

use crate::broker::{node, result};
use crate::table::median;

/// Pairs of batch size and requests in flight to try; the best pair is the ceiling.
const SHAPES: [(usize, usize); 5] = [(50, 4), (100, 4), (200, 4), (500, 4), (100, 8)];
/// Tries of each pair, in turn with the others: a single run is noise.
const SHAPE_ROUNDS: usize = 3;
/// No further round begins after this time, on a slow store.
const SEARCH_MAX: Duration = Duration::from_mins(1);

/// A database, spoken to directly.
pub(crate) struct Database {
    http: reqwest::Client,
    url: String,
    revisions: HashMap<String, String>,
    content: u64,
}

/// The figures of a run of requests: its rate, and how long one request took beside the others in flight.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ceiling {
    pub(crate) documents_per_second: f64,
    request_median: f64,
}

#[derive(Deserialize)]
struct Row {
    id: String,
    rev: Option<String>,
}

/// Name and version of the store at `url`.
pub(crate) async fn product(url: &str) -> String {
    let http = reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([])
        .build()
        .unwrap();
    let welcome: Value = http.get(url).send().await.unwrap().json().await.unwrap();
    format!("CouchDB {}", welcome["version"].as_str().unwrap_or("?"))
}

impl Database {
    /// Makes a new database.
    pub(crate) async fn create(server: &Url, name: &str) -> Self {
        let http = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([])
            .build()
            .unwrap();
        let url = format!("{}/{name}", server.as_str().trim_end_matches('/'));
        let answer = http.put(&url).send().await.unwrap();
        assert!(
            answer.status().is_success(),
            "{}",
            answer.text().await.unwrap()
        );
        Self {
            http,
            url,
            revisions: HashMap::new(),
            content: 0,
        }
    }

    /// Deletes it.
    pub(crate) async fn delete(&self) {
        self.http.delete(&self.url).send().await.unwrap();
    }

    /// The shape of requests for documents of `bytes` with the best median rate.
    pub(crate) async fn best_shape(&mut self, count: usize, bytes: usize) -> (usize, usize) {
        // Unmeasured: this creates the documents.
        self.post(count, bytes, SHAPES[1]).await;
        let started = Instant::now();
        let mut rates = SHAPES.map(|shape| (shape, Vec::with_capacity(SHAPE_ROUNDS)));
        for round in 0..SHAPE_ROUNDS {
            if round > 0 && started.elapsed() > SEARCH_MAX {
                break;
            }
            for (shape, rates) in &mut rates {
                let ceiling = self.post(count, bytes, *shape).await;
                rates.push(ceiling.documents_per_second);
            }
        }
        let best = rates
            .iter()
            .max_by(|(_, one), (_, other)| median(one).total_cmp(&median(other)));
        best.unwrap().0
    }

    /// The median time of one request of `batch` documents with nothing else in flight, in seconds.
    pub(crate) async fn request(&mut self, count: usize, bytes: usize, batch: usize) -> f64 {
        self.post(count, bytes, (batch, 1)).await.request_median
    }

    /// Posts the next version of `count` documents.
    pub(crate) async fn post(
        &mut self,
        count: usize,
        bytes: usize,
        (batch, in_flight): (usize, usize),
    ) -> Ceiling {
        self.content += 1;
        let documents: Vec<String> = (0..count)
            .map(|number| self.document(number, bytes))
            .collect();
        let bodies: Vec<String> = documents
            .chunks(batch)
            .map(|documents| format!("{{\"docs\":[{}]}}", documents.join(",")))
            .collect();
        let started = Instant::now();
        let answers: Vec<(f64, Vec<Row>)> = futures::stream::iter(bodies)
            .map(|body| self.send(body))
            .buffer_unordered(in_flight)
            .collect()
            .await;
        let seconds = started.elapsed().as_secs_f64();
        let mut times: Vec<f64> = answers.iter().map(|(time, _)| *time).collect();
        times.sort_by(f64::total_cmp);
        for row in answers.into_iter().flat_map(|(_, rows)| rows) {
            self.revisions
                .insert(row.id, row.rev.expect("a write of the ceiling failed"));
        }
        Ceiling {
            documents_per_second: count as f64 / seconds,
            request_median: times[times.len() / 2],
        }
    }

    async fn send(&self, body: String) -> (f64, Vec<Row>) {
        let started = Instant::now();
        let request = self.http.post(format!("{}/_bulk_docs", self.url));
        let request = request
            .header("content-type", "application/json")
            .body(body);
        let answer = request.send().await.unwrap().bytes().await.unwrap();
        let time = started.elapsed().as_secs_f64();
        (time, serde_json::from_slice(&answer).unwrap())
    }

    /// A node document as the server writes it.
    fn document(&self, number: usize, bytes: usize) -> String {
        let (node, now) = (node(number), Timestamp::now());
        let mut document = NodeDocument::new(&node, now);
        document.apply(&result(&node, bytes, self.content), now, Duration::ZERO);
        let json = document.to_json(&node, now).unwrap();
        let id = node.as_str();
        let revision = self
            .revisions
            .get(id)
            .map_or_else(String::new, |rev| format!("\"_rev\":\"{rev}\","));
        format!("{{\"_id\":\"{id}\",{revision}{}", &json.get()[1..])
    }

    /// Listens to changes: notes when each document was last seen to be written.
    pub(crate) fn listen(
        &self,
    ) -> (
        Arc<Mutex<HashMap<String, Instant>>>,
        tokio::task::JoinHandle<()>,
    ) {
        #[derive(Deserialize)]
        struct Change {
            id: String,
        }
        let seen: Arc<Mutex<HashMap<String, Instant>>> = Arc::default();
        let (http, url, writes) = (self.http.clone(), self.url.clone(), Arc::clone(&seen));
        let task = tokio::spawn(async move {
            let query = "_changes?feed=continuous&since=now&heartbeat=10000";
            let mut answer = http.get(format!("{url}/{query}")).send().await.unwrap();
            let mut rest = Vec::new();
            while let Ok(Some(chunk)) = answer.chunk().await {
                let now = Instant::now();
                rest.extend_from_slice(&chunk);
                while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                    if let Ok(change) = serde_json::from_slice::<Change>(&rest[..end]) {
                        writes.lock().unwrap().insert(change.id, now);
                    }
                    rest.drain(..=end);
                }
            }
        });
        (seen, task)
    }
}
