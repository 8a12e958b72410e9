//! What attachments have in the tables, kept in memory (a tmpfs), so that it can be restored when another program removes it.
//!
//! One small file for each attachment and [`Kind`], named by the attachment's tag, in a directory of the network namespace. A
//! record is written before the transaction that it is about, and removed before what it is about: what is in the tables
//! without a record is on its way out, and is never restored. Nothing here waits for a disk, and nothing needs to outlive a boot.

use super::record::{Kind, NetnsMark, Record};
use super::table::Table;
use crate::firewall::is_stale;
use crate::names::{self, Owner};
use crate::{Error, Netlink, Result, ns};
use nix::libc;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The longest record, in bytes: 65,535 ports, twice.
const LIMIT: u64 = 8 << 20;
/// How often a file is made again whose directory another process removes at the same time.
const TRIES: usize = 100;
/// The directory with the names of the links whose `route_localnet` Weft set.
const LOCALNET: &str = "localnet";
/// What is added to the name of a record of ports while they are removed.
const LEAVING: &str = ".leaving";
/// The directory with a file for each attachment that was made without published ports.
const PORTLESS: &str = "portless";

/// The records of one network namespace.
#[derive(Debug, Clone)]
pub struct Records {
    dir: PathBuf,
}

/// What an attachment has in the table for published ports.
#[derive(Debug, Clone)]
pub enum Published {
    /// Nothing: its ADD had no ports.
    Nothing,
    /// What the record says.
    As(Box<Record>),
}

/// Records that were read.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Those of attachments that are there, the oldest first, with their files.
    pub(super) records: Vec<(PathBuf, Record)>,
    /// Files that are no records, and why.
    pub refused: Vec<String>,
}

fn directory(table: Table) -> &'static str {
    if table == Table::Bridge { "bridge" } else { "inet" }
}

impl Records {
    /// The records of the calling thread's network namespace, below a directory that is not on a disk. Nothing is made yet.
    ///
    /// # Errors
    /// The namespace cannot be identified.
    pub fn below(base: &Path) -> Result<Records> {
        Records::of_cookie(base, ns::cookie())
    }

    /// As [`Records::below`], with the namespace's [`ns::cookie`], as the caller knows it.
    ///
    /// # Errors
    /// As [`Records::below`].
    pub fn of_cookie(base: &Path, cookie: Option<u64>) -> Result<Records> {
        let id = match cookie {
            Some(cookie) => cookie.to_string(),
            // Linux before 5.14. Another namespace may get the same number later, in which no attachment of this one is.
            None => format!("ns{}", ns::Netns::current()?.id().1),
        };
        Ok(Records { dir: base.join(id) })
    }

    fn of(&self, table: Table) -> PathBuf {
        self.dir.join(directory(table))
    }

    fn file(&self, owner: &Owner, kind: Kind) -> PathBuf {
        let mut path = self.of(kind.table());
        path.push(Record::file_name(owner, kind));
        path
    }

