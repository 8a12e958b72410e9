//! What a container, or a machine beside the host, can do with packets that are not what the host expects.

#![allow(clippy::unwrap_used)]

mod common;

use common::packets::{ASK, FORGE, RESET, SERVE};
use common::{Host, bridge, with};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

/// A host between a machine `far` (192.0.2.2, 2001:db8::2, on link `wan`) and the containers of two networks.
struct Stage {
    host: Host,
    servers: Vec<Child>,
}

impl Drop for Stage {
    fn drop(&mut self) {
        for mut server in self.servers.drain(..) {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

/// A dual-stack network on a bridge: 10.N.0.0/24 and fd00:N::/64.
fn network(n: u16, keys: Value) -> Value {
    let mut conf = with(&bridge(&format!("net{n}"), ""), json!({"bridge": format!("br{n}")}));
    conf["ipam"]["ranges"] =
        json!([[{"subnet": format!("10.{n}.0.0/24")}], [{"subnet": format!("fd00:{n}::/64")}]]);
    with(&conf, keys)
}

/// Any source of the destination's family, and any port.
fn any(to: &str) -> (&'static str, &'static str) {
    (if to.contains(':') { "::" } else { "0.0.0.0" }, "0")
}

impl Stage {
    fn new() -> Stage {
        let host = Host::new();
        host.netns("far");
        host.sh(
            "ip link add wan type veth peer name wan netns far && ip addr add 192.0.2.1/24 dev wan && ip link set wan up && \
             ip addr add 2001:db8::1/64 dev wan nodad && ip -n far addr add 192.0.2.2/24 dev wan && \
             ip -n far addr add 2001:db8::2/64 dev wan nodad && ip -n far link set wan up && \
             ip -n far route add default via 192.0.2.1 && ip -n far route add default via 2001:db8::1",
        );
        host.eventually("ip netns exec far ping -qc1 -W1 2001:db8::1");
        Stage { host, servers: Vec::new() }
    }

    fn attach(&self, conf: &Value, id: &str) -> Value {
        self.host.netns(id);
        self.host.sh(&format!("ip -n {id} link set lo up"));
        self.host.about("ADD", conf, id).run().ok()
    }

    /// Starts a UDP server in a namespace.
    fn serve(&mut self, netns: &str, port: u16) {
        let mut server = self.host.command("ip");
        server.args(["netns", "exec", netns, "python3", "-c", SERVE, &port.to_string()]);
        let mut server = server.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(server.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        self.servers.push(server);
    }

    /// Publishes port 7001 of the host, UDP, as port 7000 of a container of network `n`.
    fn publish(&self, n: u16, id: &str, addresses: Value) {
        let ips =
            addresses.as_array().unwrap().iter().map(|address| json!({"address": address, "interface": 0}));
        let map = json!({
            "cniVersion": "1.1.0", "name": format!("net{n}"), "type": "portmap",
            "prevResult": {
                "cniVersion": "1.1.0", "ips": ips.collect::<Vec<_>>(),
                "interfaces": [{"name": "eth0", "sandbox": format!("/run/netns/{id}")}],
            },
            "runtimeConfig": {"portMappings": [{"hostPort": 7001, "containerPort": 7000, "protocol": "udp"}]},
        });
        self.host.about("ADD", &map, id).run().ok();
    }

    fn python(&self, netns: &str, script: &str, args: &[&str]) -> Option<String> {
        let mut python = self.host.command("ip");
        python.args(["netns", "exec", netns, "python3", "-c", script]).args(args);
        let output = python.output().unwrap();
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    fn mac(&self, link: &str) -> String {
        self.host.ip(&format!("link show {link}"))[0]["address"].as_str().unwrap().to_owned()
    }

    /// Sends a datagram by a frame to the host.
    fn forge(&self, (netns, link, host_link): (&str, &str, &str), src: (&str, &str), dst: (&str, &str)) {
        let sent = self.python(netns, FORGE, &[link, &self.mac(host_link), src.0, src.1, dst.0, dst.1]);
        assert!(sent.is_some(), "cannot send from {netns}");
    }

    /// What a server answers; `wait` in seconds.
    fn ask(&self, netns: &str, from: (&str, &str), to: (&str, &str), wait: &str) -> Option<String> {
        self.python(netns, ASK, &[from.0, from.1, to.0, to.1, wait])
    }

    fn rp_filter(&self, value: u8) {
        self.host.sh(&format!("for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo {value} > $f; done"));
    }
}

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
