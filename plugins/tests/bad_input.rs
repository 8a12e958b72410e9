//! Bad input: one error document with the right code, and nothing is changed.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Host, bridge, with};
use serde_json::{Value, json};

#[track_caller]
fn refused(host: &Host, conf: &Value, code: u64, words: &[&str]) {
    let before = host.picture();
    let outcome = host.about("ADD", conf, "c1").run();
    assert_eq!(outcome.code(), code, "{}", outcome.text());
    for word in words {
        assert!(outcome.text().contains(word), "{word}: {}", outcome.text());
    }
    assert_eq!(outcome.document["cniVersion"], conf["cniVersion"]);
    assert_eq!(host.picture(), before);
}

fn host() -> Host {
    let host = Host::new();
    host.netns("c1");
    host
}

#[test]
fn wrong_types_and_values_of_the_bridges_keys() {
    let host = host();
    let conf = bridge("web", "10.5.0.0/24");
    for (keys, words) in [
        (json!({"mtu": "1500"}), ["mtu", "1500"]),
        (json!({"mtu": 67}), ["mtu", "67"]),
        (json!({"mtu": 70000}), ["mtu", "70000"]),
        (json!({"mtu": -1}), ["mtu", "-1"]),
        (json!({"isGateway": 1}), ["isGateway", "1"]),
        (json!({"bridge": 7}), ["bridge", "7"]),
        (json!({"bridge": "a/b"}), ["bridge", "a/b"]),
        (json!({"bridge": "0123456789abcdef"}), ["bridge", "0123456789abcdef"]),
        (json!({"vlan": 4095}), ["vlan", "4095"]),
        (json!({"vlan": -1}), ["vlan", "-1"]),
        (json!({"vlanTrunk": [{"minID": 5, "maxID": 4}]}), ["vlanTrunk", "minID"]),
        (json!({"vlanTrunk": [{"minID": 5}]}), ["vlanTrunk", "maxID"]),
        (json!({"vlanTrunk": [{"id": 0}]}), ["vlanTrunk", "0"]),
        (json!({"vlanTrunk": {}}), ["vlanTrunk", "{}"]),
        (json!({"hairpinMode": true, "promiscMode": true}), ["hairpinMode", "promiscMode"]),
        (json!({"disableContainerInterface": true}), ["disableContainerInterface", "ipam"]),
        (json!({"ipMasq": true, "ipMasqBackend": "ebpf"}), ["ipMasqBackend", "ebpf"]),
        (json!({"ingressPolicy": "closed"}), ["ingressPolicy", "closed"]),
        (json!({"runtimeConfig": {"mac": "01:00:00:00:00:01"}}), ["mac", "01:00:00:00:00:01"]),
        (json!({"args": {"cni": {"mac": "x"}}}), ["mac", "x"]),
        (json!({"name": "a/b"}), ["name", "a/b"]),
        (json!({"ipam": []}), ["ipam", "[]"]),
        (json!({"dns": 3}), ["dns", "3"]),
        (json!({"ipam": {"type": "../sh"}}), ["type", "../sh"]),
    ] {
        refused(&host, &with(&conf, keys), 7, &words);
    }
}

