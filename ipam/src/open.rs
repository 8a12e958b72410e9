//! Opening a store: the directory's lock, the look at the file before it is mapped, repair, and removal.
//!
//! Every opener holds a shared lock (`flock`) on the directory itself as long as it uses the store; whoever repairs or
//! removes files holds it alone. The symbolic link `boot` in the directory names the boot during which the file was
//! last examined from end to end: an unsynced file is trusted only until the host restarts. Behind the boot's name
//! stands ` rebuild` from before a damaged file is set aside until [`Store::rebuild`] was told what is in use, so that
//! no process killed in between makes the others believe that every address is free. It also says which C library the
//! store's users have, since LMDB's lock file holds mutexes of that library: another one's process examines the file as
//! after a restart, which waits until nobody uses the store and makes the lock file anew.
use std::fs::{self, DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};

use crate::check;
use crate::consistency;
use crate::error::{Error, Result};
use crate::keys;
use crate::lmdb::{Lmdb, MAP_SIZE};
use crate::record::Meta;
use crate::store::{Inner, Store};

const DATA: &str = "data.mdb";
const LOCK: &str = "lock.mdb";
const BOOT: &str = "boot";
const BOOT_NEW: &str = "boot.new";

/// What the link `boot` ends with when the store lacks leases of its damaged predecessor.
const REBUILD: &str = " rebuild";

/// What stands before that when the store's users have musl as their C library, as this process has or has not.
const MUSL: &str = " musl";
const IS_MUSL: bool = cfg!(target_env = "musl");

/// How long a repair waits for other processes to let go of the store.
const PATIENCE: Duration = Duration::from_secs(10);

/// The lock on a store's directory, given back when it is dropped.
pub(crate) type DirLock = Flock<File>;

/// A store that was opened.
#[derive(Debug)]
pub struct Opened {
    /// The store.
    pub store: Store,
    /// What was repaired, in sentences for the log; usually nothing.
    pub notes: Vec<String>,
    /// True when a damaged store was set aside, by whomever, and [`Store::rebuild`] was not yet told what is in use.
    pub rebuild: bool,
}

/// Stores that are open in this process, by device and inode of their directory: LMDB allows an environment only once.
static OPEN: Mutex<Vec<(u64, u64, Weak<Inner>)>> = Mutex::new(Vec::new());

impl Store {
    /// Opens the store in `dir` and makes it when there is none. `boot_id` names this boot of the host, as
    /// `/proc/sys/kernel/random/boot_id` does; leases of other boots can be reclaimed.
    ///
    /// A damaged file is set aside as `damaged-<seconds since 1970>` in `dir`, which the notes then say.
    ///
    /// # Errors
    /// [`Error::Busy`] when repair is needed and others keep the store open for 10 s; [`Error::Io`]; [`Error::Lmdb`].
    pub fn open(dir: &Path, boot_id: &str) -> Result<Opened> {
        let opened = open(dir, boot_id, true)?;
        opened.ok_or_else(|| Error::io("make", dir, std::io::Error::from(ErrorKind::NotFound)))
    }

