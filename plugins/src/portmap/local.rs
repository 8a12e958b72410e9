//! Published ports on 127.0.0.1: the kernel routes such packets out of the host only by links with `route_localnet`.

use crate::errors::Coded;
use crate::rules;
use cni::Error;
use ipnetwork::IpNetwork;
use net::{Batch, LinkSet, Netlink};

/// The host's link towards a container.
pub struct Localnet {
    netlink: Netlink,
    index: u32,
    name: String,
    is_set: bool,
}

impl Localnet {
    /// Finds the link that leads to the container's IPv4 address; there is no such setting for IPv6. Without a route no port
    /// can be reached.
    pub fn towards(addresses: &[IpNetwork]) -> Result<Option<Localnet>, Error> {
        let Some(address) = addresses.iter().find(|address| address.is_ipv4()) else { return Ok(None) };
        let mut netlink = Netlink::open().coded()?;
        rules::identify(&netlink);
        let route = netlink.route_towards(address.ip()).coded()?;
        let Some(index) = route.and_then(|route| route.oif) else { return Ok(None) };
        let Some(link) = netlink.link_at(index).coded()? else { return Ok(None) };
        let is_set = link.conf.localnet == Some(true);
        Ok(Some(Localnet { netlink, index, name: link.name, is_set }))
    }

    /// Looks again whether it has the setting.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn refresh(&mut self) -> Result<(), Error> {
        let link = self.netlink.link_at(self.index).coded()?;
        self.is_set = link.is_some_and(|link| link.conf.localnet == Some(true));
        Ok(())
    }

    /// Whether the link has the setting.
    pub fn is_set(&self) -> bool {
        self.is_set
    }

    /// Returns the link's name when the setting is off, so that the caller has it recorded before it is set.
    pub fn to_record(&self) -> Option<String> {
        (!self.is_set).then(|| self.name.clone())
    }

    /// Allows packets from 127.0.0.0/8 on the link.
    pub fn allow(mut self) -> Result<(), Error> {
        let mut batch = Batch::new();
        batch.set(self.index, &LinkSet { route_localnet: Some(true), ..LinkSet::default() });
        self.netlink.run(batch).coded().map(drop)
    }
}
