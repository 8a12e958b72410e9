//! Releases that a store could not take, as on a full disk or a read-only file system: a DEL leaves a note of them in the run
//! directory, which is in memory, and succeeds. The next ADD, DEL or GC that can write to the store applies it.
//!
//! A note is a symbolic link from a hash of attachment and store to both of them, which no file system stores by halves.

use super::leases;
use cni::{Error, code};
use ipam::Attachment;
use sha2::{Digest, Sha256};
use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::place;

fn directory() -> PathBuf {
    place::run().join("releases")
}

/// A release that is yet to be applied.
struct Pending {
    note: PathBuf,
    network: String,
    attachment: Attachment,
    store: PathBuf,
}

impl Pending {
    /// The note's content: names, which have no slash, then the store's path, which begins with one.
    fn content(network: &str, attachment: &Attachment, store: &Path) -> OsString {
        let mut content = format!("{network}/{}/{}:", attachment.container, attachment.ifname).into_bytes();
        content.extend_from_slice(store.as_os_str().as_bytes());
        OsString::from_vec(content)
    }

    fn read(note: PathBuf) -> Option<Pending> {
        let content = fs::read_link(&note).ok()?.into_os_string().into_vec();
        let colon = content.windows(2).position(|pair| pair == b":/")?;
        let store = PathBuf::from(OsString::from_vec(content[colon + 1..].to_vec()));
        let mut names = std::str::from_utf8(&content[..colon]).ok()?.splitn(3, '/');
        let (network, container, ifname) = (names.next()?, names.next()?, names.next()?);
        Some(Pending {
            note,
            network: network.to_owned(),
            attachment: Attachment::new(container, ifname),
            store,
        })
    }
}

/// Leaves a note where `error` says that the store cannot be written, and goes on.
///
/// # Errors
/// Any other error, and this one when no note can be left either.
pub fn unless_noted(
    network: &str,
    attachment: &Attachment,
    store: &Path,
    released: Result<(), Error>,
) -> Result<(), Error> {
    let Err(error) = released else { return Ok(()) };
    if error.code != code::IO {
        return Err(error);
    }
    match leave(network, attachment, store) {
        Ok(()) => {
            eprintln!("host-local: the addresses of {attachment} are released later: {error}");
            Ok(())
        }
        Err(failed) => {
            Err(error.details(format!("nor is there room in {}: {failed}", directory().display())))
        }
    }
}

fn leave(network: &str, attachment: &Attachment, store: &Path) -> io::Result<()> {
    let content = Pending::content(network, attachment, store);
    let name: String =
        Sha256::digest(content.as_bytes()).iter().take(16).map(|b| format!("{b:02x}")).collect();
    fs::create_dir_all(directory())?;
    match std::os::unix::fs::symlink(content, directory().join(name)) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Applies the releases that are pending. Where there is none it costs one system call.
pub fn apply() {
    let Ok(entries) = fs::read_dir(directory()) else { return };
    for pending in entries.flatten().filter_map(|entry| Pending::read(entry.path())) {
        let released = leases::open_other(&pending.store).and_then(|store| match store {
            Some(store) => leases::release(&store, &pending.network, &pending.attachment),
            None => Ok(()),
        });
        match released {
            Ok(()) => drop(fs::remove_file(&pending.note)),
            Err(error) => eprintln!("host-local: {} keeps its addresses still: {error}", pending.attachment),
        }
    }
    // Only when it is empty.
    let _ = fs::remove_dir(directory());
}
