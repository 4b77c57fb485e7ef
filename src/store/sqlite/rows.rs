//! What is done with the rows: the SQL of the embedded store, on a connection that somebody else opened.

use std::collections::HashMap;

use jiff::Timestamp;
use rusqlite::{
    Connection, ErrorCode, OptionalExtension, Transaction, TransactionBehavior, params,
};
use serde_json::value::RawValue;

use super::super::facts::{Facts, NODE_DOC_TYPE};
use super::super::{Census, Revision, StoredDocument, Verdict, Verdicts, Write, rules};
use crate::wire::NodeName;

const SELECT: &str = "SELECT revision, json FROM documents WHERE id = ?1";
const REVISION: &str = "SELECT revision FROM documents WHERE id = ?1";
const UPSERT: &str = "INSERT INTO documents (id, revision, json) VALUES (?1, ?2, ?3)
    ON CONFLICT (id) DO UPDATE SET revision = excluded.revision, json = excluded.json";
/// No node is called so: names do not start with an underscore.
const PROBE_ID: &str = "_probe";
const NODES: &str = "SELECT id, json FROM documents WHERE doc_type = ?1 ORDER BY id";
/// Reads every document: an embedded store is small, and this is asked once a minute.
const RECENT: &str = "SELECT count(*) FROM documents
    WHERE doc_type = ?1 AND unixepoch(json_extract(json, '$.updated_at'), 'subsec') >= ?2";
const COUNT: &str = "SELECT count(*) FROM documents WHERE doc_type = ?1";

/// Reads documents by id. A row that is not text, or whose text is not JSON (somebody else's edit), comes as `null`.
pub(super) fn load(
    connection: &mut Connection,
    ids: &[NodeName],
) -> rusqlite::Result<HashMap<NodeName, StoredDocument>> {
    // One transaction: all documents as of one moment, and one lock instead of one a row.
    let transaction = connection.transaction()?;
    let mut statement = transaction.prepare_cached(SELECT)?;
    let mut found = HashMap::with_capacity(ids.len());
    for id in ids {
        let row = statement
            .query_row([id.as_str()], |row| {
                let texts = (row.get_ref(0)?.as_str(), row.get_ref(1)?.as_str());
                Ok(match texts {
                    (Ok(revision), Ok(json)) => stored(id, revision, json),
                    _ => None,
                })
            })
            .optional()?;
        if let Some(document) = row {
            let document = document.unwrap_or_else(StoredDocument::unreadable);
            found.insert(id.clone(), document);
        }
    }
    Ok(found)
}

fn stored(id: &NodeName, revision: &str, json: &str) -> Option<StoredDocument> {
    let json: &RawValue = serde_json::from_str(json).ok()?;
    let mut text = String::with_capacity(json.get().len() + rules::ENVELOPE_BYTES);
    rules::splice(&mut text, id.as_str(), Some(revision), json);
    Some(StoredDocument {
        revision: Revision(revision.into()),
        json: RawValue::from_string(text).ok()?,
        failure: None,
    })
}

/// Writes a batch in one transaction: a verdict that says stored is given only after the commit. An error that is about one
/// row is that row's verdict; the statement is undone, and the rest of the transaction goes on.
pub(super) fn write(connection: &mut Connection, writes: &[Write]) -> rusqlite::Result<Verdicts> {
    // Immediate: the lock is taken before the revisions are read, so that no other process writes in between.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut verdicts = Verdicts::with_capacity(writes.len());
    for write in writes {
        let verdict = match write_one(&transaction, write) {
            Err(error) => match verdict_of(&error) {
                Some(verdict) if takes_any(&transaction)? => verdict,
                _ => return Err(error),
            },
            written => written?,
        };
        verdicts.insert(write.id.clone(), verdict);
    }
    transaction.commit()?;
    Ok(verdicts)
}

