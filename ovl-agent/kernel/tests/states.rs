//! States in which not everything can be had: what is told, and what works all the same. And what is found of the host.
#![allow(clippy::unwrap_used)] // a failed unwrap in a test's helper is the failure report, too

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use common::*;
use net::{LinkSet, Netlink, Veth, testns};
use ovl_api::model::{Delta, Endpoint, Host, Network, Subnet, View};
use ovl_api::names;
use ovl_kernel::objects::{BLOCK_METRIC, RouteKey, Target, UNREACHABLE_METRIC};
use ovl_kernel::wanted::{Wanted, wanted};
use ovl_kernel::{Error, Reconciler, Underlay, find_underlay, network_mtu, overlapping};

fn underlay(mtu: u32) -> Underlay {
    Underlay { link: 2, name: "eth0".into(), mtu }
}

fn of(view: &View) -> Wanted {
    wanted(view, &underlay(1500)).unwrap().0
}

fn hosts() -> Vec<Host> {
    vec![host("a", "192.0.2.1", None), host("b", "192.0.2.2", None)]
}

fn one() -> Vec<Endpoint> {
    vec![endpoint("one", &["10.42.0.5", "fd42::5"])]
}

const BLOCKS: [(&str, &str); 4] =
    [("10.42.0.0/26", "a"), ("10.42.0.64/26", "b"), ("fd42::/122", "a"), ("fd42::40/122", "b")];

#[test]
fn a_host_of_another_family_is_told_and_not_routed_to() {
    let mut hosts = hosts();
    hosts[1].vtep = ip("2001:db8::2");
    let wanted = of(&view("a", &hosts, &[network()], &BLOCKS, &one()));
    let told: Vec<&String> = wanted.warnings.iter().collect();
    assert_eq!(
        told,
        [
            "network web: host b is reached at 2001:db8::2 (IPv6), this host at 192.0.2.1 (IPv4): their containers cannot \
          reach each other"
        ]
    );
    assert!(wanted.objects.routes.keys().all(|key| key.metric != BLOCK_METRIC));
    assert!(wanted.objects.forwards.is_empty());
}

#[test]
fn two_hosts_with_one_address_are_told() {
    let mut hosts = hosts();
    hosts[1].vtep = hosts[0].vtep;
    let wanted = of(&view("a", &hosts, &[network()], &BLOCKS, &one()));
    assert!(wanted.warnings.iter().any(|text| text.contains("this host's own address")), "{wanted:#?}");
    assert!(wanted.objects.forwards.is_empty());
}

#[test]
fn a_removed_or_unknown_host_gets_nothing() {
    for unknown in [true, false] {
        let mut hosts = hosts();
        hosts[1].removed = true;
        hosts.truncate(if unknown { 1 } else { 2 });
        let view = view("a", &hosts, &[network()], &BLOCKS, &one());
        let (wanted, rules) = wanted(&view, &underlay(1500)).unwrap();
        assert!(wanted.objects.routes.keys().all(|key| key.metric != BLOCK_METRIC));
        assert!(rules.vteps.is_empty());
    }
}

#[test]
fn without_a_block_the_host_itself_is_told_to_have_no_way() {
    let blocks = [("10.42.0.64/26", "b"), ("10.42.0.70/32", "a")];
    let only4 = Network { subnets: network().subnets[..1].to_vec(), ..network() };
    let wanted = of(&view("a", &hosts(), &[only4], &blocks, &[endpoint("one", &["10.42.0.70"])]));
    let told: Vec<&String> = wanted.warnings.iter().collect();
    assert_eq!(
        told,
        [
            "network web: this host owns no IPv4 block, so it cannot itself talk to containers on other hosts (its containers \
          can)"
        ]
    );
    let route = |dst, metric| wanted.objects.routes.get(&RouteKey { dst: prefix(dst), metric }).cloned();
    let via = Target::Dev { dev: DEV.into(), gw: Some(ip("10.42.0.64")), src: None, onlink: true };
    assert_eq!(route("10.42.0.64/26", BLOCK_METRIC), Some(via));
    // What is borrowed does not go back to the lender when the container is away.
    assert_eq!(route("10.42.0.70/32", UNREACHABLE_METRIC), Some(Target::Unreachable));
    assert_eq!(route("10.42.0.0/16", UNREACHABLE_METRIC), Some(Target::Unreachable));
}

