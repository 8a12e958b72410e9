//! The way of a packet from one end to another, hop by hop, until one is found that does not let it on. Everything is
//! read from the kernel's tables in the namespaces on the way; only the underlay is tried with an echo request.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use net::firewall::forward;
use net::firewall::overlay::OverlayTable;
use net::{Family, Link, Netlink, Netns};

use super::dirs::Lab;
use super::icmp::{self, Manner};
use super::live::Container;
use super::plan::Machine;
use super::underlay::UPLINK;
use super::{daemons, live};

/// An end of a way.
#[derive(Debug, Clone, Copy)]
pub enum Place<'l> {
    /// A container.
    Container(&'l Container),
    /// A host itself.
    Host(&'l Machine),
}

impl Place<'_> {
    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Place::Container(one) => &one.name,
            Place::Host(host) => &host.name,
        }
    }

    /// The host it is on, or is.
    pub fn host(&self) -> &str {
        match self {
            Place::Container(one) => &one.host,
            Place::Host(host) => &host.name,
        }
    }
}

/// Where a packet stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// The container or host.
    pub at: String,
    /// Why.
    pub why: String,
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stops at {}: {}", self.at, self.why)
    }
}

fn stop<T>(at: &str, why: impl Into<String>) -> Result<T, Stop> {
    Err(Stop { at: at.to_owned(), why: why.into() })
}

/// A host's kernel, read.
struct Kernel<'l> {
    lab: &'l Lab,
    name: &'l str,
    netns: Netns,
    netlink: Netlink,
}

impl<'l> Kernel<'l> {
    fn of_host(lab: &'l Lab, name: &'l str) -> Result<Kernel<'l>, Stop> {
        let netns =
            Netns::open(lab.netns(name)).map_err(|error| Stop { at: name.into(), why: error.to_string() })?;
        Kernel::new(lab, name, netns)
    }

    fn of_container(lab: &'l Lab, one: &'l Container) -> Result<Kernel<'l>, Stop> {
        let Some(netns) = &one.netns else {
            return stop(&one.name, format!("it does not run ({})", one.status));
        };
        let netns =
            Netns::open(netns).map_err(|error| Stop { at: one.name.clone(), why: error.to_string() })?;
        Kernel::new(lab, &one.name, netns)
    }

    fn new(lab: &'l Lab, name: &'l str, netns: Netns) -> Result<Kernel<'l>, Stop> {
        let netlink =
            Netlink::open_in(&netns).map_err(|error| Stop { at: name.to_owned(), why: error.to_string() })?;
        Ok(Kernel { lab, name, netns, netlink })
    }

    /// The packet stops here.
    fn stop<T>(&self, why: impl fmt::Display) -> Result<T, Stop> {
        stop(self.name, why.to_string())
    }

    /// The packet stops here, and this is what may be behind it.
    fn stop_and_hint<T>(&self, why: impl fmt::Display) -> Result<T, Stop> {
        let hint = match self.lab.plan.host(self.name) {
            Ok(host) if daemons::agent_of(self.lab, host).pid().is_none() => " (its agent does not run)",
            _ => "",
        };
        stop(self.name, format!("{why}{hint}"))
    }

    fn ask<T>(&mut self, what: impl FnOnce(&mut Netlink) -> net::Result<T>) -> Result<T, Stop> {
        what(&mut self.netlink).map_err(|error| Stop { at: self.name.to_owned(), why: error.to_string() })
    }

    /// The link and next hop towards an address.
    fn towards(&mut self, ip: IpAddr) -> Result<(Link, Option<IpAddr>), Stop> {
        let route = self.ask(|netlink| netlink.route_towards(ip))?;
        let Some((index, gw)) = route.and_then(|route| Some((route.oif?, route.gw))) else {
            return self.stop_and_hint(format_args!("no route to {ip}"));
        };
        match self.ask(|netlink| netlink.link_at(index))? {
            Some(link) => Ok((link, gw)),
            None => self.stop(format_args!("the route to {ip} has no interface")),
        }
    }

    fn needs_up(&self, link: &Link) -> Result<(), Stop> {
        if link.up { Ok(()) } else { self.stop(format_args!("{} is down", link.name)) }
    }
}

/// Follows a packet from one end to another's address. None: no hop was found that stops it.
pub fn walk(lab: &Lab, from: Place<'_>, to: Place<'_>, ip: IpAddr) -> Option<Stop> {
    one_way(lab, from, to, ip).err()
}

