//! Router advertisements of a container: neither the host nor another container takes routes or addresses from them.
#![allow(clippy::unwrap_used)]

mod common;

use common::agent::Agent;
use common::{Host, bridge, with};
use serde_json::{Value, json};

/// Sends a router advertisement (RFC 4861, section 4.2) with a lifetime of half an hour and an autonomous prefix to all nodes
/// on eth0.
const ADVERTISE: &str = "import socket
s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex('eth0'))
prefix = bytes([3, 4, 64, 0xc0]) + bytes([0, 0, 14, 16]) * 2 + bytes(4) + socket.inet_pton(socket.AF_INET6, '2001:db8:bad::')
s.sendto(bytes([134, 0, 0, 0, 64, 0, 7, 8]) + bytes(8) + prefix, ('ff02::1', 0, 0, socket.if_nametoindex('eth0')))
";

/// Has a container that was given no IPv6 send advertisements, as one with CAP_NET_RAW can by bare frames.
fn advertise(host: &Host, netns: &str) {
    host.sh(&format!("ip netns exec {netns} sysctl -qw net.ipv6.conf.eth0.disable_ipv6=0"));
    host.eventually(&format!("ip -n {netns} -6 addr show dev eth0 scope link -tentative | grep -q fe80"));
    for _ in 0..3 {
        host.sh(&format!("ip netns exec {netns} python3 -c \"{ADVERTISE}\""));
    }
}

/// A host that would believe routers: it does not forward, or its uplink's routes come by advertisements.
fn believing() -> Host {
    let host = Host::new();
    host.sh("sysctl -qw net.ipv6.conf.default.accept_ra=2 net.ipv6.conf.all.accept_ra=2");
    host
}

fn takes_none(host: &Host, control: &str, from: &str) {
    assert_eq!(
        host.sh("ip -6 route show default; ip -6 addr | grep 2001:db8:bad || true"),
        "",
        "the host believed {from}"
    );
    // The advertisement is one that would be taken.
    host.sh(&format!("sysctl -qw net.ipv6.conf.{control}.accept_ra=2"));
    advertise(host, from);
    host.eventually("ip -6 route show default | grep -q fe80");
}

#[test]
fn bridge_container_advertising_routes_changes_nothing() {
    let host = believing();
    let only4 = bridge("web", "10.1.0.0/24");
    let mut dual = bridge("dual", "10.2.0.0/24");
    dual["bridge"] = json!("br0");
    dual["ipam"]["ranges"] = json!([[{"subnet": "10.2.0.0/24"}], [{"subnet": "fd00:2::/64"}]]);
    // The second network's gateway would be in the way of the first one's on the same bridge.
    dual["isDefaultGateway"] = json!(false);
    for (conf, id) in [(&only4, "c1"), (&only4, "c2"), (&dual, "c3")] {
        host.netns(id);
        let result = host.about("ADD", conf, id).run().ok();
        let port = result["interfaces"][1]["name"].as_str().unwrap();
        assert_eq!(host.sh(&format!("cd /proc/sys/net/ipv6/conf/{port}; cat accept_ra autoconf")), "0\n0");
    }
    host.sh("sysctl -qw net.ipv6.conf.br0.disable_ipv6=0");
    advertise(&host, "c1");
    takes_none(&host, "br0", "c1");
    for (conf, id) in [(&only4, "c1"), (&only4, "c2"), (&dual, "c3")] {
        host.about("DEL", conf, id).run().ok();
    }
}

/// A network with both families on the same bridge.
fn dual() -> Value {
    let mut dual = bridge("dual", "10.2.0.0/24");
    dual["ipam"]["ranges"] = json!([[{"subnet": "10.2.0.0/24"}], [{"subnet": "fd00:2::/64"}]]);
    dual["isDefaultGateway"] = json!(false);
    dual["isGateway"] = json!(false);
    dual
}

/// The settings of a container's link.
fn settings(host: &Host, netns: &str, link: &str) -> String {
    host.sh(&format!(
        "ip netns exec {netns} sh -c 'cd /proc/sys/net/ipv6/conf/{link}; echo $(cat disable_ipv6 accept_ra autoconf)'"
    ))
}

