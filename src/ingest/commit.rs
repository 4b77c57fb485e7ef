//! The commit of one batch: load what is not cached, merge, write, and settle each document by its own verdict.
//!
//! Claims come in; every one leaves settled, dead-lettered or (dropped) given back to the broker. Invariants: a
//! ticket is settled only by its own document's verdict or by what was just read; whatever is not known to be
//! written is read again before it is written again; a foreign edit is read and merged, never overwritten.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::cache::{DocumentCache, Known, Times};
use super::coalesce::{Marks, Pending, marks_of, raise};
use super::dead_letter::{DeadLetter, DeadLetters};
use super::fit::Fit;
use super::gate::StoreGate;
use super::isolate::{BLAMES_MAX, Group};
use super::node::Claim;
use super::pace::Went;
use super::ticket::{Ticket, log_again};
use crate::backoff::Backoff;
use crate::document::{Applied, DocumentError, NodeDocument, Unreadable};
use crate::store::rules::DOCUMENT_TOO_LARGE;
use crate::store::{Revision, Store, StoreError, StoredDocument, Verdict, Verdicts, Write};
use crate::telemetry::{self, SplitReason, StoreRequest, catalogue};
use crate::wire::{NodeName, Outcome, PluginName, Seq};

/// First pause after a conflict or failure; it doubles from there.
const RETRY_BASE: Duration = Duration::from_millis(50);
/// Longest such pause. It is short, since a commit that pauses is one of the writes in flight and does nothing for other
/// nodes meanwhile.
const ROW_RETRY_MAX: Duration = Duration::from_secs(1);
/// Dead-letter reason of results with which a whole request fails, though the store takes the document without them.
const STORE_ERROR: &str = "store_error";
/// Error words of failed rows that concern the store, not the document: such failures pass. Any other word that persists
/// concerns the document (CouchDB's `unknown_error`: a `validate_doc_update` that throws what it should not).
const STORE_TROUBLES: [&str; 9] = [
    "away",
    "error",
    "internal_server_error",
    "missing_revision",
    "missing_row",
    "no_database",
    "protocol",
    "timeout",
    "unauthorized_request",
];

/// Those of [`STORE_TROUBLES`] that never count against the document, however often they come: a slow line must not cost
/// a large result.
const OUTAGES: [&str; 4] = ["away", "no_database", "timeout", "unauthorized_request"];

/// Dead-letter detail of a result that may be older than what is stored.
const UNORDERED: &str = "what the document tells of this plugin's last result cannot be read, and this one was not collected after the document's last write: it may be older than what is stored";

/// Settings of the commits.
#[derive(Debug, Clone, Copy)]
pub(super) struct CommitSettings {
    pub(super) freshness: Duration,
    pub(super) conflict_retries_max: u32,
    pub(super) retry_max: Duration,
    pub(super) hold_max: Duration,
    pub(super) document_cache_bytes_max: usize,
}

/// Commits batches to the store.
#[derive(Debug)]
pub(super) struct Committer {
    store: Arc<dyn Store>,
    gate: StoreGate,
    dead_letters: DeadLetters,
    settings: CommitSettings,
    /// Held only between two awaits.
    cache: Mutex<DocumentCache>,
    /// The drain is over: what is not written by now goes back to the broker.
    give_up: CancellationToken,
    /// Whether bookkeeping that cannot be read was logged already: the log has it once.
    is_unreadable_told: AtomicBool,
}

/// One node's share of a batch.
#[derive(Debug)]
struct Work {
    node: NodeName,
    /// The subscription of the node's latest result when its results were taken.
    session: u64,
    /// The gate's era when the document was read or taken from the cache.
    era: u64,
    pending: Vec<Pending<Ticket>>,
    finished: oneshot::Sender<(Marks, u64)>,
    /// Whether the node's actor knew the document when it handed this out.
    is_known: bool,
    /// Writes that were sent; after the first, finding our own result there means that it was stored.
    attempts: u32,
    /// Failures in a row, after each of which the store took the document without these results.
    blames: u32,
    /// Reads of this document that failed in requests that went well otherwise.
    failed_reads: u32,
    /// The search for the results that the store takes, once it refused the document with all of them.
    fit: Option<Fit>,
    /// Why the store refused the document last.
    refusal: Refusal,
    /// Results left out of this try: all pend again for the next one.
    left_out: Vec<Pending<Ticket>>,
    /// Results that were settled as unchanged: the node's actor remembers their sequences.
    unchanged: Vec<(PluginName, Seq)>,
}

