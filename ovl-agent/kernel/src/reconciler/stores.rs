//! The cluster's store, which containers do not reach: a program that can write to it decides what all nodes do.

use std::collections::BTreeSet;
use std::net::IpAddr;

use net::names::{BRIDGE_ALIAS, CONTAINERS_GROUP};
use net::route::LOCAL;
use net::{Link, LinkSet};

use super::{Changes, Reconciler};
use crate::model::Model;
use crate::rules::Rules;

/// Where the store is.
#[derive(Debug, Default)]
pub(super) struct Stores {
    /// Addresses and TCP ports.
    all: BTreeSet<(IpAddr, u16)>,
    /// The ports of those that are this node's own, as of the last full pass.
    here: BTreeSet<u16>,
}

impl Reconciler {
    /// What the packet filter is to let pass.
    pub(super) fn rules_of(&self, model: &Model) -> Rules {
        let Stores { all, here } = &self.stores;
        Rules { stores: all.clone(), stores_here: here.clone(), ..self.scene(model).rules() }
    }

    /// Has passes close these addresses and TCP ports to containers. True when they are others than before: a full pass is due
    /// then.
    pub fn close_stores(&mut self, all: BTreeSet<(IpAddr, u16)>) -> bool {
        let changed = self.stores.all != all;
        self.stores.all = all;
        changed
    }

    /// Finds out which of the store's addresses are this node's, and puts bridges that an earlier version of Weft made into the
    /// group by which the rules know them.
    pub(super) fn look_for_stores(&mut self, links: &[Link], changes: &mut Changes) {
        let mut here = BTreeSet::new();
        for (ip, port) in &self.stores.all {
            // An address that no route leads to is not this node's.
            let route = self.netlink.route_towards(*ip).ok().flatten();
            if ip.is_loopback() || route.is_some_and(|route| route.kind == LOCAL) {
                here.insert(*port);
            }
        }
        self.stores.here = here;
        if self.stores.all.is_empty() {
            return;
        }
        for link in ungrouped(links) {
            let set = LinkSet { group: Some(CONTAINERS_GROUP), ..LinkSet::default() };
            match self.netlink.set(link.index, &set) {
                Ok(()) => {
                    changes.changed += 1;
                    changes
                        .lines
                        .push(format!("bridge {}: device group changed to {CONTAINERS_GROUP:#x}", link.name));
                }
                Err(error) if error.is_missing() => {}
                Err(error) => changes.failed_elsewhere.push(error.to_string()),
            }
        }
    }
}

/// Bridges that Weft made and the host's legs in their VLANs, without a device group. Another group is the administrator's choice.
fn ungrouped(links: &[Link]) -> impl Iterator<Item = &Link> {
    let is_ours = |link: &&Link| link.alias.as_deref() == Some(BRIDGE_ALIAS);
    // Of a leg the other end has the label, which is a port of the bridge.
    let legs: BTreeSet<u32> = links.iter().filter(is_ours).filter_map(|link| link.peer_index).collect();
    let leads_to_containers =
        move |link: &&Link| (link.bridge.is_some() && is_ours(link)) || legs.contains(&link.index);
    links.iter().filter(leads_to_containers).filter(|link| link.group == 0)
}
