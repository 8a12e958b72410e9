//! `ipam ls|release|import`: leases shown and mended.

use crate::format::{self, Row, age};
use crate::paths::Paths;
use anyhow::{Context, Result, bail};
use ipam::{Lease, Store};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Where host-local keeps its leases when no conflist says otherwise.
const HOST_LOCAL: &str = "/var/lib/cni/networks";

const COLUMNS: &[(&str, &str)] = &[
    ("Network", "NETWORK"),
    ("Address", "ADDRESS"),
    ("Container", "CONTAINER"),
    ("Interface", "INTERFACE"),
    ("Age", "AGE"),
    ("Boot", "BOOT"),
];

/// This boot of the host.
///
/// # Errors
/// /proc cannot be read.
pub fn boot_id() -> Result<String> {
    const FILE: &str = "/proc/sys/kernel/random/boot_id";
    Ok(fs::read_to_string(FILE).with_context(|| format!("cannot read {FILE}"))?.trim().to_owned())
}

/// The stores that leases of this configuration are in: ours under the root, and those that conflists name (`dataDir`).
fn stores(paths: &Paths, network: Option<&str>) -> Vec<PathBuf> {
    let mut dirs = vec![paths.root.join("ipam")];
    for known in crate::network::all(paths) {
        if network.is_none_or(|name| name == known.name()) {
            dirs.extend(data_dir(&known).map(|dir| dir.join(".weft")));
        }
    }
    dirs.sort();
    dirs.dedup();
    dirs
}

fn data_dir(network: &crate::network::Network) -> Option<PathBuf> {
    let mut ipams = network.list.plugins.iter().filter_map(|plugin| plugin.get("ipam"));
    ipams.find_map(|ipam| ipam.get("dataDir")?.as_str()).map(PathBuf::from)
}

fn open(dir: &Path) -> Result<Option<Store>> {
    let opened =
        Store::open_existing(dir, &boot_id()?).with_context(|| format!("leases in {}", dir.display()))?;
    Ok(opened.map(|opened| {
        for note in &opened.notes {
            eprintln!("runtime: note: {note}");
        }
        opened.store
    }))
}

/// `ipam ls`.
///
/// # Errors
/// A store cannot be read; a template that cannot be filled.
pub fn list(
    paths: &Paths,
    network: Option<&str>,
    format: Option<&str>,
    quiet: bool,
    no_trunc: bool,
) -> Result<()> {
    let boot = boot_id()?;
    let mut leases = Vec::new();
    for dir in stores(paths, network) {
        if let Some(store) = open(&dir)? {
            leases.extend(store.leases(network)?);
        }
    }
    leases.sort_by(|a, b| (&a.network, a.address).cmp(&(&b.network, b.address)));
    if quiet {
        let lines: String = leases.iter().map(|lease| format!("{}\n", lease.address)).collect();
        return Ok(format::print(&lines)?);
    }
    let rows: Vec<Row> = leases.iter().map(|lease| row(lease, &boot, no_trunc)).collect();
    Ok(format::print(&format::listing(COLUMNS, &rows, format)?)?)
}

fn row(lease: &Lease, boot: &str, no_trunc: bool) -> Row {
    let span = SystemTime::now().duration_since(lease.time).unwrap_or_default();
    let of = match lease.boot.as_str() {
        this if this == boot => "this",
        "" => "unknown",
        _ => "earlier",
    };
    vec![
        ("Network", lease.network.clone()),
        ("Address", lease.address.to_string()),
        ("Container", format::short(&lease.attachment.container, no_trunc)),
        ("Interface", lease.attachment.ifname.clone()),
        ("Age", age::human(span)),
        ("Boot", of.into()),
    ]
}

/// `ipam release NETWORK ADDRESS`.
///
/// # Errors
/// Nobody has a lease of the address.
pub fn release(paths: &Paths, network: &str, address: IpAddr) -> Result<()> {
    for dir in stores(paths, Some(network)) {
        if let Some(store) = open(&dir)?
            && let Some(lease) = store.release_address(network, address)?
        {
            let holder = lease.attachment;
            return Ok(format::print(&format!("{address} of {network}, held by {holder}, is free\n"))?);
        }
    }
    bail!("network {network}: nobody has a lease of {address}")
}

/// `ipam import NETWORK`: takes over the leases of a directory of host-local's, that of the network.
///
/// # Errors
/// There is no such directory.
pub fn import(paths: &Paths, network: &str, dir: Option<&Path>) -> Result<()> {
    cni::validate::network_name(network).map_err(|error| anyhow::anyhow!("network {network:?}: {error}"))?;
    let known = crate::network::lookup(paths, network)?;
    let own = known.as_ref().and_then(data_dir);
    let dir = dir.map(Path::to_owned).or_else(|| own.clone()).unwrap_or_else(|| HOST_LOCAL.into());
    let files = dir.join(network);
    if !files.is_dir() {
        bail!("there is no directory {} with leases to import; name its parent with --dir", files.display());
    }
    let store = own.map_or_else(|| paths.root.join("ipam"), |own| own.join(".weft"));
    let named = || format!("leases in {}", store.display());
    let opened = Store::open(&store, &boot_id()?).with_context(named)?;
    for note in &opened.notes {
        eprintln!("runtime: note: {note}");
    }
    let leases = opened.store.import(network, &dir).with_context(named)?;
    let lines: String =
        leases.iter().map(|lease| format!("{} {}\n", lease.address, lease.attachment)).collect();
    Ok(format::print(&format!("{lines}{} leases imported from {}\n", leases.len(), files.display()))?)
}
