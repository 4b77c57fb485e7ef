//! Tests of the whole run on the memory broker and store; the test plays the clients and a server.

use serde_json::value::RawValue;

use super::*;
use crate::broker::memory::MemoryBroker;
use crate::config::Config;
use crate::store::memory::MemoryStore;
use crate::wire::{Outcome, Receipt, RunId};

const LONG: Duration = Duration::from_hours(1);

fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

fn request(target: &str) -> RunRequest {
    RunRequest {
        run: RunId::generate(),
        plugin: "rpms".parse().unwrap(),
        target: target.parse().unwrap(),
        timeout: LONG,
    }
}

/// A client's queue, with a consumer from now on.
async fn client(broker: &MemoryBroker, name: &str, groups: &[&str]) -> Consumer {
    let groups: Vec<_> = groups.iter().map(|group| group.parse().unwrap()).collect();
    let queue = topology::node_queue(&node(name), &groups);
    broker.consume(&queue, 10).await.unwrap()
}

/// Hears one command, and sends the receipts that a server would send for these nodes' results.
async fn answer(broker: &MemoryBroker, client: &mut Consumer, nodes: &[&str]) -> Command {
    let delivery = client.next().await.unwrap();
    let command = Command::decode(&delivery.body).unwrap();
    let run = command.run.unwrap();
    let trace = TraceParent::of(&delivery.properties);
    assert_eq!(trace.map(|trace| trace.run), Some(run));
    delivery.settler.ack();
    publish_receipts(broker, run, command.plugin.as_str(), nodes).await;
    command
}

async fn publish_receipts(broker: &MemoryBroker, run: RunId, plugin: &str, nodes: &[&str]) {
    let receipts = nodes.iter().map(|name| Receipt {
        node: node(name),
        plugin: plugin.parse().unwrap(),
        outcome: Outcome::Stored,
        error: None,
        reason: None,
        copy: None,
    });
    let batch = ReceiptBatch::new(run, receipts.collect());
    let message = Message {
        exchange: Exchange::Receipts,
        routing_key: run.to_string(),
        body: serde_json::to_vec(&batch).unwrap().into(),
        properties: Properties::default(),
        persistent: false,
        mandatory: true,
    };
    broker.publish(message).await.unwrap();
}

/// A node document that holds `rpms`, collected for `run`.
fn known(store: &MemoryStore, name: &str, run: Option<RunId>, groups: &str, last_error: &str) {
    known_at("2026-11-22T14:00:00Z", store, name, run, groups, last_error);
}

/// The same, collected and stored at `at`.
fn known_at(
    at: &str,
    store: &MemoryStore,
    name: &str,
    run: Option<RunId>,
    groups: &str,
    last_error: &str,
) {
    let run = run.map_or("null".to_owned(), |run| format!("\"{run}\""));
    let json = format!(
        r#"{{"doc_type":"SystemRecord","updated_at":"{at}","rpms":[],"client":{{"groups":{groups}}},"vogeler":{{"plugins":{{"rpms":
        {{"seq":1,"collected_at":"{at}","checked_at":"{at}","run":{run},"hash":"x","duration_ms":1,"format":"json","last_error":{last_error}}}}}}}}}"#
    );
    store.overwrite(&node(name), RawValue::from_string(json).unwrap());
}

async fn run_to_end(broker: &MemoryBroker, store: &dyn Store, request: &RunRequest) -> Report {
    let stop = CancellationToken::new();
    run(broker, store, request, &mut |_| {}, &stop)
        .await
        .unwrap()
}

/// Goal: a run on all nodes ends as soon as every node that the store knows has answered, and counts a new one.
#[tokio::test]
async fn a_run_on_all_ends_with_the_last_answer() {
    let (broker, store) = (MemoryBroker::new(), MemoryStore::new());
    known(&store, "a", None, "[]", "null");
    known(&store, "b", None, "[]", "null");
    let mut a = client(&broker, "a", &[]).await;
    let request = request("all");
    let (report, command) = tokio::join!(
        run_to_end(&broker, &store, &request),
        answer(&broker, &mut a, &["a", "z", "b"])
    );
    assert!(report.complete, "{report:?}");
    assert_eq!((report.counts.answered, report.counts.new), (3, 1));
    assert_eq!(command.run, Some(request.run));
    assert_eq!(command.deadline, Some(report.deadline));
}

