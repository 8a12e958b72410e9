//! Published ports and masquerading as packets see them, by both backends.

use super::lab::Lab;
use super::*;
use crate::firewall::ipt::Iptables;
use crate::testns;

const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// Runs a test with each of the backends, in a lab of its own each.
fn with_each(test: impl Fn(&Lab, &mut dyn Firewall) + Sync) {
    testns::in_fresh(|| test(&Lab::new(), &mut Nftables::open().unwrap()));
    if has("iptables") && has("ip6tables") {
        testns::in_fresh(|| test(&Lab::new(), &mut Iptables::new().unwrap()));
    }
}

/// Everything that should get through to port 8080 of the host: (from, to, seen as).
fn ways(lab: &Lab) -> Vec<(Option<&Netns>, &'static str, Option<&'static str>)> {
    let (a, b, other, host) = (Some(&lab.a), Some(&lab.b), Some(&lab.other), None);
    vec![
        // another host is seen as itself
        (other, "192.0.2.1:8080", Some("192.0.2.2")),
        (other, "[2001:db8::1]:8080", Some("2001:db8::2")),
        // the host itself, by each of its addresses
        (host, "192.0.2.1:8080", None),
        (host, "10.1.0.1:8080", None),
        (host, "[2001:db8::1]:8080", None),
        (host, "[fd00::1]:8080", None),
        (host, "127.0.0.1:8080", Some("10.1.0.1")),
        // a container of the same subnet, and the published one itself
        (b, "192.0.2.1:8080", Some("10.1.0.1")),
        (b, "10.1.0.1:8080", Some("10.1.0.1")),
        (b, "[2001:db8::1]:8080", Some("fd00::1")),
        (b, "[fd00::1]:8080", Some("fd00::1")),
        (a, "192.0.2.1:8080", Some("10.1.0.1")),
        (a, "10.1.0.1:8080", Some("10.1.0.1")),
        (a, "[2001:db8::1]:8080", Some("fd00::1")),
        (a, "[fd00::1]:8080", Some("fd00::1")),
    ]
}

use crate::Netns;

#[test]
fn a_published_port_answers_from_everywhere() {
    with_each(|lab, fw| {
        let ports = [tcp(None, 8080, 80), udp(None, 8080, 80)];
        for protocol in BOTH {
            for (from, to, _) in ways(lab) {
                assert_eq!(lab.ask(from, to, protocol), None, "{to} {protocol} before");
            }
        }
        fw.publish(&owner("a"), &addrs(3), &ports, &plain()).unwrap();
        fw.check_publish(&owner("a"), &addrs(3), &ports, &plain()).unwrap();
        for protocol in BOTH {
            for (index, (from, to, seen)) in ways(lab).into_iter().enumerate() {
                let answer = lab.ask(from, to, protocol);
                assert!(answer.is_some(), "{to} {protocol}: way {index} does not answer");
                if let Some(seen) = seen {
                    assert_eq!(answer.as_deref(), Some(seen), "{to} {protocol}: way {index}");
                }
            }
        }
        // Without br_netfilter no port of the bridge has to be a hairpin.
        for family in ["", "6"] {
            let _ = std::fs::write(format!("/proc/sys/net/bridge/bridge-nf-call-ip{family}tables"), "0");
        }
        run("ip link set c3 type bridge_slave hairpin off");
        assert_eq!(lab.ask(Some(&lab.a), "192.0.2.1:8080", Protocol::Tcp).as_deref(), Some("10.1.0.1"));
        assert_eq!(lab.ask(Some(&lab.a), "[fd00::1]:8080", Protocol::Tcp).as_deref(), Some("fd00::1"));
        // Other ports, and the same port of other hosts, are not touched.
        assert_eq!(lab.ask(Some(&lab.other), "192.0.2.1:80", Protocol::Tcp), None);
        assert_eq!(lab.ask(Some(&lab.a), "192.0.2.2:80", Protocol::Tcp).as_deref(), Some("10.1.0.3"));
        // ::1 stays with the programs of the host.
        lab.serve_on_host("[::1]:8080");
        for protocol in BOTH {
            assert_eq!(lab.ask(None, "[::1]:8080", protocol).as_deref(), Some("::1"));
        }
        fw.unpublish(&owner("a"), &ports).unwrap();
        for protocol in BOTH {
            assert_eq!(lab.ask(Some(&lab.other), "192.0.2.1:8080", protocol), None, "after");
            assert_eq!(lab.ask(None, "127.0.0.1:8080", protocol), None, "after");
        }
    });
}

