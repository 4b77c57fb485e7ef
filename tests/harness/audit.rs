//! A memory store and broker that watch what passes, for tests of the whole pipeline under faults.
//!
//! At every write: no sequence goes back, and no key of somebody else's is lost. At every ack: what is acknowledged is in
//! the store, or overtaken by something newer there, or in the dead letters. What does not hold is noted as a violation.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use vogeler::broker::memory::MemoryBroker;
use vogeler::broker::topology::{Binding, Exchange, Queue};
use vogeler::broker::{
    Broker, BrokerError, Consumer, Link, Message, Missing, QueueBrowser, QueueDepth, Settlement,
    Settler,
};
use vogeler::store::memory::MemoryStore;
use vogeler::store::{
    About, Census, Designs, NodeSummary, Query, Store, StoreError, StoredDocument, Verdicts, Write,
};
use vogeler::wire::{Content, NodeName, PluginResult};

use super::pipeline::{edit, name};

/// What has been seen so far. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Audit {
    pub(crate) store: MemoryStore,
    /// Sequences above this come from a broken clock.
    seq_sane_max: u64,
    book: Arc<Mutex<Book>>,
}

#[derive(Debug, Default)]
struct Book {
    published: HashMap<Bytes, PluginResult>,
    seqs: BTreeMap<(String, String), u64>,
    foreign: BTreeMap<(String, String), Value>,
    deleted: BTreeSet<String>,
    dead: BTreeSet<Bytes>,
    /// How often the queue of dead letters takes none.
    dead_refusals: usize,
    forward_refusals: usize,
    /// States that another version wrote, and what it put beside them.
    skewed: BTreeMap<(String, String), Value>,
    beside: BTreeMap<String, Value>,
    /// How often a server put a message into another queue, less how often it acknowledged one for that.
    forwarded: HashMap<Bytes, usize>,
    violations: Vec<String>,
}

