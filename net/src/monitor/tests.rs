//! What is told, and what is not, in a namespace of its own.

use super::*;
use crate::{Batch, LinkSet, Netlink, NewAddr, Veth, probe, testns};
use std::process::Command;

/// The protocol that is listened for.
const OURS: u8 = 87;

/// A namespace with a monitor, and `veth0`, up, with 192.0.2.1/24 and 2001:db8::1/64.
fn scene(test: impl FnOnce(Monitor, Netlink, u32) + Send) {
    testns::in_fresh(|| {
        let monitor = Monitor::open(OURS).unwrap();
        let mut netlink = Netlink::open().unwrap();
        let peer = testns::another();
        let index = netlink.create_veth(&Veth::new("veth0", "eth0", &peer)).unwrap().index;
        let mut batch = Batch::new();
        batch.set(index, &LinkSet { up: Some(true), ..LinkSet::default() });
        for net in ["192.0.2.1/24", "2001:db8::1/64"] {
            batch.addr_add(index, &NewAddr { nodad: true, ..NewAddr::new(net.parse().unwrap()) });
        }
        netlink.run(batch).unwrap();
        test(monitor, netlink, index);
    });
}

/// Executes a line of shell, and returns the notifications of it, without the link-local addresses that become usable meanwhile.
fn after(monitor: &mut Monitor, line: &str) -> Vec<Told> {
    monitor.read().unwrap();
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    let news = monitor.read().unwrap();
    news.into_iter().filter(|each| !matches!(each, Told::AddressSet { .. })).collect()
}

fn is_link(told: &Told, of: u32, is_up: bool, has_turned: bool) -> bool {
    matches!(*told, Told::Link { index, up, turned, group: 0, mac: Some(_), mtu: 1.., .. }
        if (index, up, turned) == (of, is_up, has_turned))
}

#[test]
fn links_and_addresses_are_told() {
    testns::in_fresh(|| {
        let mut monitor = Monitor::open(OURS).unwrap();
        assert_eq!(monitor.read().unwrap(), []);
        let mut netlink = Netlink::open().unwrap();
        let peer = testns::another();
        let index = netlink.create_veth(&Veth::new("veth0", "eth0", &peer)).unwrap().index;
        let told = monitor.read().unwrap();
        assert!(
            told.iter().any(|told| matches!(told, Told::Link { index: of, .. } if *of == index)),
            "{told:?}"
        );
        for up in [false, true] {
            netlink.set(index, &LinkSet { up: Some(up), ..LinkSet::default() }).unwrap();
            let told = monitor.read().unwrap();
            assert!(told.iter().any(|told| is_link(told, index, up, true)), "{told:?}");
            let other = |told: &Told| matches!(told, Told::Link { up: now, .. } if *now != up);
            assert!(!told.iter().any(other), "{told:?}");
        }
        netlink.set(index, &LinkSet { mtu: Some(1400), ..LinkSet::default() }).unwrap();
        assert!(monitor.read().unwrap().iter().any(|told| is_link(told, index, true, false)));
        for (address, new) in [("192.0.2.1/24", true), ("2001:db8::1/64", false)] {
            let net = address.parse().unwrap();
            let mut batch = Batch::new();
            batch.addr_add(index, &NewAddr { nodad: true, ..NewAddr::new(net) });
            netlink.run(batch).unwrap();
            assert_eq!(monitor.read().unwrap().contains(&Told::Address { index }), new, "{address}");
            if !new {
                let mut batch = Batch::new();
                batch.addr_replace(index, &NewAddr { never_source: true, nodad: true, ..NewAddr::new(net) });
                netlink.run(batch).unwrap();
                assert!(monitor.read().unwrap().contains(&Told::AddressSet { index }), "its lifetime");
            }
            let mut batch = Batch::new();
            batch.addr_del(index, net);
            netlink.run(batch).unwrap();
            assert!(monitor.read().unwrap().contains(&Told::Address { index }), "{address}");
        }
        let mut batch = Batch::new();
        batch.link_del("veth0");
        netlink.run(batch).unwrap();
        assert!(monitor.read().unwrap().contains(&Told::LinkGone { index }));
    });
}

/// A link that is made is not one that was set down.
#[test]
fn a_new_link_has_not_turned() {
    scene(|mut monitor, _, _| {
        let told = after(&mut monitor, "ip link add br9 type bridge");
        let turned: Vec<_> =
            told.iter().filter(|told| matches!(told, Told::Link { turned: true, .. })).collect();
        assert!(turned.is_empty() && !told.is_empty(), "{told:?}");
    });
}