    /// Writes an attachment's record, in place of one that it has. One with nothing to restore is not written.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn put(&self, record: &Record) -> Result<()> {
        if record.content.is_empty() {
            return Ok(());
        }
        let kind = record.content.kind();
        let path = self.file(&record.owner, kind);
        let text = match kind {
            Kind::Ports => self.text_of_ports(record, &path),
            Kind::Link | Kind::Watch => Ok(record.encode()),
        };
        // In place: who reads half of it reads no record, and its writer has not yet changed what it is about.
        let write = |text: String| self.create(&path)?.write_all(text.as_bytes());
        text.and_then(write).map_err(|error| {
            let _ = fs::remove_file(&path);
            if kind == Kind::Ports {
                // The ports will be there all the same: DEL must look for them.
                let _ = self.create(&self.leaving(&record.owner));
            }
            Error::io(format!("write {}", path.display()), error)
        })
    }

    /// The text of a record of published ports. It says whether the tables may have more: of an earlier record that it replaces, or
    /// of a removal that was broken off.
    fn text_of_ports(&self, record: &Record, path: &Path) -> io::Result<String> {
        // Of an ADD without ports, before this one.
        match fs::remove_file(self.portless(&record.owner)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let before = match read_text(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.leaving(&record.owner).exists().then(String::new)
            }
            before => Some(before.map(|(text, _)| text).unwrap_or_default()),
        };
        Ok(before.map_or_else(|| record.encode(), |before| record.in_place_of(&before)))
    }

    /// Notes that an attachment is made without published ports, unless it may have some of an earlier ADD.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn note_portless(&self, owner: &Owner) -> Result<()> {
        if self.file(owner, Kind::Ports).exists() || self.leaving(owner).exists() {
            return Ok(());
        }
        let path = self.portless(owner);
        self.create(&path).map(drop).map_err(|error| Error::io(format!("write {}", path.display()), error))
    }

    /// Begins the removal of an attachment's published ports: they are not restored any more. Returns what its ADD put into the
    /// table; `None` when that is not known for certain, as no record was written, or there may be more than it says.
    pub fn begin_unpublishing(&self, owner: &Owner) -> Option<Published> {
        let path = self.file(owner, Kind::Ports);
        let known = match read_text(&path) {
            Ok((text, _)) if !Record::is_partial(&text) => {
                let record = Record::decode(Kind::Ports, &text).ok();
                record.filter(|record| record.owner == *owner).map(|record| Published::As(record.into()))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let is_portless = self.portless(owner).exists() && !self.leaving(owner).exists();
                is_portless.then_some(Published::Nothing)
            }
            _ => None,
        };
        // Kept until the end: when this is broken off, the next one must not take a later record for all there is.
        if fs::rename(&path, self.leaving(owner)).is_err_and(|error| error.kind() != ErrorKind::NotFound) {
            self.remove(owner, Kind::Ports);
        }
        known
    }

    /// Ends it: the table has nothing of the attachment's any more.
    pub fn end_unpublishing(&self, owner: &Owner) {
        let _ = fs::remove_file(self.leaving(owner));
        // Such notes are made on a host without nftables too, where nothing else removes their directories.
        if fs::remove_file(self.portless(owner)).is_ok() {
            self.tidy();
        }
    }

    /// Where the record of ports is that are being removed.
    fn leaving(&self, owner: &Owner) -> PathBuf {
        let mut path = self.file(owner, Kind::Ports).into_os_string();
        path.push(LEAVING);
        path.into()
    }

    fn portless(&self, owner: &Owner) -> PathBuf {
        let mut path = self.dir.join(PORTLESS);
        path.push(Record::file_name(owner, Kind::Ports));
        path
    }

    /// Notes that Weft sets `route_localnet` of this link.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn note_localnet(&self, link: &str) -> Result<()> {
        let path = self.dir.join(LOCALNET).join(link);
        self.create(&path).map(drop).map_err(|error| Error::io(format!("write {}", path.display()), error))
    }

    /// The links of [`Records::note_localnet`].
    pub(super) fn localnet(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.join(LOCALNET)).into_iter().flatten();
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
    }

    /// Removes an attachment's record. It need not be there, and what cannot be removed is no error: it is of no attachment once
    /// its namespace is gone.
    pub fn remove(&self, owner: &Owner, kind: Kind) {
        let _ = fs::remove_file(self.file(owner, kind));
    }

    /// Removes the records of a network's attachments that are not valid any more; `valid` as in
    /// [`crate::firewall::Firewall::gc`].
    pub fn gc(&self, network: &str, kind: Kind, valid: &dyn Fn(&str, &str) -> bool) {
        let network = names::clip_network(network);
        let portless = (kind == Kind::Ports).then(|| self.dir.join(PORTLESS));
        let entries =
            portless.into_iter().chain([self.of(kind.table())]).filter_map(|dir| fs::read_dir(dir).ok());
        for entry in entries.flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_str().map(|name| name.strip_suffix(LEAVING).unwrap_or(name));
            let tag = name.and_then(|name| name.strip_suffix(kind.suffix())?.strip_suffix('.'));
            if tag.is_some_and(|tag| is_stale(&tag.replace(':', "/"), &network, valid)) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Removes the directories when there is no record any more.
    pub fn tidy(&self) {
        let _ = fs::remove_dir(self.of(Table::Bridge));
        let _ = fs::remove_dir(self.dir.join(PORTLESS));
        if fs::remove_dir(self.of(Table::Inet)).is_err_and(|error| error.kind() != ErrorKind::NotFound) {
            return;
        }
        for link in self.localnet() {
            let _ = fs::remove_file(self.dir.join(LOCALNET).join(link));
        }
        let _ = fs::remove_dir(self.dir.join(LOCALNET));
        // With the two above it, as far as they are empty too.
        for dir in self.dir.ancestors().take(3) {
            if fs::remove_dir(dir).is_err_and(|error| error.kind() != ErrorKind::NotFound) {
                break;
            }
        }
    }

    /// Whether there are records about this table, besides one of an attachment.
    pub(super) fn has_any(&self, table: Table, but: Option<(&Owner, Kind)>) -> bool {
        let own = but.map(|(owner, kind)| Record::file_name(owner, kind));
        let mut entries = fs::read_dir(self.of(table)).into_iter().flatten().flatten();
        entries.any(|entry| entry.file_name().to_str() != own.as_deref())
    }

    /// Whether there is any record.
    pub fn are_there(&self) -> bool {
        Table::OF_ATTACHMENTS.into_iter().any(|table| self.has_any(table, None))
    }

    /// Makes an empty file, with its directories.
    fn create(&self, path: &Path) -> io::Result<File> {
        let open = || {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
        };
        let make = || {
            // The run directory is of others too.
            self.dir.ancestors().nth(2).map_or(Ok(()), fs::create_dir_all)?;
            let dir = path.parent().unwrap_or(&self.dir);
            DirBuilder::new().recursive(true).mode(0o700).create(dir)
        };
        let mut made = open();
        for _ in 0..TRIES {
            match &made {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                _ => break,
            }
            match make() {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => made = open(),
            }
        }
        made
    }

    /// The directory, to wait for others that watch it.
    pub(super) fn open(&self) -> Option<File> {
        File::open(&self.dir).ok()
    }

    /// Reads the records about this table of attachments that are there.
    pub(super) fn load(&self, table: Table) -> Result<Loaded> {
        let (mut found, mut loaded, mut netlink) = (Vec::new(), Loaded::default(), None);
        for entry in fs::read_dir(self.of(table)).into_iter().flatten().flatten() {
            if entry.file_name().as_encoded_bytes().ends_with(LEAVING.as_bytes()) {
                continue;
            }
            match read(&entry.path()) {
                Ok((time, record)) if record.content.kind().table() == table => {
                    if is_alive(&record, &mut netlink)? {
                        found.push((time, entry.path(), record));
                    }
                }
                Ok(_) => loaded.refused.push(format!("{}: another table's", entry.path().display())),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => loaded.refused.push(format!("{}: {error}", entry.path().display())),
            }
        }
        found.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        loaded.records = found.into_iter().map(|(_, path, record)| (path, record)).collect();
        Ok(loaded)
    }
}

