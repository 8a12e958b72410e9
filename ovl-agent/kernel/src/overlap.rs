//! Whether a subnet is free on this host.

use ipnetwork::IpNetwork;
use net::route::{Family, RouteFilter};
use net::{Link, Netlink};
use ovl_api::names::{DEVICE_ALIAS, ROUTE_PROTOCOL};

use crate::error::Result;

/// The table of the host's own addresses and broadcasts (RT_TABLE_LOCAL).
const LOCAL_TABLE: u32 = 255;

/// An address or route of this host, in any table, that overlaps the subnet, named for people: `address 10.42.3.4/24 of eth0`,
/// `route 10.42.0.0/24 on eth1`. None when there is none. Not counted are default routes (also those in two halves, as VPNs
/// make them), and what Weft's overlays have themselves.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn overlapping(netlink: &mut Netlink, subnet: IpNetwork) -> Result<Option<String>> {
    let links = netlink.links()?;
    let ours = |index: u32| links.iter().any(|link| link.index == index && is_ours(link));
    let name = |index: u32| match links.iter().find(|link| link.index == index) {
        Some(link) => link.name.clone(),
        None => format!("interface number {index}"),
    };
    let addrs = netlink.addrs(None)?;
    if let Some(addr) = addrs.iter().find(|addr| overlap(addr.net, subnet) && !ours(addr.index)) {
        return Ok(Some(format!("address {} of {}", addr.net, name(addr.index))));
    }
    let family = Some(if subnet.is_ipv4() { Family::V4 } else { Family::V6 });
    let routes = netlink.routes(RouteFilter { family, ..RouteFilter::default() })?;
    let taken = routes.iter().find(|route| {
        let own = route.protocol == ROUTE_PROTOCOL || route.oif.is_some_and(ours);
        let counts = route.table != Some(LOCAL_TABLE) && !is_default(route.dst);
        counts && !own && overlap(route.dst, subnet)
    });
    Ok(taken.map(|route| match route.oif {
        Some(oif) => format!("route {} on {}", route.dst, name(oif)),
        None => format!("route {}", route.dst),
    }))
}

/// Made by Weft for an overlay. Containers' links need not be told: their routes have our protocol number, and their
/// link-local addresses overlap no subnet.
fn is_ours(link: &Link) -> bool {
    link.alias.as_deref().is_some_and(|alias| alias.starts_with(DEVICE_ALIAS))
}

/// The default route, in whole or in halves (0.0.0.0/1 and 128.0.0.0/1), or IPv6's global unicast space (2000::/3).
fn is_default(dst: IpNetwork) -> bool {
    dst.prefix() <= if dst.is_ipv4() { 1 } else { 3 }
}

fn overlap(a: IpNetwork, b: IpNetwork) -> bool {
    a.is_ipv4() == b.is_ipv4() && (a.contains(b.network()) || b.contains(a.network()))
}
