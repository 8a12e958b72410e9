//! What somebody breaks by hand, the next full pass mends, and says so; what is not ours stays.
#![allow(clippy::unwrap_used)] // a failed unwrap in a test's helper is the failure report, too

mod common;

use common::scene::{pretty_same, scene};
use common::*;
use ovl_api::model::{Delta, Encap, Network};

#[test]
fn the_device() {
    scene(&network(), |mut scene| {
        let missing = &["VXLAN device vx-0123456789ab (VNI 4711, weft:overlay:web, MTU 1450) was missing"];
        scene.mends(&format!("ip link del {DEV}"), missing, 30);
        scene.mends(&format!("ip link set {DEV} down"), &["(up) was changed", "route 10.42.0.64/26"], 30);
        scene.mends(&format!("ip link set {DEV} mtu 1400"), &["(MTU 1450) was changed"], 1);
        scene.mends(&format!("ip link set {DEV} mtu 1000"), &["to be made anew", "route fd42::40/122"], 30);
        scene.mends(&format!("ip link set {DEV} group 7"), &["(group 0x57001267) was changed"], 1);
        scene.mends(&format!("ip link set {DEV} alias weft:overlay:x"), &["(alias weft:overlay:web) was"], 1);
        scene.mends(
            &format!("ip link set {DEV} address 02:00:00:00:00:07"),
            &["(address ", "neighbour 10.42.0.64"],
            30,
        );
        scene.mends(&format!("ip link set {DEV} type vxlan learning"), &["(learning off) was changed"], 1);
        // As an agent of another time might have made it.
        let other = "type vxlan id 4712 dstport 4789 local 192.0.2.1 nolearning";
        scene.mends(
            &format!(
                "ip link del {DEV}; ip link add {DEV} {other}; ip link set {DEV} up alias weft:overlay:web"
            ),
            &["taken down, to be made anew", "(VNI 4711, weft:overlay:web, MTU 1450) was changed"],
            30,
        );
    });
}

#[test]
fn routes() {
    scene(&network(), |mut scene| {
        let missing = &["route 10.42.0.64/26 via 10.42.0.64 on vx-0123456789ab was missing: restored"];
        scene.mends("ip route del 10.42.0.64/26", missing, 1);
        scene.mends("ip -6 route del fd42::80/122", &["route fd42::80/122 via fe80::"], 1);
        scene.mends(
            "ip route del unreachable 10.42.0.0/16",
            &["route 10.42.0.0/16 unreachable was missing"],
            1,
        );
        scene.mends("ip -6 route del unreachable fd42::/64", &["route fd42::/64 unreachable was missing"], 1);
        let changed = &["route 10.42.0.64/26 via 10.42.0.64 on vx-0123456789ab was changed: restored"];
        scene.mends("ip route replace 10.42.0.64/26 via 192.0.2.9 dev eth0 metric 87 proto 87", changed, 1);
        scene.mends(
            "ip -6 route replace fd42::40/122 via fe80::9 dev eth0 metric 87 proto 87",
            &["route fd42::40/122"],
            1,
        );
        let unasked = &["route 10.42.9.0/26 via 192.0.2.9 on eth0 was there unasked: removed"];
        scene.mends("ip route add 10.42.9.0/26 via 192.0.2.9 proto 87", unasked, 1);
        scene.mends("ip -6 route add unreachable fd42::f00/122 proto 87", &["was there unasked: removed"], 1);
        scene.mends("ip route add blackhole 10.42.8.0/26 proto 87", &["route 10.42.8.0/26 of kind 6 was"], 1);
        // Beside the right one.
        let beside = "ip route append 10.42.0.64/26 via 192.0.2.9 metric 87 proto 87";
        scene.mends(beside, &["route 10.42.0.64/26 via 192.0.2.9 on eth0 was there unasked"], 1);
    });
}

