//! The runner: asks nodes to run a plugin, and names who answered.
//!
//! A request goes in; a command goes out, receipts come back, and a report results. Invariants: the runner listens for
//! receipts before it asks, and reads every receipt that is there. It calls a node silent only if the store knows of
//! no answer either. If receipts may have been lost meanwhile, such a node is unknown.

pub mod answers;
pub mod progress;
pub mod report;
pub mod target;

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

pub use answers::{Answer, Counts, Expected, Failure, Kept, Run, Trace};
pub use report::Report;
pub use target::Target;

use crate::broker::topology::{self, Exchange};
use crate::broker::{Broker, BrokerError, Consumer, Delivery, Link, Message, Properties};
use crate::document::NodeDocument;
use crate::store::{Store, StoreError, StoredDocument};
use crate::trace::{RunSpan, Step, TraceParent};
use crate::wire::{Command, NodeName, PluginName, ReceiptBatch, RunId};

/// Receipt messages unsettled at once; each is a batch already.
const RECEIPTS_PREFETCH: u16 = 64;
/// Commands to single nodes in flight at once, so that their confirms share round trips.
const PUBLISHES_IN_FLIGHT: usize = 64;
/// Documents read at once when the store is asked about nodes without a conclusive receipt.
const LOAD_COUNT_MAX: usize = 100;
/// The queue of receipts counts as read if none comes for this long and the broker has none either.
const QUIET: Duration = Duration::from_millis(200);
/// Longest time to read the remaining receipts after the deadline.
const READ_OUT_MAX: Duration = Duration::from_secs(10);
/// Longest wait for the receipts queue to be deleted at the end. The broker deletes it with the connection anyway.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
const NO_QUEUE: &str =
    "no client queue of this name: no client ever ran there, or none for 30 days";

/// What an operator asks for.
#[derive(Debug, Clone)]
pub struct RunRequest {
    /// The run's id. The caller makes it, so it can be shown before anybody answers.
    pub run: RunId,
    /// Which plugin to run.
    pub plugin: PluginName,
    /// Whom to ask.
    pub target: Target,
    /// How long clients may take. After that the command expires.
    pub timeout: Duration,
}

