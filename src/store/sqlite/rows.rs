//! The SQL of the embedded store: reads and writes rows on a connection that the caller opened.

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
/// Id of the probe row. It is no node's: node names do not start with an underscore.
const PROBE_ID: &str = "_probe";
const NODES: &str = "SELECT id, json FROM documents WHERE doc_type = ?1 ORDER BY id";
/// Reads every document: an embedded store is small, and this query runs once a minute.
const RECENT: &str = "SELECT count(*) FROM documents
    WHERE doc_type = ?1 AND unixepoch(json_extract(json, '$.updated_at'), 'subsec') >= ?2";
const COUNT: &str = "SELECT count(*) FROM documents WHERE doc_type = ?1";

/// Reads documents by id. A row that is not text, or whose text is not JSON (somebody else's edit), comes as `null`.
pub(super) fn load(
    connection: &mut Connection,
    ids: &[NodeName],
) -> rusqlite::Result<HashMap<NodeName, StoredDocument>> {
    // One transaction: all documents as of one moment, and one lock instead of one per row.
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

/// Writes a batch in one transaction and returns its verdicts only after the commit. An error that concerns one row is
/// that row's verdict: SQLite undoes the statement, and the transaction continues.
pub(super) fn write(connection: &mut Connection, writes: &[Write]) -> rusqlite::Result<Verdicts> {
    // Immediate: takes the lock before reading the revisions, so that no other process writes in between.
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

/// The verdict on a row if the error may concern the row: SQLite's JSON functions refuse its text, somebody's
/// constraint or trigger refuses it, or the row there is not ours. Other errors (disk, lock, memory, damage) give none.
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

/// Whether the store takes a document that has nothing wrong: a missing table, or a trigger that forbids all writes,
/// gives the same error as a bad row.
fn takes_any(transaction: &Transaction<'_>) -> rusqlite::Result<bool> {
    if transaction.is_autocommit() {
        // SQLite rolled the whole transaction back: the rows written before are gone.
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

/// Counts the node documents, and those that changed at `since` or later. Reads every document, once a minute per
/// server. That is fine for the fleets that an embedded store is for, and cheaper than an index, which slows every
/// write.
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
