//! The bridge itself: made on demand, kept by name, given the gateways' addresses, removed when nobody needs it.

use super::conf::Conf;
use super::lock::BridgeLock;
use crate::attach::{self, random_mac};
use crate::errors::{Coded, EXISTS};
use cni::Error;
use cni::code::INVALID_CONFIG;
use ipnetwork::IpNetwork;
use net::names::{BRIDGE_ALIAS, CONTAINERS_GROUP};
use net::{Batch, Bridge, Family, Link, LinkSet, Netlink, NewAddr, Owner, sysctl};
use std::time::Duration;

/// Whether the bridge can be used or made: what can be known before anything is changed.
///
/// # Errors
/// Code 7 when the name is another device's, code 2 when this kernel's bridges know no VLANs.
pub fn inspect(netlink: &mut Netlink, conf: &Conf) -> Result<Option<Link>, Error> {
    check_found(netlink.link(&conf.bridge).coded()?, conf)
}

/// As [`inspect`], of the link that was found.
///
/// # Errors
/// As [`inspect`].
pub fn check_found(found: Option<Link>, conf: &Conf) -> Result<Option<Link>, Error> {
    if let Some(link) = &found {
        let Some(bridging) = link.bridge else {
            let kind = link.kind.as_deref().unwrap_or("physical");
            let msg = format!("the interface {:?} is no bridge but a {kind} device", conf.bridge);
            return Err(Error::new(INVALID_CONFIG, msg));
        };
        if conf.needs_vlans() && bridging.vlan_filtering.is_none() {
            return Err(no_vlans(conf));
        }
    } else if conf.needs_vlans() && !net::probe::bridge_vlan_filtering().coded()? {
        return Err(no_vlans(conf));
    }
    Ok(found)
}

fn no_vlans(conf: &Conf) -> Error {
    let error = match conf.vlan {
        Some(vlan) => Error::unsupported_field("vlan", vlan),
        None => Error::unsupported_field("vlanTrunk", format!("{:?}", conf.trunk)),
    };
    error.details("this kernel has no bridge VLAN filtering")
}

/// The bridge as the configuration wants it. `found` is what [`inspect`] found since the lock was taken. Several ADDs at
/// once make one bridge.
pub fn ensure(netlink: &mut Netlink, conf: &Conf, found: Option<Link>) -> Result<Link, Error> {
    let wanted = Bridge {
        name: &conf.bridge,
        mac: Some(random_mac()),
        mtu: conf.mtu,
        vlan_filtering: conf.needs_vlans(),
        default_pvid: None,
        alias: Some(BRIDGE_ALIAS),
        group: Some(CONTAINERS_GROUP),
        up: true,
    };
    let (link, made) = match found {
        Some(link) => (link, false),
        None => match netlink.create_bridge(&wanted) {
            Ok(link) => (link, true),
            // Another ADD was quicker.
            Err(error) if error.is_existing() => {
                let vanished = || Error::try_again(format!("bridge {} came and went", conf.bridge));
                (inspect(netlink, conf)?.ok_or_else(vanished)?, false)
            }
            Err(error) => return Err(crate::errors::from_net(&error)),
        },
    };
    let mut batch = Batch::new();
    if !link.up || (conf.promisc && !link.promisc) {
        let promisc = conf.promisc.then_some(true);
        batch.set(link.index, &LinkSet { up: Some(true), promisc, ..LinkSet::default() });
    }
    if conf.needs_vlans() && link.bridge.is_some_and(|bridge| bridge.vlan_filtering == Some(false)) {
        batch.bridge_vlan_filtering(link.index, true);
    }
    if !batch.is_empty() {
        netlink.run(batch).coded()?;
    }
    if made {
        // With its link-local address the host looks for containers on behalf of others. It gets that when the first port is
        // up, and could not use it for the one to two seconds in which the kernel would look for a duplicate.
        attach::optional(sysctl::set_if_there(&sysctl::conf(Family::V6, &conf.bridge, "accept_dad"), "0"));
        attach::optional(sysctl::ignore_routers(&conf.bridge));
    } else if link.conf.hears_routers == Some(true) {
        // A container must not tell the host its routes. What is right is known by netlink, without a look-up in /proc/sys.
        attach::optional(sysctl::set_if_there(&sysctl::conf(Family::V6, &conf.bridge, "accept_ra"), "0"));
    }
    Ok(link)
}

