//! CHECK: is everything that ADD made still there? What others added since is no fault.

use super::conf::Conf;
use super::result::kernel_routes;
use crate::errors::{Coded, mismatch};
use crate::firewall::owner;
use crate::ipam_client::Ipam;
use crate::netns;
use cni::Error;
use cni::request::Request;
use cni::types::AddResult;
use ipnetwork::IpNetwork;
use net::firewall::nft::Nftables;
use net::{Family, Link, Netlink, Route, RouteFilter, mac_text};

/// Serves a CHECK. `prevResult` is the whole chain's, so it may tell of more than this plugin made.
pub fn check(request: &Request) -> Result<(), Error> {
    let conf = Conf::of(request)?;
    let ipam = Ipam::of(request)?;
    let result = request.conf.require_prev_result()?;
    ipam.check(request)?;
    let netns = netns::open(request)?;
    let owner = owner(request);
    let addresses = addresses(result, &request.ifname);

    let mut host = Netlink::open().coded()?;
    let missing = |what: &str| mismatch(format!("{what} does not exist"));
    let bridge =
        host.link(&conf.bridge).coded()?.ok_or_else(|| missing(&format!("bridge {}", conf.bridge)))?;
    if bridge.bridge.is_none() {
        return Err(mismatch(format!("{} is no bridge", conf.bridge)));
    }
    let veth = owner.host_veth();
    let veth = host.link(&veth).coded()?.ok_or_else(|| missing(&format!("the host's link {veth}")))?;
    if veth.master != Some(bridge.index) {
        return Err(mismatch(format!("{} is not a port of bridge {}", veth.name, bridge.name)));
    }
    if conf.is_gateway && conf.vlan.is_none() {
        check_gateways(&mut host, &bridge, result, &request.ifname)?;
    }

    let mut container = Netlink::open_in(&netns).coded()?;
    let ifname = &request.ifname;
    let link = container
        .link(ifname)
        .coded()?
        .ok_or_else(|| missing(&format!("the container's interface {ifname}")))?;
    if link.peer_index != Some(veth.index) {
        return Err(mismatch(format!("{ifname} is not connected to {}", veth.name)));
    }
    check_mac(&link, result, ifname)?;
    if let Some(mac) = link.mac.filter(|_| conf.mac_spoof_check) {
        Nftables::open().and_then(|mut nft| nft.check_watched(&owner, mac)).coded()?;
    }
    check_addresses(&mut container, &link, &addresses)?;
    if ipam.is_some() {
        check_routes(&mut container, result)?;
    }
    match conf.masquerade {
        Some(backend) => backend.open()?.check_masquerade(&owner, &addresses).coded(),
        None => Ok(()),
    }
}

/// Whether an entry of the result is about the container's interface.
fn is_ours(result: &AddResult, interface: Option<usize>, ifname: &str) -> bool {
    let interface = interface.and_then(|at| result.interfaces.get(at));
    interface.is_some_and(|interface| interface.name == ifname && interface.sandbox.is_some())
}

fn addresses(result: &AddResult, ifname: &str) -> Vec<IpNetwork> {
    let ours = result.ips.iter().filter(|ip| is_ours(result, ip.interface, ifname));
    ours.map(|ip| ip.address).collect()
}

fn check_gateways(host: &mut Netlink, bridge: &Link, result: &AddResult, ifname: &str) -> Result<(), Error> {
    let has = host.addrs(Some(bridge.index)).coded()?;
    for ip in result.ips.iter().filter(|ip| is_ours(result, ip.interface, ifname)) {
        let Some(gateway) = ip.gateway else { continue };
        if !has.iter().any(|addr| addr.net.ip() == gateway) {
            return Err(mismatch(format!(
                "bridge {} does not have the gateway's address {gateway}",
                bridge.name
            )));
        }
    }
    Ok(())
}

fn check_mac(link: &Link, result: &AddResult, ifname: &str) -> Result<(), Error> {
    let told = result.interfaces.iter().find(|each| each.name == ifname && each.sandbox.is_some());
    let told = told.and_then(|interface| interface.mac.as_deref()).filter(|mac| !mac.is_empty());
    match (told, link.mac.map(mac_text)) {
        (Some(told), Some(has)) if !told.eq_ignore_ascii_case(&has) => {
            Err(mismatch(format!("{ifname} has the hardware address {has}, not {told}")))
        }
        _ => Ok(()),
    }
}

fn check_addresses(container: &mut Netlink, link: &Link, addresses: &[IpNetwork]) -> Result<(), Error> {
    let has = container.addrs(Some(link.index)).coded()?;
    let lost = addresses.iter().find(|address| !has.iter().any(|addr| addr.net == **address));
    lost.map_or(Ok(()), |lost| Err(mismatch(format!("{} does not have the address {lost}", link.name))))
}

/// Every route of the result must be there, by whatever interface: others of the chain may have moved it.
fn check_routes(container: &mut Netlink, result: &AddResult) -> Result<(), Error> {
    let wanted = kernel_routes(result);
    for family in [Family::V4, Family::V6] {
        let mut wanted = wanted.iter().filter(|route| Family::of(route.dst.ip()) == family).peekable();
        if wanted.peek().is_none() {
            continue;
        }
        let has = container.routes(RouteFilter { family: Some(family), ..RouteFilter::default() }).coded()?;
        let is_there = |route: &&cni::types::Route| has.iter().any(|other| same(route, other));
        if let Some(lost) = wanted.find(|route| !is_there(route)) {
            let via = lost.gw.map(|gw| format!(" via {gw}")).unwrap_or_default();
            return Err(mismatch(format!("the container does not have the route {}{via}", lost.dst)));
        }
    }
    Ok(())
}

fn same(told: &cni::types::Route, has: &Route) -> bool {
    let table = told.table.is_none_or(|table| table == 0 || has.table == Some(table));
    // A route to an address's own subnet is the kernel's, without a next hop.
    told.dst == has.dst && table && (has.gw == told.gw || has.gw.is_none())
}
