//! Marks: a mark is on disk before its plugin starts, and is gone once the result is safe. A mark found at the start
//! means that the plugin did not come to its end: it may have taken the client with it, so it is not run again.
//!
//! Goes in: what is about to run. Comes out: whether it may. Invariant: an execution that may end the client (a crash,
//! a kill, a reboot) is not repeated at every start. After a crash the command is answered "interrupted". An orderly
//! stop kills what still runs; after the first one the command runs once more, after the second it is answered
//! "interrupted" as well. Otherwise a plugin that stops the client (or reboots the machine) in good order would do so
//! for ever.
//!
//! A run whose answer is safe, "interrupted" or not, has ended. If the broker brings its command once more, the
//! command is only acknowledged.
//!
//! A command of 2010 has no run. Its mark counts for the next command of the same plugin that the broker brings again.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::private;
use super::spool::Spool;
use crate::wire::{PluginName, RunId};

/// The folder of marks in the state folder.
pub(super) const FOLDER: &str = "running";
const TEMPORARY: &str = "new";
/// A file written to test whether any file can be.
const PROBE: &str = "probe";
/// How long an interrupted run is remembered: longer than any command waits.
const REMEMBER_MAX: Duration = Duration::from_hours(7 * 24);
/// Marks kept at the start; the oldest past this are deleted.
const MARKS_MAX: usize = 1000;
/// Orderly stops that one execution may see. One is normal; two while the same command runs are suspicious.
const STOPS_MAX: u32 = 1;

/// An execution that must not be repeated for ever.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Execution {
    /// For a command.
    Command {
        /// Which plugin.
        plugin: PluginName,
        /// For which run; none for a command of 2010.
        run: Option<RunId>,
    },
    /// Because it was due.
    Scheduled {
        /// Which plugin.
        plugin: PluginName,
    },
}

impl Execution {
    /// The name of its file.
    fn file(&self) -> String {
        let (kind, plugin, run) = match self {
            Self::Command { plugin, run } => ("command", plugin, *run),
            Self::Scheduled { plugin } => ("scheduled", plugin, None),
        };
        let run = run.map(|run| run.to_string()).unwrap_or_default();
        blake3::hash(format!("{kind} {plugin} {run}").as_bytes())
            .to_hex()
            .to_string()
    }
}

/// What a file says.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Note {
    execution: Execution,
    /// Orderly stops that ended it.
    stops: u32,
    /// Whether it began, and nobody has seen its end.
    is_running: bool,
    /// Whether its answer is in the spool, or was.
    #[serde(default)]
    is_ended: bool,
}

impl Note {
    /// Whether it may run once more.
    fn is_allowed(&self) -> bool {
        !self.is_running && self.stops <= STOPS_MAX
    }
}

/// The marks of one client. Calls block on the disk.
#[derive(Debug, Clone)]
pub(super) struct Marks(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    /// What earlier lives left, and what this one broke off.
    left: Mutex<HashMap<Execution, Note>>,
    /// Names of mark files that could not be read at the start. Their executions do not run until the files can be
    /// read.
    unread: Mutex<HashSet<String>>,
}

/// Whether a plugin may start.
#[derive(Debug)]
pub(super) enum Begin {
    /// It may; the mark is durable.
    Run(Mark),
    /// It was started before, and did not come to its end.
    Interrupted,
}

