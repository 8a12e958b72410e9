//! ADD: everything is opened and checked; then lease, bridge, link, firewall, each undone when a later one fails.

use super::conf::Conf;
use super::lock::BridgeLock;
use super::result::{complete, kernel_routes};
use super::{link, sources, vlan};
use crate::attach::{self, Routers, Settings, Wanted, random_mac};
use crate::errors::Coded;
use crate::firewall::{self, Backend, owner};
use crate::ipam_client::{self, Given, Ipam};
use crate::netns;
use crate::rollback::Rollback;
use crate::rules;
use cni::Error;
use cni::request::Request;
use cni::types::{AddResult, Interface};
use ipnetwork::IpNetwork;
use net::firewall::Firewall;
use net::firewall::forward::{self, Traffic};
use net::firewall::nft::{Content, Kind, Nftables};
use net::names::BRIDGE_ALIAS;
use net::{Batch, Family, Link, Netlink, Netns, Owner, PortSet, dead, sysctl};
use std::time::Duration;

/// How long duplicate address detection may take; the kernel needs one to two seconds.
const DAD_PATIENCE: Duration = Duration::from_secs(10);

/// Serves an ADD.
pub fn add(request: &Request) -> Result<AddResult, Error> {
    let conf = Conf::of(request)?;
    let ipam = Ipam::of(request)?;
    if !ipam.is_some() {
        AddResult::default().check_version(request.conf.version)?;
    }
    let netns = netns::open(request)?;
    let owner = owner(request);
    // What is declared after it is gone when it undoes: the lock, above all.
    let mut rollback = Rollback::new();
    let mut host = Netlink::open().coded()?;
    rules::identify(&host);
    let mut container = attach::open_container(&netns, &request.ifname)?;
    // From now on nobody removes the bridge.
    let lock = BridgeLock::shared()?;
    let mut batch = Batch::new();
    let (of_name, of_bridge) = (batch.lookup(&owner.host_veth()), batch.lookup(&conf.bridge));
    let found = host.run(batch).coded()?;
    attach::check_owner(found.link(of_name), &owner)?;
    let found = link::check_found(found.link(of_bridge), &conf)?;
    let iptables = conf.masquerade.filter(|backend| *backend != Backend::Nftables);
    let mut firewall = iptables.map(|backend| backend.open()).transpose()?;

    let mut lease = Lease::default();
    if !ipam.needs_link() {
        lease = Lease::take(request, &ipam, &conf, &mut rollback)?;
    }
    if found.is_none() {
        rollback.on_failure("the bridge", || remove_bridge(&conf));
    }
    let bridge = link::ensure(&mut host, &conf, found)?;
    let mut gateway = lease.put_gateways(&mut host, &conf, &bridge, &mut rollback)?;

    let mac = conf.mac.unwrap_or_else(random_mac);
    if conf.mac_spoof_check || conf.port_isolation {
        // By name, so that no frame passes unwatched.
        rollback.on_failure("the watch on its port", || {
            rules::forget(request, &[Kind::Watch]);
            sources::unwatch(&owner)
        });
        sources::watch(request, &conf, mac, sources::bound(&conf, &ipam, mac, &lease.addresses))?;
    }
    rollback.on_failure("the bridge's rules", firewall::forget_bridges);
    rollback.on_failure("the link", || attach::remove(&owner, &netns));
    let pair =
        attach::make_pair(&mut host, &mut container, &wanted(request, &conf, &owner, &netns, &bridge, mac))?;
    vlan::set_port(&mut host, &conf, pair.host)?;
    if ipam.needs_link() {
        attach::bring_up(&mut host, &mut container.netlink, &pair)?;
        lease = Lease::take(request, &ipam, &conf, &mut rollback)?;
        gateway = lease.put_gateways(&mut host, &conf, &bridge, &mut rollback)?;
        sources::watch(request, &conf, mac, sources::bound(&conf, &ipam, mac, &lease.addresses))?;
    }
    let Lease { mut result, addresses, gateways, is_new } = lease;
    let mut batch = Batch::new();
    if !conf.disable_container_interface {
        let index = pair.container;
        let routes = kernel_routes(&result);
        let settings = Settings {
            addresses: &addresses,
            routes: &routes,
            dad: conf.dad,
            routers: routers(&ipam),
            link_local_by_mac: conf.port_isolation && !ipam.needs_link(),
            conf: pair.conf,
            ..Settings::default()
        };
        attach::configure(&netns, &mut container, &request.ifname, index, &settings)?;
        // The kernel acts on a new carrier in the background; asked for the link, it does so first. Then the port forwards,
        // the bridge sends, and the container's first packets are not lost.
        batch.lookup(&pair.interfaces[0].name);
    }
    let is_ours = bridge.alias.as_deref() == Some(BRIDGE_ALIAS);
    // A bridge that Weft did not make may have another hardware address now that it has another port.
    let bridge_now = (!is_ours).then(|| batch.lookup(&bridge.name));
    let facing = gateway.as_ref().map_or(bridge.index, |link| link.index);
    let known = addresses.iter().map(|address| batch.neigh_lookup(facing, address.ip()));
    let known: Vec<_> = known.collect();
    let dead = dead::look_for(&mut batch);
    let found = host.run(batch).coded()?;
    let are_dead = dead::are_found(&found, dead);
    let is_unknown = known.into_iter().all(|ticket| found.is_unknown(ticket));
    let bridge = bridge_now.and_then(|ticket| found.link(ticket)).unwrap_or(bridge);
    if conf.dad && !conf.disable_container_interface {
        container.netlink.wait_for_dad(pair.container, DAD_PATIENCE).coded()?;
    }
    rollback.on_failure("the masquerading", || {
        rules::forget(request, &[Kind::Link]);
        conf.masquerade.map_or(Ok(()), |backend| firewall::unmasquerade(backend, &owner))
    });
    filter(request, &conf, &owner, gateway.as_ref().unwrap_or(&bridge), &addresses)?;
    drop(lock);
    if let Some(firewall) = &mut firewall {
        firewall.masquerade_except(&owner, &addresses, &conf.exceptions).coded()?;
        firewall::release(firewall.as_ref());
    }
    let interface =
        |link: &Link| Interface { name: link.name.clone(), mac: link.mac_text(), ..Interface::default() };
    result.interfaces = vec![interface(&bridge)];
    if !conf.disable_container_interface {
        attach::settle(&mut container.netlink, &addresses);
        // A bridge that Weft made has had no neighbours but those of its attachments.
        if !(is_ours && is_new && is_unknown) {
            attach::announce(&mut container.netlink, pair.container, mac, &addresses);
        }
    }
    result.interfaces.extend(pair.interfaces);
    if let Some(leg) = gateway.filter(|link| link.index != bridge.index && !gateways.is_empty()) {
        result.interfaces.push(interface(&leg));
    }
    if !request.conf.dns.is_empty() {
        result.dns = request.conf.dns.clone();
    }
    rollback.keep();
    if are_dead {
        attach::reap_found();
    }
    Ok(result)
}