impl Audit {
    pub(crate) fn new(store: MemoryStore, seq_sane_max: u64) -> Self {
        Self {
            store,
            seq_sane_max,
            book: Arc::default(),
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap()
    }

    /// A result that will be published as `body`.
    pub(crate) fn publishing(&self, body: Bytes, result: PluginResult) {
        self.book().published.insert(body, result);
    }

    /// What did not hold.
    pub(crate) fn violations(&self) -> Vec<String> {
        self.book().violations.clone()
    }

    /// Whether this message is in the dead letters.
    pub(crate) fn is_dead(&self, body: &Bytes) -> bool {
        self.book().dead.contains(body)
    }

    /// Whether somebody deleted the document, ever.
    pub(crate) fn was_deleted(&self, node: &str) -> bool {
        self.book().deleted.contains(node)
    }

    /// Somebody else sets a key of his own.
    pub(crate) fn edit(&self, node: &str, key: &str, value: Value) {
        edit(&self.store, node, key, value.clone());
        let mut book = self.book();
        book.foreign
            .insert((node.to_owned(), key.to_owned()), value);
    }

    /// Another version of the server writes one plugin's state, and something beside it.
    pub(crate) fn skew(&self, node: &str, change: impl FnOnce(&mut Value)) {
        let mut document = self.document(node);
        let states = document.pointer_mut("/vogeler/plugins");
        let Some(states) = states.and_then(Value::as_object_mut) else {
            return;
        };
        let Some((plugin, state)) = states.iter_mut().next() else {
            return;
        };
        change(state);
        let (plugin, state) = (plugin.clone(), state.clone());
        let beside = json!([state["seq"], 1]);
        document["vogeler"]["later"] = beside.clone();
        let store = &self.store;
        store.overwrite(&name(node), super::pipeline::foreign(&document));
        let mut book = self.book();
        book.skewed.insert((node.to_owned(), plugin), state);
        book.beside.insert(node.to_owned(), beside);
    }

    /// Somebody breaks a document's bookkeeping: from here on nobody knows what is newer.
    pub(crate) fn break_bookkeeping(&self, node: &str) {
        let mut document = self.document(node);
        if document["vogeler"].is_object() {
            document["vogeler"] = json!("broken");
            let store = &self.store;
            store.overwrite(&name(node), super::pipeline::foreign(&document));
            self.forget(node);
        }
    }

    /// What is expected of a document that somebody deleted, or whose bookkeeping is gone: nothing.
    fn forget(&self, node: &str) {
        let mut book = self.book();
        book.seqs.retain(|(of, _), _| of != node);
        book.skewed.retain(|(of, _), _| of != node);
        book.beside.remove(node);
        book.deleted.insert(node.to_owned());
    }

    /// The queue of dead letters takes none of the next `count`.
    pub(crate) fn refuse_dead_letters(&self, count: usize) {
        self.book().dead_refusals += count;
    }

    /// The next `count` results that are put into another queue are not taken.
    pub(crate) fn refuse_forwards(&self, count: usize) {
        self.book().forward_refusals += count;
    }

    fn refuse_forward(&self) -> Option<BrokerError> {
        let mut book = self.book();
        book.forward_refusals = book.forward_refusals.checked_sub(1)?;
        let timeout = Duration::from_secs(1);
        Some(BrokerError::Unconfirmed { timeout })
    }

    fn refuse_dead_letter(&self) -> Option<BrokerError> {
        let mut book = self.book();
        book.dead_refusals = book.dead_refusals.checked_sub(1)?;
        let timeout = Duration::from_secs(1);
        Some(if book.dead_refusals.is_multiple_of(2) {
            BrokerError::Unconfirmed { timeout }
        } else {
            BrokerError::Unroutable {
                exchange: Exchange::Dead.name(),
                routing_key: String::new(),
            }
        })
    }

    /// Somebody else deletes the document.
    pub(crate) fn delete(&self, node: &str) {
        if self.store.delete(&name(node)) {
            self.forget(node);
            let mut book = self.book();
            book.foreign.retain(|(of, _), _| of != node);
        }
    }

    /// The node's document, or `null`.
    pub(crate) fn document(&self, node: &str) -> Value {
        let stored = self.store.document(&name(node));
        stored.map_or(Value::Null, |stored| {
            serde_json::from_str(stored.json.get()).unwrap()
        })
    }

    fn written(&self, node: &str) {
        let document = self.document(node);
        let mut book = self.book();
        let mut wrong = Vec::new();
        for ((of, key), value) in &book.foreign {
            if of == node && document[key] != *value {
                wrong.push(format!("{node}: foreign key {key} lost: {document}"));
            }
        }
        for ((of, plugin), seq) in &book.seqs {
            let now = document["vogeler"]["plugins"][plugin]["seq"].as_u64();
            let is_mended = *seq > self.seq_sane_max && now.is_some();
            if of == node && now < Some(*seq) && !is_mended {
                wrong.push(format!("{node}: {plugin} went back from {seq} to {now:?}"));
            }
        }
        let states = &document["vogeler"]["plugins"];
        let is_replaced = |plugin: &String, state: &Value| states[plugin]["seq"] != state["seq"];
        book.skewed
            .retain(|(of, plugin), state| of != node || !is_replaced(plugin, state));
        for ((of, plugin), state) in &book.skewed {
            if of == node && states[plugin] != *state {
                wrong.push(format!(
                    "{node}: the state of {plugin} lost something: {document}"
                ));
            }
        }
        if let Some(beside) = book.beside.get(node)
            && document["vogeler"]["later"] != *beside
        {
            wrong.push(format!(
                "{node}: lost what a later version put beside: {document}"
            ));
        }
        book.violations.append(&mut wrong);
        let plugins = document["vogeler"]["plugins"].as_object();
        for (plugin, state) in plugins.into_iter().flatten() {
            let seq = state["seq"].as_u64().unwrap();
            book.seqs.insert((node.to_owned(), plugin.clone()), seq);
        }
    }

    fn acked(&self, body: &Bytes) {
        if self.take_forwarded(body) {
            return;
        }
        let result = self.book().published.get(body).cloned();
        if result.is_none() && body.starts_with(b"{") && !self.is_dead(body) {
            // Of 2010: a copy of an older one may stand there for a while. The end is what counts.
            return;
        }
        let is_good = self.is_dead(body)
            || result.as_ref().is_some_and(|result| {
                self.was_deleted(result.node.as_str()) || self.is_overtaken(result)
            });
        if !is_good {
            let violation = format!("acknowledged and nowhere: {result:?}");
            self.book().violations.push(violation);
        }
    }

    /// Whether a copy is in another queue for this delivery; it is then to be judged when that one ends.
    fn take_forwarded(&self, body: &Bytes) -> bool {
        let mut book = self.book();
        let copies = book.forwarded.get_mut(body).filter(|copies| **copies > 0);
        copies.map(|copies| *copies -= 1).is_some()
    }

    /// Whether the result is in the store, or one that overtakes it is.
    fn is_overtaken(&self, result: &PluginResult) -> bool {
        let newer: Vec<PluginResult> = {
            let book = self.book();
            let is_newer = |other: &&PluginResult| {
                (&other.node, &other.plugin) == (&result.node, &result.plugin)
                    && (other.seq >= result.seq || result.seq.0 > self.seq_sane_max)
            };
            book.published.values().filter(is_newer).cloned().collect()
        };
        newer.iter().any(|newer| self.is_in_store(newer))
    }

    /// Whether the result, or a newer one, or its very content is in the store.
    pub(crate) fn is_in_store(&self, result: &PluginResult) -> bool {
        let document = self.document(result.node.as_str());
        let plugin = result.plugin.as_ref().unwrap().as_str();
        let state = &document["vogeler"]["plugins"][plugin];
        let Some(seq) = state["seq"].as_u64() else {
            return false;
        };
        let is_same = match &result.content {
            Content::Value { hash, .. } => {
                state["hash"] == json!(hash) && state["last_error"].is_null()
            }
            Content::Error(error) => state["last_error"]["message"] == json!(error.message),
        };
        let is_mended = result.seq.0 > self.seq_sane_max && seq <= self.seq_sane_max;
        seq >= result.seq.0 || is_same || is_mended
    }
}

/// The store, watched.
#[derive(Debug)]
pub(crate) struct AuditedStore(pub(crate) Audit);

#[async_trait]
impl Store for AuditedStore {
    async fn load(
        &self,
        ids: &[NodeName],
    ) -> Result<HashMap<NodeName, StoredDocument>, StoreError> {
        self.0.store.load(ids).await
    }

