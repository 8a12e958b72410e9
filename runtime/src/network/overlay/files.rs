//! The conflists of overlay networks: copies of what the agent knows, written and dropped as networks come and go on any
//! host.

use super::{DRIVER, agent, check_overlap};
use crate::network::{self, Network, conflist, file, lock, remove, warn};
use crate::paths::Paths;
use crate::spec::NetAttach;
use anyhow::{Context, Result, bail};
use cni::config::ConfList;
use ovl_api::{Client, model};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long an answer may take that can be done without.
const AT_ONCE: Duration = Duration::from_millis(500);

/// A network's file.
pub fn path(paths: &Paths, name: &str) -> PathBuf {
    paths.config_dir.join(format!("{name}.conflist"))
}

/// What a file has to be.
fn wanted(network: &model::Network) -> Result<ConfList> {
    let list = conflist::overlay(network);
    // Read before it is written, as every reader of the file will.
    Ok(ConfList::from_slice(list.to_string().as_bytes())?)
}

/// Writes the file of a network that the agent has just made. A refresh by somebody else may have been first.
///
/// # Errors
/// It cannot be written, or another network has the name.
pub fn add(paths: &Paths, made: &model::Network) -> Result<Network> {
    let list = wanted(made)?;
    let _lock = lock::create(paths)?;
    let path = path(paths, &made.name);
    match network::all(paths).into_iter().find(|other| other.name() == made.name) {
        Some(other) if other.id() == made.id => return Ok(other),
        Some(other) => bail!("network {} is in {} already", made.name, other.path.display()),
        None if path.exists() => bail!("{} already exists", path.display()),
        None => {}
    }
    write(&path, &list)?;
    Network::new(path, list)
}

fn write(path: &Path, list: &ConfList) -> Result<()> {
    file::replace(path, format!("{:#}\n", Value::Object(list.raw.clone())).as_bytes())
}

/// What has to happen to one file.
#[derive(Debug, PartialEq)]
enum Change {
    Write(PathBuf, ConfList),
    Drop(PathBuf),
}

/// What tells the files from what the agent has, and what is in the way of networks, in words.
fn compare(
    paths: &Paths,
    local: &[Network],
    agents: &[model::Network],
) -> Result<(Vec<Change>, Vec<String>)> {
    let (mut changes, mut notes) = (Vec::new(), Vec::new());
    // One whose removal was cut off is among them: `network rm` is how it goes.
    for network in agents {
        let list = wanted(network)?;
        let file = path(paths, &network.name);
        match local.iter().find(|local| local.name() == network.name) {
            // Somebody wrote it by hand, for the same network.
            Some(local) if local.driver() == DRIVER && !local.is_overlay() => {}
            Some(local) if !local.is_overlay() => notes.push(format!(
                "overlay network {} cannot be used on this host: another network in {} has this name",
                network.name,
                local.path.display()
            )),
            Some(local) if local.list.raw == list.raw => {}
            Some(local) => changes.push(Change::Write(local.path.clone(), list)),
            None if file.exists() => notes.push(format!(
                "overlay network {} cannot be used on this host: {} is another file",
                network.name,
                file.display()
            )),
            None => changes.push(Change::Write(file, list)),
        }
    }
    let gone =
        |local: &&Network| local.is_overlay() && !agents.iter().any(|network| network.name == local.name());
    changes.extend(local.iter().filter(gone).map(|local| Change::Drop(local.path.clone())));
    Ok((changes, notes))
}

/// Makes the files as the agent has the networks. A host where no agent ever ran has nothing to do.
///
/// # Errors
/// The agent does not answer, or a file cannot be written. Files are as they were then.
pub fn refresh(paths: &Paths) -> Result<()> {
    agent(paths).map_or(Ok(()), |client| refresh_from(paths, &client))
}

/// As [`refresh`], for those who can do with the files as they are: an agent that cannot tell at once, because its store
/// does not answer, is not waited for.
///
/// # Errors
/// As [`refresh`].
pub fn confirm(paths: &Paths) -> Result<()> {
    agent(paths).map_or(Ok(()), |client| refresh_from(paths, &client.with_timeout(AT_ONCE)))
}

fn refresh_from(paths: &Paths, client: &Client) -> Result<()> {
    let (changes, notes) = compare(paths, &network::all(paths), &client.networks()?)?;
    notes.into_iter().for_each(warn);
    if changes.is_empty() {
        return Ok(());
    }
    // Again, with the files to itself: what somebody else has written meanwhile must not be dropped.
    let lock = lock::create(paths)?;
    let (changes, _) = compare(paths, &network::all(paths), &client.networks()?)?;
    let mut dropped = false;
    for change in changes {
        match change {
            Change::Write(path, list) => write(&path, &list)?,
            Change::Drop(path) => {
                fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
                dropped = true;
            }
        }
    }
    drop(lock);
    if dropped {
        remove::tidy(paths);
    }
    Ok(())
}

/// What an attachment to these networks needs from the agent's side: fresh files of the overlay networks among them, which
/// overlap no other network of this host. With the agent down the files are used as they are.
///
/// # Errors
/// An overlap; names both networks.
pub fn prepare(paths: &Paths, attaches: &[NetAttach]) -> Result<()> {
    let all = network::all(paths);
    let named = |all: &[Network], attach: &NetAttach| {
        all.iter().find(|network| network.name() == attach.network).cloned()
    };
    if attaches.iter().all(|attach| named(&all, attach).is_some_and(|network| !network.is_overlay())) {
        return Ok(());
    }
    let known = attaches.iter().all(|attach| named(&all, attach).is_some());
    let _ = if known { confirm(paths) } else { refresh(paths) };
    let all = network::all(paths);
    for network in attaches.iter().filter_map(|attach| named(&all, attach)).filter(Network::is_overlay) {
        let flag = format!("network {}: its subnet", network.name());
        check_overlap(&flag, &network.subnets(), network.name(), &all)?;
    }
    Ok(())
}