/// Why the store refused a document.
#[derive(Debug, Clone, Default)]
struct Refusal {
    error: String,
    reason: String,
    /// Size of the document then, in bytes.
    bytes: usize,
}

/// The outcome of one pass of merging.
#[derive(Debug, Default)]
struct Merge {
    writes: Vec<Write>,
    merged: Vec<Merged>,
    /// What needs another pass.
    open: Vec<Work>,
}

/// A document as it would be after the merge.
#[derive(Debug)]
struct Merged {
    work: Work,
    document: NodeDocument,
    applied: Vec<Applied>,
    /// Size of the JSON sent to the store, in bytes; 0 if nothing is sent.
    bytes: usize,
}

impl Committer {
    pub(super) fn new(
        store: Arc<dyn Store>,
        gate: StoreGate,
        dead_letters: DeadLetters,
        settings: CommitSettings,
        give_up: CancellationToken,
    ) -> Self {
        Self {
            store,
            gate,
            dead_letters,
            settings,
            cache: Mutex::new(DocumentCache::new(settings.document_cache_bytes_max)),
            give_up,
            is_unreadable_told: AtomicBool::new(false),
        }
    }

    fn cache(&self) -> MutexGuard<'_, DocumentCache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Commits one batch; returns when every claim is settled or given back, and says how the writes went.
    pub(super) async fn commit(&self, claims: Vec<Claim>) -> Went {
        let mut letting_go = self.gate.letting_go();
        let mut went = Went::default();
        tokio::select! {
            biased;
            () = self.give_up.cancelled() => {}
            _ = letting_go.wait_for(|is_letting_go| *is_letting_go) => {}
            () = self.commit_all(claims, &mut went) => {}
        }
        went
    }

    async fn commit_all(&self, claims: Vec<Claim>, went: &mut Went) {
        let works: Vec<Work> = claims
            .into_iter()
            .filter(|claim| !claim.pending.is_empty())
            .map(Work::from)
            .collect();
        let mut open = vec![Group::new(works)];
        open.retain(|group| !group.works.is_empty());
        let mut backoff = Backoff::new(RETRY_BASE, ROW_RETRY_MAX.min(self.settings.retry_max));
        let started = Instant::now();
        while !open.is_empty() {
            let mut left = Vec::new();
            let mut is_paused = false;
            for group in std::mem::take(&mut open) {
                let tried = self.try_group(group, went).await;
                left.extend(tried.left);
                is_paused |= tried.is_away;
                if tried.is_away && started.elapsed() >= self.settings.hold_max {
                    // The store may answer other requests, but never this batch.
                    self.gate.let_go();
                    return;
                }
            }
            open = left;
            if !open.is_empty() && !is_paused {
                tokio::time::sleep(backoff.next_random()).await;
            }
        }
    }

    /// Tries a group once and returns what is left of it, in halves if it failed too often as a whole.
    async fn try_group(&self, mut group: Group<Work>, went: &mut Went) -> Tried {
        let turn = self.gate.turn().await;
        let attempt = self.attempt(std::mem::take(&mut group.works), went).await;
        let Some(failure) = attempt.failure else {
            return Tried::rows(attempt.open);
        };
        group.works = attempt.open;
        if failure.is_write {
            // A store that asks for a pause is busy, and has nothing against any document.
            if failure.error.retry_after().is_none() {
                group.count_failure();
            }
            group = match self.blame(group, &failure.error).await {
                Ok(tried) => return tried,
                Err(group) => group,
            };
            self.gate.close_to_writes(&failure.error);
        } else {
            self.gate.close(&failure.error);
        }
        drop(turn);
        let left = group.next();
        if left.len() > 1 {
            telemetry::record_split(SplitReason::Failed);
        }
        Tried {
            left,
            is_away: true,
        }
    }

