//! Marks: on disk before a plugin starts, gone once its result is safe. One that is found at the start says that the plugin
//! did not come to its end: it may have taken the client with it, and is not run again.
//!
//! What is about to run in; whether it may out. Invariant: an execution that may end the client (a crash, a kill, a reboot)
//! is not repeated at every start. After a crash the command is answered "interrupted". After an orderly stop, which kills
//! what still runs, the command runs once more, and after a second one it is answered "interrupted" as well: a plugin that
//! stops the client (or reboots the machine) in good order would do so for ever.
//!
//! A command of 2010 has no run: there a mark counts for the next command of its plugin that the broker brings again.

use std::collections::hash_map::Entry;
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
/// A file that is written to see whether any can be.
const PROBE: &str = "probe";
/// How long it is remembered that a run was interrupted: longer than any command waits.
const REMEMBER_MAX: Duration = Duration::from_hours(7 * 24);
/// So many are remembered.
const MARKS_MAX: usize = 1000;
/// An orderly stop is no crime, two of them while the same command runs are suspicious.
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
    /// Because its time had come.
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
    /// Reads what an earlier life left in the state folder. A result in the spool is an end, too.
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
        let mut left = HashMap::new();
        for (index, (modified, path)) in found.into_iter().enumerate() {
            let note = read(&path, modified).filter(|note| match &note.execution {
                Execution::Command { run: Some(run), .. } => !runs.contains(run),
                _ => true,
            });
            match note {
                Some(note) if index < MARKS_MAX => {
                    left.insert(note.execution.clone(), note);
                }
                _ => remove(&path),
            }
        }
        let left = Mutex::new(left);
        Ok(Self(Arc::new(Inner { folder, left })))
    }

    /// Marks what is about to run. `is_redelivered` says that the broker brings the command again.
    pub(super) fn begin(&self, execution: Execution, is_redelivered: bool) -> io::Result<Begin> {
        let mut stops = 0;
        if let Entry::Occupied(left) = self.0.left().entry(execution.clone()) {
            let is_nameless = matches!(execution, Execution::Command { run: None, .. });
            let counts = is_redelivered || !is_nameless;
            if counts && !left.get().is_allowed() {
                return Ok(Begin::Interrupted);
            }
            stops = left.get().stops;
            left.remove();
        }
        let note = Note {
            execution,
            stops,
            is_running: true,
        };
        self.0.write(&note)?;
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

    /// Whether a mark could be written now.
    pub(super) fn probe(&self) -> io::Result<()> {
        let path = self.0.folder.join(PROBE);
        private::write(&path, &path.with_extension(TEMPORARY), b"x")?;
        fs::remove_file(path)
    }

    /// The answer "interrupted" is safe. A run's mark stays, should the broker bring the command once more.
    pub(super) fn answered(&self, execution: &Execution) {
        if !matches!(execution, Execution::Command { run: Some(_), .. }) {
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

    fn left(&self) -> MutexGuard<'_, HashMap<Execution, Note>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The mark of one execution. Dropped before it is [`done`](Self::done), it says that an orderly stop broke it off.
#[derive(Debug)]
pub(super) struct Mark {
    inner: Arc<Inner>,
    note: Option<Note>,
}

impl Mark {
    /// The result is safe.
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
            // As it stands on disk, the command counts as interrupted.
            tracing::warn!(target: "vogeler::client", %error, "it cannot be noted that a plugin was stopped in good order");
        }
        self.inner.left().insert(note.execution.clone(), note);
    }
}

/// What a file says; none if it is half written (then nothing was started) or too old to matter.
fn read(path: &Path, modified: SystemTime) -> Option<Note> {
    if modified.elapsed().is_ok_and(|age| age > REMEMBER_MAX) {
        return None;
    }
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// A mark that stays answers "interrupted" to a command that will not come again.
fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(target: "vogeler::client", file = %path.display(), %error, "a mark cannot be removed");
    }
}

#[cfg(test)]
mod tests {
    use super::super::spool::Bounds;
    use super::*;

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

    /// Goal: what an orderly stop broke off runs once more, and no third time.
    #[test]
    fn two_orderly_stops_are_enough() {
        let state = tempfile::tempdir().unwrap();
        let run = command(Some(RunId::generate()));
        drop(mark(&open(state.path()), &run).unwrap());
        drop(mark(&open(state.path()), &run).unwrap());
        assert!(mark(&open(state.path()), &run).is_none());
    }

    /// Goal: a scheduled plugin is told of once, and then runs again; a done one is not told of.
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
