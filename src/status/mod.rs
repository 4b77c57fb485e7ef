//! The status page `/`: what this process is and how it does, for a person without any other tool.
//!
//! ```text
//! /readyz, metrics, rates, journal ─▶ Page ─▶ HTML
//! server: partitions, runs / client: spool, plugins ─▶ Report ─┘
//! ```
//!
//! Reads and changes nothing. Invariant: all foreign text is escaped, since [`page`] writes HTML only through maud; the
//! page needs no script and no other resource; its size is bounded.

pub mod client;
pub mod journal;
pub mod page;
pub mod rates;
pub mod server;
pub mod text;

use jiff::Timestamp;

use crate::telemetry::{Declared, Role, Snapshot};
use rates::Rates;

/// Counters whose rates are shown, with what they count.
pub type Watched = &'static [(&'static str, &'static dyn Declared)];

/// What a process is.
#[derive(Debug)]
pub struct About {
    /// Server or client.
    pub role: Role,
    /// Its host, or the client's node.
    pub name: String,
    /// When it started.
    pub started: Timestamp,
    /// The settings worth seeing, without secrets.
    pub settings: Vec<(&'static str, String)>,
}

impl About {
    /// A process that starts now.
    pub fn new(role: Role, name: String, settings: Vec<(&'static str, String)>) -> Self {
        Self {
            role,
            name,
            started: Timestamp::now(),
            settings,
        }
    }
}

/// What a report is made from.
#[derive(Debug)]
pub struct Seen<'a> {
    /// The metrics, now.
    pub metrics: &'a Snapshot,
    /// How fast the watched counters grow.
    pub rates: &'a Rates,
    /// Now.
    pub now: Timestamp,
}

/// What a server or client reports about itself.
#[derive(Debug, Default)]
pub struct Report {
    /// The headline.
    pub figures: Vec<Figure>,
    /// The details.
    pub tables: Vec<Table>,
}

/// One number of the headline.
#[derive(Debug)]
pub struct Figure {
    /// What it is.
    pub name: &'static str,
    /// The number with its unit.
    pub value: String,
    /// What it means, in a few words.
    pub note: String,
}

impl Figure {
    /// Makes the figure `name` with `value`.
    pub fn new(name: &'static str, value: String, note: &str) -> Self {
        Self {
            name,
            value,
            note: note.to_owned(),
        }
    }
}

/// A table. The first cell of each row names the row.
#[derive(Debug)]
pub struct Table {
    /// What it is about.
    pub title: &'static str,
    /// What to know when reading it.
    pub note: &'static str,
    /// The columns' heads.
    pub head: Vec<Column>,
    /// The cells.
    pub rows: Vec<Vec<String>>,
    /// Shown if there are no rows.
    pub empty: &'static str,
}

/// The head of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    /// Of text.
    Text(&'static str),
    /// Of numbers, aligned by their last digit.
    Number(&'static str),
}
