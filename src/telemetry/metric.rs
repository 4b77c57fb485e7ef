//! What a metric is: its entry in the catalogue, and the handles to record it by.
//!
//! A handle comes only from a catalogue entry, so nothing undeclared is recorded, and no label has a value outside its
//! set. Handles are made at first use and kept: recording costs an atomic load and an atomic add. Invariant: a metric
//! has at most as many series as its labels allow, and that number is known here.

use std::fmt;
use std::marker::PhantomData;
use std::sync::OnceLock;

use metrics::{SharedString, Unit};

use super::label::{LabelSpec, Labels};

/// What the values of a metric mean over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, until the process restarts.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution, in buckets.
    Histogram,
}

impl Kind {
    /// Prometheus' word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// Which process exports a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// `vogeler server`.
    Server,
    /// `vogeler client`.
    Client,
    /// Either.
    Both,
}

impl Role {
    /// Whether a process of role `self` exports what is declared for `declared`.
    pub fn exports(self, declared: Self) -> bool {
        declared == Self::Both || declared == self
    }

    /// The word for it in the reference table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
            Self::Both => "server, client",
        }
    }
}

/// What the catalogue declares of a metric besides its kind and labels.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// Its full name.
    pub name: &'static str,
    /// What its values are measured in.
    pub unit: Unit,
    /// Who exports it.
    pub role: Role,
    /// What it counts or measures, in a sentence.
    pub help: &'static str,
}

/// A handle of the recorder: a counter, a gauge or a histogram.
pub trait Handle: Sized + Send + Sync + 'static {
    /// Which of the three.
    const KIND: Kind;

    /// Registers the series of these labels.
    fn register(name: &'static str, labels: Vec<metrics::Label>) -> Self;

    /// Tells the recorder unit and help.
    fn describe(entry: &Entry);
}

macro_rules! handle {
    ($handle:ty, $kind:ident, $register:ident, $describe:ident) => {
        impl Handle for $handle {
            const KIND: Kind = Kind::$kind;

            #[allow(clippy::disallowed_macros, reason = "the one place that makes handles")]
            fn register(name: &'static str, labels: Vec<metrics::Label>) -> Self {
                metrics::$register!(name, labels)
            }

            fn describe(entry: &Entry) {
                metrics::$describe!(entry.name, entry.unit, entry.help);
            }
        }
    };
}

handle!(metrics::Counter, Counter, counter, describe_counter);
handle!(metrics::Gauge, Gauge, gauge, describe_gauge);
handle!(metrics::Histogram, Histogram, histogram, describe_histogram);

/// A metric of kind `H` with labels `L`; the catalogue declares each as a static.
pub struct Metric<H, L = ()> {
    entry: Entry,
    /// A place for each possible series, filled at its first use.
    handles: OnceLock<Box<[OnceLock<H>]>>,
    labels: PhantomData<fn(L)>,
}

/// A counter with labels `L`.
pub type Counter<L = ()> = Metric<metrics::Counter, L>;
/// A gauge with labels `L`.
pub type Gauge<L = ()> = Metric<metrics::Gauge, L>;
/// A histogram with labels `L`.
pub type Histogram<L = ()> = Metric<metrics::Histogram, L>;

impl<H: Handle, L: Labels> Metric<H, L> {
    pub(super) const fn new(entry: Entry) -> Self {
        Self {
            entry,
            handles: OnceLock::new(),
            labels: PhantomData,
        }
    }

    /// The series of these labels.
    pub fn of(&self, labels: L) -> &H {
        let handles = self
            .handles
            .get_or_init(|| (0..L::COUNT).map(|_| OnceLock::new()).collect());
        // An index is below its count by the contract of `Labels`; a wrong one must not end the server.
        let place = handles.get(labels.index()).unwrap_or(&handles[0]);
        place.get_or_init(|| H::register(self.entry.name, recorded(labels.texts())))
    }
}

impl<H: Handle> Metric<H, ()> {
    /// The only series.
    pub fn get(&self) -> &H {
        self.of(())
    }
}

fn recorded(texts: Vec<(&'static str, SharedString)>) -> Vec<metrics::Label> {
    let label = |(name, text)| metrics::Label::new(name, text);
    texts.into_iter().map(label).collect()
}

impl<H, L> fmt::Debug for Metric<H, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Metric").field(&self.entry.name).finish()
    }
}

/// A metric of any kind and labels, as the catalogue lists it.
pub trait Declared: fmt::Debug + Sync {
    /// Name, unit, role and help.
    fn entry(&self) -> &Entry;

    /// Counter, gauge or histogram.
    fn kind(&self) -> Kind;

    /// Its labels and the values that they may have.
    fn labels(&self) -> Vec<LabelSpec>;

    /// Describes the metric to the recorder, and exports at 0 the series that are known before anything happens.
    fn announce(&self, role: Role);
}

impl<H: Handle, L: Labels> Declared for Metric<H, L> {
    fn entry(&self) -> &Entry {
        &self.entry
    }

    fn kind(&self) -> Kind {
        H::KIND
    }

    fn labels(&self) -> Vec<LabelSpec> {
        L::specs()
    }

    fn announce(&self, role: Role) {
        H::describe(&self.entry);
        for labels in L::at_start(role) {
            self.of(labels);
        }
    }
}
