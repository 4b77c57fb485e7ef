//! The export of spans by OpenTelemetry's protocol over HTTP, configured by its standard environment.
//!
//! Spans go to the SDK's bounded queue. A thread of the SDK sends them in batches, so that nobody waits for the
//! collector; spans that do not fit are dropped. Invariant: a span without a parent has its run's trace id.

use std::cell::Cell;
use std::num::NonZeroU64;
use std::sync::OnceLock;
use std::time::Duration;

use opentelemetry::trace::{
    Span as _, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId,
    TraceState, Tracer, TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    IdGenerator, RandomIdGenerator, SdkTracer, SdkTracerProvider, Span,
};

use super::{Step, TraceParent, endpoint};
use crate::tls;
use crate::wire::RunId;

/// Longest wait for the last spans to be sent, so that an absent collector does not hold up the exit.
const FLUSH_MAX: Duration = Duration::from_secs(3);
/// Variable with the environment's name for this process.
const SERVICE_NAME: &str = "OTEL_SERVICE_NAME";

/// Set while spans are exported.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

thread_local! {
    /// The trace that the root span being made on this thread begins.
    static ROOT: Cell<Option<TraceId>> = const { Cell::new(None) };
}

/// Gives root spans the trace of their run.
#[derive(Debug, Default)]
struct RunIds(RandomIdGenerator);

impl IdGenerator for RunIds {
    fn new_trace_id(&self) -> TraceId {
        ROOT.take().unwrap_or_else(|| self.0.new_trace_id())
    }

    fn new_span_id(&self) -> SpanId {
        self.0.new_span_id()
    }
}

/// Records one span. Dropping it ends the span.
#[derive(Debug)]
pub(super) struct Recorder(Span);

impl Recorder {
    /// Begins the span of a step. None where nothing is exported.
    pub(super) fn start(step: Step, run: RunId, parent: Option<TraceParent>) -> Option<Self> {
        let tracer = TRACER.get()?;
        let kind = match step {
            Step::Run => SpanKind::Producer,
            Step::Plugin | Step::Result => SpanKind::Consumer,
        };
        let builder = tracer.span_builder(step.name()).with_kind(kind);
        let before = Context::new();
        let context = if let Some(parent) = parent {
            before.with_remote_span_context(context(parent))
        } else {
            ROOT.set(Some(TraceId::from(run.trace())));
            before
        };
        let span = builder.start_with_context(tracer, &context);
        ROOT.set(None);
        let mut recorder = Self(span);
        recorder.set("vogeler.run", run.to_string());
        Some(recorder)
    }

    pub(super) fn here(&self, run: RunId) -> TraceParent {
        let context = self.0.span_context();
        let span = u64::from_be_bytes(context.span_id().to_bytes());
        TraceParent {
            run,
            span: NonZeroU64::new(span).unwrap_or(NonZeroU64::MIN),
            is_sampled: context.is_sampled(),
        }
    }

    pub(super) fn set(&mut self, key: &'static str, value: String) {
        self.0.set_attribute(KeyValue::new(key, value));
    }

    pub(super) fn fail(&mut self, why: String) {
        self.0.set_status(Status::error(why));
    }
}

fn context(parent: TraceParent) -> SpanContext {
    let flags = TraceFlags::default().with_sampled(parent.is_sampled);
    let trace = TraceId::from(parent.run.trace());
    let span = SpanId::from(parent.span.get());
    SpanContext::new(trace, span, flags, true, TraceState::NONE)
}

/// The export of spans. Dropping it sends the last ones and ends the export.
#[derive(Debug)]
pub struct Export(Option<SdkTracerProvider>);

/// The export cannot begin: the environment's settings are not understood.
#[derive(Debug, thiserror::Error)]
#[error("traces cannot be exported: {0}; look at the variables OTEL_EXPORTER_OTLP_…")]
pub struct ExportError(#[from] ExporterBuildError);

impl Export {
    /// Begins to export as `service` if the environment names an endpoint; otherwise does nothing.
    pub fn start(service: &str) -> Result<Self, ExportError> {
        if endpoint().is_none() {
            return Ok(Self(None));
        }
        tls::install_crypto_provider();
        let exporter = SpanExporter::builder().with_http().build()?;
        let mut resource = Resource::builder();
        if std::env::var_os(SERVICE_NAME).is_none() {
            resource = resource.with_service_name(service.to_owned());
        }
        let provider = SdkTracerProvider::builder()
            .with_id_generator(RunIds::default())
            .with_resource(resource.build())
            .with_batch_exporter(exporter)
            .build();
        // The first export of a process wins: a second one (in tests) leaves its spans to the first.
        drop(TRACER.set(provider.tracer("vogeler")));
        tracing::debug!(target: "vogeler::trace", service, "traces are exported");
        Ok(Self(Some(provider)))
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        let ended = self
            .0
            .take()
            .map(|provider| provider.shutdown_with_timeout(FLUSH_MAX));
        if let Some(Err(error)) = ended {
            tracing::warn!(target: "vogeler::trace", %error, "the last traces were not exported");
        }
    }
}

pub(super) fn is_exporting() -> bool {
    TRACER.get().is_some()
}
