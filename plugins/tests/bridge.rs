//! The bridge plugin on a host of its own: what ADD makes, what DEL and GC leave, and who is refused.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Host, address, bridge, with};
use serde_json::{Value, json};

fn names(links: &Value) -> Vec<String> {
    links.as_array().unwrap().iter().map(|link| link["ifname"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn add_gives_the_container_its_address_and_route() {
    let host = Host::new();
    host.netns("c1");
    let conf = bridge("web", "10.5.0.0/24");
    let result = host.about("ADD", &conf, "c1").run().ok();
    assert_eq!(result["cniVersion"], "1.1.0");
    assert_eq!(result["ips"], json!([{"interface": 2, "address": "10.5.0.2/24", "gateway": "10.5.0.1"}]));
    assert_eq!(result["routes"], json!([{"dst": "0.0.0.0/0", "gw": "10.5.0.1"}]));
    assert_eq!(result["interfaces"][0]["name"], "br0");
    assert_eq!(result["interfaces"][2]["sandbox"], "/run/netns/c1");
    for (at, list) in [(0, host.ip("link show br0")), (2, host.ip("-n c1 link show eth0"))] {
        assert_eq!(result["interfaces"][at]["mac"], list[0]["address"], "{result}");
    }
    assert_eq!(
        host.sh("ip -n c1 route"),
        "default via 10.5.0.1 dev eth0 \n10.5.0.0/24 dev eth0 proto kernel scope link src 10.5.0.2"
    );
    assert_eq!(host.sh("cat /proc/sys/net/ipv4/ip_forward"), "1");
    host.sh("ip netns exec c1 ping -qc1 -W1 10.5.0.1");
    host.sh("ping -qc1 -W1 10.5.0.2");
    host.about("CHECK", &with(&conf, json!({"prevResult": result})), "c1").run().ok();
}

#[test]
fn the_first_packet_after_add_arrives() {
    let host = Host::new();
    let conf = bridge("web", "10.5.0.0/24");
    host.netns("c0");
    host.about("ADD", &conf, "c0").run().ok();
    for at in 1..6 {
        let id = format!("c{at}");
        host.netns(&id);
        let result = host.about("ADD", &conf, &id).run().ok();
        host.sh(&format!("ip netns exec c0 ping -qc1 -W1 {}", address(&result, 0)));
    }
    // The bridge is without carrier as long as nobody is on it.
    let conf = with(&bridge("other", "10.6.0.0/24"), json!({"bridge": "br1"}));
    for _ in 0..5 {
        let result = host.about("ADD", &conf, "c0").env("CNI_IFNAME", "eth1").run().ok();
        host.sh(&format!("ping -qc1 -W1 {}", address(&result, 0)));
        host.about("DEL", &conf, "c0").env("CNI_IFNAME", "eth1").run().ok();
    }
}

#[test]
fn del_leaves_the_bridge_alone_and_gc_leaves_nothing() {
    let host = Host::new();
    host.netns("c1");
    let before = host.picture();
    let conf = with(&bridge("web", "10.5.0.0/24"), json!({"ipMasq": true}));
    host.about("ADD", &conf, "c1").run().ok();
    for _ in 0..2 {
        host.about("DEL", &conf, "c1").run().ok();
    }
    host.sh("! ip -n c1 link show eth0");
    host.eventually("test $(ip -o link | wc -l) = 2 && test -z \"$(nft list ruleset)\"");
    assert_eq!(names(&host.ip("-n c1 link")), ["lo"]);
    // The address can be used again at once, in a new namespace of the same name.
    host.about("ADD", &conf, "c1").run().ok();
    host.about("DEL", &conf, "c1").run().ok();
    host.call("GC", &with(&conf, json!({"cni.dev/valid-attachments": []}))).run().ok();
    host.eventually("test $(ip -o link | wc -l) = 1");
    assert_eq!(host.picture(), before);
}

#[test]
fn del_works_without_a_namespace_and_without_the_results() {
    let host = Host::new();
    let conf = with(&bridge("web", "10.5.0.0/24"), json!({"ipMasq": true}));
    host.netns("c1");
    host.about("ADD", &conf, "c1").run().ok();
    host.about("DEL", &conf, "c1").env("CNI_NETNS", "").run().ok();
    host.netns("c2");
    host.about("ADD", &conf, "c2").run().ok();
    host.sh("ip netns del c2");
    host.about("DEL", &conf, "c2").run().ok();
    host.netns("c3");
    host.about("ADD", &conf, "c3").run().ok();
    host.sh("umount /run/netns/c3");
    host.about("DEL", &conf, "c3").run().ok();
    // Never seen before.
    host.about("DEL", &conf, "c4").run().ok();
    host.eventually("test $(ip -o link | wc -l) = 2 && test -z \"$(nft list ruleset)\"");
    host.netns("c5");
    let result =
        host.about("ADD", &with(&conf, json!({"args": {"cni": {"ips": ["10.5.0.2"]}}})), "c5").run().ok();
    assert_eq!(address(&result, 0), "10.5.0.2");
}

#[test]
fn a_container_cannot_keep_its_link_by_taking_the_name_of_a_dead_one() {
    let host = Host::new();
    host.netns("c1");
    let conf = bridge("web", "10.5.0.0/24");
    let result = host.about("ADD", &conf, "c1").run().ok();
    let index = host.ip("-n c1 link show eth0")[0]["ifindex"].clone();
    host.sh(&format!("ip -n c1 link add dead{index} type bridge"));
    host.about("DEL", &conf, "c1").run().ok();
    let veth = result["interfaces"][1]["name"].as_str().unwrap();
    host.sh(&format!("! ip link show {veth}; ! ip -n c1 link show eth0"));
}

#[test]
fn a_failed_add_is_undone() {
    let host = Host::new();
    host.netns("c1");
    let before = host.picture();
    let mut conf = with(&bridge("web", "10.5.0.0/24"), json!({"ipMasq": true}));
    conf["ipam"]["routes"] = json!([{"dst": "192.0.2.0/24", "gw": "203.0.113.1"}]);
    let failed = host.about("ADD", &conf, "c1").run();
    assert!(failed.text().contains("192.0.2.0/24"), "{}", failed.text());
    host.eventually("test $(ip -o link | wc -l) = 1");
    assert_eq!(names(&host.ip("-n c1 link")), ["lo"]);
    host.call("GC", &with(&conf, json!({"cni.dev/valid-attachments": []}))).run().ok();
    assert_eq!(host.picture(), before);
}

#[test]
fn a_second_add_is_refused_and_the_first_stays() {
    let host = Host::new();
    host.netns("c1");
    let conf = bridge("web", "10.5.0.0/24");
    host.about("ADD", &conf, "c1").run().ok();
    let before = host.picture();
    assert_eq!(host.about("ADD", &conf, "c1").run().code(), 103);
    assert_eq!(host.picture(), before);
    host.sh("ip netns exec c1 ping -qc1 -W1 10.5.0.1");
}

#[test]
fn a_default_route_of_the_ipam_and_is_default_gateway_are_one_route() {
    let host = Host::new();
    host.netns("c1");
    let mut conf = bridge("web", "10.5.0.0/24");
    conf["ipam"]["routes"] = json!([{"dst": "0.0.0.0/0"}]);
    let result = host.about("ADD", &conf, "c1").run().ok();
    assert_eq!(result["routes"], json!([{"dst": "0.0.0.0/0", "gw": "10.5.0.1"}]));
    assert_eq!(host.sh("ip -n c1 route show default").lines().count(), 1);
}

#[test]
fn both_families_work_at_once() {
    let host = Host::new();
    host.netns("c1");
    let mut conf = with(&bridge("dual", "10.5.0.0/24"), json!({"ipMasq": true}));
    conf["ipam"]["ranges"] = json!([[{"subnet": "10.5.0.0/24"}], [{"subnet": "fd00:5::/64"}]]);
    let result = host.about("ADD", &conf, "c1").run().ok();
    assert_eq!(address(&result, 1), "fd00:5::2");
    assert_eq!(
        result["routes"],
        json!([{"dst": "0.0.0.0/0", "gw": "10.5.0.1"}, {"dst": "::/0", "gw": "fd00:5::1"}])
    );
    assert_eq!(host.sh("cat /proc/sys/net/ipv6/conf/all/forwarding"), "1");
    // At once: nobody waits for duplicate address detection.
    host.sh("ip netns exec c1 ping -qc1 -W1 fd00:5::1 && ping -qc1 -W1 fd00:5::2");
    host.about("CHECK", &with(&conf, json!({"prevResult": result})), "c1").run().ok();
    host.about("DEL", &conf, "c1").run().ok();
    host.eventually("test -z \"$(nft list ruleset)\"");
}

#[test]
fn an_address_is_waited_for_when_duplicates_are_looked_for() {
    let host = Host::new();
    host.netns("c1");
    let mut conf = with(&bridge("dad", "10.5.0.0/24"), json!({"enabledad": true}));
    conf["ipam"]["ranges"] = json!([[{"subnet": "fd00:5::/64"}]]);
    host.about("ADD", &conf, "c1").run().ok();
    assert_eq!(host.sh("ip -n c1 -6 addr show dev eth0 tentative"), "");
    assert_eq!(host.sh("ip netns exec c1 cat /proc/sys/net/ipv6/conf/eth0/accept_dad"), "1");
}

#[test]
fn ipv6_that_was_switched_off_is_switched_on_where_it_is_needed() {
    let host = Host::new();
    host.netns("c1");
    host.sh("ip netns exec c1 sh -c 'echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6; \
             echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6'");
    let mut conf = bridge("six", "10.5.0.0/24");
    conf["ipam"]["ranges"] = json!([[{"subnet": "fd00:5::/64"}]]);
    host.about("ADD", &conf, "c1").run().ok();
    host.sh("ip netns exec c1 ping -qc1 -W1 fd00:5::1");
}

#[test]
fn the_hardware_address_comes_from_the_runtime_first() {
    let host = Host::new();
    let conf = bridge("web", "10.5.0.0/24");
    let args = "MAC=02:00:00:00:00:01";
    let from_args = with(&conf, json!({"args": {"cni": {"mac": "02:00:00:00:00:02"}}}));
    let from_runtime = with(&from_args, json!({"runtimeConfig": {"mac": "02:00:00:00:00:03"}}));
    for (id, conf, mac) in [("c1", &conf, 1), ("c2", &from_args, 2), ("c3", &from_runtime, 3)] {
        host.netns(id);
        let result = host.about("ADD", conf, id).env("CNI_ARGS", args).run().ok();
        let mac = format!("02:00:00:00:00:0{mac}");
        assert_eq!(result["interfaces"][2]["mac"], mac.as_str());
        assert_eq!(host.ip(&format!("-n {id} link show eth0"))[0]["address"], mac.as_str());
    }
}

#[test]
fn link_and_port_get_their_settings() {
    let host = Host::new();
    host.netns("c1");
    let keys = json!({"mtu": 1400, "hairpinMode": true, "portIsolation": true});
    host.about("ADD", &with(&bridge("web", "10.5.0.0/24"), keys), "c1").run().ok();
    assert_eq!(host.ip("-n c1 link show eth0")[0]["mtu"], 1400);
    let port = host.sh("ip -d link show master br0");
    for setting in ["mtu 1400", "hairpin on", "isolated on", "alias weft:web/c1/eth0"] {
        assert!(port.contains(setting), "{setting}: {port}");
    }
    assert_eq!(host.ip("link show br0")[0]["mtu"], 1400);
    host.netns("c2");
    host.about("ADD", &with(&bridge("web", "10.5.0.0/24"), json!({"promiscMode": true})), "c2").run().ok();
    assert!(host.sh("ip link show br0").contains("PROMISC"));
}

#[test]
fn without_an_ipam_the_container_is_connected_at_layer_2() {
    let host = Host::new();
    host.netns("c1");
    let conf = json!({"cniVersion": "1.0.0", "name": "l2", "type": "bridge", "bridge": "br0"});
    let result = host.about("ADD", &conf, "c1").run().ok();
    assert_eq!(result["ips"], Value::Null);
    assert!(host.sh("ip -n c1 link show eth0").contains("state UP"));
    host.about("CHECK", &with(&conf, json!({"prevResult": result, "cniVersion": "1.0.0"})), "c1").run().ok();
    host.netns("c2");
    let down = with(&conf, json!({"disableContainerInterface": true}));
    host.about("ADD", &down, "c2").run().ok();
    assert!(host.sh("ip -n c2 link show eth0").contains("state DOWN"));
    // The first versions have no words for this.
    host.netns("c3");
    let before = host.picture();
    assert_eq!(host.about("ADD", &with(&conf, json!({"cniVersion": "0.2.0"})), "c3").run().code(), 1);
    assert_eq!(host.picture(), before);
}

#[test]
fn an_address_of_another_network_is_replaced_only_when_forced() {
    let host = Host::new();
    host.netns("c1");
    host.netns("c2");
    host.about("ADD", &bridge("web", "10.5.0.0/24"), "c1").run().ok();
    let other = bridge("other", "10.6.0.0/24");
    let refused = host.about("ADD", &other, "c2").run();
    assert!(refused.text().contains("10.5.0.1/24"), "{}", refused.text());
    host.about("ADD", &with(&other, json!({"forceAddress": true})), "c2").run().ok();
    let addresses = host.sh("ip -4 -o addr show br0");
    assert!(addresses.contains("10.6.0.1/24") && !addresses.contains("10.5.0.1"), "{addresses}");
}

#[test]
fn a_device_of_another_kind_is_not_taken_for_a_bridge() {
    let host = Host::new();
    host.netns("c1");
    host.sh("ip link add br0 type veth peer name x");
    let before = host.picture();
    let refused = host.about("ADD", &bridge("web", "10.5.0.0/24"), "c1").run();
    assert_eq!(refused.code(), 7);
    assert!(refused.text().contains("br0") && refused.text().contains("veth"), "{}", refused.text());
    assert_eq!(host.picture(), before);
}

#[test]
fn a_bridge_of_the_user_survives_gc() {
    let host = Host::new();
    host.netns("c1");
    host.sh("ip link add br0 type bridge");
    let conf = bridge("web", "10.5.0.0/24");
    host.about("ADD", &conf, "c1").run().ok();
    host.about("DEL", &conf, "c1").run().ok();
    host.call("GC", &with(&conf, json!({"cni.dev/valid-attachments": []}))).run().ok();
    host.sh("ip link show br0");
}

#[test]
fn many_adds_at_once_make_one_bridge() {
    let host = Host::new();
    let conf = with(&bridge("web", "10.5.0.0/24"), json!({"ipMasq": true}));
    let ids: Vec<String> = (0..16).map(|at| format!("c{at}")).collect();
    ids.iter().for_each(|id| drop(host.netns(id)));
    let running: Vec<_> = ids.iter().map(|id| host.about("ADD", &conf, id).spawn()).collect();
    let mut addresses: Vec<String> = running.into_iter().map(|run| address(&run.wait().ok(), 0)).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 16);
    assert_eq!(host.ip("link show type bridge").as_array().unwrap().len(), 1);
    assert_eq!(host.ip("link show master br0").as_array().unwrap().len(), 16);
    let running: Vec<_> = ids.iter().map(|id| host.about("DEL", &conf, id).spawn()).collect();
    running.into_iter().for_each(|run| drop(run.wait().ok()));
    host.eventually("test $(ip -o link | wc -l) = 2 && test -z \"$(nft list ruleset)\"");
}

#[test]
fn gc_removes_what_is_stale_of_its_own_network_only() {
    let host = Host::new();
    let web = with(&bridge("web", "10.5.0.0/24"), json!({"ipMasq": true}));
    let other = with(&bridge("other", "10.6.0.0/24"), json!({"ipMasq": true, "bridge": "br1"}));
    for id in ["c1", "c2"] {
        host.netns(id);
        host.about("ADD", &web, id).run().ok();
        host.about("ADD", &other, id).env("CNI_IFNAME", "eth1").run().ok();
    }
    let valid = json!([{"containerID": "c2", "ifname": "eth0"}]);
    host.call("GC", &with(&web, json!({"cni.dev/valid-attachments": valid}))).run().ok();
    assert_eq!(names(&host.ip("-n c1 link")), ["lo", "eth1"]);
    assert_eq!(names(&host.ip("-n c2 link")), ["lo", "eth0", "eth1"]);
    let rules = host.sh("nft list ruleset");
    for (element, there) in [("web/c1/eth0", false), ("web/c2/eth0", true), ("other/c1/eth1", true)] {
        assert_eq!(rules.contains(element), there, "{element}: {rules}");
    }
    // Without the list nothing may be done.
    assert_eq!(host.call("GC", &web).run().code(), 7);
}

#[test]
fn check_notices_what_is_missing_and_nothing_else() {
    let host = Host::new();
    host.netns("c1");
    let conf = with(&bridge("web", "10.5.0.0/24"), json!({"ipMasq": true}));
    let result = host.about("ADD", &conf, "c1").run().ok();
    let conf = with(&conf, json!({"prevResult": result}));
    host.sh("ip -n c1 route add 192.0.2.0/24 via 10.5.0.1 && ip -n c1 addr add 10.9.9.9/32 dev eth0");
    host.about("CHECK", &conf, "c1").run().ok();
    for (change, missing, mend) in [
        ("ip -n c1 route del default", "0.0.0.0/0", "ip -n c1 route add default via 10.5.0.1"),
        ("ip addr del 10.5.0.1/24 dev br0", "10.5.0.1", "ip addr add 10.5.0.1/24 dev br0"),
        ("nft flush set inet weft masq-10.5.0.0/24", "nftables", "true"),
        ("ip -n c1 addr del 10.5.0.2/24 dev eth0", "10.5.0.2/24", "true"),
    ] {
        host.sh(change);
        let failed = host.about("CHECK", &conf, "c1").run();
        assert!(failed.text().contains(missing), "{change}: {}", failed.text());
        host.sh(mend);
    }
    host.sh("ip -n c1 link del eth0");
    assert!(host.about("CHECK", &conf, "c1").run().text().contains("does not exist"));
}

#[test]
fn the_hosts_own_namespace_is_refused_before_anything_is_changed() {
    let host = Host::new();
    let before = host.picture();
    let conf = bridge("web", "10.5.0.0/24");
    let refused = host.about("ADD", &conf, "c1").env("CNI_NETNS", "/proc/self/ns/net").run();
    assert_eq!(refused.code(), 4);
    assert_eq!(host.picture(), before);
    host.about("ADD", &conf, "c1")
        .env("CNI_NETNS", "/proc/self/ns/net")
        .env("CNI_NETNS_OVERRIDE", "1")
        .run()
        .ok();
    host.sh("ip link show eth0");
}

#[test]
fn vlans_are_set_or_named_as_missing() {
    let host = Host::new();
    host.netns("c1");
    let before = host.picture();
    let conf = with(&bridge("tagged", "10.5.0.0/24"), json!({"vlan": 100}));
    let outcome = host.about("ADD", &conf, "c1").run();
    if outcome.success {
        assert!(host.sh("bridge vlan show").contains("100 PVID"));
        host.sh("ip netns exec c1 ping -qc1 -W1 10.5.0.1");
        return;
    }
    println!("skipped: this kernel has no bridge VLAN filtering");
    assert_eq!(outcome.code(), 2);
    assert!(outcome.text().contains("vlan") && outcome.text().contains("100"), "{}", outcome.text());
    assert_eq!(host.picture(), before);
}

#[test]
fn frames_with_a_false_source_address_are_dropped() {
    let host = Host::new();
    host.netns("c1");
    let before = host.picture();
    let conf = with(&bridge("web", "10.5.0.0/24"), json!({"macspoofchk": true}));
    let result = host.about("ADD", &conf, "c1").run().ok();
    let check = with(&conf, json!({"prevResult": result}));
    let ping = "ip netns exec c1 ping -qc1 -W1 10.5.0.1";
    host.sh(ping);
    host.about("CHECK", &check, "c1").run().ok();
    let mac = result["interfaces"][2]["mac"].as_str().unwrap();
    let set = |mac: &str| host.sh(&format!("ip -n c1 link set eth0 address {mac}"));
    set("02:00:00:00:00:66");
    assert!(!host.try_sh(ping).0);
    set(mac);
    host.sh(ping);
    host.sh("nft flush set bridge weft watched");
    assert_eq!(host.about("CHECK", &check, "c1").run().code(), 105);
    host.about("DEL", &conf, "c1").run().ok();
    host.about("ADD", &conf, "c1").run().ok();
    host.sh("ip netns del c1");
    let gc = with(&conf, json!({"cni.dev/valid-attachments": []}));
    host.call("GC", &gc).run().ok();
    host.eventually("test $(ip -o link | wc -l) = 1");
    assert_eq!(host.picture(), before);
}

#[test]
fn only_answers_and_published_ports_come_into_a_guarded_bridge() {
    let host = Host::new();
    host.netns("c1");
    host.netns("far");
    let before = host.picture();
    host.sh("ip link add wan type veth peer name wan netns far && ip addr add 192.0.2.1/24 dev wan && ip link set wan up && \
             ip -n far addr add 192.0.2.2/24 dev wan && ip -n far link set wan up && ip -n far route add default via 192.0.2.1");
    let open = bridge("web", "10.5.0.0/24");
    host.about("ADD", &open, "c1").run().ok();
    host.sh("ip netns exec far ping -qc1 -W5 10.5.0.2");
    host.about("DEL", &open, "c1").run().ok();
    let conf = with(&open, json!({"ingressPolicy": "same-bridge"}));
    host.about("ADD", &conf, "c1").run().ok();
    let own = host.sh("ip -n c1 -4 -o addr show eth0 | sed 's/.*inet //;s/\\/.*//'");
    host.sh("ip netns exec c1 ping -qc1 -W5 192.0.2.2");
    assert!(!host.try_sh(&format!("ip netns exec far ping -qc1 -W1 {own}")).0);
    host.about("DEL", &conf, "c1").run().ok();
    host.sh("ip link del wan");
    host.call("GC", &with(&conf, json!({"cni.dev/valid-attachments": []}))).run().ok();
    host.eventually("test $(ip -o link | wc -l) = 1");
    assert_eq!(host.picture(), before);
}

#[test]
fn status_asks_the_ipam() {
    let host = Host::new();
    let conf = bridge("web", "10.5.0.0/30");
    host.call("STATUS", &conf).run().ok();
    host.netns("c1");
    host.about("ADD", &conf, "c1").run().ok();
    assert_eq!(host.call("STATUS", &conf).run().code(), 50);
}