fn one_way(lab: &Lab, from: Place<'_>, to: Place<'_>, ip: IpAddr) -> Result<(), Stop> {
    routed(lab, from, to, ip)?;
    // Last, as rules that are not Weft's may accept it.
    let mut forwarding = Vec::new();
    if let Place::Container(one) = from {
        forwarding.push(one.host.as_str());
    }
    if let Place::Container(one) = to
        && !forwarding.contains(&one.host.as_str())
        && from.host() != one.host
    {
        forwarding.push(&one.host);
    }
    forwarding.into_iter().try_for_each(|host| forwarded(lab, host, from, ip))
}

/// Whether other programs on a host let it forward packets between these.
fn forwarded(lab: &Lab, host: &str, from: Place<'_>, ip: IpAddr) -> Result<(), Stop> {
    let host = Kernel::of_host(lab, host)?;
    let sources: Vec<IpAddr> = match from {
        Place::Container(one) => one.ends.iter().flat_map(|end| &end.addresses).map(|net| net.ip()).collect(),
        Place::Host(one) => one.addresses.iter().map(|net| net.ip()).collect(),
    };
    let refusing = host.netns.run(|| forward::refusing(&sources, ip));
    let refusing = refusing.and_then(|refusing| refusing).unwrap_or_default();
    match refusing.first() {
        Some(chain) => host.stop_and_hint(format_args!(
            "the forward chain `{chain}` has the policy drop, and no rule of the agent's there accepts packets to {ip}"
        )),
        None => Ok(()),
    }
}

/// The routes, links and neighbours on the way.
fn routed(lab: &Lab, from: Place<'_>, to: Place<'_>, ip: IpAddr) -> Result<(), Stop> {
    if let Place::Container(one) = to
        && !one.runs()
    {
        return stop(&one.name, format!("it does not run ({})", one.status));
    }
    if let Place::Container(one) = from {
        leave(lab, one, ip)?;
    }
    let mut host = Kernel::of_host(lab, from.host())?;
    match to {
        Place::Host(remote) => over_the_underlay(lab, &mut host, remote, ip),
        Place::Container(one) => {
            if one.host != host.name {
                let remote = lab
                    .plan
                    .host(&one.host)
                    .map_err(|error| Stop { at: one.host.clone(), why: error.to_string() })?;
                between_hosts(lab, &mut host, remote, ip)?;
            }
            arrive(lab, one, ip)
        }
    }
}

/// Out of a container, to its host.
fn leave(lab: &Lab, one: &Container, ip: IpAddr) -> Result<(), Stop> {
    let mut inside = Kernel::of_container(lab, one)?;
    let (link, _) = inside.towards(ip)?;
    inside.needs_up(&link)?;
    let mut host = Kernel::of_host(lab, &one.host)?;
    let Some(end) = one.ends.iter().find(|end| end.ifname == link.name) else { return Ok(()) };
    let family = Family::of(ip);
    let index = link.index;
    let own = inside.ask(|netlink| netlink.addrs(Some(index)))?;
    if let Some(wanted) = end.addresses.iter().find(|net| Family::of(net.ip()) == family)
        && !own.iter().any(|addr| addr.net.ip() == wanted.ip())
    {
        return inside.stop(format_args!("{} has not the address {}", link.name, wanted.ip()));
    }
    match host.ask(|netlink| netlink.link(&end.veth))? {
        Some(link) => host.needs_up(&link),
        None => host.stop(format_args!("{}, the link of {}, is gone", end.veth, one.name)),
    }
}

