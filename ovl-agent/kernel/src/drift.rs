//! What others take away from the overlay's state in the kernel, or change in it, as the kernel tells of it: piece by piece,
//! so that one route that is deleted costs one route.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use ipnetwork::IpNetwork;
use net::{Route, Told};
use ovl_api::model::is_single;
use ovl_api::names;

use crate::dump;
use crate::model::{HostName, Model, Touched};
use crate::objects::{BLOCK_METRIC, Dev, Forward, Mac, RouteKey, UNREACHABLE_METRIC};
use crate::rules;

/// A piece of the state, by what the kernel tells of it. In the order in which they are put back: a route comes after what it
/// goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Piece {
    /// That the host forwards.
    Forwarding,
    /// A link, by its index, a device of ours or a container's: its settings and addresses.
    Device(u32),
    /// The packet filter.
    Filter,
    /// What accepts the networks' packets in other programs' forward chains whose policy is drop.
    ForwardChains,
    /// A neighbour on a link.
    Neigh(u32, IpAddr),
    /// A forwarding entry of a link.
    Forward(u32, Mac),
    /// A route of the main table.
    Route(RouteKey),
}

impl Piece {
    /// The index of the link that it is.
    pub fn device(&self) -> Option<u32> {
        match self {
            Piece::Device(index) => Some(*index),
            _ => None,
        }
    }
}

/// How a piece is, by what was told of it last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// It is gone; of a link, or of the packet filter: something about it changed.
    Gone,
    /// A route is this.
    Route(Box<Route>),
    /// A neighbour has this hardware address for good; None: it has another state.
    Neigh(Option<Mac>),
    /// A forwarding entry is this.
    Forward(Forward),
    /// A link went down: what went with it is not reported, and it may be up again.
    Down,
    /// A link that was not known was first seen with this.
    New {
        /// Its hardware address.
        mac: Option<Mac>,
        /// Its MTU in bytes.
        mtu: u32,
    },
}

/// Which piece a notification is about, and how it is now. None for what is about no piece.
pub fn piece(told: Told) -> Option<(Piece, Seen)> {
    let key = |route: &Route| RouteKey { dst: route.dst, metric: route.priority.unwrap_or(0) };
    Some(match told {
        Told::Link { index, up: false, turned: true, .. } => (Piece::Device(index), Seen::Down),
        Told::Link { index, .. }
        | Told::LinkGone { index }
        | Told::Address { index }
        | Told::AddressSet { index }
        | Told::LocalGone { index }
        | Told::ForwardingOff { index: Some(index) } => (Piece::Device(index), Seen::Gone),
        Told::ForwardChain => (Piece::ForwardChains, Seen::Gone),
        Told::ForwardingOff { index: None } => (Piece::Forwarding, Seen::Gone),
        Told::RouteGone(route) => (Piece::Route(key(&route)), Seen::Gone),
        Told::Route { route, .. } => (Piece::Route(key(&route)), Seen::Route(route)),
        Told::NeighGone { index, ip } => (Piece::Neigh(index, ip), Seen::Gone),
        Told::Neigh(neigh) => {
            // One that is not there for good goes by itself.
            (Piece::Neigh(neigh.index, neigh.ip), Seen::Neigh(neigh.mac.filter(|_| neigh.permanent)))
        }
        Told::FdbGone(entry) => (Piece::Forward(entry.index, entry.mac), Seen::Gone),
        Told::Fdb(entry) => (Piece::Forward(entry.index, entry.mac), Seen::Forward(dump::forward(&entry))),
        Told::TableGone(table) | Told::TableChanged(table)
            if (table.family, &*table.name) == (rules::FAMILY, rules::NAME) =>
        {
            (Piece::Filter, Seen::Gone)
        }
        Told::TableGone(_) | Told::TableChanged(_) | Told::Missed => return None,
    })
}