/// Whether a neighbour container could be the container's router. Without an IPAM, or with one that uses the link, as DHCP
/// does, its addresses and routes may come from machines on the bridge.
fn routers(ipam: &Ipam<'_>) -> Routers {
    if ipam.is_some() && !ipam.needs_link() { Routers::IgnoredIfPossible } else { Routers::Kernel }
}

/// What the IPAM gave.
#[derive(Default)]
struct Lease {
    /// The result, completed.
    result: AddResult,
    /// The container's addresses.
    addresses: Vec<IpNetwork>,
    /// The addresses that the bridge must have.
    gateways: Vec<IpNetwork>,
    /// No attachment had the addresses before.
    is_new: bool,
}

impl Lease {
    /// Asks the IPAM for addresses, if there is one.
    fn take<'a>(
        request: &'a Request,
        ipam: &Ipam<'_>,
        conf: &Conf,
        rollback: &mut Rollback<'a>,
    ) -> Result<Lease, Error> {
        rollback.on_failure("the addresses", || ipam_client::del(request));
        // Nothing was given when it fails, and a second ADD of a container must not take the first one's address away.
        let Given { mut result, is_new } = ipam.add(request).inspect_err(|_| rollback.withdraw())?;
        let gateways = if ipam.is_some() { complete(&mut result, conf)? } else { Vec::new() };
        result.check_version(request.conf.version)?;
        let addresses = result.ips.iter().map(|ip| ip.address).collect();
        Ok(Lease { result, addresses, gateways, is_new })
    }

    /// Gives the bridge, or its leg in the VLAN, the gateways' addresses, and has the host forward. Returns the link that
    /// has them, if there are any.
    fn put_gateways<'a>(
        &self,
        host: &mut Netlink,
        conf: &'a Conf,
        bridge: &Link,
        rollback: &mut Rollback<'a>,
    ) -> Result<Option<Link>, Error> {
        if self.gateways.is_empty() {
            return Ok(None);
        }
        rollback.on_failure("the bridge's leg in the VLAN", || vlan::remove_leg(conf));
        let link = vlan::gateway_link(host, conf, bridge)?;
        let change = link::plan_addresses(host, &link, &self.gateways, conf.force_address)?;
        let (index, added) = (link.index, change.add.clone());
        rollback.on_failure("the gateway's addresses", move || link::withdraw_addresses(conf, index, &added));
        link::change_addresses(host, &link, change)?;
        forwarding(host, &self.gateways)?;
        Ok(Some(link))
    }
}