#[test]
fn routes_of_the_protocol_are_told_when_they_come_and_go() {
    scene(|mut monitor, _, index| {
        for (dst, via) in [("198.51.100.0/24", "192.0.2.9"), ("2001:db8:1::/48", "2001:db8::9")] {
            let (net, gw) = (dst.parse().unwrap(), via.parse().unwrap());
            let is = |route: &Route, priority| {
                (route.dst, route.gw, route.oif, route.priority, route.protocol)
                    == (net, Some(gw), Some(index), Some(priority), OURS)
            };
            let told =
                after(&mut monitor, &format!("ip route add {dst} via {via} dev veth0 metric 87 proto 87"));
            assert!(
                matches!(&told[..], [Told::Route { route, replaced: false }] if is(route, 87)),
                "{dst}: {told:?}"
            );
            let told = after(&mut monitor, &format!("ip route del {dst} metric 87"));
            assert!(matches!(&told[..], [Told::RouteGone(route)] if is(route, 87)), "{dst}: {told:?}");
        }
        let told =
            after(&mut monitor, "ip route add unreachable 198.51.100.0/24 proto 87; ip route flush proto 87");
        let gone =
            |told: &Told| matches!(told, Told::RouteGone(route) if route.kind == crate::route::UNREACHABLE);
        assert!(told.iter().any(gone), "{told:?}");
    });
}

#[test]
fn a_route_that_takes_anothers_place_is_told_whoever_made_it() {
    scene(|mut monitor, _, _| {
        for (dst, via) in [("198.51.100.0/24", "192.0.2.9"), ("2001:db8:1::/48", "2001:db8::9")] {
            let ours = format!("ip route add {dst} via {via} dev veth0 metric 87 proto 87");
            after(&mut monitor, &ours);
            let told = after(
                &mut monitor,
                &format!("ip route replace {dst} via {via}9 dev veth0 metric 87 proto static"),
            );
            let replaced =
                |told: &Told| matches!(told, Told::Route { route, replaced: true } if route.protocol == 4);
            assert!(told.iter().any(replaced), "{dst}: {told:?}");
        }
    });
}

#[test]
fn foreign_routes_and_other_tables_are_not_told() {
    scene(|mut monitor, _, _| {
        for line in [
            "ip route add 198.51.100.0/24 via 192.0.2.9; ip route del 198.51.100.0/24",
            "ip route add 198.51.100.0/24 via 192.0.2.9 proto static; ip route flush proto static",
            "ip -6 route add 2001:db8:1::/48 via 2001:db8::9 proto bird; ip -6 route flush proto bird",
            "ip route add 198.51.100.0/24 via 192.0.2.9 table 100 proto 87; ip route flush table 100",
            "ip route add 198.51.100.0/24 via 192.0.2.9 table 1000 proto 87; \
             ip route replace 198.51.100.0/24 via 192.0.2.8 table 1000 proto 87; ip route flush table 1000",
            "for n in $(seq 200); do echo route add 198.51.100.$n via 192.0.2.9 proto bgp; done | ip -batch -; \
             for n in $(seq 200); do echo route del 198.51.100.$n; done | ip -batch -",
        ] {
            assert_eq!(after(&mut monitor, line), [], "{line}");
        }
    });
}

#[test]
fn what_was_entered_for_good_is_told_when_it_comes_and_goes() {
    scene(|mut monitor, _, index| {
        let mac = [2, 0, 0, 0, 0, 9];
        for address in ["192.0.2.9", "2001:db8::9"] {
            let ip: IpAddr = address.parse().unwrap();
            let entry = format!("{address} lladdr 02:00:00:00:00:09 dev veth0 nud permanent");
            let told = after(&mut monitor, &format!("ip neigh add {entry}"));
            assert_eq!(told, [Told::Neigh(Neigh { index, ip, mac: Some(mac), permanent: true })]);
            let told = after(&mut monitor, &format!("ip neigh del {address} dev veth0"));
            assert_eq!(told, [Told::NeighGone { index, ip }]);
            // With the link that goes down.
            after(&mut monitor, &format!("ip neigh add {entry}"));
            let told = after(&mut monitor, "ip link set veth0 down");
            assert!(told.contains(&Told::NeighGone { index, ip }), "{told:?}");
            after(&mut monitor, "ip link set veth0 up; ip addr replace 2001:db8::1/64 dev veth0 nodad");
        }
    });
}

