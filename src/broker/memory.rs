//! todo
use super::*;
/// todo
#[derive(Debug, Default)]
pub struct MemoryBroker;
impl MemoryBroker {
    /// todo
    pub fn new() -> Self {
        Self
    }
}
#[async_trait]
impl Broker for MemoryBroker {
    async fn declare(&self, _q: &[Queue]) -> Result<(), BrokerError> {
        todo!()
    }
    async fn publish(&self, _m: Message) -> Result<(), BrokerError> {
        todo!()
    }
    async fn consume(&self, _q: &Queue, _p: u16) -> Result<Consumer, BrokerError> {
        todo!()
    }
    async fn depth(&self, _q: &[&str]) -> Result<Vec<Option<QueueDepth>>, BrokerError> {
        todo!()
    }
    fn link(&self) -> watch::Receiver<Link> {
        todo!()
    }
    async fn about(&self) -> Result<String, BrokerError> {
        todo!()
    }
    async fn close(&self) {
        todo!()
    }
}