/// The verdict on a row, where an error may be about the row: what its text means to SQLite's JSON functions, a constraint
/// or a trigger of somebody's, a row there that is none of ours. All other errors (disk, lock, memory, damage) are not.
fn verdict_of(error: &rusqlite::Error) -> Option<Verdict> {
    let word = match error.sqlite_error_code() {
        Some(ErrorCode::ConstraintViolation) => "forbidden",
        Some(ErrorCode::TooBig) => rules::DOCUMENT_TOO_LARGE,
        Some(ErrorCode::Unknown | ErrorCode::TypeMismatch) => "bad_request",
        None if is_of_value(error) => "bad_request",
        Some(_) | None => return None,
    };
    Some(rules::refused(word, &error.to_string()))
}

fn is_of_value(error: &rusqlite::Error) -> bool {
    matches!(
        error,
        rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
    )
}

/// Whether the store takes a document that nobody can have anything against: a table that went, or a trigger that forbids
/// all writes, says the same words as a bad row.
fn takes_any(transaction: &Transaction<'_>) -> rusqlite::Result<bool> {
    if transaction.is_autocommit() {
        // It was rolled back as a whole; what was written before is gone.
        return Ok(false);
    }
    transaction.execute_batch("SAVEPOINT probe")?;
    let probe = transaction.prepare_cached(UPSERT);
    let is_taken =
        probe.is_ok_and(|mut probe| probe.execute(params![PROBE_ID, "0-", "{}"]).is_ok());
    transaction.execute_batch("ROLLBACK TO probe; RELEASE probe")?;
    Ok(is_taken)
}

fn write_one(transaction: &Transaction<'_>, write: &Write) -> rusqlite::Result<Verdict> {
    let id = write.id.as_str();
    let current: Option<String> = transaction
        .prepare_cached(REVISION)?
        .query_row([id], |row| row.get(0))
        .optional()?;
    let current = current.map(|revision| Revision(revision.into()));
    if let Some(verdict) = rules::judge(write, current.as_ref(), rules::DOCUMENT_BYTES_MAX) {
        return Ok(verdict);
    }
    let revision = rules::next_revision(current.as_ref(), &write.json);
    transaction
        .prepare_cached(UPSERT)?
        .execute(params![id, &*revision.0, write.json.get()])?;
    Ok(Verdict::Stored(revision))
}

/// Streams all node documents, by name, past `pick`.
pub(super) fn select<T>(
    connection: &mut Connection,
    pick: impl Fn(NodeName, &Facts<'_>) -> Option<T>,
) -> rusqlite::Result<Vec<T>> {
    let mut statement = connection.prepare_cached(NODES)?;
    let mut rows = statement.query([NODE_DOC_TYPE])?;
    let mut picked = Vec::new();
    while let Some(row) = rows.next()? {
        let (Ok(id), Ok(json)) = (row.get_ref(0)?.as_str(), row.get_ref(1)?.as_str()) else {
            continue;
        };
        if let (Ok(id), Some(facts)) = (NodeName::new(id), Facts::read(json)) {
            picked.extend(pick(id, &facts));
        }
    }
    Ok(picked)
}

/// Counts the node documents, and those that changed at `since` or later. Reads every document, once a minute for
/// a server: fine for the fleets that an embedded store is for, and cheaper than an index that every write would pay for.
#[allow(clippy::cast_precision_loss, reason = "milliseconds fit")]
pub(super) fn census(connection: &mut Connection, since: Timestamp) -> rusqlite::Result<Census> {
    let nodes = count(connection)?;
    let seconds = since.as_millisecond() as f64 / 1000.0;
    let recent: i64 =
        connection.query_row(RECENT, params![NODE_DOC_TYPE, seconds], |row| row.get(0))?;
    Ok(Census {
        nodes,
        recent: u64::try_from(recent).unwrap_or(0),
    })
}

/// Counts the node documents.
pub(super) fn count(connection: &mut Connection) -> rusqlite::Result<u64> {
    let count: i64 = connection.query_row(COUNT, [NODE_DOC_TYPE], |row| row.get(0))?;
    Ok(u64::try_from(count).unwrap_or(0))
}
