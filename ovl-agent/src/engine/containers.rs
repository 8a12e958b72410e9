//! The containers' links that are on this host when the agent starts.

use net::route::{MAIN_TABLE, RouteFilter};
use net::{Netlink, Owner};
use ovl_api::names::{ROUTE_PROTOCOL, vni_of_group};
use ovl_claims::FoundLink;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Returns the links of containers in overlay networks, with the addresses that lead to them. Of a name that is too long for a
/// label it has the clipped one.
///
/// # Errors
/// The kernel cannot be asked.
pub fn links() -> net::Result<Vec<FoundLink>> {
    let mut netlink = Netlink::open()?;
    let found = netlink.links()?.into_iter().filter_map(|link| {
        // A network's own device is in the group, too.
        let owner = link.alias.as_deref().and_then(Owner::parse_alias)?;
        let vni = vni_of_group(link.group)?;
        let (container, ifname) = (owner.container, owner.ifname);
        let found =
            FoundLink { veth: link.name, vni, container, ifname, mac: None, addresses: BTreeSet::new() };
        Some((link.index, found))
    });
    let mut found: BTreeMap<u32, FoundLink> = found.collect();
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let filter =
        RouteFilter { table: Some(MAIN_TABLE), protocol: Some(ROUTE_PROTOCOL), ..RouteFilter::default() };
    for route in netlink.routes(filter)? {
        let full = if route.dst.is_ipv4() { 32 } else { 128 };
        let of = route.oif.and_then(|index| found.get_mut(&index));
        if let Some(link) = of.filter(|_| route.dst.prefix() == full && route.gw.is_none()) {
            link.addresses.insert(route.dst.ip());
        }
    }
    let is_local = |ip: &IpAddr| matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
    for neigh in netlink.neighs(None)?.into_iter().filter(|neigh| neigh.permanent && !is_local(&neigh.ip)) {
        if let Some(link) = found.get_mut(&neigh.index) {
            link.mac = link.mac.or(neigh.mac);
            link.addresses.insert(neigh.ip);
        }
    }
    Ok(found.into_values().collect())
}