/// From a host to the one that the address is on.
fn between_hosts(lab: &Lab, host: &mut Kernel<'_>, remote: &Machine, ip: IpAddr) -> Result<(), Stop> {
    let (link, gw) = host.towards(ip)?;
    host.needs_up(&link)?;
    if link.name == UPLINK {
        // Without encapsulation.
        let next = gw.unwrap_or(ip);
        if !remote.addresses.iter().any(|net| net.ip() == next) {
            return host
                .stop_and_hint(format_args!("the route to {ip} is by {next}, which is not {}", remote.name));
        }
        return over_the_underlay(lab, host, remote, next);
    }
    if link.kind.as_deref() != Some("vxlan") {
        return host
            .stop_and_hint(format_args!("the route to {ip} is by {}, which is no overlay's", link.name));
    }
    let (index, next) = (link.index, gw.unwrap_or(ip));
    let neighbours = host.ask(|netlink| netlink.neighs(Some(index)))?;
    let Some(mac) = neighbours.iter().find(|neigh| neigh.ip == next).and_then(|neigh| neigh.mac) else {
        return host.stop_and_hint(format_args!("{} has no neighbour {next}", link.name));
    };
    let entries = host.ask(|netlink| netlink.fdb(Some(index)))?;
    let Some(vtep) = entries.iter().filter(|entry| entry.mac == mac).find_map(|entry| entry.dst) else {
        let mac = net::mac_text(mac);
        return host.stop_and_hint(format_args!(
            "{} does not know the host of {mac} (no forwarding entry)",
            link.name
        ));
    };
    if !remote.addresses.iter().any(|net| net.ip() == vtep) {
        return host
            .stop_and_hint(format_args!("{} sends to {vtep}, which is not {}", link.name, remote.name));
    }
    over_the_underlay(lab, host, remote, vtep)?;
    received(lab, host, remote, &link, vtep)
}

/// Over the underlay to a host's address there.
fn over_the_underlay(lab: &Lab, host: &mut Kernel<'_>, remote: &Machine, ip: IpAddr) -> Result<(), Stop> {
    for name in [host.name, &remote.name] {
        if live::link_word(lab, name) != "up" {
            return stop(name, format!("its link to the underlay is {}", live::link_word(lab, name)));
        }
    }
    let manner = Manner { count: 2, timeout: Duration::from_millis(500) };
    if icmp::answers(&host.netns, ip, manner).unwrap_or(false) {
        return Ok(());
    }
    host.stop(format_args!("{} ({ip}) does not answer on the underlay", remote.name))
}

/// Whether a host takes the packets that another one's VXLAN device sends.
fn received(
    lab: &Lab,
    host: &mut Kernel<'_>,
    remote: &Machine,
    sent_by: &Link,
    vtep: IpAddr,
) -> Result<(), Stop> {
    let mut there = Kernel::of_host(lab, &remote.name)?;
    let Some(device) = there.ask(|netlink| netlink.link(&sent_by.name))? else {
        return there.stop_and_hint(format_args!("it has no {}", sent_by.name));
    };
    there.needs_up(&device)?;
    let (Some(ours), Some(theirs)) = (&sent_by.vxlan, &device.vxlan) else { return Ok(()) };
    if theirs.local.is_some_and(|local| local != vtep) {
        return there.stop_and_hint(format_args!(
            "{} listens at {}, not at {vtep}",
            device.name,
            theirs.local.map(|ip| ip.to_string()).unwrap_or_default()
        ));
    }
    if (ours.vni, ours.port) != (theirs.vni, theirs.port) {
        return there.stop_and_hint(format_args!(
            "{} has another VNI or port than that of {}",
            device.name, host.name
        ));
    }
    let Some(sender) = ours.local else { return Ok(()) };
    let vni = ours.vni;
    let takes = there.netns.run(|| OverlayTable::open().and_then(|mut table| table.takes(vni, sender)));
    if let Ok(Ok(Some(false))) = takes {
        return there.stop_and_hint(format_args!("its packet filter does not know {} ({sender})", host.name));
    }
    Ok(())
}

/// Into a container, on its host.
fn arrive(lab: &Lab, one: &Container, ip: IpAddr) -> Result<(), Stop> {
    let mut host = Kernel::of_host(lab, &one.host)?;
    let (link, _) = host.towards(ip)?;
    let Some(end) = one.ends.iter().find(|end| end.addresses.iter().any(|net| net.ip() == ip)) else {
        return stop(&one.name, format!("{ip} is not its address"));
    };
    if link.name != end.veth {
        return host
            .stop_and_hint(format_args!("the route to {ip} is by {}, not by {}", link.name, end.veth));
    }
    host.needs_up(&link)?;
    let mut inside = Kernel::of_container(lab, one)?;
    let Some(link) = inside.ask(|netlink| netlink.link(&end.ifname))? else {
        return inside.stop(format_args!("it has no {}", end.ifname));
    };
    inside.needs_up(&link)?;
    let index = link.index;
    let own = inside.ask(|netlink| netlink.addrs(Some(index)))?;
    if !own.iter().any(|addr| addr.net.ip() == ip) {
        return inside.stop(format_args!("{} has not the address {ip}", end.ifname));
    }
    Ok(())
}
