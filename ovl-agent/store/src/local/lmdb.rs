//! The LMDB environment: the one module with `unsafe`, since opening a memory map is.
//!
//! What makes it sound: `open` examines the file before it is mapped, and holds the directory's lock as long as the map
//! lives, so that no other process of Weft replaces, truncates or removes a mapped file.
#![allow(unsafe_code)]

use std::ops::Bound;
use std::path::{Path, PathBuf};

use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvOpenOptions, RoTxn, RwTxn, WithoutTls};

use super::change::Changing;
use super::record::{self, BadHead, Head, KEY, Record};
use super::{Changes, fault};
use crate::{Error, KeyValue, LeaseId, Result, Revision};

/// The map's size: address space only, pages are touched as they are used. It is the bound of the data too.
#[cfg(target_pointer_width = "64")]
const MAP_SIZE: usize = 1 << 30;
/// The map's size.
#[cfg(not(target_pointer_width = "64"))]
const MAP_SIZE: usize = 1 << 28;

type Db<'e> = Database<'e, Bytes, Bytes>;

/// An open environment with its only tree.
pub(super) struct Lmdb {
    env: Env<WithoutTls>,
    dir: PathBuf,
}

/// Why a transaction failed.
pub(super) enum Failed {
    /// LMDB says so.
    Lmdb(heed::Error),
    /// The data is not what was written.
    Damaged(String),
    /// Written by a newer version.
    Newer,
    /// The transaction itself was refused.
    Other(Error),
}

impl From<heed::Error> for Failed {
    fn from(e: heed::Error) -> Self {
        Failed::Lmdb(e)
    }
}

impl From<Error> for Failed {
    fn from(e: Error) -> Self {
        Failed::Other(e)
    }
}

impl From<BadHead> for Failed {
    fn from(e: BadHead) -> Self {
        match e {
            BadHead::Newer => Failed::Newer,
            BadHead::Damaged => damaged("its head cannot be read"),
        }
    }
}

/// Damage.
pub(super) fn damaged(what: impl Into<String>) -> Failed {
    Failed::Damaged(what.into())
}

impl Failed {
    /// The error that callers of this library get.
    pub(super) fn explain(self, dir: &Path) -> Error {
        match self {
            Failed::Lmdb(heed::Error::Mdb(heed::MdbError::MapFull)) => {
                fault(dir, format!("it is full: {} MiB are its bound", MAP_SIZE >> 20))
            }
            Failed::Lmdb(e) => fault(dir, e),
            Failed::Damaged(what) => fault(dir, format!("it is damaged: {what}")),
            Failed::Newer => fault(dir, "it was written by a newer version of Weft; update this one"),
            Failed::Other(e) => e,
        }
    }
}

impl Lmdb {
    /// Opens the environment in `dir`; the caller has examined the file and holds the directory's lock.
    pub(super) fn open(dir: &Path) -> std::result::Result<Lmdb, heed::Error> {
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        options.map_size(MAP_SIZE);
        // SAFETY: the file was examined, and the directory's lock, held by the caller as long as this lives, keeps
        // every other process of Weft away from it.
        let env = unsafe { options.open(dir) }?;
        Ok(Lmdb { env, dir: dir.to_owned() })
    }

    /// Runs `f` on what was committed last.
    pub(super) fn read<T>(&self, f: impl FnOnce(View<'_>) -> std::result::Result<T, Failed>) -> Result<T> {
        self.try_read(f).map_err(|e| e.explain(&self.dir))
    }

    /// As [`Lmdb::read`], and tells what failed.
    pub(super) fn try_read<T>(
        &self,
        f: impl FnOnce(View<'_>) -> std::result::Result<T, Failed>,
    ) -> std::result::Result<T, Failed> {
        let txn = self.env.read_txn()?;
        let done = self.env.open_databases_and_commit(txn, |open, txn| {
            let db = open.open_database::<Bytes, Bytes>(txn, None)?;
            let db = db.ok_or_else(|| damaged("it has no tree"))?;
            Ok::<_, Failed>(CommitOrAbort::<(), T>::Abort(f(View { db, txn })?))
        })?;
        done.abort().ok_or_else(|| damaged("a reading transaction was lost"))
    }

    /// Runs `f`, and syncs what it changed to the disk; nothing is written when it changed nothing or failed. Returns the
    /// store's revision after it, and the changes.
    pub(super) fn write<T>(
        &self,
        f: impl FnOnce(&mut Changing<'_, '_>) -> std::result::Result<T, Failed>,
    ) -> Result<(T, Revision, Changes)> {
        let run = || {
            let txn = self.env.write_txn()?;
            let mut answer = None;
            self.env.create_databases_and_commit(txn, |open, txn| {
                let db = open.create_database::<Bytes, Bytes>(txn, None)?;
                let mut changing = Changing::begin(Tx { db, txn })?;
                let done = f(&mut changing)?;
                let (revision, changes) = changing.finish()?;
                let end =
                    if changes.is_empty() { CommitOrAbort::Abort(()) } else { CommitOrAbort::Commit(()) };
                answer = Some((done, revision, changes));
                Ok::<CommitOrAbort<(), ()>, Failed>(end)
            })?;
            answer.ok_or_else(|| damaged("a writing transaction was lost"))
        };
        run().map_err(|e: Failed| e.explain(&self.dir))
    }

    /// Writes the head of a new store.
    pub(super) fn begin(&self, head: Head) -> std::result::Result<(), Failed> {
        let txn = self.env.write_txn()?;
        self.env.create_databases_and_commit(txn, |open, txn| {
            let db = open.create_database::<Bytes, Bytes>(txn, None)?;
            Tx { db, txn }.set_head(head)?;
            Ok::<_, Failed>(CommitOrAbort::<(), ()>::Commit(()))
        })?;
        Ok(())
    }

    /// What another version could have written.
    #[cfg(test)]
    pub(super) fn overwrite(&self, key: &[u8], bytes: &[u8]) -> std::result::Result<(), heed::Error> {
        let txn = self.env.write_txn()?;
        self.env.create_databases_and_commit(txn, |open, txn| {
            let db = open.create_database::<Bytes, Bytes>(txn, None)?;
            db.put(txn, key, bytes)?;
            Ok::<_, heed::Error>(CommitOrAbort::<(), ()>::Commit(()))
        })?;
        Ok(())
    }
}

/// The store as one transaction sees it.
#[derive(Clone, Copy)]
pub(super) struct View<'t> {
    db: Db<'t>,
    txn: &'t RoTxn<'t>,
}

impl<'t> View<'t> {
    /// None: the store is new.
    pub(super) fn try_head(&self) -> std::result::Result<Option<Head>, Failed> {
        Ok(self.db.get(self.txn, record::HEAD)?.map(Head::decode).transpose()?)
    }

