//! The store of leases as host-local opens it: with what the reference plugin left taken over, and, when it had to be set
//! aside, rebuilt from the results that runtimes keep.

use super::conf::Dirs;
use crate::errors::Coded;
use crate::place;
use cni::Error;
use cni::cache::CacheEntry;
use ipam::{Attachment, Lease, Opened, Store};
use net::ns::Netns;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Opens the store of a network, and makes it when there is none.
pub fn open(network: &str, dirs: &Dirs) -> Result<Store, Error> {
    let opened = Store::open(&dirs.store, &place::boot_id()).coded()?;
    ready(opened, network, dirs)
}

/// Opens the store of a network if there is one, or anything to take over; nothing is made otherwise.
pub fn open_existing(network: &str, dirs: &Dirs) -> Result<Option<Store>, Error> {
    if dirs.reference.is_dir() {
        return open(network, dirs).map(Some);
    }
    let opened = Store::open_existing(&dirs.store, &place::boot_id()).coded()?;
    opened.map(|opened| ready(opened, network, dirs)).transpose()
}

/// Opens a store that the configuration does not name, if it is there; nothing is taken over into it.
pub fn open_other(store: &Path) -> Result<Option<Store>, Error> {
    let opened = Store::open_existing(store, &place::boot_id()).coded()?;
    opened.map(|opened| usable(opened, store)).transpose()
}

/// Releases an attachment's addresses in a store.
pub fn release(store: &Store, network: &str, attachment: &Attachment) -> Result<(), Error> {
    store.release(network, attachment).coded().map(drop)
}

fn ready(opened: Opened, network: &str, dirs: &Dirs) -> Result<Store, Error> {
    let store = usable(opened, &dirs.store)?;
    take_over(&store, network, dirs)?;
    Ok(store)
}

/// Reports what was repaired, and rebuilds what was lost by it.
fn usable(opened: Opened, place: &Path) -> Result<Store, Error> {
    for note in &opened.notes {
        eprintln!("host-local: {note}");
    }
    let store = opened.store;
    if opened.rebuild {
        let count = store.rebuild(known(place)).coded()?;
        eprintln!("host-local: {count} leases rebuilt from the results that runtimes keep");
    }
    Ok(store)
}

fn take_over(store: &Store, network: &str, dirs: &Dirs) -> Result<(), Error> {
    let taken = store.import(network, &dirs.base).coded()?;
    if !taken.is_empty() {
        eprintln!("host-local: {} leases taken over from {}", taken.len(), dirs.reference.display());
    }
    Ok(())
}

/// Whether the container of a lease that was given before this boot may live still. No process outlives a boot, so a
/// namespace known by a process is gone; one known by a file lives if the file is a namespace.
pub fn may_live(lease: &Lease) -> bool {
    let path = lease.netns.as_deref().map(Path::new);
    path.is_some_and(|path| !path.starts_with("/proc") && Netns::open(path).is_ok())
}

/// The leases that the runtimes' kept results tell of, for one store.
fn known(store: &Path) -> Vec<Lease> {
    let entries = place::caches().into_iter().flat_map(|cache| cache.entries().unwrap_or_default());
    entries.filter(|entry| belongs(entry, store)).flat_map(|entry| leases_of(&entry)).collect()
}

/// Whether an attachment's addresses came from host-local with this store.
fn belongs(entry: &CacheEntry, store: &Path) -> bool {
    let Ok(config) = serde_json::from_slice::<Map<String, Value>>(&entry.config) else { return false };
    let listed = config.get("plugins").and_then(Value::as_array).into_iter().flatten();
    let single = Value::Object(config.clone());
    let mut ipams = listed.chain([&single]).filter_map(|plugin| plugin.get("ipam"));
    ipams.any(|ipam| {
        let data_dir = ipam.get("dataDir").and_then(Value::as_str).filter(|dir| !dir.is_empty());
        let own = data_dir.map_or_else(|| place::root().join("ipam"), |dir| PathBuf::from(dir).join(".weft"));
        ipam.get("type").and_then(Value::as_str) == Some("host-local") && own == store
    })
}

fn leases_of(entry: &CacheEntry) -> Vec<Lease> {
    let netns = entry.netns.as_ref().map(|path| path.to_string_lossy().into_owned());
    // What outlived this boot's start was made in this boot.
    let lives = entry.netns.as_deref().is_some_and(|path| Netns::open(path).is_ok());
    let boot = if lives { place::boot_id() } else { String::new() };
    let ips = entry.result().ok().flatten().unwrap_or_default().ips;
    let lease = |address| Lease {
        network: entry.network.clone(),
        address,
        attachment: Attachment::new(&*entry.container_id, &*entry.ifname),
        boot: boot.clone(),
        time: SystemTime::now(),
        netns: netns.clone(),
    };
    ips.iter().map(|ip| lease(ip.address.ip())).collect()
}
