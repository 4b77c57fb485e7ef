//! Writing documents: `_bulk_docs`, taken apart until every document has its own verdict.
//!
//! [`Plan`] is pure: it holds the documents that have no verdict yet, cut into requests, and learns from each answer.
//! The loop around it only sends. Invariant: a document leaves the plan with exactly one verdict.

use std::sync::atomic::Ordering;
use std::time::Duration;

use reqwest::Method;

use super::outcome::{Answer, classify};
use super::{CouchStore, NodeName, StoreError, Verdicts, Write, rules};
use crate::store::Verdict;
use crate::telemetry::{self, SplitReason};

/// Most requests per call: enough to find, by halving, a few culprits among a few hundred documents. After that the
/// documents without a verdict fail, and come again with the next call.
const REQUESTS_MAX: usize = 64;
const BODY_START: &str = "{\"docs\":[";
const BODY_END: &str = "]}";

impl CouchStore {
    /// Writes documents with distinct ids, all of them JSON objects.
    pub(super) async fn write_bulk(&self, writes: &[Write]) -> Result<Verdicts, StoreError> {
        let mut plan = Plan::new(writes, self.request_bytes_max.load(Ordering::Relaxed));
        let mut requests = 0;
        while let Some(group) = plan.next() {
            requests += 1;
            let answer = if requests > REQUESTS_MAX {
                Answer::Away {
                    reason: format!("no verdict after {REQUESTS_MAX} requests"),
                    retry_after: None,
                    is_answer: false,
                }
            } else {
                self.send_group(group).await
            };
            if let Some(reason) = split(&answer).filter(|_| group.len() > 1) {
                telemetry::record_split(reason);
            }
            if let Answer::TooLarge { .. } = &answer {
                let half = (size(group) / 2).max(1);
                let before = self.request_bytes_max.fetch_min(half, Ordering::Relaxed);
                let ceiling = half.min(before);
                tracing::warn!(
                    database = self.client.location(),
                    request_bytes_max = ceiling,
                    "CouchDB says that a request is too large; sending less at once from now on"
                );
            }
            plan.learn(answer).map_err(|stop| self.error(stop))?;
        }
        Ok(plan.verdicts)
    }

    /// What [`write_bulk`](Self::write_bulk) returns if every request gets this answer, for `crate::fuzzing`.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn write_answered(
        &self,
        writes: &[Write],
        reply: &super::client::Reply,
    ) -> Result<Verdicts, StoreError> {
        let mut plan = Plan::new(writes, self.request_bytes_max.load(Ordering::Relaxed));
        while let Some(group) = plan.next() {
            let sent: Vec<&NodeName> = group.iter().map(|write| &write.id).collect();
            plan.learn(classify(reply, &sent))
                .map_err(|stop| self.error(stop))?;
        }
        Ok(plan.verdicts)
    }

    async fn send_group(&self, group: &[&Write]) -> Answer {
        let sent: Vec<&NodeName> = group.iter().map(|write| &write.id).collect();
        let body = body(group).into_bytes();
        let path = ["_bulk_docs"];
        match self.client.send(Method::POST, &path, &[], Some(body)).await {
            Ok(reply) => classify(&reply, &sent),
            Err(StoreError::Away {
                reason,
                retry_after,
                is_answer,
                ..
            }) => Answer::Away {
                reason,
                retry_after,
                is_answer,
            },
            Err(error) => Answer::Protocol {
                reason: error.to_string(),
            },
        }
    }

    fn error(&self, stop: Stop) -> StoreError {
        let store = self.client.location().to_owned();
        match stop {
            Stop::Away {
                reason,
                retry_after,
                is_answer,
            } => StoreError::Away {
                store,
                reason,
                retry_after,
                is_answer,
            },
            Stop::Unauthorized { reason } => StoreError::Unauthorized { store, reason },
            Stop::NoDatabase => StoreError::NoDatabase { store },
            Stop::Protocol { reason } => self.client.protocol(reason),
        }
    }
}

/// Why an answer splits a request, if it does.
fn split(answer: &Answer) -> Option<SplitReason> {
    match answer {
        Answer::Culprit { .. } => Some(SplitReason::Named),
        Answer::Bisect { .. } => Some(SplitReason::Bisect),
        Answer::TooLarge { .. } => Some(SplitReason::TooLarge),
        _ => None,
    }
}

/// Why the whole call fails: an answer that leaves no verdict for any document.
#[derive(Debug, PartialEq, Eq)]
enum Stop {
    Away {
        reason: String,
        retry_after: Option<Duration>,
        is_answer: bool,
    },
    Unauthorized {
        reason: String,
    },
    NoDatabase,
    Protocol {
        reason: String,
    },
}

/// Documents on their way to a verdict.
struct Plan<'a> {
    /// Groups to send, the next one last.
    open: Vec<Vec<&'a Write>>,
    verdicts: Verdicts,
    bytes_max: usize,
}

