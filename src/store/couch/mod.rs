//! todo
use super::*;
/// todo
#[derive(Debug, Default)]
pub struct CouchStore;
impl CouchStore {
    /// todo
    pub fn new(_c: &crate::config::Store) -> Result<Self, StoreError> {
        todo!()
    }
}
#[async_trait]
impl Store for CouchStore {
    async fn load(&self, _i: &[NodeName]) -> Result<HashMap<NodeName, StoredDocument>, StoreError> {
        todo!()
    }
    async fn write(&self, _d: Vec<Write>) -> Result<Verdicts, StoreError> {
        todo!()
    }
    async fn setup(&self, _d: Option<&Path>) -> Result<Vec<String>, StoreError> {
        todo!()
    }
    async fn about(&self) -> Result<About, StoreError> {
        todo!()
    }
    async fn nodes(&self) -> Result<Vec<NodeSummary>, StoreError> {
        todo!()
    }
    async fn find(&self, _q: &Query) -> Result<Vec<NodeName>, StoreError> {
        todo!()
    }
    async fn close(&self) {
        todo!()
    }
}
