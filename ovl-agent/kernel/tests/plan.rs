//! Plans against a model of the kernel: no kernel here.
#![allow(clippy::unwrap_used)] // a failed unwrap in a test's helper is the failure report, too

mod common;

use std::collections::BTreeMap;
use std::net::IpAddr;

use common::model::{Kernel, shown};
use common::*;
use ipnetwork::IpNetwork;
use ovl_kernel::objects::*;
use ovl_kernel::plan::*;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

fn device(vni: u32) -> Device {
    Device {
        vni,
        local: ip("192.0.2.1"),
        port: 4789,
        group: vni,
        mac: [2, 0, 0, 0, 0, vni as u8],
        mtu: 1450,
        alias: "weft:overlay:x".into(),
        ipv6: true,
    }
}

fn devs() -> Vec<Dev> {
    ["vx-a", "vx-b", "vx-c"].map(Dev::from).into()
}

fn macs() -> impl Strategy<Value = Mac> {
    (0..3u8).prop_map(|last| [2, 0, 0, 0, 9, last])
}

fn forward() -> impl Strategy<Value = Forward> {
    (0..3u8, any::<bool>(), prop::option::of(Just(99)), any::<bool>()).prop_map(
        |(last, permanent, port, is_diverted)| Forward {
            is_diverted,
            ip: Some([192, 0, 2, last].into()),
            port,
            permanent,
        },
    )
}

fn dsts() -> Vec<IpNetwork> {
    ["10.1.0.0/26", "10.1.0.64/26", "10.1.0.7/32", "10.1.0.0/16", "fd00::/122"].map(prefix).into()
}

fn keys() -> impl Strategy<Value = RouteKey> {
    (select(dsts()), select(vec![0, BLOCK_METRIC, UNREACHABLE_METRIC]))
        .prop_map(|(dst, metric)| RouteKey { dst, metric })
}

/// A route of which the source is an address on one of the devices, if it has one.
fn target(devs: Vec<Dev>, addrs: Vec<IpAddr>) -> impl Strategy<Value = Target> {
    let to = (select(devs), 0..3u8, prop::option::of(select(addrs)), any::<bool>())
        .prop_map(|(dev, gw, src, onlink)| Target::Dev { dev, gw: Some([10, 1, 0, gw].into()), src, onlink });
    prop_oneof![1 => Just(Target::Unreachable), 1 => Just(Target::Other(6)), 6 => to]
}

fn addresses() -> Vec<IpNetwork> {
    ["10.1.0.1/32", "10.1.0.2/32", "fd00::1/128", "fe80::1/64"].map(prefix).into()
}

fn roles() -> impl Strategy<Value = AddrRole> {
    select(vec![AddrRole::Own, AddrRole::Shared])
}

/// What is wanted: some devices with things on them, a container's link, the underlay.
fn wanted() -> impl Strategy<Value = Objects> {
    subsequence(devs(), 1..=3).prop_flat_map(|chosen| {
        let mut usable = chosen.clone();
        usable.extend([Dev::from("veth1"), Dev::from("eth0")]);
        let on = usable.clone();
        let addrs = prop::collection::btree_map(
            (select(usable.clone()).prop_filter("not ours", |dev| &**dev != "eth0"), select(addresses())),
            roles(),
            0..6,
        );
        let pairs = prop::collection::btree_map((select(usable.clone()), 0..4u8), macs(), 0..6);
        let forwards = prop::collection::btree_map((select(chosen.clone()), macs()), forward(), 0..6);
        let sources: Vec<IpAddr> = vec![ip("10.1.0.1"), ip("10.1.0.2"), ip("fd00::1")];
        let routes = prop::collection::btree_map(keys(), target(on, sources), 0..8);
        (Just(chosen), addrs, pairs, forwards, routes).prop_map(
            |(chosen, mut addrs, pairs, forwards, mut routes)| {
                let vni = |dev: &Dev| u32::from(dev.as_bytes()[3]);
                // Sources are the hosts' own addresses, which are wanted on the first device.
                for net in addresses() {
                    addrs.entry((chosen[0].clone(), net)).or_insert(AddrRole::Own);
                }
                routes.retain(|_, target| !matches!(target, Target::Other(_)));
                Objects {
                    devices: chosen.iter().map(|dev| (dev.clone(), device(vni(dev)))).collect(),
                    links: [(Dev::from("veth1"), 7)].into(),
                    addrs,
                    neighs: pairs
                        .into_iter()
                        .filter(|((dev, _), _)| &**dev != "eth0")
                        .map(|((dev, last), mac)| ((dev, IpAddr::from([10, 1, 0, last])), mac))
                        .collect(),
                    forwards: forwards
                        .into_iter()
                        .map(|(key, forward)| {
                            (key, Forward { permanent: true, is_diverted: false, ..forward })
                        })
                        .collect(),
                    routes,
                }
            },
        )
    })
}

