//! What the kernel is to show. Pure: from a model of the overlay to objects, in pieces that a change can be told by: this host's
//! own half of a network, another host's half, a container's link.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use ipnetwork::IpNetwork;
use ovl_api::model::{Encap, Endpoint, Host, View, is_single};
use ovl_api::names;

use crate::model::{HostName, Model, Part, Touched, own_address};
use crate::objects::{
    AddrRole, BLOCK_METRIC, Dev, Device, Forward, MIN_MTU_V6, Objects, RouteKey, Target, UNREACHABLE_METRIC,
    container_metric,
};
use crate::rules::Rules;
use crate::underlay::{Underlay, network_mtu};

/// The IPv6 gateway of every container, on the host's end of its link.
const CONTAINER_GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// What is wanted, and what cannot be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Objects of the kernel's networking.
    pub objects: Objects,
    /// What cannot be made to work, in words.
    pub warnings: BTreeSet<String>,
}

/// What a view wants of this host's kernel, and the rules of the packet filter. None while the view does not have this host.
pub fn wanted(view: &View, underlay: &Underlay) -> Option<(Wanted, Rules)> {
    let model = Model::of(view)?;
    let scene = Scene { model: &model, underlay };
    Some((scene.everything(), scene.rules()))
}

/// The whole length of an address.
fn host_net(ip: IpAddr) -> IpNetwork {
    IpNetwork::from(ip)
}

/// A model on an underlay.
#[derive(Clone, Copy)]
pub struct Scene<'a> {
    /// The model.
    pub model: &'a Model,
    /// The underlay.
    pub underlay: &'a Underlay,
}

