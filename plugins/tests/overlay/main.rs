//! The overlay plugin on a host of its own, with an agent that answers from a script: what ADD makes, what DEL and GC leave,
//! and what happens when the agent is not there.

#![allow(clippy::unwrap_used)]

mod check;
#[path = "../common/mod.rs"]
mod common;
mod killed;
mod traffic;

use common::agent::{Agent, GROUP};
use common::{Host, with};
use serde_json::{Value, json};

/// A host as the agent has it when it has a part in the network: the gateway's addresses on a device, the rest unreachable,
/// forwarding on.
fn host() -> Host {
    let host = Host::new();
    host.sh("echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding; \
         ip link add vx-net type bridge && ip link set vx-net up && \
         ip addr add 10.42.0.1/32 dev vx-net && ip addr add fd00:42::1/128 dev vx-net nodad && \
         ip route add unreachable 10.42.0.0/16 proto 87 metric 9999 && \
         ip route add unreachable fd00:42::/64 proto 87 metric 9999");
    host
}

/// An added container.
fn add(host: &Host, conf: &Value, id: &str) -> Value {
    host.netns(id);
    host.about("ADD", conf, id).run().ok()
}

fn veth(result: &Value) -> &str {
    result["interfaces"][0]["name"].as_str().unwrap()
}

/// Only the links that were there before, and no element in the firewall.
fn gone(host: &Host) {
    // The child that outlives a DEL removes the rules, and then their records' directories.
    host.eventually(
        "test $(ip -o link | wc -l) = 2 && test -z \"$(nft list ruleset)\" && ! test -e /run/weft/rules",
    );
}

#[test]
fn add_makes_a_routed_link_that_asks_nobody() {
    let (host, agent) = (host(), Agent::new());
    let conf = with(&agent.conf("web"), json!({"dns": {"nameservers": ["10.42.0.1"]}}));
    let result = add(&host, &conf, "c5");
    let veth = veth(&result);
    assert_eq!(
        agent.asked(),
        [(
            "/v1/attach".to_owned(),
            json!({"network": "web", "container": "c5", "ifname": "eth0", "veth": veth, "ips": [], "mac": null,
                "netns": "/run/netns/c5"})
        )]
    );
    assert_eq!(
        result["ips"],
        json!([
            {"interface": 1, "address": "10.42.0.5/16", "gateway": "10.42.0.1"},
            {"interface": 1, "address": "fd00:42::5/64", "gateway": "fd00:42::1"},
        ])
    );
    assert_eq!(
        result["routes"],
        json!([
            {"dst": "10.42.0.0/16", "gw": "10.42.0.1"},
            {"dst": "0.0.0.0/0", "gw": "10.42.0.1"},
            {"dst": "fd00:42::/64", "gw": "fe80::1"},
            {"dst": "::/0", "gw": "fe80::1"},
        ])
    );
    let near = &host.ip(&format!("-d link show {veth}"))[0];
    let far = &host.ip("-n c5 -d link show eth0")[0];
    assert_eq!(
        result["interfaces"],
        json!([
            {"name": veth, "mac": near["address"], "mtu": 1450},
            {"name": "eth0", "mac": "02:00:00:00:00:05", "mtu": 1450, "sandbox": "/run/netns/c5"},
        ])
    );
    assert_eq!(
        (&far["address"], &far["mtu"], &near["mtu"]),
        (&json!("02:00:00:00:00:05"), &json!(1450), &json!(1450))
    );
    assert_eq!(near["group"], json!(GROUP.to_string()), "{near}");
    assert_eq!(near["ifalias"], "weft:web/c5/eth0");
    assert_eq!(result["dns"], json!({"nameservers": ["10.42.0.1"]}));

    assert_eq!(
        host.sh("ip -n c5 route"),
        "default via 10.42.0.1 dev eth0 \n10.42.0.0/16 via 10.42.0.1 dev eth0 \n10.42.0.1 dev eth0 scope link"
    );
    let routes6 = host.sh("ip -n c5 -6 route | grep -v ^fe80::/64");
    assert_eq!(
        routes6,
        "fd00:42::/64 via fe80::1 dev eth0 metric 1024 pref medium\ndefault via fe80::1 dev eth0 metric 1024 pref medium"
    );
    assert_eq!(host.sh(&format!("ip route show dev {veth}")), "10.42.0.5 proto 87 scope link");
    assert!(host.sh(&format!("ip -6 route show dev {veth}")).contains("fd00:42::5 proto 87 metric 1024"));
    assert!(host.sh(&format!("ip addr show {veth}")).contains("inet6 fe80::1/64"));
    host.sh("! ip -n c5 -o addr show tentative | grep inet; ! ip -n c5 -o addr show dadfailed | grep inet");
    // Reachable in both directions, and nobody was asked for a hardware address.
    host.sh("ping -qc1 -W1 10.42.0.5 && ping -qc1 -W1 fd00:42::5");
    host.sh("ip netns exec c5 ping -qc1 -W1 10.42.0.1 && ip netns exec c5 ping -qc1 -W1 fd00:42::1");
    for list in [host.sh("ip -n c5 neigh"), host.sh(&format!("ip neigh show dev {veth} | grep -v ^fe80"))] {
        assert!(list.lines().all(|line| line.trim_end().ends_with("PERMANENT")), "{list}");
    }
    host.sh("! ip netns exec c5 ping -qc1 -W1 10.42.9.9");
    host.about("CHECK", &with(&conf, json!({"prevResult": result})), "c5").run().ok();
    assert_eq!(agent.asked(), [], "CHECK asks nobody");
}