    async fn write(&self, documents: Vec<Write>) -> Result<Verdicts, StoreError> {
        let ids: Vec<NodeName> = documents.iter().map(|write| write.id.clone()).collect();
        let answer = self.0.store.write(documents).await;
        // Nothing else runs between the write and this: no await, one thread.
        for id in ids {
            self.0.written(id.as_str());
        }
        answer
    }

    async fn setup(&self, designs: Designs<'_>) -> Result<Vec<String>, StoreError> {
        self.0.store.setup(designs).await
    }

    async fn about(&self) -> Result<About, StoreError> {
        self.0.store.about().await
    }

    async fn nodes(&self) -> Result<Vec<NodeSummary>, StoreError> {
        self.0.store.nodes().await
    }

    async fn find(&self, query: &Query) -> Result<Vec<NodeName>, StoreError> {
        self.0.store.find(query).await
    }

    async fn census(&self, since: Timestamp) -> Result<Census, StoreError> {
        self.0.store.census(since).await
    }

    async fn close(&self) {}
}

/// The broker, watched.
#[derive(Debug)]
pub(crate) struct AuditedBroker {
    pub(crate) inner: Arc<MemoryBroker>,
    pub(crate) audit: Audit,
}

/// Deliveries and settlements under way at most: more than any test makes.
const CAPACITY: usize = 65_536;

#[async_trait]
impl Broker for AuditedBroker {
    async fn declare(&self, queues: &[Queue]) -> Result<(), BrokerError> {
        self.inner.declare(queues).await
    }