#[test]
fn neighbours_and_forwarding() {
    scene(&network(), |mut scene| {
        let mac = "$(bridge fdb show dev vx-0123456789ab | awk '/192.0.2.2/ {print $1}')";
        scene.mends(
            &format!("bridge fdb del {mac} dev {DEV}"),
            &["to 192.0.2.2 on vx-0123456789ab was missing"],
            1,
        );
        let replace = format!("bridge fdb replace {mac} dev {DEV} dst 192.0.2.77");
        scene.mends(&replace, &["to 192.0.2.2 on vx-0123456789ab was changed"], 1);
        for diverted in ["vni 77", "via lo"] {
            let line = format!("bridge fdb replace {mac} dev {DEV} dst 192.0.2.2 {diverted}");
            scene.mends(&line, &["to 192.0.2.2 on vx-0123456789ab was changed"], 1);
        }
        let foreign = format!("bridge fdb add 02:00:00:00:00:09 dev {DEV} dst 192.0.2.78 port 99");
        scene.mends(&foreign, &["02:00:00:00:00:09 to 192.0.2.78 port 99"], 1);
        // As if learned.
        let learned = format!("bridge fdb add 02:00:00:00:00:09 dev {DEV} dst 192.0.2.78 dynamic");
        scene.mends(&learned, &["(learned) was there unasked"], 1);

        let restored = &["neighbour 10.42.0.64 ("];
        scene.mends(&format!("ip neigh del 10.42.0.64 dev {DEV}"), restored, 1);
        let replace = format!("ip neigh replace 10.42.0.64 lladdr 02:00:00:00:00:09 dev {DEV} nud permanent");
        scene.mends(&replace, &["on vx-0123456789ab was changed: restored"], 1);
        let stale = format!("ip neigh replace 10.42.0.64 lladdr 02:00:00:00:00:09 dev {DEV} nud stale");
        scene.mends(&stale, restored, 1);
        let next = "$(ip -6 route show fd42::40/122 | awk '{print $3}')";
        scene.mends(&format!("ip -6 neigh del {next} dev {DEV}"), &["neighbour fe80::"], 1);
        let foreign = format!("ip neigh add 10.42.9.9 lladdr 02:00:00:00:00:09 dev {DEV} nud permanent");
        scene.mends(&foreign, &["neighbour 10.42.9.9 on vx-0123456789ab was there unasked"], 1);
    });
}

#[test]
fn addresses() {
    scene(&network(), |mut scene| {
        // With it go the routes that have it as source.
        let told = &["address 10.42.0.2/32 of vx-0123456789ab was missing", "route 10.42.0.64/26"];
        scene.mends(&format!("ip addr del 10.42.0.2/32 dev {DEV}"), told, 30);
        let gateway = &["address 10.42.0.1/32 of vx-0123456789ab was missing: restored"];
        scene.mends(&format!("ip addr del 10.42.0.1/32 dev {DEV}"), gateway, 1);
        scene.mends(&format!("ip addr del fd42::2/128 dev {DEV}"), &["address fd42::2/128"], 30);
        // As an older agent made them: addresses that the kernel may choose as sources.
        let global = format!("ip addr del 10.42.0.1/32 dev {DEV}; ip addr add 10.42.0.1/32 dev {DEV}");
        scene.mends(&global, &["address 10.42.0.1/32 of vx-0123456789ab was changed: restored"], 1);
        let preferred = format!("ip addr change fd42::1/128 dev {DEV} preferred_lft forever");
        scene.mends(&preferred, &["address fd42::1/128 of vx-0123456789ab was changed: restored"], 1);
        let ends = format!("ip addr change fd42::2/128 dev {DEV} valid_lft 1000 preferred_lft 900");
        scene.mends(&ends, &["address fd42::2/128 of vx-0123456789ab was changed: restored"], 30);
        let local =
            format!("ip addr del $(ip -6 -o addr show dev {DEV} scope link | awk '{{print $4}}') dev {DEV}");
        scene.mends(&local, &["address fe80::"], 30);
        let foreign = format!("ip addr add 10.42.200.1/24 dev {DEV}");
        scene.mends(&foreign, &["address 10.42.200.1/24 of vx-0123456789ab was there unasked: removed"], 1);
        scene.mends(&format!("ip addr flush dev {DEV}"), &["address 10.42.0.2/32"], 30);
    });
}

