//! CHECK: is everything that ADD made still there? What others added since is no fault.

use super::conf::Conf;
use super::result::kernel_routes;
use super::{sources, vlan};
use crate::errors::{Coded, mismatch};
use crate::firewall::{Backend, owner};
use crate::ipam_client::Ipam;
use crate::netns;
use crate::{attach, check};
use cni::Error;
use cni::request::Request;
use cni::types::AddResult;
use net::firewall::nft::Nftables;
use net::{Link, Netlink};

/// Serves a CHECK. `prevResult` is the whole chain's, so it may tell of more than this plugin made.
pub fn check(request: &Request) -> Result<(), Error> {
    let conf = Conf::of(request)?;
    let ipam = Ipam::of(request)?;
    let result = request.conf.require_prev_result()?;
    ipam.check(request)?;
    let netns = netns::open(request)?;
    let owner = owner(request);
    let addresses = check::addresses(result, &request.ifname);

    let mut host = Netlink::open().coded()?;
    let missing = |what: &str| mismatch(format!("{what} does not exist"));
    let bridge =
        host.link(&conf.bridge).coded()?.ok_or_else(|| missing(&format!("bridge {}", conf.bridge)))?;
    if bridge.bridge.is_none() {
        return Err(mismatch(format!("{} is no bridge", conf.bridge)));
    }
    let veth = attach::need_host_link(&mut host, &owner)?;
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
    check::mac(&link, result, ifname)?;
    if let Some(mac) = link.mac {
        sources::check(&conf, &owner, mac, sources::bound(&conf, &ipam, mac, &addresses))?;
    }
    check::has_addresses(&mut container, &link, &addresses)?;
    if ipam.is_some() {
        check::has_routes(&mut container, &kernel_routes(result))?;
    }
    let link = match conf.vlan.filter(|_| conf.is_gateway && ipam.is_some()) {
        Some(vlan) => {
            let leg = vlan::leg(&conf.bridge, vlan);
            host.link(&leg).coded()?.ok_or_else(|| missing(&format!("the host's link {leg}")))?
        }
        None => bridge,
    };
    let checked = Nftables::open()
        .and_then(|mut nft| nft.check_bridge(&owner, conf.masqueraded(&addresses), &conf.rules(&link)));
    match checked {
        Err(net::Error::Unsupported(_)) => {}
        checked => checked.coded()?,
    }
    match conf.masquerade.filter(|backend| *backend != Backend::Nftables) {
        Some(backend) => {
            backend.open()?.check_masquerade_except(&owner, &addresses, &conf.exceptions).coded()
        }
        None => Ok(()),
    }
}

fn check_gateways(host: &mut Netlink, bridge: &Link, result: &AddResult, ifname: &str) -> Result<(), Error> {
    let has = host.addrs(Some(bridge.index)).coded()?;
    for ip in result.ips.iter().filter(|ip| check::is_ours(result, ip.interface, ifname)) {
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