/// Why nothing was asked.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The broker did not take the command.
    #[error("the command was not sent: {0}")]
    Broker(#[from] BrokerError),
    /// The command cannot be written.
    #[error("the command cannot be written: {0}")]
    Encode(#[from] serde_json::Error),
}

/// A command that the broker has, and which nodes should answer, as far as known.
#[derive(Debug)]
struct Asked {
    run: Run,
    notes: Vec<String>,
}

/// Asks, and waits until all expected nodes have answered, the timeout is over, or `stop` is cancelled. `observer`
/// sees the run when it begins and after every change.
pub async fn run(
    broker: &dyn Broker,
    store: &dyn Store,
    request: &RunRequest,
    observer: &mut (dyn FnMut(&Run) + Send),
    stop: &CancellationToken,
) -> Result<Report, RunError> {
    let mut span = RunSpan::start(Step::Run, request.run, None);
    let report = ask_and_gather(broker, store, request, observer, stop, span.here())
        .instrument(log_span(request.run))
        .await;
    finish(&mut span, request, report)
}

/// Puts the run's id into every line logged within, whatever the level.
fn log_span(run: RunId) -> tracing::Span {
    tracing::error_span!(target: "vogeler::runner", "run", %run)
}

/// Records in the log and the trace how the run went.
fn finish(
    span: &mut RunSpan,
    request: &RunRequest,
    report: Result<Report, RunError>,
) -> Result<Report, RunError> {
    span.set("vogeler.plugin", &request.plugin);
    span.set("vogeler.target", &request.target);
    match &report {
        Ok(report) => {
            let summary = report.summary();
            span.set("vogeler.summary", &summary);
            tracing::debug!(target: "vogeler::runner", run = %request.run, summary, "the runner is done");
        }
        Err(error) => span.fail(error),
    }
    report
}

async fn ask_and_gather(
    broker: &dyn Broker,
    store: &dyn Store,
    request: &RunRequest,
    observer: &mut (dyn FnMut(&Run) + Send),
    stop: &CancellationToken,
    place: TraceParent,
) -> Result<Report, RunError> {
    let (start, began) = (Instant::now(), Timestamp::now());
    let end = start + request.timeout;
    let deadline = deadline(request.timeout);
    let mut receipts = Receipts::listen(broker, request, end).await?;
    let mut asked = match ask(broker, store, request, deadline, place).await {
        Ok(asked) => asked,
        Err(error) => {
            receipts.consumer.close(CLOSE_TIMEOUT).await;
            return Err(error);
        }
    };
    observer(&asked.run);
    if let Some(note) = receipts.gather(&mut asked.run, end, observer, stop).await {
        asked.notes.push(note);
    }
    receipts.read_out(&mut asked.run, observer).await;
    receipts.consumer.close(CLOSE_TIMEOUT).await;
    if let Err(error) = ask_store(store, &mut asked.run, began).await {
        asked.notes.push(format!(
            "the store could not be asked about nodes without a receipt: {error}"
        ));
    }
    asked.run.end();
    observer(&asked.run);
    Ok(Report::new(
        &asked.run,
        &request.target,
        deadline,
        start.elapsed(),
        asked.notes,
    ))
}

/// Asks, and does not wait. Returns what is known already: nodes without a queue, and what the store said.
pub async fn send(
    broker: &dyn Broker,
    store: &dyn Store,
    request: &RunRequest,
) -> Result<Report, RunError> {
    let start = Instant::now();
    let deadline = deadline(request.timeout);
    let mut span = RunSpan::start(Step::Run, request.run, None);
    let asked = ask(broker, store, request, deadline, span.here())
        .instrument(log_span(request.run))
        .await;
    let report = asked.map(|asked| {
        Report::new(
            &asked.run,
            &request.target,
            deadline,
            start.elapsed(),
            asked.notes,
        )
    });
    finish(&mut span, request, report)
}

/// The deadline of a run that begins now. A timeout past the end of the calendar gives the calendar's end.
fn deadline(timeout: Duration) -> Timestamp {
    Timestamp::now()
        .checked_add(timeout)
        .unwrap_or(Timestamp::MAX)
}

/// Publishes the command.
async fn ask(
    broker: &dyn Broker,
    store: &dyn Store,
    request: &RunRequest,
    deadline: Timestamp,
    place: TraceParent,
) -> Result<Asked, RunError> {
    let command = Command {
        run: Some(request.run),
        plugin: request.plugin.clone(),
        deadline: Some(deadline),
        filter: None,
    };
    let mut properties = Properties {
        content_type: Some("application/json".to_owned()),
        message_id: Some(request.run.to_string()),
        expiration: Some(request.timeout),
        ..Properties::default()
    };
    place.put(&mut properties);
    let message = Message {
        exchange: Exchange::Commands,
        routing_key: String::new(),
        body: Bytes::from(command.encode()?),
        properties,
        persistent: true,
        mandatory: false,
    };
    let asked = |(expected, notes)| Asked {
        run: Run::new(request.run, request.plugin.clone(), expected),
        notes,
    };
    let routing_key = match &request.target {
        Target::All => topology::broadcast_key(),
        Target::Group(group) => topology::group_key(group),
        Target::Nodes(names) => {
            let mut asked = asked((Expected::Nodes(names.clone()), Vec::new()));
            ask_by_name(broker, message, &mut asked.run).await?;
            tracing::debug!(target: "vogeler::runner", plugin = %request.plugin, target = %request.target, "commands published");
            return Ok(asked);
        }
    };
    let message = Message {
        routing_key,
        ..message
    };
    // The store reads the whole fleet to find the nodes meant, so the command is published at the same time.
    let ((), expected) = tokio::try_join!(
        async {
            broker.publish(message).await?;
            tracing::debug!(target: "vogeler::runner", plugin = %request.plugin, target = %request.target, "command published");
            Ok::<_, BrokerError>(())
        },
        async { Ok(expect(store, &request.target).await) },
    )?;
    Ok(asked(expected))
}

/// The nodes that the target means, as far as the store knows them.
async fn expect(store: &dyn Store, target: &Target) -> (Expected, Vec<String>) {
    match store.nodes().await {
        Ok(known) => {
            let nodes = target.among(&known);
            let unknown = nodes.is_empty().then(|| {
                format!("the store knows no node of {target}: waiting for whoever answers")
            });
            (Expected::Nodes(nodes), unknown.into_iter().collect())
        }
        Err(error) => (
            Expected::Unknown,
            vec![format!(
                "nobody can say who should answer: {error}; waiting for whoever answers"
            )],
        ),
    }
}

/// Publishes one command per node. A node without a queue is silent at once. Fails only if no command was sent.
async fn ask_by_name(
    broker: &dyn Broker,
    message: Message,
    run: &mut Run,
) -> Result<(), BrokerError> {
    let nodes = run.unheard();
    let count = nodes.len();
    let sent = nodes.into_iter().map(|node| {
        let message = Message {
            routing_key: node.to_string(),
            mandatory: true,
            ..message.clone()
        };
        async move { (node, broker.publish(message).await) }
    });
    let mut sent = futures::stream::iter(sent).buffer_unordered(PUBLISHES_IN_FLIGHT);
    let mut failed = 0;
    while let Some((node, result)) = sent.next().await {
        let reason = match result {
            Ok(()) => continue,
            Err(BrokerError::Unroutable { .. }) => NO_QUEUE.to_owned(),
            Err(error) => {
                failed += 1;
                if failed == count {
                    return Err(error);
                }
                format!("the command was not sent: {error}")
            }
        };
        run.record(node, Answer::Silent(Some(reason)));
    }
    Ok(())
}

/// The run's queue of receipts.
struct Receipts<'a> {
    broker: &'a dyn Broker,
    queue: String,
    consumer: Consumer,
    /// Changes of the broker's link since we listen. If the connection goes, so does the queue with its receipts.
    link: watch::Receiver<Link>,
    session: Option<u64>,
}