#[test]
fn ipv6_that_is_switched_off_for_new_links_is_switched_on_for_this_one() {
    let (host, agent) = (host(), Agent::new());
    host.sh("echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6");
    let conf = agent.conf("web");
    host.netns("c5");
    host.sh("ip netns exec c5 sh -c 'echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6'");
    let result = host.about("ADD", &conf, "c5").run().ok();
    host.sh("ping -qc1 -W1 fd00:42::5 && ip netns exec c5 ping -qc1 -W1 fd00:42::1");
    host.about("CHECK", &with(&conf, json!({"prevResult": result})), "c5").run().ok();
}

#[test]
fn containers_reach_each_other_with_the_first_packet() {
    let (host, agent) = (host(), Agent::new());
    let conf = agent.conf("web");
    add(&host, &conf, "c10");
    for at in 11..31 {
        add(&host, &conf, &format!("c{at}"));
        host.sh(&format!(
            "ip netns exec c10 ping -qc1 -W1 10.42.0.{at} && ip netns exec c{at} ping -qc1 -W1 fd00:42::10"
        ));
    }
    for at in 11..31 {
        host.about("DEL", &conf, &format!("c{at}")).run().ok();
    }
    host.sh("! ip netns exec c10 ping -qc1 -W1 10.42.0.11");
}

#[test]
fn what_is_asked_for_goes_to_the_agent() {
    let (host, agent) = (host(), Agent::new());
    let asked = json!({"network": "ov", "runtimeConfig": {"ips": ["10.42.0.7", "fd00:42::7"], "mac": "02:11:00:00:00:07"}});
    let conf = with(&agent.conf("web"), asked);
    let result = add(&host, &conf, "c7");
    let (_, asked) = agent.asked().remove(0);
    assert_eq!(asked["network"], "ov");
    assert_eq!(asked["ips"], json!(["10.42.0.7", "fd00:42::7"]));
    assert_eq!(asked["mac"], "02:11:00:00:00:07");
    assert_eq!(result["interfaces"][1]["mac"], "02:11:00:00:00:07");
    host.about("DEL", &conf, "c7").run().ok();
    let detach = json!({"network": "ov", "container": "c7", "ifname": "eth0"});
    assert_eq!(agent.asked(), [("/v1/detach".to_owned(), detach)]);
}

