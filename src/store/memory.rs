//! The store in memory, for tests and trials: CouchDB's revision rules, and faults on demand.
//!
//! A clone is a handle on the same documents: through it a test scripts faults ([`MemoryStore::script`]) and acts as
//! somebody else who edits or deletes documents. Invariant: after [`Store::write`] the documents are as its verdicts
//! say.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::value::RawValue;

use super::facts::Facts;
use super::rules;
use super::{
    About, Census, Designs, NodeSummary, Query, Revision, Store, StoreError, StoredDocument,
    Verdict, Verdicts, Write,
};
use crate::wire::NodeName;

const LOCATION: &str = "memory:";

/// The store. Cheap to clone; all clones hold the same documents.
#[derive(Debug, Clone)]
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
    document_bytes_max: usize,
}

#[derive(Debug, Default)]
struct State {
    documents: BTreeMap<NodeName, (Revision, Box<RawValue>)>,
    load_faults: VecDeque<Fault>,
    write_faults: VecDeque<Fault>,
    poison: Option<(String, Failure)>,
    refused: Option<String>,
    unreadable: Option<NodeName>,
    loads: u64,
    writes: u64,
}

/// A call that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// [`Store::load`].
    Load,
    /// [`Store::write`].
    Write,
}

/// What goes wrong with one call. Each scripted fault meets one call, in the order scripted.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Nothing: this call succeeds.
    None,
    /// The call fails and has done nothing.
    Before(Failure),
    /// The call fails, but its documents are written: the answer was lost on the way.
    After(Failure),
    /// These documents get these verdicts and are not written; the others succeed.
    Rows(Verdicts),
    /// The call succeeds after this delay.
    Delay(Duration),
}

