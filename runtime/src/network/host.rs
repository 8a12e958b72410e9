//! What of the host's addresses is in use, read from the kernel.

use super::pools::{Taken, network_of};
use anyhow::{Context, Result};
use net::Netlink;
use net::route::{MAIN_TABLE, RouteFilter, UNICAST};
use std::collections::HashMap;

/// What of the host matters to a new network.
pub struct View {
    /// Its routes and addresses.
    pub taken: Vec<Taken>,
    /// The MTU of the link that has the default route.
    pub default_mtu: Option<u32>,
}

impl View {
    /// Reads the calling thread's network namespace.
    pub fn read() -> Result<View> {
        let mut netlink = Netlink::open().context("cannot ask the kernel for its routes")?;
        let links: HashMap<u32, String> = netlink
            .links()?
            .into_iter()
            .filter(|link| !link.loopback)
            .map(|link| (link.index, link.name))
            .collect();
        let mut taken = Vec::new();
        for route in netlink.routes(RouteFilter { table: Some(MAIN_TABLE), ..RouteFilter::default() })? {
            let local = match route.dst.network() {
                std::net::IpAddr::V4(ip) => ip.is_multicast(),
                std::net::IpAddr::V6(ip) => ip.is_multicast() || ip.segments()[0] & 0xffc0 == 0xfe80,
            };
            if route.kind != UNICAST || route.is_default() || local {
                continue;
            }
            let by = match route.oif.and_then(|index| links.get(&index)) {
                Some(link) => format!("the route of {link}"),
                None => "a route of this host".into(),
            };
            taken.push(Taken { net: network_of(route.dst), by });
        }
        for addr in netlink.addrs(None)? {
            let link_local =
                matches!(addr.net.ip(), std::net::IpAddr::V6(ip) if ip.segments()[0] & 0xffc0 == 0xfe80);
            if let (Some(link), false) = (links.get(&addr.index), link_local) {
                taken.push(Taken {
                    net: network_of(addr.net),
                    by: format!("the address {} of {link}", addr.net.ip()),
                });
            }
        }
        let default_mtu = netlink.default_link()?.and_then(|link| link.mtu);
        Ok(View { taken, default_mtu })
    }
}
