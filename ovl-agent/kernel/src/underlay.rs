//! The underlay: the interface and the address (VTEP) by which hosts reach each other.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use net::route::{Family, Route};
use net::{Addr, Link, Netlink};
use ovl_api::model::Network;

use crate::error::{Error, Result};

/// What VXLAN adds to a packet on an IPv4 underlay, in bytes: Ethernet 14, IPv4 20, UDP 8, VXLAN 8 (RFC 7348, section 5).
pub const VXLAN_OVERHEAD_V4: u32 = 50;
/// The same on an IPv6 underlay, whose header has 40 bytes.
pub const VXLAN_OVERHEAD_V6: u32 = 70;

/// The interface that has the VTEP address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Underlay {
    /// Its index.
    pub link: u32,
    /// Its name.
    pub name: String,
    /// Its MTU in bytes.
    pub mtu: u32,
}

/// What [`find_underlay`] found: the interface, the VTEP address on it, and that address' L2 segment (its subnet), which is
/// None for an address without one (/32, /128, point to point).
pub type Found = (Underlay, IpAddr, Option<IpNetwork>);

/// Finds the underlay in this thread's network namespace: the interface of that name, or the one with the address
/// `advertise`, or else the one of the default route (IPv4 before IPv6). On it, `advertise`, or else the source address of the
/// default route, or else its first global address, IPv4 before IPv6.
///
/// # Errors
/// [`Error::Setting`] with `--interface` or `--advertise` when there is no such interface or address, or one is not on the
/// other; [`Error::NoUnderlay`] when neither is given and there is no default route or no address; [`Error::Net`].
pub fn find_underlay(interface: Option<&str>, advertise: Option<IpAddr>) -> Result<Found> {
    find_underlay_in(interface, advertise, None)
}

/// The same; the address is of this family, unless `advertise` says otherwise.
///
/// # Errors
/// As [`find_underlay`].
pub fn find_underlay_in(
    interface: Option<&str>,
    advertise: Option<IpAddr>,
    family: Option<Family>,
) -> Result<Found> {
    let mut netlink = Netlink::open()?;
    let addrs = netlink.addrs(None)?;
    let (link, addr) = match (interface, advertise) {
        (interface, Some(ip)) => {
            let addr = advertised(&mut netlink, &addrs, interface, ip)?;
            (the_link(&mut netlink, addr.index)?, addr)
        }
        (Some(name), None) => {
            let link = named(&mut netlink, name)?;
            let addr = first_global(&addrs, link.index, family).ok_or_else(|| Error::Setting {
                field: "--interface",
                value: name.to_owned(),
                why: "it has no global IPv4 or IPv6 address; give it one, or name another interface"
                    .to_owned(),
            })?;
            (link, addr)
        }
        (None, None) => by_default_route(&mut netlink, &addrs, family)?,
    };
    let mut mtu = link.mtu.unwrap_or(1500);
    if link.loopback {
        // An address of the host as such, which no cable limits: what leaves takes the default route.
        mtu = netlink.default_link()?.and_then(|link| link.mtu).unwrap_or(1500);
    }
    let full = if addr.net.is_ipv4() { 32 } else { 128 };
    let has_segment = addr.net.prefix() < full && !link.loopback;
    let segment = IpNetwork::new(addr.net.network(), addr.net.prefix()).ok().filter(|_| has_segment);
    Ok((Underlay { link: link.index, name: link.name, mtu }, addr.net.ip(), segment))
}

/// The addresses of this network namespace, loopback and link-local ones left out.
///
/// # Errors
/// [`Error::Net`].
pub fn own_addresses() -> Result<BTreeSet<IpAddr>> {
    let addrs = Netlink::open()?.addrs(None)?;
    let is_local =
        |ip: &IpAddr| ip.is_loopback() || matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
    Ok(addrs.iter().map(|addr| addr.net.ip()).filter(|ip| !is_local(ip)).collect())
}

/// Whether a link carries packets: it is up, and has a carrier.
pub fn carries(link: u32) -> bool {
    let found = Netlink::open().and_then(|mut netlink| netlink.link_at(link));
    found.is_ok_and(|link| link.is_some_and(|link| link.running || link.loopback))
}