#[test]
fn dynamic_neighbours_are_told_only_by_programs() {
    scene(|mut monitor, _, index| {
        for state in ["stale", "delay", "probe", "reachable"] {
            for address in ["192.0.2.9", "2001:db8::9"] {
                let set =
                    format!("ip neigh replace {address} lladdr 02:00:00:00:00:09 dev veth0 nud {state}");
                after(&mut monitor, &format!("ip neigh del {address} dev veth0 2>/dev/null || true"));
                let ip = address.parse().unwrap();
                let neigh = Neigh { index, ip, mac: Some([2, 0, 0, 0, 0, 9]), permanent: false };
                assert_eq!(after(&mut monitor, &set), [Told::Neigh(neigh)], "{set}");
            }
        }
        // The kernel lets them go with the link.
        after(&mut monitor, "ip neigh replace 192.0.2.9 lladdr 02:00:00:00:00:09 dev veth0 nud stale");
        let told = after(&mut monitor, "ip link set veth0 down");
        assert!(!told.iter().any(|told| matches!(told, Told::NeighGone { .. } | Told::Neigh(_))), "{told:?}");
    });
}

#[test]
fn forwarding_entries_of_a_device_are_told_those_of_a_bridge_not() {
    if !probe::link_kind("vxlan").unwrap() {
        println!("skipped: this kernel has no vxlan devices");
        return;
    }
    scene(|mut monitor, mut netlink, _| {
        after(&mut monitor, "ip link add vx0 type vxlan id 7 local 192.0.2.1 dstport 4789 nolearning");
        let index = netlink.need_link("vx0").unwrap().index;
        let entry = |last| Fdb {
            index,
            mac: [2, 0, 0, 0, 0, 9],
            dst: Some(IpAddr::from([192, 0, 2, last])),
            port: None,
            vlan: None,
            is_diverted: false,
            permanent: true,
        };
        let set = |last| format!("bridge fdb replace 02:00:00:00:00:09 dev vx0 dst 192.0.2.{last}");
        for last in [5, 6] {
            assert_eq!(after(&mut monitor, &set(last)), [Told::Fdb(entry(last))]);
        }
        let told = after(&mut monitor, "bridge fdb del 02:00:00:00:00:09 dev vx0");
        assert_eq!(told, [Told::FdbGone(entry(6))]);
        after(&mut monitor, &set(5));
        let told = after(&mut monitor, "ip link del vx0");
        assert!(
            told.contains(&Told::FdbGone(entry(5))) && told.contains(&Told::LinkGone { index }),
            "{told:?}"
        );

        after(&mut monitor, "ip link add br9 up type bridge; ip link set veth0 master br9");
        let line = "bridge fdb add 02:00:00:00:00:08 dev veth0 master static; bridge fdb del 02:00:00:00:00:08 dev veth0 master";
        assert_eq!(after(&mut monitor, line), []);
    });
}

#[test]
fn nftables_changes_are_told_but_elements_of_other_tables() {
    testns::in_fresh(|| {
        let mut monitor = Monitor::tables().unwrap();
        let is = |told: &Told, gone: bool, name: &str| match told {
            Told::TableChanged(table) => !gone && table.name == name && table.family == 1 && table.port != 0,
            Told::TableGone(table) => gone && table.name == name && table.family == 1 && table.port != 0,
            _ => false,
        };
        for name in ["t", "weft-overlay"] {
            for line in [
                "add table inet T",
                "add chain inet T c",
                "add rule inet T c accept",
                "flush chain inet T c",
                "add set inet T s '{ type mark; }'",
            ] {
                let told = after(&mut monitor, &format!("nft {}", line.replace('T', name)));
                assert!(told.iter().any(|told| is(told, false, name)), "{line}: {told:?}");
            }
            for line in [
                "add element inet T s '{ 1 }'",
                "add element inet T s '{ 2 }'",
                "delete element inet T s '{ 1 }'",
            ] {
                let told = after(&mut monitor, &format!("nft {}", line.replace('T', name)));
                assert_eq!(!told.is_empty(), name == "weft-overlay", "{line}: {told:?}");
            }
        }
        // In a transaction that begins with another table.
        let both = "echo 'flush set inet t s; flush set inet weft-overlay s' | nft -f -";
        let told = after(&mut monitor, both);
        assert!(told.iter().any(|told| is(told, false, "weft-overlay")), "{told:?}");
        after(&mut monitor, "nft delete table inet weft-overlay");
        for line in ["nft delete table inet t", "nft add table inet t; nft flush ruleset"] {
            let told = after(&mut monitor, line);
            assert!(told.last().is_some_and(|told| is(told, true, "t")), "{line}: {told:?}");
        }
    });
}

