//! A thread that owns one SQLite connection: jobs come in through a bounded queue, answers go back.
//!
//! The first job that finds the file opens the connection, and a job that finds the file gone drops it: a deleted
//! database is reported, not written to as a file without a name.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};
use tokio::sync::{mpsc, oneshot};

use super::StoreError;

/// Most jobs queued before a caller waits; far above the writes that a server has in flight.
const QUEUE: usize = 64;
/// Layout of the file, kept in SQLite's `user_version`.
const SCHEMA_VERSION: i64 = 1;
/// `doc_type` is kept beside the text so that counting nodes reads an index instead of every document.
const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS documents (
        id TEXT PRIMARY KEY,
        revision TEXT NOT NULL,
        json TEXT NOT NULL,
        doc_type TEXT GENERATED ALWAYS AS (json_extract(json, '$.doc_type')) VIRTUAL
    );
    CREATE INDEX IF NOT EXISTS documents_by_type ON documents (doc_type);
    PRAGMA user_version = 1;";
/// Longest wait for another process's lock, unless `store.timeout` is longer.
const BUSY_MIN: Duration = Duration::from_secs(1);

type Job = Box<dyn FnOnce(Result<&mut Connection, StoreError>) + Send>;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Reads only: SQLite refuses anything else.
    Read,
    /// Writes, durably.
    Write,
}

/// Handle on the thread. After it is dropped, the thread finishes the queued jobs and ends.
#[derive(Debug)]
pub(super) struct Worker {
    jobs: mpsc::Sender<Message>,
    location: String,
}

enum Message {
    Job(Job),
    Stop(oneshot::Sender<()>),
}

impl Worker {
    pub(super) fn start(
        path: &Path,
        location: &str,
        mode: Mode,
        timeout: Duration,
    ) -> Result<Self, StoreError> {
        let (jobs, mut queue) = mpsc::channel::<Message>(QUEUE);
        let mut file = File {
            path: path.to_owned(),
            location: location.to_owned(),
            mode,
            busy: timeout.max(BUSY_MIN),
            connection: None,
        };
        let serve = move || {
            while let Some(message) = queue.blocking_recv() {
                match message {
                    Message::Job(job) => job(file.connection()),
                    Message::Stop(done) => {
                        drop(file);
                        // Fails if the caller was cancelled and waits no more: the thread ends all the same.
                        done.send(()).ok();
                        return;
                    }
                }
            }
        };
        std::thread::Builder::new()
            .name(format!("sqlite-{mode:?}").to_lowercase())
            .spawn(serve)
            .map_err(|error| away(location, format!("no thread for SQLite: {error}"), false))?;
        Ok(Self {
            jobs,
            location: location.to_owned(),
        })
    }

    /// Runs `job` on the thread. Cancelling the caller does not stop the job.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let location = self.location.clone();
        let job: Job = Box::new(move |connection| {
            let result = connection.and_then(|connection| {
                job(connection).map_err(|error| store_error(&location, &error))
            });
            // Fails if the caller has timed out: then nobody needs the answer.
            reply.send(result).ok();
        });
        let closed = || away(&self.location, "the store is closed".to_owned(), false);
        let message = Message::Job(job);
        self.jobs.send(message).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    /// Ends the thread after the queued jobs, and closes the file.
    pub(super) async fn stop(&self) {
        let (done, stopped) = oneshot::channel();
        if self.jobs.send(Message::Stop(done)).await.is_ok() {
            stopped.await.ok();
        }
    }
}

/// The file, and the connection to it if there is one.
struct File {
    path: PathBuf,
    location: String,
    mode: Mode,
    busy: Duration,
    connection: Option<Connection>,
}

impl File {
    fn connection(&mut self) -> Result<&mut Connection, StoreError> {
        if !self.path.exists() {
            self.connection = None;
        }
        let opened = match self.connection.take() {
            Some(connection) => connection,
            None => self.open()?,
        };
        Ok(self.connection.insert(opened))
    }

    fn open(&self) -> Result<Connection, StoreError> {
        let missing = || StoreError::NoDatabase {
            store: self.location.clone(),
        };
        if !self.path.exists() {
            return Err(missing());
        }
        let failed = |error: rusqlite::Error| store_error(&self.location, &error);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags).map_err(failed)?;
        connection.busy_timeout(self.busy).map_err(failed)?;
        connection
            .pragma_update(None, "synchronous", "FULL")
            .map_err(failed)?;
        let version: i64 = connection
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .map_err(failed)?;
        if version != SCHEMA_VERSION {
            return Err(missing());
        }
        let query_only = self.mode == Mode::Read;
        connection
            .pragma_update(None, "query_only", query_only)
            .map_err(failed)?;
        Ok(connection)
    }
}

/// Creates folder, file and tables if they are missing. Returns whether any was.
pub(super) fn create(path: &Path, location: &str) -> Result<bool, StoreError> {
    let failed = |reason: String| StoreError::File {
        path: path.display().to_string(),
        reason,
    };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)
            .map_err(|error| failed(format!("cannot create its folder: {error}")))?;
    }
    let connection = Connection::open(path).map_err(|error| failed(error.to_string()))?;
    let sql = |error: rusqlite::Error| store_error(location, &error);
    connection.busy_timeout(BUSY_MIN).map_err(sql)?;
    let version: i64 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(sql)?;
    match version {
        SCHEMA_VERSION => return Ok(false),
        0 => {}
        other => {
            return Err(failed(format!(
                "it has layout {other}, this version of vogeler knows {SCHEMA_VERSION}"
            )));
        }
    }
    connection
        .pragma_update(None, "journal_mode", "WAL")
        .map_err(sql)?;
    connection.execute_batch(SCHEMA).map_err(sql)?;
    Ok(true)
}

/// The store error for an error of SQLite.
fn store_error(location: &str, error: &rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => StoreError::Unauthorized {
            store: location.to_owned(),
            reason: error.to_string(),
        },
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => StoreError::Protocol {
            store: location.to_owned(),
            reason: error.to_string(),
        },
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            away(location, error.to_string(), false)
        }
        _ => away(location, error.to_string(), true),
    }
}

fn away(location: &str, reason: String, is_answer: bool) -> StoreError {
    StoreError::Away {
        store: location.to_owned(),
        reason,
        retry_after: None,
        is_answer,
    }
}