    /// Finds out whether a document that fails alone is to blame, and treats it as refused once that is sure. Otherwise
    /// the store is to blame, and the group comes back as the error.
    async fn blame(
        &self,
        mut group: Group<Work>,
        error: &StoreError,
    ) -> Result<Tried, Group<Work>> {
        let is_searched = matches!(&*group.works, [work] if work.fit.is_some());
        if !(group.is_suspect() || is_searched) || !error.is_answer() {
            return Err(group);
        }
        let Some(mut work) = group.works.pop() else {
            return Err(group);
        };
        if !self.is_taken_without_results(&work).await {
            work.blames = 0;
            group.works.push(work);
            return Err(group);
        }
        work.blames += 1;
        if work.blames < BLAMES_MAX {
            group.works.push(work);
            return Ok(Tried {
                left: vec![group],
                is_away: false,
            });
        }
        work.blames = 0;
        group
            .works
            .push(work.refused(STORE_ERROR, &error.to_string()));
        Ok(Tried {
            left: vec![group],
            is_away: false,
        })
    }

    /// Whether the store takes this node's document as it stands, without the pending results. The request is the same,
    /// with the same id, on the same shard: only such a success tells a bad result from a bad store.
    async fn is_taken_without_results(&self, work: &Work) -> bool {
        let now = Timestamp::now();
        let Ok(mut loaded) = self.load(std::slice::from_ref(&work.node)).await else {
            return false;
        };
        let Ok(mut known) = self.read(&work.node, loaded.remove(&work.node), now) else {
            return false;
        };
        let Ok(json) = known.document.to_json(&work.node, now) else {
            return false;
        };
        let write = Write {
            id: work.node.clone(),
            revision: known.revision,
            json,
        };
        let written = self.store.write(vec![write]);
        let written = self.timed(StoreRequest::Write, written).await;
        let verdict = written.ok().and_then(|mut all| all.remove(&work.node));
        let is_taken = matches!(verdict, Some(Verdict::Stored(_)));
        if is_taken {
            self.gate.open();
        }
        is_taken
    }

    /// Makes one pass over the open work. Returns what is left, and the error that ended the pass, if one did.
    async fn attempt(&self, mut open: Vec<Work>, went: &mut Went) -> Attempt {
        let era = self.gate.era();
        for work in &mut open {
            work.era = era;
        }
        let mut known = self.known(&open);
        let loaded = match self.load_unknown(&mut open, &mut known).await {
            Ok(loaded) => loaded,
            Err(error) => {
                return Attempt {
                    open,
                    failure: Some(Failure {
                        error,
                        is_write: false,
                    }),
                };
            }
        };
        let now = Timestamp::now();
        let Merge {
            writes,
            merged,
            mut open,
        } = self.merge(open, &mut known, loaded, now);
        if writes.is_empty() {
            return Attempt {
                open,
                failure: None,
            };
        }
        telemetry::record_write(merged.iter().map(|merged| merged.bytes).sum());
        let started = Instant::now();
        let written = self
            .timed(StoreRequest::Write, self.store.write(writes))
            .await;
        went.slowest = went.slowest.max(started.elapsed());
        went.is_failed |= written.is_err();
        match written {
            Ok(verdicts) => {
                self.gate.open();
                open.extend(self.settle(merged, verdicts).await);
                Attempt {
                    open,
                    failure: None,
                }
            }
            Err(error) => {
                open.extend(merged.into_iter().map(|merged| merged.work));
                Attempt {
                    open,
                    failure: Some(Failure {
                        error,
                        is_write: true,
                    }),
                }
            }
        }
    }

