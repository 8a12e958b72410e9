//! Which containers are on a network.

use super::Network;
use crate::engine::release;
use crate::paths::Paths;
use crate::spec::NetMode;
use crate::state::{Container, Status};
use anyhow::Result;
use cni::cache::Cache;

/// Containers with an interface on the network: those that run, and those that are being started.
pub fn active(paths: &Paths, network: &Network) -> Result<Vec<Container>> {
    let attached: Vec<String> = Cache::new(paths.results())
        .entries()?
        .into_iter()
        .filter(|entry| entry.network == network.name())
        .map(|entry| entry.container_id)
        .collect();
    let is_active = |each: &Container| match each.state.status {
        // Its network is used by those who joined it, whatever became of itself.
        _ if names(each, network) && !release::joiners(each).is_empty() => true,
        Status::Running => names(each, network),
        // Its state says "created" until its process runs; the result of its ADD is there before.
        Status::Created => attached.iter().any(|id| id == each.id()),
        // A dead one could not be taken down; removing the network takes down what it left.
        Status::Exited | Status::Dead => false,
    };
    Ok(Container::every(paths)?.into_iter().filter(is_active).collect())
}

/// Whether a container, running or not, is to be on the network.
pub fn names(container: &Container, network: &Network) -> bool {
    match &container.spec.network {
        NetMode::Networks(all) => all.iter().any(|each| each.network == network.name()),
        NetMode::None | NetMode::Host | NetMode::Container(_) => false,
    }
}