#[test]
fn every_version_says_what_it_can() {
    let (host, agent) = (host(), Agent::new());
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let conf = with(&agent.conf("web"), json!({"cniVersion": version}));
        let result = add(&host, &conf, "c5");
        assert_eq!(result["cniVersion"], version);
        let shown = result.to_string();
        assert!(shown.contains("10.42.0.5/16") && shown.contains("fd00:42::5/64"), "{shown}");
        if version >= "0.4.0" {
            host.about("CHECK", &with(&conf, json!({"prevResult": result})), "c5").run().ok();
        }
        host.about("DEL", &with(&conf, json!({"prevResult": result})), "c5").run().ok();
        host.sh("ip netns del c5");
    }
    gone(&host);
}

#[test]
fn del_works_twice_and_without_namespace_or_result() {
    let (host, agent) = (host(), Agent::new());
    let before = host.picture();
    let conf = agent.conf("web");
    add(&host, &conf, "c1");
    for _ in 0..2 {
        host.about("DEL", &conf, "c1").run().ok();
    }
    host.sh("! ip -n c1 link show eth0");
    gone(&host);
    host.about("ADD", &conf, "c1").run().ok();
    host.about("DEL", &conf, "c1").env("CNI_NETNS", "").run().ok();
    add(&host, &conf, "c2");
    host.sh("ip netns del c2");
    host.about("DEL", &conf, "c2").run().ok();
    host.about("DEL", &conf, "c9").run().ok();
    add(&host, &conf, "c3");
    // What cannot be read keeps no link.
    host.about("DEL", &with(&conf, json!({"ipMasq": "maybe"})), "c3").run().ok();
    gone(&host);
    assert_eq!(host.picture(), before);
    assert_eq!(agent.asked().iter().filter(|(path, _)| path == "/v1/detach").count(), 6);
}

#[test]
fn a_del_without_an_agent_leaves_a_note_and_the_next_add_removes_it() {
    let (host, agent) = (host(), Agent::new());
    let conf = agent.conf("web");
    add(&host, &conf, "c1");
    agent.stop();
    let outcome = host.about("DEL", &conf, "c1").run();
    assert!(outcome.stderr.contains("given back later"), "{}", outcome.stderr);
    outcome.ok();
    gone(&host);
    let notes = "find /var/lib/weft/ovl-agent/released -type f";
    let file = host.sh(notes);
    assert_eq!(file.lines().count(), 1, "{file}");
    let note: Value = serde_json::from_str(&host.sh(&format!("cat {file}"))).unwrap();
    assert_eq!(note, json!({"network": "web", "container": "c1", "ifname": "eth0"}));
    assert_eq!(
        host.sh(&format!("stat -c %a {file} $(dirname {file}) /var/lib/weft/ovl-agent")),
        "600\n700\n700"
    );
    host.about("DEL", &conf, "c1").run().ok();
    assert_eq!(host.sh(notes), file);

    // Else the agent would give the address of a living container to another when it is started anew.
    agent.start();
    host.about("ADD", &conf, "c1").run().ok();
    assert_eq!(host.sh(notes), "");
    host.about("DEL", &conf, "c1").run().ok();
    assert_eq!(host.sh(notes), "");
    // In trouble, it is as good as absent.
    for (status, kind) in [(503, "store"), (503, "not-ready"), (500, "internal")] {
        agent.refuse("/v1/detach", status, kind);
        host.about("DEL", &conf, "c1").run().ok();
        assert_eq!(host.sh(notes), file, "{kind}");
        host.sh(&format!("rm {file}"));
    }
    agent.usual();
    agent.asked();
    // One that came up while the note was written may not have seen it.
    agent.refuse_once("/v1/detach", 503, "not-ready");
    host.about("DEL", &conf, "c1").run().ok();
    assert_eq!(host.sh(notes), "");
    assert_eq!(agent.asked().iter().filter(|(path, _)| path == "/v1/detach").count(), 2);
    // Elsewhere, when the configuration says so.
    agent.stop();
    host.about("DEL", &with(&conf, json!({"root": "/run/other"})), "c1").run().ok();
    assert_eq!(host.sh("ls /run/other/ovl-agent/released | wc -l"), "1");
}

