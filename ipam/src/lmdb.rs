//! The LMDB environment: the one module with `unsafe`, since opening and resizing a memory map are.
//!
//! What makes it sound: `open` examines the file before it is mapped and holds the directory's lock as long as the map
//! lives, so that no process of Weft replaces, truncates or removes a mapped file; and a resize waits until no
//! transaction of this process runs.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::ops::Bound;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvFlags, EnvOpenOptions, MdbError, RoTxn, RwTxn, WithoutTls};
use nix::fcntl::{FallocateFlags, fallocate};

use crate::error::{Error, Result};

/// The map's size at first: address space only, pages are touched as they are used. It grows when it is full.
#[cfg(target_pointer_width = "64")]
pub(crate) const MAP_SIZE: usize = 1 << 30;
/// The map's size at first.
#[cfg(not(target_pointer_width = "64"))]
pub(crate) const MAP_SIZE: usize = 1 << 26;

/// Growth ends here; no host has so many leases.
const MAP_SIZE_MAX: usize = MAP_SIZE << 4;

/// Processes that read at one moment; LMDB's own default is 126.
const READERS: u32 = 1022;

/// Bytes that are reserved at least: 64 pages, far more than a release changes.
const RESERVED: u64 = 256 << 10;

type Db<'e> = Database<'e, Bytes, Bytes>;

/// An open environment with its only tree.
pub(crate) struct Lmdb {
    env: Env<WithoutTls>,
    dir: PathBuf,
    /// Held for reading by transactions, for writing by a resize.
    gate: RwLock<()>,
}

impl Lmdb {
    /// Opens the environment in `dir`, which exists; the caller has examined the file and holds the directory's lock.
    pub(crate) fn open(dir: &Path, map_size: usize) -> Result<Lmdb> {
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        options.map_size(map_size).max_readers(READERS);
        // SAFETY: without syncing, a crash of the host can leave a file of pages old and new. It is not used before
        // it was examined from end to end: `open` does so when the boot has changed. A crash of the process loses
        // nothing, as the page cache has what was written.
        unsafe { options.flags(EnvFlags::NO_SYNC | EnvFlags::NO_META_SYNC) };
        // SAFETY: the file was examined, and the directory's lock, held by the caller as long as this lives, keeps
        // every process of Weft from replacing or truncating it. Only this module opens it, once a process.
        let env = unsafe { options.open(dir) };
        let lmdb =
            Lmdb { env: env.map_err(|e| explain(dir, e.into()))?, dir: dir.into(), gate: RwLock::new(()) };
        lmdb.clear_stale_readers()?;
        Ok(lmdb)
    }

    /// Frees the places of readers that were killed, which would keep old pages from being used again.
    fn clear_stale_readers(&self) -> Result<()> {
        self.env.clear_stale_readers().map(drop).map_err(|e| explain(&self.dir, e.into()))
    }

