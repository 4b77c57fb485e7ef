//! Dead letters, for the operator: what could not be stored, why, and what to do with it.
//!
//! Written by [`ingest`](crate::ingest), read by `vogeler admin dead`. Looking changes nothing. Invariant: a letter
//! leaves its queue when it was dropped on purpose, or when the broker has confirmed its message where it came from;
//! a crash in between leaves it in both places, and the server finds the copy stale or unchanged.

pub mod filter;
pub mod header;
pub mod letter;
mod reader;

use std::collections::HashSet;
use std::time::Duration;

use futures::future::join_all;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::broker::topology::QueueType;
use crate::broker::{Broker, BrokerError, Delivery, Message, Settler};

pub use filter::Filter;
pub use letter::Letter;
pub use reader::LETTERS_MAX;
use reader::Reader;

/// Messages replayed at once share round trips; all their bodies are in memory.
const REPLAYS_AT_ONCE: usize = 64;
const REPLAY_BYTES_MAX: usize = 32 << 20;

/// Why a look at the dead letters ended early. No letter is lost by any of these.
#[derive(Debug, thiserror::Error)]
pub enum DeadError {
    /// The broker.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// Two readers would see half of the letters each.
    #[error(
        "another `vogeler admin dead` has been at work for {waited:?}: try again when it is done"
    )]
    Busy {
        /// How long we waited.
        waited: Duration,
    },
    /// What was held is in the queue again, and would be seen twice.
    #[error("the connection broke while dead letters were read; none is lost: try again")]
    Interrupted,
    /// The broker has letters and delivers none.
    #[error("{ready} dead letters are in the queue, and the broker delivers none: try again")]
    Stuck {
        /// How many it has.
        ready: u64,
    },
    /// The operator's wish.
    #[error("stopped by a signal; what was not yet done is as it was")]
    Stopped,
}

/// Where dead letters are, and what ends a look at them early.
#[derive(Debug)]
pub struct DeadLetters<'a> {
    /// The broker that has them.
    pub broker: &'a dyn Broker,
    /// How it keeps them.
    pub queue_type: QueueType,
    /// Ends a look.
    pub stop: CancellationToken,
}

/// Which letters are meant, and whether it is done or only counted.
#[derive(Debug, Clone, Default)]
pub struct Job {
    /// Which.
    pub filter: Filter,
    /// At most so many, in the order of the queue.
    pub limit: Option<u64>,
    /// Count only.
    pub dry_run: bool,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Listing {
    /// The letters, the oldest first.
    pub letters: Vec<Letter>,
    /// How many were looked at.
    pub looked: u64,
}

/// What was done.
#[derive(Debug, Default)]
pub struct Report {
    /// Letters that the filter matched.
    pub matched: u64,
    /// Of these, replayed or dropped (or, in a dry run, would be).
    pub done: u64,
    /// Of these, not replayed, and why. They are still dead letters.
    pub refused: Vec<Refused>,
    /// How many were looked at.
    pub looked: u64,
    /// Why it ended early.
    pub stopped: Option<DeadError>,
}

/// A letter that cannot be replayed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// Which.
    pub id: String,
    /// Why.
    pub reason: String,
}

