//! The spool: results on disk until the broker has confirmed them, and the node's sequence that survives with them.
//!
//! Results go in, in order; the oldest comes out, until [`Spool::done`]. Invariants: a result is durable before
//! anybody can publish it. The sequence never repeats, over restarts and clocks that step back. Every result that
//! leaves without a confirm is counted.
//!
//! When there is no room, the oldest result that a newer one of the same plugin supersedes goes first; if there is
//! none, the oldest of all goes. On a full disk, results go only if dropping them frees enough. A file is set aside
//! only if its checksum does not match. One that cannot be read now is tried again later, and those behind it go
//! first.
//!
//! The state folder holds `lock` (one client per folder), `spool/<seq>.result` for each unconfirmed result and
//! `spool/last` for the latest confirmed one. A confirmed result is not deleted but renamed to `last`, so the highest
//! sequence is on disk at every moment and costs no write of its own. Files are written whole (temporary file, fsync,
//! rename, fsync of the folder) and carry a checksum. A file whose checksum does not match is set aside as
//! `<seq>.bad`; one that the broker finds too large is kept as `<seq>.large`. Files are 0600, folders 0700.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::aside;
use super::envelope::{Envelope, Header};
use super::private;
use super::vitals::Noted;
use crate::telemetry::SpoolLoss;
use crate::wire::{PluginName, RunId, Seq};

const FOLDER: &str = "spool";
/// What the client keeps in its state folder.
const STATE_NAMES: [&str; 5] = [
    FOLDER,
    LOCK,
    super::marks::FOLDER,
    super::bindings::FILE,
    super::bindings::TEMPORARY,
];
const LOCK: &str = "lock";
const LAST: &str = "last";
const TEMPORARY: &str = "new";
const EXTENSION: &str = "result";
const EXTENSION_BAD: &str = "bad";
/// Digits of the largest sequence. With this padding, file names sort in the order of their sequences.
const SEQ_DIGITS: usize = 20;
/// Damaged files kept for somebody to look at. Past this, the oldest are deleted.
const BAD_MAX: usize = 100;
/// After this many unreadable results, no further one is tried: the next most likely fails for the same reason.
const UNREADABLE_MAX: usize = 8;

/// How much the spool may hold. Past it, results are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Number of results.
    pub(super) count_max: usize,
    /// Bytes of their files.
    pub(super) bytes_max: u64,
}

/// Why the spool cannot be used. Names the path.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The state folder cannot be written.
    #[error(
        "{} cannot be written: {source}; client.state must be a folder that this user may write",
        path.display()
    )]
    Unwritable {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another client has the folder.
    #[error(
        "another client uses the state folder {}: stop it, or give this one a client.state of its own",
        folder.display()
    )]
    InUse {
        /// The state folder.
        folder: PathBuf,
    },
    /// A result cannot be read now. It stays in the spool.
    #[error("{} cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// One result is larger than the whole spool may be.
    #[error("the result has {bytes} bytes, more than client.spool_bytes_max ({max})")]
    TooLarge {
        /// Size of the result, in bytes.
        bytes: u64,
        /// The bound, in bytes.
        max: u64,
    },
}

impl SpoolError {
    /// Whether another try may succeed without a change on our side.
    pub(super) fn is_retryable(&self) -> bool {
        matches!(self, Self::Unwritable { .. } | Self::Unreadable { .. })
    }
}

/// A result that waits for its confirm.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Waiting {
    seq: Seq,
    bytes: u64,
    /// None if the file does not name it.
    plugin: Option<PluginName>,
}

/// The spool of one client. Calls block on the disk.
#[derive(Debug)]
pub(super) struct Spool {
    folder: PathBuf,
    bounds: Bounds,
    waiting: VecDeque<Waiting>,
    bytes: u64,
    last: Seq,
    /// The sequence in the file `last`.
    confirmed: Seq,
    /// Damaged files that were set aside and are still there, oldest first.
    bad: VecDeque<PathBuf>,
    dropped: u64,
    noted: Noted,
    /// Held, never read: the lock lasts as long as this file is open.
    _lock: File,
}