    /// Runs `f` on what was committed last.
    pub(crate) fn read<T>(&self, mut f: impl FnMut(View<'_>) -> Result<T>) -> Result<T> {
        self.retry(|| {
            let txn = self.env.read_txn()?;
            let done = self.env.open_databases_and_commit(txn, |open, txn| {
                let db = open.open_database::<Bytes, Bytes>(txn, None)?;
                // The unnamed tree is part of every environment.
                let db = db.ok_or_else(|| Error::damaged("it has no tree"))?;
                Ok::<_, Error>(CommitOrAbort::<(), T>::Abort(f(View { db, txn })?))
            })?;
            done.abort().ok_or_else(|| Error::damaged("a reading transaction was lost"))
        })
    }

    /// Runs `f` as the only writer of all processes and commits, or leaves everything as it was when `f` fails. `f`
    /// can run more than once, when the map has to grow. It must not call the store again: it would wait for itself.
    pub(crate) fn write<T>(&self, mut f: impl FnMut(&mut Tx<'_, '_>) -> Result<T>) -> Result<T> {
        self.retry(|| {
            let txn = self.env.write_txn()?;
            let mut answer = None;
            self.env.create_databases_and_commit(txn, |open, txn| {
                let db = open.create_database::<Bytes, Bytes>(txn, None)?;
                answer = Some(f(&mut Tx { db, txn })?);
                Ok::<_, Error>(CommitOrAbort::<(), ()>::Commit(()))
            })?;
            answer.ok_or_else(|| Error::damaged("a writing transaction was lost"))
        })
        .inspect(|_| self.reserve())
    }

    /// Keeps room on the disk behind the pages in use, so that leases can be released when the disk is full: LMDB writes
    /// what a transaction changes to new pages. Without room, or where the file system cannot reserve it, the store works
    /// as it is.
    fn reserve(&self) {
        let path = self.dir.join("data.mdb");
        let Ok(meta) = fs::metadata(&path) else { return };
        if meta.blocks() * 512 >= meta.len() + RESERVED {
            return;
        }
        // Twice as much, so that this is done seldom.
        let (start, length) = (i64::try_from(meta.len()), i64::try_from(2 * RESERVED));
        let file = File::options().write(true).open(&path);
        if let (Ok(start), Ok(length), Ok(file)) = (start, length, file) {
            // The file's length stays that of its pages.
            let _ = fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, start, length);
        }
    }

    /// Tries again when the map was too small, or when killed readers had taken all places.
    fn retry<T>(&self, mut run: impl FnMut() -> Result<T>) -> Result<T> {
        let mut cleared = false;
        loop {
            let result = {
                let _running = self.gate.read().unwrap_or_else(PoisonError::into_inner);
                run()
            };
            let error = match result {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            match error {
                Error::Lmdb { source: heed::Error::Mdb(MdbError::MapFull), .. } => {
                    let size = self.env.info().map_size.saturating_mul(2);
                    if size > MAP_SIZE_MAX {
                        return Err(explain(&self.dir, error));
                    }
                    self.resize(size)?;
                }
                // Another process has made it grow; 0 takes the size it noted.
                Error::Lmdb { source: heed::Error::Mdb(MdbError::MapResized), .. } => self.resize(0)?,
                Error::Lmdb { source: heed::Error::Mdb(MdbError::ReadersFull), .. } if !cleared => {
                    cleared = true;
                    self.clear_stale_readers()?;
                }
                error => return Err(explain(&self.dir, error)),
            }
        }
    }

    fn resize(&self, size: usize) -> Result<()> {
        let _alone = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: no transaction of this process runs: each holds the gate for reading.
        unsafe { self.env.resize(size) }.map_err(|e| explain(&self.dir, e.into()))
    }
}

/// Names the directory, and tells damage from other failures.
fn explain(dir: &Path, error: Error) -> Error {
    use MdbError::{Corrupted, Incompatible, Invalid, PageNotFound, Panic, VersionMismatch};
    let dir = dir.to_owned();
    match error {
        Error::Lmdb { source: heed::Error::Mdb(e), .. }
            if matches!(e, Corrupted | Incompatible | Invalid | PageNotFound | Panic | VersionMismatch) =>
        {
            Error::Damaged { dir, what: e.to_string() }
        }
        Error::Lmdb { source, .. } => Error::Lmdb { dir, source },
        Error::Damaged { what, .. } => Error::Damaged { dir, what },
        other => other,
    }
}

/// The store as one transaction sees it.
#[derive(Clone, Copy)]
pub(crate) struct View<'t> {
    db: Db<'t>,
    txn: &'t RoTxn<'t>,
}

/// A record: key and value.
pub(crate) type Record<'t> = (&'t [u8], &'t [u8]);

