//! What is not Weft's, or not this attachment's: links found by name, and IPAM plugins of others.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Host, bridge, with};
use serde_json::json;

#[test]
fn ipam_type_that_is_no_ipam_plugin_is_refused() {
    let host = Host::new();
    host.netns("c1");
    for kind in ["bridge", "overlay", "portmap", "ptp"] {
        let conf = json!({"cniVersion": "1.1.0", "name": "web", "type": "bridge", "bridge": "br0",
            "cni.dev/valid-attachments": [], "ipam": {"type": kind}});
        let prev = json!({"cniVersion": "1.1.0", "ips": [{"address": "10.5.0.2/24"}]});
        for verb in ["ADD", "CHECK", "STATUS", "GC"] {
            let refused = host.about(verb, &with(&conf, json!({"prevResult": prev})), "c1").run();
            assert_eq!(refused.code(), 7, "{verb} {kind}");
            assert!(
                refused.text().contains("ipam.type") && refused.text().contains(kind),
                "{}",
                refused.text()
            );
        }
        host.about("DEL", &conf, "c1").run().ok();
    }
    host.sh("! ip link show br0");
}

#[test]
fn plugins_that_execute_each_other_in_a_circle_are_bounded() {
    let host = Host::new();
    host.netns("c1");
    let bin = host.bin.path().display().to_string();
    // Counts its calls, and executes bridge with the configuration that it got.
    let script = format!(
        "#!/bin/sh\necho x >> {bin}/calls\nexport CNI_IFNAME=eth$(wc -l < {bin}/calls)\n\
         [ $(wc -l < {bin}/calls) -gt 30 ] && exit 1\nexec {bin}/bridge\n"
    );
    std::fs::write(host.bin.path().join("circle"), script).unwrap();
    host.sh(&format!("chmod +x {bin}/circle"));
    let conf = json!({"cniVersion": "1.1.0", "name": "web", "type": "bridge", "bridge": "br0",
        "ipam": {"type": "circle"}});
    let refused = host.about("STATUS", &conf, "c1").run();
    assert_eq!(refused.code(), 7);
    assert!(refused.text().contains("executed each other"), "{}", refused.text());
    host.sh(&format!("test $(wc -l < {bin}/calls) -lt 10"));
}

#[test]
fn link_of_another_attachment_is_never_taken() {
    let host = Host::new();
    host.netns("c1");
    host.netns("c2");
    let conf = with(&bridge("web", "10.5.0.0/24"), json!({"macspoofchk": true}));
    let result = host.about("ADD", &conf, "c1").run().ok();
    let veth = result["interfaces"][1]["name"].as_str().unwrap().to_owned();
    // What a collision of hashes looks like: the name that belongs to c2 has the label of c3.
    let second = host.about("ADD", &conf, "c2").run().ok();
    let taken = second["interfaces"][1]["name"].as_str().unwrap().to_owned();
    host.about("DEL", &conf, "c2").run().ok();
    host.sh(&format!("ip link set {veth} down && ip link set {veth} name {taken} alias weft:web/c3/eth0 up"));
    let before = host.ip(&format!("link show {taken}"))[0]["ifindex"].clone();
    let refused = host.about("ADD", &conf, "c2").run();
    assert_eq!(refused.code(), 103);
    assert!(
        refused.text().contains(&taken) && refused.text().contains("weft:web/c3/eth0"),
        "{}",
        refused.text()
    );
    let check = with(&conf, json!({"prevResult": second}));
    assert!(!host.about("CHECK", &check, "c2").run().success);
    host.about("DEL", &conf, "c2").run().ok();
    assert_eq!(host.ip(&format!("link show {taken}"))[0]["ifindex"], before);
    host.sh("ip netns exec c1 ping -qc1 -W2 10.5.0.1");
}

#[test]
fn del_spares_the_interface_of_another_network() {
    let host = Host::new();
    host.netns("c1");
    let first = bridge("web", "10.5.0.0/24");
    let second = with(&bridge("db", "10.6.0.0/24"), json!({"bridge": "br1"}));
    host.about("ADD", &first, "c1").run().ok();
    assert_eq!(host.about("ADD", &second, "c1").run().code(), 103);
    host.about("DEL", &second, "c1").run().ok();
    host.sh("ip netns exec c1 ping -qc1 -W2 10.5.0.1");
}