impl Spool {
    /// Opens the spool in the folder `state`, and creates the folder if it is missing. Results of an earlier life come
    /// first, in their order.
    pub(super) fn open(state: &Path, bounds: Bounds) -> Result<Self, SpoolError> {
        let folder = state.join(FOLDER);
        private::create_folder(&folder).map_err(unwritable(&folder))?;
        close_state(state);
        let lock = lock(state)?;
        private::close_files(&folder).map_err(unwritable(&folder))?;
        let mut spool = Self {
            folder,
            bounds,
            waiting: VecDeque::new(),
            bytes: 0,
            last: Seq(0),
            confirmed: Seq(0),
            bad: VecDeque::new(),
            dropped: 0,
            noted: Noted::new(bounds),
            _lock: lock,
        };
        spool.recover()?;
        spool.shrink();
        spool.note();
        Ok(spool)
    }

    /// Finds the results of an earlier life and the highest sequence.
    fn recover(&mut self) -> Result<(), SpoolError> {
        let error = unwritable(&self.folder);
        let (mut waiting, mut bad) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&self.folder).map_err(&error)? {
            let path = entry.map_err(&error)?.path();
            let stem = path.file_stem().and_then(|stem| stem.to_str());
            let Some(seq) = stem.and_then(|stem| stem.parse::<u64>().ok()).map(Seq) else {
                continue;
            };
            self.last = self.last.max(seq);
            if path
                .extension()
                .is_some_and(|extension| extension == EXTENSION)
            {
                let bytes = fs::metadata(&path).map_err(&error)?.len();
                let plugin = header_of(&path).and_then(|header| header.plugin);
                waiting.push(Waiting { seq, bytes, plugin });
            } else if path
                .extension()
                .is_some_and(|extension| extension == EXTENSION_BAD)
            {
                bad.push(path);
            }
        }
        match fs::read(self.folder.join(LAST)) {
            Ok(bytes) => self.confirmed = last_seq(&bytes),
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(error(source)),
        }
        drop(error);
        self.last = self.last.max(self.confirmed);
        bad.sort();
        self.bad = bad.into();
        self.look_after_bad();
        waiting.sort_by_key(|waiting| waiting.seq);
        self.bytes = waiting.iter().map(|waiting| waiting.bytes).sum();
        self.waiting = waiting.into();
        Ok(())
    }

    /// The sequence for a result made at `now`. Every call gives a higher one.
    pub(super) fn next_seq(&mut self, now: Timestamp) -> Seq {
        self.last = Seq::after(self.last, now);
        self.last
    }

    /// Keeps a result whose `seq` came from [`next_seq`](Self::next_seq). Once this returns, the result is durable.
    /// After an error nothing has changed. Returns how many results were dropped for it.
    pub(super) fn push(&mut self, seq: Seq, envelope: &Envelope) -> Result<u64, SpoolError> {
        let content = envelope.to_bytes();
        let bytes = content.len() as u64;
        if bytes > self.bounds.bytes_max {
            let max = self.bounds.bytes_max;
            return Err(SpoolError::TooLarge { bytes, max });
        }
        let path = self.path(seq);
        let plugin = envelope.plugin().cloned();
        let coming = plugin.as_ref().map(|plugin| (plugin, seq));
        let written = self.write_or_drop(&path, &content, coming);
        self.note();
        let mut dropped = written.map_err(unwritable(&path))?;
        self.noted.unwritable(None);
        // A result that waited for the disk is older than those kept meanwhile.
        let at = self.waiting.partition_point(|waiting| waiting.seq < seq);
        self.waiting.insert(at, Waiting { seq, bytes, plugin });
        self.bytes += bytes;
        dropped += self.shrink();
        self.look_after_bad();
        self.note();
        Ok(dropped)
    }

    fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        private::write(path, &self.folder.join(TEMPORARY), content)
    }

    /// Writes a file. On a full disk, drops superseded results if that frees enough. Returns how many.
    fn write_or_drop(
        &mut self,
        path: &Path,
        content: &[u8],
        coming: Option<(&PluginName, Seq)>,
    ) -> io::Result<u64> {
        let mut going = None;
        let mut dropped = 0;
        loop {
            let Err(error) = self.write(path, content) else {
                return Ok(dropped);
            };
            if !is_full(&error) {
                return Err(error);
            }
            let going = going.get_or_insert_with(|| {
                self.room_for(content.len() as u64, &error, coming)
                    .into_iter()
            });
            if !going.next().is_some_and(|seq| self.drop_seq(seq)) {
                return Err(error);
            }
            dropped += 1;
        }
    }

    /// The superseded results to drop for a file of `bytes`, oldest first. Empty if dropping all would not free
    /// enough.
    fn room_for(
        &self,
        bytes: u64,
        full: &io::Error,
        coming: Option<(&PluginName, Seq)>,
    ) -> Vec<Seq> {
        let superseded = self.superseded(coming);
        let disk = rustix::fs::statvfs(&self.folder).ok();
        let block = disk.as_ref().map_or(1, |disk| disk.f_frsize.max(1));
        // `statvfs` does not tell how much a quota leaves.
        let disk = disk.filter(|_| full.kind() == io::ErrorKind::StorageFull);
        let free = disk.map_or(0, |disk| disk.f_bavail.saturating_mul(block));
        let blocks = |bytes: u64| bytes.next_multiple_of(block);
        let room: u64 = superseded.iter().map(|waiting| blocks(waiting.bytes)).sum();
        if free.saturating_add(room) < blocks(bytes) {
            return Vec::new();
        }
        superseded.iter().map(|waiting| waiting.seq).collect()
    }

    /// Makes room for something small on a full disk: a file kept as evidence goes first, then the oldest superseded
    /// result. Returns whether anything went.
    pub(super) fn make_room(&mut self) -> bool {
        if aside::release(&self.folder) {
            return true;
        }
        let has_dropped = self.drop_superseded();
        self.note();
        has_dropped
    }

    /// Drops results until the rest is within the bounds; says how many.
    fn shrink(&mut self) -> u64 {
        let mut dropped = 0;
        while self.waiting.len() > self.bounds.count_max || self.bytes > self.bounds.bytes_max {
            if !self.drop_superseded() && !self.drop_at(0) {
                break;
            }
            dropped += 1;
        }
        if dropped > 0 {
            tracing::warn!(target: "vogeler::client", dropped, dropped_total = self.dropped, "the spool is full: results are lost, those that newer ones supersede first; is the broker away? raise client.spool_count_max or client.spool_bytes_max");
        }
        dropped
    }

    /// The results that a newer one of their plugin supersedes, oldest first. `coming` counts as a newer one.
    fn superseded(&self, coming: Option<(&PluginName, Seq)>) -> Vec<&Waiting> {
        let mut newest: HashMap<&PluginName, Seq> = HashMap::new();
        let waiting = self.waiting.iter();
        let waiting = waiting.filter_map(|waiting| Some((waiting.plugin.as_ref()?, waiting.seq)));
        for (plugin, seq) in waiting.chain(coming) {
            let newest = newest.entry(plugin).or_insert(seq);
            *newest = seq.max(*newest);
        }
        let is_superseded = |waiting: &&Waiting| {
            let newest = waiting
                .plugin
                .as_ref()
                .and_then(|plugin| newest.get(plugin));
            newest.is_some_and(|newest| waiting.seq < *newest)
        };
        self.waiting.iter().filter(is_superseded).collect()
    }

    /// Drops the oldest superseded result.
    fn drop_superseded(&mut self) -> bool {
        let oldest = self.superseded(None).first().map(|waiting| waiting.seq);
        oldest.is_some_and(|seq| self.drop_seq(seq))
    }

    fn drop_seq(&mut self, seq: Seq) -> bool {
        let at = self.waiting.iter().position(|waiting| waiting.seq == seq);
        at.is_some_and(|at| self.drop_at(at))
    }

    /// Removes a result for which there is no room, and logs its run.
    fn drop_at(&mut self, at: usize) -> bool {
        let Some(waiting) = self.waiting.remove(at) else {
            return false;
        };
        self.bytes -= waiting.bytes;
        let path = self.path(waiting.seq);
        let run = header_of(&path).and_then(|header| header.run());
        let run = run.map(tracing::field::display);
        let plugin = waiting.plugin.as_ref().map(tracing::field::display);
        tracing::warn!(target: "vogeler::client", run, plugin, seq = waiting.seq.0, "a result is lost: the spool has no room for it");
        remove(&path);
        self.lost(SpoolLoss::Full);
        true
    }

    fn lost(&mut self, reason: SpoolLoss) {
        self.dropped += 1;
        self.noted.lost(reason, 1);
    }

    /// The oldest waiting result that can be read. Sets damaged ones aside on the way.
    pub(super) fn oldest(&mut self) -> Result<Option<(Seq, Envelope)>, SpoolError> {
        let mut unreadable = None;
        let mut failed = 0;
        let mut at = 0;
        while failed < UNREADABLE_MAX
            && let Some(seq) = self.waiting.get(at).map(|waiting| waiting.seq)
        {
            let path = self.path(seq);
            match fs::read(&path) {
                Ok(bytes) => match Envelope::from_bytes(&bytes) {
                    Ok(envelope) => {
                        self.noted
                            .unreadable(unreadable.as_ref().map(ToString::to_string));
                        return Ok(Some((seq, envelope)));
                    }
                    Err(error) => self.set_damaged_aside(seq, &path, &error.to_string()),
                },
                Err(missing) if missing.kind() == io::ErrorKind::NotFound => {
                    tracing::error!(target: "vogeler::client", file = %path.display(), "a spooled result is gone: somebody deleted it");
                    self.forget(seq);
                    self.lost(SpoolLoss::Missing);
                }
                Err(source) => {
                    at += 1;
                    failed += 1;
                    unreadable.get_or_insert(SpoolError::Unreadable { path, source });
                }
            }
        }
        self.noted
            .unreadable(unreadable.as_ref().map(ToString::to_string));
        unreadable.map_or(Ok(None), Err)
    }

    /// Renames a damaged result to `.bad`: it is never published, and somebody can look at it.
    fn set_damaged_aside(&mut self, seq: Seq, path: &Path, reason: &str) {
        tracing::error!(target: "vogeler::client", file = %path.display(), error = reason, "a spooled result is damaged and is set aside as .bad");
        let bad = path.with_extension(EXTENSION_BAD);
        rename(path, &bad);
        self.bad.push_back(bad);
        self.forget(seq);
        self.lost(SpoolLoss::Damaged);
        self.look_after_bad();
    }

    /// Keeps at most [`BAD_MAX`] of the files set aside, and notices when somebody has taken some away.
    fn look_after_bad(&mut self) {
        while self.bad.len() > BAD_MAX {
            if let Some(oldest) = self.bad.pop_front() {
                remove(&oldest);
            }
        }
        self.bad.retain(|bad| bad.exists());
        self.noted.set_aside(self.bad.len());
    }

    /// The broker has confirmed the result: it waits no longer.
    pub(super) fn done(&mut self, seq: Seq) {
        // A newer result may have displaced it while it was being published.
        if !self.forget(seq) {
            return;
        }
        let path = self.path(seq);
        if seq > self.confirmed {
            self.confirmed = seq;
            rename(&path, &self.folder.join(LAST));
        } else {
            remove(&path);
        }
    }

    /// The runs of the waiting results and of the last confirmed one.
    pub(super) fn runs(&self) -> HashSet<RunId> {
        let waiting = self.waiting.iter().map(|waiting| self.path(waiting.seq));
        waiting
            .chain([self.folder.join(LAST)])
            .filter_map(|path| header_of(&path)?.run())
            .collect()
    }

    /// The broker will never take this result: it is set aside, and no longer waits. `is_lost` says that no other
    /// result went in its place.
    pub(super) fn set_aside(&mut self, seq: Seq, is_lost: bool) {
        // A newer result may have displaced it meanwhile.
        if !self.waiting.iter().any(|waiting| waiting.seq == seq) {
            return;
        }
        let path = self.path(seq);
        if let Err(error) = aside::keep(&path) {
            tracing::warn!(target: "vogeler::client", file = %path.display(), %error, "a result that is too large for the broker cannot be kept aside");
        }
        if is_lost {
            self.lost(SpoolLoss::TooLarge);
        }
        self.done(seq);
    }

    fn forget(&mut self, seq: Seq) -> bool {
        let Some(at) = self.waiting.iter().position(|waiting| waiting.seq == seq) else {
            return false;
        };
        if let Some(waiting) = self.waiting.remove(at) {
            self.bytes -= waiting.bytes;
        }
        self.note();
        true
    }

    /// Publishes how much waits.
    fn note(&self) {
        self.noted.spooled(self.waiting.len(), self.bytes);
    }

    /// What others may know of the spool, without waiting for its disk.
    pub(super) fn noted(&self) -> Noted {
        self.noted.clone()
    }

    /// How many results wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Results lost without a confirm since the spool was opened, for any reason.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    fn path(&self, seq: Seq) -> PathBuf {
        self.folder
            .join(format!("{:0SEQ_DIGITS$}.{EXTENSION}", seq.0))
    }
}