#[test]
fn forwarding_that_is_switched_off_is_told() {
    scene(|mut monitor, _, index| {
        let on = "sysctl -qw net.ipv4.ip_forward=1; sysctl -qw net.ipv6.conf.all.forwarding=1";
        assert_eq!(after(&mut monitor, on), []);
        for (key, of) in [
            ("net.ipv4.conf.veth0.forwarding", Some(index)),
            ("net.ipv6.conf.veth0.forwarding", Some(index)),
            ("net.ipv4.ip_forward", None),
            ("net.ipv6.conf.all.forwarding", None),
        ] {
            let told = after(&mut monitor, &format!("sysctl -qw {key}=0"));
            assert!(told.contains(&Told::ForwardingOff { index: of }), "{key}: {told:?}");
        }
        let default =
            "sysctl -qw net.ipv4.conf.default.forwarding=1; sysctl -qw net.ipv4.conf.default.forwarding=0";
        assert_eq!(after(&mut monitor, default), []);
    });
}

#[test]
fn local_routes_that_are_flushed_are_told() {
    scene(|mut monitor, _, index| {
        for line in [
            "ip route del local 192.0.2.1 dev veth0 table local",
            // The kernel puts it in place in the background.
            "for _ in $(seq 3000); do ip -6 route show table local | grep -q 'local 2001:db8::1 ' && break; sleep 0.01; done; \
             ip -6 route del local 2001:db8::1 dev veth0 table local",
        ] {
            assert_eq!(after(&mut monitor, line), [Told::LocalGone { index }], "{line}");
        }
    });
}

#[test]
fn what_was_missed_is_said() {
    testns::in_fresh(|| {
        let listen = || Monitor::listen(libc::NETLINK_ROUTE, &GROUPS, &filter::routes(OURS), OURS, 16 << 10);
        let mut monitor = listen().unwrap();
        let mut netlink = Netlink::open().unwrap();
        for round in 0..400 {
            let up = round % 2 == 0;
            netlink.set("lo", &LinkSet { up: Some(up), ..LinkSet::default() }).unwrap();
        }
        assert!(monitor.read().unwrap().contains(&Told::Missed));
        assert_eq!(monitor.read().unwrap(), []);
    });
}

/// The room is enough for what happens while the reader does something else, and foreign routes take none of it.
#[test]
fn much_fits_while_nobody_reads() {
    scene(|mut monitor, _, _| {
        let line = "for n in $(seq 0 9999); do echo route add 10.$((n / 250)).$((n % 250)).0/24 via 192.0.2.9 proto bgp; done | ip -batch -; \
                    for n in $(seq 0 999); do echo neigh add 192.0.2.$((n % 250 + 2)) lladdr 02:00:00:00:00:09 dev veth0 nud permanent; \
                    echo neigh del 192.0.2.$((n % 250 + 2)) dev veth0; done | ip -batch -";
        let mut told = after(&mut monitor, line);
        told.extend(monitor.read().unwrap());
        assert!(!told.contains(&Told::Missed));
        assert_eq!(told.iter().filter(|told| matches!(told, Told::NeighGone { .. })).count(), 1000);
    });
}

proptest::proptest! {
    #[test]
    fn any_bytes_can_be_a_notification(
        kind in proptest::prop_oneof![16u16..30, proptest::strategy::Just(TABLE_GONE)],
        flags: u16,
        bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200),
    ) {
        let mut datagram = ((bytes.len() + 16) as u32).to_ne_bytes().to_vec();
        datagram.extend([kind.to_ne_bytes(), flags.to_ne_bytes()].concat());
        datagram.extend([0; 8]);
        datagram.extend(&bytes);
        for message in messages(&datagram) {
            let _ = read(&message, OURS);
        }
    }
}

#[test]
fn forward_chains_of_others_and_rules_gone_from_them_are_told() {
    testns::in_fresh(|| {
        let Ok(mut monitor) = Monitor::tables() else { return println!("skipped: no nftables") };
        let told = |monitor: &mut Monitor, line: &str| {
            after(monitor, line).into_iter().filter(|told| *told == Told::ForwardChain).count()
        };
        let chain = |policy| {
            let hook = format!("type filter hook forward priority 0; policy {policy};");
            format!("nft 'add table ip filter; add chain ip filter FORWARD {{ {hook} }}'")
        };
        assert_eq!(told(&mut monitor, &chain("accept")), 1);
        assert_eq!(told(&mut monitor, &chain("drop")), 1);
        let accept = || {
            let net = forward::Traffic::Subnet("10.9.0.0/16".parse().unwrap());
            forward::accept("overlay/ov", &[net]).unwrap();
        };
        accept();
        let others = "nft 'add rule ip filter FORWARD counter; add chain ip filter X; add table inet weft
            add chain inet weft forward { type filter hook forward priority 0; }'";
        assert_eq!(told(&mut monitor, others), 0);
        assert_eq!(told(&mut monitor, "nft flush chain ip filter FORWARD"), 2);
        accept();
        assert_eq!(told(&mut monitor, "nft flush ruleset"), 2);
    });
}