#[test]
fn links_settings_that_differ_are_restored() {
    scene(&network(), |mut scene| {
        for dev in [DEV, "vethone"] {
            for (key, wrong) in [
                ("ipv6/conf/DEV/accept_ra", 2),
                ("ipv6/conf/DEV/autoconf", 1),
                ("ipv4/conf/DEV/forwarding", 0),
            ] {
                let file = format!("/proc/sys/net/{}", key.replace("DEV", dev));
                let before = scene.host.sh(&format!("cat {file}"));
                scene.host.sh(&format!("echo {wrong} > {file}"));
                let changes = scene.host.full(&scene.view);
                assert!(matches!(&changes.lines[..], [line] if line.contains(dev)), "{file}: {changes:#?}");
                assert_eq!(scene.host.sh(&format!("cat {file}")), before);
            }
            scene.mends(&format!("echo 1 > /proc/sys/net/ipv6/conf/{dev}/disable_ipv6"), &["IPv6 of"], 30);
        }
        for key in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
            scene.host.sh(&format!("sysctl -qw {key}=0"));
            let changes = scene.host.full(&scene.view);
            let line = format!("setting {key} was 0: restored");
            assert!(changes.lines.contains(&line), "{changes:#?}");
        }
        assert!(scene.host.full(&scene.view).is_empty());
    });
}

#[test]
fn local_routes_of_the_devices_addresses_come_back() {
    scene(&network(), |mut scene| {
        let told = &["address 10.42.0.1/32 of vx-0123456789ab was changed: restored"];
        scene.mends(&format!("ip route flush table local dev {DEV}"), told, 30);
        let told = &["address fd42::2/128 of vx-0123456789ab was changed: restored"];
        scene.mends("ip -6 route del local fd42::2 table local", told, 30);
        let all = format!("ip route flush table all; ip -6 route flush table all dev {DEV}");
        scene.mends(&all, &["route 10.42.0.5/32", "10.42.0.2/32"], 30);
    });
}

#[test]
fn the_hosts_half_of_a_containers_link() {
    scene(&network(), |mut scene| {
        scene.mends("ip route del 10.42.0.5", &["route 10.42.0.5/32 on vethone was missing: restored"], 1);
        scene.mends("ip -6 route del fd42::5", &["route fd42::5/128 on vethone was missing"], 1);
        scene.mends("ip neigh del 10.42.0.5 dev vethone", &["neighbour 10.42.0.5 ("], 1);
        scene.mends("ip -6 neigh del fd42::5 dev vethone", &["neighbour fd42::5 ("], 1);
        scene.mends("ip addr del fe80::1/64 dev vethone", &["address fe80::1/64 of vethone was missing"], 1);
        scene.mends(
            "ip link set vethone group 0",
            &["container's link vethone (group 0x57001267) was changed"],
            1,
        );

        // A link that is down may be on its way in or out: it is to be looked at again.
        scene.host.sh("ip link set vethone down");
        assert!(scene.host.full(&scene.view).is_empty());
        assert_eq!(scene.host.reconciler.passing().len(), 1);
        scene.host.sh("ip link set vethone up");
        let changes = scene.host.full(&scene.view);
        assert!(changes.is_complete() && !changes.lines.is_empty(), "{changes:#?}");
        // The kernel notices the new carrier a little later.
        assert!((0..20).any(|_| scene.host.ping("10.42.0.5").is_ok()));
        // The same for one that is gone, or whose name is another link's now.
        scene.host.sh("ip link del vethone");
        assert!(scene.host.full(&scene.view).is_empty());
        scene.host.sh("ip link add vethone up type bridge");
        assert!(scene.host.full(&scene.view).is_empty());
    });
}

#[test]
fn a_containers_link_that_goes_during_a_pass_is_nobodys_failure() {
    scene(&network(), |mut scene| {
        let going = std::sync::atomic::AtomicBool::new(true);
        let mut netlink = net::Netlink::open_in(&scene.host.netns).unwrap();
        let index = netlink.need_link("vethone").unwrap().index;
        let failed = std::thread::scope(|scope| {
            // What is on a link goes when it goes down, so each pass finds something to mend where it may be up no more.
            scope.spawn(|| {
                while going.load(std::sync::atomic::Ordering::Relaxed) {
                    for up in [false, true] {
                        netlink
                            .set(index, &net::LinkSet { up: Some(up), ..net::LinkSet::default() })
                            .unwrap();
                    }
                }
            });
            let passes: Vec<_> = (0..500).map(|_| scene.host.full(&scene.view)).collect();
            going.store(false, std::sync::atomic::Ordering::Relaxed);
            passes.into_iter().filter(|pass| !pass.is_complete()).collect::<Vec<_>>()
        });
        assert!(failed.is_empty(), "{} of 500 passes, the first: {:#?}", failed.len(), failed[0]);
        assert!(scene.host.full(&scene.view).is_complete());
    });
}