/// What may be a piece of the state: for a first look at what is told, most of which is of no concern.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Watched {
    /// The indices of the VXLAN devices.
    pub devices: BTreeSet<u32>,
    /// The indices of the containers' links.
    pub links: Arc<BTreeSet<u32>>,
    /// The networks' device groups: in one of these is a container's link that is new.
    pub groups: BTreeSet<u32>,
    /// The networks' subnets, to which all routes lead.
    pub subnets: Vec<IpNetwork>,
    /// There is a packet filter.
    pub filter: bool,
    /// Other programs' forward chains accept the networks' packets.
    pub forward_chains: bool,
    /// The port by which notifications name the agent's own changes of the packet filter; 0 when it is not known.
    pub port: u32,
}

impl Watched {
    /// Which piece a notification is about, as [`piece`]; None also for what cannot be one of the state, and for the agent's own
    /// changes of the packet filter.
    pub fn piece(&self, told: Told) -> Option<(Piece, Seen)> {
        match &told {
            Told::TableGone(table) | Told::TableChanged(table)
                if self.port != 0 && table.port == self.port =>
            {
                None
            }
            Told::Link { index, group, mac, mtu, .. }
                if self.groups.contains(group)
                    && !self.links.contains(index)
                    && !self.devices.contains(index) =>
            {
                Some((Piece::Device(*index), Seen::New { mac: *mac, mtu: *mtu }))
            }
            _ => piece(told).filter(|(piece, _)| self.concerns(piece)),
        }
    }

    /// True when it may be a piece of the state.
    pub fn concerns(&self, piece: &Piece) -> bool {
        let inside = |ip| self.subnets.iter().any(|subnet| subnet.contains(ip));
        match piece {
            Piece::Device(index) => self.devices.contains(index) || self.links.contains(index),
            Piece::Forward(index, _) => self.devices.contains(index),
            Piece::Neigh(index, ip) => !ip.is_multicast() && (self.devices.contains(index) || inside(*ip)),
            Piece::Route(RouteKey { dst, .. }) => inside(dst.network()),
            Piece::Filter => self.filter,
            Piece::ForwardChains => self.forward_chains,
            Piece::Forwarding => !self.subnets.is_empty(),
        }
    }

    /// True when it is of a container's link, which comes and goes with the container, before the view knows.
    pub fn of_container(&self, piece: &Piece) -> bool {
        match piece {
            Piece::Neigh(index, _) | Piece::Device(index) => !self.devices.contains(index),
            Piece::Route(RouteKey { dst, metric }) => {
                is_single(*dst) && ![BLOCK_METRIC, UNREACHABLE_METRIC].contains(metric)
            }
            Piece::Forward(..) | Piece::Filter | Piece::ForwardChains | Piece::Forwarding => false,
        }
    }
}

/// Finds what pieces belong to, so that no more than that has to be computed.
pub struct Finder<'a> {
    model: &'a Model,
    /// The networks' devices by index.
    devices: BTreeMap<u32, (&'a str, Dev)>,
    /// Networks of which nothing is known.
    but: &'a BTreeMap<String, String>,
    /// Hosts by the hardware address of their device, of those networks that were asked for.
    macs: BTreeMap<&'a str, BTreeMap<Mac, &'a HostName>>,
    /// Containers' links by address.
    veths: Option<BTreeMap<IpAddr, &'a str>>,
    /// What was found.
    pub touched: Touched,
    /// Containers' links that were found.
    pub containers: BTreeSet<&'a str>,
}

