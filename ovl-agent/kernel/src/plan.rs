//! What to do about the difference between what is wanted and what is there. Pure.
//!
//! Order: devices first (those that go, those that are made anew, those that change), then everything that is missing or
//! differs, each in the place of what it replaces, then deletions. So a route never points to what is not there yet, and
//! nothing that stays wanted is ever missing in between, unless its device must be made anew.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use net::{LinkConf, Vxlanning};

use crate::objects::{AddrRole, Dev, Device, Forward, MIN_MTU_V6, Mac, Objects, RouteKey, Target};

/// A link as it is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shown {
    /// Its index; 0 when it does not matter.
    pub index: u32,
    /// What it is as a VXLAN device.
    pub vxlan: Option<Vxlanning>,
    /// It is up.
    pub up: bool,
    /// Its device group.
    pub group: u32,
    /// Its hardware address.
    pub mac: Option<Mac>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its alias.
    pub alias: String,
    /// A VXLAN device that Weft made, which may be deleted.
    pub ours: bool,
    /// The index of the bridge (bond, VRF …) that it is a port of.
    pub master: Option<u32>,
    /// Its settings; what is None is not looked at.
    pub conf: LinkConf,
    /// A container's link that is down, and not because it is being made or removed.
    pub left_down: bool,
    /// What a container's link was made with, where that is known.
    pub made: Option<Made>,
}

/// What a container's link was made with by whoever attached the container: the container knows its other end by that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// Its hardware address.
    pub mac: Option<Mac>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its alias.
    pub alias: String,
}

/// What is there, as far as it may be ours: the lists in the order of their keys.
#[derive(Debug, Clone, Default)]
pub struct Dumped {
    /// Links: our devices, the wanted ones, the containers', the underlay's.
    pub links: BTreeMap<Dev, Shown>,
    /// Addresses of those.
    pub addrs: Vec<((Dev, IpNetwork), AddrRole)>,
    /// Permanent neighbours of those.
    pub neighs: Vec<((Dev, IpAddr), Mac)>,
    /// Forwarding entries of the VXLAN devices among them, several of a key where somebody appended.
    pub forwards: Vec<((Dev, Mac), Forward)>,
    /// Routes with our protocol in the main table.
    pub routes: Vec<(RouteKey, Target)>,
}

/// A change of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Deletes a VXLAN device, and with it all that is on it.
    DeleteDevice(Dev),
    /// Makes a VXLAN device.
    CreateDevice(Dev, Device),
    /// Changes settings of a device.
    ChangeDevice(Dev, Device, DeviceChange),
    /// Changes a container's link back.
    ChangeLink(Dev, LinkChange),
    /// Changes a setting of a link.
    Set(Dev, Setting),
    /// Gives a link an address.
    SetAddr(Dev, IpNetwork, AddrRole),
    /// Enters a neighbour.
    SetNeigh(Dev, IpAddr, Mac),
    /// Enters a forwarding entry.
    SetForward(Dev, Mac, Forward),
    /// Sets a route.
    SetRoute(RouteKey, Target),
    /// Removes a route.
    DelRoute(RouteKey, Target),
    /// Removes a forwarding entry.
    DelForward(Dev, Mac, Forward),
    /// Removes a neighbour.
    DelNeigh(Dev, IpAddr),
    /// Takes an address from a link.
    DelAddr(Dev, IpNetwork),
}

/// Which settings of a device are to be changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)] // each is the setting of that name
pub struct DeviceChange {
    pub mac: bool,
    pub mtu: bool,
    pub group: bool,
    pub alias: bool,
    pub learning: bool,
    pub up: bool,
    /// It leaves the bridge that it is a port of.
    pub master: bool,
}

/// What of a container's link is to be changed, and to what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs)] // each is the setting of that name
pub struct LinkChange {
    pub group: Option<u32>,
    pub mac: Option<Mac>,
    pub mtu: Option<u32>,
    pub alias: Option<String>,
    pub up: bool,
    /// It leaves the bridge that it is a port of.
    pub master: bool,
}

/// A setting of a link that is to be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// Forwards IPv4.
    Forward4,
    /// Takes nothing from router advertisements.
    IgnoreRouters,
    /// Has IPv6.
    Ipv6On,
}

/// A step of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What to do.
    pub op: Op,
    /// Another value stands in that place.
    pub replaces: bool,
}