/// A DEL without an agent, whose directory is on a file system that cannot be written, and then can.
fn note_of_an_unwritable_root(make_so: &str, make_good: &str) {
    let (host, agent) = (host(), Agent::new());
    host.sh("mount -t tmpfs -o size=256k tmpfs /var/lib/weft");
    let conf = agent.conf("web");
    add(&host, &conf, "c1");
    agent.stop();
    host.sh(make_so);
    for _ in 0..2 {
        host.about("DEL", &conf, "c1").run().ok();
    }
    gone(&host);
    assert_eq!(host.sh("ls -A /run/weft/released | wc -l"), "1");
    assert_eq!(host.sh("find /var/lib/weft/ovl-agent -type f 2>/dev/null | wc -l"), "0");
    host.sh(make_good);
    agent.start();
    agent.asked();
    host.call("GC", &with(&conf, json!({"cni.dev/valid-attachments": []}))).run().ok();
    let detached = |(path, asked): &(String, Value)| path == "/v1/detach" && asked["container"] == "c1";
    assert!(agent.asked().iter().any(detached));
    host.sh("! ls -d /run/weft/released");
}

#[test]
fn del_on_a_full_disk_leaves_its_note_in_memory() {
    note_of_an_unwritable_root(
        "dd if=/dev/zero of=/var/lib/weft/fill bs=1k 2>/dev/null; ! echo x > /var/lib/weft/more",
        "rm /var/lib/weft/fill",
    );
}

#[test]
fn del_on_a_read_only_file_system_leaves_its_note_in_memory() {
    note_of_an_unwritable_root("mount -o remount,ro /var/lib/weft", "mount -o remount,rw /var/lib/weft");
}

/// As root that may not change the network: the kernel refuses to remove links.
const POWERLESS: &[&str] = &["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"];

#[test]
fn a_link_that_cannot_be_removed_keeps_its_address() {
    let (host, agent) = (host(), Agent::new());
    let before = host.picture();
    let conf = agent.conf("web");
    let result = add(&host, &conf, "c1");
    agent.asked();
    let notes = "find /var/lib/weft/ovl-agent/released -type f 2>/dev/null | wc -l";
    host.about("DEL", &conf, "c1").under(POWERLESS).run().code();
    // It left no child that holds the reaper's name and can delete nothing.
    host.sh("! grep weft-reaper /proc/net/unix");
    let stale = with(&conf, json!({"cni.dev/valid-attachments": []}));
    host.call("GC", &stale).under(POWERLESS).run().code();
    let kept = json!({"network": "web", "valid": [["c1", "eth0"]]});
    assert_eq!(agent.asked(), [("/v1/gc".to_owned(), kept)], "it is not given back");
    // No note gives it back later.
    agent.stop();
    host.about("DEL", &conf, "c1").under(POWERLESS).run().code();
    assert_eq!(host.sh(notes), "0");
    host.sh(&format!("ip link show {}", veth(&result)));
    agent.start();
    host.about("DEL", &conf, "c1").run().ok();
    assert_eq!(
        agent.asked(),
        [("/v1/detach".to_owned(), json!({"network": "web", "container": "c1", "ifname": "eth0"}))]
    );
    gone(&host);
    assert_eq!(host.picture(), before);
}

#[test]
fn a_container_cannot_keep_its_link_by_taking_the_name_of_a_dead_one() {
    let (host, agent) = (host(), Agent::new());
    let conf = agent.conf("web");
    let result = add(&host, &conf, "c1");
    let index = host.ip("-n c1 link show eth0")[0]["ifindex"].clone();
    host.sh(&format!("ip -n c1 link add dead{index} type bridge"));
    host.about("DEL", &conf, "c1").run().ok();
    host.sh(&format!("! ip link show {}; ! ip -n c1 link show eth0", veth(&result)));
    assert_eq!(agent.asked().last().unwrap().0, "/v1/detach");
    gone(&host);
}

