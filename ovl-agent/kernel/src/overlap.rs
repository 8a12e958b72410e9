//! Whether a subnet is free on this host.

use ipnetwork::IpNetwork;
use net::route::RouteFilter;
use net::{Link, Netlink};
use ovl_api::model::overlap;
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
    let found = foreign(netlink)?.into_iter().find(|(net, _)| overlap(*net, subnet));
    Ok(found.map(|(_, words)| words))
}

/// All that [`overlapping`] looks at: the addresses and then the routes of this host that are not Weft's, with the words.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn foreign(netlink: &mut Netlink) -> Result<Vec<(IpNetwork, String)>> {
    let links = netlink.links()?;
    let ours = |index: u32| links.iter().any(|link| link.index == index && is_ours(link));
    let name = |index: u32| match links.iter().find(|link| link.index == index) {
        Some(link) => link.name.clone(),
        None => format!("interface number {index}"),
    };
    let addrs = netlink.addrs(None)?;
    let addrs = addrs.iter().filter(|addr| !ours(addr.index));
    let mut found: Vec<_> =
        addrs.map(|addr| (addr.net, format!("address {} of {}", addr.net, name(addr.index)))).collect();
    let routes = netlink.routes(RouteFilter::default())?;
    let routes = routes.iter().filter(|route| {
        let own = route.protocol == ROUTE_PROTOCOL || route.oif.is_some_and(ours);
        route.table != Some(LOCAL_TABLE) && !is_default(route.dst) && !own
    });
    found.extend(routes.map(|route| match route.oif {
        Some(oif) => (route.dst, format!("route {} on {}", route.dst, name(oif))),
        None => (route.dst, format!("route {}", route.dst)),
    }));
    Ok(found)
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