impl<'a> Receipts<'a> {
    async fn listen(
        broker: &'a dyn Broker,
        request: &RunRequest,
        end: Instant,
    ) -> Result<Self, BrokerError> {
        let queue = topology::receipts_queue(request.run);
        let consumer = tokio::time::timeout_at(end, broker.consume(&queue, RECEIPTS_PREFETCH))
            .await
            .unwrap_or(Err(BrokerError::Unconfirmed {
                timeout: request.timeout,
            }))?;
        let mut link = broker.link();
        // If the link is down by now, it was lost after the queue was made.
        if *link.borrow_and_update() != Link::Up {
            link.mark_changed();
        }
        Ok(Self {
            broker,
            queue: queue.name,
            consumer,
            link,
            session: None,
        })
    }

    /// Takes receipts until there is nothing more to wait for. If it ends early, returns why.
    async fn gather(
        &mut self,
        run: &mut Run,
        end: Instant,
        observer: &mut (dyn FnMut(&Run) + Send),
        stop: &CancellationToken,
    ) -> Option<String> {
        while !run.is_settled() {
            let delivery = tokio::select! {
                biased;
                () = stop.cancelled() => {
                    run.doubt("the run was stopped before the deadline".to_owned());
                    return Some("stopped before the deadline".to_owned());
                }
                () = tokio::time::sleep_until(end) => return None,
                delivery = self.consumer.next() => delivery,
            };
            let Some(delivery) = delivery else {
                run.doubt("the broker ended the queue of receipts".to_owned());
                return Some("the broker ended the queue of receipts".to_owned());
            };
            self.take(run, delivery, observer);
        }
        None
    }

