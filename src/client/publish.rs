//! The publisher: sends the results in the spool to the broker, oldest first, one at a time.
//!
//! Invariant: a result leaves the spool only after the broker has confirmed it. While the broker is away, the
//! publisher retries with back-off for ever; the spool's bounds limit how much may wait meanwhile.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use super::envelope::Envelope;
use super::place::Place;
use super::spool::{Spool, SpoolError};
use super::vitals::Noted;
use crate::backoff::Backoff;
use crate::broker::{Broker, BrokerError};
use crate::telemetry::{PublishOutcome, catalogue as c};
use crate::wire::RunId;

/// The first pause after a failed publish is a share of this.
const PAUSE_BASE: Duration = Duration::from_millis(250);
/// Longest pause between two tries. A fleet that comes back at once is spread over it.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// The spool, shared by the executions that fill it and the publisher that empties it.
#[derive(Debug, Clone)]
pub(super) struct Outbox {
    spool: Arc<Mutex<Spool>>,
    filled: Arc<Notify>,
    noted: Noted,
}

impl Outbox {
    pub(super) fn new(spool: Spool) -> Self {
        Self {
            noted: spool.noted(),
            spool: Arc::new(Mutex::new(spool)),
            filled: Arc::new(Notify::new()),
        }
    }

    /// Calls `f` with the spool, on a thread that may wait for the disk.
    pub(super) async fn with<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Spool) -> T + Send + 'static,
    ) -> Result<T, tokio::task::JoinError> {
        let spool = Arc::clone(&self.spool);
        // Every method leaves the spool whole, so a panic elsewhere does not make it unusable.
        let call = move || f(&mut spool.lock().unwrap_or_else(PoisonError::into_inner));
        spawn_blocking(call).await
    }

    /// The health of the spool and of publishing.
    pub(super) fn noted(&self) -> Noted {
        self.noted.clone()
    }

    /// Wakes the publisher after a push.
    pub(super) fn wake(&self) {
        self.filled.notify_one();
    }
}

/// Publishes until `stop`. Then it tries each waiting result once more, until a publish fails or none waits. Two
/// clients of one name do not publish both: this one waits until its `place` allows it.
pub(super) async fn run(
    outbox: Outbox,
    broker: Arc<dyn Broker>,
    mut place: watch::Receiver<Place>,
    stop: CancellationToken,
) {
    let mut backoff = Backoff::new(PAUSE_BASE, PAUSE_MAX);
    loop {
        tokio::select! {
            biased;
            allowed = place.wait_for(Place::may_publish) => {
                // The sender is dropped only after the stop.
                if allowed.is_err() {
                    return;
                }
            }
            () = stop.cancelled() => return,
        }
        match publish_oldest(&outbox, broker.as_ref()).await {
            Ok(true) => {
                if backoff.tries() > 0 {
                    tracing::info!(target: "vogeler::client", "results are published again");
                }
                backoff.reset();
            }
            Ok(false) if stop.is_cancelled() => return,
            Ok(false) => {
                tokio::select! {
                    () = outbox.filled.notified() => {}
                    () = stop.cancelled() => {}
                }
            }
            Err(error) if stop.is_cancelled() => {
                let run = error.run();
                tracing::warn!(target: "vogeler::client", run, %error, "results stay in the spool until the next start");
                return;
            }
            Err(error) => {
                log(&error, backoff.tries());
                tokio::select! {
                    () = tokio::time::sleep(backoff.next_random()) => {}
                    () = stop.cancelled() => {}
                }
            }
        }
    }
}

/// Publishes the oldest waiting result. Returns whether there was one.
async fn publish_oldest(outbox: &Outbox, broker: &dyn Broker) -> Result<bool, PublishError> {
    let Some((seq, envelope)) = outbox.with(Spool::oldest).await?? else {
        return Ok(false);
    };
    let run = envelope.run();
    let started = Instant::now();
    let published = broker.publish(envelope.message()).await;
    record(&published, started.elapsed());
    if let Err(BrokerError::TooLarge {
        bytes, bytes_max, ..
    }) = published
    {
        publish_instead(outbox, broker, envelope, bytes, bytes_max).await?;
        return Ok(true);
    }
    published.map_err(|source| PublishError::Broker { source, run })?;
    outbox.noted.published();
    outbox.with(move |spool| spool.done(seq)).await?;
    let run = run.map(tracing::field::display);
    tracing::debug!(target: "vogeler::client", run, seq = seq.0, "result published");
    Ok(true)
}

