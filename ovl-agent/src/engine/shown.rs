//! What the worker tells: how far the kernel is, and what of the view others need.

use super::repairs::Restorations;
use crate::metrics::Counts;
use ipnetwork::IpNetwork;
use net::route::Family;
use ovl_api::model::{Network, View};
use ovl_api::wire::{Problem, ProblemKind};
use ovl_kernel::{Changes, Underlay, network_mtu};
use ovl_store::Revision;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// How far the kernel is.
#[derive(Debug, Clone)]
pub struct Shown {
    /// The view's generation that the last pass saw, or a later one.
    pub generation: u64,
    /// The store's revision that the kernel shows.
    pub revision: Revision,
    /// A full pass has been done with what the store holds: the agent is ready.
    pub synced: bool,
    /// How many full passes there were.
    pub full_passes: u64,
    /// Why the last pass could not be done at all.
    pub error: Option<String>,
    /// Networks, by ID, that the kernel does not wholly show, and why.
    pub failed: BTreeMap<String, String>,
    /// Why it does not show something that is no network's.
    pub failed_elsewhere: Vec<String>,
    /// The underlay.
    pub underlay: Underlay,
    /// Its address on this host.
    pub address: IpAddr,
    /// The address that this host is registered with.
    pub vtep: Option<IpAddr>,
    /// The family of the other nodes' VTEPs, if there are others: that of most of them.
    pub family: Option<Family>,
    /// With this node in the other family, that is still most nodes' family.
    pub family_of_most: bool,
    /// The networks by name.
    pub networks: Arc<BTreeMap<String, Known>>,
    /// What other programs changed, and was restored.
    pub repairs: Restorations,
}

/// What is known of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its ID.
    pub id: String,
    /// Its subnets.
    pub subnets: Vec<IpNetwork>,
    /// This host has a container in it.
    pub has_part: bool,
}

impl Shown {
    /// Nothing yet.
    pub fn new(underlay: Underlay, address: IpAddr) -> Shown {
        Shown {
            generation: 0,
            revision: 0,
            synced: false,
            full_passes: 0,
            error: None,
            failed: BTreeMap::new(),
            failed_elsewhere: Vec::new(),
            underlay,
            address,
            vtep: None,
            family: None,
            family_of_most: false,
            networks: Arc::default(),
            repairs: Restorations::default(),
        }
    }

    /// The kernel shows all that is wanted.
    pub fn complete(&self) -> bool {
        self.shows_all_but_networks() && self.failed.is_empty()
    }

    /// The kernel shows all that is wanted but for the networks that failed.
    pub fn shows_all_but_networks(&self) -> bool {
        self.error.is_none() && self.failed_elsewhere.is_empty()
    }

    /// What a pass could not do.
    pub fn set_failures(&mut self, changes: &Changes) {
        self.error = None;
        self.failed.clone_from(&changes.failed);
        self.failed_elsewhere.clone_from(&changes.failed_elsewhere);
    }

    /// Why the kernel does not show everything.
    pub fn problem(&self) -> Option<Problem> {
        let first = self.error.as_ref().or(self.failed.values().next()).or(self.failed_elsewhere.first());
        first.map(|why| refused(why))
    }

    /// What is wrong in the kernel now, for people: what it does not take, and that it does not forward.
    pub fn problems(&self) -> Vec<String> {
        let name = |id: &String| {
            let known = self.networks.iter().find(|(_, known)| known.id == *id);
            known.map_or(id.clone(), |(name, _)| name.clone())
        };
        let failed = self.failed.iter().map(|(id, why)| format!("network {}: {why}", name(id)));
        let mut problems: Vec<String> =
            self.error.iter().chain(&self.failed_elsewhere).cloned().chain(failed).collect();
        let parts = || self.networks.values().filter(|known| known.has_part);
        let has = |ipv6: bool| parts().any(|known| known.subnets.iter().any(|net| net.is_ipv6() == ipv6));
        for (key, needed) in
            [("net/ipv4/ip_forward", has(false) || has(true)), ("net/ipv6/conf/all/forwarding", has(true))]
        {
            if needed && net::sysctl::get(key).is_ok_and(|value| value.trim() == "0") {
                problems.push(format!(
                    "{} is 0: another program switched forwarding off, and no container is reached from another node",
                    key.replace('/', ".")
                ));
            }
        }
        problems
    }

    /// Why the kernel does not show a network.
    pub fn problem_of(&self, network: &Network) -> Option<Problem> {
        self.error.as_ref().or_else(|| self.failed.get(&network.id)).map(|why| {
            let Problem { kind, field, message } = refused(why);
            Problem { kind, field, message: format!("network {}: {message}", network.name) }
        })
    }

    /// The MTU of a network's containers on this host.
    pub fn mtu(&self, network: &Network) -> u32 {
        network_mtu(network, &self.underlay, self.address)
    }

    /// Takes from the view what others need.
    pub fn look(&mut self, view: &View) -> Counts {
        let parts: BTreeSet<&str> =
            view.endpoints.values().map(|endpoint| endpoint.network.as_str()).collect();
        let networks = view.networks.values().map(|network| {
            let subnets = network.subnets.iter().map(|subnet| subnet.subnet).collect();
            let (id, has_part) = (network.id.clone(), parts.contains(network.id.as_str()));
            (network.name.clone(), Known { id, subnets, has_part })
        });
        self.networks = Arc::new(networks.collect());
        self.vtep = view.my_host().map(|host| host.vtep);
        (self.family, self.family_of_most) = family_of_others(view);
        Counts {
            hosts: view.hosts.len(),
            networks: view.networks.len(),
            blocks: view.owners.len(),
            endpoints: view.endpoints.len(),
        }
    }
}

/// The family of most of the other nodes, and whether it is most nodes' with this one in the other family.
fn family_of_others(view: &View) -> (Option<Family>, bool) {
    let others = view.hosts.iter().filter(|(name, host)| **name != view.me && !host.removed);
    let (v4, v6): (Vec<_>, Vec<_>) = others.partition(|(_, host)| host.vtep.is_ipv4());
    let (v4, v6) = (v4.len(), v6.len());
    let family = match (v4, v6) {
        (0, 0) => None,
        (v4, v6) if v4 >= v6 => Some(Family::V4),
        _ => Some(Family::V6),
    };
    (family, v4.abs_diff(v6) > 1)
}

fn refused(why: &str) -> Problem {
    Problem::new(ProblemKind::NotReady, format!("this host's kernel does not take the overlay: {why}"))
}
