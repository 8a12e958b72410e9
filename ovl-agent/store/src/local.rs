//! The embedded store.
use crate::{Done, Error, Event, LeaseId, Result, Revision, Snapshot, Txn};
use std::path::Path;
/// The embedded store.
#[derive(Debug, Clone)]
pub struct Local;
/// A watch.
#[derive(Debug)]
pub struct Watch;
fn no<T>() -> Result<T> {
    Err(Error::Refused("not written yet".into()))
}
#[allow(missing_docs)]
impl Local {
    pub fn open(_dir: &Path) -> Result<Local> {
        no()
    }
    pub fn describe(&self) -> String {
        String::new()
    }
    pub fn snapshot(&self, _prefix: &str) -> Result<Snapshot> {
        no()
    }
    pub fn watch(&self, _prefix: &str, _from: Revision) -> Result<Watch> {
        no()
    }
    pub fn commit(&self, _txn: &Txn) -> Result<Done> {
        no()
    }
    pub fn grant(&self) -> Result<LeaseId> {
        no()
    }
    pub fn holds(&self, _lease: LeaseId) -> bool {
        false
    }
    pub fn revoke(&self, _lease: LeaseId) -> Result<()> {
        no()
    }
}
#[allow(missing_docs)]
impl Watch {
    pub async fn next(&mut self) -> Result<Event> {
        no()
    }
}