    /// Takes out what the cache has of these nodes. Once a write was sent, its document is unknown until it is read.
    fn known(&self, open: &[Work]) -> HashMap<NodeName, Known> {
        let mut cache = self.cache();
        open.iter()
            .filter(|work| work.attempts == 0)
            .filter_map(|work| Some((work.node.clone(), cache.take(&work.node, work.times())?)))
            .collect()
    }

    /// Reads the documents that are not known. If a document that its node's actor knew is gone, somebody deleted it, and
    /// perhaps others: all that was known is then doubtful, and is read too.
    async fn load_unknown(
        &self,
        open: &mut [Work],
        known: &mut HashMap<NodeName, Known>,
    ) -> Result<HashMap<NodeName, StoredDocument>, StoreError> {
        let is_unknown = |work: &&Work| !known.contains_key(&work.node);
        let unknown: Vec<NodeName> = open.iter().filter(is_unknown).map(node_of).collect();
        let mut loaded = self.load(&unknown).await?;
        let is_gone = |work: &Work| work.is_known && !loaded.contains_key(&work.node);
        if open.iter().filter(is_unknown).any(is_gone) {
            let doubtful: Vec<NodeName> = known.drain().map(|(node, _)| node).collect();
            let era = open.first().map_or(0, |work| work.era);
            let era = self.gate.doubt(era);
            loaded.extend(self.load(&doubtful).await?);
            for work in open {
                work.era = era;
            }
        }
        Ok(loaded)
    }

    async fn load(
        &self,
        nodes: &[NodeName],
    ) -> Result<HashMap<NodeName, StoredDocument>, StoreError> {
        if nodes.is_empty() {
            return Ok(HashMap::new());
        }
        let loaded = self
            .timed(StoreRequest::Load, self.store.load(nodes))
            .await?;
        self.gate.answered();
        Ok(loaded)
    }

    async fn timed<T>(
        &self,
        kind: StoreRequest,
        request: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let started = Instant::now();
        let answer = request.await;
        telemetry::record_store_request(kind, started.elapsed(), &answer);
        answer
    }

    /// Merges results onto what was read. What needs no write is settled here; the rest comes back to be written.
    fn merge(
        &self,
        open: Vec<Work>,
        known: &mut HashMap<NodeName, Known>,
        mut loaded: HashMap<NodeName, StoredDocument>,
        now: Timestamp,
    ) -> Merge {
        let mut merge = Merge::default();
        for mut work in open {
            let stored = loaded.remove(&work.node);
            if let Some(why) = stored.as_ref().and_then(|it| it.failure.as_deref()) {
                merge.open.extend(self.after_failed_read(work, why));
                continue;
            }
            let known = if let Some(known) = known.remove(&work.node) {
                Ok(known)
            } else {
                self.read(&work.node, stored, now)
            };
            let Known {
                mut document,
                revision,
            } = match known {
                Ok(known) => known,
                Err(error) => {
                    self.refuse(work, "not_a_document", &error.to_string());
                    continue;
                }
            };
            self.choose(&mut work, &document, now);
            let freshness = self.settings.freshness;
            let applied: Vec<Applied> = work
                .pending
                .iter()
                .map(|p| document.apply(&p.result, now, freshness))
                .collect();
            if !applied.contains(&Applied::Changed) {
                let merged = Merged {
                    work,
                    document,
                    applied,
                    bytes: 0,
                };
                merge.open.extend(self.settle_all(merged, revision));
                continue;
            }
            let json = match document.to_json(&work.node, now) {
                Ok(json) => json,
                Err(error) => {
                    self.refuse(work, "not_a_document", &error.to_string());
                    continue;
                }
            };
            let bytes = json.get().len();
            merge.writes.push(Write {
                id: work.node.clone(),
                revision,
                json,
            });
            work.attempts += 1;
            if work.attempts > 1 {
                telemetry::record_retry();
            }
            merge.merged.push(Merged {
                work,
                document,
                applied,
                bytes,
            });
        }
        merge
    }

