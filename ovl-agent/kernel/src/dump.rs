//! What the kernel shows: read in few, filtered requests.

use std::collections::{BTreeMap, BTreeSet};

use net::route::{MAIN_TABLE, Route, RouteFilter, UNICAST, UNREACHABLE};
use net::{Addr, Fdb, Link, Netlink, Vxlanning};
use ovl_api::names::{DEVICE_ALIAS, ROUTE_PROTOCOL};

use crate::objects::{AddrRole, Dev, Forward, Objects, RouteKey, Target};
use crate::plan::{Dumped, Shown};

/// Reads what may be ours: VXLAN devices with our alias, the links that `wanted` names, the link `underlay`, what is on them,
/// and the routes with our protocol. `links` are all links of the namespace.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn dump(netlink: &mut Netlink, links: &[Link], wanted: &Objects, underlay: &str) -> net::Result<Dumped> {
    let mut dumped = Dumped::default();
    let mut names: BTreeMap<u32, Dev> = BTreeMap::new();
    let mut devices = BTreeSet::new();
    for link in links {
        let shown = shown(link);
        let name: Dev = link.name.as_str().into();
        let is_wanted = wanted.devices.contains_key(&name);
        // The name may have become another link's since.
        let is_container = wanted.links.contains_key(&name) && link.kind.as_deref() == Some("veth");
        if shown.ours || is_wanted || is_container || link.name == underlay {
            if shown.vxlan.is_some() && (shown.ours || is_wanted) {
                devices.insert(link.index);
            }
            names.insert(link.index, name.clone());
            dumped.links.insert(name, shown);
        }
    }
    // What is on the underlay's link is not ours.
    let ours = |index: u32| names.get(&index).filter(|name| &***name != underlay).cloned();
    for addr in netlink.addrs(None)? {
        dumped.addrs.extend(ours(addr.index).map(|dev| ((dev, addr.net), role(&addr))));
    }
    for neigh in netlink.neighs(None)?.into_iter().filter(|neigh| neigh.permanent) {
        if let (Some(dev), Some(mac)) = (ours(neigh.index), neigh.mac) {
            dumped.neighs.push(((dev, neigh.ip), mac));
        }
    }
    for index in devices {
        let Some(dev) = names.get(&index) else { continue };
        for entry in netlink.fdb(Some(index))? {
            dumped.forwards.push(((dev.clone(), entry.mac), forward(&entry)));
        }
    }
    let filter =
        RouteFilter { table: Some(MAIN_TABLE), protocol: Some(ROUTE_PROTOCOL), ..RouteFilter::default() };
    let all: BTreeMap<u32, Dev> = links.iter().map(|link| (link.index, link.name.as_str().into())).collect();
    for route in netlink.routes(filter)? {
        let key = RouteKey { dst: route.dst, metric: route.priority.unwrap_or(0) };
        let dev = route.oif.and_then(|oif| names.get(&oif).or_else(|| all.get(&oif)));
        // Its link is newer than the list of links: an attachment is just being made. The next pass sees both.
        if route.oif.is_some() && dev.is_none() {
            continue;
        }
        dumped.routes.push((key, target(&route, dev)));
    }
    dumped.addrs.sort();
    dumped.neighs.sort();
    dumped.forwards.sort_by(|(a, _), (b, _)| a.cmp(b));
    dumped.routes.sort_by_key(|(key, _)| *key);
    Ok(dumped)
}

/// A forwarding entry as it is there.
pub fn forward(entry: &Fdb) -> Forward {
    let Fdb { dst, port, permanent, is_diverted, .. } = *entry;
    Forward { ip: dst, port, permanent, is_diverted }
}

/// What an address can be for, as it is there.
pub fn role(addr: &Addr) -> AddrRole {
    if !addr.is_permanent() {
        AddrRole::Cut
    } else if addr.may_be_source() {
        AddrRole::Own
    } else {
        AddrRole::Shared
    }
}

/// A link as it is there.
pub fn shown(link: &Link) -> Shown {
    let alias = link.alias.clone().unwrap_or_default();
    let ours = link.vxlan.is_some() && link.name.starts_with("vx-") && alias.starts_with(DEVICE_ALIAS);
    let altered = |vxlan: Vxlanning| vxlan.is_altered || link.proto_down;
    Shown {
        index: link.index,
        vxlan: link.vxlan.map(|vxlan| Vxlanning { is_altered: altered(vxlan), ..vxlan }),
        up: link.up,
        group: link.group,
        mac: link.mac,
        mtu: link.mtu.unwrap_or(0),
        alias,
        ours,
        master: link.master,
        conf: link.conf,
        left_down: false,
        made: None,
    }
}

/// Where a route leads that leaves by `dev`.
pub fn target(route: &Route, dev: Option<&Dev>) -> Target {
    match (route.kind, dev) {
        (UNREACHABLE, _) => Target::Unreachable,
        (UNICAST, Some(dev)) => {
            Target::Dev { dev: dev.clone(), gw: route.gw, src: route.src, onlink: route.onlink }
        }
        (kind, _) => Target::Other(kind),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use net::{Batch, Veth, testns};

    #[test]
    fn a_route_on_a_link_that_was_made_after_the_links_were_listed_is_left_alone() {
        testns::in_fresh(|| {
            let mut netlink = Netlink::open().unwrap();
            let links = netlink.links().unwrap();
            let peer = testns::another();
            let veth = netlink.create_veth(&Veth::new("veth0", "eth0", &peer)).unwrap();
            let mut batch = Batch::new();
            let to = |dst: &str| Route { protocol: ROUTE_PROTOCOL, ..Route::to(dst.parse().unwrap()) };
            batch.route_add(&Route { oif: Some(veth.index), ..to("10.42.0.3/32") });
            batch.route_add(&Route { kind: UNREACHABLE, ..to("10.42.0.0/16") });
            netlink.run(batch).unwrap();
            let routes = |netlink: &mut Netlink, links: &[Link]| {
                let dumped = dump(netlink, links, &Objects::default(), "eth9").unwrap();
                dumped.routes.iter().map(|(key, _)| key.dst.to_string()).collect::<Vec<_>>()
            };
            assert_eq!(routes(&mut netlink, &links), ["10.42.0.0/16"]);
            let links = netlink.links().unwrap();
            assert_eq!(routes(&mut netlink, &links), ["10.42.0.0/16", "10.42.0.3/32"]);
        });
    }
}
