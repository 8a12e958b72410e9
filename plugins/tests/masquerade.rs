//! What leaves a bridge's network: with which source, past which forward chains.

#![allow(clippy::unwrap_used)]

mod common;

use common::packets::RESET;
use common::stage::{Stage, any, network};
use common::with;
use serde_json::json;

/// What connection tracking calls invalid does not leave with the container's address.
#[test]
fn invalid_packet_does_not_leave_unmasqueraded() {
    let mut stage = Stage::new();
    for (masquerades, count) in [(false, 1), (true, 0)] {
        stage.attach(&network(5, json!({"ipMasq": masquerades})), "c1");
        stage.serve("far", 7000 + count);
        stage.host.sh(
            "nft 'add table inet count; add chain inet count out { type filter hook postrouting priority 400; }; \
             add rule inet count out oifname wan tcp dport 9999 ip saddr 10.5.0.0/24 counter; \
             add rule inet count out oifname wan tcp dport 9999 ip6 saddr fd00:5::/64 counter'",
        );
        let own = |family: &str| {
            let show =
                format!("ip -n c1 -o {family} addr show eth0 scope global | sed 's/.*inet6* //;s/\\/.*//'");
            stage.host.sh(&show)
        };
        for (src, dst) in [(own("-4"), "192.0.2.2"), (own("-6"), "2001:db8::2")] {
            assert!(stage.python("c1", RESET, &[&src, dst]).is_some(), "{src}");
            // What is valid leaves, masqueraded.
            let seen = stage.ask("c1", any(dst), (dst, &(7000 + count).to_string()), "5");
            let seen = seen.unwrap().replace("::ffff:", "");
            assert_eq!(seen == src, !masquerades, "{seen}");
        }
        let counted = stage.host.sh("nft list table inet count");
        assert_eq!(counted.matches(&format!("packets {count} ")).count(), 2, "{counted}");
        stage.host.sh("nft delete table inet count");
        stage.host.about("DEL", &network(5, json!({"ipMasq": masquerades})), "c1").run().ok();
        stage.host.sh("ip netns del c1");
    }
    stage.host.eventually("! nft list table inet weft 2>/dev/null");
}

/// What another program translates to a container with published ports is not Weft's to masquerade.
#[test]
fn hairpin_spares_connections_translated_by_others() {
    let mut stage = Stage::new();
    stage.attach(&network(5, json!({"hairpinMode": true})), "c1");
    stage.attach(&network(5, json!({"hairpinMode": true})), "c2");
    stage.publish(5, "c1", json!(["10.5.0.2/24", "fd00:5::2/64"]));
    let all = json!({
        "cniVersion": "1.1.0", "name": "net5", "type": "portmap", "masqAll": true,
        "prevResult": {
            "cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "sandbox": "/run/netns/c2"}],
            "ips": [{"address": "10.5.0.3/24", "interface": 0}, {"address": "fd00:5::3/64", "interface": 0}],
        },
        "runtimeConfig": {"portMappings": [{"hostPort": 7002, "containerPort": 7000, "protocol": "udp"}]},
    });
    stage.host.about("ADD", &all, "c2").run().ok();
    stage.serve("c1", 7000);
    stage.serve("c2", 7000);
    stage.host.sh(
        "nft 'add table inet svc; add chain inet svc in { type nat hook prerouting priority -100; }; \
         add rule inet svc in meta nfproto ipv4 udp dport 9001 dnat ip to 10.5.0.2:7000; \
         add rule inet svc in meta nfproto ipv4 udp dport 9002 dnat ip to 10.5.0.3:7000; \
         add rule inet svc in meta nfproto ipv6 udp dport 9002 dnat ip6 to [fd00:5::3]:7000'",
    );
    let ask = |from: &str, to: &str, port: &str| {
        let answer = stage.ask(from, any(to), (to, port), "5");
        answer.unwrap_or_else(|| panic!("{from} to {to}:{port}")).replace("::ffff:", "")
    };
    for (to, far, gateway) in
        [("192.0.2.1", "192.0.2.2", "10.5.0.1"), ("2001:db8::1", "2001:db8::2", "fd00:5::1")]
    {
        assert_eq!(ask("far", to, "9002"), far, "translated by another program");
        assert_eq!(ask("far", to, "7002"), gateway, "translated by Weft, masqAll");
    }
    assert_eq!(ask("c2", "10.5.0.1", "7001"), "10.5.0.1", "translated by Weft, from the same subnet");
    // The answer to what is not masqueraded is bridged, and passes by the translation only with br_netfilter.
    if stage.host.try_sh("grep -q 1 /proc/sys/net/bridge/bridge-nf-call-iptables").0 {
        assert_eq!(
            ask("c2", "10.96.0.1", "9001"),
            "10.5.0.3",
            "translated by another program, from the same subnet"
        );
    }
}

