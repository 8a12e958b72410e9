//! Every store in which an attachment may have a lease. DEL and GC look in all of them: the configuration may name another
//! `dataDir` than at ADD, or none, or no `ipam` any more.
//!
//! Stores outside of Weft's own directory are noted there, each as a symbolic link `stores/HASH` to it.

use super::conf::Dirs;
use crate::place;
use sha2::{Digest, Sha256};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

fn directory() -> PathBuf {
    place::root().join("stores")
}

/// The note of a store.
fn note(store: &Path) -> PathBuf {
    let hash = Sha256::digest(store.as_os_str().as_bytes());
    let name: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    directory().join(name)
}

/// Notes the store of an ADD, so that it is found without the configuration. An ADD does not fail by it.
pub fn remember(dirs: &Dirs) {
    if dirs.store == Dirs::usual_store() {
        return;
    }
    let note = note(&dirs.store);
    if fs::read_link(&note).is_ok_and(|store| store == dirs.store) {
        return;
    }
    let link = || std::os::unix::fs::symlink(&dirs.store, &note);
    let made = match link() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            fs::create_dir_all(directory()).and_then(|()| link())
        }
        made => made,
    };
    match made {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            eprintln!(
                "host-local: cannot note the store {} in {}: {error}",
                dirs.store.display(),
                note.display()
            );
        }
        _ => {}
    }
}

/// Forgets a store that is no more.
pub fn forget(store: &Path) {
    if !store.exists() && fs::remove_file(note(store)).is_ok() {
        let _ = fs::remove_dir(directory());
    }
}

/// The stores other than the one that the configuration names. One that this process may not use has no lease of its.
pub fn others(configured: Option<&Dirs>) -> Vec<PathBuf> {
    let noted = fs::read_dir(directory()).into_iter().flatten().flatten();
    let mut stores: Vec<PathBuf> = noted.filter_map(|entry| fs::read_link(entry.path()).ok()).collect();
    stores.push(Dirs::usual_store());
    stores.retain(|store| configured.is_none_or(|dirs| dirs.store != *store) && !place::is_forbidden(store));
    stores
}