    pub(super) fn head(&self) -> std::result::Result<Head, Failed> {
        self.try_head()?.ok_or_else(|| damaged("it has no head"))
    }

    pub(super) fn get(&self, key: &str) -> std::result::Result<Option<Record<'t>>, Failed> {
        let bytes = self.db.get(self.txn, &record::named(key))?;
        bytes.map(|b| Record::decode(b).ok_or_else(|| damaged(format!("the record of {key:?}")))).transpose()
    }

    /// The records from one key to another (not included), in order.
    pub(super) fn range(
        &self,
        from: &str,
        to: &str,
    ) -> std::result::Result<impl Iterator<Item = std::result::Result<Entry<'t>, Failed>> + use<'t>, Failed>
    {
        let (from, mut to) = (record::named(from), record::named(to));
        // A range that ends before it begins is empty; LMDB's iterator takes none such.
        if to < from {
            to.clone_from(&from);
        }
        let bounds = (Bound::Included(from.as_slice()), Bound::Excluded(to.as_slice()));
        Ok(self.db.range(self.txn, &bounds)?.map(|r| entry(r?)))
    }

    /// All records.
    pub(super) fn all(
        &self,
    ) -> std::result::Result<impl Iterator<Item = std::result::Result<Entry<'t>, Failed>> + use<'t>, Failed>
    {
        Ok(self.db.prefix_iter(self.txn, &[KEY])?.map(|r| entry(r?)))
    }

    /// The keys below a prefix, in order.
    pub(super) fn below(&self, prefix: &str) -> std::result::Result<Vec<KeyValue>, Failed> {
        let found = self.db.prefix_iter(self.txn, &record::named(prefix))?;
        found.map(|r| Ok(entry(r?)?.key_value())).collect()
    }

    /// How many records there are, the head included.
    pub(super) fn len(&self) -> std::result::Result<u64, Failed> {
        Ok(self.db.len(self.txn)?)
    }
}

/// A key and its record.
pub(super) struct Entry<'t> {
    pub(super) key: &'t str,
    pub(super) record: Record<'t>,
}

impl Entry<'_> {
    pub(super) fn key_value(&self) -> KeyValue {
        let Record { created, changed, value, .. } = self.record;
        KeyValue { key: self.key.to_owned(), value: value.to_owned(), created, changed }
    }

    pub(super) fn lease(&self) -> LeaseId {
        self.record.lease
    }
}

fn entry<'t>((key, bytes): (&'t [u8], &'t [u8])) -> std::result::Result<Entry<'t>, Failed> {
    let name =
        key.get(1..).and_then(|k| std::str::from_utf8(k).ok()).ok_or_else(|| damaged("a key is no text"))?;
    let record = Record::decode(bytes).ok_or_else(|| damaged(format!("the record of {name:?}")))?;
    Ok(Entry { key: name, record })
}

/// A transaction that changes the store.
pub(super) struct Tx<'a, 'e> {
    db: Db<'e>,
    txn: &'a mut RwTxn<'e>,
}

impl Tx<'_, '_> {
    /// The store with what this transaction has changed so far.
    pub(super) fn view(&self) -> View<'_> {
        View { db: self.db, txn: self.txn }
    }

    pub(super) fn put(&mut self, key: &str, record: Record<'_>) -> std::result::Result<(), Failed> {
        Ok(self.db.put(self.txn, &record::named(key), &record.encode())?)
    }

    /// False when there was none.
    pub(super) fn delete(&mut self, key: &str) -> std::result::Result<bool, Failed> {
        Ok(self.db.delete(self.txn, &record::named(key))?)
    }

    pub(super) fn set_head(&mut self, head: Head) -> std::result::Result<(), Failed> {
        Ok(self.db.put(self.txn, record::HEAD, &head.encode())?)
    }
}
