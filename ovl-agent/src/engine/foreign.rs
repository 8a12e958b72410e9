//! Networks that this host has without Weft: an overlay over one of them would cut it off, or be cut off.

use super::internal;
use ipnetwork::IpNetwork;
use ovl_api::model::overlap;
use ovl_api::wire::{Problem, ProblemKind};

/// All of them, each with words for people.
///
/// # Errors
/// The kernel cannot be asked.
pub async fn all() -> Result<Vec<(IpNetwork, String)>, Problem> {
    // Blocking threads are made by this process, so they are in its network namespace.
    let read = || {
        net::Netlink::open().map_err(ovl_kernel::Error::from).and_then(|mut n| ovl_kernel::foreign(&mut n))
    };
    tokio::task::spawn_blocking(read).await.map_err(internal)?.map_err(internal)
}

/// Refuses a network of which a subnet overlaps one of them.
///
/// # Errors
/// It does.
pub async fn refuse(name: &str, subnets: &[IpNetwork]) -> Result<(), Problem> {
    let foreign = all().await?;
    let overlap = subnets.iter().find_map(|subnet| {
        let other = foreign.iter().find(|(other, _)| overlap(*other, *subnet));
        other.map(|(_, words)| (subnet, words))
    });
    let Some((subnet, words)) = overlap else { return Ok(()) };
    let message = format!(
        "network {name}: its subnet {subnet} overlaps {words} of this host; nothing is attached to it here"
    );
    Err(Problem { kind: ProblemKind::Taken, field: Some("network".to_owned()), message })
}