#[test]
fn without_an_agent_add_and_status_say_what_to_start_and_change_nothing() {
    let (host, agent) = (host(), Agent::absent());
    host.netns("c1");
    let before = host.picture();
    let conf = agent.conf("web");
    for (verb, code) in [("ADD", 11), ("STATUS", 50)] {
        let outcome = host.about(verb, &conf, "c1").run();
        assert_eq!(outcome.code(), code, "{}", outcome.text());
        assert!(outcome.text().contains("ovl-agent run"), "{}", outcome.text());
    }
    assert_eq!(host.picture(), before);
    agent.start();
    host.call("STATUS", &conf).run().ok();
    assert_eq!(agent.asked()[0].0, "/v1/status?network=web");
    agent.refuse("/v1/status?network=web", 503, "store");
    let outcome = host.call("STATUS", &conf).run();
    assert!(outcome.code() == 50 && outcome.text().contains("made to be store"), "{}", outcome.text());
}

#[test]
fn what_the_agent_refuses_has_its_code_and_changes_nothing() {
    let (host, agent) = (host(), Agent::new());
    host.netns("c1");
    let before = host.picture();
    let conf = agent.conf("web");
    for (status, kind, code) in [
        (400, "invalid", 7),
        (404, "not-found", 7),
        (409, "taken", 101),
        (409, "full", 102),
        (409, "duplicate", 103),
        (503, "store", 11),
        (503, "not-ready", 11),
        (500, "internal", 100),
    ] {
        agent.refuse("/v1/attach", status, kind);
        let outcome = host.about("ADD", &conf, "c1").run();
        assert_eq!(outcome.code(), code, "{kind}");
        assert!(outcome.text().contains(&format!("made to be {kind}")), "{}", outcome.text());
    }
    // Nothing was granted, so nothing is given back: it might be another's.
    assert!(agent.asked().iter().all(|(path, _)| path == "/v1/attach"));
    assert_eq!(host.picture(), before);
    // Something else answers there.
    agent.answer("/v1/attach", 200, json!({"hello": "world"}));
    assert_eq!(host.about("ADD", &conf, "c1").run().code(), 6);
}

#[test]
fn a_failed_add_is_undone() {
    let (host, agent) = (host(), Agent::new());
    host.netns("c1");
    let before = host.picture();
    let conf = agent.conf("web");
    let network = json!({"id": "0123456789ab", "name": "web", "vni": 42, "created": "", "subnets":
        [{"subnet": "10.42.0.0/16", "gateway": "10.42.0.1", "block": 26}]});
    let multicast =
        with(&network, json!({"subnets": [{"subnet": "ff02::/16", "gateway": "ff02::1", "block": 26}]}));
    let granted = json!({"network": network, "addresses": ["10.42.0.1/16"], "mac": "02:00:00:00:00:01", "mtu": 1450,
        "group": GROUP});
    for wrong in [
        // Refused by the kernel when it makes the link, by the kernel in the container, and when the answer is read.
        json!({"mtu": 60}),
        json!({"network": multicast, "addresses": ["ff02::5/16"]}),
        json!({"addresses": []}),
        json!({"mac": "00"}),
    ] {
        agent.answer("/v1/attach", 200, with(&granted, wrong.clone()));
        let outcome = host.about("ADD", &conf, "c1").run();
        assert!(!outcome.success, "{wrong}");
        gone(&host);
        assert_eq!(host.sh("ip -n c1 -o link | wc -l"), "1", "{wrong}");
        assert_eq!(host.picture(), before, "{wrong}");
        let asked: Vec<String> = agent.asked().into_iter().map(|(path, _)| path).collect();
        assert_eq!(asked, ["/v1/attach", "/v1/detach"], "{wrong}");
    }
}

