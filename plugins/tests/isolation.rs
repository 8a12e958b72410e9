//! What a container, or a machine beside the host, can do with packets that are not what the host expects.

#![allow(clippy::unwrap_used)]

mod common;

use common::stage::{Stage, any, network};
use common::with;
use serde_json::json;

/// A forged source makes a connection in the victim's name; what the forger then sends passes as the answer.
#[test]
fn forged_source_opens_no_unpublished_port() {
    let mut stage = Stage::new();
    stage.attach(&network(5, json!({})), "c1");
    stage.attach(&network(6, json!({"ingressPolicy": "same-bridge"})), "c2");
    stage.serve("c2", 7000);
    stage.host.sh(
        "nft 'add table inet count; add chain inet count in { type filter hook prerouting priority -250; }; \
         add rule inet count in iifname { br5, wan } ip saddr 10.6.0.2 counter; \
         add rule inet count in iifname { br5, wan } ip6 saddr fd00:6::2 counter'",
    );
    let mut port = 5000;
    for rp_filter in [0, 2] {
        stage.rp_filter(rp_filter);
        for (from, own4, own6) in [
            (("far", "wan", "wan"), "192.0.2.2", "2001:db8::2"),
            (("c1", "eth0", "br5"), "10.5.0.2", "fd00:5::2"),
        ] {
            for (own, victim) in [(own4, "10.6.0.2"), (own6, "fd00:6::2")] {
                port += 1;
                let own = (own, &*port.to_string());
                assert_eq!(stage.ask(from.0, own, (victim, "7000"), "0.3"), None, "{from:?} before");
                stage.forge(from, (victim, "7000"), own);
                let answer = stage.ask(from.0, own, (victim, "7000"), "0.5");
                assert_eq!(answer, None, "{from:?}, rp_filter {rp_filter}");
            }
        }
    }
    let counted = stage.host.sh("nft list table inet count");
    assert_eq!(counted.matches("packets 0 ").count(), 2, "{counted}");
    // What is not forged passes.
    for own in ["10.6.0.2", "fd00:6::2"] {
        let far = if own.contains(':') { "2001:db8::2" } else { "192.0.2.2" };
        stage.host.sh(&format!("ip netns exec c2 ping -qc1 -W5 -I {own} {far}"));
    }
}

/// A container has no other source than one of its bridge's subnets; the host itself has all.
#[test]
fn source_of_elsewhere_is_dropped_on_own_bridge() {
    let stage = Stage::new();
    stage.attach(&network(5, json!({})), "c1");
    stage.rp_filter(0);
    stage.host.sh(
        "nft 'add table inet count; add chain inet count in { type filter hook prerouting priority -250; }; \
         add chain inet count raw { type filter hook prerouting priority -400; }; \
         add rule inet count raw udp dport 9999 counter; add rule inet count in udp dport 9999 counter'",
    );
    let c1 = ("c1", "eth0", "br5");
    for (src, dst) in [
        ("192.0.2.77", "192.0.2.2"),
        ("198.51.100.1", "192.0.2.2"),
        ("127.0.0.1", "192.0.2.2"),
        ("127.8.8.8", "10.5.0.1"),
        ("2001:db8::77", "2001:db8::2"),
        ("2001:db8:ff::1", "2001:db8::2"),
    ] {
        stage.forge(c1, (src, "4000"), (dst, "9999"));
    }
    // 127.0.0.0/8 is dropped on any link.
    stage.forge(("far", "wan", "wan"), ("127.0.0.1", "4000"), ("192.0.2.1", "9999"));
    let counted = || stage.host.sh("nft list table inet count | grep -o 'packets [0-9]*'").replace('\n', " ");
    assert_eq!(counted(), "packets 0 packets 7");
    stage.forge(c1, ("10.5.0.2", "4000"), ("192.0.2.2", "9999"));
    stage.forge(c1, ("fd00:5::2", "4000"), ("2001:db8::2", "9999"));
    assert_eq!(counted(), "packets 2 packets 9");
}

