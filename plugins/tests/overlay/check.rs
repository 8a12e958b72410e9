//! CHECK after a change by others; DEL and GC after a change of the configuration.

use super::common::agent::{Agent, GROUP};
use super::common::with;
use super::{add, gone, host, veth};
use serde_json::json;

#[test]
fn check_finds_what_is_not_as_add_left_it() {
    let (host, agent) = (host(), Agent::new());
    let conf = agent.conf("web");
    let result = add(&host, &conf, "c5");
    agent.stop();
    let veth = veth(&result);
    let conf = with(&conf, json!({"prevResult": result}));
    host.about("CHECK", &conf, "c5").run().ok();
    for (harm, mend, words) in [
        (format!("ip link set {veth} group 7"), format!("ip link set {veth} group {GROUP}"), "group 0x7"),
        (
            format!("ip route del 10.42.0.5 dev {veth}"),
            format!("ip route add 10.42.0.5 dev {veth} proto 87"),
            "10.42.0.5/32",
        ),
        (
            format!("ip -6 route del fd00:42::5 dev {veth}"),
            format!("ip -6 route add fd00:42::5 dev {veth} proto 87"),
            "fd00:42::5/128",
        ),
        (
            format!("ip route replace 10.42.0.5 dev {veth} proto static"),
            format!("ip route replace 10.42.0.5 dev {veth} proto 87"),
            "10.42.0.5/32",
        ),
        (
            format!("ip neigh del 10.42.0.5 dev {veth}"),
            format!("ip neigh replace 10.42.0.5 lladdr 02:00:00:00:00:05 dev {veth}"),
            "neighbour 10.42.0.5",
        ),
        (
            format!("ip addr del fe80::1/64 dev {veth}"),
            format!("ip addr add fe80::1/64 dev {veth} nodad"),
            "fe80::1/64",
        ),
        (
            "ip -n c5 addr del 10.42.0.5/16 dev eth0".into(),
            // With its last IPv4 address a link loses all that it has of IPv4.
            format!(
                "ip -n c5 addr add 10.42.0.5/16 dev eth0 noprefixroute; ip -n c5 route add 10.42.0.1 dev eth0; \
                 ip -n c5 route add 10.42.0.0/16 via 10.42.0.1; ip -n c5 route add default via 10.42.0.1; \
                 ip -n c5 neigh replace 10.42.0.1 lladdr $(cat /sys/class/net/{veth}/address) dev eth0"
            ),
            "10.42.0.5/16",
        ),
        ("ip -n c5 route del default".into(), "ip -n c5 route add default via 10.42.0.1".into(), "0.0.0.0/0"),
        (
            "ip -n c5 -6 route del fd00:42::/64".into(),
            "ip -n c5 -6 route add fd00:42::/64 via fe80::1 dev eth0".into(),
            "fd00:42::/64",
        ),
        (
            "ip -n c5 neigh replace 10.42.0.1 lladdr 02:00:00:00:00:99 dev eth0".into(),
            format!("ip -n c5 neigh replace 10.42.0.1 lladdr $(cat /sys/class/net/{veth}/address) dev eth0"),
            "neighbour 10.42.0.1",
        ),
        ("ip -n c5 link set eth0 mtu 1400".into(), "ip -n c5 link set eth0 mtu 1450".into(), "1400"),
        (
            "ip -n c5 link set eth0 address 02:00:00:00:00:99".into(),
            format!(
                "ip -n c5 link set eth0 address 02:00:00:00:00:05; for hop in 10.42.0.1 fe80::1; do \
                 ip -n c5 neigh replace $hop lladdr $(cat /sys/class/net/{veth}/address) dev eth0; done"
            ),
            "02:00:00:00:00:99",
        ),
        (
            "nft delete element inet weft masq-10.42.0.0/16 '{ 10.42.0.5 }'".into(),
            "nft add element inet weft masq-10.42.0.0/16 '{ 10.42.0.5 comment \"web/c5/eth0\" }'".into(),
            "masq-10.42.0.0/16",
        ),
    ] {
        host.sh(&harm);
        let outcome = host.about("CHECK", &conf, "c5").run();
        assert_eq!(outcome.code(), 105, "{harm}");
        assert!(outcome.text().contains(words), "{harm}: {}", outcome.text());
        host.sh(&mend);
        let outcome = host.about("CHECK", &conf, "c5").run();
        assert!(outcome.success, "{mend}: {} {}", outcome.document, host.sh("ip -n c5 neigh"));
    }
    host.sh(&format!("ip link del {veth}"));
    assert_eq!(host.about("CHECK", &conf, "c5").run().code(), 105);
}

#[test]
fn changed_configuration_leaves_nothing_in_the_packet_filter() {
    for (verb, after) in [
        ("DEL", json!({"ipMasq": false})),
        ("DEL", json!({"ipMasqBackend": "iptables"})),
        ("DEL", json!({"ipMasq": 5})),
        ("GC", json!({"ipMasq": false})),
        ("GC", json!({"ipMasq": 5})),
    ] {
        let (host, agent) = (host(), Agent::new());
        let conf = agent.conf("web");
        add(&host, &conf, "c1");
        assert!(host.sh("nft list ruleset").contains("web/c1/eth0"));
        let after = with(&with(&conf, after), json!({"cni.dev/valid-attachments": []}));
        let done = host.about(verb, &after, "c1").run();
        assert!(done.success || (verb == "GC" && done.code() == 7), "{verb} {after}: {}", done.text());
        gone(&host);
    }
}