#[test]
fn routes_for_direct_routing() {
    let network = Network { encap: Encap::Direct, ..network() };
    scene(&network, |mut scene| {
        let missing = &["route 10.42.0.64/26 via 192.0.2.2 on eth0 was missing: restored"];
        scene.mends("ip route del 10.42.0.64/26", missing, 1);
        // Their source address is on the device.
        scene.mends(&format!("ip link del {DEV}"), missing, 30);
        // While the underlay is down there is no way; when it is up again there is.
        scene.host.sh("ip link set eth0 down");
        assert!(scene.host.full(&scene.view).is_complete());
        scene.host.sh("ip link set eth0 up");
        assert!(!scene.host.full(&scene.view).is_empty());
        assert!(scene.host.sh("ip route").contains("10.42.0.64/26 via 192.0.2.2 dev eth0"));
    });
}

#[test]
fn the_packet_filter() {
    scene(&network(), |mut scene| {
        let told = &["packet filter (nftables table inet weft-overlay) was changed: restored"];
        scene.mends("nft delete table inet weft-overlay", told, 1);
        scene.mends("nft flush set inet weft-overlay vteps4", told, 1);
    });
}

#[test]
fn what_is_not_ours_stays() {
    scene(&network(), |mut scene| {
        scene.host.sh(
            "ip link add vx-mine type vxlan id 9 dstport 4790 dev eth0; ip link set vx-mine up; \
             ip addr add 10.99.0.1/24 dev vx-mine; ip neigh add 10.99.0.2 lladdr 02:00:00:00:00:09 dev vx-mine nud permanent; \
             bridge fdb append 02:00:00:00:00:09 dev vx-mine dst 192.0.2.5; \
             ip route add 10.42.0.64/26 via 192.0.2.7; ip route add 10.42.77.0/24 via 192.0.2.7 proto static; \
             ip route add 10.42.78.0/24 via 192.0.2.7 table 100 proto 87; \
             ip neigh add 192.0.2.7 lladdr 02:00:00:00:00:07 dev eth0 nud permanent; ip addr add 192.0.2.99/24 dev eth0; \
             ip addr add 198.51.100.9/32 dev vethone; nft add table inet other",
        );
        let everything = "ip -o link | sort; ip -o addr | sort; ip route show table all | sort; \
                          ip -6 route show table all | sort; ip neigh show nud permanent; bridge fdb; nft list ruleset";
        let before = scene.host.sh(everything);
        let changes = scene.host.full(&scene.view);
        assert!(changes.is_empty(), "{changes:#?}");
        pretty_same(&before, &scene.host.sh(everything), "a pass");
        // Nor when all that is ours goes.
        let mut view = scene.view.clone();
        view.endpoints.clear();
        view.links.clear();
        let delta = Delta { networks: [ID.to_owned()].into(), ..Delta::default() };
        assert!(scene.host.delta(&view, &delta).is_complete());
        let left = scene.host.sh(everything);
        for text in [
            "vx-mine:",
            "10.99.0.1/24",
            "10.99.0.2 dev vx-mine",
            "192.0.2.5",
            "10.42.77.0/24",
            "table 100 proto 87",
            "192.0.2.7 dev eth0 lladdr",
            "192.0.2.99/24",
            "10.42.0.64/26 via 192.0.2.7 dev eth0",
            "table inet other",
        ] {
            assert!(left.contains(text), "{text} is gone: {left}");
        }
        for text in [DEV, "unreachable 10.42.0.0/16", "unreachable fd42::/64"] {
            assert!(!left.contains(text), "{text} is left: {left}");
        }
        // The packet filter stays as long as there is another node to be protected from this one's containers.
        assert!(left.contains("weft-overlay"), "{left}");
        assert!(scene.host.full(&view).is_empty());
        view.hosts.retain(|name, _| name == "a");
        let delta = Delta { hosts: ["b".to_owned(), "c".to_owned()].into(), ..Delta::default() };
        assert!(scene.host.delta(&view, &delta).is_complete());
        assert!(!scene.host.sh(everything).contains("weft-overlay"));
        assert!(scene.host.full(&view).is_empty());
    });
}

