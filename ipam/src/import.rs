//! Taking over what the reference host-local plugin has kept.
//!
//! It keeps one file an address in `<dir>/<network>/`, named by the address, with the container's ID and, behind CR LF,
//! the interface (old versions: the ID alone); beside them `last_reserved_ip.<index of the range set>` with the
//! address it gave out last, and `lock`, which it holds by flock while it works.
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::error::{Error, Result};
use crate::keys;
use crate::lease::{Attachment, Lease};
use crate::record::encode_address;
use crate::store::{Store, check_attachment, check_network};

const LAST: &str = "last_reserved_ip.";
const LOCK: &str = "lock";

/// What a directory of host-local's holds.
#[derive(Default)]
struct Found {
    /// Files of addresses; those that crashes left empty among them.
    leases: Vec<(PathBuf, IpAddr)>,
    /// Files with the address that a set gave out last, with the set's index.
    last: Vec<(PathBuf, u32)>,
    /// Anything that is not host-local's.
    foreign: bool,
}

impl Store {
    /// Takes over host-local's leases of a network from `<dir>/<network>/`, where `dir` is host-local's `dataDir`, and
    /// removes its files, and the directory when nothing else is in it. The leases' files that are empty are removed
    /// too; the next address is the one host-local would have given. Returns the leases taken over.
    ///
    /// Where there is nothing to take over it costs an attempt to open the directory. To be called before any other
    /// operation on the network: a process killed between the two steps leaves files that are only then recognised.
    /// An address held in this store stays with its holder here. A lease whose file is older than this boot, or whose
    /// age is unknown, is of an unnamed earlier boot.
    ///
    /// # Errors
    /// [`Error::Name`], [`Error::Io`], and what befalls the store itself; then no file has been removed.
    pub fn import(&self, network: &str, dir: &Path) -> Result<Vec<Lease>> {
        check_network(network)?;
        let dir = dir.join(network);
        match look(&dir)? {
            None => return Ok(Vec::new()),
            Some(found) if found.foreign && found.leases.is_empty() && found.last.is_empty() => {
                return Ok(Vec::new());
            }
            Some(_) => {}
        }
        let lock = lock(&dir)?;
        // Looked at again: only now it does not change.
        let Some(found) = look(&dir)? else { return Ok(Vec::new()) };
        let mut leases = Vec::new();
        let mut done = Vec::new();
        for (path, address) in found.leases {
            match self.read_lease(network, &path, address)? {
                Content::Lease(lease) => leases.push(*lease),
                Content::Empty => {}
                Content::Unknown => continue,
            }
            done.push(path);
        }
        let mut last = Vec::new();
        for (path, index) in found.last {
            if let Ok(address) = text(&path)?.trim().parse::<IpAddr>() {
                last.push((index, address.to_canonical()));
            }
            done.push(path);
        }
        let taken = self.take_over(network, leases, &last)?;
        for path in &done {
            remove(path)?;
        }
        if !found.foreign {
            // A process of host-local's that waits for the lock just now fails, and its runtime tries again.
            remove(&dir.join(LOCK))?;
            // What else may be in it stays.
            let _ = fs::remove_dir(&dir);
        }
        drop(lock);
        Ok(taken)
    }

    fn take_over(&self, network: &str, leases: Vec<Lease>, last: &[(u32, IpAddr)]) -> Result<Vec<Lease>> {
        if leases.is_empty() && last.is_empty() {
            return Ok(leases);
        }
        self.write(|tx| {
            let net = tx.net_of(network)?;
            let mut taken = Vec::new();
            for lease in &leases {
                if tx.adopt(net, lease)? {
                    taken.push(lease.clone());
                }
            }
            for (index, address) in last {
                let mut key = keys::prefix(keys::HINT, net);
                key.extend_from_slice(&index.to_be_bytes());
                tx.put(&key, &encode_address(*address))?;
            }
            Ok(taken)
        })
    }

    fn read_lease(&self, network: &str, path: &Path, address: IpAddr) -> Result<Content> {
        let content = text(path)?;
        let (container, ifname) = content.split_once("\r\n").unwrap_or((&content, ""));
        let attachment = Attachment::new(container.trim(), ifname.trim());
        if content.trim().is_empty() {
            return Ok(Content::Empty);
        }
        if check_attachment(&attachment).is_err() {
            return Ok(Content::Unknown);
        }
        let time =
            fs::metadata(path).and_then(|m| m.modified()).map_err(|e| Error::io("look at", path, e))?;
        let boot =
            if booted().is_some_and(|booted| time >= booted) { self.boot.clone() } else { String::new() };
        let network = network.to_owned();
        Ok(Content::Lease(Box::new(Lease { network, address, attachment, boot, time, netns: None })))
    }
}

/// What a lease's file says.
enum Content {
    Lease(Box<Lease>),
    /// Left by a crash: it holds nothing.
    Empty,
    /// Nothing that host-local writes: it is left alone.
    Unknown,
}

/// Lists the directory; none when there is none.
fn look(dir: &Path) -> Result<Option<Found>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        Err(e) => return Err(Error::io("list", dir, e)),
    };
    let mut found = Found::default();
    for entry in entries {
        let entry = entry.map_err(|e| Error::io("list", dir, e))?;
        let is_file = entry.file_type().is_ok_and(|t| t.is_file());
        let name = entry.file_name();
        let name = if is_file { name.to_str().unwrap_or_default() } else { "" };
        if let Some(address) = address_of(name) {
            found.leases.push((entry.path(), address));
        } else if let Some(index) = name.strip_prefix(LAST).and_then(|i| i.parse().ok()) {
            found.last.push((entry.path(), index));
        } else if name != LOCK {
            found.foreign = true;
        }
    }
    Ok(Some(found))
}

/// IPv6 addresses have colons in their names, or underscores where they were written for file systems without them.
fn address_of(name: &str) -> Option<IpAddr> {
    name.parse().or_else(|_| name.replace('_', ":").parse()).ok().map(|a: IpAddr| a.to_canonical())
}

fn lock(dir: &Path) -> Result<Flock<File>> {
    let path = dir.join(LOCK);
    let opened = File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = opened.map_err(|e| Error::io("open", &path, e))?;
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusive) {
            Ok(lock) => return Ok(lock),
            Err((file, Errno::EINTR)) => file,
            Err((_, e)) => return Err(Error::io("lock", path, e)),
        };
    }
}

/// The beginning of a file: host-local's are a line or two.
fn text(path: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    let read = base::file::open_regular(path).and_then(|file| file.take(8192).read_to_end(&mut bytes));
    read.map_err(|e| Error::io("read", path, e))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}

/// When the host booted, by its clock of now.
fn booted() -> Option<SystemTime> {
    let up = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).ok()?;
    SystemTime::now().checked_sub(Duration::from(up))
}