    /// Chooses which results to merge now. Results whose order cannot be read, and results that the store does not take
    /// in this document, become dead letters.
    fn choose(&self, work: &mut Work, document: &NodeDocument, now: Timestamp) {
        self.give_up(work, document);
        work.pending.append(&mut work.left_out);
        let judge = |pending: &Pending<Ticket>| {
            document.judge(&pending.result, now, self.settings.freshness)
        };
        let is_unordered = |pending: &mut Pending<Ticket>| judge(pending) == Applied::Unordered;
        for pending in work
            .pending
            .extract_if(.., is_unordered)
            .collect::<Vec<_>>()
        {
            self.refuse_one(work, pending, "bad_bookkeeping", UNORDERED);
        }
        let Some(fit) = work.fit else { return };
        // What needs no write is settled before the search goes on: it is no culprit.
        let is_settled = |pending: &mut Pending<Ticket>| judge(pending) != Applied::Changed;
        let settled: Vec<_> = work.pending.extract_if(.., is_settled).collect();
        if !settled.is_empty() {
            work.left_out = std::mem::replace(&mut work.pending, settled);
            return;
        }
        work.pending
            .sort_by_cached_key(|pending| document.growth(&pending.result));
        let count = fit.next(work.pending.len());
        work.left_out = work.pending.split_off(count);
    }

    /// Makes a dead letter of the result that was refused alone, and of all others if the search is hopeless.
    fn give_up(&self, work: &mut Work, document: &NodeDocument) {
        let Some(fit) = work.fit.filter(|fit| fit.gives_up()) else {
            return;
        };
        let mut given_up = std::mem::take(&mut work.pending);
        if fit.is_hopeless() {
            given_up.append(&mut work.left_out);
        }
        work.fit = Some(fit.given_up());
        let Refusal {
            error,
            reason,
            bytes,
        } = work.refusal.clone();
        for pending in given_up {
            if error == DOCUMENT_TOO_LARGE {
                let growth = document.growth(&pending.result);
                let detail = format!(
                    "it adds {growth} bytes to a document that the store refused at {bytes} bytes"
                );
                self.refuse_one(work, pending, &error, &detail);
            } else {
                self.refuse_one(work, pending, &error, &reason);
            }
        }
    }

    /// Settles row by row; conflicts and failed rows come back to be read, merged and written again.
    async fn settle(&self, merged: Vec<Merged>, mut verdicts: Verdicts) -> Vec<Work> {
        let mut open = Vec::new();
        for merged in merged {
            match verdicts.remove(&merged.work.node) {
                Some(Verdict::Stored(revision)) => {
                    telemetry::record_document(merged.bytes);
                    open.extend(self.settle_all(merged, Some(revision)));
                }
                Some(Verdict::Refused { error, reason }) if is_of_document(&error) => {
                    telemetry::record_refusal();
                    self.refuse(merged.work, &error, &reason);
                }
                Some(verdict @ Verdict::Refused { .. }) => {
                    telemetry::record_refusal();
                    open.push(merged.refused(verdict));
                }
                Some(Verdict::Conflict) => {
                    telemetry::record_conflict();
                    open.extend(self.again(merged.work, "conflict"));
                }
                Some(Verdict::Failed { error, reason }) => {
                    telemetry::record_failed_row();
                    open.extend(self.after_failed_row(merged.work, &error, &reason).await);
                }
                // A store that forgets a row says nothing about it.
                None => open.extend(self.again(merged.work, "no verdict")),
            }
        }
        open
    }

    /// Tries a failed row again. A row that keeps failing counts as refused if its error word concerns the document, or
    /// if the store takes the document without these results; otherwise the results go back to the broker.
    async fn after_failed_row(&self, mut work: Work, error: &str, reason: &str) -> Option<Work> {
        if self.may_try_again(&work) {
            return self.again(work, error);
        }
        if OUTAGES.contains(&error) {
            return self.again(work, error);
        }
        if STORE_TROUBLES.contains(&error) {
            if !self.is_taken_without_results(&work).await {
                return self.again(work, error);
            }
            work.blames += 1;
            if work.blames < BLAMES_MAX {
                log_again(&work.pending, error);
                return Some(work);
            }
        }
        Some(work.refused(error, reason))
    }