/// A container may be attached in the very moment: its route is not deleted at first sight.
#[test]
fn a_route_to_an_unknown_container_is_spared_at_first() {
    scene(&network(), |mut scene| {
        let container = net::testns::another();
        let two = endpoint("two", &["10.42.0.6"]);
        scene.host.veth(&network(), &two, &container);
        scene.host.sh("ip route add 10.42.0.6 dev vethtwo proto 87");
        for _ in 0..3 {
            assert!(scene.host.full(&scene.view).is_empty());
        }
        assert!(scene.host.sh("ip route").contains("10.42.0.6 dev vethtwo"));
    });
}

/// A container whose address was given to another host is cut off at once, though its link is there.
#[test]
fn the_route_of_a_container_that_was_cut_off_goes_at_once() {
    scene(&network(), |mut scene| {
        let mut view = scene.view.clone();
        let container = net::testns::another();
        let two = endpoint("two", &["10.42.0.6"]);
        scene.host.veth(&network(), &two, &container);
        view.endpoints.insert("vethtwo".into(), two);
        scene.host.full(&view);
        assert!(scene.host.sh("ip route").contains("10.42.0.6 dev vethtwo"));
        scene.host.full(&scene.view);
        assert!(!scene.host.sh("ip route").contains("10.42.0.6 dev vethtwo"));
    });
}

/// So it is when the agent has been away meanwhile: it knows the container, and that its address is another host's.
#[test]
fn a_new_agent_cuts_a_known_container_off_at_once() {
    scene(&network(), |mut scene| {
        let container = net::testns::another();
        let two = endpoint("two", &["10.42.0.6"]);
        scene.host.veth(&network(), &two, &container);
        scene.host.sh("ip route add 10.42.0.6 dev vethtwo proto 87");
        let underlay = scene.host.reconciler.underlay().clone();
        let netns = &scene.host.netns;
        scene.host.reconciler = netns.run(|| ovl_kernel::Reconciler::new(underlay).unwrap()).unwrap();
        let mut view = scene.view.clone();
        view.links.insert("vethtwo".into());
        scene.host.full(&view);
        assert!(!scene.host.sh("ip route").contains("10.42.0.6 dev vethtwo"));
    });
}

/// Another agent process over the same kernel: it changes nothing.
#[test]
fn a_restart_changes_nothing() {
    scene(&network(), |mut scene| {
        let before = scene.all();
        let underlay = scene.host.reconciler.underlay().clone();
        let netns = &scene.host.netns;
        scene.host.reconciler = netns.run(|| ovl_kernel::Reconciler::new(underlay).unwrap()).unwrap();
        let changes = scene.host.full(&scene.view);
        assert!(changes.is_empty(), "{changes:#?}");
        pretty_same(&before, &scene.all(), "a restart");
    });
}

/// Before the store was read, the view is an old one: what is missing is made, and nothing that is not in it is taken away.
#[test]
fn an_old_view_takes_nothing_away() {
    scene(&network(), |mut scene| {
        let before = scene.all();
        let underlay = scene.host.reconciler.underlay().clone();
        let netns = &scene.host.netns;
        scene.host.reconciler = netns.run(|| ovl_kernel::Reconciler::new(underlay).unwrap()).unwrap();
        // Host b was not known then, and c had another block.
        let mut old = scene.view.clone();
        old.hosts.remove("b");
        old.owners.retain(|_, owner| owner != "b");
        old.owners.insert((ID.into(), prefix("10.42.1.0/26")), "c".into());
        scene.host.sh("ip route del 10.42.0.128/26; ip neigh del 10.42.0.128 dev vx-0123456789ab");
        let reconciler = &mut scene.host.reconciler;
        let changes = scene.host.netns.run(|| reconciler.mend(&old)).unwrap().unwrap();
        assert!(changes.is_complete(), "{changes:#?}");
        // A delta that has everything looked at believes it no more.
        old.hosts.get_mut("a").unwrap().segment = None;
        let delta = Delta { hosts: ["a".to_owned()].into(), ..Delta::default() };
        assert!(scene.host.delta(&old, &delta).is_complete());
        let after = scene.all();
        for line in before.lines().filter(|line| !line.contains("elements")) {
            assert!(after.lines().any(|other| other == line), "{line} is gone: {after}");
        }
        assert!(after.contains("10.42.1.0/26") && after.contains("192.0.2.2, 198.51.100.3"), "{after}");
        // Now the store has been read.
        let changes = scene.host.full(&scene.view);
        assert_eq!(changes.lines, ["route 10.42.1.0/26 via 10.42.0.128 on vx-0123456789ab removed"]);
        pretty_same(&before, &scene.all(), "an old view");
    });
}
