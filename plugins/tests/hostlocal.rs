//! host-local and static by themselves: every source of ranges and of requested addresses, and whose leases are kept.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Call, Host, address, bridge, with};
use serde_json::{Value, json};

fn host_local(ipam: Value) -> Value {
    json!({"cniVersion": "1.0.0", "name": "net1", "type": "host-local", "ipam": with(&json!({"type": "host-local"}), ipam)})
}

fn ranges() -> Value {
    host_local(json!({"ranges": [[{"subnet": "10.1.0.0/24"}]]}))
}

/// A call for a container that has no namespace: an address store does not look at it.
fn about<'h>(host: &'h Host, verb: &'h str, conf: &Value, id: &str) -> Call<'h> {
    host.about(verb, conf, id)
}

fn ips(result: &Value) -> Vec<String> {
    (0..result["ips"].as_array().unwrap().len()).map(|at| address(result, at)).collect()
}

#[test]
fn the_result_has_addresses_gateways_routes_and_the_resolver() {
    let host = Host::new();
    host.sh("printf 'nameserver 192.0.2.53\\nsearch a.example\\noptions ndots:2\\n' > /run/resolv.conf");
    let conf = host_local(json!({
        "ranges": [[{"subnet": "10.1.0.0/24", "gateway": "10.1.0.254"}], [{"subnet": "fd00::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "192.0.2.0/24", "gw": "10.1.0.9"}],
        "resolvConf": "/run/resolv.conf",
    }));
    let result = about(&host, "ADD", &conf, "c1").run().ok();
    assert_eq!(
        result,
        json!({
            "cniVersion": "1.0.0",
            "ips": [
                {"address": "10.1.0.1/24", "gateway": "10.1.0.254"},
                {"address": "fd00::2/64", "gateway": "fd00::1"},
            ],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "192.0.2.0/24", "gw": "10.1.0.9"}],
            "dns": {"nameservers": ["192.0.2.53"], "search": ["a.example"], "options": ["ndots:2"]},
        })
    );
}

#[test]
fn ranges_come_from_the_runtime_the_legacy_keys_and_the_configuration_in_this_order() {
    let host = Host::new();
    let mut conf = host_local(json!({
        "subnet": "10.1.0.0/24", "rangeStart": "10.1.0.10", "rangeEnd": "10.1.0.20", "gateway": "10.1.0.1",
        "ranges": [[{"subnet": "10.2.0.0/24"}]],
    }));
    conf["runtimeConfig"] = json!({"ipRanges": [[{"subnet": "10.3.0.0/24"}]]});
    let result = about(&host, "ADD", &conf, "c1").run().ok();
    assert_eq!(ips(&result), ["10.3.0.2", "10.1.0.10", "10.2.0.2"]);
}

#[test]
fn requested_addresses_add_up() {
    let host = Host::new();
    let mut conf = host_local(json!({
        "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/24"}], [{"subnet": "fd00::/64"}]],
    }));
    conf["args"] = json!({"cni": {"ips": ["10.2.0.22"]}});
    conf["runtimeConfig"] = json!({"ips": ["fd00::33/64", "10.1.0.11"]});
    let result = about(&host, "ADD", &conf, "c1").env("CNI_ARGS", "IP=10.1.0.11").run().ok();
    assert_eq!(ips(&result), ["10.1.0.11", "10.2.0.22", "fd00::33"]);
}

#[test]
fn a_requested_address_must_be_in_a_range_free_and_no_gateway() {
    let host = Host::new();
    let conf = ranges();
    about(&host, "ADD", &conf, "c1").env("CNI_ARGS", "IP=10.1.0.7").run().ok();
    for (ip, code, word) in [
        ("10.9.0.1", 7, "10.1.0.1-10.1.0.254"),
        ("10.1.0.1", 7, "gateway"),
        ("10.1.0.7", 101, "c1"),
        ("x", 4, "IP"),
    ] {
        let refused = about(&host, "ADD", &conf, "c2").env("CNI_ARGS", &format!("IP={ip}")).run();
        assert_eq!(refused.code(), code, "{ip}: {}", refused.text());
        assert!(refused.text().contains(word), "{}", refused.text());
    }
    // Nothing was kept for the refused one.
    assert_eq!(address(&about(&host, "ADD", &conf, "c2").run().ok(), 0), "10.1.0.2");
}

