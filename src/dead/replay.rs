//! Replaying: a letter's message goes back to its origin, and the letter leaves the queue once the broker has
//! confirmed it.
//!
//! Invariant: a letter is taken out only after its message was confirmed; whatever fails, it stays.

use futures::future::join_all;

use super::letter::{self, Letter};
use super::reader::Reader;
use super::{DeadError, DeadLetters, Job, Report};
use crate::broker::{BrokerError, Message, Place};

/// Messages and bytes replayed at once. The messages share round trips; all their bodies are in memory.
const REPLAYS_AT_ONCE: usize = 256;
const REPLAY_BYTES_MAX: usize = 32 << 20;

/// Messages to replay together.
#[derive(Debug, Default)]
struct Batch {
    letters: Vec<(String, Message, Place)>,
    bytes: usize,
}

impl Batch {
    fn push(&mut self, id: String, message: Message, place: Place) {
        self.bytes += message.body.len();
        self.letters.push((id, message, place));
    }

    fn is_full(&self) -> bool {
        self.letters.len() >= REPLAYS_AT_ONCE || self.bytes >= REPLAY_BYTES_MAX
    }
}

impl DeadLetters<'_> {
    /// Publishes the letters that `job` means to their origin, and takes each out of the queue once its message is
    /// confirmed. A letter that comes back meanwhile queues behind those of this look, which does not reach it.
    pub async fn replay(&self, job: &Job) -> Result<Report, DeadError> {
        let mut report = Report::default();
        let mut reader = Reader::open(self).await?;
        let result = self.replay_all(&mut reader, job, &mut report).await;
        report.end(reader, result).await;
        Ok(report)
    }

    async fn replay_all(
        &self,
        reader: &mut Reader<'_>,
        job: &Job,
        report: &mut Report,
    ) -> Result<(), DeadError> {
        let mut batch = Batch::default();
        while job.wants_more(report) {
            let Some(browsed) = reader.next().await? else {
                break;
            };
            let letter = Letter::read(&browsed.body, &browsed.properties);
            if job.filter.matches(&letter) {
                report.matched += 1;
                match letter::original(browsed.body, &browsed.properties) {
                    Ok(_) if job.dry_run => report.done += 1,
                    Ok(message) => batch.push(letter.id, message, browsed.place),
                    Err(error) => report.refuse(letter.id, error.to_string()),
                }
            }
            if batch.is_full() || reader.must_settle() {
                let batch = std::mem::take(&mut batch);
                self.publish(batch, reader, report).await?;
            }
        }
        self.publish(batch, reader, report).await
    }

    /// Publishes a batch. A letter whose message is not confirmed stays. If a message was published but its letter
    /// cannot be taken out, it is in both places; that is safe, and the operator gets an error.
    async fn publish(
        &self,
        batch: Batch,
        reader: &mut Reader<'_>,
        report: &mut Report,
    ) -> Result<(), DeadError> {
        let publishes = batch.letters.into_iter();
        let publishes = publishes.map(async |(id, message, place)| {
            let published = self.broker.publish(message).await;
            (id, place, published)
        });
        let (mut trouble, mut done) = (None, Vec::new());
        for (id, place, published) in join_all(publishes).await {
            match published {
                Ok(()) => done.push(place),
                Err(error) => {
                    report.refuse(id, error.to_string());
                    // These errors concern one message; the others concern the broker.
                    let is_of_one = matches!(
                        error,
                        BrokerError::Unroutable { .. } | BrokerError::TooLarge { .. }
                    );
                    if !is_of_one {
                        trouble = Some(error.into());
                    }
                }
            }
        }
        report.done += done.len() as u64;
        reader.take_out(done).await?;
        trouble.map_or(Ok(()), Err)
    }
}
