//! Weft's own plugins: none, host and container; loopback; and the executable under its own name.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Host, WEFT_CNI, bridge, scratch, with};
use serde_json::{Value, json};
use std::os::unix::fs::MetadataExt;
use std::process::Command;

fn conf(kind: &str) -> Value {
    json!({"cniVersion": "1.1.0", "name": "net", "type": kind})
}

#[test]
fn loopback_and_none_bring_lo_up_and_del_brings_it_down() {
    let host = Host::new();
    host.netns("c1");
    for kind in ["loopback", "none"] {
        let result = host.about("ADD", &conf(kind), "c1").env("CNI_IFNAME", "lo").run().ok();
        let interface = json!({"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": "/run/netns/c1"});
        assert_eq!(result["interfaces"], json!([interface]));
        let ips = json!([{"interface": 0, "address": "127.0.0.1/8"}, {"interface": 0, "address": "::1/128"}]);
        assert_eq!(result["ips"], ips);
        host.sh("ip netns exec c1 ping -qc1 127.0.0.1");
        let check = with(&conf(kind), json!({"prevResult": result}));
        host.about("CHECK", &check, "c1").run().ok();
        host.about("DEL", &conf(kind), "c1").run().ok();
        assert_eq!(host.about("CHECK", &check, "c1").run().code(), 105);
        host.about("DEL", &conf(kind), "gone").run().ok();
        assert_eq!(
            host.about("ADD", &conf(kind), "c1").env("CNI_NETNS", "/proc/self/ns/net").run().code(),
            4
        );
    }
    assert!(host.sh("ip link show lo").contains("UP"), "the host's own");
    let before = json!({"cniVersion": "1.1.0", "ips": [{"address": "10.1.0.2/24"}]});
    let chained = with(&conf("loopback"), json!({"prevResult": before}));
    assert_eq!(host.about("ADD", &chained, "c1").run().ok(), before);
}

#[test]
fn host_tells_of_the_host_and_refuses_any_other_namespace() {
    let host = Host::new();
    host.sh(
        "ip link add wan type veth peer name x && ip addr add 192.0.2.1/24 dev wan && ip link set wan up",
    );
    host.netns("c1");
    let before = host.picture();
    let result = host.about("ADD", &conf("host"), "c1").env("CNI_NETNS", "/proc/self/ns/net").run().ok();
    let names: Vec<_> = result["interfaces"].as_array().unwrap().iter().map(|each| &each["name"]).collect();
    assert_eq!(names, ["lo", "x", "wan"]);
    assert_eq!(result["ips"], json!([{"interface": 2, "address": "192.0.2.1/24"}]));
    let refused = host.about("ADD", &conf("host"), "c1").run();
    assert_eq!(refused.code(), 4);
    assert!(refused.text().contains("/run/netns/c1"), "{}", refused.text());
    host.about("DEL", &conf("host"), "c1").env("CNI_NETNS", "/proc/self/ns/net").run().ok();
    assert_eq!(host.picture(), before);
}

/// Keeps the result of an ADD as runtimes do.
fn keep(host: &Host, id: &str, result: &Value) {
    let entry = json!({
        "kind": "cniCacheV1", "containerId": id, "ifName": "eth0", "networkName": "web",
        "netns": format!("/run/netns/{id}"), "config": "", "result": result,
    });
    host.sh(&format!(
        "mkdir -p /var/lib/weft/results && printf '%s' '{entry}' > /var/lib/weft/results/web-{id}-eth0"
    ));
}

/// A call for container `side`, which joins `www`.
fn side<'h>(host: &'h Host, verb: &'h str, conf: &Value) -> common::Call<'h> {
    host.about(verb, conf, "side").env("CNI_NETNS", "/run/netns/www")
}

#[test]
fn container_shares_a_namespace_and_counts_who_does() {
    let host = Host::new();
    host.netns("www");
    host.netns("other");
    let web = bridge("web", "10.5.0.0/24");
    let result = host.about("ADD", &web, "www").run().ok();
    keep(&host, "www", &result);
    let join = with(&conf("container"), json!({"container": "www"}));
    let before = host.picture();
    let joined = side(&host, "ADD", &join).run().ok();
    assert_eq!(joined["ips"], result["ips"]);
    assert_eq!(joined["interfaces"], result["interfaces"]);
    let runtime =
        with(&conf("container"), json!({"runtimeConfig": {"container": "www"}, "prevResult": joined}));
    side(&host, "CHECK", &runtime).run().ok();
    assert_eq!(host.sh("find /var/lib/weft/shared -type f"), "/var/lib/weft/shared/www/side--eth0");
    side(&host, "DEL", &join).run().ok();
    side(&host, "DEL", &join).run().ok();
    assert_eq!(side(&host, "CHECK", &runtime).run().code(), 105);
    host.sh("rmdir /var/lib/weft/shared");
    assert_eq!(host.picture(), before);

    let elsewhere = host.about("ADD", &join, "side").env("CNI_NETNS", "/run/netns/other").run();
    assert_eq!(elsewhere.code(), 4);
    let unknown = with(&join, json!({"container": "nobody"}));
    assert_eq!(side(&host, "ADD", &unknown).run().code(), 107);
    for wrong in [json!(null), json!(""), json!("../x"), json!("side"), json!(7)] {
        let wrong = with(&join, json!({"container": wrong}));
        assert_eq!(side(&host, "ADD", &wrong).run().code(), 7);
    }
    assert_eq!(host.picture(), before);
}

