//! The agent: answers one command, or one tick of the schedule, with one result in the spool.
//!
//! Invariant: a command is acknowledged only after its result is durable in the spool; a command that is interrupted
//! before that goes back to the broker and is answered by the next life of this client.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::value::RawValue;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::command::{Decision, decide};
use super::envelope::{EncodeError, Envelope};
use super::execute::{Limits, execute};
use super::plugin::{Plugin, Registry};
use super::publish::Outbox;
use super::spool::SpoolError;
use crate::broker::Delivery;
use crate::hash::{self, HashError};
use crate::telemetry::{CommandOutcome, Plugin as PluginLabel, PluginOutcome, catalogue as c};
use crate::trace::{RunSpan, Step, TraceParent};
use crate::wire::{
    CLIENT_PLUGIN, Command, Content, DecodeCommandError, Format, NodeName, PluginName, PluginResult,
};

/// How long a command rests before it goes back to the broker because its result cannot be kept: a full disk must
/// not turn into a loop of deliveries.
const UNKEPT_PAUSE: Duration = Duration::from_secs(10);

/// What all executions of a client share.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) node: NodeName,
    pub(super) registry: Registry,
    pub(super) limits: Limits,
    pub(super) zstd_bytes_min: usize,
    /// The value of the built-in plugin.
    pub(super) about: Box<RawValue>,
    /// One for each plugin that may run at once.
    pub(super) permits: Semaphore,
    pub(super) outbox: Outbox,
    /// Commands that could not be read.
    pub(super) unread: AtomicU64,
}

/// What goes into a result beside names and time.
#[derive(Debug)]
struct Answer {
    format: Format,
    duration: Option<Duration>,
    content: Content,
}