/// A result that the broker will never take must not block the others. An error is published in its place, so that its
/// run gets an answer. That needs no disk, which may be full.
async fn publish_instead(
    outbox: &Outbox,
    broker: &dyn Broker,
    envelope: Envelope,
    bytes: u64,
    bytes_max: u64,
) -> Result<(), PublishError> {
    let run = envelope.run().map(tracing::field::display);
    tracing::error!(target: "vogeler::client", run, seq = envelope.seq.0, bytes, bytes_max, "a result is larger than the broker takes; it is set aside once an error is published in its place: raise max_message_size in rabbitmq.conf, or let the plugin print less");
    let message = format!(
        "the result of {bytes} bytes is larger than the broker's max_message_size of {bytes_max} bytes: raise it in rabbitmq.conf, or let the plugin print less"
    );
    let (run, seq) = (envelope.run(), envelope.seq);
    let instead = spawn_blocking(move || envelope.instead(message)).await?;
    let is_lost = match &instead {
        None => true,
        Some(instead) => {
            let published = broker.publish(instead.message()).await;
            match published {
                Ok(()) => {
                    outbox.noted.published();
                    false
                }
                Err(BrokerError::TooLarge { .. }) => true,
                Err(source) => return Err(PublishError::Broker { source, run }),
            }
        }
    };
    outbox
        .with(move |spool| spool.set_aside(seq, is_lost))
        .await?;
    Ok(())
}

fn record(published: &Result<(), BrokerError>, took: Duration) {
    let outcome = match published {
        Ok(()) => PublishOutcome::Confirmed,
        Err(BrokerError::Unroutable { .. }) => PublishOutcome::Returned,
        Err(BrokerError::TooLarge { .. }) => PublishOutcome::TooLarge,
        Err(_) => PublishOutcome::Failed,
    };
    c::CLIENT_PUBLISHED.of(outcome).increment(1);
    if published.is_ok() {
        let seconds = c::CLIENT_PUBLISH_SECONDS.get();
        seconds.record(took.as_secs_f64());
    }
}

/// Why the oldest result still waits.
#[derive(Debug, thiserror::Error)]
enum PublishError {
    #[error("{source}")]
    Broker {
        source: BrokerError,
        run: Option<RunId>,
    },
    #[error("the spool cannot be read: {0}")]
    Read(#[from] tokio::task::JoinError),
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

impl PublishError {
    /// The run whose result waits, for the log.
    fn run(&self) -> Option<tracing::field::DisplayValue<RunId>> {
        match self {
            Self::Broker { run, .. } => run.map(tracing::field::display),
            Self::Read(_) | Self::Spool(_) => None,
        }
    }
}

/// Logs the first failure as a warning, and the following ones, which say the same, at debug level.
fn log(error: &PublishError, tries: u32) {
    let run = error.run();
    if tries == 0 {
        tracing::warn!(target: "vogeler::client", run, %error, "a result cannot be published; it waits in the spool and is tried again");
    } else {
        tracing::debug!(target: "vogeler::client", run, %error, tries, "a result still cannot be published");
    }
}

#[cfg(test)]
mod tests {
    use super::super::envelope::tests::result;
    use super::super::spool::Bounds;
    use super::*;
    use crate::broker::memory::{MemoryBroker, too_large};
    use crate::broker::topology::{self, QueueType};
    use crate::wire::{Content, PluginResult, Seq};

    /// Goal: a result that the broker will never take makes way for an error, even if nothing can be written. If the
    /// error cannot be published, the result waits and is not lost.
    #[tokio::test]
    async fn what_is_too_large_needs_no_disk() {
        let state = tempfile::tempdir().unwrap();
        let bounds = Bounds {
            count_max: 10,
            bytes_max: 1_000_000,
        };
        let mut spool = Spool::open(state.path(), bounds).unwrap();
        for (seq, text) in [(1, "x".repeat(5_000)), (2, "small".to_owned())] {
            let envelope = Envelope::seal(&result(seq, &text), None, 100_000).unwrap();
            spool.push(Seq(seq), &envelope).unwrap();
        }
        // Nothing can be written from now on.
        std::fs::create_dir(state.path().join("spool/new")).unwrap();
        let outbox = Outbox::new(spool);
        let broker = MemoryBroker::new();
        broker.refuse(Some(too_large::<1_000>));
        // No queue takes the error yet.
        publish_oldest(&outbox, &broker).await.unwrap_err();
        assert_eq!(outbox.with(|spool| spool.len()).await.unwrap(), 2);

        let queue = topology::results_queue(0, 1, QueueType::Classic);
        let mut results = broker.consume(&queue, 10).await.unwrap();
        for seq in [1, 2] {
            assert!(publish_oldest(&outbox, &broker).await.unwrap());
            let delivery = results.next().await.unwrap();
            let result = PluginResult::decode(&delivery.body, jiff::Timestamp::now()).unwrap();
            assert_eq!(result.seq, Seq(seq));
            assert_eq!(matches!(result.content, Content::Error(_)), seq == 1);
            delivery.settler.ack();
        }
        assert!(!publish_oldest(&outbox, &broker).await.unwrap());
        assert_eq!(outbox.with(|spool| spool.dropped()).await.unwrap(), 0);
        let aside = state.path().join("spool/00000000000000000001.large");
        assert!(aside.exists());
    }
}
