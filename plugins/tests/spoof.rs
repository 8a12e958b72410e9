//! `macspoofchk` through the executable: what it leaves, and whom it leaves alone.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Host, bridge, with};
use serde_json::{Value, json};

const NO_RULES: &str = "test -z \"$(nft list ruleset)\"";

fn watched(more: Value) -> Value {
    with(&with(&bridge("web", "10.5.0.0/24"), json!({"macspoofchk": true})), more)
}

fn elements(host: &Host, id: &str) -> usize {
    host.sh("nft list ruleset").lines().filter(|line| line.contains(&format!("web/{id}/eth0"))).count()
}

#[test]
fn del_takes_what_is_the_containers_and_the_table_with_the_last() {
    let host = Host::new();
    for more in [json!({}), json!({"ipMasq": true}), json!({"ipMasq": true, "ipMasqBackend": "iptables"})] {
        let conf = watched(more);
        for id in ["c1", "c2"] {
            host.netns(id);
            host.about("ADD", &conf, id).run().ok();
            host.sh(&format!("ip netns exec {id} ping -qc1 -W1 10.5.0.1"));
        }
        let table = host.sh("nft list table bridge weft");
        assert!(table.contains("iifname @watched iifname . ether saddr != @sources drop"), "{table}");
        // Neither prevResult nor a namespace is needed, and the address that the container has by now does not matter.
        host.sh("ip -n c1 link set eth0 address 02:00:00:00:00:66");
        host.sh("ip netns del c1");
        for _ in 0..2 {
            host.about("DEL", &conf, "c1").run().ok();
            assert_eq!(elements(&host, "c1"), 0, "gone when DEL returns");
        }
        assert!(elements(&host, "c2") >= 3);
        host.sh("ip netns exec c2 ping -qc1 -W1 10.5.0.1");
        host.about("DEL", &conf, "c2").run().ok();
        host.eventually("! nft list table bridge weft 2>/dev/null");
        host.sh("ip netns del c2");
        host.eventually("! nft list table inet weft 2>/dev/null");
    }
    // Where there is nothing, nothing is made.
    host.about("DEL", &watched(json!({})), "c9").run().ok();
    host.eventually("! nft list table bridge weft 2>/dev/null");
}

#[test]
fn the_address_that_was_asked_for_is_the_one_that_counts() {
    let host = Host::new();
    host.netns("c1");
    let conf = watched(json!({"args": {"cni": {"mac": "02:00:00:00:12:34"}}}));
    let result = host.about("ADD", &conf, "c1").run().ok();
    assert_eq!(result["interfaces"][2]["mac"], "02:00:00:00:12:34");
    let veth = result["interfaces"][1]["name"].as_str().unwrap();
    let table = host.sh("nft list table bridge weft");
    assert!(table.contains(&format!("\"{veth}\" . 02:00:00:00:12:34 comment \"web/c1/eth0\"")), "{table}");
    host.about("DEL", &conf, "c1").run().ok();
    host.eventually(NO_RULES);
}

#[test]
fn a_failed_add_leaves_no_watch() {
    let host = Host::new();
    host.netns("c1");
    let mut conf = watched(json!({}));
    conf["ipam"]["routes"] = json!([{"dst": "192.0.2.0/24", "gw": "203.0.113.1"}]);
    assert!(!host.about("ADD", &conf, "c1").run().success);
    host.sh(NO_RULES);
}

#[test]
fn gc_takes_the_watches_of_stale_attachments_only() {
    let host = Host::new();
    let conf = watched(json!({}));
    for id in ["c1", "c2"] {
        host.netns(id);
        host.about("ADD", &conf, id).run().ok();
    }
    let valid = json!({"cni.dev/valid-attachments": [{"containerID": "c2", "ifname": "eth0"}]});
    host.call("GC", &with(&conf, valid)).run().ok();
    assert_eq!((elements(&host, "c1"), elements(&host, "c2")), (0, 3));
    host.call("GC", &with(&conf, json!({"cni.dev/valid-attachments": []}))).run().ok();
    host.sh(NO_RULES);
}