/// A bridge of others may be the host's way out: what comes in by it has any source but those of other networks.
#[test]
fn foreign_bridge_takes_sources_from_elsewhere() {
    let stage = Stage::new();
    stage.host.sh("ip link add br5 type bridge && ip link set br5 up");
    stage.attach(&network(5, json!({})), "c1");
    stage.attach(&network(6, json!({})), "c2");
    stage.rp_filter(0);
    stage.host.sh(
        "nft 'add table inet count; add chain inet count in { type filter hook prerouting priority -250; }; \
         add rule inet count in udp dport 9999 counter'",
    );
    let c1 = ("c1", "eth0", "br5");
    stage.forge(c1, ("198.51.100.1", "4000"), ("192.0.2.2", "9999"));
    stage.forge(c1, ("10.6.0.2", "4000"), ("192.0.2.2", "9999"));
    stage.forge(("far", "wan", "wan"), ("10.5.0.2", "4000"), ("192.0.2.1", "9999"));
    let counted = stage.host.sh("nft list table inet count");
    assert!(counted.contains("packets 1 "), "{counted}");
}

/// Without a published port or masquerading the table is there for the bridges alone, and goes with their last attachment.
#[test]
fn bridge_rules_go_with_last_attachment() {
    let stage = Stage::new();
    let (five, six) = (network(5, json!({})), network(6, json!({"ipMasq": true})));
    for (conf, id) in [(&five, "c1"), (&five, "c2"), (&six, "c3")] {
        stage.attach(conf, id);
    }
    let rules = || stage.host.sh("nft list ruleset");
    assert!(rules().contains("\"br5\", \"br6\"") || rules().contains("\"br6\", \"br5\""), "{}", rules());
    stage.host.about("DEL", &five, "c1").run().ok();
    stage.host.about("DEL", &six, "c3").run().ok();
    stage.host.eventually("! nft list ruleset | grep -q br6");
    assert!(rules().contains("br5"), "{}", rules());
    stage.host.about("DEL", &five, "c2").run().ok();
    stage.host.eventually("! nft list table inet weft 2>/dev/null");
}

/// nft saves and loads what it lists.
#[test]
fn ruleset_is_loaded_again_by_nft() {
    let stage = Stage::new();
    let conf = network(5, json!({"ipMasq": true, "ingressPolicy": "same-bridge"}));
    let result = {
        stage.host.netns("c1");
        stage.host.about("ADD", &conf, "c1").run().ok()
    };
    let before = stage.host.sh("nft list ruleset");
    stage.host.sh("nft list ruleset > /run/rules && nft flush ruleset && nft -f - < /run/rules");
    assert_eq!(stage.host.sh("nft list ruleset"), before);
    stage.host.about("CHECK", &with(&conf, json!({"prevResult": result})), "c1").run().ok();
}

/// An internal network answers its host, and reaches nothing beyond: by no frame, and by no published port of another network.
#[test]
fn internal_bridge_forwards_nothing() {
    let mut stage = Stage::new();
    stage.attach(&network(5, json!({"internal": true})), "c1");
    stage.attach(&network(5, json!({"internal": true})), "c2");
    stage.attach(&network(6, json!({"ipMasq": true})), "c3");
    stage.publish(6, "c3", json!(["10.6.0.2/24", "fd00:6::2/64"]));
    for netns in ["c2", "c3", "far"] {
        stage.serve(netns, 7000);
    }
    for to in ["192.0.2.1", "2001:db8::1"] {
        assert!(stage.ask("far", any(to), (to, "7001"), "5").is_some(), "{to} from far");
    }
    for (to, port) in [
        ("192.0.2.1", "7001"),
        ("2001:db8::1", "7001"),
        ("10.5.0.1", "7001"),
        ("fd00:5::1", "7001"),
        ("192.0.2.2", "7000"),
        ("2001:db8::2", "7000"),
        ("10.6.0.2", "7000"),
        ("fd00:6::2", "7000"),
    ] {
        assert_eq!(
            stage.ask("c1", any(to), (to, port), "0.5"),
            None,
            "{to}:{port} from the internal network"
        );
    }
    for to in ["10.5.0.3", "fd00:5::3"] {
        assert_eq!(stage.ask("far", any(to), (to, "7000"), "0.5"), None, "from outside");
        assert_eq!(stage.ask("c3", any(to), (to, "7000"), "0.5"), None, "from another network");
        assert!(stage.ask("c1", any(to), (to, "7000"), "5").is_some(), "{to} within");
    }
    stage.host.sh("ip netns exec c1 ping -qc1 -W5 10.5.0.1 && ip netns exec c1 ping -qc1 -W5 fd00:5::1");
    // A packet of no connection, by a frame to the gateway.
    stage.host.sh(
        "nft 'add table inet count; add chain inet count out { type filter hook postrouting priority 400; }; \
         add rule inet count out udp dport 9999 counter'",
    );
    for (src, dst) in [("10.5.0.2", "192.0.2.2"), ("fd00:5::2", "2001:db8::2"), ("10.5.0.2", "10.6.0.2")] {
        stage.forge(("c1", "eth0", "br5"), (src, "4000"), (dst, "9999"));
    }
    assert!(stage.host.sh("nft list table inet count").contains("packets 0 "));
    stage.host.sh("nft delete table inet count");
    for (n, id) in [(5, "c1"), (5, "c2"), (6, "c3")] {
        stage.host.about("DEL", &network(n, json!({})), id).run().ok();
    }
    stage.host.eventually("! nft list set inet weft bridges_closed | grep -q br5");
}

