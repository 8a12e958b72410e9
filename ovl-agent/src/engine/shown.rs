//! What the worker tells: how far the kernel is, and what of the view others need.

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
    /// The networks by name.
    pub networks: Arc<BTreeMap<String, Known>>,
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
            networks: Arc::default(),
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
        self.family = family_of_others(view);
        Counts {
            hosts: view.hosts.len(),
            networks: view.networks.len(),
            blocks: view.owners.len(),
            endpoints: view.endpoints.len(),
        }
    }
}

fn family_of_others(view: &View) -> Option<Family> {
    let others = view.hosts.iter().filter(|(name, host)| **name != view.me && !host.removed);
    let (v4, v6): (Vec<_>, Vec<_>) = others.partition(|(_, host)| host.vtep.is_ipv4());
    match (v4.len(), v6.len()) {
        (0, 0) => None,
        (v4, v6) if v4 >= v6 => Some(Family::V4),
        _ => Some(Family::V6),
    }
}

fn refused(why: &str) -> Problem {
    Problem::new(ProblemKind::NotReady, format!("this host's kernel does not take the overlay: {why}"))
}
