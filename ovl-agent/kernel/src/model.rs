//! What a pass was computed from: the part of a view that concerns this host, indexed by network and host, so that the
//! next change costs no more than itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use ovl_api::model::{Delta, Endpoint, Host, Network, View, is_single};
use ovl_api::names;

/// A host's name.
pub type HostName = Arc<str>;

/// The networks in which this host takes part, all hosts, and this host's containers.
#[derive(Debug, Clone)]
pub struct Model {
    /// This host.
    pub me: Host,
    /// All others.
    pub hosts: BTreeMap<HostName, Host>,
    /// The subnets of all networks, also of those in which this host has no part, by ID.
    pub subnets: BTreeMap<String, Vec<IpNetwork>>,
    /// By network ID.
    pub parts: BTreeMap<String, Part>,
    /// By the name of the host's end of their link.
    pub endpoints: BTreeMap<String, Endpoint>,
}

/// A network, and who owns what in it.
#[derive(Debug, Clone)]
pub struct Part {
    /// The network.
    pub network: Network,
    /// This host's own addresses in it, IPv4 and IPv6.
    pub own: [Option<IpAddr>; 2],
    /// The owners of blocks and single addresses.
    pub owners: BTreeMap<IpNetwork, HostName>,
    /// The same by owner.
    pub hosts: BTreeMap<HostName, BTreeSet<IpNetwork>>,
}

/// What a delta touches.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Networks that are to be looked at whole.
    pub whole: BTreeSet<String>,
    /// Networks of which this host's own half is to be looked at.
    pub local: BTreeSet<String>,
    /// Other hosts, by network.
    pub remote: BTreeSet<(String, HostName)>,
}

impl Model {
    /// From a view that has this host.
    pub fn of(view: &View) -> Option<Model> {
        let me = view.my_host()?.clone();
        let others = view.hosts.iter().filter(|(name, _)| **name != view.me);
        let hosts = others.map(|(name, host)| (name.as_str().into(), host.clone())).collect();
        let endpoints: BTreeMap<_, _> =
            view.endpoints.iter().map(|(veth, endpoint)| (veth.clone(), endpoint.clone())).collect();
        let subnets = view.networks.iter().map(|(id, network)| (id.clone(), subnets(network))).collect();
        let mut model = Model { me, hosts, subnets, parts: BTreeMap::new(), endpoints };
        let used: BTreeSet<&String> = view.endpoints.values().map(|endpoint| &endpoint.network).collect();
        for id in used {
            model.read_part(view, id);
        }
        Some(model)
    }

    fn update_subnets(&mut self, view: &View, delta: &Delta) -> bool {
        let mut changed = false;
        for id in &delta.networks {
            let now = view.networks.get(id).map(subnets);
            if self.subnets.get(id) != now.as_ref() {
                changed = true;
                match now {
                    Some(now) => drop(self.subnets.insert(id.clone(), now)),
                    None => drop(self.subnets.remove(id)),
                }
            }
        }
        changed
    }

    /// Reads a network anew; it goes when this host takes no part in it.
    fn read_part(&mut self, view: &View, id: &str) {
        self.parts.remove(id);
        let Some(network) = view.networks.get(id).filter(|_| view.takes_part(id)) else { return };
        let mut part = Part {
            network: network.clone(),
            own: [None, None],
            owners: BTreeMap::new(),
            hosts: BTreeMap::new(),
        };
        for (block, owner) in view.blocks(id) {
            part.put(*block, self.intern(owner));
        }
        part.own = own_addresses(&part.network, part.hosts.get(&*self.me.name));
        self.parts.insert(id.to_owned(), part);
    }

    /// One string for a host's name, however many blocks it owns.
    fn intern(&self, name: &str) -> HostName {
        self.hosts.get_key_value(name).map_or_else(|| name.into(), |(name, _)| name.clone())
    }

