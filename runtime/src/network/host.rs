//! What of the host's addresses is in use, read from the kernel.

use super::pools::{Taken, Use, network_of};
use anyhow::{Context, Result};
use ipnetwork::IpNetwork;
use net::Netlink;
use net::route::{MAIN_TABLE, RouteFilter, UNICAST};
use std::collections::HashMap;
use std::net::IpAddr;

/// What of the host matters to a new network.
pub struct View {
    /// Its routes and addresses.
    pub taken: Vec<Taken>,
    /// The MTU of the link that has the default route.
    pub default_mtu: Option<u32>,
    /// What the host has by the name of the network's bridge.
    pub named: Named,
}

/// What a host has by a bridge's name.
#[derive(Debug, PartialEq)]
pub enum Named {
    /// Nothing.
    Nothing,
    /// A bridge, with the first address of each family.
    Bridge(Vec<IpNetwork>),
    /// A link of another kind.
    OtherLink,
}

fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.segments()[0] & 0xffc0 == 0xfe80)
}

impl View {
    /// Reads the calling thread's network namespace. What belongs to the bridge of this name is not taken: it is the network's.
    pub fn read(bridge: Option<&str>) -> Result<View> {
        let mut netlink = Netlink::open().context("cannot ask the kernel for its routes")?;
        // The links last: what has an address or a route in the first answers is known by name in the last.
        let routes = netlink.routes(RouteFilter { table: Some(MAIN_TABLE), ..RouteFilter::default() })?;
        let addrs = netlink.addrs(None)?;
        let all = netlink.links()?;
        let own = all.iter().find(|link| Some(link.name.as_str()) == bridge);
        let own_index = own.filter(|link| link.kind.as_deref() == Some("bridge")).map(|link| link.index);
        let links: HashMap<u32, String> =
            all.iter().filter(|link| !link.loopback).map(|link| (link.index, link.name.clone())).collect();
        let mut taken = Vec::new();
        for route in routes {
            let local = route.dst.network().is_multicast() || is_link_local(route.dst.network());
            let is_own = own_index.is_some() && route.oif == own_index;
            if route.kind != UNICAST || route.is_default() || local || is_own {
                continue;
            }
            let by = match route.oif.and_then(|index| links.get(&index)) {
                Some(link) => format!("the route of {link}"),
                None => "a route of this host".into(),
            };
            let how = if route.gw.is_some() { Use::Route } else { Use::OnLink };
            taken.push(Taken { net: network_of(route.dst), by, how });
        }
        let mut bridges: Vec<IpNetwork> = Vec::new();
        for addr in addrs {
            if is_link_local(addr.net.ip()) {
                continue;
            }
            if Some(addr.index) == own_index {
                if !bridges.iter().any(|net| net.is_ipv4() == addr.net.is_ipv4()) {
                    bridges.push(addr.net);
                }
            } else if let Some(link) = links.get(&addr.index) {
                let by = format!("the address {} of {link}", addr.net.ip());
                taken.push(Taken { net: network_of(addr.net), by, how: Use::Subnet });
            }
        }
        let default_mtu = netlink.default_link()?.and_then(|link| link.mtu);
        let named = match (own, own_index) {
            (None, _) => Named::Nothing,
            (Some(_), Some(_)) => Named::Bridge(bridges),
            (Some(_), None) => Named::OtherLink,
        };
        Ok(View { taken, default_mtu, named })
    }
}