    /// Has a document read again that could not be read this time; the others are not affected. After
    /// `conflict_retries_max` retries its results go back to the broker.
    fn after_failed_read(&self, mut work: Work, why: &str) -> Option<Work> {
        telemetry::record_failed_row();
        work.failed_reads += 1;
        log_again(&work.pending, why);
        if work.failed_reads <= self.settings.conflict_retries_max {
            return Some(work);
        }
        warn!(target: "vogeler::ingest::commit", node = %work.node, why, "a document cannot be read: results go back to the broker");
        None
    }

    /// Settles all results of a document that stands as merged, tells the node what is known now, and keeps the document
    /// for the node's next write. Results that were left out of this try come back.
    fn settle_all(&self, merged: Merged, revision: Option<Revision>) -> Option<Work> {
        let Merged {
            mut work,
            document,
            applied,
            bytes: _,
        } = merged;
        let times = work.times();
        let pending = std::mem::take(&mut work.pending);
        if applied.contains(&Applied::Changed) {
            work.fit = work.fit.map(|fit| fit.stored(pending.len()));
        }
        for (pending, applied) in pending.into_iter().zip(applied) {
            if let (Applied::Unchanged, Some(plugin)) = (applied, &pending.result.plugin) {
                let unchanged = (plugin.clone(), pending.result.seq);
                work.unchanged.push(unchanged);
            }
            let outcome = match applied {
                Applied::Changed => Outcome::Stored,
                Applied::Unchanged => Outcome::Unchanged,
                // Found after a write of ours: it is that write. Found before: the broker delivered it twice.
                Applied::Present if work.attempts > 0 => {
                    telemetry::record_read_back();
                    // A write went well, though its answer got lost.
                    self.gate.open();
                    Outcome::Stored
                }
                // Unordered results were taken out before the merge.
                Applied::Stale | Applied::Present | Applied::Unordered => Outcome::Stale,
            };
            if outcome == Outcome::Stale {
                pending.ticket.settle_stale(applied == Applied::Present);
                for ticket in pending.overtaken {
                    ticket.settle_stale(false);
                }
                continue;
            }
            pending.ticket.settle(outcome);
            for ticket in pending.overtaken {
                ticket.settle(Outcome::Superseded);
            }
        }
        let mut marks = marks_of(&document);
        for (plugin, seq) in &work.unchanged {
            raise(&mut marks, plugin, *seq);
        }
        let known = Known { document, revision };
        // Before the node hears of it: its next claim may be taken at once.
        self.cache().put(work.node.clone(), times, known);
        if !work.left_out.is_empty() {
            work.attempts = 0;
            return Some(work);
        }
        // The node's actor may be gone; then nobody needs to know.
        drop(work.finished.send((marks, times.era)));
        None
    }

    fn may_try_again(&self, work: &Work) -> bool {
        work.attempts <= self.settings.conflict_retries_max
    }

    /// The work, if it may be tried again; otherwise its results go back to the broker.
    fn again(&self, work: Work, why: &str) -> Option<Work> {
        log_again(&work.pending, why);
        if self.may_try_again(&work) {
            return Some(work);
        }
        warn!(target: "vogeler::ingest::commit", node = %work.node, attempts = work.attempts, why, "gave up for now: results go back to the broker");
        None
    }

    /// Makes dead letters of all results of a document that cannot be stored. Results that they overtook were never tried
    /// alone and go back to the broker.
    fn refuse(&self, mut work: Work, error: &str, reason: &str) {
        work.pending.append(&mut work.left_out);
        for pending in std::mem::take(&mut work.pending) {
            self.refuse_one(&work, pending, error, reason);
        }
    }

    fn refuse_one(&self, work: &Work, pending: Pending<Ticket>, error: &str, reason: &str) {
        let letter = DeadLetter {
            ticket: pending.ticket,
            reason: error.to_owned(),
            detail: reason.to_owned(),
            node: Some(work.node.clone()),
            plugin: pending.result.plugin,
            attempts: work.attempts.max(1),
        };
        self.dead_letters.post(letter);
    }