/// What is to be done, in this order.
pub type Plan = Vec<Step>;

/// Compares. What is wanted on a link that is neither there nor about to be made is passed over.
pub fn plan(wanted: &Objects, dumped: &Dumped) -> Plan {
    let mut planner = Planner { wanted, dumped, steps: Vec::new(), gone: BTreeSet::new() };
    let new_mac = planner.devices();
    let usable = planner.usable();
    planner.rest(&usable, &new_mac);
    planner.steps
}

impl Dumped {
    /// What is there when just that is, all without an index.
    pub fn showing(objects: &Objects) -> Dumped {
        let shown = |device: &Device| Shown {
            index: 0,
            vxlan: Some(Vxlanning {
                vni: device.vni,
                local: Some(device.local),
                port: device.port,
                ..Vxlanning::default()
            }),
            up: true,
            group: device.group,
            mac: Some(device.mac),
            mtu: device.mtu,
            alias: device.alias.clone(),
            ours: true,
            ..Shown::default()
        };
        Dumped {
            links: objects.devices.iter().map(|(dev, device)| (dev.clone(), shown(device))).collect(),
            addrs: listed(&objects.addrs),
            neighs: listed(&objects.neighs),
            forwards: listed(&objects.forwards),
            routes: listed(&objects.routes),
        }
    }
}

fn listed<K: Clone, V: Clone>(map: &BTreeMap<K, V>) -> Vec<(K, V)> {
    map.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}

struct Planner<'a> {
    wanted: &'a Objects,
    dumped: &'a Dumped,
    steps: Plan,
    /// Devices that are deleted, some of them to be made anew.
    gone: BTreeSet<Dev>,
}

