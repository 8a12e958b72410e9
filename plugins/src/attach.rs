//! A container's interface: a veth pair in one exchange with the kernel, then everything inside the container in another;
//! and its removal.

use crate::errors::{Coded, EXISTS, Failures, mismatch};
use crate::firewall;
use cni::Error;
use cni::request::Request;
use cni::types::{Interface, Route as RouteConf};
use ipnetwork::IpNetwork;
use net::dead::Caller;
use net::names::clip_network;
use net::sysctl::InterfaceConf;
use net::{
    Batch, DEAD_GROUP, Family, Link, LinkConf, LinkSet, Netlink, Netns, NewAddr, Owner, PortSet, Route, Veth,
    dead, mac_text, sysctl,
};
use std::fmt::Display;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::IpAddr;
use std::time::Duration;

/// A random hardware address, locally administered. Links get theirs with their creation: one that the kernel chose would
/// be replaced behind our back by udev's MACAddressPolicy, and a bridge's would change with its ports.
pub fn random_mac() -> [u8; 6] {
    // Seeded by getrandom(2).
    let [a, b, c, d, e, f, ..] = RandomState::new().build_hasher().finish().to_ne_bytes();
    [(a & 0xfc) | 0x02, b, c, d, e, f]
}

/// What the pair is to be.
pub struct Wanted<'a> {
    /// Who it is for.
    pub owner: &'a Owner,
    /// The container's namespace.
    pub netns: &'a Netns,
    /// Its path, as results name it.
    pub sandbox: Option<String>,
    /// The container's hardware address.
    pub mac: [u8; 6],
    /// MTU of both ends in bytes; `None`: the kernel's choice.
    pub mtu: Option<u32>,
    /// The bridge that the host's end is a port of; `None`: it is routed.
    pub master: Option<u32>,
    /// The device group of the host's end.
    pub group: Option<u32>,
    /// How it is a port.
    pub port: PortSet,
}

/// A pair that was made.
pub struct Pair {
    /// The index of the host's end, in the host.
    pub host: u32,
    /// The index of the container's end, in the container.
    pub container: u32,
    /// The hardware address of the host's end.
    pub host_mac: [u8; 6],
    /// The settings of the container's end.
    pub conf: LinkConf,
    /// Both ends as results have them.
    pub interfaces: [Interface; 2],
}

/// What is open in the container.
pub struct Inside {
    /// The kernel's socket.
    pub netlink: Netlink,
    /// The interfaces' settings of IPv6; `None`: there are none, or they cannot be looked up.
    ipv6: Option<InterfaceConf>,
    /// Those of the host. The second look-up in a row takes a fraction of the first one's time.
    host_ipv6: Option<InterfaceConf>,
}

/// Opens the kernel's socket in the container, and its settings, before anything is changed.
///
/// # Errors
/// Code 103 when the interface exists already.
pub fn open_container(netns: &Netns, ifname: &str) -> Result<Inside, Error> {
    let open = || (Netlink::open(), InterfaceConf::open(Family::V6));
    let (netlink, ipv6) = netns.run(open).coded()?;
    let mut netlink = netlink.coded()?;
    // What cannot be looked up cannot be written either, which is reported where it is needed.
    let (ipv6, host_ipv6) = (ipv6.unwrap_or_default(), InterfaceConf::open(Family::V6).unwrap_or_default());
    if netlink.link(ifname).coded()?.is_some() {
        // A DEL that was not told the namespace could not rename this end; its other end waits among the dead.
        dead::reap(&mut Netlink::open().coded()?).coded()?;
        if netlink.link(ifname).coded()?.is_some() {
            return Err(Error::new(EXISTS, format!("the container has an interface {ifname} already")));
        }
    }
    Ok(Inside { netlink, ipv6, host_ipv6 })
}

/// Fails when the name of the host's end is in use by a link that is not this attachment's: two attachments can have the
/// same name by a collision of hashes. Nothing has been changed yet.
///
/// # Errors
/// Code 103, naming the link and its label.
pub fn check_name(host: &mut Netlink, owner: &Owner) -> Result<(), Error> {
    check_owner(host.link(&owner.host_veth()).coded()?, owner)
}

/// As [`check_name`], of the link that was found.
pub fn check_owner(found: Option<Link>, owner: &Owner) -> Result<(), Error> {
    match found {
        Some(link) if link.alias.as_deref() != Some(&owner.alias()) => Err(name_in_use(&link)),
        _ => Ok(()),
    }
}

fn name_in_use(link: &Link) -> Error {
    let label = link.alias.as_deref().map_or("without a label".into(), |alias| format!("labelled {alias:?}"));
    Error::new(EXISTS, format!("the host has another link {} already, {label}", link.name))
        .details("the name follows from network, container ID and interface; use another container ID")
}