    /// A node's document as it was read, or a new one.
    fn read(
        &self,
        node: &NodeName,
        stored: Option<StoredDocument>,
        now: Timestamp,
    ) -> Result<Known, DocumentError> {
        let Some(stored) = stored else {
            return Ok(Known {
                document: NodeDocument::new(node, now),
                revision: None,
            });
        };
        let document = NodeDocument::parse(node, &stored.json)?;
        self.note_unreadable(node, document.unreadable());
        Ok(Known {
            document,
            revision: Some(stored.revision),
        })
    }

    /// Logs the first document of this server's life whose bookkeeping cannot be read; the metric counts them all.
    fn note_unreadable(&self, node: &NodeName, unreadable: Unreadable) {
        if !unreadable.is_all && unreadable.plugins == 0 {
            return;
        }
        catalogue::BOOKKEEPING_UNREADABLE.get().increment(1);
        if !self.is_unreadable_told.swap(true, Ordering::Relaxed) {
            let Unreadable { is_all, plugins } = unreadable;
            warn!(target: "vogeler::ingest::commit", %node, is_all, plugins, "a document's bookkeeping cannot all be read: did another program or a later version write it? What cannot be read stays in it; further such documents are counted only");
        }
    }
}

/// Whether the store refuses the document as such, whatever results are in it.
fn is_of_document(error: &str) -> bool {
    ["forbidden", "unauthorized"].contains(&error)
}

impl Merged {
    /// The work again, after the store refused it with these results.
    fn refused(self, verdict: Verdict) -> Work {
        let (is_too_large, bytes) = (verdict.is_too_large(), self.bytes);
        let mut work = self.work;
        if let Verdict::Refused { error, reason } = verdict {
            let error = if is_too_large {
                DOCUMENT_TOO_LARGE
            } else {
                &error
            };
            work = work.refused(error, &reason);
        }
        work.refusal.bytes = bytes;
        // Nothing was written, and what is there is read again.
        work.attempts = 0;
        work
    }
}

impl Work {
    /// The work again, to search for the results that the store does not take in this document.
    fn refused(mut self, error: &str, reason: &str) -> Self {
        self.fit = Some(Fit::refused(self.fit, self.pending.len()));
        self.refusal = Refusal {
            error: error.to_owned(),
            reason: reason.to_owned(),
            bytes: 0,
        };
        self
    }

    fn times(&self) -> Times {
        Times {
            session: self.session,
            era: self.era,
        }
    }
}

fn node_of(work: &Work) -> NodeName {
    work.node.clone()
}

/// What one pass left open, and what ended it.
#[derive(Debug, Default)]
struct Attempt {
    open: Vec<Work>,
    failure: Option<Failure>,
}

/// A request that failed as a whole.
#[derive(Debug)]
struct Failure {
    error: StoreError,
    is_write: bool,
}

/// The outcome of one try at a group.
#[derive(Debug)]
struct Tried {
    left: Vec<Group<Work>>,
    /// Whether the store failed, not a document: the gate is closed, and the next turn waits.
    is_away: bool,
}

impl Tried {
    /// The store answered, and these rows are to be tried again.
    fn rows(open: Vec<Work>) -> Self {
        let left = if open.is_empty() {
            Vec::new()
        } else {
            vec![Group::new(open)]
        };
        Self {
            left,
            is_away: false,
        }
    }
}

impl From<Claim> for Work {
    fn from(claim: Claim) -> Self {
        Self {
            node: claim.node,
            session: claim.session,
            era: 0,
            pending: claim.pending,
            finished: claim.finished,
            is_known: claim.is_known,
            attempts: 0,
            blames: 0,
            failed_reads: 0,
            fit: None,
            refusal: Refusal::default(),
            left_out: Vec::new(),
            unchanged: Vec::new(),
        }
    }
}
