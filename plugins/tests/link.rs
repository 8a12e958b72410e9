//! What surrounds the container's link: announcements, settings that cannot be written, and IPAM plugins that use it.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Host, bridge, with};
use serde_json::{Value, json};

fn dual(more: Value) -> Value {
    let mut conf = bridge("web", "10.5.0.0/24");
    conf["ipam"]["ranges"] = json!([[{"subnet": "10.5.0.0/24"}], [{"subnet": "fd00:5::/64"}]]);
    with(&conf, more)
}

#[test]
fn new_mac_of_an_old_address_is_known_at_once() {
    let host = Host::new();
    for id in ["near", "old", "new"] {
        host.netns(id);
    }
    let conf = dual(json!({"capabilities": {"ips": true}}));
    let fixed = with(&conf, json!({"runtimeConfig": {"ips": ["10.5.0.50", "fd00:5::50"]}}));
    host.about("ADD", &conf, "near").run().ok();
    host.about("ADD", &fixed, "old").run().ok();
    let ping = "ip netns exec near ping -qc1 -W4 10.5.0.50 && ip netns exec near ping -qc1 -W4 fd00:5::50";
    host.sh(ping);
    let host_too = "ping -qc1 -W4 10.5.0.50 && ping -qc1 -W4 fd00:5::50";
    host.sh(host_too);
    host.about("DEL", &fixed, "old").run().ok();
    let result = host.about("ADD", &fixed, "new").run().ok();
    let mac = result["interfaces"][2]["mac"].as_str().unwrap();
    for neighbours in ["ip -n near neigh show", "ip neigh show dev br0"] {
        for address in ["10.5.0.50", "fd00:5::50"] {
            host.eventually(&format!("{neighbours} | grep '^{address} ' | grep -q {mac}"));
        }
    }
    // Without announcements the first packets go to the old address until it has been asked for in vain.
    host.sh(ping);
    host.sh(host_too);
}

/// An address that host-local gives for the first time is announced where another neighbour had it, by hand or by another
/// network of the bridge.
#[test]
fn new_lease_of_a_known_address_is_announced() {
    let host = Host::new();
    for id in ["first", "hand", "new"] {
        host.netns(id);
    }
    let conf = dual(json!({}));
    host.about("ADD", &conf, "first").run().ok();
    host.sh("ip link add hand type veth peer name eth0 netns hand && ip link set hand master br0 up \
         && ip -n hand link set eth0 up && ip -n hand addr add 10.5.0.3/24 dev eth0 \
         && ip -n hand addr add fd00:5::3/64 dev eth0 nodad");
    host.eventually("ping -qc1 -W4 10.5.0.3");
    host.eventually("ping -qc1 -W4 fd00:5::3");
    host.sh("ip link del hand");
    for address in ["10.5.0.3", "fd00:5::3"] {
        host.sh(&format!("ip neigh show dev br0 | grep '^{address} ' | grep lladdr"));
    }
    let result = host.about("ADD", &conf, "new").run().ok();
    let ips: Vec<_> = result["ips"].as_array().unwrap().iter().map(|ip| ip["address"].clone()).collect();
    assert_eq!(ips, ["10.5.0.3/24", "fd00:5::3/64"]);
    let mac = result["interfaces"][2]["mac"].as_str().unwrap();
    for address in ["10.5.0.3", "fd00:5::3"] {
        host.eventually(&format!("ip neigh show dev br0 | grep '^{address} ' | grep -q {mac}"));
    }
    for id in ["first", "new"] {
        host.about("DEL", &conf, id).run().ok();
    }
}

/// What a failed ADD must not change. Without the links' flags: carrier changes later.
const LEFT: &str = "ip -br link | cut -d' ' -f1; ip -o addr show scope global; nft list ruleset";

const READ_ONLY: &str = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys";

#[test]
fn read_only_settings_that_are_right_do_not_matter() {
    let host = Host::new();
    host.netns("c1");
    host.sh("echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding");
    host.sh(READ_ONLY);
    for vlan in [0, 5] {
        let conf = dual(json!({"ipMasq": true, "vlan": vlan}));
        let added = host.about("ADD", &conf, "c1").run();
        if vlan != 0 && !added.success && added.code() == 2 {
            continue;
        }
        added.ok();
        host.sh("ip netns exec c1 ping -qc1 -W4 10.5.0.1 && ip netns exec c1 ping -qc1 -W4 fd00:5::1");
        host.about("DEL", &conf, "c1").run().ok();
    }
    let only4 = bridge("only4", "10.5.0.0/24");
    host.about("ADD", &only4, "c1").run().ok();
    host.sh("ip netns exec c1 ping -qc1 -W4 10.5.0.1");
    host.about("DEL", &only4, "c1").run().ok();
}