/// How a call as a whole fails: the [`StoreError`] of the same name.
#[derive(Debug, Clone)]
pub enum Failure {
    /// [`StoreError::Away`], with the pause that the store asks for.
    Away {
        /// `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// [`StoreError::Away`], reported by the store itself.
    Failed,
    /// [`StoreError::Unauthorized`].
    Unauthorized,
    /// [`StoreError::NoDatabase`].
    NoDatabase,
}

impl Failure {
    fn error(self) -> StoreError {
        let store = LOCATION.to_owned();
        let reason = "scripted".to_owned();
        match self {
            Self::Away { retry_after } => StoreError::Away {
                store,
                reason,
                retry_after,
                is_answer: false,
            },
            Self::Failed => StoreError::Away {
                store,
                reason,
                retry_after: None,
                is_answer: true,
            },
            Self::Unauthorized => StoreError::Unauthorized { store, reason },
            Self::NoDatabase => StoreError::NoDatabase { store },
        }
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self {
            state: Arc::default(),
            document_bytes_max: rules::DOCUMENT_BYTES_MAX,
        }
    }
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same store with another maximum document size, in bytes (default: CouchDB's 8,000,000).
    #[must_use]
    pub fn with_document_bytes_max(mut self, bytes: usize) -> Self {
        self.document_bytes_max = bytes;
        self
    }

    /// Applies `fault` to the next call of this kind that has no fault scripted yet.
    pub fn script(&self, call: Call, fault: Fault) {
        let mut state = self.lock();
        match call {
            Call::Load => state.load_faults.push_back(fault),
            Call::Write => state.write_faults.push_back(fault),
        }
    }

    /// From now on a write fails as a whole, and writes nothing, if one of its documents holds this text.
    pub fn poison(&self, text: &str) {
        self.poison_as(text, Failure::Failed);
    }

    /// Like [`poison`](Self::poison), with this failure.
    pub fn poison_as(&self, text: &str, failure: Failure) {
        self.lock().poison = Some((text.to_owned(), failure));
    }

    /// From now on the document of this node cannot be read. Replaces the node of an earlier call.
    pub fn fail_reads(&self, id: Option<NodeName>) {
        self.lock().unreadable = id;
    }

    /// From now on a document that holds this text is refused as a bad request.
    pub fn refuse(&self, text: &str) {
        self.lock().refused = Some(text.to_owned());
    }

    /// How often [`Store::load`] was called.
    pub fn loads(&self) -> u64 {
        self.lock().loads
    }

    /// How often [`Store::write`] was called.
    pub fn writes(&self) -> u64 {
        self.lock().writes
    }

    /// The document as the store has it.
    pub fn document(&self, id: &NodeName) -> Option<StoredDocument> {
        let state = self.lock();
        let (revision, json) = state.documents.get(id)?;
        stored(id, revision, json)
    }

    /// Somebody else's edit: replaces whatever is there, and returns the new revision.
    pub fn overwrite(&self, id: &NodeName, json: Box<RawValue>) -> Revision {
        self.lock().put(id, json)
    }

    /// Somebody else's deletion. Says whether the document was there.
    pub fn delete(&self, id: &NodeName) -> bool {
        self.lock().documents.remove(id).is_some()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under this lock is a failed assertion of a test; the documents are whole all the same.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_fault(&self, call: Call) -> Fault {
        let mut state = self.lock();
        let faults = match call {
            Call::Load => &mut state.load_faults,
            Call::Write => &mut state.write_faults,
        };
        faults.pop_front().unwrap_or(Fault::None)
    }

    fn read(&self, ids: &[NodeName]) -> HashMap<NodeName, StoredDocument> {
        let found = |id: &NodeName| Some((id.clone(), self.document(id)?));
        ids.iter().filter_map(found).collect()
    }

    /// Writes what may be written. Documents in `verdicts` have their verdict already and are skipped.
    fn apply(&self, documents: Vec<Write>, mut verdicts: Verdicts) -> Verdicts {
        let mut admitted = rules::admit(documents);
        let writes = std::mem::take(&mut admitted.writes);
        let mut state = self.lock();
        for write in writes {
            if verdicts.contains_key(&write.id) {
                continue;
            }
            let current = state.documents.get(&write.id).map(|(revision, _)| revision);
            let refused = state.refused.as_deref();
            let is_refused = refused.is_some_and(|text| write.json.get().contains(text));
            let verdict = match rules::judge(&write, current, self.document_bytes_max) {
                Some(verdict) => verdict,
                None if is_refused => rules::refused("bad_request", "scripted"),
                None => Verdict::Stored(state.put(&write.id, write.json)),
            };
            verdicts.insert(write.id, verdict);
        }
        admitted.conclude(verdicts)
    }

    fn select<T>(&self, pick: impl Fn(&NodeName, &Facts<'_>) -> Option<T>) -> Vec<T> {
        let state = self.lock();
        let read = |(id, (_, json)): (&NodeName, &(Revision, Box<RawValue>))| {
            pick(id, &Facts::read(json.get())?)
        };
        state.documents.iter().filter_map(read).collect()
    }
}

impl State {
    fn put(&mut self, id: &NodeName, json: Box<RawValue>) -> Revision {
        let previous = self.documents.get(id).map(|(revision, _)| revision);
        let revision = rules::next_revision(previous, &json);
        self.documents.insert(id.clone(), (revision.clone(), json));
        revision
    }
}

fn stored(id: &NodeName, revision: &Revision, json: &RawValue) -> Option<StoredDocument> {
    let mut text = String::with_capacity(json.get().len() + rules::ENVELOPE_BYTES);
    rules::splice(&mut text, id.as_str(), Some(&revision.0), json);
    Some(StoredDocument {
        revision: revision.clone(),
        json: RawValue::from_string(text).ok()?,
        failure: None,
    })
}

#[async_trait]
impl Store for MemoryStore {
    async fn load(
        &self,
        ids: &[NodeName],
    ) -> Result<HashMap<NodeName, StoredDocument>, StoreError> {
        self.lock().loads += 1;
        match self.next_fault(Call::Load) {
            Fault::Before(failure) | Fault::After(failure) => return Err(failure.error()),
            Fault::Delay(delay) => tokio::time::sleep(delay).await,
            Fault::None | Fault::Rows(_) => {}
        }
        let mut found = self.read(ids);
        if let Some(id) = self.lock().unreadable.clone().filter(|id| ids.contains(id)) {
            found.insert(id, StoredDocument::failed("scripted".to_owned()));
        }
        Ok(found)
    }

    async fn write(&self, documents: Vec<Write>) -> Result<Verdicts, StoreError> {
        self.lock().writes += 1;
        let poison = self.lock().poison.clone();
        if let Some((text, failure)) = poison
            && documents.iter().any(|it| it.json.get().contains(&text))
        {
            return Err(failure.error());
        }
        match self.next_fault(Call::Write) {
            Fault::Before(failure) => Err(failure.error()),
            Fault::After(failure) => {
                self.apply(documents, Verdicts::new());
                Err(failure.error())
            }
            Fault::Rows(verdicts) => Ok(self.apply(documents, verdicts)),
            Fault::Delay(delay) => {
                tokio::time::sleep(delay).await;
                Ok(self.apply(documents, Verdicts::new()))
            }
            Fault::None => Ok(self.apply(documents, Verdicts::new())),
        }
    }

    async fn setup(&self, _designs: Designs<'_>) -> Result<Vec<String>, StoreError> {
        Ok(vec!["memory: needs no set-up".to_owned()])
    }

    async fn about(&self) -> Result<About, StoreError> {
        let documents = self.select(|_, _| Some(())).len();
        Ok(About {
            product: "memory".to_owned(),
            location: LOCATION.to_owned(),
            documents: documents as u64,
        })
    }

    async fn nodes(&self) -> Result<Vec<NodeSummary>, StoreError> {
        Ok(self.select(|id, facts| Some(facts.summary(id.clone()))))
    }

    async fn find(&self, query: &Query) -> Result<Vec<NodeName>, StoreError> {
        Ok(self.select(|id, facts| facts.matches(query).then(|| id.clone())))
    }

    async fn census(&self, since: Timestamp) -> Result<Census, StoreError> {
        let updates = self.select(|id, facts| Some(facts.summary(id.clone()).updated_at));
        let recent = updates.iter().flatten().filter(|time| **time >= since);
        Ok(Census {
            recent: recent.count() as u64,
            nodes: updates.len() as u64,
        })
    }

    async fn close(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(revision: Option<Revision>, json: &str) -> Vec<Write> {
        vec![Write {
            id: "a".parse().unwrap(),
            revision,
            json: RawValue::from_string(json.to_owned()).unwrap(),
        }]
    }

    /// Goal: a fault before leaves nothing behind, a fault after leaves the document, and each meets one call.
    #[tokio::test]
    async fn faults_fail_one_call_before_or_after_it_is_applied() {
        let store = MemoryStore::new();
        let away = || Failure::Away {
            retry_after: Some(Duration::from_secs(7)),
        };
        store.script(Call::Write, Fault::Before(away()));
        store.script(Call::Write, Fault::After(away()));
        let error = store.write(write(None, "{}")).await.unwrap_err();
        assert_eq!(error.retry_after(), Some(Duration::from_secs(7)));
        let id: NodeName = "a".parse().unwrap();
        assert!(store.document(&id).is_none());
        store.write(write(None, "{}")).await.unwrap_err();
        assert!(store.document(&id).is_some());
        let verdicts = store.write(write(None, "{}")).await.unwrap();
        assert_eq!(verdicts["a"], Verdict::Conflict);
        assert_eq!(store.writes(), 3);
    }

    /// Goal: a scripted verdict replaces the write; each other failure is the error of the same name.
    #[tokio::test(start_paused = true)]
    async fn scripted_verdicts_and_failures_are_what_comes_back() {
        let store = MemoryStore::new();
        let id: NodeName = "a".parse().unwrap();
        let refused = rules::refused("forbidden", "no");
        store.script(
            Call::Write,
            Fault::Rows([(id.clone(), refused.clone())].into()),
        );
        let verdicts = store.write(write(None, "{}")).await.unwrap();
        assert_eq!(verdicts["a"], refused);
        assert!(store.document(&id).is_none());
        store.script(Call::Load, Fault::Before(Failure::Unauthorized));
        store.script(Call::Load, Fault::Before(Failure::NoDatabase));
        store.script(Call::Load, Fault::Delay(Duration::from_secs(3)));
        let ids = [id];
        let first = store.load(&ids).await.unwrap_err();
        assert!(matches!(first, StoreError::Unauthorized { .. }));
        let second = store.load(&ids).await.unwrap_err();
        assert!(matches!(second, StoreError::NoDatabase { .. }));
        let before = tokio::time::Instant::now();
        assert!(store.load(&ids).await.unwrap().is_empty());
        assert_eq!(before.elapsed(), Duration::from_secs(3));
    }
}