impl<'t> View<'t> {
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<&'t [u8]>> {
        Ok(self.db.get(self.txn, key)?)
    }

    /// All records whose key begins with `prefix`, in order.
    pub(crate) fn scan(&self, prefix: &[u8]) -> Result<impl Iterator<Item = Result<Record<'t>>> + use<'t>> {
        Ok(self.db.prefix_iter(self.txn, prefix)?.map(|r| r.map_err(Error::from)))
    }

    /// All records from key `first` to key `last`, both included, in order.
    pub(crate) fn between(
        &self,
        first: &[u8],
        last: &[u8],
    ) -> Result<impl Iterator<Item = Result<Record<'t>>> + use<'t>> {
        let bounds = (Bound::Included(first), Bound::Included(last));
        Ok(self.db.range(self.txn, &bounds)?.map(|r| r.map_err(Error::from)))
    }

    /// The number of records of all kinds.
    pub(crate) fn len(&self) -> Result<u64> {
        Ok(self.db.len(self.txn)?)
    }
}

/// A transaction that changes the store.
pub(crate) struct Tx<'a, 'e> {
    db: Db<'e>,
    txn: &'a mut RwTxn<'e>,
}

impl Tx<'_, '_> {
    /// The store with what this transaction has changed so far.
    pub(crate) fn view(&self) -> View<'_> {
        View { db: self.db, txn: self.txn }
    }

    pub(crate) fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        Ok(self.db.put(self.txn, key, value)?)
    }

    /// Deletes a record; false when there was none.
    pub(crate) fn delete(&mut self, key: &[u8]) -> Result<bool> {
        Ok(self.db.delete(self.txn, key)?)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const DIR: &str = "IPAM_TEST_GROW";

    fn fill(lmdb: &Lmdb, from: u32, count: u32) {
        let all =
            |tx: &mut Tx<'_, '_>| (from..from + count).try_for_each(|i| tx.put(&i.to_be_bytes(), &[7; 900]));
        lmdb.write(all).unwrap();
    }

    /// Not a test of its own: the other process of the test below.
    #[test]
    fn grow_it() {
        let Ok(dir) = std::env::var(DIR) else { return };
        fill(&Lmdb::open(Path::new(&dir), 1 << 16).unwrap(), 1000, 1000);
    }

    #[test]
    fn the_map_grows_when_it_is_full_and_when_another_process_made_it_grow() {
        let dir = tempfile::tempdir().unwrap();
        let lmdb = Lmdb::open(dir.path(), 1 << 16).unwrap();
        fill(&lmdb, 0, 1000);
        let name = "lmdb::tests::grow_it";
        let mut other = Command::new(std::env::current_exe().unwrap());
        let status = other.args(["--exact", name]).env(DIR, dir.path()).status().unwrap();
        assert!(status.success());
        assert_eq!(lmdb.read(|view| view.len()).unwrap(), 2000);
        fill(&lmdb, 2000, 2000);
        assert_eq!(lmdb.read(|view| view.len()).unwrap(), 4000);
        drop(lmdb);
        let file = std::fs::File::open(dir.path().join("data.mdb")).unwrap();
        crate::check::walk(&file).unwrap();
    }

    #[test]
    fn a_failed_transaction_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let lmdb = Lmdb::open(dir.path(), MAP_SIZE).unwrap();
        let failed = lmdb.write(|tx| tx.put(b"a", b"b").and(Err::<(), _>(Error::EmptySet)));
        assert!(matches!(failed, Err(Error::EmptySet)));
        assert_eq!(lmdb.read(|view| view.len()).unwrap(), 0);
    }

    #[test]
    fn values_longer_than_a_page_pass_the_examination() {
        let dir = tempfile::tempdir().unwrap();
        let lmdb = Lmdb::open(dir.path(), MAP_SIZE).unwrap();
        for round in 0..40_u8 {
            let put = |tx: &mut Tx<'_, '_>| tx.put(&[round % 7], &vec![round; usize::from(round) * 500]);
            lmdb.write(put).unwrap();
            let file = std::fs::File::open(dir.path().join("data.mdb")).unwrap();
            crate::check::walk(&file).unwrap();
        }
    }
}
