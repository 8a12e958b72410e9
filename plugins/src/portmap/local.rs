//! Published ports on 127.0.0.1: the kernel routes such packets out of the host only where it is told to.

use crate::errors::Coded;
use cni::Error;
use ipnetwork::IpNetwork;
use net::{Batch, LinkSet, Netlink};

/// Allows packets from 127.0.0.0/8 on the host's link towards the container. There is no such thing for IPv6.
pub fn allow(addresses: &[IpNetwork]) -> Result<(), Error> {
    let Some(address) = addresses.iter().find(|address| address.is_ipv4()) else { return Ok(()) };
    let mut netlink = Netlink::open().coded()?;
    let route = netlink.route_towards(address.ip()).coded()?;
    // Without a route the port cannot be reached anyhow, by nobody.
    let Some(index) = route.and_then(|route| route.oif) else { return Ok(()) };
    let mut batch = Batch::new();
    batch.set(index, &LinkSet { route_localnet: Some(true), ..LinkSet::default() });
    netlink.run(batch).coded().map(drop)
}
