//! loopback: the container's own interface to itself.

use crate::errors::{Coded, mismatch};
use crate::netns;
use cni::Error;
use cni::plugin::Plugin;
use cni::request::Request;
use cni::types::{AddResult, Interface, IpConfig};
use net::{LinkSet, Netlink};

/// The plugin.
pub struct Loopback;

/// The one name it can have.
const LO: &str = "lo";

/// Brings the loopback interface up and tells of it.
pub fn up(request: &Request) -> Result<AddResult, Error> {
    let netns = netns::open(request)?;
    let mut netlink = Netlink::open_in(&netns).coded()?;
    netlink.set(LO, &LinkSet { up: Some(true), ..LinkSet::default() }).coded()?;
    let link = netlink.need_link(LO).coded()?;
    let interface = Interface {
        name: LO.into(),
        mac: link.mac_text(),
        sandbox: netns::sandbox(request),
        ..Interface::default()
    };
    let addrs = netlink.addrs(Some(link.index)).coded()?;
    // Others may have put further addresses there; the result tells of the interface's own.
    let own = addrs.iter().map(|addr| addr.net).filter(|net| net.ip().is_loopback());
    let first = |v4: bool| own.clone().find(|net| net.is_ipv4() == v4);
    let ips = first(true).into_iter().chain(first(false));
    Ok(AddResult {
        interfaces: vec![interface],
        ips: ips.map(|address| IpConfig { interface: Some(0), address, gateway: None }).collect(),
        ..AddResult::default()
    })
}

/// Brings it down, if the namespace is still there.
pub fn down(request: &Request) -> Result<(), Error> {
    let Some(netns) = netns::open_for_del(request) else { return Ok(()) };
    let mut netlink = Netlink::open_in(&netns).coded()?;
    netlink.set(LO, &LinkSet { up: Some(false), ..LinkSet::default() }).coded()
}

/// Whether it is up.
pub fn is_up(request: &Request) -> Result<(), Error> {
    let netns = netns::open(request)?;
    let link = Netlink::open_in(&netns).and_then(|mut netlink| netlink.need_link(LO)).coded()?;
    if link.up { Ok(()) } else { Err(mismatch("the loopback interface is down")) }
}

impl Plugin for Loopback {
    fn name(&self) -> &'static str {
        "loopback"
    }

    fn about(&self) -> String {
        crate::about("loopback")
    }

    /// In a chain it passes the result before it on.
    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let own = up(request)?;
        Ok(request.conf.prev_result.clone().unwrap_or(own))
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        down(request)
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        is_up(request)
    }

    fn gc(&self, _: &Request) -> Result<(), Error> {
        Ok(())
    }

    fn status(&self, _: &Request) -> Result<(), Error> {
        Ok(())
    }
}
