//! A configuration that changed between ADD and DEL or GC: what an attachment left is found by its label.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Host, bridge, with};
use serde_json::{Value, json};

/// A network that leaves something in every place.
fn web(more: Value) -> Value {
    let mut conf = with(&bridge("web", "10.5.0.0/24"), json!({"ipMasq": true, "macspoofchk": true}));
    conf["ipam"]["ranges"] = json!([[{"subnet": "10.5.0.0/24"}], [{"subnet": "fd00:5::/64"}]]);
    with(&conf, more)
}

fn ipam(more: Value) -> Value {
    with(&web(json!({}))["ipam"].clone(), more)
}

/// What an attachment was added with, and what the configuration is when it ends.
fn changes() -> Vec<(&'static str, Value, Value)> {
    let iptables = || web(json!({"ipMasqBackend": "iptables"}));
    vec![
        ("ipMasq off", web(json!({})), web(json!({"ipMasq": false}))),
        ("ipMasq off, iptables", iptables(), web(json!({"ipMasq": false}))),
        ("nftables to iptables", web(json!({})), iptables()),
        ("iptables to nftables", iptables(), web(json!({}))),
        ("macspoofchk off", web(json!({})), web(json!({"macspoofchk": false}))),
        ("portIsolation off", web(json!({"portIsolation": true})), web(json!({"macspoofchk": false}))),
        ("an unreadable key, portIsolation", web(json!({"portIsolation": true})), web(json!({"mtu": "big"}))),
        ("an unreadable key", web(json!({})), web(json!({"mtu": "big"}))),
        ("an unreadable key, iptables", iptables(), web(json!({"mtu": "big"}))),
        ("another dataDir", web(json!({})), web(json!({"ipam": ipam(json!({"dataDir": "/run/b"}))}))),
        ("no dataDir", web(json!({"ipam": ipam(json!({"dataDir": "/run/a"}))})), web(json!({}))),
        (
            "two dataDirs",
            web(json!({"ipam": ipam(json!({"dataDir": "/run/a"}))})),
            web(json!({"ipam": ipam(json!({"dataDir": "/run/b"}))})),
        ),
        ("an unreadable dataDir", web(json!({})), web(json!({"ipam": ipam(json!({"dataDir": 5}))}))),
        ("no ipam", web(json!({"ipam": ipam(json!({"dataDir": "/run/a"}))})), web(json!({"ipam": null}))),
        ("static ipam", web(json!({})), web(json!({"ipam": {"type": "static", "addresses": []}}))),
    ]
}

/// Nothing in any packet filter is the container's, and its addresses are free.
fn is_gone(host: &Host, conf: &Value, what: &str) {
    host.eventually("test $(ip -o link show type veth | wc -l) = 0");
    for table in ["ip", "ip6", "inet", "bridge"] {
        let rules = host.sh(&format!("nft list ruleset {table}"));
        assert!(!rules.contains("/c1/") && !rules.contains("WEFT"), "{what}: {rules}");
    }
    let again = host.about("ADD", conf, "c2").env("CNI_ARGS", "IP=10.5.0.2").run();
    assert!(again.success, "{what}: {}", again.text());
    host.about("DEL", conf, "c2").run().ok();
}

#[test]
fn del_with_another_configuration_leaves_nothing() {
    for (what, before, after) in changes() {
        for with_result in [false, true] {
            let host = Host::new();
            host.netns("c1");
            host.netns("c2");
            let result = host.about("ADD", &before, "c1").run().ok();
            let mut after = after.clone();
            if with_result {
                after["prevResult"] = result;
            }
            host.about("DEL", &after, "c1").run().ok();
            is_gone(&host, &before, what);
        }
    }
}

#[test]
fn gc_with_another_configuration_leaves_nothing() {
    for (what, before, after) in changes() {
        let host = Host::new();
        host.netns("c1");
        host.netns("c2");
        host.about("ADD", &before, "c1").run().ok();
        let gc = host.call("GC", &with(&after, json!({"cni.dev/valid-attachments": []}))).run();
        assert!(gc.success || gc.code() == 7, "{what}: {}", gc.text());
        is_gone(&host, &before, what);
    }
}

