//! Dead letters, for the operator: what could not be stored, why, and what to do with it.
//!
//! [`ingest`](crate::ingest) writes them, and `vogeler admin dead` reads them. Looking changes nothing. Invariant: a
//! letter leaves its queue only when it is dropped on purpose, or when the broker has confirmed its message at its
//! origin. A crash in between leaves it in both places; the server then finds the copy stale or unchanged.

pub mod count;
pub mod filter;
pub mod header;
pub mod letter;
mod reader;
mod replay;

use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::broker::topology::QueueType;
use crate::broker::{Broker, BrokerError};

pub use count::Count;
pub use filter::Filter;
pub use letter::Letter;
use reader::Reader;

/// Refused letters that are listed by name. Past this, only their number is given.
const REFUSED_NAMED_MAX: usize = 100;
/// Further matches listed for an ambiguous id. The operator must write more of the id, so more would not help.
const OTHERS_MAX: usize = 10;
/// Letters dropped together. Consecutive ones take a single acknowledgement.
const DROPS_AT_ONCE: usize = 256;

/// Why a look at the dead letters ended early. None of these loses a letter.
#[derive(Debug, thiserror::Error)]
pub enum DeadError {
    /// The broker failed.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// Another reader is at work. Two readers would each see half of the letters.
    #[error(
        "another `vogeler admin dead` has been at work for {waited:?}: try again when it is done"
    )]
    Busy {
        /// How long we waited.
        waited: Duration,
    },
    /// The connection broke. The letters held are in the queue again, and would be seen twice.
    #[error("the connection broke while dead letters were read; none is lost: try again")]
    Interrupted,
    /// The broker has letters but delivers none.
    #[error("{ready} dead letters are in the queue, and the broker delivers none: try again")]
    Stuck {
        /// How many letters it has.
        ready: u64,
    },
    /// The output does not take the letters.
    #[error("cannot print: {0}")]
    Output(#[from] std::io::Error),
    /// The operator stopped it.
    #[error("stopped by a signal; what was not yet done is as it was")]
    Stopped,
}

/// Where dead letters are, and what ends a look at them early.
#[derive(Debug)]
pub struct DeadLetters<'a> {
    /// The broker that holds them.
    pub broker: &'a dyn Broker,
    /// The type of their queue.
    pub queue_type: QueueType,
    /// How far a look has come.
    pub progress: watch::Sender<Progress>,
    /// Ends a look early.
    pub stop: CancellationToken,
}

/// How far a look has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Letters looked at.
    pub looked: u64,
    /// Letters that were in the queue when it began.
    pub total: u64,
}

/// Which letters are meant, and whether to act on them or only count.
#[derive(Debug, Clone, Default)]
pub struct Job {
    /// Which letters.
    pub filter: Filter,
    /// The most letters to act on, in the order of the queue.
    pub limit: Option<u64>,
    /// Count only.
    pub dry_run: bool,
}

impl Job {
    fn wants_more(&self, report: &Report) -> bool {
        self.limit.is_none_or(|limit| report.matched < limit)
    }
}

/// How far a look went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Looked {
    /// Letters looked at.
    pub looked: u64,
    /// Of these, letters that the filter matched.
    pub matched: u64,
    /// Letters that one look could not reach.
    pub left_over: u64,
}

/// The outcome of a job.
#[derive(Debug, Default)]
pub struct Report {
    /// Letters that the filter matched.
    pub matched: u64,
    /// Of these, letters replayed or dropped (in a dry run, those that would be).
    pub done: u64,
    /// Of these, letters not replayed. They are still dead letters.
    pub refused: u64,
    /// The first refused letters, and why.
    pub refused_named: Vec<Refused>,
    /// Letters looked at.
    pub looked: u64,
    /// Letters that one look could not reach.
    pub left_over: u64,
    /// Why the look ended early.
    pub stopped: Option<DeadError>,
}

/// A letter that cannot be replayed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// The letter's id.
    pub id: String,
    /// Why.
    pub reason: String,
}

/// A whole letter, with its body.
#[derive(Debug)]
pub struct Whole {
    /// What its headers say.
    pub letter: Letter,
    /// The message properties.
    pub properties: crate::broker::Properties,
    /// The body as sent.
    pub body: bytes::Bytes,
}

