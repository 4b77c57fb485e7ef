//! The spool: results on disk until the broker has confirmed them, and the node's sequence that survives with them.
//!
//! Results in, in order; the oldest out, until [`Spool::done`]. Invariant: a result is durable before anybody can
//! publish it, and the sequence never repeats, over restarts and clocks that step back.
//!
//! The state folder holds `lock` (one client a folder), `spool/<seq>.result` for each unconfirmed result and
//! `spool/last` for the latest confirmed one. A confirmed result is not deleted but renamed to `last`, so the
//! highest sequence is on disk at every moment and costs no write of its own. Files are written whole
//! (temporary file, fsync, rename, fsync of the folder) and carry a checksum; one that does not match is set aside
//! as `<seq>.bad`, and one that the broker finds too large as `<seq>.large`, an error waiting in its place.

use std::collections::VecDeque;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::aside;
use super::envelope::Envelope;
use super::vitals::Noted;
use crate::wire::Seq;

const FOLDER: &str = "spool";
const LOCK: &str = "lock";
const LAST: &str = "last";
const TEMPORARY: &str = "new";
const EXTENSION: &str = "result";
const EXTENSION_BAD: &str = "bad";
/// Digits of the largest sequence: file names sort as their sequences do.
const SEQ_DIGITS: usize = 20;

/// How much the spool may hold; past it the oldest results go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Results.
    pub(super) count_max: usize,
    /// Bytes of files.
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
    /// One result is larger than the whole spool may be.
    #[error("the result has {bytes} bytes, more than client.spool_bytes_max ({max})")]
    TooLarge {
        /// Size of the result, in bytes.
        bytes: u64,
        /// The bound, in bytes.
        max: u64,
    },
}

/// A result that waits for its confirm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Waiting {
    seq: Seq,
    bytes: u64,
}

/// The spool of one client. Calls block on the disk.
#[derive(Debug)]
pub(super) struct Spool {
    folder: PathBuf,
    bounds: Bounds,
    waiting: VecDeque<Waiting>,
    bytes: u64,
    last: Seq,
    dropped: u64,
    noted: Noted,
    /// Held, never read: the lock goes with the file.
    _lock: File,
}

impl Spool {
    /// Opens the spool in the folder `state`, which is created if it is missing. Leftovers of an earlier life wait
    /// first, in their order.
    pub(super) fn open(state: &Path, bounds: Bounds) -> Result<Self, SpoolError> {
        let folder = state.join(FOLDER);
        fs::create_dir_all(&folder).map_err(unwritable(&folder))?;
        let lock = lock(state)?;
        let mut spool = Self {
            folder,
            bounds,
            waiting: VecDeque::new(),
            bytes: 0,
            last: Seq(0),
            dropped: 0,
            noted: Noted::new(bounds),
            _lock: lock,
        };
        spool.recover()?;
        spool.shrink(0);
        spool.note();
        Ok(spool)
    }