fn unwritable(path: &Path) -> impl Fn(io::Error) -> SpoolError + use<> {
    let path = path.to_owned();
    move |source| SpoolError::Unwritable {
        path: path.clone(),
        source,
    }
}

/// Whether an error says that there is no room.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// The header of a file; none if it cannot be read.
fn header_of(path: &Path) -> Option<Header> {
    let mut start = Vec::new();
    let file = File::open(path).ok()?;
    let bytes_max = Header::BYTES_MAX as u64;
    file.take(bytes_max).read_to_end(&mut start).ok()?;
    Header::peek(&start)
}

/// Closes the state folder to others, but only if it holds nothing but our files: somebody may have named a shared
/// folder.
fn close_state(state: &Path) {
    let is_ours = |name: &OsStr| STATE_NAMES.iter().any(|ours| name == *ours);
    let closed = fs::read_dir(state).and_then(|entries| {
        for entry in entries {
            if !is_ours(&entry?.file_name()) {
                return Ok(());
            }
        }
        private::create_folder(state)
    });
    // The folder may belong to another user who lets us write there. Our files in it are closed all the same.
    if let Err(error) = closed {
        tracing::warn!(target: "vogeler::client", folder = %state.display(), %error, "the state folder cannot be closed to others");
    }
}

fn lock(state: &Path) -> Result<File, SpoolError> {
    let path = state.join(LOCK);
    let file = private::create_file(&path).map_err(unwritable(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(SpoolError::InUse {
            folder: state.to_owned(),
        }),
        Err(TryLockError::Error(source)) => Err(unwritable(&path)(source)),
    }
}

/// The sequence in `last`. If the file is corrupt, the clock decides: it is past the lost sequence unless it stepped
/// back.
fn last_seq(bytes: &[u8]) -> Seq {
    match Envelope::from_bytes(bytes) {
        Ok(envelope) => envelope.seq,
        Err(error) => {
            tracing::error!(target: "vogeler::client", %error, "the latest sequence cannot be read; going on by the clock");
            Seq(0)
        }
    }
}

/// Failing is harmless: a file that stays is published once more after a restart, which the server tolerates.
fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!(target: "vogeler::client", file = %path.display(), %error, "a spooled result cannot be removed");
    }
}

fn rename(from: &Path, to: &Path) {
    if let Err(error) = fs::rename(from, to) {
        tracing::warn!(target: "vogeler::client", file = %from.display(), %error, "a spooled result cannot be renamed");
    }
}

#[cfg(test)]
#[path = "spool_tests.rs"]
mod tests;