impl Scene<'_> {
    /// All pieces.
    pub fn everything(self) -> Wanted {
        let mut wanted = Wanted::default();
        for part in self.model.parts.values() {
            self.whole(part, &mut wanted);
        }
        self.containers(self.model.endpoints.keys().map(String::as_str), &mut wanted.objects);
        wanted
    }

    /// The pieces that a delta touches; containers' links are none of them: they come with an attachment, which makes what they
    /// need.
    pub fn pieces(self, touched: &Touched) -> Wanted {
        let mut wanted = Wanted::default();
        let part = |id: &String| self.model.parts.get(id);
        for part in touched.whole.iter().filter_map(part) {
            self.whole(part, &mut wanted);
        }
        for part in touched.local.iter().filter_map(part) {
            self.local(part, &mut wanted);
        }
        for (id, host) in &touched.remote {
            if let Some(part) = part(id) {
                self.remote(part, host, &mut wanted);
            }
        }
        wanted
    }

    /// The host's half of these containers' links.
    pub fn containers<'v>(self, veths: impl Iterator<Item = &'v str>, objects: &mut Objects) {
        for (veth, endpoint) in veths.filter_map(|veth| self.model.endpoints.get_key_value(veth)) {
            if let Some(part) = self.model.parts.get(&endpoint.network) {
                container(part, self.has_ipv6(part), veth, endpoint, objects);
            }
        }
    }

    /// The packet filter's rules.
    pub fn rules(self) -> Rules {
        let me = &self.model.me;
        let others = || self.model.hosts.values();
        let networks = || self.model.parts.values().map(|part| &part.network);
        let group = |vni| names::group(vni);
        // Not those that have a part elsewhere only: what their containers send is not looked at by these rules there.
        let has_part = |name: &HostName| self.model.parts.values().any(|part| part.hosts.contains_key(name));
        let known = self.model.hosts.iter().filter(|(name, host)| !host.removed && has_part(name));
        let direct = networks().filter(|network| network.encap == Encap::Direct).flat_map(|network| {
            network.subnets.iter().map(move |subnet| (subnet.subnet, group(network.vni)))
        });
        Rules {
            port: me.port,
            vnis: networks().map(|network| network.vni).collect(),
            vteps: known.map(|(_, host)| host.vtep).collect(),
            // All of them, also those that share no network with this one, or are being removed.
            nodes: others().map(|host| host.vtep).filter(|ip| *ip != me.vtep).collect(),
            ports: others().map(|host| host.port).chain([me.port]).collect(),
            vtep: Some(me.vtep),
            groups: networks().map(|network| group(network.vni)).collect(),
            internal: networks()
                .filter(|network| network.internal)
                .map(|network| group(network.vni))
                .collect(),
            routed: networks()
                .filter(|network| network.is_routed_to())
                .map(|network| group(network.vni))
                .collect(),
            nets: self.model.subnets.values().flatten().copied().collect(),
            direct: direct.collect(),
            underlay: self.underlay.link,
            ..Rules::default()
        }
    }

    fn whole(self, part: &Part, wanted: &mut Wanted) {
        self.local(part, wanted);
        for host in part.hosts.keys().filter(|host| ***host != *self.model.me.name) {
            self.remote(part, host, wanted);
        }
    }

    /// This host's half: the device, its addresses, and `unreachable` for what no route leads to.
    fn local(self, part: &Part, wanted: &mut Wanted) {
        let Part { network, own, .. } = part;
        let me = &self.model.me;
        let dev: Dev = names::device(&network.id).into();
        let ipv6 = self.has_ipv6(part);
        let mac = names::vtep_mac(network, me);
        let mtu = network_mtu(network, self.underlay, me.vtep);
        let device = Device {
            vni: network.vni,
            local: me.vtep,
            port: me.port,
            group: names::group(network.vni),
            mac,
            mtu,
            alias: format!("{}{}", names::DEVICE_ALIAS, network.name),
            ipv6,
        };
        self.warn_of_mtu(part, &device, &mut wanted.warnings);
        let objects = &mut wanted.objects;
        objects.devices.insert(dev.clone(), device);
        let gateways = network.subnets.iter().map(|subnet| (subnet.gateway, AddrRole::Shared));
        let ips = gateways.chain(own.iter().flatten().map(|ip| (*ip, AddrRole::Own)));
        for (ip, role) in ips.filter(|(ip, _)| ip.is_ipv4() || ipv6) {
            objects.addrs.insert((dev.clone(), host_net(ip)), role);
        }
        if ipv6 {
            objects.addrs.insert((dev, link_local_net(names::link_local(mac))), AddrRole::Own);
        }
        // An own single address is not covered by the subnet's where the block around it is another host's: while its
        // container's link is not there, packets would go back and forth between the two hosts.
        let singles = part.blocks_of(&me.name).filter(|block| is_single(*block));
        for dst in network.subnets.iter().map(|subnet| subnet.subnet).chain(singles) {
            objects.routes.insert(RouteKey { dst, metric: UNREACHABLE_METRIC }, Target::Unreachable);
        }
        let families = network.subnets.iter().map(|subnet| subnet.subnet.is_ipv6());
        for (_, name) in families.filter(|v6| own[usize::from(*v6)].is_none()).map(|v6| (v6, family(v6))) {
            wanted.warnings.insert(format!(
                "network {}: this host owns no {name} block, so it cannot itself talk to containers on other hosts \
                 (its containers can)",
                network.name
            ));
        }
    }

    /// IPv6 works in the network on this host.
    pub fn has_ipv6(self, part: &Part) -> bool {
        let mtu = network_mtu(&part.network, self.underlay, self.model.me.vtep);
        part.network.subnet(true).is_some() && mtu >= MIN_MTU_V6
    }

    fn warn_of_mtu(self, part: &Part, device: &Device, warnings: &mut BTreeSet<String>) {
        let network = &part.network;
        let fits = network_mtu(
            &ovl_api::model::Network { mtu: None, ..network.clone() },
            self.underlay,
            self.model.me.vtep,
        );
        if device.mtu > fits {
            let Underlay { name, mtu, .. } = self.underlay;
            warnings.insert(format!(
                "network {}: its MTU of {} is more than the {fits} that {name} with an MTU of {mtu} leaves: larger \
                 packets are fragmented or have to be sent again smaller, which costs throughput, and are lost where fragments are dropped",
                network.name, device.mtu
            ));
        }
        if network.subnet(true).is_some() && !device.ipv6 {
            warnings.insert(format!(
                "network {}: an MTU of {} is less than the {MIN_MTU_V6} that IPv6 needs: IPv6 does not work in it",
                network.name, device.mtu
            ));
        }
    }

    /// Another host's half: how its containers are reached.
    fn remote(self, part: &Part, name: &HostName, wanted: &mut Wanted) {
        let me = &self.model.me;
        if !part.hosts.contains_key(name) {
            return;
        }
        // Unknown: it is not registered yet, or not any more. Removed: what it owned is nobody's.
        let Some(host) = self.model.hosts.get(name).filter(|host| !host.removed) else { return };
        let network = &part.network;
        if host.vtep == me.vtep {
            wanted.warnings.insert(format!(
                "network {}: host {name} says that it is reached at {}, which is this host's own address: its containers cannot \
                 be reached",
                network.name, host.vtep
            ));
            return;
        }
        let same_family = host.vtep.is_ipv4() == me.vtep.is_ipv4();
        let objects = &mut wanted.objects;
        let dev: Dev = names::device(&network.id).into();
        let mac = names::vtep_mac(network, host);
        let owns = [false, true].map(|v6| own_address(network, part.blocks_of(name), v6));
        let mut tunnelled = false;
        let has_ipv6 = self.has_ipv6(part);
        for block in part.blocks_of(name).filter(|block| block.is_ipv4() || has_ipv6) {
            let v6 = block.is_ipv6();
            let src = part.own[usize::from(v6)];
            let key = RouteKey { dst: block, metric: BLOCK_METRIC };
            if self.is_direct(part, host, v6) {
                let (dev, gw) = (self.underlay.name.as_str().into(), Some(host.vtep));
                objects.routes.insert(key, Target::Dev { dev, gw, src, onlink: true });
                continue;
            }
            if !same_family {
                wanted.warnings.insert(format!(
                    "network {}: host {name} is reached at {} ({}), this host at {} ({}): their containers cannot reach each \
                     other",
                    network.name,
                    host.vtep,
                    family(host.vtep.is_ipv6()),
                    me.vtep,
                    family(me.vtep.is_ipv6())
                ));
                return;
            }
            // A host with nothing but single addresses has no address of its own: each is its own next hop.
            let gw = if v6 {
                IpAddr::V6(names::link_local(mac))
            } else {
                owns[0].unwrap_or_else(|| block.network())
            };
            objects.neighs.insert((dev.clone(), gw), mac);
            let target = Target::Dev { dev: dev.clone(), gw: Some(gw), src, onlink: !v6 };
            objects.routes.insert(key, target);
            tunnelled = true;
        }
        if tunnelled {
            let port = (host.port != me.port).then_some(host.port);
            objects.forwards.insert(
                (dev, mac),
                Forward { ip: Some(host.vtep), port, permanent: true, is_diverted: false },
            );
        }
    }

    /// Packets go to that host as they are: both are on one segment, and the next hop is of the packets' family.
    fn is_direct(self, part: &Part, host: &Host, v6: bool) -> bool {
        let me = &self.model.me;
        let of_family = |host: &Host| host.vtep.is_ipv6() == v6;
        part.network.encap == Encap::Direct
            && me.segment.is_some()
            && me.segment == host.segment
            && of_family(me)
            && of_family(host)
    }
}

/// The host's half of a container's link.
fn container(part: &Part, ipv6: bool, veth: &str, endpoint: &Endpoint, objects: &mut Objects) {
    let dev: Dev = veth.into();
    objects.links.insert(dev.clone(), names::group(part.network.vni));
    if ipv6 {
        objects.addrs.insert((dev.clone(), link_local_net(CONTAINER_GATEWAY)), AddrRole::Own);
    }
    let mac = net::parse_mac(&endpoint.mac).ok();
    for ip in endpoint.addresses.iter().filter(|ip| ip.is_ipv4() || ipv6) {
        let key = RouteKey { dst: host_net(*ip), metric: container_metric(*ip) };
        objects.routes.insert(key, Target::Dev { dev: dev.clone(), gw: None, src: None, onlink: false });
        objects.neighs.extend(mac.map(|mac| ((dev.clone(), *ip), mac)));
    }
}

/// A link-local address with the length of its subnet's prefix.
fn link_local_net(ip: Ipv6Addr) -> IpNetwork {
    // A length of 64 is valid.
    IpNetwork::new(ip.into(), 64).unwrap_or_else(|_| host_net(ip.into()))
}

fn family(v6: bool) -> &'static str {
    if v6 { "IPv6" } else { "IPv4" }
}