#[test]
fn bridge_exceptions_see_containers_own_address() {
    for backend in ["nftables", "iptables"] {
        let mut stage = Stage::new();
        if backend == "iptables" && !stage.host.try_sh("iptables --version && ip6tables --version").0 {
            println!("skipped: this host has no iptables");
            return;
        }
        stage.serve("far", 7000);
        let conf = network(5, json!({"ipMasq": true, "ipMasqBackend": backend}));
        for (number, (cidrs, v4, v6)) in [
            (2, (json!(["192.0.2.2/32", "2001:db8::4/126"]), "10.5.0.2", "2001:db8::1")),
            (3, (json!(["192.0.2.4/30", "2001:db8::2/127"]), "192.0.2.1", "fd00:5::3")),
        ] {
            let except = with(&conf, json!({"nonMasqueradeCIDRs": cidrs}));
            let result = stage.attach(&except, "c1");
            assert_eq!(result["ips"][0]["address"], format!("10.5.0.{number}/24"));
            for (to, seen) in [("192.0.2.2", v4), ("2001:db8::2", v6)] {
                let answer = stage.ask("c1", any(to), (to, "7000"), "5");
                let answer = answer.as_deref().map(|source| source.trim_start_matches("::ffff:"));
                assert_eq!(answer, Some(seen), "{backend}: {to}");
            }
            stage.host.about("CHECK", &with(&except, json!({"prevResult": result})), "c1").run().ok();
            // By what the attachment has, not by what is configured by then.
            stage.host.about("DEL", &network(5, json!({})), "c1").run().ok();
            stage.host.eventually("! nft list ruleset | grep c1/eth0");
            stage.host.sh("ip netns del c1");
        }
        stage.host.netns("c1");
        let bad = with(&conf, json!({"nonMasqueradeCIDRs": ["192.0.2.2"]}));
        let refused = stage.host.about("ADD", &bad, "c1").run();
        let details = refused.document["details"].as_str().unwrap_or_default();
        assert!(refused.code() == 7 && details.contains("nonMasqueradeCIDRs is \"192.0.2.2\""), "{details}");
    }
}

/// Where another program's forward chain has the policy drop, what is Weft's passes, and nothing else.
#[test]
fn forward_policy_drop_lets_bridge_out() {
    for chains in [
        "nft 'add table inet hard; add chain inet hard f { type filter hook forward priority 0; policy drop; }'",
        "iptables -P FORWARD DROP && ip6tables -P FORWARD DROP",
    ] {
        let mut stage = Stage::new();
        if chains.starts_with("iptables") && !stage.host.try_sh("iptables --version && ip6tables --version").0
        {
            println!("skipped: this host has no iptables");
            return;
        }
        stage.serve("far", 7000);
        stage.host.sh(chains);
        let before = stage.host.sh("nft list ruleset; iptables-save | grep -v '^[#:]' || true");
        let conf = network(5, json!({"ipMasq": true}));
        let leave = with(&conf, json!({"forwardAccept": false}));
        for (conf, passes) in [(&leave, false), (&conf, true)] {
            stage.attach(conf, "c1");
            stage.serve("c1", 7000);
            let own = |family: &str| {
                stage.host.sh(&format!(
                    "ip -n c1 -o {family} addr show eth0 scope global | sed 's/.*inet6* //;s/\\/.*//'"
                ))
            };
            for (to, from) in [("192.0.2.2", own("-4")), ("2001:db8::2", own("-6"))] {
                let wait = if passes { "5" } else { "0.5" };
                assert_eq!(stage.ask("c1", any(to), (to, "7000"), wait).is_some(), passes, "{chains}: {to}");
                assert_eq!(stage.ask("far", any(to), (&from, "7000"), "0.5"), None, "{chains}: in");
            }
            stage.publish(5, "c1", json!([format!("{}/24", own("-4")), format!("{}/64", own("-6"))]));
            for to in ["192.0.2.1", "2001:db8::1"] {
                let wait = if passes { "5" } else { "0.5" };
                assert_eq!(stage.ask("far", any(to), (to, "7001"), wait).is_some(), passes, "{chains}: port");
            }
            let map = json!({"cniVersion": "1.1.0", "name": "net5", "type": "portmap"});
            stage.host.about("DEL", &map, "c1").run().ok();
            stage.host.about("DEL", conf, "c1").run().ok();
            stage.servers.pop().map(|mut server| server.kill().and_then(|()| server.wait()));
            stage.host.sh("ip netns del c1");
            stage.host.eventually("! nft list table inet weft 2>/dev/null");
            let after = stage.host.sh("nft list ruleset; iptables-save | grep -v '^[#:]' || true");
            assert_eq!(after, before, "{chains}");
        }
    }
}