fn wanted<'a>(
    request: &Request,
    conf: &Conf,
    owner: &'a Owner,
    netns: &'a Netns,
    bridge: &Link,
    mac: [u8; 6],
) -> Wanted<'a> {
    Wanted {
        owner,
        netns,
        sandbox: netns::sandbox(request),
        mac,
        mtu: conf.mtu,
        master: Some(bridge.index),
        group: None,
        port: PortSet {
            hairpin: conf.hairpin.then_some(true),
            isolated: conf.port_isolation.then_some(true),
            ..PortSet::default()
        },
    }
}

/// The host forwards packets of the families for which it is the gateway.
fn forwarding(host: &mut Netlink, gateways: &[IpNetwork]) -> Result<(), Error> {
    let families = [
        (Family::V4, gateways.iter().any(IpNetwork::is_ipv4), "net/ipv4/ip_forward"),
        (Family::V6, gateways.iter().any(IpNetwork::is_ipv6), "net/ipv6/conf/all/forwarding"),
    ];
    // Asked for by netlink, as a look-up in /proc/sys takes longer.
    let mut batch = Batch::new();
    let needed = families.into_iter().filter(|(_, is_needed, _)| *is_needed);
    let asked: Vec<_> = needed.map(|(family, _, key)| (batch.forwarding(family), key)).collect();
    let found = host.run(batch).coded()?;
    for (ticket, key) in asked {
        if found.forwarding(ticket) != Some(true) {
            sysctl::set(key, "1").coded()?;
        }
    }
    Ok(())
}

/// Puts the bridge under its rules, and masquerades with nftables what that is to. A kernel without nftables has no such
/// rules; only what the configuration asks for by name is an error there.
fn filter(
    request: &Request,
    conf: &Conf,
    owner: &Owner,
    link: &Link,
    addresses: &[IpNetwork],
) -> Result<(), Error> {
    let (masqueraded, bridge) = (conf.masqueraded(addresses), conf.rules_now(link));
    let is_asked = !masqueraded.is_empty() || bridge.guarded || bridge.closed;
    let accepts = conf.is_gateway && conf.forward_accept;
    let content = Content::Link {
        masqueraded: masqueraded.to_vec(),
        except: bridge.except.clone(),
        bridge: Some(bridge.clone()),
        forward: accepts,
    };
    if masqueraded.is_empty() && !bridge.has_any() {
        rules::restore();
    }
    rules::record(request, content, None);
    let attached = rules::nftables().and_then(|mut nft| {
        let attached = nft.attach_bridge(owner, masqueraded, &bridge);
        // The chain that appears or changes most is iptables'; others are asked for with a bridge's first attachment.
        let asks = attached.and_then(|is_new| Ok(accepts && (is_new || nft.iptables_drops()?)));
        firewall::release(&nft);
        asks
    });
    let asks = match attached {
        Err(net::Error::Unsupported(_)) if !is_asked => accepts,
        attached => attached.coded()?,
    };
    if asks {
        forward::accept(&link.name, &[Traffic::Link(link.name.clone())]).coded()?;
    }
    Ok(())
}

/// Removes a bridge that this ADD alone needed.
fn remove_bridge(conf: &Conf) -> Result<(), Error> {
    let wait = Duration::from_millis(200);
    if link::remove_if_unused(&mut Netlink::open().coded()?, conf, wait)? && conf.same_bridge {
        Nftables::open().and_then(|mut nft| nft.unguard(&conf.bridge).and_then(|()| nft.tidy())).coded()?;
    }
    Ok(())
}
