//! The table: what was measured, against its target.

use serde::Serialize;

/// One row: a figure measured several times.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    case: &'static str,
    unit: &'static str,
    /// "≥" (at least) or "≤" (at most).
    bound: &'static str,
    target: f64,
    median: f64,
    samples: Vec<f64>,
    is_met: bool,
    /// The plain figures behind the row.
    note: String,
}

/// All rows measured on one store.
#[derive(Debug, Serialize)]
pub(crate) struct Table {
    store: String,
    cores: usize,
    rows: Vec<Row>,
}

/// The middle one.
pub(crate) fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Table {
    pub(crate) fn new(store: &str) -> Self {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        Self {
            store: store.to_owned(),
            cores,
            rows: Vec::new(),
        }
    }

    /// A figure that should be at least `target`.
    pub(crate) fn at_least(
        &mut self,
        case: &'static str,
        unit: &'static str,
        target: f64,
        samples: Vec<f64>,
        note: String,
    ) {
        self.push(case, unit, "≥", target, samples, note);
    }

    /// A figure that should be at most `target`.
    pub(crate) fn at_most(
        &mut self,
        case: &'static str,
        unit: &'static str,
        target: f64,
        samples: Vec<f64>,
        note: String,
    ) {
        self.push(case, unit, "≤", target, samples, note);
    }

    fn push(
        &mut self,
        case: &'static str,
        unit: &'static str,
        bound: &'static str,
        target: f64,
        samples: Vec<f64>,
        note: String,
    ) {
        if samples.is_empty() {
            return;
        }
        let median = median(&samples);
        let is_met = if bound == "≥" {
            median >= target
        } else {
            median <= target
        };
        self.rows.push(Row {
            case,
            unit,
            bound,
            target,
            median,
            samples,
            is_met,
            note,
        });
    }

    /// Prints it, as Markdown.
    pub(crate) fn print(&self) {
        println!("\n### {}, {} cores\n", self.store, self.cores);
        println!("| case | measured | target | met | |");
        println!("|---|---|---|---|---|");
        for row in &self.rows {
            let met = if row.is_met { "yes" } else { "**no**" };
            println!(
                "| {} | {:.2} {} | {} {:.2} | {met} | {} |",
                row.case, row.median, row.unit, row.bound, row.target, row.note
            );
        }
    }
}