#[test]
fn a_host_with_another_port_is_reached_there() {
    let mut hosts = hosts();
    hosts[1].port = 8472;
    let wanted = of(&view("a", &hosts, &[network()], &BLOCKS, &one()));
    let forward = wanted.objects.forwards.values().next().unwrap();
    assert_eq!((forward.ip, forward.port), (Some(ip("192.0.2.2")), Some(8472)));
}

#[test]
fn an_mtu_that_does_not_fit_is_told() {
    let view_with = |mtu| {
        let network = Network { mtu: Some(mtu), ..network() };
        view("a", &hosts(), &[network], &BLOCKS, &one())
    };
    let wanted = of(&view_with(1500));
    let told =
        wanted.warnings.iter().find(|text| text.contains("MTU of 1500") && text.contains("1450")).unwrap();
    // VXLAN lets the underlay fragment: nothing is lost by that alone.
    assert!(told.contains("are fragmented or") && !told.contains("will be lost"), "{told}");
    assert_eq!(wanted.objects.devices[DEV].mtu, 1500);
    assert!(of(&view_with(1450)).warnings.is_empty());
    // Too small for IPv6: nothing of it is asked of the kernel, which would refuse it.
    let wanted = of(&view_with(1000));
    assert!(wanted.warnings.iter().any(|text| text.contains("IPv6 does not work")), "{wanted:#?}");
    assert!(wanted.objects.addrs.keys().all(|(_, net)| net.is_ipv4()));
    assert!(wanted.objects.neighs.keys().all(|(_, ip)| ip.is_ipv4()));
}

#[test]
fn the_mtu_is_the_underlays_less_what_vxlan_takes() {
    let jumbo = underlay(9000);
    assert_eq!(network_mtu(&network(), &jumbo, ip("192.0.2.1")), 8950);
    assert_eq!(network_mtu(&network(), &jumbo, ip("2001:db8::1")), 8930);
    assert_eq!(network_mtu(&Network { mtu: Some(1400), ..network() }, &jumbo, ip("192.0.2.1")), 1400);
}

#[test]
fn nothing_is_wanted_by_a_host_that_is_not_registered() {
    let view = view("z", &hosts(), &[network()], &BLOCKS, &one());
    assert_eq!(wanted(&view, &underlay(1500)), None);
}

#[test]
fn nothing_is_wanted_of_networks_without_a_container_here() {
    let (wanted, rules) = wanted(&view("a", &hosts(), &[network()], &BLOCKS, &[]), &underlay(1500)).unwrap();
    assert_eq!(wanted, Wanted::default());
    assert!(rules.vnis.is_empty() && rules.vteps.is_empty());
    // But its containers get at no other node with a forged VXLAN packet, nor at a network with a forged source.
    assert_eq!(rules.nodes, [ip("192.0.2.2")].into());
    assert!(rules.nets.contains(&prefix("10.42.0.0/16")), "{rules:?}");
}