#[test]
fn a_port_of_one_address_answers_there_alone() {
    with_each(|lab, fw| {
        let ports = [
            tcp(Some("127.0.0.1"), 8081, 80),
            tcp(Some("192.0.2.1"), 8082, 80),
            tcp(Some("2001:db8::1"), 8083, 80),
            tcp(Some("0.0.0.0"), 8084, 80),
            tcp(Some("::"), 8085, 80),
        ];
        fw.publish(&owner("a"), &addrs(3), &ports, &plain()).unwrap();
        let yes = |from, to| assert!(lab.ask(from, to, Protocol::Tcp).is_some(), "{to}");
        let no = |from, to| assert!(lab.ask(from, to, Protocol::Tcp).is_none(), "{to}");
        yes(None, "127.0.0.1:8081");
        no(None, "192.0.2.1:8081");
        no(Some(&lab.other), "192.0.2.1:8081");
        yes(Some(&lab.other), "192.0.2.1:8082");
        no(Some(&lab.b), "10.1.0.1:8082");
        no(Some(&lab.other), "[2001:db8::1]:8082");
        yes(Some(&lab.other), "[2001:db8::1]:8083");
        no(Some(&lab.b), "[fd00::1]:8083");
        yes(Some(&lab.other), "192.0.2.1:8084");
        no(Some(&lab.other), "[2001:db8::1]:8084");
        yes(Some(&lab.other), "[2001:db8::1]:8085");
        no(Some(&lab.other), "192.0.2.1:8085");
    });
}

#[test]
fn a_certain_address_goes_before_all_addresses() {
    with_each(|lab, fw| {
        // In this order, so that it is not the order that decides.
        fw.publish(&owner("b"), &addrs(4), &[tcp(None, 8080, 81)], &plain()).unwrap();
        fw.publish(&owner("a"), &addrs(3), &[tcp(Some("192.0.2.1"), 8080, 80)], &plain()).unwrap();
        assert!(lab.ask(Some(&lab.other), "192.0.2.1:8080", Protocol::Tcp).is_some());
    });
}

#[test]
fn masquerading_spares_the_subnet_and_hides_the_rest() {
    with_each(|lab, fw| {
        for protocol in BOTH {
            assert_eq!(lab.ask(Some(&lab.a), "192.0.2.2:80", protocol).as_deref(), Some("10.1.0.3"));
        }
        fw.masquerade(&owner("a"), &addrs(3)).unwrap();
        fw.check_masquerade(&owner("a"), &addrs(3)).unwrap();
        for protocol in BOTH {
            let ask = |to| lab.ask(Some(&lab.a), to, protocol);
            assert_eq!(ask("192.0.2.2:80").as_deref(), Some("192.0.2.1"), "{protocol}");
            assert_eq!(ask("[2001:db8::2]:80").as_deref(), Some("2001:db8::1"), "{protocol}");
            assert_eq!(ask("10.1.0.4:80").as_deref(), Some("10.1.0.3"), "{protocol}");
            assert_eq!(ask("[fd00::4]:80").as_deref(), Some("fd00::3"), "{protocol}");
            // Another container is not masqueraded by that.
            assert_eq!(lab.ask(Some(&lab.b), "192.0.2.2:80", protocol).as_deref(), Some("10.1.0.4"));
        }
        fw.unmasquerade(&owner("a"), &[]).unwrap();
        assert!(fw.check_masquerade(&owner("a"), &addrs(3)).is_err());
        assert_eq!(lab.ask(Some(&lab.a), "192.0.2.2:80", Protocol::Tcp).as_deref(), Some("10.1.0.3"));
    });
}

#[test]
fn snat_can_be_left_off_or_done_for_all() {
    with_each(|lab, fw| {
        let ports = [tcp(None, 8080, 80)];
        let off = PublishOptions { snat: false, ..plain() };
        fw.publish(&owner("a"), &addrs(3), &ports, &off).unwrap();
        let ask = |from, to| lab.ask(from, to, Protocol::Tcp);
        assert_eq!(ask(Some(&lab.other), "192.0.2.1:8080").as_deref(), Some("192.0.2.2"));
        assert_eq!(ask(None, "127.0.0.1:8080"), None);
        assert_eq!(ask(Some(&lab.a), "192.0.2.1:8080"), None);
        // The same owner's ports are brought up to date.
        let all = PublishOptions { masq_all: true, ..plain() };
        fw.publish(&owner("a"), &addrs(3), &ports, &all).unwrap();
        assert_eq!(ask(Some(&lab.other), "192.0.2.1:8080").as_deref(), Some("10.1.0.1"));
        assert_eq!(ask(Some(&lab.other), "[2001:db8::1]:8080").as_deref(), Some("fd00::1"));
        assert_eq!(ask(None, "127.0.0.1:8080").as_deref(), Some("10.1.0.1"));
        fw.check_publish(&owner("a"), &addrs(3), &ports, &all).unwrap();
    });
}