    /// Finds leftovers and the highest sequence.
    fn recover(&mut self) -> Result<(), SpoolError> {
        let error = unwritable(&self.folder);
        let mut waiting = Vec::new();
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
                waiting.push(Waiting { seq, bytes });
            }
        }
        match fs::read(self.folder.join(LAST)) {
            Ok(bytes) => self.last = self.last.max(last_seq(&bytes)),
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(error(source)),
        }
        drop(error);
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

    /// Keeps a result whose `seq` is the latest of [`next_seq`](Self::next_seq); when this returns it is durable.
    /// Says how many of the oldest had to go for it.
    pub(super) fn push(&mut self, seq: Seq, envelope: &Envelope) -> Result<u64, SpoolError> {
        let content = envelope.to_bytes();
        let bytes = content.len() as u64;
        if bytes > self.bounds.bytes_max {
            let max = self.bounds.bytes_max;
            return Err(SpoolError::TooLarge { bytes, max });
        }
        let dropped = self.shrink(bytes);
        let path = self.path(seq);
        self.write(&path, &content).map_err(unwritable(&path))?;
        self.waiting.push_back(Waiting { seq, bytes });
        self.bytes += bytes;
        self.note();
        Ok(dropped)
    }

    fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let temporary = self.folder.join(TEMPORARY);
        let mut file = File::create(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(&self.folder)?.sync_all()
    }

    /// Makes room for one more result of `bytes`; the oldest go, counted.
    fn shrink(&mut self, bytes: u64) -> u64 {
        let count_max = self.bounds.count_max.saturating_sub(usize::from(bytes > 0));
        let mut dropped = 0;
        while self.waiting.len() > count_max || self.bytes + bytes > self.bounds.bytes_max {
            let Some(oldest) = self.waiting.pop_front() else {
                break;
            };
            self.bytes -= oldest.bytes;
            dropped += 1;
            self.give_up(oldest.seq);
        }
        self.dropped += dropped;
        self.noted.dropped(dropped);
        if dropped > 0 {
            tracing::warn!(target: "vogeler::client", dropped, dropped_total = self.dropped, "the spool is full: the oldest results are lost; is the broker away? raise client.spool_count_max or client.spool_bytes_max");
        }
        dropped
    }

    /// Removes a result that has no room any more, and says of which run it was.
    fn give_up(&self, seq: Seq) {
        let path = self.path(seq);
        let envelope = fs::read(&path)
            .ok()
            .and_then(|bytes| Envelope::from_bytes(&bytes).ok());
        let run = envelope.and_then(|envelope| envelope.run());
        let run = run.map(tracing::field::display);
        tracing::warn!(target: "vogeler::client", run, seq = seq.0, "a result is lost: the spool has no room for it");
        remove(&path);
    }

    /// The oldest result that waits. Corrupt ones are set aside on the way.
    pub(super) fn oldest(&mut self) -> Option<(Seq, Envelope)> {
        while let Some(waiting) = self.waiting.front().copied() {
            let path = self.path(waiting.seq);
            let read = fs::read(&path).map_err(|error| error.to_string());
            match read
                .and_then(|bytes| Envelope::from_bytes(&bytes).map_err(|error| error.to_string()))
            {
                Ok(envelope) => return Some((waiting.seq, envelope)),
                Err(error) => {
                    tracing::error!(target: "vogeler::client", file = %path.display(), error, "a spooled result cannot be read and is set aside as .bad");
                    rename(&path, &path.with_extension(EXTENSION_BAD));
                    self.forget(waiting.seq);
                }
            }
        }
        None
    }

    /// The broker has confirmed the result: it waits no longer.
    pub(super) fn done(&mut self, seq: Seq) {
        // It may have been dropped for a newer one while it was being published.
        if self.forget(seq) {
            rename(&self.path(seq), &self.folder.join(LAST));
        }
    }

    /// The broker will never take this result: it is set aside, and `instead` waits in its place, if anything can.
    pub(super) fn set_aside(
        &mut self,
        seq: Seq,
        instead: Option<&Envelope>,
    ) -> Result<(), SpoolError> {
        let path = self.path(seq);
        if let Err(error) = aside::keep(&path) {
            tracing::warn!(target: "vogeler::client", file = %path.display(), %error, "a result that is too large for the broker cannot be kept aside");
        }
        let Some(instead) = instead else {
            if self.forget(seq) {
                remove(&path);
            }
            return Ok(());
        };
        let content = instead.to_bytes();
        // It may have been dropped for a newer one meanwhile.
        let Some(waiting) = self.waiting.iter_mut().find(|waiting| waiting.seq == seq) else {
            return Ok(());
        };
        let bytes = content.len() as u64;
        self.bytes = self.bytes - waiting.bytes + bytes;
        waiting.bytes = bytes;
        self.write(&path, &content).map_err(unwritable(&path))?;
        self.note();
        Ok(())
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

    /// Tells how much waits.
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

    /// How many results were given up for want of room since the spool was opened.
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

fn lock(state: &Path) -> Result<File, SpoolError> {
    let path = state.join(LOCK);
    let file = File::create(&path).map_err(unwritable(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(SpoolError::InUse {
            folder: state.to_owned(),
        }),
        Err(TryLockError::Error(source)) => Err(unwritable(&path)(source)),
    }
}

/// The sequence in `last`; a corrupt file leaves it to the clock, which is past it unless it stepped back.
fn last_seq(bytes: &[u8]) -> Seq {
    match Envelope::from_bytes(bytes) {
        Ok(envelope) => envelope.seq,
        Err(error) => {
            tracing::error!(target: "vogeler::client", %error, "the latest sequence cannot be read; going on by the clock");
            Seq(0)
        }
    }
}

/// A file that stays where it should go is published once more after a restart, which the server bears.
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
