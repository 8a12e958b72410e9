//! The embedded store: LMDB, one process, this host alone.
//!
//! Networks are kept here, so commits are synced: they survive a power loss. Leases end with the process that granted them;
//! their keys are removed when the store is opened next. Changes since the opening are remembered, up to a bound, for
//! watches; older ones count as compacted.

mod change;
mod history;
mod lmdb;
mod open;
mod record;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{Change, Done, Error, LeaseId, Part, Result, Revision, Snapshot, Txn, range_end};
use history::History;
pub use history::Watch;
use lmdb::Lmdb;

/// The embedded store; clones are the same store. It is closed when the last clone and the last watch are gone.
#[derive(Clone)]
pub struct Local {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    cluster: u64,
    notes: Vec<String>,
    leases: Mutex<Leases>,
    history: History,
    // Closed before the lock is given back: fields are dropped in this order.
    lmdb: Lmdb,
    _lock: File,
}

/// The leases of this process. Who changes the store holds their mutex, so that changes enter the history in order.
struct Leases {
    held: BTreeSet<LeaseId>,
    next: LeaseId,
}

impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Local").field("dir", &self.inner.dir).finish_non_exhaustive()
    }
}

impl Local {
    /// Opens the store in `dir`, and makes it when there is none. A damaged one is set aside beside it as
    /// `damaged-<seconds since 1970>`, which [`Local::notes`] then say.
    ///
    /// # Errors
    /// [`Error::Local`]: another process has it open (it is named), it is of a newer version, the directory cannot be
    /// used.
    pub fn open(dir: &Path) -> Result<Local> {
        let opened = open::open(dir)?;
        for note in &opened.notes {
            tracing::warn!("{note}");
        }
        // Numbers of an earlier process's leases shall not be taken for this one's.
        let next = (RandomState::new().hash_one(0) >> 2) as LeaseId + 1;
        Ok(Local {
            inner: Arc::new(Inner {
                dir: dir.to_owned(),
                cluster: opened.head.cluster,
                notes: opened.notes,
                leases: Mutex::new(Leases { held: BTreeSet::new(), next }),
                history: History::new(opened.head.revision),
                lmdb: opened.lmdb,
                _lock: opened.lock,
            }),
        })
    }

    /// For people.
    pub fn describe(&self) -> String {
        format!("local store {}", self.inner.dir.display())
    }

    /// What was repaired when it was opened, in sentences; usually nothing.
    pub fn notes(&self) -> &[String] {
        &self.inner.notes
    }

    /// Everything below a prefix at one revision.
    ///
    /// # Errors
    /// [`Error::Local`]: it cannot be read.
    pub fn snapshot(&self, prefix: &str) -> Result<Snapshot> {
        self.inner.lmdb.read(|view| {
            let revision = view.head()?.revision;
            Ok(Snapshot { revision, cluster: self.inner.cluster, entries: view.below(prefix)? })
        })
    }

    /// How many keys there are below a prefix, and some of them.
    ///
    /// # Errors
    /// [`Error::Local`]: it cannot be read.
    pub fn part(&self, prefix: &str, from: &str, limit: usize) -> Result<Part> {
        self.inner.lmdb.read(|view| {
            let mut part = Part { revision: view.head()?.revision, count: 0, keys: Vec::new(), more: false };
            for entry in view.range(prefix, &range_end(prefix))? {
                let entry = entry?;
                part.count += 1;
                if entry.key < from {
                    continue;
                }
                if part.keys.len() < limit {
                    part.keys.push((entry.key.to_owned(), entry.record.changed));
                } else {
                    part.more = true;
                }
            }
            Ok(part)
        })
    }

    /// The changes below a prefix from this revision on; 0: from now on.
    ///
    /// # Errors
    /// [`Error::OtherCluster`]: the revision is yet to come. What is too old is told by [`Watch::next`].
    pub fn watch(&self, prefix: &str, from: Revision) -> Result<Watch> {
        Watch::new(self.clone(), prefix, from)
    }

    /// Does a transaction; it is on the disk when this returns, so this blocks.
    ///
    /// # Errors
    /// [`Error::Refused`]: not a valid transaction, or a lease that is not held. [`Error::Local`]: it cannot be written.
    pub fn commit(&self, txn: &Txn) -> Result<Done> {
        txn.check()?;
        let leases = self.leases();
        self.write(&leases, |tx| change::run(tx, txn, &leases.held))
    }

    /// A lease that ends with this process.
    ///
    /// # Errors
    /// None.
    pub fn grant(&self) -> Result<LeaseId> {
        let mut leases = self.leases();
        let lease = leases.next;
        leases.next += 1;
        leases.held.insert(lease);
        Ok(lease)
    }

    /// Whether the lease was granted and not revoked.
    pub fn holds(&self, lease: LeaseId) -> bool {
        self.leases().held.contains(&lease)
    }

    /// Ends a lease and removes its keys. Nothing happens when it has ended.
    ///
    /// # Errors
    /// [`Error::Local`]: it cannot be written.
    pub fn revoke(&self, lease: LeaseId) -> Result<()> {
        let mut leases = self.leases();
        if leases.held.contains(&lease) {
            self.write(&leases, |tx| change::remove_leased(tx, |l| l == lease))?;
            leases.held.remove(&lease);
        }
        Ok(())
    }

    fn leases(&self) -> MutexGuard<'_, Leases> {
        self.inner.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `f` in a transaction and tells the watches what it changed. The guard shows that no other does so now.
    fn write<T>(
        &self,
        _alone: &MutexGuard<'_, Leases>,
        f: impl FnOnce(&mut change::Changing<'_, '_>) -> std::result::Result<T, lmdb::Failed>,
    ) -> Result<T> {
        let (answer, revision, changes) = self.inner.lmdb.write(f)?;
        if !changes.is_empty() {
            self.inner.history.push(revision, changes);
        }
        Ok(answer)
    }

    fn history(&self) -> &History {
        &self.inner.history
    }
}

/// An error of the store in `dir`.
fn fault(dir: &Path, why: impl fmt::Display) -> Error {
    Error::Local { dir: dir.display().to_string(), why: why.to_string() }
}

/// What one transaction changed.
type Changes = Vec<Change>;