impl Marks {
    /// Reads what an earlier life left in the state folder. A result in the spool also counts as an end.
    pub(super) fn open(state: &Path, spool: &Spool) -> io::Result<Self> {
        let folder = state.join(FOLDER);
        private::create_folder(&folder)?;
        private::close_files(&folder)?;
        let mut found = Vec::new();
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let path = entry.path();
            if path.extension().is_some_and(|found| found == TEMPORARY) {
                // Half written: nothing was started.
                remove(&path);
                continue;
            }
            found.push((entry.metadata()?.modified()?, path));
        }
        // The youngest first.
        found.sort_by(|a, b| b.cmp(a));
        let runs = if found.is_empty() {
            HashSet::default()
        } else {
            spool.runs()
        };
        let inner = Inner {
            folder,
            left: Mutex::default(),
            unread: Mutex::default(),
        };
        for (index, (modified, path)) in found.into_iter().enumerate() {
            match read(&path, modified) {
                Ok(Some(note)) if index < MARKS_MAX => {
                    let is_ended = matches!(&note.execution, Execution::Command { run: Some(run), .. } if runs.contains(run));
                    let execution = note.execution.clone();
                    inner.left().insert(execution.clone(), note);
                    if is_ended {
                        inner.end(&execution);
                    }
                }
                Ok(_) => remove(&path),
                Err(error) => inner.cannot_read(&path, &error),
            }
        }
        Ok(Self(Arc::new(inner)))
    }

    /// Whether the answer to this command is safe already.
    pub(super) fn has_ended(&self, execution: &Execution) -> bool {
        let left = self.0.left();
        left.get(execution).is_some_and(|note| note.is_ended)
    }

    /// Marks what is about to run. `is_redelivered` means that the broker brings the command again.
    pub(super) fn begin(&self, execution: Execution, is_redelivered: bool) -> io::Result<Begin> {
        self.0.read_again(&execution)?;
        let mut stops = 0;
        if let Some(left) = self.0.left().get(&execution) {
            let is_nameless = matches!(execution, Execution::Command { run: None, .. });
            let counts = is_redelivered || !is_nameless;
            if counts && !left.is_allowed() {
                return Ok(Begin::Interrupted);
            }
            stops = left.stops;
        }
        let note = Note {
            execution,
            stops,
            is_running: true,
            is_ended: false,
        };
        self.0.write(&note)?;
        self.0.left().remove(&note.execution);
        let inner = Arc::clone(&self.0);
        Ok(Begin::Run(Mark {
            inner,
            note: Some(note),
        }))
    }

    /// The scheduled plugins that did not come to their end in an earlier life.
    pub(super) fn interrupted_schedules(&self) -> Vec<PluginName> {
        let left = self.0.left();
        let plugins = left.values().filter_map(|note| match &note.execution {
            Execution::Scheduled { plugin } if note.is_running => Some(plugin.clone()),
            _ => None,
        });
        plugins.collect()
    }

    /// Tests whether a mark can be written now.
    pub(super) fn probe(&self) -> io::Result<()> {
        let path = self.0.folder.join(PROBE);
        private::write(&path, &path.with_extension(TEMPORARY), b"x")?;
        fs::remove_file(path)
    }

    /// The answer "interrupted" is safe. The mark of a run stays, in case the broker brings the command once more.
    pub(super) fn answered(&self, execution: &Execution) {
        if matches!(execution, Execution::Command { run: Some(_), .. }) {
            self.0.end(execution);
        } else {
            self.0.left().remove(execution);
            remove(&self.0.path(execution));
        }
    }
}

impl Inner {
    fn path(&self, execution: &Execution) -> PathBuf {
        self.folder.join(execution.file())
    }

    fn write(&self, note: &Note) -> io::Result<()> {
        let path = self.path(&note.execution);
        let beside = path.with_extension(TEMPORARY);
        private::write(&path, &beside, &serde_json::to_vec(note)?)
    }

    /// Notes that an answer is safe.
    fn end(&self, execution: &Execution) {
        let mut left = self.left();
        let Some(note) = left.get_mut(execution).filter(|note| !note.is_ended) else {
            return;
        };
        note.is_ended = true;
        if let Err(error) = self.write(note) {
            tracing::warn!(target: "vogeler::client", %error, "it cannot be noted that a command is answered; after a restart it may be answered once more");
        }
    }

    fn cannot_read(&self, path: &Path, error: &io::Error) {
        tracing::warn!(target: "vogeler::client", file = %path.display(), %error, "a mark cannot be read; what it is of does not run before it can be");
        let name = path.file_name().and_then(|name| name.to_str());
        self.unread().extend(name.map(str::to_owned));
    }