#[test]
fn a_second_add_is_refused_and_the_first_stays() {
    let (host, agent) = (host(), Agent::new());
    let conf = agent.conf("web");
    add(&host, &conf, "c5");
    agent.asked();
    let second = host.about("ADD", &conf, "c5").run();
    assert!(second.code() == 103 && second.text().contains("eth0"), "{}", second.text());
    assert_eq!(agent.asked(), [], "nobody was asked");
    host.sh("ping -qc1 -W1 10.42.0.5");
}

#[test]
fn gc_ends_what_is_stale_and_spares_the_rest() {
    let (host, agent) = (host(), Agent::new());
    let conf = agent.conf("web");
    let before = host.picture();
    for id in ["c1", "c2", "c3"] {
        add(&host, &conf, id);
    }
    // Of another configuration for the same network.
    let other = with(&agent.conf("web-too"), json!({"network": "web"}));
    let kept = add(&host, &other, "c4");
    agent.stop();
    host.about("DEL", &conf, "c1").run().ok();
    agent.start();
    agent.asked();
    let valid = |ids: &[&str]| -> Value {
        let list: Vec<_> = ids.iter().map(|id| json!({"containerID": id, "ifname": "eth0"})).collect();
        json!({"cni.dev/valid-attachments": list})
    };
    host.call("GC", &with(&conf, valid(&["c2"]))).run().ok();
    let pairs = json!([["c2", "eth0"], ["c4", "eth0"]]);
    assert_eq!(
        agent.asked(),
        [
            ("/v1/gc".to_owned(), json!({"network": "web", "valid": pairs})),
            ("/v1/detach".to_owned(), json!({"network": "web", "container": "c1", "ifname": "eth0"})),
        ]
    );
    assert_eq!(host.sh("find /var/lib/weft/ovl-agent -type f"), "");
    host.sh("ping -qc1 -W1 10.42.0.2; ping -qc1 -W1 10.42.0.4; ! ping -qc1 -W1 10.42.0.3");
    host.sh("! ip -n c3 link show eth0");
    let rules = host.sh("nft list ruleset");
    assert!(rules.contains("web/c2/eth0") && !rules.contains("web/c3/eth0"), "{rules}");
    // The other configuration ends what had a link of its own.
    host.call("GC", &with(&other, valid(&[]))).run().ok();
    assert_eq!(
        agent.asked(),
        [("/v1/detach".to_owned(), json!({"network": "web", "container": "c4", "ifname": "eth0"}))]
    );
    host.sh(&format!("! ip link show {}", veth(&kept)));
    // Without an agent the kernel's side goes all the same, and the runtime is told.
    agent.stop();
    let outcome = host.call("GC", &with(&conf, valid(&[]))).run();
    assert_eq!(outcome.code(), 11);
    gone(&host);
    host.sh("rm -r /var/lib/weft/ovl-agent");
    assert_eq!(host.picture(), before);
}

#[test]
fn bad_input_is_named_and_nobody_is_asked() {
    let (host, agent) = (host(), Agent::new());
    host.netns("c1");
    let before = host.picture();
    for (keys, word) in [
        (json!({"ipam": {"type": "host-local"}}), "ipam"),
        (json!({"network": 5}), "network"),
        (json!({"ipMasq": "no"}), "ipMasq"),
        (json!({"socket": "agent.sock"}), "socket"),
        (json!({"runtimeConfig": {"ips": ["10.42.0.1", "10.42.0.2"]}}), "one IPv4"),
        (json!({"runtimeConfig": {"mac": "ff:ff:ff:ff:ff:ff"}}), "mac"),
    ] {
        let outcome = host.about("ADD", &with(&agent.conf("web"), keys), "c1").run();
        assert!(outcome.code() == 7 && outcome.text().contains(word), "{word}: {}", outcome.text());
    }
    let own = host.about("ADD", &agent.conf("web"), "c1").env("CNI_NETNS", "/proc/self/ns/net").run();
    assert_eq!(own.code(), 4);
    assert_eq!(agent.asked(), []);
    assert_eq!(host.picture(), before);
}
