//! todo
use super::*;
/// todo
#[derive(Debug, Default)]
pub struct AmqpBroker;
impl AmqpBroker {
    /// todo
    pub fn new(_c: &crate::config::Broker) -> Self {
        Self
    }
}
#[async_trait]
impl Broker for AmqpBroker {
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