fn named(netlink: &mut Netlink, name: &str) -> Result<Link> {
    netlink.link(name)?.ok_or_else(|| Error::Setting {
        field: "--interface",
        value: name.to_owned(),
        why: "there is no such interface".to_owned(),
    })
}

fn the_link(netlink: &mut Netlink, index: u32) -> Result<Link> {
    let gone = || Error::NoUnderlay(format!("interface number {index} vanished while it was looked at"));
    netlink.link_at(index)?.ok_or_else(gone)
}

/// The address that was asked for.
fn advertised(netlink: &mut Netlink, addrs: &[Addr], interface: Option<&str>, ip: IpAddr) -> Result<Addr> {
    let wrong = |why: String| Error::Setting { field: "--advertise", value: ip.to_string(), why };
    if let IpAddr::V6(v6) = ip
        && v6.is_unicast_link_local()
    {
        return Err(wrong("a link-local address means nothing to other hosts; name a global one".to_owned()));
    }
    let link = interface.map(|name| named(netlink, name)).transpose()?;
    let on_link = |addr: &&Addr| link.as_ref().is_none_or(|link| link.index == addr.index);
    addrs.iter().filter(on_link).find(|addr| addr.net.ip() == ip).copied().ok_or_else(|| {
        wrong(match interface {
            Some(name) => format!("interface {name} has no such address"),
            None => "no interface of this host has this address".to_owned(),
        })
    })
}

fn by_default_route(netlink: &mut Netlink, addrs: &[Addr], wanted: Option<Family>) -> Result<(Link, Addr)> {
    let mut seen = None;
    let families = [Family::V4, Family::V6].into_iter();
    for family in families.filter(|family| wanted.is_none_or(|wanted| wanted == *family)) {
        let Some(Route { oif: Some(index), src, .. }) = netlink.default_route(family)? else { continue };
        let link = the_link(netlink, index)?;
        let from = src.and_then(|src| addrs.iter().find(|addr| addr.net.ip() == src).copied());
        if let Some(addr) = from.or_else(|| first_global(addrs, index, Some(family))) {
            return Ok((link, addr));
        }
        seen = Some(link.name);
    }
    Err(Error::NoUnderlay(match seen {
        Some(name) => format!(
            "interface {name}, which has the default route, has no global address; say with --interface or --advertise by \
             which address other hosts reach this one"
        ),
        None => "this host has no default route; say with --interface or --advertise by which address other hosts reach it"
            .to_owned(),
    }))
}

/// The first address of a link that others can use for good: global, not one of IPv6's temporary ones.
fn first_global(addrs: &[Addr], index: u32, family: Option<Family>) -> Option<Addr> {
    // IFA_F_TEMPORARY is the same bit as IPv4's IFA_F_SECONDARY, which is a good address.
    let passing = |addr: &Addr| {
        let unwanted = libc_flags::DEPRECATED | if addr.net.is_ipv6() { libc_flags::TEMPORARY } else { 0 };
        addr.flags & unwanted != 0 || addr.is_duplicate()
    };
    let usable = |addr: &&Addr| addr.index == index && addr.scope == 0 && !passing(addr);
    let of = |wanted: Family| addrs.iter().filter(usable).find(|addr| Family::of(addr.net.ip()) == wanted);
    match family {
        Some(family) => of(family).copied(),
        None => of(Family::V4).or_else(|| of(Family::V6)).copied(),
    }
}

/// IFA_F_* of linux/if_addr.h.
mod libc_flags {
    pub const TEMPORARY: u32 = 0x01;
    pub const DEPRECATED: u32 = 0x20;
}

/// The MTU of a network's devices and containers on this host, in bytes: what the network asks for, else what the underlay
/// carries less what VXLAN adds.
pub fn network_mtu(network: &Network, underlay: &Underlay, vtep: IpAddr) -> u32 {
    let overhead = if vtep.is_ipv4() { VXLAN_OVERHEAD_V4 } else { VXLAN_OVERHEAD_V6 };
    // 68 is the least that IPv4 works with (RFC 791).
    network.mtu.unwrap_or_else(|| underlay.mtu.saturating_sub(overhead).max(68))
}