impl DeadLetters<'_> {
    /// Passes the letters that `filter` matches to `show`, in the order of the queue (oldest first), at most `limit`.
    /// `show` must not block.
    pub async fn list(
        &self,
        filter: &Filter,
        limit: Option<u64>,
        mut show: impl AsyncFnMut(Letter) -> std::io::Result<()>,
    ) -> Result<Looked, DeadError> {
        let mut matched = 0;
        let mut reader = Reader::open(self).await?;
        let result = async {
            while limit.is_none_or(|limit| matched < limit) {
                let Some(browsed) = reader.next().await? else {
                    break;
                };
                let letter = Letter::read(&browsed.body, &browsed.properties);
                if filter.matches(&letter) {
                    matched += 1;
                    show(letter).await?;
                }
            }
            Ok(())
        };
        let result = result.await;
        let looked = Looked {
            looked: reader.looked(),
            matched,
            left_over: reader.left_over(),
        };
        reader.close().await?;
        result.map(|()| looked)
    }

    /// Counts the letters that `filter` matches.
    pub async fn count(&self, filter: &Filter) -> Result<(Count, Looked), DeadError> {
        let mut count = Count::default();
        let add = async |letter: Letter| {
            count.add(&letter);
            Ok(())
        };
        let looked = self.list(filter, None, add).await?;
        count.looked = looked.looked;
        Ok((count, looked))
    }

    /// The first letter that `id` names, whole, and up to `OTHERS_MAX` ids of other letters that it names as well.
    pub async fn find(&self, id: &str) -> Result<(Option<Whole>, Vec<String>), DeadError> {
        let filter = Filter {
            ids: vec![id.to_owned()],
            ..Filter::default()
        };
        let mut found: Option<Whole> = None;
        let mut others = Vec::new();
        let mut reader = Reader::open(self).await?;
        let result = async {
            while others.len() < OTHERS_MAX
                && let Some(browsed) = reader.next().await?
            {
                let letter = Letter::read(&browsed.body, &browsed.properties);
                if !filter.matches(&letter) {
                    continue;
                }
                match &found {
                    None => {
                        found = Some(Whole {
                            letter,
                            properties: browsed.properties,
                            body: browsed.body,
                        });
                    }
                    // The same message became a letter twice.
                    Some(first) if first.letter.id == letter.id => {}
                    Some(_) if others.contains(&letter.id) => {}
                    Some(_) => others.push(letter.id),
                }
            }
            Ok(())
        };
        let result = result.await;
        reader.close().await?;
        result.map(|()| (found, others))
    }

    /// Removes the letters that `job` means from the queue, for good.
    pub async fn drop_letters(&self, job: &Job) -> Result<Report, DeadError> {
        let mut report = Report::default();
        let mut reader = Reader::open(self).await?;
        let result = drop_all(&mut reader, job, &mut report).await;
        report.end(reader, result).await;
        Ok(report)
    }
}

async fn drop_all(
    reader: &mut Reader<'_>,
    job: &Job,
    report: &mut Report,
) -> Result<(), DeadError> {
    let mut places = Vec::new();
    let mut result = Ok(());
    while job.wants_more(report) {
        let browsed = match reader.next().await {
            Ok(Some(browsed)) => browsed,
            Ok(None) => break,
            // Letters found before the stop are still dropped: they are already counted.
            Err(error) => {
                result = Err(error);
                break;
            }
        };
        if job
            .filter
            .matches(&Letter::read(&browsed.body, &browsed.properties))
        {
            report.matched += 1;
            places.push(browsed.place);
        }
        if places.len() >= DROPS_AT_ONCE || reader.must_settle() {
            report.drop_out(reader, &mut places, job).await?;
        }
    }
    report.drop_out(reader, &mut places, job).await?;
    result
}

impl Report {
    async fn drop_out(
        &mut self,
        reader: &mut Reader<'_>,
        places: &mut Vec<crate::broker::Place>,
        job: &Job,
    ) -> Result<(), DeadError> {
        let places = std::mem::take(places);
        let count = places.len() as u64;
        if !job.dry_run {
            reader.take_out(places).await?;
        }
        self.done += count;
        Ok(())
    }

    fn refuse(&mut self, id: String, reason: String) {
        self.refused += 1;
        if self.refused_named.len() < REFUSED_NAMED_MAX {
            self.refused_named.push(Refused { id, reason });
        }
    }

    /// Closes the reader, and keeps the reason for an early end.
    async fn end(&mut self, reader: Reader<'_>, result: Result<(), DeadError>) {
        self.looked = reader.looked();
        self.left_over = reader.left_over();
        let closed = reader.close().await;
        self.stopped = result.and(closed).err();
    }
}