/// What must change so that a link has certain addresses.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct AddressChange {
    /// Addresses in the way of others.
    pub remove: Vec<IpNetwork>,
    /// Addresses that are missing.
    pub add: Vec<IpNetwork>,
}

fn plan(name: &str, has: &[IpNetwork], wanted: &[IpNetwork], force: bool) -> Result<AddressChange, Error> {
    let mut remove = Vec::new();
    let missing: Vec<IpNetwork> = wanted.iter().filter(|address| !has.contains(address)).copied().collect();
    for address in &missing {
        // IPv6 has room for several subnets; a bridge has one IPv4 address.
        let in_the_way = |other: &&IpNetwork| {
            other.is_ipv4() == address.is_ipv4()
                && !wanted.contains(other)
                && (address.is_ipv4() || other.contains(address.ip()) || address.contains(other.ip()))
        };
        for other in has.iter().filter(in_the_way) {
            if !force {
                let msg = format!("bridge {name} has the address {other}, not {address}");
                let details = "another network uses this bridge; forceAddress replaces the address";
                return Err(Error::new(EXISTS, msg).details(details));
            }
            if !remove.contains(other) {
                remove.push(*other);
            }
        }
    }
    Ok(AddressChange { remove, add: missing })
}

/// Whether the bridge's hardware address may follow its ports: the kernel says in sysfs alone whether it was set
/// (NET_ADDR_SET of linux/netdevice.h). Weft's own bridges get theirs when they are made.
fn follows_ports(link: &Link) -> bool {
    if link.bridge.is_none() || link.alias.as_deref() == Some(BRIDGE_ALIAS) {
        return false;
    }
    let assigned = std::fs::read_to_string(format!("/sys/class/net/{}/addr_assign_type", link.name));
    assigned.map_or(true, |text| text.trim() != "3")
}

/// What must change so that a link has the gateways' addresses.
///
/// # Errors
/// Code 103 when it has another network's address and `force` is not set.
pub fn plan_addresses(
    netlink: &mut Netlink,
    link: &Link,
    wanted: &[IpNetwork],
    force: bool,
) -> Result<AddressChange, Error> {
    let has: Vec<IpNetwork> = netlink.addrs(Some(link.index)).coded()?.iter().map(|addr| addr.net).collect();
    plan(&link.name, &has, wanted, force)
}

/// Gives a link the gateways' addresses.
pub fn change_addresses(netlink: &mut Netlink, link: &Link, change: AddressChange) -> Result<(), Error> {
    if change.add.iter().any(IpNetwork::is_ipv6) {
        // The host may have IPv6 switched off for new links.
        sysctl::set_if_there(&sysctl::conf(Family::V6, &link.name, "disable_ipv6"), "0").coded()?;
    }
    let mut batch = Batch::new();
    for address in change.remove {
        batch.addr_del(link.index, address).or_missing();
    }
    if let Some(mac) = link.mac.filter(|_| follows_ports(link)) {
        // The containers keep the gateway's hardware address, which must not change when a port comes or goes. Set
        // explicitly, even to itself, it stays (br_stp_recalculate_bridge_id() of net/bridge/br_stp_if.c).
        batch.set(link.index, &LinkSet { mac: Some(mac), ..LinkSet::default() });
    }
    for address in change.add {
        // Nobody else has it, and the first packet of a container must not wait for the kernel to find that out.
        batch.addr_add(link.index, &NewAddr::new(address)).or_existing();
    }
    if !batch.is_empty() {
        netlink.run(batch).coded()?;
    }
    Ok(())
}

