//! Does what a plan says: devices one by one, all else in batches.

use std::collections::BTreeMap;
use std::net::IpAddr;

use net::route::{Family, Route, SCOPE_LINK, UNREACHABLE};
use net::{Batch, LinkSet, Netlink, NewAddr, Vxlan, sysctl};
use ovl_api::names::ROUTE_PROTOCOL;

use crate::objects::{AddrRole, Dev, Device, MIN_MTU_V6, RouteKey, Target};
use crate::plan::{DeviceChange, LinkChange, Op, Setting, Step};

/// How many changes go into one send. The kernel works through them holding the lock on all of its networking, and keeps a
/// refusal for each that it refuses in a buffer of 212,992 bytes, where one takes some 800.
const CHUNK: usize = 200;

/// Why a step could not be done: its place in the plan, and the kernel's words.
pub type Refused = (usize, net::Error);

/// Does the steps. `links` are the indices of the links that there are, and is kept up to date. What is refused is returned,
/// and the rest done. What is on a device that could not be made is passed over.
///
/// # Errors
/// When the kernel cannot be talked to.
pub fn apply(
    netlink: &mut Netlink,
    links: &mut BTreeMap<Dev, u32>,
    steps: &[Step],
) -> net::Result<Vec<Refused>> {
    let mut refused = Vec::new();
    let mut batch = Pending::default();
    for (number, Step { op, replaces }) in steps.iter().enumerate() {
        match op {
            Op::DeleteDevice(dev) => {
                links.remove(dev);
                batch.add(number, |batch| batch.link_del(&**dev).or_missing());
            }
            Op::CreateDevice(dev, device) => {
                batch.send(netlink, &mut refused)?;
                match create(netlink, dev, device) {
                    Ok(index) => drop(links.insert(dev.clone(), index)),
                    Err(error) => {
                        links.remove(dev);
                        refused.push((number, error));
                    }
                }
            }
            Op::ChangeDevice(dev, device, change) => {
                let Some(index) = links.get(dev) else { continue };
                batch.batch.call(*index, dev);
                change_device(&mut batch, number, *index, device, change);
            }
            Op::Set(dev, setting) => {
                // Another program may have been as quick, and the link may be gone.
                batch.send(netlink, &mut refused)?;
                refused.extend(change_setting(dev, *setting).err().map(|error| (number, error)));
            }
            op => rest(&mut batch, number, op, *replaces, links),
        }
        if batch.batch.len() >= CHUNK {
            batch.send(netlink, &mut refused)?;
        }
    }
    batch.send(netlink, &mut refused)?;
    Ok(refused)
}

/// A batch under way, and which step each of its messages belongs to.
#[derive(Default)]
struct Pending {
    batch: Batch,
    steps: Vec<usize>,
}

impl Pending {
    fn add(&mut self, step: usize, fill: impl FnOnce(&mut Batch) -> &mut Batch) {
        fill(&mut self.batch);
        self.steps.resize(self.batch.len(), step);
    }

    fn send(&mut self, netlink: &mut Netlink, refused: &mut Vec<Refused>) -> net::Result<()> {
        let Pending { batch, steps } = std::mem::take(self);
        if batch.is_empty() {
            return Ok(());
        }
        let (_, failures) = netlink.run_each(batch)?;
        refused.extend(failures.into_iter().filter_map(|(number, error)| Some((*steps.get(number)?, error))));
        Ok(())
    }
}

/// Makes a device, and sets what the kernel is to do with what comes in by it.
fn create(netlink: &mut Netlink, dev: &Dev, device: &Device) -> net::Result<u32> {
    // Below that MTU a device has no IPv6 of which something could be set.
    let ipv6 = net::probe::ipv6() && device.mtu >= MIN_MTU_V6;
    let link = netlink.create_vxlan(&Vxlan {
        name: dev,
        vni: device.vni,
        local: device.local,
        port: device.port,
        learning: false,
        zero_checksum6: false,
        mac: Some(device.mac),
        mtu: Some(device.mtu),
        group: device.group,
        alias: Some(&device.alias),
        // The only link-local address is the one that other hosts compute, and it needs no duplicate address detection.
        no_link_local: ipv6,
        // The settings below come first: an IPv6 that is off lets no address in, and one that is on would look for routers.
        up: false,
    })?;
    forward(device.ipv6)?;
    if device.ipv6 {
        // The host may have IPv6 off for new interfaces (net.ipv6.conf.default.disable_ipv6).
        sysctl::set(&sysctl::conf(Family::V6, dev, "disable_ipv6"), "0")?;
    }
    // Also in a network without IPv6: the kernel hears routers by any interface that has IPv6 on.
    sysctl::ignore_routers(dev)?;
    netlink.run_one(|batch| {
        batch.call(link.index, dev).set(link.index, &LinkSet { up: Some(true), ..LinkSet::default() })
    })?;
    Ok(link.index)
}

/// Has the host forward packets between its containers and other hosts; returns the settings that were off. It stays so: others
/// may have come to rely on it. Reverse path filtering (rp_filter) needs no change: what comes from a block comes by the link
/// that the block's route leads to, also with direct routing.
///
/// # Errors
/// When a setting is off and cannot be changed.
pub fn forward(ipv6: bool) -> net::Result<Vec<&'static str>> {
    let keys = ["net/ipv4/ip_forward"].into_iter().chain(ipv6.then_some("net/ipv6/conf/all/forwarding"));
    let changed = keys.map(|key| Ok((key, sysctl::set(key, "1")?)));
    changed.filter_map(|outcome| outcome.map(|(key, changed)| changed.then_some(key)).transpose()).collect()
}