#[test]
fn addresses_are_given_in_turn_and_reserved_ones_only_when_asked_for() {
    let host = Host::new();
    let conf = host_local(json!({
        "ranges": [[{"subnet": "10.1.0.0/29"}]], "reserved": ["10.1.0.3", "10.1.0.5"],
    }));
    let add = |id: &str| address(&about(&host, "ADD", &conf, id).run().ok(), 0);
    assert_eq!(add("c1"), "10.1.0.2");
    about(&host, "DEL", &conf, "c1").run().ok();
    assert_eq!([add("c2"), add("c3"), add("c4")], ["10.1.0.4", "10.1.0.6", "10.1.0.2"]);
    assert_eq!(about(&host, "ADD", &conf, "c5").run().code(), 102);
    let asked = about(&host, "ADD", &conf, "c5").env("CNI_ARGS", "IP=10.1.0.3").run().ok();
    assert_eq!(address(&asked, 0), "10.1.0.3");
}

#[test]
fn an_exhausted_range_is_not_ready() {
    let host = Host::new();
    let conf =
        with(&host_local(json!({"ranges": [[{"subnet": "10.1.0.0/30"}]]})), json!({"cniVersion": "1.1.0"}));
    host.call("STATUS", &conf).run().ok();
    about(&host, "ADD", &conf, "c1").run().ok();
    assert_eq!(host.call("STATUS", &conf).run().code(), 50);
    about(&host, "DEL", &conf, "c1").run().ok();
    host.call("STATUS", &conf).run().ok();
}

#[test]
fn del_and_gc_give_back_and_the_last_one_cleans_up() {
    let host = Host::new();
    let before = host.picture();
    let conf = with(&ranges(), json!({"cniVersion": "1.1.0"}));
    for id in ["c1", "c2", "c3"] {
        about(&host, "ADD", &conf, id).run().ok();
    }
    assert_eq!(about(&host, "ADD", &conf, "c1").run().code(), 103);
    about(&host, "DEL", &conf, "c1").run().ok();
    about(&host, "DEL", &conf, "c1").run().ok();
    let valid = json!([{"containerID": "c3", "ifname": "eth0"}]);
    host.call("GC", &with(&conf, json!({"cni.dev/valid-attachments": valid}))).run().ok();
    for (id, held) in [("c1", false), ("c2", false), ("c3", true)] {
        let conf = with(&conf, json!({"prevResult": {"cniVersion": "1.1.0"}}));
        assert_eq!(about(&host, "CHECK", &conf, id).run().success, held, "{id}");
    }
    host.call("GC", &with(&conf, json!({"cni.dev/valid-attachments": []}))).run().ok();
    assert_eq!(host.picture(), before);
}

#[test]
fn data_dir_keeps_networks_apart() {
    let host = Host::new();
    let conf = host_local(json!({"ranges": [[{"subnet": "10.1.0.0/24"}]], "dataDir": "/run/elsewhere"}));
    about(&host, "ADD", &ranges(), "c1").run().ok();
    assert_eq!(address(&about(&host, "ADD", &conf, "c1").run().ok(), 0), "10.1.0.2");
    host.sh("test -d /run/elsewhere/.weft && test -d /var/lib/weft/ipam");
}

