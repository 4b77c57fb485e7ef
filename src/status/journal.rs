//! The journal: the last warnings and errors that this process logged.
//!
//! A layer of the log writes it, the status page reads it. Invariant: it holds at most `ENTRIES_MAX` entries of
//! `TEXT_MAX` characters; equal messages in a row are one entry with a count.

use std::collections::VecDeque;
use std::fmt::{self, Write};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Entries kept.
const ENTRIES_MAX: usize = 20;
/// Characters kept of one entry.
const TEXT_MAX: usize = 400;

/// The journal of this process: one per process, as logging is.
pub static JOURNAL: Journal = Journal(Mutex::new(VecDeque::new()));

/// The last warnings and errors.
#[derive(Debug)]
pub struct Journal(Mutex<VecDeque<Entry>>);

/// A warning or an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// When it was logged, the last time.
    pub at: Timestamp,
    /// Warning or error.
    pub level: Level,
    /// The stage that logged it.
    pub target: &'static str,
    /// Message and fields; it may hold foreign text.
    pub text: String,
    /// How often it was logged in a row.
    pub times: u64,
}

impl Journal {
    /// The entries, the newest first.
    pub fn newest_first(&self) -> Vec<Entry> {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.iter().rev().cloned().collect()
    }

    fn add(&self, entry: Entry) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = entries.back_mut()
            && (last.level, last.target, &last.text) == (entry.level, entry.target, &entry.text)
        {
            (last.at, last.times) = (entry.at, last.times + 1);
            return;
        }
        if entries.len() == ENTRIES_MAX {
            entries.pop_front();
        }
        entries.push_back(entry);
    }
}

/// The layer that writes the [`JOURNAL`].
#[derive(Debug)]
pub struct Recorder;

impl<S: Subscriber> Layer<S> for Recorder {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = *event.metadata().level();
        if level > Level::WARN {
            return;
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        JOURNAL.add(Entry {
            at: Timestamp::now(),
            level,
            target: event.metadata().target(),
            text: bounded(text.0),
            times: 1,
        });
    }
}

fn bounded(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(TEXT_MAX) {
        text.truncate(end);
        text.push('…');
    }
    text
}

/// The message, then `field=value` for each field.
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            let fields = std::mem::replace(&mut self.0, format!("{value:?}"));
            self.0.push_str(&fields);
        } else {
            // Writing to a string does not fail.
            write!(self.0, " {}={value:?}", field.name()).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// Goal: only warnings and errors are kept, with their fields; repeats are counted; memory is bounded whatever is
    /// logged.
    #[test]
    fn the_last_warnings_and_errors_are_kept() {
        let log = tracing_subscriber::registry().with(Recorder);
        tracing::subscriber::with_default(log, || {
            tracing::error!(target: "journal", error = %"no <b>route</b>", tries = 3, "store away");
            tracing::info!(target: "journal", "all is well");
            for _ in 0..3 {
                tracing::warn!(target: "journal", "{}", "ä".repeat(2 * TEXT_MAX));
            }
        });
        let entries = JOURNAL.newest_first();
        assert_eq!(entries.len(), 2, "{entries:?}");
        assert_eq!((entries[0].times, entries[0].level), (3, Level::WARN));
        assert_eq!(entries[0].text.chars().count(), TEXT_MAX + 1);
        assert_eq!(entries[1].text, "store away error=no <b>route</b> tries=3");
        let journal = Journal(Mutex::default());
        for number in 0..3 * ENTRIES_MAX {
            let text = number.to_string();
            journal.add(Entry {
                text,
                ..entries[1].clone()
            });
        }
        assert_eq!(journal.newest_first().len(), ENTRIES_MAX);
        assert_eq!(journal.newest_first()[0].text, "59");
    }
}