    /// Reads a mark that could not be read at the start.
    fn read_again(&self, execution: &Execution) -> io::Result<()> {
        let name = execution.file();
        let mut unread = self.unread();
        if !unread.contains(&name) {
            return Ok(());
        }
        let path = self.path(execution);
        let note = fs::metadata(&path)
            .and_then(|found| found.modified())
            .and_then(|modified| read(&path, modified))?;
        unread.remove(&name);
        if let Some(note) = note {
            self.left().insert(note.execution.clone(), note);
        }
        Ok(())
    }

    fn unread(&self) -> MutexGuard<'_, HashSet<String>> {
        self.unread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn left(&self) -> MutexGuard<'_, HashMap<Execution, Note>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The mark of one execution. If dropped before [`done`](Self::done), it records that an orderly stop broke the
/// execution off.
#[derive(Debug)]
pub(super) struct Mark {
    inner: Arc<Inner>,
    note: Option<Note>,
}

impl Mark {
    /// The result is safe: removes the mark.
    pub(super) fn done(mut self) {
        if let Some(note) = self.note.take() {
            remove(&self.inner.path(&note.execution));
        }
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        let Some(mut note) = self.note.take() else {
            return;
        };
        note.stops += 1;
        note.is_running = note.stops > STOPS_MAX;
        if let Err(error) = self.inner.write(&note) {
            // With the file as it is on disk, the command counts as interrupted.
            tracing::warn!(target: "vogeler::client", %error, "it cannot be noted that a plugin was stopped in good order");
        }
        self.inner.left().insert(note.execution.clone(), note);
    }
}

/// The note in a file. None if the file is half written (then nothing was started) or too old to matter.
fn read(path: &Path, modified: SystemTime) -> io::Result<Option<Note>> {
    if modified.elapsed().is_ok_and(|age| age > REMEMBER_MAX) {
        return Ok(None);
    }
    Ok(serde_json::from_slice(&fs::read(path)?).ok())
}

/// Removes a mark. If that fails, the mark answers "interrupted" only to a command that will not come again.
fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(target: "vogeler::client", file = %path.display(), %error, "a mark cannot be removed");
    }
}

#[cfg(test)]
mod tests {
    use super::super::envelope::Envelope;
    use super::super::envelope::tests::result;
    use super::super::spool::Bounds;
    use super::*;
    use crate::trace::TraceParent;
    use crate::wire::Seq;

    const BOUNDS: Bounds = Bounds {
        count_max: 10,
        bytes_max: 100_000,
    };

    fn open(state: &Path) -> Marks {
        Marks::open(state, &Spool::open(state, BOUNDS).unwrap()).unwrap()
    }

    fn command(run: Option<RunId>) -> Execution {
        let plugin = "x".parse().unwrap();
        Execution::Command { plugin, run }
    }

    fn mark(marks: &Marks, execution: &Execution) -> Option<Mark> {
        match marks.begin(execution.clone(), true).unwrap() {
            Begin::Run(mark) => Some(mark),
            Begin::Interrupted => None,
        }
    }

    /// What a client leaves that is killed.
    fn crash(mark: Mark) {
        std::mem::forget(mark);
    }

    /// Goal: after a crash a command is answered, however often it comes; another run of the same plugin runs.
    #[test]
    fn after_a_crash_a_run_is_interrupted() {
        let state = tempfile::tempdir().unwrap();
        let (poison, other) = (Some(RunId::generate()), Some(RunId::generate()));
        crash(mark(&open(state.path()), &command(poison)).unwrap());
        for _ in 0..2 {
            let marks = open(state.path());
            assert!(mark(&marks, &command(poison)).is_none());
            marks.answered(&command(poison));
            assert!(marks.has_ended(&command(poison)));
            assert!(mark(&marks, &command(poison)).is_none());
            mark(&marks, &command(other)).unwrap().done();
        }
    }