/// Takes the addresses that an ADD gave a link away again, unless another attachment uses the bridge by now.
pub fn withdraw_addresses(conf: &Conf, index: u32, added: &[IpNetwork]) -> Result<(), Error> {
    let mut netlink = Netlink::open().coded()?;
    let Some(_lock) = unused(&mut netlink, conf)? else { return Ok(()) };
    let mut batch = Batch::new();
    for address in added {
        batch.addr_del(index, *address).or_missing();
    }
    if !batch.is_empty() {
        netlink.run(batch).coded()?;
    }
    Ok(())
}

/// The lock on the host's bridges, if no attachment uses this one.
pub fn unused(netlink: &mut Netlink, conf: &Conf) -> Result<Option<BridgeLock>, Error> {
    let Some(lock) = BridgeLock::exclusive()? else { return Ok(None) };
    let Some(link) = netlink.link(&conf.bridge).coded()? else { return Ok(None) };
    let ports = netlink.links_of_master(link.index).coded()?;
    let is_attachment = |link: &Link| link.alias.as_deref().is_some_and(|a| Owner::parse_alias(a).is_some());
    Ok((!ports.iter().any(is_attachment)).then_some(lock))
}

/// Removes the bridge if Weft made it and it has no port. Returns whether it did. While ADDs, or the child of a DEL, use
/// bridges for longer than `wait`, it stays.
pub fn remove_if_unused(netlink: &mut Netlink, conf: &Conf, wait: Duration) -> Result<bool, Error> {
    let Some(_lock) = BridgeLock::exclusive_within(wait)? else { return Ok(false) };
    let Some(link) = netlink.link(&conf.bridge).coded()? else { return Ok(false) };
    let ours = |link: &Link| link.alias.as_deref() == Some(BRIDGE_ALIAS);
    let ports = netlink.links_of_master(link.index).coded()?;
    if !ours(&link) || !ports.iter().all(ours) {
        return Ok(false);
    }
    // Ports of ours are the host's legs in VLANs.
    for port in ports {
        netlink.delete(port.index).coded()?;
    }
    netlink.delete(link.index).coded()?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(list: &[&str]) -> Vec<IpNetwork> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn change(remove: &[&str], add: &[&str]) -> AddressChange {
        AddressChange { remove: nets(remove), add: nets(add) }
    }

    #[test]
    fn a_bridge_has_one_ipv4_address_unless_it_is_forced() {
        let (has, wanted) = (nets(&["10.1.0.1/16"]), nets(&["10.2.0.1/16"]));
        assert_eq!(plan("b", &has, &has, false).unwrap(), change(&[], &[]));
        let error = plan("b", &has, &wanted, false).unwrap_err();
        assert!(error.code == EXISTS && error.msg.contains("10.1.0.1/16"), "{error}");
        assert_eq!(plan("b", &has, &wanted, true).unwrap(), change(&["10.1.0.1/16"], &["10.2.0.1/16"]));
    }

    #[test]
    fn ipv6_subnets_live_side_by_side_unless_they_overlap() {
        let has = nets(&["fe80::1/64", "fd00:1::1/64"]);
        let wanted = nets(&["fd00:2::1/64"]);
        assert_eq!(plan("b", &has, &wanted, false).unwrap(), change(&[], &["fd00:2::1/64"]));
        assert!(plan("b", &has, &nets(&["fd00:1::2/48"]), false).is_err());
    }

    #[test]
    fn addresses_of_one_network_do_not_stand_in_each_others_way() {
        let wanted = nets(&["10.1.0.1/24", "10.2.0.1/24"]);
        assert_eq!(plan("b", &wanted[..1], &wanted, false).unwrap(), change(&[], &["10.2.0.1/24"]));
    }
}
