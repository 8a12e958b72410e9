//! Overlay networks: they belong to the overlay agents, not to this host. Their conflists here are copies of what the
//! agent knows, so that the plugins and every other CNI runtime can use them, also while the agent is down.

mod create;
#[cfg(test)]
mod fake;
mod files;
mod inspect;
mod options;
mod remove;
#[cfg(test)]
mod tests;

pub use create::{check, create};
pub use files::{confirm, prepare, refresh};
pub use inspect::complete;
pub use options::interface_prefix;
pub use remove::{has_endpoints, remove, still_used};

use super::Network;
use super::pools;
use crate::paths::Paths;
use anyhow::{Result, bail};
use ovl_api::{Client, names};

/// The driver's name.
pub const DRIVER: &str = "overlay";

/// The agent of this host, whether it answers or not.
fn client(paths: &Paths) -> Client {
    Client::new(names::socket(&paths.run))
}

/// The agent of this host, when there is one, or was one that did not end in good order.
fn agent(paths: &Paths) -> Option<Client> {
    let client = client(paths);
    client.socket().exists().then_some(client)
}

/// That an overlay network's subnets overlap those of no network that is this host's alone. Those need not have a route yet,
/// so that the agent cannot see them; other overlay networks it knows better.
fn check_overlap(flag: &str, subnets: &[ipnetwork::IpNetwork], name: &str, others: &[Network]) -> Result<()> {
    for other in others.iter().filter(|other| !other.is_overlay() && other.name() != name) {
        for theirs in other.subnets() {
            if let Some(ours) = subnets.iter().find(|ours| pools::overlap(**ours, theirs)) {
                bail!("{flag} {ours} overlaps network {} ({theirs}) of this host", other.name());
            }
        }
    }
    Ok(())
}
