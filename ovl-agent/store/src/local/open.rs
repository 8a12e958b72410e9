//! Opening the embedded store: the lock that keeps a second process away, the look at the file before it is mapped, and what
//! is done with a damaged one.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::change;
use super::fault;
use super::lmdb::{Failed, Lmdb, damaged};
use super::record::{Head, Record};
use crate::Result;

const DATA: &str = "data.mdb";
/// LMDB's own lock file.
const LMDB_LOCK: &str = "lock.mdb";
/// Ours: locked as long as the store is open, and it holds the number of the process that has it.
const LOCK: &str = "lock";

/// How long it waits for the lock: a process that ends can leave it for a moment to a child that it was just making.
const PATIENCE: Duration = Duration::from_millis(500);

/// An open store.
pub(super) struct Opened {
    pub(super) lmdb: Lmdb,
    pub(super) head: Head,
    pub(super) notes: Vec<String>,
    pub(super) lock: File,
}

/// Opens the store in `dir`, and makes it when there is none.
pub(super) fn open(dir: &Path) -> Result<Opened> {
    let io = |what: &'static str| move |e: io::Error| fault(dir, format!("cannot {what}: {e}"));
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io("make the directory"))?;
    let lock = lock(dir)?;
    let mut notes = Vec::new();
    if let Some(file) = data(dir).map_err(io("open its data"))? {
        let examined = examine(dir, &file);
        drop(file);
        match examined {
            Ok(()) => {}
            Err(Failed::Damaged(what)) => notes.push(set_aside(dir, &what).map_err(io("set it aside"))?),
            Err(other) => return Err(other.explain(dir)),
        }
    }
    // The file of an earlier boot may be of any content; nobody uses it now.
    remove(&dir.join(LMDB_LOCK)).map_err(io("remove an old lock"))?;
    let lmdb = Lmdb::open(dir).map_err(|e| Failed::from(e).explain(dir))?;
    if lmdb.read(|view| view.try_head())?.is_none() {
        // As in etcd, an empty store has revision 1.
        let head = Head { revision: 1, cluster: RandomState::new().hash_one(std::process::id()) };
        lmdb.begin(head).map_err(|e| e.explain(dir))?;
    }
    // Leases end with the process that held them.
    lmdb.write(|tx| change::remove_leased(tx, |_| true))?;
    let head = lmdb.read(|view| view.head())?;
    sync_names(dir).map_err(io("sync the directory"))?;
    Ok(Opened { lmdb, head, notes, lock })
}

/// Takes the directory for this process, or says who has it.
fn lock(dir: &Path) -> Result<File> {
    let failed = |e: io::Error| fault(dir, format!("cannot lock it: {e}"));
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(dir.join(LOCK))
        .map_err(failed)?;
    let since = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if since.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Without a number the message is less telling, no more.
                let _ = file.read_to_string(&mut holder);
                return Err(fault(dir, format!("it is in use by {}; stop that first", who(holder.trim()))));
            }
            Err(TryLockError::Error(e)) => return Err(failed(e)),
        }
    }
    let written = file.set_len(0).and_then(|()| file.rewind());
    written.and_then(|()| writeln!(file, "{}", std::process::id())).map_err(failed)?;
    Ok(file)
}

/// A process, for people.
fn who(pid: &str) -> String {
    if pid.is_empty() || !pid.bytes().all(|b| b.is_ascii_digit()) {
        return "another process".to_owned();
    }
    match fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("process {pid} ({})", name.trim()),
        Err(_) => format!("process {pid}"),
    }
}

fn data(dir: &Path) -> io::Result<Option<File>> {
    let path = dir.join(DATA);
    match File::options().read(true).write(true).open(&path) {
        // This is what a process leaves that is killed as it makes the store.
        Ok(file) if file.metadata()?.len() == 0 => remove(&path).map(|()| None),
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Reads the whole file: its pages before it is mapped, then its records.
fn examine(dir: &Path, file: &File) -> std::result::Result<(), Failed> {
    let head = ipam::check::walk(file).map_err(damaged)?;
    if head.is_short() {
        // LMDB leaves pages at the end unwritten that it took and gave back; a map must not reach beyond the file.
        let extended = file.set_len(head.full_len());
        extended.map_err(|e| Failed::Other(fault(dir, format!("cannot extend its data: {e}"))))?;
    }
    remove(&dir.join(LMDB_LOCK))
        .map_err(|e| Failed::Other(fault(dir, format!("cannot remove an old lock: {e}"))))?;
    Lmdb::open(dir)?.try_read(|view| {
        let Some(head) = view.try_head()? else {
            // Killed between making the file and writing the head.
            return if view.len()? == 0 { Ok(()) } else { Err(damaged("it has no head")) };
        };
        for entry in view.all()? {
            let entry = entry?;
            let Record { created, changed, .. } = entry.record;
            if !(1..=head.revision).contains(&changed) || !(1..=changed).contains(&created) {
                return Err(damaged(format!("{:?} is newer than the store", entry.key)));
            }
        }
        Ok(())
    })
}

/// Renames the data file; returns the note about it.
fn set_aside(dir: &Path, what: &str) -> io::Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut aside = dir.join(format!("damaged-{now}"));
    for count in 1.. {
        if !aside.exists() {
            break;
        }
        aside = dir.join(format!("damaged-{now}-{count}"));
    }
    fs::rename(dir.join(DATA), &aside)?;
    Ok(format!(
        "the local store in {} was damaged ({what}); it was set aside as {} and a new, empty one begun",
        dir.display(),
        aside.display()
    ))
}

/// Syncs the names of the files and of the directories above, so that a power loss after the first commit keeps them.
fn sync_names(dir: &Path) -> io::Result<()> {
    let dir = dir.canonicalize()?;
    for dir in dir.ancestors().take(3) {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