impl Planner<'_> {
    fn push(&mut self, op: Op, replaces: bool) {
        self.steps.push(Step { op, replaces });
    }

    /// Plans the devices; returns those that get another hardware address, at which the kernel forgets their neighbours.
    fn devices(&mut self) -> BTreeSet<Dev> {
        let (mut made, mut new_mac) = (Vec::new(), BTreeSet::new());
        for (dev, shown) in &self.dumped.links {
            let wanted = self.wanted.devices.get(dev);
            if shown.ours && wanted.is_none_or(|wanted| !same_device(wanted, shown)) {
                self.gone.insert(dev.clone());
                // Before any is made: a VNI may go from one network to another.
                self.push(Op::DeleteDevice(dev.clone()), wanted.is_some());
            }
        }
        for (dev, wanted) in &self.wanted.devices {
            let shown = self.dumped.links.get(dev).filter(|_| !self.gone.contains(dev));
            match shown {
                // Not ours and in the way: the kernel refuses, and says why.
                Some(shown) if !same_device(wanted, shown) => made.push((dev, wanted, true)),
                Some(shown) => {
                    let change = DeviceChange::between(wanted, shown);
                    if change != DeviceChange::default() {
                        new_mac.extend(change.mac.then(|| dev.clone()));
                        self.push(Op::ChangeDevice(dev.clone(), wanted.clone(), change), true);
                    }
                    self.settings(dev, shown, wanted.ipv6);
                }
                None => made.push((dev, wanted, self.gone.contains(dev))),
            }
        }
        for (dev, wanted, replaces) in made {
            self.push(Op::CreateDevice(dev.clone(), wanted.clone()), replaces);
        }
        for (dev, group) in &self.wanted.links {
            let Some(shown) = self.dumped.links.get(dev).filter(|shown| shown.is_usable()) else { continue };
            let change = LinkChange::between(*group, shown);
            if change != LinkChange::default() {
                new_mac.extend(change.mac.map(|_| dev.clone()));
                self.push(Op::ChangeLink(dev.clone(), change), true);
            }
            let ipv6 = self.wanted.addrs.range((dev.clone(), IpAddr::from([0; 4]).into())..);
            let ipv6 = ipv6.take_while(|((on, _), _)| on == dev).any(|((_, net), _)| net.is_ipv6());
            self.settings(dev, shown, ipv6);
        }
        new_mac
    }

    fn settings(&mut self, dev: &Dev, shown: &Shown, ipv6: bool) {
        for setting in settings(shown, ipv6) {
            self.push(Op::Set(dev.clone(), setting), true);
        }
    }

    /// Links on which something can be set.
    fn usable(&self) -> BTreeSet<Dev> {
        // Our devices are brought up; of others that is not ours to do, and on one that is down there are no routes.
        let devices = self.wanted.devices.keys();
        let others = self.dumped.links.iter().filter(|(_, shown)| shown.is_usable() && !shown.ours);
        devices.chain(others.map(|(dev, _)| dev)).cloned().collect()
    }

    fn rest(&mut self, usable: &BTreeSet<Dev>, new_mac: &BTreeSet<Dev>) {
        let (wanted, dumped, gone) = (self.wanted, self.dumped, &self.gone);
        let (mut sets, mut dels) = (Vec::new(), Vec::new());
        let mut set = |op, replaces| sets.push(Step { op, replaces });
        // Deletions in reverse: routes, then what they go by.
        let mut del = |op| dels.push(Step { op, replaces: false });
        let on = |dev: &Dev| usable.contains(dev);
        let stays = |dev: &Dev| !gone.contains(dev);
        let own = |dev: &Dev| dumped.links.get(dev).is_some_and(|shown| shown.vxlan.is_some());

        // Addresses that go with their device take the routes with them that have them as source.
        let lost = dumped.addrs.iter().filter(|((dev, _), _)| !stays(dev)).map(|((_, net), _)| net.ip());
        let lost: BTreeSet<IpAddr> = lost.collect();
        let mut replaced = BTreeSet::new();

        let there = dumped.addrs.iter().filter(|((dev, _), _)| stays(dev));
        let found = compare(wanted.addrs.iter().filter(|((dev, _), _)| on(dev)), there);
        for ((dev, net), role, replaces) in found.set {
            set(Op::SetAddr(dev.clone(), *net, *role), replaces);
            // It is removed first, and routes lose their source with it.
            replaced.extend(replaces.then(|| net.ip()));
        }
        for ((dev, net), _) in found.del.into_iter().filter(|((dev, _), _)| own(dev)) {
            del(Op::DelAddr(dev.clone(), *net));
        }

        let there = dumped.neighs.iter().filter(|((dev, _), _)| stays(dev) && !new_mac.contains(dev));
        let found = compare(wanted.neighs.iter().filter(|((dev, _), _)| on(dev)), there);
        for ((dev, ip), mac, replaces) in found.set {
            set(Op::SetNeigh(dev.clone(), *ip, *mac), replaces);
        }
        for ((dev, ip), _) in found.del {
            del(Op::DelNeigh(dev.clone(), *ip));
        }

        let there = dumped.forwards.iter().filter(|((dev, _), _)| stays(dev));
        let found = compare(wanted.forwards.iter().filter(|((dev, _), _)| on(dev)), there);
        for ((dev, mac), forward, replaces) in found.set {
            set(Op::SetForward(dev.clone(), *mac, forward.clone()), replaces);
        }
        for ((dev, mac), forward) in found.del {
            del(Op::DelForward(dev.clone(), *mac, forward.clone()));
        }

        let lives = |target: &Target| match target {
            Target::Dev { dev, src, .. } => stays(dev) && src.is_none_or(|src| !lost.contains(&src)),
            _ => true,
        };
        let there = dumped.routes.iter().filter(|(_, target)| lives(target));
        let wanted = || wanted.routes.iter().filter(|(_, target)| target.dev().is_none_or(on));
        let found = compare(wanted(), there);
        let again =
            |target: &&Target| matches!(target, Target::Dev { src: Some(src), .. } if replaced.contains(src));
        let again: Vec<_> = wanted().filter(|(_, target)| again(target)).collect();
        let again = again.iter().filter(|(key, _)| !found.set.iter().any(|(set, ..)| set == key));
        for (key, target) in again {
            set(Op::SetRoute(**key, (*target).clone()), true);
        }
        for (key, target, replaces) in &found.set {
            set(Op::SetRoute(**key, (*target).clone()), *replaces);
        }
        for (key, target) in found.del {
            del(Op::DelRoute(*key, target.clone()));
        }
        dels.reverse();
        self.steps.append(&mut sets);
        self.steps.append(&mut dels);
    }
}

/// What [`compare`] found.
struct Difference<'a, K, V> {
    /// Missing or different: the key, the wanted value, and whether another stands there.
    set: Vec<(&'a K, &'a V, bool)>,
    /// Not wanted.
    del: Vec<(&'a K, &'a V)>,
}