#[test]
fn the_hosts_loopback_stays_shut() {
    with_each(|lab, fw| {
        let listener = std::net::TcpListener::bind("127.0.0.1:7777").unwrap();
        // A container that sends packets for 127.0.0.1 over its wire.
        lab.b
            .run(|| {
                run("ip link set lo down");
                run("ip addr flush dev lo");
                std::fs::write("/proc/sys/net/ipv4/conf/eth0/route_localnet", "1").unwrap();
                run("ip route add 127.0.0.1/32 via 10.1.0.1 dev eth0");
            })
            .unwrap();
        let open = || {
            lab.b
                .run(|| {
                    std::net::TcpStream::connect_timeout(
                        &"127.0.0.1:7777".parse().unwrap(),
                        std::time::Duration::from_millis(300),
                    )
                    .is_ok()
                })
                .unwrap()
        };
        assert!(open(), "route_localnet does let it in, without us");
        fw.publish(&owner("a"), &addrs(3), &[tcp(None, 8080, 80)], &plain()).unwrap();
        assert!(!open());
        drop(listener);
    });
}

#[test]
fn a_guarded_bridge_lets_in_only_what_is_its_own() {
    with_each(|lab, fw| {
        let ask = |from, to| lab.ask(from, to, Protocol::Tcp).is_some();
        assert!(ask(Some(&lab.other), "10.1.0.3:80"));
        for _ in 0..2 {
            fw.guard("br0").unwrap();
        }
        fw.publish(&owner("a"), &addrs(3), &[tcp(None, 8080, 80)], &plain()).unwrap();
        assert!(!ask(Some(&lab.other), "10.1.0.3:80"), "from outside");
        assert!(!ask(Some(&lab.other), "[fd00::3]:80"), "from outside");
        assert!(ask(Some(&lab.a), "192.0.2.2:80"), "outwards");
        assert!(ask(Some(&lab.a), "[2001:db8::2]:80"), "outwards");
        assert!(ask(Some(&lab.a), "10.1.0.4:80"), "within");
        assert!(ask(Some(&lab.other), "192.0.2.1:8080"), "published");
        assert!(ask(Some(&lab.b), "192.0.2.1:8080"), "published, from within");
        fw.unguard("br0").unwrap();
        assert!(ask(Some(&lab.other), "10.1.0.3:80"));
        assert!(ask(Some(&lab.other), "[fd00::3]:80"));
    });
}

/// The loopback rule's counterpart is `route_localnet` on the bridge, which outlives the last published port.
#[test]
fn loopback_rule_stays_while_foreign_bridge_routes_localnet() {
    with_each(|lab, fw| {
        let _ = lab;
        let ports = [tcp(None, 8080, 80)];
        let set = |on: &str| std::fs::write("/proc/sys/net/ipv4/conf/br0/route_localnet", on).unwrap();
        let has_rule = || {
            let iptables = if has("iptables") { run("iptables -t raw -S") } else { String::new() };
            ruleset().contains("127.0.0.0/8 drop") || iptables.contains("WEFT-LOOPBACK -d 127.0.0.0/8")
        };
        fw.publish(&owner("a"), &addrs(3), &ports, &plain()).unwrap();
        set("1");
        fw.unpublish(&owner("a"), &ports).unwrap();
        fw.tidy().unwrap();
        assert!(has_rule(), "br0 routes 127.0.0.0/8: {}", ruleset());
        set("0");
        fw.tidy().unwrap();
        assert!(!has_rule(), "{}", ruleset());
    });
}

#[test]
fn recorded_bridge_loses_route_localnet_with_last_port() {
    with_each(|lab, fw| {
        let file = "/proc/sys/net/ipv4/conf/br0/route_localnet";
        let ports = [tcp(None, 8080, 80)];
        let options = PublishOptions { localnet: Some("br0".into()), ..plain() };
        fw.publish(&owner("a"), &addrs(3), &ports, &options).unwrap();
        fw.publish(&owner("b"), &addrs(4), &[tcp(None, 8081, 80)], &plain()).unwrap();
        fw.unpublish(&owner("a"), &ports).unwrap();
        fw.tidy().unwrap();
        assert_eq!(std::fs::read_to_string(file).unwrap().trim(), "1");
        assert!(lab.ask(None, "127.0.0.1:8081", Protocol::Tcp).is_some());
        fw.unpublish(&owner("b"), &[]).unwrap();
        fw.tidy().unwrap();
        assert_eq!(std::fs::read_to_string(file).unwrap().trim(), "0");
        assert!(!ruleset().contains("table inet weft"), "{}", ruleset());
        if has("iptables") {
            assert!(!run("iptables -t raw -S").contains("WEFT"));
        }
    });
}

#[test]
fn own_bridge_loses_route_localnet_with_last_port() {
    with_each(|_, fw| {
        let ports = [tcp(None, 8080, 80)];
        let file = "/proc/sys/net/ipv4/conf/br0/route_localnet";
        run("ip link set br0 alias weft:bridge");
        fw.publish(&owner("a"), &addrs(3), &ports, &plain()).unwrap();
        std::fs::write(file, "1").unwrap();
        fw.unpublish(&owner("a"), &ports).unwrap();
        fw.tidy().unwrap();
        assert_eq!(std::fs::read_to_string(file).unwrap().trim(), "0");
        assert!(!ruleset().contains("table inet weft"), "{}", ruleset());
    });
}
