//! Keeping: puts an answer into the spool as a result, and holds it while the disk does not take it.
//!
//! Goes in: an answer. Once it is kept, it is durable. Invariant: a result has its place in the node's order from the
//! moment it was made, however long it waits for the disk. The results held are bounded: one per running command and
//! one per plugin.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use super::agent::{Agent, Answer};
use super::envelope::{EncodeError, Envelope};
use super::spool::SpoolError;
use crate::backoff::Backoff;
use crate::hash::HashError;
use crate::trace::TraceParent;
use crate::wire::{PluginName, PluginResult, Seq};

/// Longest pause between two tries to write a held result.
const HOLD_PAUSE_MAX: Duration = Duration::from_secs(5);

/// Why a result is not in the spool.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeepError {
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error(transparent)]
    Hash(#[from] HashError),
    #[error(transparent)]
    Name(#[from] crate::wire::NameError),
    #[error("writing it failed: {0}")]
    Task(#[from] tokio::task::JoinError),
}

impl Agent {
    /// Puts the answer into the spool, as a result with the node's next sequence, for the run of `trace`. While the
    /// disk does not take it, it is held for `hold_max`, or until `stop`.
    pub(super) async fn keep(
        &self,
        plugin: PluginName,
        trace: Option<TraceParent>,
        answer: Answer,
        hold_max: Duration,
        stop: &CancellationToken,
    ) -> Result<(), KeepError> {
        let (seq, mut envelope) = self.seal(plugin, trace, answer).await?;
        let start = Instant::now();
        let mut backoff = Backoff::new(HOLD_PAUSE_MAX / 50, HOLD_PAUSE_MAX);
        let mut holding = None;
        loop {
            let sealed = envelope.clone();
            let pushed = self.outbox.with(move |spool| spool.push(seq, &sealed));
            let Err(error) = pushed.await? else {
                break;
            };
            if matches!(error, SpoolError::TooLarge { .. }) {
                // Running the plugin again would print as much again.
                envelope = envelope.instead(error.to_string()).ok_or(error)?;
                continue;
            }
            if hold_max.is_zero() {
                self.outbox.noted().unwritable(Some(error.to_string()));
            }
            if !error.is_retryable() || stop.is_cancelled() || start.elapsed() >= hold_max {
                return Err(error.into());
            }
            holding.get_or_insert_with(|| self.outbox.noted().hold(error.to_string()));
            tokio::select! {
                () = tokio::time::sleep(backoff.next_random()) => {}
                () = stop.cancelled() => {}
            }
        }
        drop(holding);
        self.outbox.wake();
        Ok(())
    }

    /// Makes a result of an answer. Its place in the node's order is fixed now, whenever it is written.
    async fn seal(
        &self,
        plugin: PluginName,
        trace: Option<TraceParent>,
        answer: Answer,
    ) -> Result<(Seq, Envelope), KeepError> {
        let (node, zstd_bytes_min) = (self.node.clone(), self.zstd_bytes_min);
        let now = Timestamp::now();
        let seq = self.outbox.with(move |spool| spool.next_seq(now)).await?;
        let seal = move || {
            let took = answer.duration.map(|took| took.as_millis());
            let result = PluginResult {
                node,
                plugin: Some(plugin),
                seq,
                collected_at: now,
                run: trace.map(|trace| trace.run),
                format: answer.format,
                duration_ms: took.and_then(|millis| u64::try_from(millis).ok()),
                content: answer.content,
            };
            Envelope::seal(&result, trace, zstd_bytes_min)
        };
        Ok((seq, spawn_blocking(seal).await??))
    }
}