/// What may be there: the right things, wrong ones, several of a key, devices that differ.
fn kernel() -> impl Strategy<Value = Kernel> {
    let all = || {
        let mut all = devs();
        all.push("veth1".into());
        all
    };
    let link = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), 0..3u32);
    let links = prop::collection::vec(prop::option::weighted(0.7, link), 3);
    let veth = prop::option::of((any::<bool>(), 6..8u32));
    let addrs = prop::collection::btree_map((select(all()), select(addresses())), roles(), 0..8);
    let neighs = prop::collection::btree_map((select(all()), 0..4u8), macs(), 0..8);
    let forwards = prop::collection::vec(((select(devs()), macs()), forward()), 0..8);
    let mut on = all();
    on.push("eth0".into());
    let sources = vec![ip("10.1.0.1"), ip("10.1.0.2")];
    let routes = prop::collection::vec((keys(), target(on, sources)), 0..10);
    (links, veth, any::<bool>(), addrs, neighs, forwards, routes).prop_map(
        |(links, veth, underlay, addrs, neighs, forwards, routes)| {
            let mut dumped = Dumped::default();
            for (dev, link) in devs().into_iter().zip(links) {
                let Some((other_vni, learning, up, other_mac, other)) = link else { continue };
                let mut link = shown(&device(u32::from(dev.as_bytes()[3])));
                let vxlan = link.vxlan.as_mut().unwrap();
                vxlan.vni += if other_vni { 100 } else { 0 };
                vxlan.learning = learning;
                link.up = up;
                link.mac = Some(if other_mac { [2; 6] } else { link.mac.unwrap() });
                match other {
                    1 => link.mtu = 1400,
                    2 => link.mtu = 1000,
                    _ => {}
                }
                dumped.links.insert(dev, link);
            }
            if let Some((up, group)) = veth {
                dumped.links.insert("veth1".into(), Shown { up, group, ..Shown::default() });
            }
            dumped.links.insert("eth0".into(), Shown { up: underlay, ..Shown::default() });
            let there = |dev: &Dev| dumped.links.contains_key(dev);
            dumped.addrs = addrs.into_iter().filter(|((dev, _), _)| there(dev)).collect();
            let neighs = neighs.into_iter().filter(|((dev, _), _)| there(dev));
            dumped.neighs =
                neighs.map(|((dev, last), mac)| ((dev, IpAddr::from([10, 1, 0, last])), mac)).collect();
            dumped.forwards = forwards.into_iter().filter(|((dev, _), _)| there(dev)).collect();
            dumped.routes = routes.into_iter().filter(|(_, target)| target.dev().is_none_or(there)).collect();
            // A kernel has no two entries that are the same.
            let mut kernel = Kernel(dumped);
            kernel.sort();
            let mut seen = Vec::new();
            kernel.0.forwards.retain(|entry| {
                !seen.contains(entry) && {
                    seen.push(entry.clone());
                    true
                }
            });
            let mut seen = Vec::new();
            kernel.0.routes.retain(|entry| {
                !seen.contains(entry) && {
                    seen.push(entry.clone());
                    true
                }
            });
            kernel
        },
    )
}

/// A kernel that shows what is wanted but for some links, which are not as they should be, and a few things.
fn nearly_right() -> impl Strategy<Value = (Objects, Kernel)> {
    let wrong = prop::collection::vec(select(vec!["", "", "vni", "mac", "mtu", "group", "down"]), 3);
    (wanted(), wrong, prop::collection::vec(prop::bool::weighted(0.8), 40)).prop_map(
        |(wanted, wrong, kept)| {
            let mut dumped = Dumped::showing(&wanted);
            for (link, wrong) in dumped.links.values_mut().zip(wrong) {
                match wrong {
                    "vni" => link.vxlan.as_mut().unwrap().vni += 100,
                    "mac" => link.mac = Some([2; 6]),
                    "mtu" => link.mtu = 1400,
                    "group" => link.group = 0,
                    "down" => link.up = false,
                    _ => {}
                }
            }
            dumped.links.insert("veth1".into(), Shown { up: true, group: 7, ..Shown::default() });
            dumped.links.insert("eth0".into(), Shown { up: true, ..Shown::default() });
            let mut kept = kept.into_iter().cycle();
            dumped.neighs.retain(|_| kept.next().unwrap());
            dumped.forwards.retain(|_| kept.next().unwrap());
            dumped.routes.retain(|_| kept.next().unwrap());
            (wanted, Kernel(dumped))
        },
    )
}

/// What of the wanted can be there: not what is on a link that is missing or down and not ours to make.
fn possible(wanted: &Objects, kernel: &Kernel) -> Objects {
    let on =
        |dev: &Dev| wanted.devices.contains_key(dev) || kernel.0.links.get(dev).is_some_and(|link| link.up);
    let mut wanted = wanted.clone();
    wanted.addrs.retain(|(dev, _), _| on(dev));
    wanted.neighs.retain(|(dev, _), _| on(dev));
    wanted.forwards.retain(|(dev, _), _| on(dev));
    wanted.routes.retain(|_, target| target.dev().is_none_or(on));
    wanted
}