fn invalid(why: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, why)
}

/// Reads the text of a record and when it was written. Only a file of this user's is one.
fn read_text(path: &Path) -> io::Result<(String, (i64, i64))> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() || meta.uid() != nix::unistd::geteuid().as_raw() || meta.mode() & 0o022 != 0 {
        return Err(invalid("expected a regular file that this user alone may write".into()));
    }
    if meta.len() > LIMIT {
        return Err(invalid(format!("expected at most {LIMIT} bytes")));
    }
    let mut text = String::new();
    file.take(LIMIT).read_to_string(&mut text)?;
    Ok((text, (meta.mtime(), meta.mtime_nsec())))
}

/// Reads a record, under its own name, and when it was written.
fn read(path: &Path) -> io::Result<((i64, i64), Record)> {
    let (text, time) = read_text(path)?;
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let kind = Kind::ALL.into_iter().find(|kind| name.ends_with(kind.suffix()));
    let kind = kind.ok_or_else(|| invalid("its name is not a record's".into()))?;
    let record = Record::decode(kind, &text).map_err(invalid)?;
    if Record::file_name(&record.owner, kind) != name {
        return Err(invalid("it names another attachment than its file name".into()));
    }
    Ok((time, record))
}

/// Is the attachment there? Its namespace is where the record says, or the host's end of its link is in this namespace.
fn is_alive(record: &Record, netlink: &mut Option<Netlink>) -> Result<bool> {
    let is_same =
        |mark: &NetnsMark| fs::metadata(&mark.path).is_ok_and(|found| (found.dev(), found.ino()) == mark.id);
    if record.netns.as_ref().is_some_and(is_same) {
        return Ok(true);
    }
    let netlink = match netlink {
        Some(netlink) => netlink,
        None => netlink.insert(Netlink::open()?),
    };
    let link = netlink.link(&record.owner.host_veth())?;
    Ok(link.is_some_and(|link| link.alias.as_deref() == Some(&record.owner.alias())))
}

#[cfg(test)]
mod tests {
    use super::super::record::Content;
    use super::*;
    use crate::firewall::{PortMapping, Protocol};

    /// The ports are published though their record cannot be written, so a note of an ADD without ports is not believed.
    #[test]
    fn unwritten_record_makes_dels_look_at_all_ports() {
        let owner = Owner::new("web", "a", "eth0");
        let ports =
            vec![PortMapping { host_ip: None, host_port: 8080, protocol: Protocol::Tcp, container_port: 80 }];
        let content = Content::Ports {
            addresses: vec!["10.1.0.3/16".parse().unwrap()],
            ports,
            snat: true,
            masq_all: false,
        };
        let record = Record { owner: owner.clone(), netns: None, content };
        for obstacle in ["note", "record"] {
            let dir = tempfile::tempdir().unwrap();
            let records = Records::of_cookie(dir.path(), Some(7)).unwrap();
            records.note_portless(&owner).unwrap();
            assert!(matches!(records.begin_unpublishing(&owner), Some(Published::Nothing)));
            // A directory can neither be removed as a file nor be written.
            let path = match obstacle {
                "note" => records.portless(&owner),
                _ => records.file(&owner, Kind::Ports),
            };
            let _ = fs::remove_file(&path);
            fs::create_dir_all(&path).unwrap();
            records.put(&record).unwrap_err();
            assert!(records.begin_unpublishing(&owner).is_none(), "{obstacle}");
        }
    }
}
