//! Which containers are on a network.

use super::Network;
use crate::engine::release;
use crate::paths::Paths;
use crate::spec::NetMode;
use crate::state::{AttachState, Container, Status};
use anyhow::Result;
use cni::cache::Cache;

/// A container with an interface on a network: its own, or that of a container whose network namespace it shares.
#[derive(Debug)]
pub struct Endpoint {
    /// The container's ID.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The interface, once it is attached.
    pub attached: Option<AttachState>,
}

/// The endpoints of a network: containers that run, those that are being started, and those that joined the namespace of a
/// container of the network, whatever became of that one itself.
///
/// # Errors
/// The containers' states cannot be read.
pub fn active(paths: &Paths, network: &Network) -> Result<Vec<Endpoint>> {
    let attached: Vec<String> = Cache::new(paths.results())
        .entries()?
        .into_iter()
        .filter(|entry| entry.network == network.name())
        .map(|entry| entry.container_id)
        .collect();
    let is_active = |each: &Container| match each.state.status {
        Status::Running => true,
        // Its state says "created" until its process runs; the result of its ADD is there before.
        Status::Created => attached.iter().any(|id| id == each.id()),
        // The same in a later start. One that is just ending has its attachments in its state.
        Status::Exited => {
            each.state.attachments.is_empty()
                && attached.iter().any(|id| id == each.id())
                && release::Lock::is_taken(each)
        }
        // A dead one could not be taken down; removing the network takes down what it left.
        Status::Dead => false,
    };
    let mut endpoints: Vec<Endpoint> = Vec::new();
    for each in Container::every(paths)?.into_iter().filter(|each| names(each, network)) {
        let joined = release::joined(&each);
        let attached =
            each.state.attachments.iter().find(|attached| attached.network == network.name()).cloned();
        // One that has ended holds its attachments for those who joined it, and is none itself.
        let is_own = is_active(&each)
            && (joined.is_empty() || each.state.status == Status::Running && !each.is_removed());
        let own = is_own.then_some((each.spec.id, each.spec.name));
        for (id, name) in own.into_iter().chain(joined) {
            endpoints.push(Endpoint { id, name, attached: attached.clone() });
        }
    }
    Ok(endpoints)
}

/// Whether a container, running or not, is to be on the network.
pub fn names(container: &Container, network: &Network) -> bool {
    match &container.spec.network {
        NetMode::Networks(all) => all.iter().any(|each| each.network == network.name()),
        NetMode::None | NetMode::Host | NetMode::Container(_) => false,
    }
}