fn is_deletion(op: &Op) -> bool {
    matches!(op, Op::DelRoute(..) | Op::DelForward(..) | Op::DelNeigh(..) | Op::DelAddr(..))
}

fn is_device(op: &Op) -> bool {
    matches!(op, Op::DeleteDevice(_) | Op::CreateDevice(..) | Op::ChangeDevice(..) | Op::ChangeLink(..))
}

fn same<K: Clone + Ord, V: Clone>(map: &BTreeMap<K, V>) -> Vec<(K, V)> {
    map.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}

proptest! {
    #[test]
    fn a_plan_leads_to_what_is_wanted_and_is_then_done(wanted in wanted(), kernel in kernel()) {
        let before = kernel.clone();
        let mut kernel = kernel;
        // A route whose source is no address of the host's any more is none that a kernel would have.
        let has: Vec<IpAddr> = kernel.0.addrs.iter().map(|((_, net), _)| net.ip()).collect();
        kernel.0.routes.retain(|(_, target)| match target {
            Target::Dev { src: Some(src), .. } => has.contains(src),
            _ => true,
        });
        let steps = plan(&wanted, &kernel.0);
        kernel.does_all(&steps);
        let possible = possible(&wanted, &before);
        prop_assert_eq!(&kernel.0.routes, &same(&possible.routes));
        prop_assert_eq!(&kernel.0.forwards, &same(&possible.forwards));
        prop_assert_eq!(&kernel.0.neighs, &same(&possible.neighs));
        // On others' links foreign addresses stay.
        let ours = kernel.0.addrs.iter().filter(|(key, _)| &*key.0 != "veth1" || possible.addrs.contains_key(key));
        prop_assert_eq!(ours.cloned().collect::<Vec<_>>(), same(&possible.addrs));
        for (dev, wanted) in &wanted.devices {
            prop_assert_eq!(&kernel.0.links[dev], &shown(wanted));
        }
        prop_assert!(kernel.0.links.iter().all(|(dev, link)| !link.ours || wanted.devices.contains_key(dev)));
        prop_assert_eq!(plan(&wanted, &kernel.0), vec![]);
    }

    /// The kernel forgets more than it is told to: neighbours with a hardware address, routes with their source.
    #[test]
    fn what_goes_with_something_else_comes_back((wanted, kernel) in nearly_right()) {
        let mut kernel = kernel;
        kernel.does_all(&plan(&wanted, &kernel.0.clone()));
        prop_assert_eq!(&kernel.0.routes, &same(&wanted.routes));
        prop_assert_eq!(&kernel.0.forwards, &same(&wanted.forwards));
        prop_assert_eq!(&kernel.0.neighs, &same(&wanted.neighs));
        prop_assert_eq!(&kernel.0.addrs, &same(&wanted.addrs));
        prop_assert_eq!(plan(&wanted, &kernel.0), vec![]);
    }

    #[test]
    fn devices_come_first_and_deletions_last(wanted in wanted(), kernel in kernel()) {
        let rank = |op: &Op| if is_device(op) { 0 } else if is_deletion(op) { 2 } else { 1 };
        let ranks: Vec<u8> = plan(&wanted, &kernel.0).iter().map(|step| rank(&step.op)).collect();
        prop_assert!(ranks.is_sorted(), "{:?}", ranks);
    }

    /// Neither by a step on the way nor by one that comes after.
    #[test]
    fn what_is_right_is_never_missing_in_between(wanted in wanted(), kernel in kernel()) {
        let steps = plan(&wanted, &kernel.0);
        let anew: Vec<&Dev> = steps.iter().filter_map(|step| match &step.op {
            Op::DeleteDevice(dev) => Some(dev),
            Op::ChangeDevice(dev, _, change) if change.mac => Some(dev),
            _ => None,
        }).collect();
        let lost: Vec<IpAddr> = kernel.0.addrs.iter().filter(|((dev, _), _)| anew.contains(&dev))
            .map(|((_, net), _)| net.ip()).collect();
        let steady = |target: &Target| match target {
            Target::Dev { dev, src, .. } => {
                let up = kernel.0.links.get(dev).is_some_and(|link| link.up || link.ours);
                up && !anew.contains(&dev) && src.is_none_or(|src| !lost.contains(&src))
            }
            _ => true,
        };
        let right: Vec<(RouteKey, Target)> = kernel.0.routes.iter()
            .filter(|(key, target)| wanted.routes.get(key) == Some(target) && steady(target))
            .filter(|(key, _)| kernel.0.routes.iter().filter(|(other, _)| other == key).count() == 1)
            .cloned().collect();
        let mut kernel = kernel;
        for step in &steps {
            kernel.does(&step.op);
            for route in &right {
                prop_assert!(kernel.0.routes.contains(route) , "{route:?} is missing after {step:?}");
            }
        }
    }
}