fn change_setting(dev: &Dev, setting: Setting) -> net::Result<()> {
    let set = |family, key, value| sysctl::set_if_there(&sysctl::conf(family, dev, key), value);
    match setting {
        Setting::Forward4 => set(Family::V4, "forwarding", "1"),
        Setting::IgnoreRouters => sysctl::ignore_routers(dev),
        Setting::Ipv6On => set(Family::V6, "disable_ipv6", "0"),
    }
    .map(drop)
}

fn change_device(batch: &mut Pending, number: usize, index: u32, device: &Device, change: &DeviceChange) {
    let DeviceChange { mac, mtu, group, alias, learning, up, master } = *change;
    if learning {
        batch.add(number, |batch| batch.vxlan_learning(index, false));
    }
    let set = LinkSet {
        mac: mac.then_some(device.mac),
        mtu: mtu.then_some(device.mtu),
        group: group.then_some(device.group),
        alias: alias.then_some(&device.alias),
        master: master.then_some(0),
        ..LinkSet::default()
    };
    batch.add(number, |batch| batch.set(index, &set));
    if up {
        batch.add(number, |batch| batch.set(index, &LinkSet { up: Some(true), ..LinkSet::default() }));
    }
}

/// Adds what is on a link that is there, or on none.
fn rest(pending: &mut Pending, number: usize, op: &Op, replaces: bool, links: &BTreeMap<Dev, u32>) {
    let dev = match op {
        Op::ChangeLink(dev, _)
        | Op::SetAddr(dev, ..)
        | Op::DelAddr(dev, _)
        | Op::SetNeigh(dev, ..)
        | Op::DelNeigh(dev, _)
        | Op::SetForward(dev, ..)
        | Op::DelForward(dev, ..) => Some(dev),
        Op::SetRoute(_, target) | Op::DelRoute(_, target) => target.dev(),
        Op::DeleteDevice(_) | Op::CreateDevice(..) | Op::ChangeDevice(..) | Op::Set(..) => return,
    };
    let index = match dev {
        Some(dev) => match links.get(dev) {
            Some(index) => {
                pending.batch.call(*index, dev);
                *index
            }
            None => return,
        },
        None => 0,
    };
    pending.add(number, |batch| match op {
        Op::ChangeLink(_, LinkChange { group, mac, mtu, alias, up, master }) => {
            let set = LinkSet {
                group: *group,
                mac: *mac,
                mtu: *mtu,
                alias: alias.as_deref(),
                master: master.then_some(0),
                up: up.then_some(true),
                ..LinkSet::default()
            };
            batch.set(index, &set)
        }
        Op::SetAddr(_, net, role) => {
            if replaces {
                // Another scope stands there, or its local route is gone, which no replacement changes.
                batch.addr_del(index, *net).or_missing();
            }
            // The link-local prefix' route is what `ping fe80::…%vx-…` takes.
            let local = matches!(net.ip(), IpAddr::V6(ip) if ip.is_unicast_link_local());
            let never_source = *role == AddrRole::Shared;
            batch.addr_replace(index, &NewAddr { noprefixroute: !local, never_source, ..NewAddr::new(*net) })
        }
        Op::DelAddr(_, net) => batch.addr_del(index, *net).or_missing(),
        Op::SetNeigh(_, ip, mac) => batch.neigh_replace(index, *ip, *mac),
        Op::DelNeigh(_, ip) => batch.neigh_del(index, *ip).or_missing(),
        Op::SetForward(_, mac, forward) => match forward.ip {
            Some(ip) => batch.fdb_remote(index, *mac, ip, forward.port),
            None => batch.fdb_replace(index, *mac, None),
        },
        Op::DelForward(_, mac, forward) => match forward.ip {
            Some(ip) => batch.fdb_remote_del(index, *mac, ip, forward.port),
            None => batch.fdb_del(index, *mac, None),
        }
        .or_missing(),
        Op::SetRoute(key, target) => batch.route_replace(&route(key, target, index)),
        Op::DelRoute(key, target) => batch.route_del(&route(key, target, index)).or_missing(),
        Op::DeleteDevice(_) | Op::CreateDevice(..) | Op::ChangeDevice(..) | Op::Set(..) => batch,
    });
}

fn route(key: &RouteKey, target: &Target, oif: u32) -> Route {
    let plain = Route {
        priority: Some(key.metric).filter(|metric| *metric != 0),
        protocol: ROUTE_PROTOCOL,
        ..Route::to(key.dst)
    };
    match target {
        Target::Unreachable => Route { kind: UNREACHABLE, ..plain },
        Target::Other(kind) => Route { kind: *kind, ..plain },
        Target::Dev { gw, src, onlink, .. } => {
            let scope = (gw.is_none() && key.dst.is_ipv4()).then_some(SCOPE_LINK);
            Route { gw: *gw, oif: Some(oif), src: *src, onlink: *onlink, scope, ..plain }
        }
    }
}