#[test]
fn leases_of_the_reference_plugin_are_taken_over() {
    let host = Host::new();
    host.sh("mkdir -p /var/lib/cni/networks/net1 && cd /var/lib/cni/networks/net1 && \
         printf 'old\\r\\neth0' > 10.1.0.2 && printf 'older' > 10.1.0.3 && : > 10.1.0.4 && \
         printf 10.1.0.4 > last_reserved_ip.0 && : > lock");
    assert_eq!(address(&about(&host, "ADD", &ranges(), "c1").run().ok(), 0), "10.1.0.5");
    assert_eq!(about(&host, "ADD", &ranges(), "c2").env("CNI_ARGS", "IP=10.1.0.2").run().code(), 101);
    about(&host, "DEL", &ranges(), "old").run().ok();
    about(&host, "DEL", &ranges(), "older").run().ok();
    about(&host, "ADD", &ranges(), "c2").env("CNI_ARGS", "IP=10.1.0.2").run().ok();
    about(&host, "ADD", &ranges(), "c3").env("CNI_ARGS", "IP=10.1.0.3").run().ok();
    about(&host, "ADD", &ranges(), "c4").env("CNI_ARGS", "IP=10.1.0.4").run().ok();
}

#[test]
fn a_damaged_store_is_rebuilt_from_the_runtimes_results() {
    let host = Host::new();
    let conf = bridge("web", "10.5.0.0/24");
    host.netns("c1");
    host.netns("c2");
    let result = host.about("ADD", &conf, "c1").run().ok();
    // What libcni keeps: the configuration in base64.
    let kept = json!({
        "kind": "cniCacheV1", "containerId": "c1", "ifName": "eth0", "networkName": "web",
        "netns": "/run/netns/c1", "result": result,
    });
    host.sh(&format!(
        "mkdir -p /var/lib/cni/results && cd /var/lib/cni/results && config=$(printf '%s' '{conf}' | base64 -w0) && \
         printf '%s' '{kept}' | sed \"s|^.|{{\\\"config\\\":\\\"$config\\\",|\" > web-c1-eth0"
    ));
    host.sh("for file in /var/lib/weft/ipam/data.mdb; do dd if=/dev/urandom of=$file bs=4096 count=4 conv=notrunc; done");
    let outcome = host.about("ADD", &conf, "c2").run();
    assert!(outcome.stderr.contains("rebuilt"), "{}", outcome.stderr);
    assert_ne!(address(&outcome.ok(), 0), address(&result, 0));
    let taken = host.about("ADD", &conf, "c3").env("CNI_ARGS", &format!("IP={}", address(&result, 0)));
    host.netns("c3");
    assert_eq!(taken.run().code(), 101);
}

#[test]
fn many_at_once_get_different_addresses() {
    let host = Host::new();
    let ids: Vec<String> = (0..24).map(|at| format!("c{at}")).collect();
    let conf = ranges();
    let running: Vec<_> = ids.iter().map(|id| about(&host, "ADD", &conf, id).spawn()).collect();
    let mut given: Vec<String> = running.into_iter().map(|run| address(&run.wait().ok(), 0)).collect();
    given.sort();
    given.dedup();
    assert_eq!(given.len(), 24);
}

#[test]
fn the_first_versions_have_one_address_of_a_family() {
    let host = Host::new();
    let two = host_local(json!({"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/24"}]]}));
    assert_eq!(about(&host, "ADD", &with(&two, json!({"cniVersion": "0.2.0"})), "c1").run().code(), 1);
    let result = about(&host, "ADD", &with(&ranges(), json!({"cniVersion": "0.2.0"})), "c1").run().ok();
    let ip4 = json!({"ip": "10.1.0.2/24", "gateway": "10.1.0.1"});
    assert_eq!(result, json!({"cniVersion": "0.2.0", "ip4": ip4, "dns": {}}));
}

fn fixed(ipam: Value) -> Value {
    json!({"cniVersion": "1.0.0", "name": "net1", "type": "static", "ipam": with(&json!({"type": "static"}), ipam)})
}

