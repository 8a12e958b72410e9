//! A transaction of the embedded store: conditions, steps, and the revision that grows when something changed.

use std::collections::BTreeSet;

use super::Changes;
use super::lmdb::{Failed, Tx};
use super::record::{Head, Record};
use crate::{Change, Compare, Done, Error, KeyValue, LeaseId, Op, Revision, Txn};

type Outcome<T> = Result<T, Failed>;

/// A transaction that is running, and what it has changed.
pub(super) struct Changing<'a, 'e> {
    tx: Tx<'a, 'e>,
    head: Head,
    changes: Changes,
}

impl<'a, 'e> Changing<'a, 'e> {
    pub(super) fn begin(tx: Tx<'a, 'e>) -> Outcome<Self> {
        let head = tx.view().head()?;
        Ok(Changing { tx, head, changes: Vec::new() })
    }

    /// The revision that changes of this transaction get.
    fn next(&self) -> Revision {
        self.head.revision + 1
    }

    fn put(&mut self, key: &str, value: &[u8], lease: LeaseId) -> Outcome<()> {
        let revision = self.next();
        let created = self.tx.view().get(key)?.map_or(revision, |before| before.created);
        self.tx.put(key, Record { created, changed: revision, lease, value })?;
        self.changes.push(Change { key: key.to_owned(), value: Some(value.to_owned()), created, revision });
        Ok(())
    }

    fn delete(&mut self, key: &str) -> Outcome<()> {
        if self.tx.delete(key)? {
            let revision = self.next();
            self.changes.push(Change { key: key.to_owned(), value: None, created: 0, revision });
        }
        Ok(())
    }

    fn get(&self, from: &str, to: &str) -> Outcome<Vec<KeyValue>> {
        self.tx.view().range(from, to)?.map(|entry| Ok(entry?.key_value())).collect()
    }

    fn holds(&self, compare: &Compare) -> Outcome<bool> {
        let view = self.tx.view();
        let changed = |key: &str| Ok::<_, Failed>(view.get(key)?.map_or(0, |record| record.changed));
        Ok(match compare {
            Compare::Absent(key) => changed(key)? == 0,
            Compare::Present(key) => changed(key)? != 0,
            Compare::Unchanged(key, revision) => changed(key)? == *revision,
            Compare::Empty(from, to) => view.range(from, to)?.next().transpose()?.is_none(),
        })
    }

    /// The store's revision after it, and what was changed.
    pub(super) fn finish(mut self) -> Outcome<(Revision, Changes)> {
        if !self.changes.is_empty() {
            self.head.revision = self.next();
            self.tx.set_head(self.head)?;
        }
        Ok((self.head.revision, self.changes))
    }
}

/// Does a transaction that was checked.
pub(super) fn run(tx: &mut Changing<'_, '_>, txn: &Txn, leases: &BTreeSet<LeaseId>) -> Outcome<Done> {
    let mut held = true;
    for compare in &txn.when {
        held = held && tx.holds(compare)?;
    }
    let mut got = Vec::new();
    for op in if held { &txn.then } else { &txn.otherwise } {
        match op {
            Op::Put(key, value, lease) => {
                let lease = lease.unwrap_or_default();
                if lease != 0 && !leases.contains(&lease) {
                    return Err(Error::Refused(format!("lease {lease:x} has ended")).into());
                }
                tx.put(key, value, lease)?;
            }
            Op::Delete(key) => tx.delete(key)?,
            Op::DeleteRange(from, to) => {
                for found in tx.get(from, to)? {
                    tx.delete(&found.key)?;
                }
            }
            Op::Get(from, to) => got.push(tx.get(from, to)?),
        }
    }
    let revision = if tx.changes.is_empty() { tx.head.revision } else { tx.next() };
    Ok(Done { held, revision, got })
}

/// Removes the keys whose lease is chosen.
pub(super) fn remove_leased(tx: &mut Changing<'_, '_>, chosen: impl Fn(LeaseId) -> bool) -> Outcome<()> {
    let mut keys = Vec::new();
    for entry in tx.tx.view().all()? {
        let entry = entry?;
        if entry.lease() != 0 && chosen(entry.lease()) {
            keys.push(entry.key.to_owned());
        }
    }
    keys.iter().try_for_each(|key| tx.delete(key))
}
