//! The agent: answers one command, or one tick of the schedule, with one result in the spool.
//!
//! Invariants: a command is acknowledged only after its result is durable in the spool. A command that is interrupted
//! before that goes back to the broker, and the next life of this client answers it. A plugin starts only after its
//! mark is durable (`marks.rs`), so one that takes the client down is not run at every start.
//!
//! While the disk does not take results (`keep.rs`), a command goes back to the broker after [`HOLD_MAX`]. The result
//! of a scheduled plugin is held for the plugin's `every`; then it is lost and counted.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::value::RawValue;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::command::{Decision, decide};
use super::execute::{Limits, Supervisor, execute};
use super::keep::KeepError;
use super::marks::{Begin, Execution, Mark, Marks};
use super::plugin::{FolderError, Plugin, Registry};
use super::publish::Outbox;
use super::spool::{Spool, is_full};
use super::{about, log_registry};
use crate::broker::Delivery;
use crate::hash::{self, HashError};
use crate::telemetry::{
    CommandOutcome, Plugin as PluginLabel, PluginOutcome, SpoolLoss, catalogue as c,
};
use crate::trace::{RunSpan, Step, TraceParent};
use crate::wire::{
    CLIENT_PLUGIN, Command, Content, DecodeCommandError, ErrorKind, Format, Group, NodeName,
    PluginError, PluginName,
};

/// Pause before a command goes back to the broker because its plugin cannot be marked, or its result cannot be made.
/// It prevents a tight loop of deliveries.
const UNKEPT_PAUSE: Duration = Duration::from_secs(10);
/// How long the result of a command is held while the disk does not take it: well within the broker's patience.
const HOLD_MAX: Duration = Duration::from_mins(5);

/// What all executions of a client share.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) node: NodeName,
    pub(super) groups: Vec<Group>,
    /// The folder of plugin files, and what it held when it was last read.
    pub(super) plugins: PathBuf,
    pub(super) loaded: RwLock<Arc<Loaded>>,
    pub(super) limits: Limits,
    pub(super) supervisor: Supervisor,
    pub(super) zstd_bytes_min: usize,
    /// One for each plugin that may run at once.
    pub(super) permits: Semaphore,
    pub(super) outbox: Outbox,
    pub(super) marks: Marks,
    /// Commands that could not be read.
    pub(super) unread: AtomicU64,
}

/// The plugins, and the report that the client makes of itself because of them.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) registry: Registry,
    /// The value of the built-in plugin.
    about: Box<RawValue>,
}

impl Loaded {
    pub(super) fn new(groups: &[Group], registry: Registry) -> Result<Self, serde_json::Error> {
        let about = about::about(groups, &registry)?;
        Ok(Self { registry, about })
    }
}