    /// Reads the remaining receipts, however long asking took: a node that answered in time is not silent. Notes
    /// whether some receipts may have been lost.
    async fn read_out(&mut self, run: &mut Run, observer: &mut (dyn FnMut(&Run) + Send)) {
        let give_up = Instant::now() + READ_OUT_MAX;
        while !run.is_settled() {
            if Instant::now() >= give_up {
                run.doubt(format!("receipts still came {READ_OUT_MAX:?} after the end of the run, and were not waited for"));
                break;
            }
            match tokio::time::timeout(QUIET, self.consumer.next()).await {
                Ok(Some(delivery)) => self.take(run, delivery, observer),
                Ok(None) => {
                    run.doubt("the broker ended the queue of receipts".to_owned());
                    break;
                }
                Err(_) => match self.ready().await {
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(reason) => {
                        run.doubt(reason);
                        break;
                    }
                },
            }
        }
        if self.link.has_changed().unwrap_or(true) {
            run.doubt("the connection to the broker broke meanwhile, with the receipts".to_owned());
        }
    }

    /// How many receipts the broker has for us; an error says why nobody knows.
    async fn ready(&self) -> Result<u64, String> {
        let depths = self.broker.depth(&[&self.queue]).await.map_err(|error| {
            format!("the broker cannot be asked whether it has more receipts: {error}")
        })?;
        let depth = depths.into_iter().next().flatten();
        depth
            .map(|depth| depth.ready)
            .ok_or_else(|| "the queue of receipts is gone".to_owned())
    }

    fn take(&mut self, run: &mut Run, delivery: Delivery, observer: &mut (dyn FnMut(&Run) + Send)) {
        if *self.session.get_or_insert(delivery.session) != delivery.session {
            run.doubt("the queue of receipts was made anew meanwhile".to_owned());
        }
        match serde_json::from_slice::<ReceiptBatch>(&delivery.body) {
            Ok(batch) if batch.run == run.id() => {
                if batch.lost > 0 {
                    run.doubt(format!("a server lost {} receipts of this run", batch.lost));
                }
                let mut changed = false;
                for receipt in batch.receipts {
                    tracing::debug!(target: "vogeler::runner", node = %receipt.node, outcome = receipt.outcome.as_str(), "receipt");
                    changed |= run.on_receipt(receipt);
                }
                if changed {
                    observer(run);
                }
            }
            Ok(batch) => {
                tracing::warn!(target: "vogeler::runner", run = %batch.run, "receipts of another run");
            }
            Err(error) => {
                tracing::warn!(target: "vogeler::runner", %error, "a message that is no receipts");
            }
        }
        delivery.settler.ack();
    }
}

/// Reads the documents of the nodes of which the receipts said too little.
async fn ask_store(store: &dyn Store, run: &mut Run, began: Timestamp) -> Result<(), StoreError> {
    let unheard = run.unheard();
    for nodes in unheard.chunks(LOAD_COUNT_MAX) {
        for (node, document) in store.load(nodes).await? {
            if let Some(trace) = trace_in(&node, &document, run, began) {
                run.on_trace(node, trace);
            }
        }
    }
    Ok(())
}

/// What a node document says of a run that began at `began`.
fn trace_in(
    node: &NodeName,
    document: &StoredDocument,
    run: &Run,
    began: Timestamp,
) -> Option<Trace> {
    let document = NodeDocument::parse(node, &document.json).ok()?;
    let state = document.plugins().get(run.plugin().as_str())?;
    let failure = state.last_error.clone();
    Some(if state.run == Some(run.id()) {
        Trace::Ours(failure.map(|failure| failure.error))
    } else if state.checked_at >= began && state.collected_at >= began && failure.is_none() {
        // Both clocks count: a result may wait for days in a spool and be stored only now, and a node's clock may be
        // ahead.
        Trace::Newer
    } else {
        Trace::Nothing
    })
}

#[cfg(test)]
mod tests;
