//! Published ports on 127.0.0.1: the kernel routes such packets out of the host only by links with `route_localnet`.

use crate::errors::Coded;
use cni::Error;
use ipnetwork::IpNetwork;
use net::{Batch, Family, LinkSet, Netlink, sysctl};

/// The host's link towards a container.
pub struct Localnet {
    netlink: Netlink,
    index: u32,
    name: String,
}

impl Localnet {
    /// Finds the link that leads to the container's IPv4 address; there is no such setting for IPv6. Without a route no port
    /// can be reached.
    pub fn towards(addresses: &[IpNetwork]) -> Result<Option<Localnet>, Error> {
        let Some(address) = addresses.iter().find(|address| address.is_ipv4()) else { return Ok(None) };
        let mut netlink = Netlink::open().coded()?;
        let route = netlink.route_towards(address.ip()).coded()?;
        let Some(index) = route.and_then(|route| route.oif) else { return Ok(None) };
        let name = nix::net::if_::if_indextoname(index).ok();
        let name = name.and_then(|name| name.into_string().ok()).filter(|name| !name.is_empty());
        Ok(name.map(|name| Localnet { netlink, index, name }))
    }

    /// Returns the link's name when the setting is off, so that the caller has it recorded before it is set.
    pub fn to_record(&self) -> Option<String> {
        let value = sysctl::get(&sysctl::conf(Family::V4, &self.name, "route_localnet"));
        value.is_ok_and(|value| value == "0").then(|| self.name.clone())
    }

    /// Allows packets from 127.0.0.0/8 on the link.
    pub fn allow(mut self) -> Result<(), Error> {
        let mut batch = Batch::new();
        batch.set(self.index, &LinkSet { route_localnet: Some(true), ..LinkSet::default() });
        self.netlink.run(batch).coded().map(drop)
    }
}
