//! VLANs of the bridge: those of the container's port, and the host's own leg where the gateway of a VLAN is.

use super::conf::Conf;
use super::link;
use crate::attach::{self, random_mac};
use crate::errors::{Coded, EXISTS};
use cni::Error;
use net::names::{BRIDGE_ALIAS, CONTAINERS_GROUP};
use net::{Batch, Link, LinkSet, Netlink, Netns, Owner, Veth, Vlans, sysctl};

/// The VLAN that the kernel gives new ports.
const DEFAULT: u16 = 1;

/// Gives a port the configured VLANs.
pub fn set_port(netlink: &mut Netlink, conf: &Conf, index: u32) -> Result<(), Error> {
    if !conf.needs_vlans() {
        return Ok(());
    }
    let mut batch = Batch::new();
    if !conf.preserve_default_vlan {
        batch.vlan_del(index, &Vlans::access(DEFAULT), false).coded()?.or_missing();
    }
    if let Some(vlan) = conf.vlan {
        batch.vlan_add(index, &Vlans::access(vlan), false).coded()?;
    }
    for &(first, last) in &conf.trunk {
        batch.vlan_add(index, &Vlans::tagged(first, last), false).coded()?;
    }
    netlink.run(batch).coded().map(drop)
}

/// The link that has the gateways' addresses: the bridge, or in a VLAN a veth `<bridge>.<vlan>` whose other end is a port
/// of that VLAN.
pub fn gateway_link(netlink: &mut Netlink, conf: &Conf, bridge: &Link) -> Result<Link, Error> {
    let Some(vlan) = conf.vlan.filter(|_| conf.is_gateway) else { return Ok(bridge.clone()) };
    let name = leg(&conf.bridge, vlan);
    if let Some(link) = netlink.link(&name).coded()? {
        return leads_to(netlink, link, bridge);
    }
    let here = Netns::current().coded()?;
    let port = Owner::new("bridge", &*conf.bridge, vlan.to_string()).host_veth();
    let veth = Veth {
        mac: Some(random_mac()),
        peer_mac: Some(random_mac()),
        mtu: bridge.mtu,
        master: Some(bridge.index),
        alias: Some(BRIDGE_ALIAS),
        ..Veth::new(&port, &name, &here)
    };
    match netlink.create_veth(&veth) {
        Ok(made) => set_port(netlink, &Conf { trunk: Vec::new(), ..conf.clone() }, made.index)?,
        // Another ADD was quicker.
        Err(error) if error.is_existing() => {}
        Err(error) => return Err(crate::errors::from_net(&error)),
    }
    let link = netlink.need_link(&name).coded()?;
    attach::optional(sysctl::ignore_routers(&name));
    let settings = LinkSet { up: Some(true), group: Some(CONTAINERS_GROUP), ..LinkSet::default() };
    netlink.set(link.index, &settings).coded()?;
    Ok(link)
}

/// Removes the host's leg in a VLAN, if Weft made it and no attachment uses the bridge.
pub fn remove_leg(conf: &Conf) -> Result<(), Error> {
    let Some(vlan) = conf.vlan.filter(|_| conf.is_gateway) else { return Ok(()) };
    let mut netlink = Netlink::open().coded()?;
    let Some(_lock) = link::unused(&mut netlink, conf)? else { return Ok(()) };
    let port = Owner::new("bridge", &*conf.bridge, vlan.to_string()).host_veth();
    match netlink.link(&port).coded()? {
        Some(link) if link.alias.as_deref() == Some(BRIDGE_ALIAS) => netlink.delete(link.index).coded(),
        _ => Ok(()),
    }
}

/// The link, if it is a host's leg in the bridge: one that Weft made, or, as the reference makes them, a veth whose other end
/// is a port of the bridge.
fn leads_to(netlink: &mut Netlink, link: Link, bridge: &Link) -> Result<Link, Error> {
    let port = link.peer_index.map(|index| netlink.link_at(index)).transpose().coded()?.flatten();
    let is_port =
        port.is_some_and(|port| port.peer_index == Some(link.index) && port.master == Some(bridge.index));
    if link.kind.as_deref() == Some("veth") && is_port {
        return Ok(link);
    }
    let msg = format!(
        "the host has another link {} already, which is no veth with a port in {}",
        link.name, bridge.name
    );
    Err(Error::new(EXISTS, msg))
}

/// The name of the host's leg in a VLAN.
pub fn leg(bridge: &str, vlan: u16) -> String {
    format!("{bridge}.{vlan}")
}
