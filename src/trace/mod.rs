//! The trace of a run: one id through runner, client and server.
//!
//! The run's id is the trace id. Every log line about the run has it as `run`, and the header `traceparent` of command,
//! result and receipt carries it. With the feature `otlp`, and with `OTEL_EXPORTER_OTLP_ENDPOINT` set in the
//! environment, each of the three exports its step as a span. Invariant: a program that records no span passes on the
//! parent it received, so a trace has no gap where one of the three does not export.

#[cfg(feature = "otlp")]
#[path = "otlp.rs"]
mod export;
#[cfg(not(feature = "otlp"))]
#[path = "silent.rs"]
mod export;
mod parent;

use std::ffi::OsString;

pub use export::{Export, ExportError};
pub use parent::{BadTraceParent, HEADER, TraceParent};

use crate::wire::RunId;

/// Variables that say where the spans go, as OpenTelemetry names them; the second wins.
const ENDPOINTS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
];

/// The steps of a run that are spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// In the runner: from the command to the report.
    Run,
    /// In the client: from the command to the result in the spool.
    Plugin,
    /// In the server: from the delivery to its settlement.
    Result,
}

impl Step {
    /// The span's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Plugin => "plugin",
            Self::Result => "result",
        }
    }
}

/// A step of a run; its span ends when this is dropped.
#[derive(Debug)]
pub struct RunSpan {
    here: TraceParent,
    recorder: Option<export::Recorder>,
}

impl RunSpan {
    /// Begins `step` of `run`. Ignores a `parent` of another run: the message's body says which run it is.
    pub fn start(step: Step, run: RunId, parent: Option<TraceParent>) -> Self {
        let parent = parent.filter(|parent| parent.run == run);
        let recorder = export::Recorder::start(step, run, parent);
        let here = recorder
            .as_ref()
            .map(|recorder| recorder.here(run))
            .or(parent)
            .unwrap_or_else(|| TraceParent::generate(run));
        Self { here, recorder }
    }

    /// The parent for messages that follow from this step.
    pub fn here(&self) -> TraceParent {
        self.here
    }

    /// Notes a fact; the keys are `vogeler.…`.
    pub fn set(&mut self, key: &'static str, value: &(impl ToString + ?Sized)) {
        if let Some(recorder) = &mut self.recorder {
            recorder.set(key, value.to_string());
        }
    }

    /// Notes that the step failed, and why.
    pub fn fail(&mut self, why: &(impl ToString + ?Sized)) {
        if let Some(recorder) = &mut self.recorder {
            recorder.fail(why.to_string());
        }
    }
}

/// Whether spans are exported. If not, a caller with many steps need not make them.
pub fn is_exporting() -> bool {
    export::is_exporting()
}

/// The endpoint that the environment names for spans.
fn endpoint() -> Option<OsString> {
    let set = ENDPOINTS.iter().rev().filter_map(std::env::var_os);
    set.into_iter().find(|endpoint| !endpoint.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: without export a step passes on its parent, or begins the trace of its run, and never joins another run's.
    #[test]
    fn a_step_that_is_not_recorded_hands_on() {
        let run = RunId::generate();
        let first = RunSpan::start(Step::Run, run, None).here();
        assert_eq!(first.run, run);
        let second = RunSpan::start(Step::Plugin, run, Some(first)).here();
        assert_eq!(second, first);
        let other = RunId::generate();
        assert_eq!(
            RunSpan::start(Step::Result, other, Some(first)).here().run,
            other
        );
        assert!(!is_exporting());
    }
}
