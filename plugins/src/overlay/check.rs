//! CHECK: is everything that ADD made still there? The agent is not asked.

use super::conf::Conf;
use super::plan::{host_net, next_hop, router6};
use crate::errors::{Coded, mismatch};
use crate::firewall::owner;
use crate::netns;
use crate::{attach, check};
use cni::Error;
use cni::request::Request;
use cni::types::AddResult;
use ipnetwork::IpNetwork;
use net::route::MAIN_TABLE;
use net::{Link, Neigh, Netlink, RouteFilter, mac_text};
use ovl_api::names::{ROUTE_PROTOCOL, vni_of_group};
use std::net::IpAddr;

/// Serves a CHECK. `prevResult` is the whole chain's, so it may tell of more than this plugin made.
pub fn check(request: &Request) -> Result<(), Error> {
    let conf = Conf::of(request)?;
    let result = request.conf.require_prev_result()?;
    let netns = netns::open(request)?;
    let owner = owner(request);
    let ifname = &request.ifname;
    let addresses = check::addresses(result, ifname);
    let hops = next_hops(result, ifname);

    let mut host = Netlink::open().coded()?;
    let missing = |what: &str| mismatch(format!("{what} does not exist"));
    let veth = attach::need_host_link(&mut host, &owner)?;
    if vni_of_group(veth.group).is_none() {
        let why = format!("{} is in group {:#x}, which is no overlay network's", veth.name, veth.group);
        return Err(mismatch(why));
    }
    let mut container = Netlink::open_in(&netns).coded()?;
    let link = container.link(ifname).coded()?;
    let link = link.ok_or_else(|| missing(&format!("the container's interface {ifname}")))?;
    if link.peer_index != Some(veth.index) {
        return Err(mismatch(format!("{ifname} is not connected to {}", veth.name)));
    }
    for link in [&link, &veth] {
        if !link.up {
            return Err(mismatch(format!("{} is down", link.name)));
        }
    }
    check::mac(&link, result, ifname)?;
    check_mtu(&link, result)?;
    check::has_addresses(&mut container, &link, &addresses)?;
    let ours = |route: &&cni::types::Route| route.gw.is_some_and(|gw| hops.contains(&gw));
    let routes: Vec<_> = result.routes.iter().filter(ours).cloned().collect();
    check::has_routes(&mut container, &routes)?;
    check_neighbours(&mut container, &link, &hops, veth.mac)?;
    let ips: Vec<IpAddr> = addresses.iter().map(IpNetwork::ip).collect();
    check_neighbours(&mut host, &veth, &ips, link.mac)?;
    check_host_routes(&mut host, &veth, &ips)?;
    if !conf.masquerades(Some(result)) {
        return Ok(());
    }
    conf.backend.open()?.check_masquerade_except(&owner, &addresses, &conf.exceptions).coded()
}

fn next_hops(result: &AddResult, ifname: &str) -> Vec<IpAddr> {
    let ours = result.ips.iter().filter(|ip| check::is_ours(result, ip.interface, ifname));
    ours.filter_map(|ip| ip.gateway).map(next_hop).collect()
}

fn check_mtu(link: &Link, result: &AddResult) -> Result<(), Error> {
    let told = result.interfaces.iter().find(|each| each.name == link.name && each.sandbox.is_some());
    match (told.and_then(|interface| interface.mtu), link.mtu) {
        (Some(told), Some(has)) if told != has => {
            Err(mismatch(format!("{} has an MTU of {has} bytes, not {told}", link.name)))
        }
        _ => Ok(()),
    }
}

/// Fails when the link does not know for good that these addresses have that hardware address.
fn check_neighbours(
    netlink: &mut Netlink,
    link: &Link,
    ips: &[IpAddr],
    mac: Option<[u8; 6]>,
) -> Result<(), Error> {
    let has = netlink.neighs(Some(link.index)).coded()?;
    let is_there =
        |ip: &IpAddr| has.iter().any(|each: &Neigh| each.ip == *ip && each.mac == mac && each.permanent);
    match ips.iter().find(|ip| !is_there(ip)) {
        None => Ok(()),
        Some(lost) => {
            let mac = mac.map(mac_text).unwrap_or_default();
            Err(mismatch(format!("{} does not have the permanent neighbour {lost} ({mac})", link.name)))
        }
    }
}

fn check_host_routes(host: &mut Netlink, veth: &Link, ips: &[IpAddr]) -> Result<(), Error> {
    let filter = RouteFilter { oif: Some(veth.index), table: Some(MAIN_TABLE), ..RouteFilter::default() };
    let has = host.routes(filter).coded()?;
    let is_there =
        |ip: &IpAddr| has.iter().any(|route| route.dst == host_net(*ip) && route.protocol == ROUTE_PROTOCOL);
    if let Some(lost) = ips.iter().find(|ip| !is_there(ip)) {
        return Err(mismatch(format!(
            "the host does not have the route {} by {}",
            host_net(*lost),
            veth.name
        )));
    }
    let router = router6();
    if ips.iter().any(IpAddr::is_ipv6)
        && !host.addrs(Some(veth.index)).coded()?.iter().any(|a| a.net == router)
    {
        return Err(mismatch(format!("{} does not have the address {router}", veth.name)));
    }
    Ok(())
}