#[test]
fn two_default_routes_stay_each_with_its_own_network() {
    let host = Host::new();
    host.netns("c1");
    let dual = |name: &str, bridge: &str, four: &str, six: &str| {
        json!({"cniVersion": "1.1.0", "name": name, "type": "bridge", "bridge": bridge, "isDefaultGateway": true,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": four}], [{"subnet": six}]]}})
    };
    let first = dual("web", "br0", "10.5.0.0/24", "fd00:5::/64");
    let second = dual("db", "br1", "10.6.0.0/24", "fd00:6::/64");
    let about =
        |verb, conf: &serde_json::Value, ifname| host.about(verb, conf, "c1").env("CNI_IFNAME", ifname).run();
    let one = about("ADD", &first, "eth0").ok();
    let two = about("ADD", &second, "eth1").ok();
    assert_eq!(host.sh("ip -n c1 route show default | wc -l"), "2");
    about("CHECK", &with(&first, json!({"prevResult": one})), "eth0").ok();
    about("CHECK", &with(&second, json!({"prevResult": two})), "eth1").ok();
    about("DEL", &first, "eth0").ok();
    assert!(host.sh("ip -n c1 route show default").contains("via 10.6.0.1 dev eth1"));
    assert!(host.sh("ip -n c1 -6 route show default").contains("via fd00:6::1 dev eth1"));
    about("CHECK", &with(&second, json!({"prevResult": two})), "eth1").ok();
}

#[test]
fn route_attributes_are_in_old_results_and_checked() {
    let host = Host::new();
    host.netns("c1");
    let mut conf = with(&bridge("web", "10.5.0.0/24"), json!({"cniVersion": "0.4.0"}));
    conf["ipam"]["routes"] = json!([{"dst": "192.0.2.0/24", "mtu": 1300, "advmss": 1200, "priority": 7, "table": 100, "scope": 0}]);
    let result = host.about("ADD", &conf, "c1").run().ok();
    let route = &result["routes"][0];
    for (key, value) in [("mtu", 1300), ("advmss", 1200), ("priority", 7), ("table", 100), ("scope", 0)] {
        assert_eq!(route[key], value, "{result}");
    }
    let check = with(&conf, json!({"prevResult": result}));
    host.about("CHECK", &check, "c1").run().ok();
    host.sh("ip -n c1 route replace 192.0.2.0/24 via 10.5.0.1 metric 7 table 100 mtu 1250 advmss 1200");
    let lost = host.about("CHECK", &check, "c1").run();
    assert!(lost.text().contains("192.0.2.0/24"), "{}", lost.text());
}

#[test]
fn status_without_ranges_of_the_capability_is_ready() {
    let host = Host::new();
    let conf = json!({"cniVersion": "1.1.0", "name": "web", "type": "bridge", "bridge": "br0",
        "capabilities": {"ipRanges": true}, "ipam": {"type": "host-local"}});
    host.call("STATUS", &conf).env("CNI_PATH", "/x").run().ok();
    host.call("STATUS", &with(&conf, json!({"type": "host-local"}))).env("CNI_PATH", "/x").run().ok();
}

#[test]
fn gc_with_null_attachments_removes_everything() {
    let host = Host::new();
    host.netns("c1");
    let before = host.picture();
    let conf = bridge("web", "10.5.0.0/24");
    host.about("ADD", &conf, "c1").run().ok();
    assert_eq!(host.call("GC", &conf).run().code(), 7);
    host.call("GC", &with(&conf, json!({"cni.dev/valid-attachments": null}))).run().ok();
    host.eventually("test $(ip -o link | wc -l) = 1");
    assert_eq!(host.picture(), before);
}

#[test]
fn vlan_leg_that_is_no_port_of_the_bridge_is_refused() {
    let host = Host::new();
    host.netns("c1");
    host.sh("ip link add br0.5 type bridge");
    let conf = with(&bridge("web", "10.5.0.0/24"), json!({"vlan": 5}));
    let refused = host.about("ADD", &conf, "c1").run();
    if refused.code() == 2 {
        return eprintln!("skipped: {}", refused.text());
    }
    assert_eq!(refused.code(), 103);
    assert!(refused.text().contains("br0.5"), "{}", refused.text());
    assert_eq!(host.ip("addr show br0.5")[0]["addr_info"], json!([]));
}

#[test]
fn foreign_bridge_keeps_its_mac_when_ports_change() {
    let host = Host::new();
    host.netns("c1");
    host.netns("c2");
    let mac = |host: &Host| host.ip("link show br0")[0]["address"].as_str().unwrap().to_owned();
    // Without a port, with one, and with the gateway's address set by others.
    for prepare in [
        "true",
        "ip link add p0 master br0 type veth peer name q0 && ip link set p0 up",
        "ip addr add 10.5.0.1/24 dev br0",
    ] {
        host.sh(&format!("ip link add br0 type bridge && ip link set br0 up && {prepare}"));
        let before = mac(&host);
        let conf = bridge("web", "10.5.0.0/24");
        let result = host.about("ADD", &conf, "c1").run().ok();
        assert_eq!(result["interfaces"][0]["mac"], json!(mac(&host)), "{prepare}");
        assert_eq!(mac(&host), before, "{prepare}");
        // The lowest address of a port would become the bridge's.
        host.sh(
            "ip link add p1 address 00:00:00:00:00:02 master br0 type veth peer name q1 && ip link set p1 up",
        );
        host.about("ADD", &conf, "c2").run().ok();
        host.sh("ip link del p1; ip link del p0 2>/dev/null; true");
        host.about("DEL", &conf, "c1").run().ok();
        assert_eq!(mac(&host), before, "{prepare}");
        host.about("DEL", &conf, "c2").run().ok();
        assert_eq!(mac(&host), before, "{prepare}");
        host.sh("ip link del br0");
    }
}

#[test]
fn result_has_the_mac_of_a_foreign_bridge_without_gateway() {
    let host = Host::new();
    host.netns("c1");
    host.sh("ip link add br0 type bridge && ip link set br0 up");
    let conf = with(&bridge("web", "10.5.0.0/24"), json!({"isDefaultGateway": false}));
    let result = host.about("ADD", &conf, "c1").run().ok();
    assert_eq!(result["interfaces"][0]["mac"], host.ip("link show br0")[0]["address"]);
}