    /// Opens the store in `dir` like [`Store::open`], but makes none: nothing is created where there was nothing.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_existing(dir: &Path, boot_id: &str) -> Result<Option<Opened>> {
        open(dir, boot_id, false)
    }

    /// Removes the store's files, and `dir` when nothing else is in it, so that the host is as before. Returns false,
    /// and removes nothing, when there is something in the store ([`Store::is_empty`]), when it is open anywhere, or
    /// when it needs repair or [`Store::rebuild`].
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Lmdb`].
    pub fn remove_if_empty(dir: &Path) -> Result<bool> {
        let _openers = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(file) = open_dir(dir)? else { return Ok(true) };
        let Some(_lock) = lock(dir, file, true, None)? else { return Ok(false) };
        if Link::read(dir).rebuild {
            return Ok(false);
        }
        let written = |f: &File| f.metadata().is_ok_and(|m| m.len() > 0);
        if let Some(file) = data(dir)?.filter(written) {
            // The order matters: what does not pass the examination is not opened.
            if check::quick(&file).is_err() || !Lmdb::open(dir, MAP_SIZE)?.read(|view| view.is_empty())? {
                return Ok(false);
            }
        }
        for name in [DATA, LOCK, BOOT, BOOT_NEW] {
            remove(&dir.join(name))?;
        }
        match fs::remove_dir(dir) {
            Err(e) if !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => {
                Err(Error::io("remove", dir, e))
            }
            _ => Ok(true),
        }
    }
}

/// What the link `boot` says.
#[derive(Default)]
struct Link {
    /// The boot during which the file was examined; empty when that is not known.
    boot: String,
    /// The C library of those who have used the store since.
    musl: bool,
    rebuild: bool,
}

impl Link {
    fn read(dir: &Path) -> Link {
        let target = fs::read_link(dir.join(BOOT)).ok().and_then(|t| t.into_os_string().into_string().ok());
        let target = target.unwrap_or_default();
        let (target, rebuild) = target.strip_suffix(REBUILD).map_or((&*target, false), |t| (t, true));
        let (boot, musl) = target.strip_suffix(MUSL).map_or((target, false), |t| (t, true));
        Link { boot: boot.to_owned(), musl, rebuild }
    }

    /// Replaces the link in one step.
    fn write(&self, dir: &Path) -> Result<()> {
        let mut target = self.boot.clone();
        target.push_str(if self.musl { MUSL } else { "" });
        target.push_str(if self.rebuild { REBUILD } else { "" });
        if target.is_empty() {
            return remove(&dir.join(BOOT));
        }
        let new = dir.join(BOOT_NEW);
        remove(&new)?;
        let made = std::os::unix::fs::symlink(target, &new).and_then(|()| fs::rename(&new, dir.join(BOOT)));
        made.map_err(|e| Error::io("make", dir.join(BOOT), e))
    }

    /// True when those who use the store now, if any, lock it with mutexes like this process's.
    fn is_ours(&self) -> bool {
        self.musl == IS_MUSL
    }

    /// True when the file was examined during this boot. Without a boot ID it is at every opening.
    fn vouches(&self, boot: &str) -> bool {
        !boot.is_empty() && self.boot == boot
    }
}

/// Forgets that the file was examined, so that the next opener does so.
pub(crate) fn distrust(dir: &Path) {
    // When it cannot be written, the failure that led here will be met again.
    let _ = Link { boot: String::new(), ..Link::read(dir) }.write(dir);
}

/// Notes that the leases of a damaged predecessor were put in again.
pub(crate) fn rebuilt(dir: &Path) -> Result<()> {
    let link = Link::read(dir);
    if link.rebuild { Link { rebuild: false, ..link }.write(dir) } else { Ok(()) }
}

fn open(dir: &Path, boot: &str, create: bool) -> Result<Option<Opened>> {
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    open.retain(|(.., inner)| inner.strong_count() > 0);
    let (mut notes, mut examined) = (Vec::new(), false);
    let since = Instant::now();
    while since.elapsed() < PATIENCE {
        let Some(file) = open_dir(dir)? else {
            if !create {
                return Ok(None);
            }
            make_dir(dir)?;
            continue;
        };
        let Some(lock) = lock(dir, file, false, None)? else { continue };
        let meta = lock.metadata().map_err(|e| Error::io("look at", dir, e))?;
        let place = (meta.dev(), meta.ino());
        let link = Link::read(dir);
        let opened = |inner, notes| {
            let store = Store { inner, boot: boot.to_owned() };
            Ok(Some(Opened { store, notes, rebuild: link.rebuild }))
        };
        if let Some(at) = open.iter().position(|o| (o.0, o.1) == place) {
            match open[at].2.upgrade() {
                Some(inner) if !inner.is_broken() => return opened(inner, notes),
                Some(_) => return Err(Error::Busy { dir: dir.to_owned() }),
                None => drop(open.remove(at)),
            }
        }
        let data = data(dir)?;
        if data.is_none() && !create {
            return Ok(None);
        }
        if let Some(file) = data.filter(|_| link.is_ours() && (examined || link.vouches(boot)))
            && check::quick(&file).is_ok()
        {
            // One opens at a time. The first of all makes LMDB's lock file anew; were it killed in the midst of that,
            // LMDB would let another that waits for it go on with mutexes and a transaction number that are half made.
            let opening = flock(dir, file, FlockArg::LockExclusive, None)?;
            let lmdb = match Lmdb::open(dir, MAP_SIZE) {
                // Another thread is just closing it.
                Err(Error::Lmdb { source: heed::Error::EnvAlreadyOpened, .. }) => {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                }
                other => other?,
            };
            drop(opening);
            let inner = Arc::new(Inner::new(lmdb, dir, lock));
            open.push((place.0, place.1, Arc::downgrade(&inner)));
            return opened(inner, notes);
        }
        drop(lock);
        notes.extend(examine(dir, boot)?);
        examined = true;
    }
    Err(Error::Busy { dir: dir.to_owned() })
}

/// With the store for this process alone: examines the file from end to end, or makes it. Returns a note when it was
/// damaged and set aside.
fn examine(dir: &Path, boot: &str) -> Result<Option<String>> {
    let Some(file) = open_dir(dir)? else { return Ok(None) };
    let Some(_lock) = lock(dir, file, true, Some(PATIENCE))? else { return Ok(None) };
    // Others may have done it while this one waited.
    let mut link = Link::read(dir);
    let file = data(dir)?;
    if file.as_ref().is_some_and(|f| link.is_ours() && link.vouches(boot) && check::quick(f).is_ok()) {
        return Ok(None);
    }
    let mut note = None;
    if let Some(file) = file {
        // An empty file that was never examined is what a process left that was killed as it made the store.
        if link.boot.is_empty() && file.metadata().is_ok_and(|m| m.len() == 0) {
            remove(&dir.join(DATA))?;
        } else if let Err(fault) = sound(dir, &file)? {
            link = Link { boot: String::new(), rebuild: true, ..link };
            link.write(dir)?;
            note = Some(set_aside(dir, &fault)?);
        }
    }
    if data(dir)?.is_none() {
        remove(&dir.join(LOCK))?;
        Lmdb::open(dir, MAP_SIZE)?.write(|tx| tx.put(keys::META, &Meta::default().encode()))?;
    }
    Link { boot: boot.to_owned(), musl: IS_MUSL, ..link }.write(dir)?;
    Ok(note)
}

/// Whether the file can be used; the inner error says why not. A short file is brought to its full length.
fn sound(dir: &Path, file: &File) -> Result<std::result::Result<(), String>> {
    let path = dir.join(DATA);
    let head = match check::walk(file) {
        Ok(head) => head,
        Err(fault) => return Ok(Err(fault)),
    };
    if head.is_short() {
        file.set_len(head.full_len()).map_err(|e| Error::io("extend", path, e))?;
    }
    // The lock file of an earlier boot may be of any content; nobody uses it now.
    remove(&dir.join(LOCK))?;
    match Lmdb::open(dir, MAP_SIZE)?.read(consistency::check) {
        Err(Error::Damaged { what, .. }) => Ok(Err(what)),
        Err(other) => Err(other),
        Ok(()) => Ok(Ok(())),
    }
}

fn set_aside(dir: &Path, fault: &str) -> Result<String> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let free = |i: &u32| !dir.join(aside_name(now, *i)).exists();
    let aside = dir.join(aside_name(now, (0..).find(free).unwrap_or(0)));
    fs::rename(dir.join(DATA), &aside).map_err(|e| Error::io("set aside", dir.join(DATA), e))?;
    let (dir, aside) = (dir.display(), aside.display());
    Ok(format!(
        "the lease store in {dir} was damaged ({fault}); it was set aside as {aside} and a new one begun"
    ))
}

fn aside_name(now: u64, count: u32) -> String {
    if count == 0 { format!("damaged-{now}") } else { format!("damaged-{now}-{count}") }
}

fn data(dir: &Path) -> Result<Option<File>> {
    let path = dir.join(DATA);
    match File::options().read(true).write(true).open(&path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("open", path, e)),
    }
}

fn open_dir(dir: &Path) -> Result<Option<File>> {
    match File::options().read(true).custom_flags(OFlag::O_DIRECTORY.bits()).open(dir) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("open", dir, e)),
    }
}

fn make_dir(dir: &Path) -> Result<()> {
    let made = match dir.parent() {
        Some(parent) => fs::create_dir_all(parent),
        None => Ok(()),
    };
    match made.and_then(|()| DirBuilder::new().mode(0o700).create(dir)) {
        Err(e) if !matches!(e.kind(), ErrorKind::AlreadyExists | ErrorKind::NotFound) => {
            Err(Error::io("make", dir, e))
        }
        _ => Ok(()),
    }
}

/// Takes the directory's lock, shared or `alone`. None when it was removed meanwhile, or, for one that is wanted alone
/// without patience, when others hold it.
fn lock(dir: &Path, file: File, alone: bool, patience: Option<Duration>) -> Result<Option<DirLock>> {
    let how = if alone { FlockArg::LockExclusiveNonblock } else { FlockArg::LockShared };
    let Some(lock) = flock(dir, file, how, patience)? else { return Ok(None) };
    let links = lock.metadata().map_err(|e| Error::io("look at", dir, e))?.nlink();
    Ok((links > 0).then_some(lock))
}

/// Locks a file. None when others hold the lock and `how` is not to wait, unless there is patience to try again.
fn flock(dir: &Path, mut file: File, how: FlockArg, patience: Option<Duration>) -> Result<Option<DirLock>> {
    let since = Instant::now();
    loop {
        file = match Flock::lock(file, how) {
            Ok(lock) => return Ok(Some(lock)),
            Err((file, Errno::EINTR)) => file,
            Err((file, Errno::EWOULDBLOCK)) => match patience {
                None => return Ok(None),
                Some(patience) if since.elapsed() > patience => {
                    return Err(Error::Busy { dir: dir.to_owned() });
                }
                Some(_) => {
                    std::thread::sleep(Duration::from_millis(1));
                    file
                }
            },
            Err((_, e)) => return Err(Error::io("lock", dir, e)),
        }
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}
