//! Real packets between containers on several hosts.
#![allow(clippy::unwrap_used)] // a failed unwrap in a test's helper is the failure report, too

mod common;

use common::*;
use ovl_api::model::{Delta, Encap, Host, Network};

const BLOCKS: [(&str, &str); 6] = [
    ("10.42.0.0/26", "a"),
    ("10.42.0.64/26", "b"),
    ("10.42.0.128/26", "c"),
    ("fd42::/122", "a"),
    ("fd42::40/122", "b"),
    ("fd42::80/122", "c"),
];

/// Three hosts with a container each, on an underlay with these addresses.
fn three(network: &Network, vteps: [&str; 3], segment: Option<&str>) -> Vec<TestHost> {
    let names = ["a", "b", "c"];
    let registered: Vec<Host> = names
        .iter()
        .zip(vteps)
        .map(|(name, vtep)| host(name, vtep.split('/').next().unwrap(), segment))
        .collect();
    let mut hosts = Vec::new();
    for (number, name) in names.iter().enumerate() {
        let last = 64 * number + 5;
        let of = endpoint(name, &[&format!("10.42.0.{last}"), &format!("fd42::{last:x}")]);
        let mut host = TestHost::new(name, &[vteps[number]]);
        let view = view(name, &registered, std::slice::from_ref(network), &BLOCKS, std::slice::from_ref(&of));
        let changes = host.full(&view);
        assert!(changes.is_complete(), "{changes:#?}");
        assert_eq!(changes.warnings, [""; 0]);
        host.attach(network, &of);
        let changes = host.full(&view);
        assert!(changes.is_empty(), "the plugin's half is not what the agent wants: {changes:#?}");
        hosts.push(host);
    }
    hosts
}

fn all_reach_all(hosts: &[TestHost]) {
    for (from, name) in hosts.iter().zip(["a", "b", "c"]) {
        for last in [5, 69, 133] {
            for to in [format!("10.42.0.{last}"), format!("fd42::{last:x}")] {
                from.ping_from(name, &to).unwrap_or_else(|text| panic!("{name} to {to}: {text}"));
                from.ping(&to).unwrap_or_else(|text| panic!("host {name} to {to}: {text}"));
            }
        }
        // The hosts' own addresses.
        for to in ["10.42.0.1", "fd42::1", "10.42.0.64", "fd42::80"] {
            from.ping_from(name, to).unwrap_or_else(|text| panic!("{name} to {to}: {text}"));
        }
    }
}

fn wrong_addresses_fail_at_once(hosts: &[TestHost]) {
    // In no block; in the own block; in another host's block.
    for to in ["10.42.7.7", "fd42::7:7", "10.42.0.9", "fd42::9", "10.42.0.99", "fd42::59"] {
        let text = ping_once(&hosts[0].containers["a"], to).unwrap_err();
        assert!(text.to_lowercase().contains("unreachable"), "{to}: {text}");
    }
}

#[test]
fn containers_reach_each_other_over_an_ipv4_underlay() {
    if !kernel_has_vxlan() {
        return;
    }
    net::testns::in_fresh(|| {
        let hosts = three(&network(), ["192.0.2.1/24", "192.0.2.2/24", "192.0.2.3/24"], None);
        all_reach_all(&hosts);
        wrong_addresses_fail_at_once(&hosts);
        assert_eq!(hosts[0].mtu(DEV), 1450);
    });
}

#[test]
fn containers_reach_each_other_over_an_ipv6_underlay() {
    if !kernel_has_vxlan() {
        return;
    }
    net::testns::in_fresh(|| {
        let hosts = three(&network(), ["2001:db8::1/64", "2001:db8::2/64", "2001:db8::3/64"], None);
        all_reach_all(&hosts);
        wrong_addresses_fail_at_once(&hosts);
        assert_eq!(hosts[0].mtu(DEV), 1430);
    });
}

#[test]
fn on_one_segment_packets_go_as_they_are() {
    if !kernel_has_vxlan() {
        return;
    }
    net::testns::in_fresh(|| {
        let network = Network { encap: Encap::Direct, ..network() };
        let segment = Some("192.0.2.0/24");
        let hosts = three(&network, ["192.0.2.1/24", "192.0.2.2/24", "192.0.2.3/24"], segment);
        // The strictest check that a host may have for where packets come from.
        for host in &hosts {
            host.sh("for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 1 > $f; done");
        }
        all_reach_all(&hosts);
        let route = hosts[0].sh("ip route get 10.42.0.69; ip -6 route get fd42::45");
        assert!(route.contains("via 192.0.2.2 dev eth0 src 10.42.0.2"), "{route}");
        // As a node's own programs do that are bound to its address, and what is masqueraded there.
        for host in &hosts[..2] {
            host.sh("ping -c 2 -i 0.05 -W 5 -I eth0 10.42.0.133");
        }
        assert!(route.contains(&format!("dev {DEV}")), "IPv6 cannot go direct on an IPv4 underlay: {route}");
        wrong_addresses_fail_at_once(&hosts);
    });
}