#[test]
fn read_only_setting_that_is_wrong_leaves_nothing() {
    let host = Host::new();
    host.netns("c1");
    host.sh(READ_ONLY);
    let before = host.picture();
    let conf = dual(json!({}));
    let refused = host.about("ADD", &conf, "c1").run();
    assert!(refused.text().contains("ip_forward"), "{}", refused.text());
    host.call("GC", &with(&conf, json!({"cni.dev/valid-attachments": []}))).run().ok();
    assert_eq!(host.picture(), before);
}

#[test]
fn ipv6_switched_off_by_default_is_on_for_gateways() {
    let host = Host::new();
    host.netns("c1");
    host.sh("echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6");
    host.sh("ip netns exec c1 sh -c 'echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6'");
    for vlan in [0, 5] {
        let conf = dual(json!({"vlan": vlan}));
        let added = host.about("ADD", &conf, "c1").run();
        if vlan != 0 && !added.success && added.code() == 2 {
            continue;
        }
        added.ok();
        host.sh("ip netns exec c1 ping -qc1 -W4 fd00:5::1");
        host.about("DEL", &conf, "c1").run().ok();
    }
}

#[test]
fn failed_add_leaves_a_foreign_bridge_as_it_was() {
    let host = Host::new();
    host.netns("c1");
    host.sh("ip link add br0 type bridge && ip link set br0 up");
    let mut conf = dual(json!({"ipMasq": true}));
    conf["ipam"]["routes"] = json!([{"dst": "192.0.2.0/24", "gw": "203.0.113.1"}]);
    for more in [json!({}), json!({"vlan": 5})] {
        let conf = with(&conf, more);
        let before = host.sh(LEFT);
        assert!(!host.about("ADD", &conf, "c1").run().success);
        host.eventually("test $(ip -o link show type veth | wc -l) = 0");
        assert_eq!(host.sh(LEFT), before);
    }
}

/// An IPAM plugin that looks at the link, as one that speaks DHCP does.
const IPAM: &str = r#"#!/bin/sh
[ "$CNI_COMMAND" = ADD ] || exit 0
in_container() { nsenter --net="$CNI_NETNS" "$@"; }
if ! in_container ip -o link show "$CNI_IFNAME" up | grep -q LOWER_UP; then
    echo '{"cniVersion":"1.1.0","code":100,"msg":"Link not found"}'
    exit 1
fi
in_container ip addr add 10.5.0.99/24 dev "$CNI_IFNAME"
if ! in_container ping -qc1 -W4 10.5.0.200 >&2; then
    echo '{"cniVersion":"1.1.0","code":100,"msg":"no answer by the link"}'
    exit 1
fi
in_container ip addr del 10.5.0.99/24 dev "$CNI_IFNAME"
echo '{"cniVersion":"1.1.0","ips":[{"address":"10.5.0.7/24","gateway":"10.5.0.1"}]}'
"#;

#[test]
fn foreign_ipam_is_executed_when_the_link_works() {
    let host = Host::new();
    host.netns("c1");
    // Another machine on the bridge, as a DHCP server.
    host.netns("server");
    host.sh(
        "ip link add br0 type bridge && ip link set br0 up && ip link add p0 type veth peer name eth0 netns server && \
         ip link set p0 master br0 up && ip -n server link set eth0 up && ip -n server addr add 10.5.0.200/24 dev eth0",
    );
    let file = host.bin.path().join("like-dhcp");
    std::fs::write(&file, IPAM).unwrap();
    host.sh(&format!("chmod +x {}", file.display()));
    let conf = with(&bridge("web", "10.5.0.0/24"), json!({"ipam": {"type": "like-dhcp"}, "ipMasq": true}));
    let result = host.about("ADD", &conf, "c1").run().ok();
    assert_eq!(result["ips"][0]["address"], "10.5.0.7/24");
    host.sh("ip netns exec c1 ping -qc1 -W4 10.5.0.1");
    host.about("CHECK", &with(&conf, json!({"prevResult": result})), "c1").run().ok();
    host.about("DEL", &conf, "c1").run().ok();

    // A child process of the DEL ends what it left.
    host.eventually("test -z \"$(nft list ruleset)\" && ! ip link | grep dead");
    host.netns("c2");
    host.sh("ip link set p0 down");
    let before = host.sh(LEFT);
    let refused = host.about("ADD", &conf, "c2").run();
    assert!(refused.text().contains("no answer by the link"), "{}", refused.text());
    host.eventually("test $(ip -o link show type veth | wc -l) = 1");
    host.sh("! ip -n c2 link show eth0");
    assert_eq!(host.sh(LEFT), before);
}