    /// What a delta touches, if it can be told: None when everything may be.
    pub fn touched(&self, view: &View, delta: &Delta) -> Option<Touched> {
        if delta.all || view.me != self.me.name || view.my_host() != Some(&self.me) {
            return None;
        }
        let mut touched = Touched::default();
        for id in &delta.networks {
            let wanted = view.networks.get(id).filter(|_| view.takes_part(id));
            if wanted != self.parts.get(id).map(|part| &part.network) {
                touched.whole.insert(id.clone());
            }
        }
        let mut mine: BTreeMap<&String, BTreeSet<IpNetwork>> = BTreeMap::new();
        for (id, block) in &delta.blocks {
            let Some(part) = self.parts.get(id) else { continue };
            let now = view.owners.get(&(id.clone(), *block)).map(|name| self.intern(name));
            let then = part.owners.get(block).cloned();
            for (owner, owns) in [(then, false), (now, true)] {
                let Some(owner) = owner else { continue };
                if *owner != *self.me.name {
                    touched.remote.insert((id.clone(), owner));
                    continue;
                }
                let blocks =
                    mine.entry(id).or_insert_with(|| part.hosts.get(&owner).cloned().unwrap_or_default());
                if owns {
                    blocks.insert(*block);
                } else {
                    blocks.remove(block);
                }
            }
        }
        for (id, blocks) in mine {
            let part = &self.parts[id];
            // The own address is the source of every route.
            if own_addresses(&part.network, Some(&blocks)) != part.own {
                touched.whole.insert(id.clone());
            } else {
                touched.local.insert(id.clone());
            }
        }
        for name in delta.hosts.iter().filter(|name| **name != self.me.name) {
            for (id, part) in &self.parts {
                if let Some((name, _)) = part.hosts.get_key_value(name.as_str()) {
                    touched.remote.insert((id.clone(), name.clone()));
                }
            }
        }
        touched.local.retain(|id| !touched.whole.contains(id));
        touched.remote.retain(|(id, _)| !touched.whole.contains(id));
        Some(touched)
    }

    /// Takes over what changed, where [`Self::touched`] could tell it; true when the networks' subnets are others now.
    pub fn update(&mut self, view: &View, delta: &Delta, touched: &Touched) -> bool {
        for name in delta.hosts.iter().filter(|name| **name != self.me.name) {
            match view.hosts.get(name) {
                Some(host) => drop(self.hosts.insert(self.intern(name), host.clone())),
                None => drop(self.hosts.remove(name.as_str())),
            }
        }
        // Thousands of containers may be in the network; few of them are new.
        self.endpoints
            .retain(|veth, of| !delta.networks.contains(&of.network) || view.endpoints.get(veth) == Some(of));
        for (veth, of) in &view.endpoints {
            if delta.networks.contains(&of.network) && !self.endpoints.contains_key(veth) {
                self.endpoints.insert(veth.clone(), of.clone());
            }
        }
        for id in &touched.whole {
            self.read_part(view, id);
        }
        for (id, block) in delta.blocks.iter().filter(|(id, _)| !touched.whole.contains(id)) {
            let owner = view.owners.get(&(id.clone(), *block)).map(|name| self.intern(name));
            let Some(part) = self.parts.get_mut(id) else { continue };
            part.take(block);
            if let Some(owner) = owner {
                part.put(*block, owner);
            }
        }
        self.update_subnets(view, delta)
    }
}

impl Part {
    fn put(&mut self, block: IpNetwork, owner: HostName) {
        self.hosts.entry(owner.clone()).or_default().insert(block);
        self.owners.insert(block, owner);
    }

    fn take(&mut self, block: &IpNetwork) {
        let Some(owner) = self.owners.remove(block) else { return };
        if let Some(blocks) = self.hosts.get_mut(&owner) {
            blocks.remove(block);
            if blocks.is_empty() {
                self.hosts.remove(&owner);
            }
        }
    }

    /// What a host owns here.
    pub fn blocks_of(&self, host: &str) -> impl Iterator<Item = IpNetwork> {
        self.hosts.get(host).into_iter().flatten().copied()
    }
}

fn subnets(network: &Network) -> Vec<IpNetwork> {
    network.subnets.iter().map(|subnet| subnet.subnet).collect()
}

/// The address that a host with these blocks has for itself in a network: of its lowest block of the family.
pub fn own_address(
    network: &Network,
    blocks: impl IntoIterator<Item = IpNetwork>,
    v6: bool,
) -> Option<IpAddr> {
    let subnet = network.subnet(v6)?;
    let lowest = blocks.into_iter().filter(|block| block.is_ipv6() == v6 && !is_single(*block)).min()?;
    names::host_address(subnet.subnet, subnet.gateway, lowest)
}

fn own_addresses(network: &Network, blocks: Option<&BTreeSet<IpNetwork>>) -> [Option<IpAddr>; 2] {
    [false, true].map(|v6| own_address(network, blocks.into_iter().flatten().copied(), v6))
}
