//! todo
use super::*;
/// todo
#[derive(Debug, Default)]
pub struct MemoryStore;
impl MemoryStore {
    /// todo
    pub fn new() -> Self {
        Self
    }
}
#[async_trait]
impl Store for MemoryStore {
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