/// The attachment's link on the host, for CHECK.
///
/// # Errors
/// Code 105 when there is none, or one with another label.
pub fn need_host_link(host: &mut Netlink, owner: &Owner) -> Result<Link, Error> {
    let name = owner.host_veth();
    let missing = || mismatch(format!("the host's link {name} does not exist"));
    let link = host.link(&name).coded()?.ok_or_else(missing)?;
    if link.alias.as_deref() != Some(&owner.alias()) {
        let alias = link.alias.unwrap_or_default();
        return Err(mismatch(format!(
            "the host's link {name} has the label {alias:?}, not {:?}",
            owner.alias()
        )));
    }
    Ok(link)
}

/// Makes the pair: the host's end up and in its bridge, the container's end down.
pub fn make_pair(netlink: &mut Netlink, inside: &mut Inside, wanted: &Wanted<'_>) -> Result<Pair, Error> {
    let name = wanted.owner.host_veth();
    let alias = wanted.owner.alias();
    let (mac, peer_mac) = (random_mac(), wanted.mac);
    let veth = Veth {
        mac: Some(mac),
        peer_mac: Some(peer_mac),
        mtu: wanted.mtu,
        master: wanted.master,
        group: wanted.group,
        alias: Some(&alias),
        port: wanted.port,
        ..Veth::new(&name, &wanted.owner.ifname, wanted.netns)
    };
    let far = match netlink.create_veth_towards(&veth, &mut inside.netlink) {
        // The container has no such interface, so what has our name is left of an attachment that died half-way.
        Err(error) if error.is_existing() => {
            check_name(netlink, wanted.owner)?;
            dead::detach(netlink, &name, &alias, None, "").coded()?;
            netlink.create_veth_towards(&veth, &mut inside.netlink)
        }
        made => made,
    };
    let far = far.coded()?;
    // Before the container's end is up. What a bridge's port receives is the bridge's.
    match ignore_routers(inside.host_ipv6.as_ref(), &name) {
        Err(error) if wanted.master.is_none() => return Err(error),
        _ => {}
    }
    let interface = |name: &str, mac, sandbox| Interface {
        name: name.to_owned(),
        mac: Some(mac_text(mac)),
        sandbox,
        ..Interface::default()
    };
    let container = interface(&wanted.owner.ifname, peer_mac, wanted.sandbox.clone());
    Ok(Pair {
        host: far.peer_index.unwrap_or_default(),
        container: far.index,
        host_mac: mac,
        conf: far.conf,
        interfaces: [interface(&name, mac, None), container],
    })
}

/// What a container's interface does about router advertisements, which any neighbour can send (CVE-2020-10749).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Routers {
    /// What the kernel does by default: the container's routes are not Weft's.
    #[default]
    Kernel,
    /// Takes nothing from them, and without IPv6 addresses and routes has IPv6 off.
    Ignored,
    /// As `Ignored`, but no ADD fails where /proc/sys is read-only.
    IgnoredIfPossible,
}

impl Routers {
    /// What becomes of a setting that was refused.
    fn outcome(self, set: Result<(), Error>) -> Result<(), Error> {
        if self != Routers::IgnoredIfPossible {
            return set;
        }
        optional(set);
        Ok(())
    }
}

/// What the container's interface gets.
#[derive(Default)]
pub struct Settings<'a> {
    /// Its addresses.
    pub addresses: &'a [IpNetwork],
    /// The container's routes, each with its next hop.
    pub routes: &'a [RouteConf],
    /// Whether duplicate addresses are looked for.
    pub dad: bool,
    /// No route to its subnet comes with an address.
    pub no_prefix_routes: bool,
    /// What the interface does about router advertisements.
    pub routers: Routers,
    /// Its link-local address is the one that is made from its hardware address, whatever the namespace's default is.
    pub link_local_by_mac: bool,
    /// The settings that the interface has: what is right is not written.
    pub conf: LinkConf,
    /// Neighbours that need not be asked for their hardware address.
    pub neighbours: &'a [(IpAddr, [u8; 6])],
    /// The kernel is asked for the interface at the end, so that it acts on its carrier at once and not in the background:
    /// until then IPv6 sends nothing.
    pub at_once: bool,
}

