//! No export: this build lacks the feature `otlp`.

use std::convert::Infallible;

use super::{Step, TraceParent, endpoint};
use crate::wire::RunId;

/// Records a span; there is none.
#[derive(Debug)]
pub(super) struct Recorder(Infallible);

impl Recorder {
    pub(super) fn start(_: Step, _: RunId, _: Option<TraceParent>) -> Option<Self> {
        None
    }

    pub(super) fn here(&self, _: RunId) -> TraceParent {
        match self.0 {}
    }

    pub(super) fn set(&mut self, _: &'static str, _: String) {
        match self.0 {}
    }

    pub(super) fn fail(&mut self, _: String) {
        match self.0 {}
    }
}

/// The export of spans, which this build lacks.
#[derive(Debug)]
pub struct Export(());

/// The export cannot begin, which never happens here.
pub type ExportError = Infallible;

impl Export {
    /// Begins nothing, and logs so if the environment asks for an export.
    pub fn start(_service: &str) -> Result<Self, ExportError> {
        if endpoint().is_some() {
            tracing::info!(target: "vogeler::trace", "the environment asks for an export of traces; this build has none (cargo feature otlp)");
        }
        Ok(Self(()))
    }
}

pub(super) fn is_exporting() -> bool {
    false
}