    /// Goal: a command of 2010 is answered once, and only if the broker brings it again.
    #[test]
    fn a_nameless_command_is_interrupted_once() {
        let state = tempfile::tempdir().unwrap();
        crash(mark(&open(state.path()), &command(None)).unwrap());
        let marks = open(state.path());
        let new = marks.begin(command(None), false).unwrap();
        let Begin::Run(new) = new else {
            panic!("a new command runs");
        };
        crash(new);
        let marks = open(state.path());
        assert!(mark(&marks, &command(None)).is_none());
        marks.answered(&command(None));
        mark(&open(state.path()), &command(None)).unwrap().done();
    }

    /// Goal: a command is not run again once its answer is in the spool, nor after that was published and replaced, and is
    /// not answered twice.
    #[test]
    fn what_is_answered_does_not_run_again() {
        let state = tempfile::tempdir().unwrap();
        let run = RunId::generate();
        let poison = command(Some(run));
        crash(mark(&open(state.path()), &poison).unwrap());
        let mut spool = Spool::open(state.path(), BOUNDS).unwrap();
        for (seq, run) in [(1, Some(run)), (2, None), (3, None)] {
            let trace = run.map(TraceParent::generate);
            let envelope = Envelope::seal(&result(seq, "text"), trace, 10_000).unwrap();
            spool.push(Seq(seq), &envelope).unwrap();
        }
        // The client dies before the command is acknowledged.
        drop(spool);
        for life in 0..3 {
            let mut spool = Spool::open(state.path(), BOUNDS).unwrap();
            let marks = Marks::open(state.path(), &spool).unwrap();
            assert!(marks.has_ended(&poison), "life {life}");
            assert!(mark(&marks, &poison).is_none());
            let (seq, _) = spool.oldest().unwrap().unwrap();
            spool.done(seq);
        }
    }

    /// Goal: a mark that cannot be read now does not count as half written. It stays, and its execution does not run
    /// until it is read.
    #[test]
    fn a_mark_that_cannot_be_read_stays() {
        let state = tempfile::tempdir().unwrap();
        let poison = command(Some(RunId::generate()));
        crash(mark(&open(state.path()), &poison).unwrap());
        let path = state.path().join(FOLDER).join(poison.file());
        let hidden = state.path().join("hidden");
        // Reading a folder fails, which is not the same as a half-written mark.
        fs::rename(&path, &hidden).unwrap();
        fs::create_dir(&path).unwrap();
        let marks = open(state.path());
        assert!(marks.begin(poison.clone(), true).is_err());
        assert!(marks.begin(command(None), true).is_ok());
        fs::remove_dir(&path).unwrap();
        fs::rename(&hidden, &path).unwrap();
        assert!(mark(&marks, &poison).is_none());
        assert!(mark(&open(state.path()), &poison).is_none());
    }

    /// Goal: what an orderly stop broke off runs once more, but not a third time.
    #[test]
    fn two_orderly_stops_are_enough() {
        let state = tempfile::tempdir().unwrap();
        let run = command(Some(RunId::generate()));
        drop(mark(&open(state.path()), &run).unwrap());
        drop(mark(&open(state.path()), &run).unwrap());
        assert!(mark(&open(state.path()), &run).is_none());
    }

    /// Goal: an interrupted scheduled plugin is reported once, and then runs again; one that is done is not reported.
    #[test]
    fn a_schedule_goes_on() {
        let state = tempfile::tempdir().unwrap();
        let plugin: PluginName = "x".parse().unwrap();
        let scheduled = Execution::Scheduled {
            plugin: plugin.clone(),
        };
        let marks = open(state.path());
        mark(&marks, &scheduled).unwrap().done();
        assert_eq!(open(state.path()).interrupted_schedules(), []);
        crash(mark(&marks, &scheduled).unwrap());
        let marks = open(state.path());
        assert_eq!(marks.interrupted_schedules(), [plugin]);
        marks.answered(&scheduled);
        assert_eq!(open(state.path()).interrupted_schedules(), []);
        assert!(mark(&marks, &scheduled).is_some());
    }
}