/// Another product has the VNI: that network is told, and another one works.
#[test]
fn one_network_that_cannot_be_made_does_not_hold_up_another() {
    if !kernel_has_vxlan() {
        return;
    }
    testns::in_fresh(|| {
        let other = Network {
            id: "ba9876543210".into(),
            name: "db".into(),
            vni: 4712,
            subnets: vec![Subnet { subnet: prefix("10.43.0.0/16"), gateway: ip("10.43.0.1"), block: 26 }],
            ..network()
        };
        let mut second = endpoint("two", &["10.43.0.5"]);
        second.network = other.id.clone();
        let endpoints = [one(), vec![second]].concat();
        let mut view = view("a", &hosts(), &[network(), other.clone()], &BLOCKS, &endpoints);
        view.owners.insert((other.id.clone(), prefix("10.43.0.0/26")), "a".into());
        view.owners.insert((other.id.clone(), prefix("10.43.0.64/26")), "b".into());
        let mut a = TestHost::new("a", &["192.0.2.1/24"]);
        a.sh("ip link add theirs type vxlan id 4711 dstport 4789 local 192.0.2.1");
        let changes = a.full(&view);
        assert_eq!(changes.failed.keys().collect::<Vec<_>>(), [ID], "{changes:#?}");
        assert!(changes.failed[ID].contains("VNI 4711") && changes.failed[ID].contains(DEV), "{changes:#?}");
        assert!(changes.failed_elsewhere.is_empty());
        assert!(a.sh("ip route").contains("10.43.0.64/26 via 10.43.0.64 dev vx-ba9876543210"));
        assert!(!a.full(&view).is_complete());
        // A delta says it again, also where it touches that network, and leaves it to the next full pass; the other one goes on.
        let (theirs, ours) = ((ID.to_owned(), "10.42.1.0/26"), (other.id.clone(), "10.43.1.0/26"));
        for (id, block) in [theirs, ours] {
            let key = (id.clone(), prefix(block));
            view.owners.insert(key.clone(), "b".into());
            let networks = [id].into();
            let changes = a.delta(&view, &Delta { blocks: [key].into(), networks, ..Delta::default() });
            assert_eq!(changes.failed.keys().collect::<Vec<_>>(), [ID], "{changes:#?}");
        }
        assert!(a.sh("ip route").contains("10.43.1.0/26 via 10.43.0.64 dev vx-ba9876543210"));
        a.sh("ip link del theirs");
        assert!(a.full(&view).is_complete());
        let routes = a.sh("ip route");
        assert!(routes.contains("10.42.0.64/26 via 10.42.0.64 dev vx-0123456789ab"), "{routes}");
        assert!(routes.contains("10.42.1.0/26 via 10.42.0.64 dev vx-0123456789ab"), "{routes}");
        assert!(a.delta(&view, &Delta::default()).is_complete());
    });
}

#[test]
fn a_delta_that_is_refused_has_everything_looked_at() {
    if !kernel_has_vxlan() {
        return;
    }
    testns::in_fresh(|| {
        let mut view = view("a", &hosts(), &[network()], &BLOCKS, &one());
        let mut a = TestHost::new("a", &["192.0.2.1/24"]);
        a.full(&view);
        a.sh(&format!("ip link del {DEV}"));
        let block = (ID.to_owned(), prefix("10.42.1.0/26"));
        view.owners.insert(block.clone(), "b".into());
        let delta = Delta { blocks: [block].into(), ..Delta::default() };
        let changes = a.delta(&view, &delta);
        assert!(changes.is_complete(), "{changes:#?}");
        let routes = a.sh("ip route");
        assert!(routes.contains("10.42.1.0/26 via") && routes.contains("10.42.0.64/26 via"), "{routes}");
        assert!(a.full(&view).is_empty());
    });
}

#[test]
fn a_warning_is_told_once() {
    if !kernel_has_vxlan() {
        return;
    }
    testns::in_fresh(|| {
        let mut hosts = hosts();
        let mut a = TestHost::new("a", &["192.0.2.1/24"]);
        a.full(&view("a", &hosts, &[network()], &BLOCKS, &one()));
        hosts[1].vtep = ip("2001:db8::2");
        let seen = view("a", &hosts, &[network()], &BLOCKS, &one());
        let delta = Delta { hosts: ["b".to_owned()].into(), ..Delta::default() };
        assert_eq!(a.delta(&seen, &delta).warnings.len(), 1);
        assert_eq!(a.delta(&seen, &delta).warnings, [""; 0]);
        assert_eq!(a.full(&seen).warnings, [""; 0]);
        assert_eq!(a.reconciler.warnings().len(), 1);
        hosts[1].vtep = ip("192.0.2.2");
        a.delta(&view("a", &hosts, &[network()], &BLOCKS, &one()), &delta);
        assert_eq!(a.reconciler.warnings(), [""; 0]);
        assert!(a.sh("ip route").contains("10.42.0.64/26 via"));
    });
}