/// Compares two lists in the order of their keys. `there` may have several values of a key: one that is as wanted suffices,
/// and the others are deleted.
fn compare<'a, K: Ord, V: PartialEq>(
    wanted: impl Iterator<Item = (&'a K, &'a V)>,
    there: impl Iterator<Item = &'a (K, V)>,
) -> Difference<'a, K, V> {
    let mut difference = Difference { set: Vec::new(), del: Vec::new() };
    let mut wanted = wanted.peekable();
    let mut there = there.peekable();
    while let Some((key, value)) = wanted.peek().copied() {
        let (mut good, mut others) = (false, Vec::new());
        while let Some((found, shown)) = there.next_if(|(found, _)| found <= key) {
            match found.cmp(key) {
                Ordering::Less => difference.del.push((found, shown)),
                _ if !good && shown == value => good = true,
                _ => others.push((found, shown)),
            }
        }
        if !good {
            difference.set.push((key, value, !others.is_empty()));
            // The kernel replaces the first of several, so one alone needs no deletion.
            if others.len() == 1 {
                others.clear();
            }
        }
        difference.del.append(&mut others);
        wanted.next();
    }
    difference.del.extend(there.map(|(key, value)| (key, value)));
    difference
}

/// True when a device is the wanted one by what cannot be changed. One that lost its IPv6 to a small MTU would get it back with
/// the kernel's defaults.
fn same_device(wanted: &Device, shown: &Shown) -> bool {
    shown.vxlan.is_some_and(|vxlan| {
        let Vxlanning { vni, local, port, external, is_altered, .. } = vxlan;
        let lost_ipv6 = wanted.ipv6 && shown.mtu < MIN_MTU_V6;
        !external
            && !is_altered
            && !lost_ipv6
            && (vni, local, port) == (wanted.vni, Some(wanted.local), wanted.port)
    })
}

/// True when a device is the wanted one, with all its settings.
pub fn is_as_wanted(wanted: &Device, shown: &Shown) -> bool {
    same_device(wanted, shown)
        && DeviceChange::between(wanted, shown) == DeviceChange::default()
        && settings(shown, wanted.ipv6).next().is_none()
}

/// True when a container's link is in its group, as it was made, and has its settings.
pub fn is_as_made(group: u32, ipv6: bool, shown: &Shown) -> bool {
    LinkChange::between(group, shown) == LinkChange::default() && settings(shown, ipv6).next().is_none()
}

/// The settings that differ.
fn settings(shown: &Shown, ipv6: bool) -> impl Iterator<Item = Setting> + use<> {
    let LinkConf { forwarding4, hears_routers, ipv6_off, .. } = shown.conf;
    let found = [
        (Setting::Ipv6On, ipv6 && ipv6_off == Some(true)),
        (Setting::IgnoreRouters, hears_routers == Some(true)),
        (Setting::Forward4, forwarding4 == Some(false)),
    ];
    found.into_iter().filter(|(_, differs)| *differs).map(|(setting, _)| setting)
}

impl Shown {
    /// It is up, or is to be.
    fn is_usable(&self) -> bool {
        self.up || self.left_down
    }
}

impl DeviceChange {
    fn between(wanted: &Device, shown: &Shown) -> DeviceChange {
        DeviceChange {
            mac: shown.mac != Some(wanted.mac),
            mtu: shown.mtu != wanted.mtu,
            group: shown.group != wanted.group,
            alias: shown.alias != wanted.alias,
            learning: shown.vxlan.is_some_and(|vxlan| vxlan.learning),
            up: !shown.up,
            master: shown.master.is_some(),
        }
    }
}

impl LinkChange {
    fn between(group: u32, shown: &Shown) -> LinkChange {
        let made = shown.made.as_ref();
        LinkChange {
            group: Some(group).filter(|group| shown.group != *group),
            mac: made.and_then(|made| made.mac.filter(|mac| shown.mac != Some(*mac))),
            mtu: made.map(|made| made.mtu).filter(|mtu| shown.mtu != *mtu),
            alias: made.map(|made| made.alias.clone()).filter(|alias| shown.alias != *alias),
            up: !shown.up,
            master: shown.master.is_some(),
        }
    }
}