/// A joiner's DEL on a file system that cannot be written, and then can.
fn leave_on_an_unwritable_root(make_so: &str, make_good: &str) {
    let host = Host::new();
    host.sh("mount -t tmpfs -o size=256k tmpfs /var/lib/weft");
    host.netns("www");
    keep(&host, "www", &json!({"cniVersion": "1.1.0"}));
    let join = with(&conf("container"), json!({"container": "www"}));
    let joined = side(&host, "ADD", &join).run().ok();
    let check = with(&join, json!({"prevResult": joined}));
    host.sh(make_so);
    for _ in 0..2 {
        side(&host, "DEL", &join).run().ok();
        assert_eq!(side(&host, "CHECK", &check).run().code(), 105);
    }
    host.sh(make_good);
    side(&host, "ADD", &join).run().ok();
    side(&host, "CHECK", &check).run().ok();
    side(&host, "DEL", &join).run().ok();
    host.sh("test -z \"$(find /var/lib/weft/shared -type f)\" && ! ls -d /run/weft/left");
}

#[test]
fn joiner_leaves_on_a_full_disk() {
    leave_on_an_unwritable_root(
        "dd if=/dev/zero of=/var/lib/weft/fill bs=1k 2>/dev/null; ! echo x > /var/lib/weft/more",
        "rm /var/lib/weft/fill",
    );
}

#[test]
fn joiner_leaves_on_a_read_only_file_system() {
    leave_on_an_unwritable_root("mount -o remount,ro /var/lib/weft", "mount -o remount,rw /var/lib/weft");
}

#[test]
fn gc_gives_back_the_counts_of_containers_that_are_no_more() {
    let host = Host::new();
    host.netns("www");
    keep(&host, "www", &json!({"cniVersion": "1.1.0"}));
    let join = with(&conf("container"), json!({"container": "www"}));
    for id in ["a", "b"] {
        host.about("ADD", &join, id).env("CNI_NETNS", "/run/netns/www").run().ok();
    }
    let valid = json!([{"containerID": "b", "ifname": "eth0"}]);
    host.call("GC", &with(&join, json!({"cni.dev/valid-attachments": valid}))).run().ok();
    assert_eq!(host.sh("find /var/lib/weft/shared -type f"), "/var/lib/weft/shared/www/b--eth0");
}

#[test]
fn the_executable_installs_itself_under_every_name() {
    let (_dir, path) = scratch();
    let run = |args: &[&str]| Command::new(WEFT_CNI).args(args).output().unwrap();
    let list = String::from_utf8(run(&["list"]).stdout).unwrap();
    for _ in 0..2 {
        assert!(run(&["install", path.to_str().unwrap()]).status.success());
    }
    let files: Vec<_> = std::fs::read_dir(&path).unwrap().map(|file| file.unwrap()).collect();
    assert_eq!(files.len(), list.lines().count());
    let inodes: std::collections::HashSet<u64> =
        files.iter().map(|file| file.metadata().unwrap().ino()).collect();
    assert_eq!(inodes.len(), 1);
    assert!(list.lines().eq([
        "bridge",
        "container",
        "host",
        "host-local",
        "loopback",
        "none",
        "overlay",
        "portmap",
        "static"
    ]));
    assert!(String::from_utf8(run(&["--version"]).stdout).unwrap().starts_with("weft-cni "));
    assert_eq!(run(&["bogus"]).status.code(), Some(2));
}

#[test]
fn a_foreign_ipam_is_executed_and_its_failed_add_is_followed_by_its_del() {
    let host = Host::new();
    host.netns("c1");
    let script = "#!/bin/sh\necho \"$CNI_COMMAND $CNI_ARGS\" >> /run/calls\ntest $CNI_COMMAND = ADD || exit 0\n\
        test -e /run/fail && { echo '{\"code\":142,\"msg\":\"no more\"}'; exit 1; }\n\
        echo '{\"cniVersion\":\"1.1.0\",\"ips\":[{\"address\":\"10.7.0.9/24\",\"gateway\":\"10.7.0.1\"}]}'\n";
    let plugin = host.bin.path().join("acme-ipam");
    std::fs::write(&plugin, script).unwrap();
    host.sh(&format!("chmod +x {}", plugin.display()));
    let conf = with(&bridge("web", "10.5.0.0/24"), json!({"ipam": {"type": "acme-ipam"}}));
    let args = "MAC=02:00:00:00:00:07";
    let result = host.about("ADD", &conf, "c1").env("CNI_ARGS", args).run().ok();
    assert_eq!(result["ips"][0]["address"], "10.7.0.9/24");
    host.about("DEL", &conf, "c1").run().ok();
    host.call("STATUS", &conf).run().ok();
    assert_eq!(host.sh("cat /run/calls"), "ADD \nDEL \nSTATUS");
    host.eventually(
        "test $(ip -o link | wc -l) = 2 && test -z \"$(nft list ruleset)\" && ! test -e /run/weft",
    );
    host.sh("rm /run/calls");
    let before = host.picture();
    host.sh("touch /run/fail");
    let failed = host.about("ADD", &conf, "c1").run();
    assert_eq!((failed.code(), failed.document["msg"].as_str()), (142, Some("acme-ipam ADD: no more")));
    assert_eq!(host.sh("cat /run/calls; rm /run/calls /run/fail"), "ADD \nDEL");
    host.eventually(
        "test $(ip -o link | wc -l) = 2 && test -z \"$(nft list ruleset)\" && ! test -e /run/weft",
    );
    assert_eq!(host.picture(), before);
    let missing = with(&conf, json!({"ipam": {"type": "nowhere-ipam"}}));
    assert!(host.about("ADD", &missing, "c1").run().text().contains("nowhere-ipam"));
}
