//! `network rm` of an overlay network: the agent first, which refuses while a container is on it on any host.

use super::client;
use crate::network::{Network, attach};
use crate::paths::Paths;
use anyhow::Result;
use ovl_api::ClientError;
use ovl_api::wire::ProblemKind;

fn kind(error: &ClientError) -> Option<ProblemKind> {
    error.problem().map(|problem| problem.kind)
}

/// Removes the network from the store, so that no host has it any more. The file is left.
///
/// With `force`, attachments of this host that belong to no container of ours are ended before, and a network whose agent
/// does not answer is given up here, with a warning: it comes back with the agent. False is returned then.
///
/// # Errors
/// A container is on it, on any host; the agent or its store does not answer.
pub fn remove(paths: &Paths, network: &Network, force: bool) -> Result<bool> {
    let client = client(paths);
    let mut removed = client.remove_network(network.name());
    if force && removed.as_ref().is_err_and(|error| kind(error) == Some(ProblemKind::InUse)) {
        if let Err(error) = attach::invoker(paths).gc(&network.list, &[]) {
            eprintln!("runtime: warning: cleaning up network {}: {error}", network.name());
        }
        removed = client.remove_network(network.name());
    }
    match removed {
        Err(error) if kind(&error) == Some(ProblemKind::NotFound) => Ok(true),
        Err(error) if force && error.is_absent() => {
            eprintln!("runtime: warning: network {} is removed here alone: {error}", network.name());
            Ok(false)
        }
        other => Ok(other.map(|()| true)?),
    }
}

/// Whether a failure of [`remove`] says that somebody uses the network.
pub fn still_used(error: &anyhow::Error) -> bool {
    error.downcast_ref::<ClientError>().is_some_and(|error| kind(error) == Some(ProblemKind::InUse))
}

/// Whether a container is on the network, on any host.
///
/// # Errors
/// The agent does not answer.
pub fn has_endpoints(paths: &Paths, network: &Network) -> Result<bool> {
    Ok(!client(paths).network_detail(network.name())?.endpoints.is_empty())
}
