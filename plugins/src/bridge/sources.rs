//! What a container may send from: its hardware address alone (`macspoofchk`), and its addresses alone (`portIsolation`).
//!
//! With a neighbour's address as source, a container could make a connection in the neighbour's name, and the peer of that connection
//! would reach the neighbour's unpublished ports by it.

use super::conf::Conf;
use crate::errors::Coded;
use crate::firewall::{self, owner};
use crate::ipam_client::Ipam;
use crate::rules;
use cni::Error;
use cni::request::Request;
use ipnetwork::IpNetwork;
use net::Owner;
use net::firewall::nft::{Bound, Content, Nftables, Sources};

/// Returns the addresses to which the container is bound. `None`: it is not, or they are not known.
pub fn bound<'a>(
    conf: &Conf,
    ipam: &Ipam<'_>,
    mac: [u8; 6],
    addresses: &'a [IpNetwork],
) -> Option<Sources<'a>> {
    // In the VLANs of a trunk the container has addresses of its own choice.
    let is_bound = conf.port_isolation && conf.trunk.is_empty() && !addresses.is_empty();
    // Where routers are not ignored, the container may have an address of IPv6 by itself.
    let ipv6 = !ipam.needs_link() || addresses.iter().any(IpNetwork::is_ipv6);
    is_bound.then_some(Sources { mac, addresses, ipv6 })
}

/// Has the kernel drop what the container sends from elsewhere.
///
/// # Errors
/// Code 2 for `macspoofchk` on a kernel without nftables for bridges. Addresses are not checked there.
pub fn watch(request: &Request, conf: &Conf, mac: [u8; 6], bound: Option<Sources<'_>>) -> Result<(), Error> {
    if bound.is_none() && !conf.mac_spoof_check {
        return Ok(());
    }
    let kept = bound.map(|sources| Bound { addresses: sources.addresses.to_vec(), ipv6: sources.ipv6 });
    rules::record(request, Content::Watch { mac, bound: kept }, None);
    let owner = &owner(request);
    let watched = rules::nftables().and_then(|mut nft| {
        let watched = match &bound {
            Some(sources) => nft.bind(owner, sources),
            None => nft.watch(owner, mac),
        };
        firewall::release(&nft);
        watched
    });
    match watched {
        Err(lacking @ net::Error::Unsupported(_)) if conf.mac_spoof_check => {
            Err(Error::unsupported_field("macspoofchk", true).details(lacking.to_string()))
        }
        Err(lacking @ net::Error::Unsupported(_)) => {
            eprintln!("bridge: the container's source addresses are not checked: {lacking}");
            Ok(())
        }
        watched => watched.coded(),
    }
}

/// Undoes [`watch`].
pub fn unwatch(owner: &Owner) -> Result<(), Error> {
    let mut nft = match Nftables::open() {
        Err(net::Error::Unsupported(_)) => return Ok(()),
        opened => opened.coded()?,
    };
    nft.unwatch(owner).coded()?;
    firewall::tidy(&mut nft)
}

/// Fails when the kernel does not do what [`watch`] asked for.
///
/// # Errors
/// Code 105.
pub fn check(conf: &Conf, owner: &Owner, mac: [u8; 6], bound: Option<Sources<'_>>) -> Result<(), Error> {
    if bound.is_none() && !conf.mac_spoof_check {
        return Ok(());
    }
    let checked = Nftables::open().and_then(|mut nft| match &bound {
        Some(sources) => nft.check_bound(owner, sources),
        None => nft.check_watched(owner, mac),
    });
    match checked {
        Err(net::Error::Unsupported(_)) if !conf.mac_spoof_check => Ok(()),
        checked => checked.coded(),
    }
}
