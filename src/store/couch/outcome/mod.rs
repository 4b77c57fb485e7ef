//! What an answer to `_bulk_docs` means. Pure: turns status, headers and body into what to do.
//!
//! The rows of an answer are matched by id, never by position. A status of 201 says nothing about a single document.
//! Invariant: [`Answer::Rows`] holds exactly one verdict for every id that was sent.

use std::collections::HashSet;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::client::{CouchError, Reply, is_database_missing};
use super::rules::{DOCUMENT_TOO_LARGE, REQUEST_TOO_LARGE, refused};
use super::{NodeName, Verdicts};
use crate::store::Verdict;
use crate::wire::brief;

/// What an answer to `_bulk_docs` means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The answer has a verdict for each document.
    Rows(Verdicts),
    /// Nothing was written because of this document: write the others without it.
    Culprit {
        /// Whose document.
        id: NodeName,
        /// Why it is refused.
        verdict: Verdict,
    },
    /// Nothing was written because of one document that is not named: find it by halving.
    Bisect {
        /// The verdict on the document, once it is alone.
        verdict: Verdict,
    },
    /// The request is too large as a whole: send less at once.
    TooLarge {
        /// The verdict on a document that is too large alone.
        verdict: Verdict,
    },
    /// No verdict is known: back off, read, write again.
    Away {
        /// What the server said.
        reason: String,
        /// How long it asks to be left alone.
        retry_after: Option<Duration>,
        /// Whether the server itself reported the failure.
        is_answer: bool,
    },
    /// User or password are wrong, or the user lacks permission.
    Unauthorized {
        /// What the server said.
        reason: String,
    },
    /// The database is not there.
    NoDatabase,
    /// Not an answer of CouchDB's.
    Protocol {
        /// What was wrong.
        reason: String,
    },
}

/// A row. CouchDB's `error` is a word; `PouchDB`'s may be `true`, with the word in `name`.
#[derive(Deserialize)]
struct Row {
    id: Option<String>,
    rev: Option<String>,
    #[serde(default)]
    error: Value,
    name: Option<String>,
    reason: Option<String>,
    message: Option<String>,
}

/// Reads the answer to a `_bulk_docs` request that held `sent`.
pub(super) fn classify(reply: &Reply, sent: &[&NodeName]) -> Answer {
    // A server answers 417 to an all-or-nothing request, and 500 with rows if a shard failed.
    if matches!(reply.status, 200 | 201 | 202 | 417 | 500) {
        if let Ok(rows) = serde_json::from_slice::<Vec<Row>>(&reply.body) {
            return Answer::Rows(verdicts(rows, sent));
        }
        if reply.is_success() {
            // A good status with a body that was cut off: some documents may be written.
            return away(reply);
        }
    }
    let error = reply.error();
    match reply.status {
        400 if !error.error.is_empty() => Answer::Bisect {
            verdict: refused(&error.error, &error.reason),
        },
        401 | 403 => Answer::Unauthorized {
            reason: reply.describe(),
        },
        404 if is_database_missing(&error) => Answer::NoDatabase,
        // A document holds a number that Erlang cannot calculate with (an integer of 309 digits or more): CouchDB 3.5
        // fails the whole request, in the same way each time.
        500 if error.error == "unknown_error" && error.reason == "badarith" => Answer::Bisect {
            verdict: refused(
                "bad_request",
                "a number in it is too large for CouchDB (badarith)",
            ),
        },
        408 | 412 | 425 | 429 | 500.. => away(reply),
        413 => too_large(&error, sent),
        _ => Answer::Protocol {
            reason: reply.describe(),
        },
    }
}

fn away(reply: &Reply) -> Answer {
    Answer::Away {
        reason: reply.describe(),
        retry_after: reply.retry_after,
        is_answer: reply.is_own_failure(),
    }
}

/// CouchDB's `document_too_large` names the document; every other 413 (a proxy's too) is about the whole request.
fn too_large(error: &CouchError, sent: &[&NodeName]) -> Answer {
    if error.error == DOCUMENT_TOO_LARGE {
        let verdict = refused(&error.error, &error.reason);
        let named = sent.iter().find(|id| id.as_str() == error.reason);
        return match named {
            Some(id) => Answer::Culprit {
                id: (*id).clone(),
                verdict,
            },
            None => Answer::Bisect { verdict },
        };
    }
    let reason = if error.reason.is_empty() {
        "the request entity is too large"
    } else {
        &error.reason
    };
    Answer::TooLarge {
        verdict: refused(REQUEST_TOO_LARGE, reason),
    }
}

/// One verdict for every id that was sent. Rows of other ids are ignored.
fn verdicts(rows: Vec<Row>, sent: &[&NodeName]) -> Verdicts {
    let mut verdicts = Verdicts::with_capacity(sent.len());
    let wanted: HashSet<&str> = sent.iter().map(|id| id.as_str()).collect();
    for row in rows {
        let id = row.id.as_deref().filter(|id| wanted.contains(id));
        let Some(id) = id.and_then(|id| NodeName::new(id).ok()) else {
            continue;
        };
        let verdict = row.verdict();
        // If an id has two rows, the bad one counts: to read again is always safe.
        if verdicts
            .get(&id)
            .is_none_or(|seen| matches!(seen, Verdict::Stored(_)))
        {
            verdicts.insert(id, verdict);
        }
    }
    for id in sent {
        verdicts
            .entry((*id).clone())
            .or_insert_with(|| Verdict::Failed {
                error: "missing_row".to_owned(),
                reason: "the answer has no row for this document".to_owned(),
            });
    }
    verdicts
}

impl Row {
    fn verdict(self) -> Verdict {
        let reason = brief(self.reason.or(self.message).unwrap_or_default());
        let word = match self.error {
            Value::Null | Value::Bool(false) => None,
            Value::String(word) if !word.is_empty() => Some(word),
            _ => {
                let name = self.name.filter(|name| !name.is_empty());
                Some(name.unwrap_or_else(|| "unknown_error".to_owned()))
            }
        }
        .map(brief);
        match (word, self.rev) {
            (None, Some(revision)) => Verdict::Stored(crate::store::Revision(revision.into())),
            (None, None) => Verdict::Failed {
                error: "missing_revision".to_owned(),
                reason: "the row has neither an error nor a revision".to_owned(),
            },
            (Some(error), _) => match error.as_str() {
                "conflict" => Verdict::Conflict,
                "forbidden" | "unauthorized" | "document_too_large" | "bad_request"
                | "doc_validation" | "illegal_docid" | "invalid_id" => {
                    Verdict::Refused { error, reason }
                }
                _ => Verdict::Failed { error, reason },
            },
        }
    }
}

/// How many documents a 201 with this body reports as stored. For the benches, which see only public items.
#[doc(hidden)]
pub fn count_stored(body: &bytes::Bytes, sent: &[&NodeName]) -> usize {
    let reply = Reply {
        status: 201,
        retry_after: None,
        body: body.clone(),
    };
    let Answer::Rows(verdicts) = classify(&reply, sent) else {
        return 0;
    };
    let is_stored = |verdict: &&Verdict| matches!(verdict, Verdict::Stored(_));
    verdicts.values().filter(is_stored).count()
}

#[cfg(test)]
mod tests;
