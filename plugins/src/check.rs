//! What the CHECKs of plugins that make interfaces have in common: is what the result tells still there? What others added
//! since is no fault.

use crate::errors::{Coded, mismatch};
use cni::Error;
use cni::types::AddResult;
use ipnetwork::IpNetwork;
use net::{Family, Link, Netlink, Route, RouteFilter, mac_text};

/// Whether an entry of the result is about the container's interface.
pub fn is_ours(result: &AddResult, interface: Option<usize>, ifname: &str) -> bool {
    let interface = interface.and_then(|at| result.interfaces.get(at));
    interface.is_some_and(|interface| interface.name == ifname && interface.sandbox.is_some())
}

/// The addresses of the container's interface.
pub fn addresses(result: &AddResult, ifname: &str) -> Vec<IpNetwork> {
    let ours = result.ips.iter().filter(|ip| is_ours(result, ip.interface, ifname));
    ours.map(|ip| ip.address).collect()
}

/// Fails when the interface has another hardware address than the result tells.
pub fn mac(link: &Link, result: &AddResult, ifname: &str) -> Result<(), Error> {
    let told = result.interfaces.iter().find(|each| each.name == ifname && each.sandbox.is_some());
    let told = told.and_then(|interface| interface.mac.as_deref()).filter(|mac| !mac.is_empty());
    match (told, link.mac.map(mac_text)) {
        (Some(told), Some(has)) if !told.eq_ignore_ascii_case(&has) => {
            Err(mismatch(format!("{ifname} has the hardware address {has}, not {told}")))
        }
        _ => Ok(()),
    }
}

/// Fails when the link lacks one of the addresses.
pub fn has_addresses(container: &mut Netlink, link: &Link, addresses: &[IpNetwork]) -> Result<(), Error> {
    let has = container.addrs(Some(link.index)).coded()?;
    let lost = addresses.iter().find(|address| !has.iter().any(|addr| addr.net == **address));
    lost.map_or(Ok(()), |lost| Err(mismatch(format!("{} does not have the address {lost}", link.name))))
}

/// Every route of the result must be there, by whatever interface: others of the chain may have moved it.
pub fn has_routes(container: &mut Netlink, wanted: &[cni::types::Route]) -> Result<(), Error> {
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
    // 0 is unset for these.
    let number = |told: Option<u32>, has: Option<u32>| told.is_none_or(|told| told == 0 || has == Some(told));
    let metrics =
        number(told.mtu, has.mtu) && number(told.advmss, has.advmss) && number(told.priority, has.priority);
    // IPv6 routes have no scope.
    let scope = told.dst.is_ipv6() || told.scope.is_none_or(|scope| has.scope.unwrap_or(0) == scope);
    // A route to an address's own subnet is the kernel's, without a next hop.
    told.dst == has.dst
        && table
        && metrics
        && scope
        && (has.gw == told.gw || has.gw.is_none() || has.multipath)
}