/// Goal: a run on a group reaches and expects its members only.
#[tokio::test]
async fn a_run_on_a_group_waits_for_its_members() {
    let (broker, store) = (MemoryBroker::new(), MemoryStore::new());
    known(&store, "a", None, r#"["web"]"#, "null");
    known(&store, "b", None, r#"["db"]"#, "null");
    let mut a = client(&broker, "a", &["web"]).await;
    let request = request("@web");
    let (report, _) = tokio::join!(
        run_to_end(&broker, &store, &request),
        answer(&broker, &mut a, &["a"])
    );
    assert!(
        report.complete && report.counts.expected == Some(1),
        "{report:?}"
    );
}

/// Goal: among named nodes, one without a queue is silent at once, while the run waits for the others.
#[tokio::test]
async fn a_named_node_without_a_queue_is_silent_at_once() {
    let (broker, store) = (MemoryBroker::new(), MemoryStore::new());
    let mut a = client(&broker, "a", &[]).await;
    let request = request("a,gone");
    let (report, _) = tokio::join!(
        run_to_end(&broker, &store, &request),
        answer(&broker, &mut a, &["a"])
    );
    assert!(!report.complete);
    assert_eq!(report.counts.answered, 1);
    assert_eq!(report.nodes.silent[0].node.as_str(), "gone");
    assert_eq!(report.nodes.silent[0].reason, NO_QUEUE);
}

/// Goal: at the deadline, the store decides for nodes whose receipts were lost: a result with the run's id is an
/// answer, with its error; a result of another run is not.
#[tokio::test(start_paused = true)]
async fn lost_receipts_are_made_good_from_the_store() {
    let (broker, store) = (MemoryBroker::new(), MemoryStore::new());
    let request = request("all");
    let refused =
        r#"{"timestamp":"2026-11-22T14:00:00Z","kind":"refused","message":"no plugin rpms"}"#;
    known(&store, "a", Some(request.run), "[]", "null");
    known(&store, "b", Some(request.run), "[]", refused);
    known(&store, "c", Some(RunId::generate()), "[]", "null");
    store.overwrite(
        &node("d"),
        RawValue::from_string(r#"{"vogeler":1}"#.to_owned()).unwrap(),
    );
    let report = run_to_end(&broker, &store, &request).await;
    assert_eq!(report.nodes.answered[0].node.as_str(), "a");
    assert_eq!(report.nodes.refused[0].failure.message, "no plugin rpms");
    let silent = report.nodes.silent.iter();
    let silent: Vec<_> = silent.map(|silent| silent.node.as_str()).collect();
    assert!(silent.contains(&"c"), "{silent:?}");
    assert!(report.duration_ms >= 3_600_000);
}

/// Goal: with the store away, no node is expected. The run says so, gathers until its deadline and is not complete.
#[tokio::test(start_paused = true)]
async fn with_the_store_away_it_gathers_to_the_deadline() {
    let broker = MemoryBroker::new();
    // Port 1 on loopback refuses.
    let mut config = Config::default();
    config.store.dsn = "couch://127.0.0.1:1/system_records".parse().unwrap();
    let store = crate::store::open(&config.store).unwrap();
    let mut a = client(&broker, "a", &[]).await;
    let request = request("all");
    let (report, _) = tokio::join!(
        run_to_end(&broker, &*store, &request),
        answer(&broker, &mut a, &["a"])
    );
    assert_eq!((report.complete, report.counts.expected), (false, None));
    assert_eq!((report.counts.answered, report.counts.new), (1, 1));
    assert!(
        report.notes[0].starts_with("nobody can say who should answer: "),
        "{:?}",
        report.notes
    );
}

/// Goal: a stop ends the wait with the report so far.
#[tokio::test]
async fn a_stop_ends_with_the_report_so_far() {
    let (broker, store) = (MemoryBroker::new(), MemoryStore::new());
    known(&store, "a", None, "[]", "null");
    known(&store, "b", None, "[]", "null");
    let mut a = client(&broker, "a", &[]).await;
    let stop = CancellationToken::new();
    let request = request("all");
    let mut observer = |run: &Run| {
        if run.counts().answered == 1 {
            stop.cancel();
        }
    };
    let (report, _) = tokio::join!(
        run(&broker, &store, &request, &mut observer, &stop),
        answer(&broker, &mut a, &["a"])
    );
    let report = report.unwrap();
    assert_eq!((report.counts.answered, report.counts.silent), (1, 0));
    // The deadline did not pass, so nobody knows what the node would have said.
    let open = &report.nodes.unknown[0];
    assert_eq!(open.reason, "the run was stopped before the deadline");
    assert_eq!(report.notes, ["stopped before the deadline"]);
}

/// Goal: `--no-wait` leaves the command in the queues and waits for nobody.
#[tokio::test]
async fn send_waits_for_nobody() {
    let (broker, store) = (MemoryBroker::new(), MemoryStore::new());
    known(&store, "a", None, "[]", "null");
    let mut a = client(&broker, "a", &[]).await;
    let request = request("all");
    let report = send(&broker, &store, &request).await.unwrap();
    assert_eq!(report.counts.heard(), 0);
    let delivery = a.next().await.unwrap();
    assert_eq!(delivery.properties.expiration, Some(LONG));
    delivery.settler.ack();
}

/// Goal: a node is unknown, not silent, once the link to the broker was lost, perhaps with its receipt.
#[tokio::test(start_paused = true)]
async fn a_lost_link_leaves_nobody_silent() {
    let (broker, store) = (MemoryBroker::new(), MemoryStore::new());
    known(&store, "a", None, "[]", "null");
    let request = request("all");
    let breaking = async {
        tokio::time::sleep(Duration::from_secs(9)).await;
        let reason = "a test".to_owned();
        broker.set_link(crate::broker::Link::Down { reason });
        broker.set_link(crate::broker::Link::Up);
    };
    let (report, ()) = tokio::join!(run_to_end(&broker, &store, &request), breaking);
    assert_eq!((report.counts.silent, report.counts.unknown), (0, 1));
    assert!(
        report.nodes.unknown[0].reason.contains("broke"),
        "{report:?}"
    );
}

/// Goal: a node whose schedule gave a result while the run waited is silent: it did not answer, and the reason says
/// what is in the store.
#[tokio::test(start_paused = true)]
async fn a_scheduled_result_is_no_answer() {
    let (broker, store) = (MemoryBroker::new(), MemoryStore::new());
    let now = Timestamp::now() + Duration::from_hours(1);
    known_at(&now.to_string(), &store, "a", None, "[]", "null");
    let report = run_to_end(&broker, &store, &request("all")).await;
    assert_eq!((report.counts.answered, report.counts.silent), (0, 1));
    let reason = &report.nodes.silent[0].reason;
    assert!(reason.contains("another run's newer result"), "{reason}");
}

/// What a run of `a` knows after reading out, with `meanwhile` happening at the broker.
async fn read_out(broker: &MemoryBroker, meanwhile: impl AsyncFnOnce(RunId)) -> Counts {
    let request = request("a");
    let expected = Expected::Nodes([node("a")].into());
    let mut run = Run::new(request.run, request.plugin.clone(), expected);
    let end = Instant::now() + LONG;
    let mut receipts = Receipts::listen(broker, &request, end).await.unwrap();
    let mut observer = |_: &Run| {};
    tokio::join!(
        receipts.read_out(&mut run, &mut observer),
        meanwhile(request.run)
    );
    run.end();
    run.counts()
}

/// Goal: if the broker cannot say whether it has more receipts, or never stops delivering them, no node is silent.
#[tokio::test(start_paused = true)]
async fn what_was_not_read_out_is_in_doubt() {
    let quiet = read_out(&MemoryBroker::new(), async |_| {}).await;
    assert_eq!((quiet.silent, quiet.unknown), (1, 0));
    let broker = MemoryBroker::new();
    let coming = read_out(&broker, async |run| {
        for _ in 0..200 {
            publish_receipts(&broker, run, "rpms", &["z"]).await;
            tokio::time::sleep(QUIET / 2).await;
        }
    });
    let coming = coming.await;
    assert_eq!((coming.silent, coming.unknown), (0, 1));
    let broker = MemoryBroker::new();
    let gone = read_out(&broker, async |_| broker.close().await).await;
    assert_eq!((gone.silent, gone.unknown), (0, 1));
}