#[test]
fn direct_routing_on_an_ipv6_segment() {
    if !kernel_has_vxlan() {
        return;
    }
    net::testns::in_fresh(|| {
        let network = Network { encap: Encap::Direct, ..network() };
        let vteps = ["2001:db8::1/64", "2001:db8::2/64", "2001:db8::3/64"];
        let hosts = three(&network, vteps, Some("2001:db8::/64"));
        all_reach_all(&hosts);
        let route = hosts[0].sh("ip -6 route get fd42::45");
        assert!(route.contains("via 2001:db8::2 dev eth0") && route.contains("src fd42::2"), "{route}");
    });
}

/// A container on another host is reached the moment this host has heard of the block, and a borrowed single address goes to
/// its borrower.
#[test]
fn a_new_block_and_a_borrowed_address_are_reached_by_a_delta() {
    if !kernel_has_vxlan() {
        return;
    }
    net::testns::in_fresh(|| {
        let network = network();
        let registered = [host("a", "192.0.2.1", None), host("b", "192.0.2.2", None)];
        let networks = std::slice::from_ref(&network);
        let mut a = TestHost::new("a", &["192.0.2.1/24"]);
        let mut b = TestHost::new("b", &["192.0.2.2/24"]);
        let one = endpoint("one", &["10.42.0.5", "fd42::5"]);
        // In a's blocks, but on b, which has none: it borrowed them.
        let two = endpoint("two", &["10.42.0.9", "fd42::9"]);
        let mut owners = vec![("10.42.0.0/26", "a"), ("fd42::/122", "a")];
        a.full(&view("a", &registered, networks, &owners, std::slice::from_ref(&one)));
        a.attach(&network, &one);
        owners.extend([("10.42.0.9/32", "b"), ("fd42::9/128", "b")]);
        let changes = b.full(&view("b", &registered, networks, &owners, std::slice::from_ref(&two)));
        assert_eq!(changes.warnings.len(), 2, "{changes:#?}");
        b.attach(&network, &two);
        assert!(a.ping_from("one", "10.42.0.9").is_err());
        let blocks = ["10.42.0.9/32", "fd42::9/128"].map(|block| (ID.to_owned(), prefix(block)));
        let delta = Delta { blocks: blocks.into(), ..Delta::default() };
        let seen = view("a", &registered, networks, &owners, std::slice::from_ref(&one));
        let changes = a.delta(&seen, &delta);
        assert!(
            changes.lines.iter().any(|line| line.starts_with("route 10.42.0.9/32 via 10.42.0.9")),
            "{changes:#?}"
        );
        for (host, from, to) in [(&a, "one", "10.42.0.9"), (&b, "two", "10.42.0.5")] {
            host.ping_from(from, to).unwrap();
        }
        a.ping_from("one", "fd42::9").unwrap();
        a.ping("10.42.0.9").unwrap();
        a.ping("fd42::9").unwrap();
        assert!(a.full(&seen).is_empty());

        // b gets a block, and with it an address of its own, which becomes the next hop.
        owners.push(("10.42.0.64/26", "b"));
        let delta = Delta { blocks: [(ID.to_owned(), prefix("10.42.0.64/26"))].into(), ..Delta::default() };
        let seen = view("a", &registered, networks, &owners, std::slice::from_ref(&one));
        a.delta(&seen, &delta);
        b.delta(&view("b", &registered, networks, &owners, std::slice::from_ref(&two)), &delta);
        a.ping_from("one", "10.42.0.9").unwrap();
        b.ping("10.42.0.5").unwrap();
        let route = a.sh("ip route get 10.42.0.9");
        assert!(route.contains(&format!("via 10.42.0.64 dev {DEV} src 10.42.0.2")), "{route}");
        assert!(a.full(&seen).is_empty());
    });
}

/// As kube-proxy does it for a connection of the node's own to a Service: the masqueraded source is what the kernel finds
/// first on the device. The shared gateway address would bring the answers to the node that sends them.
#[test]
fn masquerade_takes_the_nodes_own_address() {
    if !kernel_has_vxlan() {
        return;
    }
    net::testns::in_fresh(|| {
        let hosts = three(&network(), ["192.0.2.1/24", "192.0.2.2/24", "192.0.2.3/24"], None);
        let nft = format!(
            "nft -f - <<END
             table inet services {{
                 chain output {{
                     type nat hook output priority -100;
                     ip daddr 10.96.0.1 dnat ip to 10.42.0.69
                     ip6 daddr fd96::1 dnat ip6 to fd42::45
                 }}
                 chain postrouting {{ type nat hook postrouting priority 100; oifname {DEV} masquerade; }}
             }}
END"
        );
        let iptables = |program: &str, service: &str, pod: &str| {
            format!(
                "{program} -w -t nat -A OUTPUT -d {service} -j DNAT --to-destination {pod}
                 {program} -w -t nat -A POSTROUTING -o {DEV} -j MASQUERADE\n"
            )
        };
        let iptables =
            iptables("iptables", "10.96.0.1", "10.42.0.69") + &iptables("ip6tables", "fd96::1", "fd42::45");
        for (host, rules) in [(&hosts[0], &nft), (&hosts[2], &iptables)] {
            host.sh("ip route add 10.96.0.0/16 dev eth0; ip -6 route add fd96::/112 dev eth0");
            host.sh(rules);
            for service in ["10.96.0.1", "fd96::1"] {
                host.ping(service).unwrap_or_else(|text| panic!("{service} with {rules}: {text}"));
            }
        }
    });
}