impl<'a> Finder<'a> {
    /// `links` are indices of links, `but` networks that are to be passed over.
    pub fn new(
        model: &'a Model,
        links: &BTreeMap<Dev, u32>,
        but: &'a BTreeMap<String, String>,
    ) -> Finder<'a> {
        let device = |id: &'a String| {
            let (dev, index) = links.get_key_value(&*names::device(id))?;
            Some((*index, (id.as_str(), dev.clone())))
        };
        let devices = model.parts.keys().filter(|id| !but.contains_key(*id)).filter_map(device).collect();
        let (macs, veths) = (BTreeMap::new(), None);
        let (touched, containers) = (Touched::default(), BTreeSet::new());
        Finder { model, devices, but, macs, veths, touched, containers }
    }

    /// The device with that index, and its network.
    pub fn device(&self, index: u32) -> Option<(&'a str, Dev)> {
        self.devices.get(&index).cloned()
    }

    /// Finds what a piece belongs to.
    pub fn find(&mut self, piece: &Piece) {
        match piece {
            Piece::Filter | Piece::ForwardChains | Piece::Forwarding => {}
            Piece::Device(index) => {
                let id = self.devices.get(index).map(|(id, _)| (*id).to_owned());
                self.touched.local.extend(id);
            }
            Piece::Forward(index, mac) => {
                if let Some((id, _)) = self.devices.get(index) {
                    self.host_with(id, *mac);
                }
            }
            Piece::Neigh(index, ip) => match self.devices.get(index) {
                Some((id, _)) => self.next_hop(id, *ip),
                None => self.container(*ip),
            },
            Piece::Route(key) => self.route(key),
        }
    }

    fn route(&mut self, key: &RouteKey) {
        let model = self.model;
        let covers = |id: &String| {
            let part = &model.parts[id];
            !self.but.contains_key(id)
                && part.network.subnets.iter().any(|subnet| subnet.subnet.contains(key.dst.network()))
        };
        let Some(id) = model.parts.keys().find(|id| covers(id)) else { return };
        match key.metric {
            UNREACHABLE_METRIC => drop(self.touched.local.insert(id.clone())),
            BLOCK_METRIC => self.owner(id, key.dst),
            _ if is_single(key.dst) => self.container(key.dst.ip()),
            _ => {}
        }
    }

    /// The host that owns a block.
    fn owner(&mut self, id: &str, block: IpNetwork) {
        let owner = self.model.parts.get(id).and_then(|part| part.owners.get(&block));
        if let Some(owner) = owner.filter(|owner| ***owner != *self.model.me.name) {
            self.touched.remote.insert((id.to_owned(), owner.clone()));
        }
    }

    /// The host whose next hop an address is: its own one, in its first block, or with single addresses each of these; of IPv6
    /// the link-local one of its device.
    fn next_hop(&mut self, id: &'a str, ip: IpAddr) {
        match ip {
            IpAddr::V6(ip) => {
                if let Some(mac) = mac_of(ip) {
                    self.host_with(id, mac);
                }
            }
            IpAddr::V4(_) => {
                let block = self.model.parts.get(id).and_then(|part| part.network.subnet(false));
                for prefix in block.map(|subnet| subnet.block).into_iter().chain([32]) {
                    if let Ok(net) = IpNetwork::new(ip, prefix)
                        && let Ok(block) = IpNetwork::new(net.network(), prefix)
                    {
                        self.owner(id, block);
                    }
                }
            }
        }
    }

    fn host_with(&mut self, id: &'a str, mac: Mac) {
        let model = self.model;
        let Some(part) = model.parts.get(id) else { return };
        let macs = self.macs.entry(id).or_insert_with(|| {
            let hosts = part.hosts.keys().filter_map(|name| Some((name, model.hosts.get(name)?)));
            hosts.map(|(name, host)| (names::vtep_mac(&part.network, host), name)).collect()
        });
        if let Some(name) = macs.get(&mac) {
            self.touched.remote.insert((id.to_owned(), (*name).clone()));
        }
    }

    fn container(&mut self, ip: IpAddr) {
        let (model, but) = (self.model, self.but);
        let veths = self.veths.get_or_insert_with(|| {
            let all = model.endpoints.iter().filter(|(_, of)| !but.contains_key(&of.network));
            all.flat_map(|(veth, of)| of.addresses.iter().map(|ip| (*ip, veth.as_str()))).collect()
        });
        self.containers.extend(veths.get(&ip));
    }
}

/// The hardware address that a link-local address belongs to, see [`names::link_local`].
fn mac_of(ip: Ipv6Addr) -> Option<Mac> {
    let [.., a, b, c, _, _, d, e, f] = ip.octets();
    Some([a ^ 2, b, c, d, e, f]).filter(|mac| names::link_local(*mac) == ip)
}