/// Brings the container's interface up and gives it addresses and routes: everything in one exchange.
pub fn configure(
    netns: &Netns,
    inside: &mut Inside,
    ifname: &str,
    index: u32,
    settings: &Settings<'_>,
) -> Result<(), Error> {
    // Looking anything up below /proc/sys/net costs more with every namespace in which that was done before (they share one
    // directory cache), so what is right already is not written. Netlink takes none of these settings.
    let ipv6 = inside.ipv6.as_ref();
    if settings.addresses.iter().any(IpNetwork::is_ipv6) {
        if ipv6.is_none_or(|conf| prepare_by(conf, ifname, settings).is_err()) {
            netns.run(|| prepare(ifname, settings)).coded()??;
        }
    } else if settings.routers != Routers::Kernel && settings.conf.ipv6_off == Some(false) {
        // Routes of IPv6 need it, with or without an address.
        let has_routes = settings.routes.iter().any(|route| route.dst.is_ipv6());
        let values: &[_] = if has_routes { &IGNORE_ROUTERS } else { &[("disable_ipv6", "1")] };
        if ipv6.is_none_or(|conf| conf.write(ifname, values).is_err()) {
            settings.routers.outcome(netns.run(|| set_all_ipv6(ifname, values)).coded()?)?;
        }
    }
    let mut batch = Batch::new();
    for &net in settings.addresses {
        // With IPv6 an address without NODAD cannot be used for a second or two.
        let noprefixroute = settings.no_prefix_routes;
        batch.addr_add(index, &NewAddr { nodad: !settings.dad, noprefixroute, ..NewAddr::new(net) });
    }
    if settings.link_local_by_mac && settings.addresses.iter().any(IpNetwork::is_ipv6) {
        batch.set(index, &LinkSet { no_link_local: Some(false), ..LinkSet::default() });
    }
    batch.set(index, &LinkSet { up: Some(true), arp_notify: Some(true), ..LinkSet::default() });
    for &(ip, mac) in settings.neighbours {
        batch.neigh_replace(index, ip, mac);
    }
    for route in settings.routes {
        let kernel = kernel_route(index, route);
        match route.gw {
            // Beside the same route by another interface, as a second network's default route: each stays as long as its own.
            Some(_) => batch.route_append(&kernel).or_existing(),
            // The route to an address's own subnet comes with the address; asking for it again is no error.
            None => batch.route_add(&kernel).or_existing(),
        };
    }
    if settings.at_once {
        batch.lookup(ifname);
    }
    inside.netlink.run(batch).coded()?;
    Ok(())
}

/// So long the kernel may take to act on the container's IPv6 addresses.
const PATIENCE: Duration = Duration::from_secs(2);

/// The last of an ADD: from here on nothing that is sent to the container's addresses is lost. No ADD fails by it: the
/// kernel has the addresses, and will act on them sooner or later.
pub fn settle(container: &mut Netlink, addresses: &[IpNetwork]) {
    let _ = container.wait_until_local(addresses.iter().map(|net| net.ip()), PATIENCE);
}

/// Brings both ends up before the container's has an address, for an IPAM plugin that sends by it.
pub fn bring_up(host: &mut Netlink, container: &mut Netlink, pair: &Pair) -> Result<(), Error> {
    container.set(pair.container, &LinkSet { up: Some(true), ..LinkSet::default() }).coded()?;
    // Asked for the link, the kernel acts on its carrier first, and the port forwards.
    host.link(&pair.interfaces[0].name).coded().map(drop)
}

/// Announces the addresses from the container's link: gratuitous ARP, and unsolicited neighbour advertisements. Neighbours
/// that know an address with an earlier container's hardware address would send to that one for half a minute.
///
/// The kernel does so when a link's hardware address is set, if only to itself (`arp_notify` and `ndisc_notify`, which
/// [`configure`] has set). It forgets the link's neighbours then. No ADD fails by it. It takes 4 µs for each port of the
/// bridge, as the packets are flooded and received while the caller waits.
pub fn announce(container: &mut Netlink, index: u32, mac: [u8; 6], addresses: &[IpNetwork]) {
    if addresses.is_empty() {
        return;
    }
    if let Err(error) = container.set(index, &LinkSet { mac: Some(mac), ..LinkSet::default() }) {
        eprintln!("cannot announce the container's addresses: {error}");
    }
}

/// Goes on without a setting that is not needed for the container's traffic, as where /proc/sys is read-only.
pub fn optional<T, E: Display>(set: Result<T, E>) {
    if let Err(error) = set {
        eprintln!("going on without it: {error}");
    }
}

/// What keeps a link from taking anything from router advertisements.
const IGNORE_ROUTERS: [(&str, &str); 2] = [("accept_ra", "0"), ("autoconf", "0")];

/// The settings of IPv6 that the kernel takes only through /proc: those that the container needs, and the others.
fn of_ipv6(settings: &Settings<'_>) -> [Vec<(&'static str, &'static str)>; 3] {
    let on = (settings.conf.ipv6_off != Some(false)).then_some(("disable_ipv6", "0"));
    let ignores = settings.routers != Routers::Kernel && settings.conf.hears_routers == Some(true);
    let ignores = ignores.then_some(IGNORE_ROUTERS).into_iter().flatten();
    let mut others = vec![("keep_addr_on_down", "1"), ("ndisc_notify", "1")];
    others.extend(settings.dad.then_some(("enhanced_dad", "1")));
    others.push(("accept_dad", if settings.dad { "1" } else { "0" }));
    [on.into_iter().collect(), ignores.collect(), others]
}