impl<'a> Plan<'a> {
    fn new(writes: &'a [Write], bytes_max: usize) -> Self {
        let mut plan = Self {
            open: Vec::new(),
            verdicts: Verdicts::with_capacity(writes.len()),
            bytes_max,
        };
        plan.push(writes.iter().collect());
        plan
    }

    /// What to send next; none when every document has its verdict.
    fn next(&self) -> Option<&Vec<&'a Write>> {
        self.open.last()
    }

    /// Applies the answer to the last group. Fails if the call is over and no verdict is known at all.
    fn learn(&mut self, answer: Answer) -> Result<(), Stop> {
        let group = self.open.pop().unwrap_or_default();
        match answer {
            Answer::Rows(verdicts) => self.verdicts.extend(verdicts),
            Answer::Culprit { id, verdict } => {
                let rest = group.into_iter().filter(|write| write.id != id).collect();
                self.verdicts.insert(id, verdict);
                self.push(rest);
            }
            Answer::Bisect { verdict } => self.halve(group, verdict),
            Answer::TooLarge { verdict } => {
                self.bytes_max = self.bytes_max.min(size(&group) / 2);
                self.halve(group, verdict);
            }
            Answer::Away {
                reason,
                retry_after,
                is_answer,
            } => {
                let stop = Stop::Away {
                    reason: reason.clone(),
                    retry_after,
                    is_answer,
                };
                let word = if is_answer && retry_after.is_none() {
                    "internal_server_error"
                } else {
                    "away"
                };
                return self.stop(group, stop, word, &reason);
            }
            Answer::Unauthorized { reason } => {
                let stop = Stop::Unauthorized {
                    reason: reason.clone(),
                };
                return self.stop(group, stop, "unauthorized_request", &reason);
            }
            Answer::NoDatabase => {
                return self.stop(group, Stop::NoDatabase, "no_database", "the database went");
            }
            Answer::Protocol { reason } => {
                let stop = Stop::Protocol {
                    reason: reason.clone(),
                };
                return self.stop(group, stop, "protocol", &reason);
            }
        }
        Ok(())
    }

    /// Takes a group that is refused as a whole: halves it, or, if it has one document, gives that document the
    /// verdict.
    fn halve(&mut self, mut group: Vec<&'a Write>, verdict: Verdict) {
        if let [culprit] = group.as_slice() {
            self.verdicts.insert(culprit.id.clone(), verdict);
            return;
        }
        let right = group.split_off(group.len() / 2);
        self.push(right);
        self.push(group);
    }

    /// Ends the call, since nothing more can be sent. Keeps the verdicts that are known: the other documents fail one
    /// by one.
    fn stop(
        &mut self,
        group: Vec<&'a Write>,
        stop: Stop,
        error: &str,
        reason: &str,
    ) -> Result<(), Stop> {
        if self.verdicts.is_empty() {
            return Err(stop);
        }
        let rest = group.into_iter().chain(self.open.drain(..).flatten());
        let failed = rest.map(|write| {
            let verdict = Verdict::Failed {
                error: error.to_owned(),
                reason: reason.to_owned(),
            };
            (write.id.clone(), verdict)
        });
        self.verdicts.extend(failed);
        Ok(())
    }

    /// Cuts documents into groups of at most `bytes_max` and queues them to be sent next. A single document may be
    /// larger.
    fn push(&mut self, writes: Vec<&'a Write>) {
        let mut groups: Vec<Vec<&'a Write>> = Vec::new();
        let mut bytes = 0;
        for write in writes {
            let more = document_size(write);
            match groups.last_mut() {
                Some(group) if bytes + more <= self.bytes_max => group.push(write),
                _ => {
                    groups.push(vec![write]);
                    bytes = BODY_START.len() + BODY_END.len();
                }
            }
            bytes += more;
        }
        self.open.extend(groups.into_iter().rev());
    }
}

/// Approximate size of a document in a request, in bytes: ids are rarely escaped.
fn document_size(write: &Write) -> usize {
    let revision = write
        .revision
        .as_ref()
        .map_or(0, |revision| revision.0.len());
    write.json.get().len() + write.id.as_str().len() + revision + r#","_id":"","_rev":"","#.len()
}

fn size(group: &[&Write]) -> usize {
    group.iter().map(|write| document_size(write)).sum()
}

/// The request: members are spliced in as they are, no value is parsed.
fn body(group: &[&Write]) -> String {
    let mut body = String::with_capacity(size(group) + BODY_START.len() + BODY_END.len());
    body.push_str(BODY_START);
    for (index, write) in group.iter().enumerate() {
        if index > 0 {
            body.push(',');
        }
        let revision = write.revision.as_ref().map(|revision| &*revision.0);
        rules::splice(&mut body, write.id.as_str(), revision, &write.json);
    }
    body.push_str(BODY_END);
    body
}

#[cfg(test)]
mod tests;
