//! etcd.
use crate::{Done, Error, Event, LeaseId, Result, Revision, Snapshot, Txn};

/// etcd.
#[derive(Debug, Clone)]
pub struct Etcd;
/// A watch.
#[derive(Debug)]
pub struct Watch;
fn no<T>() -> Result<T> {
    Err(Error::Refused("not written yet".into()))
}
#[allow(missing_docs)]
impl Etcd {
    pub async fn open(_conf: &crate::target::EtcdConf) -> Result<Etcd> {
        no()
    }
    pub fn describe(&self) -> String {
        String::new()
    }
    pub async fn snapshot(&self, _prefix: &str) -> Result<Snapshot> {
        no()
    }
    pub async fn watch(&self, _prefix: &str, _from: Revision) -> Result<Watch> {
        no()
    }
    pub async fn commit(&self, _txn: Txn) -> Result<Done> {
        no()
    }
    pub async fn grant(&self, _ttl: std::time::Duration) -> Result<LeaseId> {
        no()
    }
    pub async fn keep_alive(&self, _lease: LeaseId) -> Result<bool> {
        no()
    }
    pub async fn revoke(&self, _lease: LeaseId) -> Result<()> {
        no()
    }
}
#[allow(missing_docs)]
impl Watch {
    pub async fn next(&mut self) -> Result<Event> {
        no()
    }
}