/// Why the plugins could not be read again.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReloadError {
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error("the client's own report cannot be made: {0}")]
    About(#[from] serde_json::Error),
    #[error("reading them failed: {0}")]
    Task(#[from] tokio::task::JoinError),
    #[error("the client cannot report itself: {0}")]
    Keep(#[from] KeepError),
}

/// The parts of a result besides names and time.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) format: Format,
    pub(super) duration: Option<Duration>,
    pub(super) content: Content,
}

/// What was done about a command.
#[derive(Debug)]
struct Done {
    outcome: CommandOutcome,
    answer: Answer,
    /// The mark of the plugin, if one ran.
    mark: Option<Mark>,
}

impl Done {
    fn without_run(outcome: CommandOutcome, error: PluginError) -> Self {
        Self {
            outcome,
            answer: declined(error),
            mark: None,
        }
    }

    fn interrupted() -> Self {
        Self::without_run(CommandOutcome::Interrupted, interrupted())
    }
}

impl Agent {
    /// Answers one delivery of the command queue. If dropped early, it kills what it runs and gives the delivery back.
    pub(super) async fn serve(self: Arc<Self>, delivery: Delivery, stop: CancellationToken) {
        let parent = TraceParent::of(&delivery.properties);
        let command = match Command::decode(&delivery.body) {
            Ok(command) => command,
            Err(error) => return self.ignore(delivery, &error, parent),
        };
        // Puts the run's id into every line logged from here on, whatever the level.
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
        let execution = execution(&command);
        if self.marks.has_ended(&execution) {
            tracing::info!(target: "vogeler::client", plugin = %command.plugin, "a command came again that is answered already");
            count(CommandOutcome::Repeated);
            return delivery.settler.ack();
        }
        let Some(done) = self.answer(&command, delivery.redelivered, stop).await else {
            return count(CommandOutcome::Requeued);
        };
        let Done {
            outcome,
            answer,
            mark,
        } = done;
        if let Some(span) = &mut span {
            self.note(span, &command, &answer);
        }
        let trace = span.as_ref().map(RunSpan::here);
        let kept = self
            .keep(command.plugin, trace, answer, HOLD_MAX, stop)
            .await;
        // A plugin that ran has ended, whatever became of its result. One that was interrupted keeps its mark until
        // its answer is kept: it must not run again just because nobody could be told.
        let is_interrupted = kept.is_ok() && outcome == CommandOutcome::Interrupted;
        self.unmark(mark, execution, is_interrupted).await;
        match kept {
            Ok(()) => {
                count(outcome);
                delivery.settler.ack();
            }
            Err(error) => {
                count(CommandOutcome::Requeued);
                tracing::error!(target: "vogeler::client", %error, "a result cannot be kept; its command goes back to the broker");
                pause(stop).await;
            }
        }
    }

    /// Removes the mark of an execution that has ended, or the mark behind an answer "interrupted".
    async fn unmark(&self, mark: Option<Mark>, execution: Execution, is_interrupted: bool) {
        let marks = self.marks.clone();
        let unmark = move || {
            if let Some(mark) = mark {
                mark.done();
            } else if is_interrupted {
                marks.answered(&execution);
            }
        };
        if let Err(error) = spawn_blocking(unmark).await {
            tracing::error!(target: "vogeler::client", %error, "a mark cannot be removed");
        }
    }

    /// Records in the trace what came of a command.
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
        let loaded = self.loaded();
        let Some(plugin) = loaded.registry.plugins.get(&name) else {
            return;
        };
        let Some(permit) = self.permit(&stop).await else {
            return;
        };
        let execution = Execution::Scheduled {
            plugin: name.clone(),
        };
        let done = match self.begin(execution.clone(), true).await {
            Ok(Begin::Run(mark)) => self.run(plugin, mark).await,
            Ok(Begin::Interrupted) => Done::interrupted(),
            Err(error) => {
                tracing::debug!(target: "vogeler::client", plugin = %name, %error, "a scheduled plugin is not run: the state folder cannot be written");
                return self.outbox.noted().lost(SpoolLoss::Unwritable, 1);
            }
        };
        drop(permit);
        let hold_max = plugin.every.unwrap_or(HOLD_MAX);
        let Done { answer, mark, .. } = done;
        let is_interrupted = mark.is_none();
        let kept = self.keep(name.clone(), None, answer, hold_max, &stop).await;
        match kept {
            Ok(()) => self.unmark(mark, execution, is_interrupted).await,
            Err(error) => {
                tracing::error!(target: "vogeler::client", plugin = %name, %error, "a result cannot be kept and is lost");
                self.outbox.noted().lost(SpoolLoss::Unwritable, 1);
                self.unmark(mark, execution, false).await;
            }
        }
    }

    /// Reports the scheduled plugins that were running when an earlier life of this client ended.
    pub(super) async fn report_interrupted(&self, stop: &CancellationToken) {
        for plugin in self.marks.interrupted_schedules() {
            let answer = declined(interrupted());
            let kept = self.keep(plugin.clone(), None, answer, Duration::ZERO, stop);
            match kept.await {
                Ok(()) => {
                    let execution = Execution::Scheduled { plugin };
                    self.unmark(None, execution, true).await;
                }
                Err(error) => {
                    tracing::error!(target: "vogeler::client", %plugin, %error, "it cannot be reported that a plugin was interrupted; it will be when the plugin is next due");
                }
            }
        }
    }

    /// Reads the plugin files again. Running plugins are not affected.
    pub(super) async fn reload(&self) -> Result<(), ReloadError> {
        let (before, folder, groups) = (self.loaded(), self.plugins.clone(), self.groups.clone());
        let told = before.about.get().to_owned();
        let load = move || {
            let registry = before.registry.reload(&folder)?;
            Ok::<_, ReloadError>(Loaded::new(&groups, registry)?)
        };
        let loaded = spawn_blocking(load).await??;
        log_registry(&self.node, &loaded.registry);
        self.outbox.noted().loaded(&loaded.registry);
        let is_news = loaded.about.get() != told;
        *self.loaded.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(loaded);
        if is_news {
            self.introduce().await?;
        }
        Ok(())
    }

    /// The plugins as they were last read.
    pub(super) fn loaded(&self) -> Arc<Loaded> {
        let loaded = self.loaded.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&loaded)
    }

    /// Reports the client itself.
    pub(super) async fn introduce(&self) -> Result<(), KeepError> {
        let answer = self.introduction()?;
        let stop = CancellationToken::new();
        self.keep(
            PluginName::new(CLIENT_PLUGIN)?,
            None,
            answer,
            Duration::ZERO,
            &stop,
        )
        .await
    }

    fn introduction(&self) -> Result<Answer, HashError> {
        let loaded = self.loaded();
        Ok(Answer {
            format: Format::Json,
            duration: None,
            content: Content::Value {
                json: loaded.about.clone(),
                hash: hash::content_hash(&loaded.about, &[])?,
            },
        })
    }

    /// The answer to a command, and what was done about it. None if the client stops before the plugin begins, or it
    /// cannot begin.
    async fn answer(
        &self,
        command: &Command,
        is_redelivered: bool,
        stop: &CancellationToken,
    ) -> Option<Done> {
        match decide(command, &self.loaded().registry, Timestamp::now()) {
            Decision::Run(_) => {}
            Decision::About => {
                return Some(Done {
                    outcome: CommandOutcome::Ran,
                    answer: self.introduction().ok()?,
                    mark: None,
                });
            }
            Decision::Decline(outcome, error) => return Some(Done::without_run(outcome, error)),
        }
        let _permit = self.permit(stop).await?;
        // The wait for the permit may have been long, and the plugins may have been read again meanwhile.
        let loaded = self.loaded();
        let plugin = match decide(command, &loaded.registry, Timestamp::now()) {
            Decision::Run(plugin) => plugin,
            Decision::Decline(outcome, error) => return Some(Done::without_run(outcome, error)),
            Decision::About => return None,
        };
        match self.begin(execution(command), is_redelivered).await {
            Ok(Begin::Run(mark)) => Some(self.run(plugin, mark).await),
            Ok(Begin::Interrupted) => Some(Done::interrupted()),
            Err(error) => {
                tracing::error!(target: "vogeler::client", plugin = %plugin.name, %error, "a plugin is not run: the state folder cannot be written; its command goes back to the broker");
                pause(stop).await;
                None
            }
        }
    }

    /// Tests whether the state folder can be written again, for when nothing else would find out.
    pub(super) async fn probe(self: Arc<Self>) {
        let marks = self.marks.clone();
        if let Ok(Ok(())) = spawn_blocking(move || marks.probe()).await {
            self.outbox.noted().unwritable(None);
        }
    }

    /// Marks what is about to run, durably.
    async fn begin(&self, execution: Execution, is_redelivered: bool) -> std::io::Result<Begin> {
        let begun = loop {
            let (marks, execution) = (self.marks.clone(), execution.clone());
            let begin = move || marks.begin(execution, is_redelivered);
            let begun = spawn_blocking(begin).await.map_err(std::io::Error::other)?;
            // A mark is small, and running a plugin is worth more than a superseded result.
            let is_full = begun.as_ref().is_err_and(is_full);
            let has_room = is_full && self.outbox.with(Spool::make_room).await.unwrap_or(false);
            if !has_room {
                break begun;
            }
        };
        let trouble = begun.as_ref().err().map(ToString::to_string);
        self.outbox.noted().unwritable(trouble);
        begun
    }

    async fn run(&self, plugin: &Plugin, mark: Mark) -> Done {
        Done {
            outcome: CommandOutcome::Ran,
            answer: self.execute(plugin).await,
            mark: Some(mark),
        }
    }

    async fn permit(&self, stop: &CancellationToken) -> Option<tokio::sync::SemaphorePermit<'_>> {
        tokio::select! {
            biased;
            () = stop.cancelled() => None,
            permit = self.permits.acquire() => permit.ok(),
        }
    }

    async fn execute(&self, plugin: &Plugin) -> Answer {
        let execution = execute(plugin, self.limits, &self.supervisor).await;
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
}

/// Drops a command that is meant for other nodes. Nothing runs, and nobody gets an answer, since nobody asked this
/// node.
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

fn execution(command: &Command) -> Execution {
    Execution::Command {
        plugin: command.plugin.clone(),
        run: command.run,
    }
}

async fn pause(stop: &CancellationToken) {
    tokio::select! {
        () = tokio::time::sleep(UNKEPT_PAUSE) => {}
        () = stop.cancelled() => {}
    }
}

/// The error for a plugin whose end nobody saw.
fn interrupted() -> PluginError {
    PluginError {
        kind: ErrorKind::Interrupted,
        message: "the client was ended while the plugin ran, maybe by the plugin itself; it is not run again for this"
            .to_owned(),
        exit: None,
        stderr: None,
    }
}

fn declined(error: PluginError) -> Answer {
    tracing::info!(target: "vogeler::client", kind = error.kind.as_str(), reason = error.message, "command declined");
    Answer {
        format: Format::Output,
        duration: None,
        content: Content::Error(error),
    }
}