/// Why a result is not in the spool.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeepError {
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error(transparent)]
    Hash(#[from] HashError),
    #[error(transparent)]
    Name(#[from] crate::wire::NameError),
    #[error("writing it failed: {0}")]
    Task(#[from] tokio::task::JoinError),
}

impl Agent {
    /// Answers one delivery of the command queue. Dropped early, it kills what it runs and gives the delivery back.
    pub(super) async fn serve(self: Arc<Self>, delivery: Delivery, stop: CancellationToken) {
        let parent = TraceParent::of(&delivery.properties);
        let command = match Command::decode(&delivery.body) {
            Ok(command) => command,
            Err(error) => return self.ignore(delivery, &error, parent),
        };
        // The run's id in every line that is logged from here on, whatever the level.
        let log = command
            .run
            .map(|run| tracing::error_span!(target: "vogeler::client", "command", %run));
        let log = log.unwrap_or_else(tracing::Span::none);
        self.serve_command(command, parent, delivery, &stop)
            .instrument(log)
            .await;
    }

    fn ignore(&self, delivery: Delivery, error: &DecodeCommandError, parent: Option<TraceParent>) {
        let unread = self.unread.fetch_add(1, Ordering::Relaxed) + 1;
        let run = parent.map(|parent| tracing::field::display(parent.run));
        tracing::warn!(target: "vogeler::client", run, %error, bytes = delivery.body.len(), unread, "a command cannot be read and is ignored");
        c::CLIENT_COMMANDS.of(CommandOutcome::Invalid).increment(1);
        delivery.settler.ack();
    }

    async fn serve_command(
        &self,
        command: Command,
        parent: Option<TraceParent>,
        delivery: Delivery,
        stop: &CancellationToken,
    ) {
        tracing::debug!(target: "vogeler::client", plugin = %command.plugin, "command received");
        let mut span = command
            .run
            .map(|run| RunSpan::start(Step::Plugin, run, parent));
        let count = |outcome| c::CLIENT_COMMANDS.of(outcome).increment(1);
        let Some((outcome, answer)) = self.answer(&command, stop).await else {
            return count(CommandOutcome::Requeued);
        };
        if let Some(span) = &mut span {
            self.note(span, &command, &answer);
        }
        let trace = span.as_ref().map(RunSpan::here);
        match self.keep(command.plugin, trace, answer).await {
            Ok(()) => {
                count(outcome);
                delivery.settler.ack();
            }
            Err(error) => {
                count(CommandOutcome::Requeued);
                tracing::error!(target: "vogeler::client", %error, "a result cannot be kept; its command goes back to the broker");
                tokio::select! {
                    () = tokio::time::sleep(UNKEPT_PAUSE) => {}
                    () = stop.cancelled() => {}
                }
            }
        }
    }

    /// Tells the trace what came of a command.
    fn note(&self, span: &mut RunSpan, command: &Command, answer: &Answer) {
        span.set("vogeler.node", &self.node);
        span.set("vogeler.plugin", &command.plugin);
        if let Content::Error(error) = &answer.content {
            span.set("vogeler.error", error.kind.as_str());
            span.fail(&error.message);
        }
    }

    /// Runs a plugin because its time has come.
    pub(super) async fn tick(self: Arc<Self>, name: PluginName, stop: CancellationToken) {
        let Some(plugin) = self.registry.plugins.get(&name) else {
            return;
        };
        let Some(answer) = self.run(plugin, &stop).await else {
            return;
        };
        if let Err(error) = self.keep(name, None, answer).await {
            tracing::error!(target: "vogeler::client", %error, "a result cannot be kept and is lost");
        }
    }

    /// Reports the client itself.
    pub(super) async fn introduce(&self) -> Result<(), KeepError> {
        let answer = self.introduction()?;
        self.keep(PluginName::new(CLIENT_PLUGIN)?, None, answer)
            .await
    }

    fn introduction(&self) -> Result<Answer, HashError> {
        Ok(Answer {
            format: Format::Json,
            duration: None,
            content: Content::Value {
                json: self.about.clone(),
                hash: hash::content_hash(&self.about, &[])?,
            },
        })
    }

    /// The answer to a command, and what was done about it; none if the client stops before it began.
    async fn answer(
        &self,
        command: &Command,
        stop: &CancellationToken,
    ) -> Option<(CommandOutcome, Answer)> {
        match decide(command, &self.registry, Timestamp::now()) {
            Decision::Run(plugin) => {
                let permit = self.permit(stop).await?;
                // It may have waited long for the permit.
                let answer = match decide(command, &self.registry, Timestamp::now()) {
                    Decision::Decline(outcome, error) => (outcome, declined(error)),
                    _ => (CommandOutcome::Ran, self.execute(plugin).await),
                };
                drop(permit);
                Some(answer)
            }
            Decision::About => Some((CommandOutcome::Ran, self.introduction().ok()?)),
            Decision::Decline(outcome, error) => Some((outcome, declined(error))),
        }
    }

    async fn run(&self, plugin: &Plugin, stop: &CancellationToken) -> Option<Answer> {
        let _permit = self.permit(stop).await?;
        Some(self.execute(plugin).await)
    }

    async fn permit(&self, stop: &CancellationToken) -> Option<tokio::sync::SemaphorePermit<'_>> {
        tokio::select! {
            biased;
            () = stop.cancelled() => None,
            permit = self.permits.acquire() => permit.ok(),
        }
    }

    async fn execute(&self, plugin: &Plugin) -> Answer {
        let execution = execute(plugin, self.limits).await;
        let millis = execution.duration.as_millis();
        let label = PluginLabel::of(&plugin.name);
        let outcome = PluginOutcome::from(&execution.content);
        c::CLIENT_PLUGIN_RUNS.of((label, outcome)).increment(1);
        let seconds = c::CLIENT_PLUGIN_SECONDS.of(label);
        seconds.record(execution.duration.as_secs_f64());
        match &execution.content {
            Content::Value { json, .. } => {
                tracing::info!(target: "vogeler::client", plugin = %plugin.name, millis, bytes = json.get().len(), "plugin ran");
            }
            Content::Error(error) => {
                tracing::warn!(target: "vogeler::client", plugin = %plugin.name, millis, kind = error.kind.as_str(), error = error.message, "plugin failed");
            }
        }
        Answer {
            format: plugin.format,
            duration: Some(execution.duration),
            content: execution.content,
        }
    }

    /// Puts the answer into the spool, as a result with the node's next sequence, of the run that `trace` is of.
    async fn keep(
        &self,
        plugin: PluginName,
        trace: Option<TraceParent>,
        answer: Answer,
    ) -> Result<(), KeepError> {
        let (node, zstd_bytes_min) = (self.node.clone(), self.zstd_bytes_min);
        let push = move |spool: &mut super::spool::Spool| {
            let now = Timestamp::now();
            let result = PluginResult {
                node,
                plugin: Some(plugin),
                seq: spool.next_seq(now),
                collected_at: now,
                run: trace.map(|trace| trace.run),
                format: answer.format,
                duration_ms: answer
                    .duration
                    .and_then(|took| u64::try_from(took.as_millis()).ok()),
                content: answer.content,
            };
            let envelope = Envelope::seal(&result, trace, zstd_bytes_min)?;
            match spool.push(result.seq, &envelope) {
                // Its plugin would print as much again.
                Err(error @ SpoolError::TooLarge { .. }) => {
                    let instead = envelope.instead(error.to_string());
                    spool.push(result.seq, &instead.ok_or(error)?)?;
                }
                pushed => drop(pushed?),
            }
            Ok::<_, KeepError>(())
        };
        self.outbox.with(push).await??;
        self.outbox.wake();
        Ok(())
    }
}

/// A command for nodes that this one is not among: nothing runs, and nobody is told, since nobody asked this node.
pub(super) fn refuse_stray(delivery: Delivery, is_news: bool) {
    let run = TraceParent::of(&delivery.properties).map(|parent| parent.run);
    let run = run.map(tracing::field::display);
    let key = delivery.routing_key.as_str();
    if is_news {
        tracing::warn!(target: "vogeler::client", run, key, "a command is not meant for this node and is not run; the queue is still bound for others");
    } else {
        tracing::debug!(target: "vogeler::client", run, key, "a command is not meant for this node and is not run");
    }
    c::CLIENT_COMMANDS.of(CommandOutcome::NotMeant).increment(1);
    delivery.settler.ack();
}

fn declined(error: crate::wire::PluginError) -> Answer {
    tracing::info!(target: "vogeler::client", kind = error.kind.as_str(), reason = error.message, "command declined");
    Answer {
        format: Format::Output,
        duration: None,
        content: Content::Error(error),
    }
}