#[test]
fn wrong_ranges_routes_and_addresses() {
    let host = host();
    let conf = bridge("web", "10.5.0.0/24");
    let range = |range: Value| json!({"ranges": [[range]]});
    for (ipam, words) in [
        (json!({}), ["ipam.ranges", "empty"]),
        (json!({"ranges": {}}), ["ranges", "{}"]),
        (json!({"ranges": [[]]}), ["ranges[0]", "at least one"]),
        (range(json!({})), ["ranges[0][0].subnet", ""]),
        (range(json!({"subnet": "10.1.0.0"})), ["subnet", "10.1.0.0"]),
        (range(json!({"subnet": "10.1.0.0/33"})), ["subnet", "10.1.0.0/33"]),
        (range(json!({"subnet": "10.1.0.0/31"})), ["10.1.0.0/31", "too small"]),
        (range(json!({"subnet": "10.1.0.1/24"})), ["10.1.0.1/24", "10.1.0.0/24"]),
        (range(json!({"subnet": "10.1.0.0/24", "rangeStart": "10.2.0.1"})), ["rangeStart", "10.2.0.1"]),
        (
            range(json!({"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.8"})),
            ["10.1.0.8", ""],
        ),
        (range(json!({"subnet": "10.1.0.0/24", "gateway": "x"})), ["gateway", "x"]),
        (json!({"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.1.0.0/16"}]]}), ["overlap", ""]),
        (json!({"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": 7}]]}), ["ranges", "7"]),
        (json!({"ranges": [[{"subnet": "10.1.0.0/24"}]], "routes": [{"dst": "x"}]}), ["routes[0].dst", "x"]),
        (
            json!({"ranges": [[{"subnet": "10.1.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0", "gw": "y"}]}),
            ["gw", "y"],
        ),
        (json!({"ranges": [[{"subnet": "10.1.0.0/24"}]], "reserved": ["z"]}), ["reserved", "z"]),
    ] {
        let ipam = with(&json!({"type": "host-local"}), ipam);
        refused(&host, &with(&conf, json!({"ipam": ipam})), 7, &words);
    }
    let outside = with(&conf, json!({"args": {"cni": {"ips": ["192.0.2.7"]}}}));
    refused(&host, &with(&outside, json!({"name": "x"})), 7, &["192.0.2.7", "10.5.0.1-10.5.0.254"]);
    let missing = with(&conf["ipam"], json!({"resolvConf": "/nowhere/resolv.conf"}));
    refused(&host, &with(&conf, json!({"ipam": missing})), 5, &["/nowhere/resolv.conf"]);
    let endless = with(&conf["ipam"], json!({"resolvConf": "/dev/zero"}));
    refused(&host, &with(&conf, json!({"ipam": endless})), 5, &["/dev/zero", "regular file"]);
    let fixed = json!({"type": "static", "addresses": [{"address": "10.1.0.300/24"}]});
    refused(&host, &with(&conf, json!({"ipam": fixed})), 7, &["10.1.0.300/24"]);
}

#[test]
fn wrong_ports() {
    let host = host();
    let result = json!({"cniVersion": "1.1.0", "ips": [{"address": "10.5.0.2/24"}]});
    let conf = json!({"cniVersion": "1.1.0", "name": "web", "type": "portmap", "prevResult": result});
    let mapping = json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp"});
    for (keys, words) in [
        (json!({"hostPort": 70000}), ["hostPort", "70000"]),
        (json!({"hostPort": 0}), ["hostPort", "0"]),
        (json!({"containerPort": 65536}), ["containerPort", "65536"]),
        (json!({"containerPort": -80}), ["containerPort", "-80"]),
        (json!({"hostPort": "8080"}), ["portMappings", "8080"]),
        (json!({"protocol": "icmp"}), ["protocol", "icmp"]),
        (json!({"hostIP": "localhost"}), ["hostIP", "localhost"]),
    ] {
        let ports = json!({"portMappings": [with(&mapping, keys)]});
        refused(&host, &with(&conf, json!({"runtimeConfig": ports})), 7, &words);
    }
    for (keys, words) in [
        (json!({"markMasqBit": 32}), ["markMasqBit", "32"]),
        (
            json!({"markMasqBit": 3, "externalSetMarkChain": "KUBE-MARK-MASQ"}),
            ["externalSetMarkChain", "markMasqBit"],
        ),
        (json!({"backend": "ebpf"}), ["backend", "ebpf"]),
        (json!({"snat": "yes"}), ["snat", "yes"]),
        (json!({"prevResult": null}), ["prevResult", ""]),
    ] {
        let keys = with(&keys, json!({"runtimeConfig": {"portMappings": [mapping]}}));
        refused(&host, &with(&conf, keys), 7, &words);
    }
}