    async fn unbind(&self, queue: &str, bindings: &[Binding]) -> Result<(), BrokerError> {
        self.inner.unbind(queue, bindings).await
    }

    async fn publish(&self, message: Message) -> Result<(), BrokerError> {
        let (exchange, body) = (message.exchange, message.body.clone());
        if exchange == Exchange::Dead
            && let Some(refusal) = self.audit.refuse_dead_letter()
        {
            return Err(refusal);
        }
        if exchange == Exchange::Results
            && let Some(refusal) = self.audit.refuse_forward()
        {
            return Err(refusal);
        }
        self.inner.publish(message).await?;
        match exchange {
            Exchange::Dead => _ = self.audit.book().dead.insert(body),
            Exchange::Results => *self.audit.book().forwarded.entry(body).or_default() += 1,
            _ => {}
        }
        Ok(())
    }

    async fn consume(&self, queue: &Queue, prefetch: u16) -> Result<Consumer, BrokerError> {
        let inner = self.inner.consume(queue, prefetch).await?;
        if !queue.name.starts_with("vogeler.results.") {
            // What servers tell each other carries no results.
            return Ok(inner);
        }
        let (out, deliveries) = mpsc::channel(CAPACITY);
        let supervisor = tokio::spawn(pass_on(inner, out, self.audit.clone()));
        Ok(Consumer::new(
            deliveries,
            CancellationToken::new(),
            supervisor,
        ))
    }

    async fn browse(
        &self,
        queue: &Queue,
        turn: &Queue,
    ) -> Result<Box<dyn QueueBrowser>, BrokerError> {
        self.inner.browse(queue, turn).await
    }

    async fn depth(&self, queues: &[&str]) -> Result<Vec<Option<QueueDepth>>, BrokerError> {
        self.inner.depth(queues).await
    }

    async fn missing(&self, queues: &[&str]) -> Result<Vec<Missing>, BrokerError> {
        self.inner.missing(queues).await
    }

    fn link(&self) -> watch::Receiver<Link> {
        self.inner.link()
    }

    async fn about(&self) -> Result<String, BrokerError> {
        self.inner.about().await
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

async fn pass_on(mut inner: Consumer, out: mpsc::Sender<vogeler::broker::Delivery>, audit: Audit) {
    let (settle, mut settlements) = mpsc::channel(CAPACITY);
    let mut held: HashMap<u64, (Settler, Bytes)> = HashMap::new();
    let (mut tag, mut is_stopping) = (0, false);
    while !(is_stopping && held.is_empty()) {
        tokio::select! {
            biased;
            Some((tag, settlement)) = settlements.recv() => {
                let (settler, body) = held.remove(&tag).expect("settled twice");
                match settlement {
                    Settlement::Ack => {
                        audit.acked(&body);
                        settler.ack();
                    }
                    Settlement::Requeue => settler.requeue(),
                }
            }
            () = out.closed(), if !is_stopping => {
                is_stopping = true;
                inner.cancel();
            }
            delivery = inner.next(), if !is_stopping => {
                let Some(mut delivery) = delivery else { break };
                tag += 1;
                let settler = std::mem::replace(&mut delivery.settler, Settler::new(tag, settle.clone()));
                held.insert(tag, (settler, delivery.body.clone()));
                // Closed: the settler in it gives it back.
                drop(out.try_send(delivery));
            }
        }
    }
    inner.close(Duration::from_secs(5)).await;
}
