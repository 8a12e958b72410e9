//! host: the container uses the host's own network namespace. It tells what is there and changes nothing.

use crate::errors::Coded;
use crate::netns::is_own;
use cni::Error;
use cni::plugin::Plugin;
use cni::request::Request;
use cni::types::{AddResult, Interface, IpConfig};
use net::{Netlink, Netns};

/// The plugin.
pub struct Host;

/// RT_SCOPE_UNIVERSE of linux/rtnetlink.h: addresses that other hosts can know.
const GLOBAL: u8 = 0;

/// The namespace must be the host's: a runtime that made another one would give the container nothing.
fn require_own(request: &Request) -> Result<(), Error> {
    let vars = &["CNI_NETNS"];
    let path = request.netns.as_ref().ok_or_else(|| Error::environment(vars, "required, but not set"))?;
    if is_own(&Netns::open(path).coded()?)? {
        return Ok(());
    }
    let why = format!("{} is not the host's network namespace, which the host network uses", path.display());
    Err(Error::environment(vars, why))
}

/// The host's interfaces and their addresses; loopback ones come first and have no address that others could use.
fn tell() -> Result<AddResult, Error> {
    let mut netlink = Netlink::open().coded()?;
    let links = netlink.links().coded()?;
    let addrs = netlink.addrs(None).coded()?;
    let mut result = AddResult::default();
    for (at, link) in links.iter().enumerate() {
        result.interfaces.push(Interface {
            name: link.name.clone(),
            mac: link.mac_text(),
            mtu: link.mtu,
            ..Interface::default()
        });
        let own = addrs.iter().filter(|addr| addr.index == link.index && addr.scope == GLOBAL);
        let ip = |address| IpConfig { interface: Some(at), address, gateway: None };
        result.ips.extend(own.map(|addr| ip(addr.net)));
    }
    Ok(result)
}

impl Plugin for Host {
    fn name(&self) -> &'static str {
        "host"
    }

    fn about(&self) -> String {
        crate::about("host")
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        require_own(request)?;
        tell()
    }

    fn del(&self, _: &Request) -> Result<(), Error> {
        Ok(())
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        require_own(request)
    }

    fn gc(&self, _: &Request) -> Result<(), Error> {
        Ok(())
    }

    fn status(&self, _: &Request) -> Result<(), Error> {
        Ok(())
    }
}