/// The host got another address: its device is made anew, the containers keep theirs.
#[test]
fn a_host_with_a_new_vtep_makes_its_device_anew() {
    if !kernel_has_vxlan() {
        return;
    }
    testns::in_fresh(|| {
        let mut a = TestHost::new("a", &["192.0.2.1/24", "192.0.2.9/24"]);
        let mut hosts = hosts();
        a.full(&view("a", &hosts, &[network()], &BLOCKS, &one()));
        hosts[0].vtep = ip("192.0.2.9");
        let seen = view("a", &hosts, &[network()], &BLOCKS, &one());
        let delta = Delta { hosts: ["a".to_owned()].into(), ..Delta::default() };
        let changes = a.delta(&seen, &delta);
        assert!(changes.is_complete(), "{changes:#?}");
        assert!(a.sh(&format!("ip -d link show {DEV}")).contains("local 192.0.2.9"));
        assert!(a.sh("ip route").contains("10.42.0.64/26 via"));
        assert!(a.full(&seen).is_empty());
        // Underlays may get another MTU, too.
        a.sh("ip link set eth0 mtu 9000");
        assert_eq!(a.full(&seen).lines.len(), 1);
        assert_eq!((a.mtu(DEV), a.reconciler.underlay().mtu), (8950, 9000));
    });
}

#[test]
fn the_settings_that_forwarding_needs() {
    if !kernel_has_vxlan() {
        return;
    }
    testns::in_fresh(|| {
        let mut a = TestHost::new("a", &["192.0.2.1/24"]);
        // A host that wants no IPv6 on new interfaces, and believes routers.
        a.sh("cd /proc/sys/net; echo 0 > ipv4/ip_forward; echo 1 > ipv6/conf/default/disable_ipv6; \
              echo 2 > ipv6/conf/default/accept_ra");
        let changes = a.full(&view("a", &hosts(), &[network()], &BLOCKS, &one()));
        assert!(changes.is_complete(), "{changes:#?}");
        let set = a.sh(&format!(
            "cd /proc/sys/net; cat ipv4/ip_forward ipv6/conf/all/forwarding ipv6/conf/{DEV}/accept_ra \
             ipv6/conf/{DEV}/disable_ipv6 ipv6/conf/default/disable_ipv6"
        ));
        assert_eq!(set.split_whitespace().collect::<Vec<_>>(), ["1", "1", "0", "0", "1"]);
    });
}