#[test]
fn static_gives_what_it_is_told() {
    let host = Host::new();
    let conf = fixed(json!({
        "addresses": [{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}, {"address": "fd00::5/64"}],
        "routes": [{"dst": "0.0.0.0/0"}], "dns": {"nameservers": ["192.0.2.1"], "domain": "example"},
    }));
    let result = about(&host, "ADD", &conf, "c1").run().ok();
    let expected = json!({
        "cniVersion": "1.0.0",
        "ips": [{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}, {"address": "fd00::5/64"}],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dns": {"nameservers": ["192.0.2.1"], "domain": "example"},
    });
    assert_eq!(result, expected);
    about(&host, "CHECK", &with(&conf, json!({"prevResult": result})), "c1").run().ok();
    about(&host, "DEL", &conf, "c1").run().ok();
}

#[test]
fn static_adds_the_arguments_addresses_and_replaces_by_those_of_the_runtime() {
    let host = Host::new();
    let mut conf = fixed(json!({"addresses": [{"address": "10.1.0.5/24"}]}));
    let args = "IP=10.2.0.5/24, fd00::5/64;GATEWAY=10.2.0.1,fd00::1";
    let result = about(&host, "ADD", &conf, "c1").env("CNI_ARGS", args).run().ok();
    assert_eq!(ips(&result), ["10.1.0.5", "10.2.0.5", "fd00::5"]);
    assert_eq!(
        (&result["ips"][1]["gateway"], &result["ips"][2]["gateway"]),
        (&json!("10.2.0.1"), &json!("fd00::1"))
    );
    conf["args"] = json!({"cni": {"ips": ["10.3.0.5/24"]}});
    assert_eq!(ips(&about(&host, "ADD", &conf, "c1").env("CNI_ARGS", args).run().ok()), ["10.3.0.5"]);
    conf["runtimeConfig"] = json!({"ips": ["10.4.0.5/24"]});
    assert_eq!(ips(&about(&host, "ADD", &conf, "c1").run().ok()), ["10.4.0.5"]);
    assert_eq!(
        about(&host, "ADD", &fixed(json!({"addresses": [{"address": "10.1.0.5"}]})), "c1").run().code(),
        7
    );
}

/// A store on a file system of its own, with the lease of c1, that then cannot be written.
fn unwritable(make_so: &str, make_good: &str) {
    let host = Host::new();
    host.sh("mkdir /run/disk && mount -t tmpfs -o size=256k tmpfs /run/disk");
    let conf = host_local(json!({"ranges": [[{"subnet": "10.1.0.0/24"}]], "dataDir": "/run/disk/leases"}));
    about(&host, "ADD", &conf, "c1").run().ok();
    about(&host, "ADD", &conf, "c2").run().ok();
    host.sh(make_so);
    for id in ["c1", "c2", "c1"] {
        about(&host, "DEL", &conf, id).run().ok();
    }
    host.sh(make_good);
    for id in ["c2", "c3"] {
        let at = if id == "c2" { "10.1.0.2" } else { "10.1.0.3" };
        let result = about(&host, "ADD", &conf, id).env("CNI_ARGS", &format!("IP={at}")).run().ok();
        assert_eq!(address(&result, 0), at);
    }
    host.sh("! ls -d /run/weft/releases; ! find / -xdev -name '*.tmp*' -path '*weft*' | grep .; ! ls -a /run/disk/leases | grep tmp");
}

#[test]
fn del_on_a_full_disk_releases_the_address_later() {
    unwritable(
        "dd if=/dev/zero of=/run/disk/fill bs=1k 2>/dev/null; ! echo x > /run/disk/more",
        "rm /run/disk/fill /run/disk/more",
    );
}

#[test]
fn del_on_a_read_only_file_system_releases_the_address_later() {
    unwritable("mount -o remount,ro /run/disk", "mount -o remount,rw /run/disk");
}