#[test]
fn bridge_container_takes_no_routes_of_neighbour() {
    let host = Host::new();
    let only4 = bridge("web", "10.1.0.0/24");
    let fixed = json!({"type": "static", "addresses": [{"address": "10.1.0.77/24"}]});
    let fixed = with(&only4, json!({"name": "fixed", "ipam": fixed}));
    let fixed6 = json!({"type": "static", "addresses": [{"address": "fd00:3::7/64"}]});
    let fixed6 = with(&only4, json!({"name": "fixed6", "isDefaultGateway": false, "ipam": fixed6}));
    let mut routed6 = with(&only4, json!({"name": "routed6"}));
    routed6["ipam"]["ranges"] = json!([[{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.90"}]]);
    routed6["ipam"]["routes"] = json!([{"dst": "2001:db8:6::/48"}]);
    let attached = [
        ("c1", &only4, "1"),
        ("c2", &only4, "1"),
        ("c3", &dual(), "0 0 0"),
        ("c4", &fixed, "1"),
        ("c5", &fixed6, "0 0 0"),
        ("c6", &routed6, "0 0 0"),
        ("control", &only4, "1"),
    ];
    for (id, conf, expected) in attached {
        host.netns(id);
        // A container that would believe routers.
        host.sh(&format!("ip netns exec {id} sysctl -qw net.ipv6.conf.default.accept_ra=2"));
        host.sh(&format!("ip -n {id} link set lo up"));
        host.about("ADD", conf, id).run().ok();
        let has = settings(&host, id, "eth0");
        assert!(has.starts_with(expected), "{id}: {has}");
        // No other link's settings are touched.
        assert_eq!(settings(&host, id, "default"), "0 2 1", "{id}");
        assert_eq!(settings(&host, id, "all"), "0 1 1", "{id}");
        host.sh(&format!("ip netns exec {id} ping -qc1 -W4 ::1"));
    }
    host.sh("ip netns exec control sysctl -qw net.ipv6.conf.eth0.disable_ipv6=0");
    host.eventually("ip -n control -6 addr show dev eth0 scope link -tentative | grep -q fe80");
    advertise(&host, "c1");
    host.eventually("ip -n control -6 route show default | grep -q fe80");
    host.eventually("ip -n control -6 addr show dev eth0 | grep -q 2001:db8:bad");
    for id in ["c2", "c3", "c4", "c5", "c6"] {
        let took = host.sh(&format!(
            "ip -n {id} -6 route show default; ip -n {id} -6 addr show dev eth0 | grep 2001:db8:bad || true"
        ));
        assert_eq!(took, "", "{id} believed its neighbour");
    }
    let pings = "ip netns exec c2 ping -qc1 -W4 10.1.0.1 && ip netns exec c2 ping -qc1 -W4 10.1.0.77";
    host.sh(pings);
    for (id, conf, _) in attached {
        host.about("DEL", conf, id).run().ok();
    }
}

#[test]
fn second_network_with_ipv6_works_beside_first() {
    let host = Host::new();
    let only4 = bridge("web", "10.1.0.0/24");
    let second = with(&dual(), json!({"bridge": "br1", "isGateway": true}));
    for (id, order) in
        [("c1", [(&only4, "eth0"), (&second, "eth1")]), ("c2", [(&second, "eth1"), (&only4, "eth0")])]
    {
        host.netns(id);
        for (conf, ifname) in order {
            host.about("ADD", conf, id).env("CNI_IFNAME", ifname).run().ok();
        }
        assert!(settings(&host, id, "eth0").starts_with('1'));
        assert_eq!(settings(&host, id, "eth1"), "0 0 0");
        host.sh(&format!(
            "ip netns exec {id} ping -qc1 -W4 fd00:2::1 && ip netns exec {id} ping -qc1 -W4 10.1.0.1"
        ));
        for (conf, ifname) in order {
            host.about("DEL", conf, id).env("CNI_IFNAME", ifname).run().ok();
        }
    }
}

/// Where Weft does not give the addresses, routers may be what does.
#[test]
fn container_of_foreign_ipam_keeps_routers() {
    let host = Host::new();
    let file = host.bin.path().join("like-dhcp");
    let script = "#!/bin/sh\n[ \"$CNI_COMMAND\" = ADD ] || exit 0\n\
                  echo '{\"cniVersion\":\"1.1.0\",\"ips\":[{\"address\":\"10.1.0.7/24\"}]}'\n";
    std::fs::write(&file, script).unwrap();
    host.sh(&format!("chmod +x {}", file.display()));
    let foreign = with(&bridge("web", ""), json!({"isDefaultGateway": false, "ipam": {"type": "like-dhcp"}}));
    let none = with(&foreign, json!({"name": "none", "ipam": {}}));
    for (id, conf) in [("c1", &foreign), ("c2", &none)] {
        host.netns(id);
        let kernels = settings(&host, id, "default");
        host.about("ADD", conf, id).run().ok();
        assert_eq!(settings(&host, id, "eth0"), kernels, "{id}");
        host.about("DEL", conf, id).run().ok();
    }
}

#[test]
fn overlay_container_advertising_routes_changes_nothing() {
    let (host, agent) = (believing(), Agent::new());
    host.sh("mkdir -p /run/weft");
    let conf = agent.conf("web");
    for (id, ipv6) in [("c5", false), ("c6", true)] {
        if !ipv6 {
            agent.network(
                json!({"subnets": [{"subnet": "10.42.0.0/16", "gateway": "10.42.0.1", "block": 26}]}),
            );
        }
        host.netns(id);
        host.sh(&format!("ip netns exec {id} sysctl -qw net.ipv6.conf.default.accept_ra=2"));
        let result = host.about("ADD", &conf, id).run().ok();
        agent.network(json!({}));
        let veth = result["interfaces"][0]["name"].as_str().unwrap().to_owned();
        assert_eq!(host.sh(&format!("ip -n {id} -6 addr show dev eth0")).is_empty(), !ipv6);
        let believes = host.sh(&format!("ip netns exec {id} sysctl -n net.ipv6.conf.eth0.accept_ra"));
        assert!(!ipv6 || believes.trim() == "0", "{believes}");
        advertise(&host, id);
        takes_none(&host, &veth, id);
        host.about("DEL", &conf, id).run().ok();
    }
}