#[test]
fn the_underlay_is_found_or_named() {
    testns::in_fresh(|| {
        let none = find_underlay(None, None).unwrap_err();
        assert!(matches!(none, Error::NoUnderlay(_)) && none.to_string().contains("--interface"), "{none}");
        let a = TestHost::new("a", &["192.0.2.1/24", "2001:db8::1/64"]);
        let b = TestHost::new("b", &["2001:db8::2/64"]);
        let run = |host: &TestHost, interface: Option<&str>, advertise: Option<&str>| {
            let advertise = advertise.map(ip);
            let found = host.netns.run(|| find_underlay(interface, advertise)).unwrap();
            found.map(|(underlay, vtep, segment)| {
                (underlay.name, underlay.mtu, vtep.to_string(), segment.map(|net| net.to_string()))
            })
        };
        let found =
            |vtep: &str, segment: &str| ("eth0".to_owned(), 1500, vtep.to_owned(), Some(segment.to_owned()));
        let (v4, v6) = (found("192.0.2.1", "192.0.2.0/24"), found("2001:db8::1", "2001:db8::/64"));
        assert_eq!(run(&a, Some("eth0"), None).unwrap(), v4);
        assert_eq!(run(&a, None, Some("2001:db8::1")).unwrap(), v6);
        assert_eq!(run(&a, Some("eth0"), Some("2001:db8::1")).unwrap(), v6);
        a.sh("ip route add default via 192.0.2.254");
        assert_eq!(run(&a, None, None).unwrap(), v4);
        a.sh("ip addr add 192.0.2.7/24 dev eth0; ip route replace default via 192.0.2.254 src 192.0.2.7");
        assert_eq!(run(&a, None, None).unwrap().2, "192.0.2.7");
        b.sh("ip -6 route add default via 2001:db8::fe");
        assert_eq!(run(&b, None, None).unwrap(), found("2001:db8::2", "2001:db8::/64"));
        // An address of the host as such has no segment.
        b.sh("ip addr add 198.51.100.1/32 dev lo");
        let (name, mtu, _, segment) = run(&b, None, Some("198.51.100.1")).unwrap();
        assert_eq!((name.as_str(), mtu, segment), ("lo", 1500, None));

        for (interface, advertise, field, text) in [
            (Some("eth9"), None, "--interface", "no such interface"),
            (None, Some("192.0.2.99"), "--advertise", "no interface of this host"),
            (Some("lo"), Some("192.0.2.1"), "--advertise", "interface lo has no such"),
            (Some("lo"), None, "--interface", "no global"),
            (None, Some("fe80::1"), "--advertise", "link-local"),
        ] {
            let error = run(&a, interface, advertise).unwrap_err();
            assert!(matches!(&error, Error::Setting { field: found, .. } if *found == field), "{error}");
            assert!(error.to_string().contains(text), "{error}");
        }
    });
}

#[test]
fn a_subnet_that_overlaps_something_is_told_by_name() {
    testns::in_fresh(|| {
        let mut a = TestHost::new("a", &["10.42.3.4/24", "fd99::1/64"]);
        a.sh("ip route add default via 10.42.3.1; ip route add 0.0.0.0/1 via 10.42.3.1; \
             ip route add 172.16.0.0/16 via 10.42.3.1; ip route add blackhole 172.17.0.0/16 table 100");
        let mut netlink = Netlink::open_in(&a.netns).unwrap();
        let mut check = |subnet: &str| overlapping(&mut netlink, prefix(subnet)).unwrap();
        let told = |text: &str| Some(text.to_owned());
        assert_eq!(check("10.42.0.0/16"), told("address 10.42.3.4/24 of eth0"));
        assert_eq!(check("10.42.3.128/25"), told("address 10.42.3.4/24 of eth0"));
        assert_eq!(check("fd99::/48"), told("address fd99::1/64 of eth0"));
        assert_eq!(check("172.16.9.0/24"), told("route 172.16.0.0/16 on eth0"));
        assert_eq!(check("172.17.0.0/24"), told("route 172.17.0.0/16"));
        assert_eq!(check("10.43.0.0/16"), None);
        assert_eq!(check("fd42::/64"), None);
        if kernel_has_vxlan() {
            // What the overlay has itself does not count.
            let mut network = network();
            network.subnets[0] =
                Subnet { subnet: prefix("10.43.0.0/16"), gateway: ip("10.43.0.1"), block: 26 };
            let blocks = [("10.43.0.0/26", "a"), ("10.43.0.64/26", "b"), ("fd42::/122", "a")];
            let of = endpoint("one", &["10.43.0.5", "fd42::5"]);
            a.full(&view("a", &hosts(), &[network.clone()], &blocks, std::slice::from_ref(&of)));
            a.attach(&network, &of);
            assert!(a.sh("ip route").contains("10.43.0.64/26"));
            assert_eq!(check("10.43.0.0/16"), None);
            assert_eq!(check("fd42::/64"), None);
        }
    });
}

