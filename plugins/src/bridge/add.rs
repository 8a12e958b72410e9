//! ADD: everything is opened and checked; then lease, bridge, link, firewall, each undone when a later one fails.

use super::conf::Conf;
use super::lock::BridgeLock;
use super::result::{complete, kernel_routes};
use super::{link, vlan};
use crate::attach::{self, Settings, Wanted, random_mac};
use crate::errors::Coded;
use crate::firewall::{self, Backend, owner};
use crate::ipam_client::{self, Ipam};
use crate::netns;
use crate::rollback::Rollback;
use cni::Error;
use cni::request::Request;
use cni::types::{AddResult, Interface};
use ipnetwork::IpNetwork;
use net::firewall::{Firewall, nft::Nftables};
use net::{Batch, Link, Netlink, Owner, PortSet, sysctl};
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
    let mut container = attach::open_container(&netns, &request.ifname)?;
    attach::check_name(&mut host, &owner)?;
    // From now on nobody removes the bridge.
    let lock = BridgeLock::shared()?;
    let found = link::inspect(&mut host, &conf)?;
    let mut firewall = conf.masquerade.map(|backend| backend.open()).transpose()?;

    rollback.on_failure("the addresses", || ipam_client::del(request));
    let mut result = match ipam.add(request) {
        Ok(result) => result,
        Err(error) => {
            // Nothing was given, and a second ADD of a container must not take the first one's address away.
            rollback.keep();
            return Err(error);
        }
    };
    let gateways = if ipam.is_some() { complete(&mut result, &conf)? } else { Vec::new() };
    result.check_version(request.conf.version)?;
    let addresses: Vec<IpNetwork> = result.ips.iter().map(|ip| ip.address).collect();

    let (bridge, made) = link::ensure(&mut host, &conf, found)?;
    if made {
        rollback.on_failure("the bridge", || remove_bridge(&conf));
    }
    let gateway_link = vlan::gateway_link(&mut host, &conf, &bridge)?;
    link::ensure_addresses(&mut host, &gateway_link, &gateways, conf.force_address)?;
    forwarding(&gateways)?;

    let mac = conf.mac.unwrap_or_else(random_mac);
    if conf.mac_spoof_check {
        // By name, so that no frame passes unwatched.
        rollback.on_failure("the watch on its port", || unwatch(&owner));
        watch(&owner, mac)?;
    }
    rollback.on_failure("the link", || attach::remove(&owner, &netns));
    let wanted = Wanted {
        owner: &owner,
        netns: &netns,
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
    };
    let pair = attach::make_pair(&mut host, &mut container, &wanted)?;
    vlan::set_port(&mut host, &conf, pair.host)?;
    let mut batch = Batch::new();
    if !conf.disable_container_interface {
        let index = pair.container;
        let routes = kernel_routes(&result);
        let settings =
            Settings { addresses: &addresses, routes: &routes, dad: conf.dad, ..Settings::default() };
        attach::configure(&netns, &mut container, &request.ifname, index, &settings)?;
        // The kernel acts on a new carrier in the background; asked for the link, it does so first. Then the port forwards,
        // the bridge sends, and the container's first packets are not lost.
        batch.lookup(&pair.interfaces[0].name);
    }
    // A bridge that Weft did not make may have another hardware address now that it has another port.
    let bridge_now = batch.lookup(&bridge.name);
    let bridge = host.run(batch).coded()?.link(bridge_now).unwrap_or(bridge);
    if conf.dad && !conf.disable_container_interface {
        container.wait_for_dad(pair.container, DAD_PATIENCE).coded()?;
    }
    drop(lock);

    if let Some(firewall) = &mut firewall {
        rollback.on_failure("the masquerading", || {
            conf.masquerade.map_or(Ok(()), |backend| backend.open()?.unmasquerade(&owner, &[]).coded())
        });
        firewall.masquerade(&owner, &addresses).coded()?;
        firewall::release(firewall.as_ref());
    }
    if conf.same_bridge {
        Backend::Nftables.open()?.guard(&conf.bridge).coded()?;
    }
    let interface =
        |link: &Link| Interface { name: link.name.clone(), mac: link.mac_text(), ..Interface::default() };
    result.interfaces = vec![interface(&bridge)];
    result.interfaces.extend(pair.interfaces);
    if gateway_link.index != bridge.index && !gateways.is_empty() {
        result.interfaces.push(interface(&gateway_link));
    }
    if !request.conf.dns.is_empty() {
        result.dns = request.conf.dns.clone();
    }
    if !conf.disable_container_interface {
        attach::settle(&mut container, &addresses);
    }
    rollback.keep();
    attach::bury("bridge", &mut host);
    Ok(result)
}

/// The host forwards packets of the families for which it is the gateway.
fn forwarding(gateways: &[IpNetwork]) -> Result<(), Error> {
    if gateways.iter().any(IpNetwork::is_ipv4) {
        sysctl::set("net/ipv4/ip_forward", "1").coded()?;
    }
    if gateways.iter().any(IpNetwork::is_ipv6) {
        sysctl::set("net/ipv6/conf/all/forwarding", "1").coded()?;
    }
    Ok(())
}

/// Has the kernel drop what does not come from this address.
fn watch(owner: &Owner, mac: [u8; 6]) -> Result<(), Error> {
    let watched =
        Nftables::open().and_then(|mut nft| nft.watch(owner, mac).map(|()| firewall::release(&nft)));
    match watched {
        Err(lacking @ net::Error::Unsupported(_)) => {
            Err(Error::unsupported_field("macspoofchk", true).details(lacking.to_string()))
        }
        watched => watched.coded(),
    }
}

fn unwatch(owner: &Owner) -> Result<(), Error> {
    let mut nft = Nftables::open().coded()?;
    nft.unwatch(owner).and_then(|()| nft.tidy()).coded()
}

/// Takes back a bridge that only this ADD wanted.
fn remove_bridge(conf: &Conf) -> Result<(), Error> {
    link::remove_if_unused(&mut Netlink::open().coded()?, conf).map(drop)
}