impl DeadLetters<'_> {
    /// The letters that `filter` matches: the oldest ones, at most `limit`. All are looked at, since the broker gives
    /// letters back in an order of its own.
    pub async fn list(&self, filter: &Filter, limit: Option<usize>) -> Result<Listing, DeadError> {
        let mut listing = Listing::default();
        let mut reader = self.open().await?;
        let result = async {
            while let Some(delivery) = reader.next().await? {
                let letter = Letter::read(&delivery.body, &delivery.properties);
                reader.hold(delivery.settler);
                if filter.matches(&letter) {
                    listing.letters.push(letter);
                }
            }
            Ok(())
        };
        let result = result.await;
        listing.looked = reader.looked();
        reader.close().await;
        listing
            .letters
            .sort_by(|a, b| (a.time, &a.id).cmp(&(b.time, &b.id)));
        listing.letters.truncate(limit.unwrap_or(usize::MAX));
        result.map(|()| listing)
    }

    /// The first letter that `id` names, whole, and the ids of others that it names as well.
    pub async fn find(&self, id: &str) -> Result<(Option<Whole>, Vec<String>), DeadError> {
        let filter = Filter {
            ids: vec![id.to_owned()],
            ..Filter::default()
        };
        let mut found: Option<Whole> = None;
        let mut others = Vec::new();
        let mut reader = self.open().await?;
        let result = async {
            while let Some(delivery) = reader.next().await? {
                let letter = Letter::read(&delivery.body, &delivery.properties);
                let Delivery {
                    body,
                    properties,
                    settler,
                    ..
                } = delivery;
                reader.hold(settler);
                if !filter.matches(&letter) {
                    continue;
                }
                match &found {
                    None => {
                        found = Some(Whole {
                            letter,
                            properties,
                            body,
                        });
                    }
                    Some(first) if first.letter.id == letter.id => {}
                    Some(_) => others.push(letter.id),
                }
            }
            Ok(())
        };
        let result = result.await;
        reader.close().await;
        result.map(|()| (found, others))
    }

    /// Takes the letters that `job` means out of the queue, for good.
    pub async fn drop_letters(&self, job: &Job) -> Result<Report, DeadError> {
        let mut report = Report::default();
        let mut reader = self.open().await?;
        let result = async {
            while let Some(delivery) = next(&mut reader, job, &report).await? {
                let letter = Letter::read(&delivery.body, &delivery.properties);
                if !job.filter.matches(&letter) {
                    reader.hold(delivery.settler);
                    continue;
                }
                report.matched += 1;
                if job.dry_run {
                    reader.hold(delivery.settler);
                } else {
                    reader.take_out(delivery.settler)?;
                }
                report.done += 1;
            }
            Ok(())
        };
        report.stopped = result.await.err();
        report.looked = reader.looked();
        reader.close().await;
        Ok(report)
    }

    /// Publishes the letters that `job` means where they came from, and takes each out of the queue once its message
    /// is confirmed. A letter that comes back meanwhile is not replayed again.
    pub async fn replay(&self, job: &Job) -> Result<Report, DeadError> {
        let mut report = Report::default();
        let mut reader = self.open().await?;
        report.stopped = self.replay_all(&mut reader, job, &mut report).await.err();
        report.looked = reader.looked();
        reader.close().await;
        Ok(report)
    }

    async fn replay_all(
        &self,
        reader: &mut Reader<'_>,
        job: &Job,
        report: &mut Report,
    ) -> Result<(), DeadError> {
        let mut replayed = HashSet::new();
        let mut batch = Batch::default();
        while let Some(delivery) = next(reader, job, report).await? {
            let letter = Letter::read(&delivery.body, &delivery.properties);
            let came_back = letter.replays > 0 && replayed.contains(&letter.id);
            if came_back || !job.filter.matches(&letter) {
                reader.hold(delivery.settler);
                continue;
            }
            report.matched += 1;
            match letter::original(delivery.body, &delivery.properties) {
                Ok(_) if job.dry_run => {
                    report.done += 1;
                    reader.hold(delivery.settler);
                }
                Ok(message) => {
                    replayed.insert(letter.id.clone());
                    batch.push(letter.id, message, delivery.settler);
                }
                Err(error) => {
                    report.refuse(letter.id, error.to_string());
                    reader.hold(delivery.settler);
                }
            }
            if batch.is_full() {
                self.publish(std::mem::take(&mut batch), reader, report)
                    .await?;
            }
        }
        self.publish(batch, reader, report).await
    }

    /// Publishes a batch; what is not confirmed stays a dead letter.
    async fn publish(
        &self,
        batch: Batch,
        reader: &mut Reader<'_>,
        report: &mut Report,
    ) -> Result<(), DeadError> {
        let publishes = batch
            .letters
            .into_iter()
            .map(async |(id, message, settler)| {
                let published = self.broker.publish(message).await;
                (id, settler, published)
            });
        let mut trouble = None;
        for (id, settler, published) in join_all(publishes).await {
            match published {
                // Published and not taken out: it is in both places, which is safe, and the operator hears of it.
                Ok(()) => {
                    report.done += 1;
                    if let Err(error) = reader.take_out(settler) {
                        trouble = Some(error);
                    }
                }
                Err(error) => {
                    reader.hold(settler);
                    report.refuse(id, error.to_string());
                    if !matches!(error, BrokerError::Unroutable { .. }) {
                        trouble = Some(error.into());
                    }
                }
            }
        }
        trouble.map_or(Ok(()), Err)
    }

    async fn open(&self) -> Result<Reader<'_>, DeadError> {
        Reader::open(self.broker, self.queue_type, self.stop.clone()).await
    }
}

/// A letter with everything.
#[derive(Debug)]
pub struct Whole {
    /// What its headers tell.
    pub letter: Letter,
    /// What travelled beside the body.
    pub properties: crate::broker::Properties,
    /// The body as sent.
    pub body: bytes::Bytes,
}

/// The next letter, unless as many are matched as wanted.
async fn next(
    reader: &mut Reader<'_>,
    job: &Job,
    report: &Report,
) -> Result<Option<Delivery>, DeadError> {
    if job.limit.is_some_and(|limit| report.matched >= limit) {
        return Ok(None);
    }
    reader.next().await
}

impl Report {
    fn refuse(&mut self, id: String, reason: String) {
        self.refused.push(Refused { id, reason });
    }
}

/// Messages to replay together.
#[derive(Debug, Default)]
struct Batch {
    letters: Vec<(String, Message, Settler)>,
    bytes: usize,
}

impl Batch {
    fn push(&mut self, id: String, message: Message, settler: Settler) {
        self.bytes += message.body.len();
        self.letters.push((id, message, settler));
    }

    fn is_full(&self) -> bool {
        self.letters.len() >= REPLAYS_AT_ONCE || self.bytes >= REPLAY_BYTES_MAX
    }
}
