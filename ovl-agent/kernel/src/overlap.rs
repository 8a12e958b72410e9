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
/// The links are read last: a device that the agent makes meanwhile gets its alias before its addresses, so that whatever has
/// an address in the first answer has its alias in the last. What is on a link that is not there any more is gone with it.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn foreign(netlink: &mut Netlink) -> Result<Vec<(IpNetwork, String)>> {
    let addrs = netlink.addrs(None)?;
    let routes = netlink.routes(RouteFilter::default())?;
    let links = netlink.links()?;
    let foreign_on = |index: u32| links.iter().find(|link| link.index == index && !is_ours(link));
    let addrs = addrs.iter().filter_map(|addr| {
        let link = foreign_on(addr.index)?;
        Some((addr.net, format!("address {} of {}", addr.net, link.name)))
    });
    let routes = routes.iter().filter(|route| {
        route.table != Some(LOCAL_TABLE) && !is_default(route.dst) && route.protocol != ROUTE_PROTOCOL
    });
    let routes = routes.filter_map(|route| match route.oif {
        Some(oif) => Some((route.dst, format!("route {} on {}", route.dst, foreign_on(oif)?.name))),
        None => Some((route.dst, format!("route {}", route.dst))),
    });
    Ok(addrs.chain(routes).collect())
}

/// Made by Weft for an overlay. Links of containers need no such check: their routes have Weft's protocol number, and their
/// link-local addresses overlap no subnet.
fn is_ours(link: &Link) -> bool {
    link.alias.as_deref().is_some_and(|alias| alias.starts_with(DEVICE_ALIAS))
}

/// The default route, in whole or in halves (0.0.0.0/1 and 128.0.0.0/1), or IPv6's global unicast space (2000::/3).
fn is_default(dst: IpNetwork) -> bool {
    dst.prefix() <= if dst.is_ipv4() { 1 } else { 3 }
}
