//! The network between the hosts: a bridge in a namespace of its own, and a link from it to each machine. The machine that
//! the lab runs on gets no link, address or route.

use std::net::IpAddr;

use anyhow::{Context, Result};
use net::{Batch, Bridge, Family, LinkSet, Netlink, Netns, NewAddr, Route, Veth};

use super::dirs::{Lab, UNDERLAY};
use super::plan::Machine;

/// The bridge.
pub const BRIDGE: &str = "underlay";
/// A machine's link to the underlay.
pub const UPLINK: &str = "eth0";

/// Makes the namespaces of all machines, and connects them.
///
/// # Errors
/// The kernel refuses.
pub fn make(lab: &Lab) -> Result<()> {
    let (underlay, mtu) = (&lab.plan.underlay, lab.plan.underlay.mtu);
    let netns = Netns::create(lab.netns(UNDERLAY))?;
    let mut netlink = Netlink::open_in(&netns)?;
    netlink.loopback_up()?;
    let bridge =
        netlink.create_bridge(&Bridge { name: BRIDGE, mtu: Some(mtu), up: true, ..Bridge::default() })?;
    let mut batch = Batch::new();
    for net in underlay.gateways() {
        batch.addr_add(bridge.index, &NewAddr { nodad: true, ..NewAddr::new(net) });
    }
    netlink.run(batch)?;
    let mut ends = Vec::new();
    for machine in lab.plan.machines() {
        let end = connect(lab, machine, &mut netlink, bridge.index);
        ends.push((machine, end.with_context(|| format!("cannot connect {}", machine.name))?));
    }
    introduce(&mut ends)
}

/// A machine's end of its link: a socket in its namespace, the index and the hardware address.
struct End {
    netlink: Netlink,
    index: u32,
    mac: [u8; 6],
}

/// Tells all machines each other's hardware addresses. Those that they would find out by themselves have to fit into the
/// kernel's one table for all namespaces, which takes 1,024 (net.ipv4.neigh.default.gc_thresh3): a lab of 32 hosts fills it.
fn introduce(ends: &mut [(&Machine, End)]) -> Result<()> {
    let all: Vec<(IpAddr, [u8; 6])> = ends
        .iter()
        .flat_map(|(machine, end)| machine.addresses.iter().map(|net| (net.ip(), end.mac)))
        .collect();
    for (machine, end) in ends {
        let others = all.iter().filter(|(ip, _)| !machine.addresses.iter().any(|net| net.ip() == *ip));
        // In parts, so that the kernel's answers fit into the socket's buffer.
        for part in others.collect::<Vec<_>>().chunks(100) {
            let mut batch = Batch::new();
            batch.call(end.index, UPLINK);
            for (ip, mac) in part {
                batch.neigh_replace(end.index, *ip, *mac);
            }
            end.netlink.run(batch)?;
        }
    }
    Ok(())
}

fn connect(lab: &Lab, machine: &Machine, underlay: &mut Netlink, bridge: u32) -> Result<End> {
    let mtu = lab.plan.underlay.mtu;
    let netns = Netns::create(lab.netns(&machine.name))?;
    let mut netlink = Netlink::open_in(&netns)?;
    let veth = Veth { mtu: Some(mtu), master: Some(bridge), ..Veth::new(&machine.name, UPLINK, &netns) };
    let uplink = underlay.create_veth_towards(&veth, &mut netlink)?;
    let mut batch = Batch::new();
    batch.call(uplink.index, UPLINK);
    batch.set("lo", &LinkSet { up: Some(true), ..LinkSet::default() });
    for net in &machine.addresses {
        batch.addr_add(uplink.index, &NewAddr { nodad: true, ..NewAddr::new(*net) });
    }
    batch.set(uplink.index, &LinkSet { up: Some(true), ..LinkSet::default() });
    for gateway in lab.plan.underlay.gateways() {
        let family = Family::of(gateway.ip());
        batch.route_add(&Route::via(family.default_net(), gateway.ip(), uplink.index));
    }
    netlink.run(batch)?;
    let mac = uplink.mac.with_context(|| format!("{UPLINK} has no hardware address"))?;
    Ok(End { netlink, index: uplink.index, mac })
}

/// Takes a machine's link down, or up again, at the side of the bridge: the machine sees that it has no carrier.
///
/// # Errors
/// The kernel refuses, or the lab's namespaces are not there.
pub fn set_link(lab: &Lab, machine: &str, up: bool) -> Result<()> {
    let mut netlink = Netlink::open_in(&Netns::open(lab.netns(UNDERLAY))?)?;
    netlink.set(machine, &LinkSet { up: Some(up), ..LinkSet::default() })?;
    Ok(())
}

/// Whether a machine's link is up at the side of the bridge.
///
/// # Errors
/// The kernel refuses, or the lab's namespaces are not there.
pub fn link_is_up(lab: &Lab, machine: &str) -> Result<bool> {
    let mut netlink = Netlink::open_in(&Netns::open(lab.netns(UNDERLAY))?)?;
    Ok(netlink.need_link(machine)?.up)
}
