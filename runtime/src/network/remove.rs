//! `network rm` and `network prune`.

use super::error::plain;
use super::{DEFAULT, Network, attach, find, local, lock, missing, overlay, usage, warn};
use crate::paths::Paths;
use crate::state::Container;
use anyhow::{Context, Result, anyhow, bail};
use ipam::Store;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// Removes a network, and from the kernel and the lease store all that it left there.
///
/// # Errors
/// A container is on it; it does not exist; what could not be cleaned up. In that last case the network stays, so that
/// the command can be repeated, unless `force` is given.
pub fn remove(paths: &Paths, what: &str, force: bool) -> Result<Network> {
    let network = find(paths, what)?;
    let mut agent_knows = true;
    if network.is_overlay() {
        // Without the lock: the agent may wait for its store, and containers of other networks must not.
        refuse_active(paths, &network)?;
        agent_knows = overlay::remove(paths, &network, force)?;
    }
    let lock = lock::exclusive(paths)?;
    let Some(found) = local(paths, network.id())?.filter(|found| found.id() == network.id()) else {
        // Somebody else was faster; an overlay network's file may have gone with somebody's refresh.
        return if network.is_overlay() { Ok(network) } else { Err(anyhow!("{}", missing(paths, what))) };
    };
    if !network.is_overlay() {
        refuse_active(paths, &found)?;
    }
    let done = take_down(paths, &found, force, agent_knows);
    drop(lock);
    done.map(|()| found)
}

fn refuse_active(paths: &Paths, network: &Network) -> Result<()> {
    let active = usage::active(paths, network)?;
    if active.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = active
        .iter()
        .map(|each| format!("{} ({})", each.name, each.id.get(..12).unwrap_or(&each.id)))
        .collect();
    bail!("network {} has active endpoints: {}", network.name(), names.join(", "))
}

/// Cleans up and removes the file. `tell` is whether a failure that `force` passes over is worth a word.
fn take_down(paths: &Paths, network: &Network, force: bool, tell: bool) -> Result<()> {
    let collected = match attach::invoker(paths).gc(&network.list, &[]) {
        Ok(()) => Ok(()),
        Err(error) => Err(anyhow!(
            "cannot clean up network {}: {}",
            network.name(),
            plain(paths, network.name(), &error)
        )),
    };
    let cleaned = collected.and_then(|()| forget(&paths.root.join("ipam"), network.name()));
    if let Err(error) = cleaned {
        if !force {
            return Err(error.context("the network is still there (--force removes it all the same)"));
        }
        if tell {
            eprintln!("runtime: warning: {error:#}");
        }
    }
    match fs::remove_file(&network.path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", network.path.display()));
        }
        _ => {}
    }
    tidy(paths);
    Ok(())
}

/// Takes a network out of the lease store, and the store away when nothing is left in it.
fn forget(store: &Path, network: &str) -> Result<()> {
    let named = || format!("cleaning up the leases in {}", store.display());
    if let Some(opened) = Store::open_existing(store, &crate::ipam_cmd::boot_id()?).with_context(named)? {
        opened.store.forget_network(network).with_context(named)?;
    }
    if store.is_dir() {
        Store::remove_if_empty(store).with_context(named)?;
    }
    Ok(())
}

/// Removes directories that are empty, so that the host is as before the first network.
pub(super) fn tidy(paths: &Paths) {
    let mut dirs = vec![
        paths.results(),
        paths.shared(),
        paths.containers(),
        paths.root.clone(),
        paths.run.join("containers"),
        paths.run.join("netns"),
        paths.run.clone(),
        paths.config_dir.clone(),
    ];
    // /etc/weft, with /etc/weft/net.d.
    dirs.extend(paths.config_dir.parent().filter(|dir| dir.ends_with("weft")).map(Path::to_owned));
    for dir in dirs {
        let _ = fs::remove_dir(dir);
    }
}

/// Removes the networks that no container names, but the default one, those that Weft did not create, and overlay networks
/// with a container on any host. `wanted` says which of them.
///
/// # Errors
/// The first that could not be removed; those before it are gone, and `removed` was told of them.
pub fn prune(
    paths: &Paths,
    wanted: impl Fn(&Network) -> bool,
    mut removed: impl FnMut(&Network),
) -> Result<()> {
    let containers = Container::every(paths)?;
    for network in super::current(paths) {
        let named = containers.iter().any(|each| usage::names(each, &network));
        if network.meta.is_none() || network.name() == DEFAULT || named || !wanted(&network) {
            continue;
        }
        if network.is_overlay() {
            match overlay::has_endpoints(paths, &network) {
                Ok(false) => {}
                Ok(true) => continue,
                Err(error) => {
                    warn(format!("network {} stays: {error:#}", network.name()));
                    continue;
                }
            }
        }
        match remove(paths, network.id(), false) {
            Ok(network) => removed(&network),
            // A container came in between, or its host had not told yet.
            Err(error) if overlay::still_used(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