/// With isolated ports a frame to the gateway's MAC does not lead to a neighbour either; a published port does.
#[test]
fn isolated_ports_stay_isolated_through_gateway() {
    let mut stage = Stage::new();
    let open = network(5, json!({}));
    let isolated = network(6, json!({"portIsolation": true, "hairpinMode": true}));
    for (conf, id) in [(&open, "a1"), (&open, "a2"), (&isolated, "b1"), (&isolated, "b2")] {
        stage.attach(conf, id);
    }
    stage.publish(6, "b2", json!(["10.6.0.3/24", "fd00:6::3/64"]));
    stage.serve("a2", 7000);
    stage.serve("b2", 7000);
    for (n, id, passes) in [(5, "a", true), (6, "b", false)] {
        for (net, bits) in [(format!("10.{n}.0."), 32), (format!("fd00:{n}::"), 128)] {
            for (from, to) in [(1, 3), (2, 2)] {
                stage.host.sh(&format!("ip -n {id}{from} route add {net}{to}/{bits} via {net}1"));
            }
            let to = format!("{net}3");
            let wait = if passes { "5" } else { "0.5" };
            let answer = stage.ask(&format!("{id}1"), any(&to), (&to, "7000"), wait);
            assert_eq!(answer.is_some(), passes, "{to}");
        }
    }
    // With br_netfilter what is translated to the same bridge is bridged, which isolated ports forbid.
    stage.host.sh("for f in /proc/sys/net/bridge/bridge-nf-call-ip*; do test ! -e $f || echo 0 > $f; done");
    for to in ["10.6.0.1", "fd00:6::1", "192.0.2.1"] {
        assert!(stage.ask("b1", any(to), (to, "7001"), "5").is_some(), "published port at {to}");
    }
}

/// What leaves in a neighbour's name is answered to the neighbour, by the port that the forger chose.
#[test]
fn forged_neighbour_opens_no_unpublished_port() {
    let mut stage = Stage::new();
    let keys = json!({"ipMasq": true, "ingressPolicy": "same-bridge"});
    let open = network(5, keys.clone());
    let isolated = with(&network(6, keys), json!({"portIsolation": true}));
    for (conf, id) in [(&open, "a1"), (&open, "a2"), (&isolated, "b1"), (&isolated, "b2")] {
        stage.attach(conf, id);
    }
    stage.serve("a2", 7000);
    stage.serve("b2", 7000);
    for (n, id, passes) in [(5, "a", true), (6, "b", false)] {
        let (forger, link, port) = (format!("{id}1"), format!("br{n}"), format!("555{n}"));
        for (victim, far, here) in [
            (format!("10.{n}.0.3"), "192.0.2.2", "192.0.2.1"),
            (format!("fd00:{n}::3"), "2001:db8::2", "2001:db8::1"),
        ] {
            stage.forge((&forger, "eth0", &link), (&victim, "7000"), (far, &port));
            let wait = if passes { "5" } else { "0.5" };
            let answer = stage.ask("far", (far, &port), (here, "7000"), wait);
            assert_eq!(answer.is_some(), passes, "{victim}");
            // What it says in its own name gets out.
            stage.host.sh(&format!("ip netns exec {forger} ping -qc1 -W5 {far}"));
        }
    }
}