#[test]
fn gc_removes_an_empty_store_and_its_note() {
    let host = Host::new();
    host.netns("c1");
    let none = json!({"cni.dev/valid-attachments": []});
    let before = host.picture();
    let conf = web(json!({"ipam": ipam(json!({"dataDir": "/run/a"}))}));
    host.about("ADD", &conf, "c1").run().ok();
    host.sh("mkdir -p /run/a && test -d /run/a/.weft");
    host.call("GC", &with(&web(json!({"ipam": null})), none)).run().ok();
    host.sh("rmdir /run/a");
    host.eventually("test $(ip -o link | wc -l) = 1");
    assert_eq!(host.picture(), before);
}

#[test]
fn gc_of_one_network_spares_leases_of_another() {
    let host = Host::new();
    host.netns("c1");
    host.netns("c2");
    let shared = json!({"ipam": ipam(json!({"dataDir": "/run/a"}))});
    let db = with(&web(shared), json!({"name": "db"}));
    host.about("ADD", &db, "c1").run().ok();
    host.call("GC", &with(&web(json!({})), json!({"cni.dev/valid-attachments": []}))).run().ok();
    let taken = host.about("ADD", &db, "c2").env("CNI_ARGS", "IP=10.5.0.2").run();
    assert_eq!(taken.code(), 101, "{}", taken.text());
}

#[test]
fn portmap_del_with_another_backend_leaves_nothing() {
    let prev =
        json!({"cniVersion": "1.1.0", "ips": [{"address": "10.5.0.2/24"}, {"address": "fd00:5::2/64"}]});
    let map = |keys: Value| {
        let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
        let conf = json!({"cniVersion": "1.1.0", "name": "web", "type": "portmap", "prevResult": prev,
            "runtimeConfig": {"portMappings": ports}});
        with(&conf, keys)
    };
    for (before, after) in [
        (json!({"backend": "iptables"}), json!({})),
        (json!({"backend": "iptables"}), json!({"backend": "nftables", "runtimeConfig": {}})),
        (json!({}), json!({"backend": "iptables"})),
        (json!({}), json!({"backend": 5, "prevResult": null})),
        (json!({"backend": "iptables"}), json!({"backend": 5, "prevResult": null})),
    ] {
        for verb in ["DEL", "GC"] {
            let host = Host::new();
            host.netns("c1");
            host.about("ADD", &map(before.clone()), "c1").run().ok();
            // nft does not print the comments of iptables' rules.
            host.sh("nft list ruleset | grep -q -e web/c1/eth0 -e 'chain WEFT-DNAT'");
            let after = with(&map(after.clone()), json!({"cni.dev/valid-attachments": []}));
            let done = host.about(verb, &after, "c1").run();
            assert!(done.success || (verb == "GC" && done.code() == 7), "{before} {after}: {}", done.text());
            host.eventually("! nft list ruleset | grep -e web/c1 -e WEFT");
        }
    }
}

/// The reference's ipMasq accepts what its rule masquerades, so rules behind it are not reached.
#[test]
fn iptables_hairpin_comes_before_rules_of_others() {
    let host = Host::new();
    host.netns("c1");
    host.sh("iptables -t nat -A POSTROUTING -s 10.9.0.0/16 -j ACCEPT");
    let conf = json!({"cniVersion": "1.1.0", "name": "web", "type": "portmap", "backend": "iptables",
        "prevResult": {"cniVersion": "1.1.0", "ips": [{"address": "10.5.0.2/24"}]},
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}});
    host.about("ADD", &conf, "c1").run().ok();
    let rules = host.sh("iptables -t nat -S POSTROUTING | grep '^-A'");
    assert!(rules.starts_with("-A POSTROUTING -j WEFT-HAIRPIN"), "{rules}");
}

#[test]
fn failed_iptables_add_leaves_no_chain() {
    let host = Host::new();
    host.netns("c1");
    let conf = json!({"cniVersion": "1.1.0", "name": "web", "type": "portmap",
        "conditionsV4": ["--no-such-match"],
        "prevResult": {"cniVersion": "1.1.0", "ips": [{"address": "10.5.0.2/24"}]},
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}});
    assert!(!host.about("ADD", &conf, "c1").run().success);
    host.sh("! nft list ruleset | grep WEFT");
}