/// Makes the settings of IPv6.
fn prepare_by(conf: &InterfaceConf, ifname: &str, settings: &Settings<'_>) -> net::Result<()> {
    conf.write("lo", &[("disable_ipv6", "0")])?;
    conf.write(ifname, &of_ipv6(settings).concat())
}

/// As [`prepare_by`], one by one, where one was refused, as with a read-only /proc/sys; this thread is in the container.
fn prepare(ifname: &str, settings: &Settings<'_>) -> Result<(), Error> {
    let [on, ignores, others] = of_ipv6(settings);
    set_ipv6("lo", "disable_ipv6", "0")?;
    set_all_ipv6(ifname, &on)?;
    settings.routers.outcome(set_all_ipv6(ifname, &ignores))?;
    others.iter().for_each(|(key, value)| optional(set_ipv6(ifname, key, value)));
    Ok(())
}

/// Gives a setting a value, which it may have already where /proc/sys is read-only.
fn set_ipv6(ifname: &str, key: &str, value: &str) -> Result<(), Error> {
    let key = sysctl::conf(Family::V6, ifname, key);
    sysctl::write_if_there(&key, value).or_else(|_| sysctl::set_if_there(&key, value).map(drop)).coded()
}

/// As [`sysctl::ignore_routers`], for a link that was made just now: what it has is not read.
fn ignore_routers(conf: Option<&InterfaceConf>, link: &str) -> Result<(), Error> {
    match conf.map(|conf| conf.write(link, &IGNORE_ROUTERS)) {
        Some(Ok(())) => Ok(()),
        _ => set_all_ipv6(link, &IGNORE_ROUTERS),
    }
}

/// As [`set_ipv6`], for several settings.
fn set_all_ipv6(ifname: &str, values: &[(&str, &str)]) -> Result<(), Error> {
    values.iter().try_for_each(|(key, value)| set_ipv6(ifname, key, value))
}

/// A route as the kernel gets it.
pub fn kernel_route(index: u32, route: &RouteConf) -> Route {
    Route {
        oif: Some(index),
        gw: route.gw,
        mtu: route.mtu,
        advmss: route.advmss,
        priority: route.priority,
        // 0 is "unspecified", which the kernel takes for the main table.
        table: route.table,
        scope: route.scope,
        ..Route::to(route.dst)
    }
}

/// Takes the veth of an attachment out of service, if it exists, and has it deleted.
pub fn remove(owner: &Owner, netns: &Netns) -> Result<(), Error> {
    let mut netlink = Netlink::open().coded()?;
    if dead::detach(&mut netlink, &owner.host_veth(), &owner.alias(), Some(netns), &owner.ifname).coded()? {
        firewall::finish(None, Caller::ChangesLinks)?;
    }
    Ok(())
}

/// Takes the links of the network's stale attachments out of service (GC), and says whose they were. `links` are those of
/// this namespace.
pub fn sweep(host: &mut Netlink, links: &[Link], request: &Request, failures: &mut Failures) -> Vec<Owner> {
    let network = clip_network(&request.conf.name);
    let valid = firewall::valid(request);
    let mut swept = Vec::new();
    for link in links {
        let Some(alias) = link.alias.as_deref() else { continue };
        let Some(owner) = Owner::parse_alias(alias) else { continue };
        if link.group != DEAD_GROUP && owner.network == network && !valid(&owner.container, &owner.ifname) {
            eprintln!("network {}: link {} of {} removed", request.conf.name, link.name, owner.tag());
            failures.note(dead::detach(host, &link.name, alias, None, &owner.ifname).coded().map(drop));
            swept.push(owner);
        }
    }
    swept
}

/// What the child of a DEL that was killed left behind is deleted soon; an ADD, which looks for it, does not wait for that.
pub fn reap(plugin: &str, host: &mut Netlink) {
    match dead::remain(host) {
        Ok(true) => reap_found(),
        Ok(false) => {}
        Err(error) => eprintln!("{plugin}: {error}"),
    }
}

/// As [`reap`], where something was found.
pub fn reap_found() {
    drop(firewall::finish(None, Caller::Unknown));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_hardware_addresses_are_local_and_unicast() {
        for _ in 0..100 {
            assert_eq!(random_mac()[0] & 3, 2);
        }
        assert_ne!(random_mac(), random_mac());
    }
}