#[test]
fn a_device_that_is_made_meanwhile_overlaps_nothing() {
    testns::in_fresh(|| {
        let host = testns::another();
        let mut agent = Netlink::open_in(&host).unwrap();
        let mut reader = Netlink::open_in(&host).unwrap();
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let maker = scope.spawn(|| {
                for _ in 0..100 {
                    let alias = format!("{}web", names::DEVICE_ALIAS);
                    let device =
                        net::Bridge { name: DEV, alias: Some(&alias), up: true, ..net::Bridge::default() };
                    let index = agent.create_bridge(&device).unwrap().index;
                    let address = net::NewAddr::new(prefix("10.43.0.1/32"));
                    agent.run_one(|batch| batch.addr_add(index, &address)).unwrap();
                    agent.run_one(|batch| batch.link_del(index)).unwrap();
                }
                ended.store(true, Ordering::Relaxed);
            });
            while !maker.is_finished() {
                assert_eq!(overlapping(&mut reader, prefix("10.43.0.0/16")).unwrap(), None);
            }
        });
        assert!(ended.load(Ordering::Relaxed), "the devices were not made");
    });
}

#[test]
fn names_are_what_other_hosts_compute() {
    // The next hop of IPv6 is made from the hardware address that the remote host's device has.
    let wanted = of(&view("a", &hosts(), &[network()], &BLOCKS, &one()));
    let remote = of(&view("b", &hosts(), &[network()], &BLOCKS, &[endpoint("two", &["10.42.0.70"])]));
    let mac = remote.objects.devices[DEV].mac;
    let next = names::link_local(mac);
    assert_eq!(wanted.objects.neighs[&(DEV.into(), next.into())], mac);
    assert!(remote.objects.addrs.keys().any(|(_, net)| net.ip() == std::net::IpAddr::from(next)));
    assert_eq!(wanted.objects.forwards.keys().next().unwrap().1, mac);
    let v4 = wanted.objects.neighs[&(DEV.into(), ip("10.42.0.64"))];
    assert_eq!(v4, mac);
}

#[test]
fn a_containers_link_is_missing_only_when_it_was_looked_for_and_has_no_other_name() {
    testns::in_fresh(|| {
        let mut netlink = Netlink::open().unwrap();
        let (far, peer) = (testns::another(), testns::another());
        let link = netlink.create_veth(&Veth::new("eth0", "far", &far)).unwrap().index;
        let mut reconciler = Reconciler::new(Underlay { link, name: "eth0".into(), mtu: 1500 }).unwrap();
        let view = view("a", &hosts(), &[network()], &BLOCKS, &one());
        let owner = net::Owner::new("web", "one", "eth0");
        let veth = owner.host_veth();
        assert!(reconciler.has_link(&veth), "nobody has looked");
        reconciler.full(&view).unwrap();
        assert!(!reconciler.has_link(&veth));
        // A host that is not registered: there is nothing to be looked at.
        reconciler.full(&View { me: "nobody".into(), ..view.clone() }).unwrap();
        assert!(reconciler.has_link(&veth));
        let alias = owner.alias();
        let made = Veth { alias: Some(&alias), ..Veth::new(&veth, "eth0", &peer) };
        let index = netlink.create_veth(&made).unwrap().index;
        reconciler.full(&view).unwrap();
        assert!(reconciler.has_link(&veth));
        let renamed = LinkSet { name: Some("other"), ..LinkSet::default() };
        netlink.set(index, &renamed).unwrap();
        reconciler.full(&view).unwrap();
        assert!(reconciler.has_link(&veth));
        netlink.delete(index).unwrap();
        reconciler.full(&view).unwrap();
        assert!(!reconciler.has_link(&veth));
    });
}