#[test]
fn wrong_environments() {
    let host = host();
    let conf = bridge("web", "10.5.0.0/24");
    host.sh("touch /run/plain");
    let before = host.picture();
    for (key, value, words) in [
        ("CNI_NETNS", "/run/plain", ["/run/plain", "not a namespace"]),
        ("CNI_NETNS", "/run/nothing", ["/run/nothing", "CNI_NETNS"]),
        ("CNI_NETNS", "/proc/self/ns/pid", ["PID namespace", "CNI_NETNS"]),
        ("CNI_NETNS", "", ["CNI_NETNS", "ADD"]),
        ("CNI_IFNAME", "0123456789abcdef", ["CNI_IFNAME", "15 bytes"]),
        ("CNI_IFNAME", "a/b", ["CNI_IFNAME", "a/b"]),
        ("CNI_CONTAINERID", "../c", ["CNI_CONTAINERID", "../c"]),
        ("CNI_COMMAND", "PUT", ["CNI_COMMAND", "PUT"]),
        ("CNI_ARGS", "FOO=1", ["CNI_ARGS", "FOO"]),
        ("CNI_ARGS", "MAC=x", ["CNI_ARGS", "x"]),
        ("CNI_ARGS", "IP", ["CNI_ARGS", "IP"]),
    ] {
        let outcome = host.about("ADD", &conf, "c1").env(key, value).run();
        assert_eq!(outcome.code(), 4, "{key}={value}: {}", outcome.text());
        for word in words {
            assert!(outcome.text().contains(word), "{word}: {}", outcome.text());
        }
        assert_eq!(host.picture(), before, "{key}={value}");
    }
    host.about("ADD", &conf, "c1").env("CNI_ARGS", "IgnoreUnknown=1;FOO=1").run().ok();
}

#[test]
fn documents_that_are_none() {
    let host = host();
    let before = host.picture();
    let conf = bridge("web", "10.5.0.0/24");
    let text = conf.to_string();
    let long = format!("{{\"name\":\"{}\"}}", "x".repeat(10 << 20));
    let deep = "[".repeat(1 << 20);
    let cases = [(&text[..text.len() / 2], 6), ("", 6), ("[]", 6), ("null", 6), (&long, 6), (&deep, 6)];
    for plugin in ["bridge", "host-local", "static", "portmap", "loopback", "none", "host", "container"] {
        let conf = with(&conf, json!({"type": plugin}));
        for (stdin, code) in cases {
            let outcome = host.about("ADD", &conf, "c1").stdin(stdin).run();
            assert_eq!(outcome.code(), code, "{plugin}: {}", outcome.text());
        }
        let outcome = host.about("ADD", &with(&conf, json!({"cniVersion": "0.9.9"})), "c1").run();
        assert_eq!(outcome.code(), 1, "{plugin}: {}", outcome.text());
    }
    assert_eq!(host.picture(), before);
}

#[test]
fn verbs_that_a_version_does_not_have() {
    let host = host();
    let old = with(&bridge("web", "10.5.0.0/24"), json!({"cniVersion": "0.3.1"}));
    assert_eq!(host.about("CHECK", &old, "c1").run().code(), 1);
    let older = with(&old, json!({"cniVersion": "1.0.0", "cni.dev/valid-attachments": []}));
    assert_eq!(host.call("GC", &older).run().code(), 1);
    assert_eq!(host.call("STATUS", &older).run().code(), 1);
    for plugin in ["bridge", "host-local", "static", "portmap", "loopback", "none", "host", "container"] {
        let said = host.call("VERSION", &json!({"cniVersion": "0.4.0", "type": plugin})).run().ok();
        assert_eq!(said["cniVersion"], "0.4.0");
        assert_eq!(said["supportedVersions"].as_array().unwrap().len(), 7, "{plugin}");
    }
}
