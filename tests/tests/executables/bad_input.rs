//! Bad input gives one error document with the right code, and changes nothing.

use crate::{bridge, chain, host_with};
use serde_json::{Value, json};
use tests::{Host, Output};

/// That this is a refusal with this code, in one document of the right shape.
#[track_caller]
fn refused(out: &Output, code: u64, names: &str) {
    assert!(out.code != 0, "accepted: {out}");
    let document = out.json();
    assert_eq!(document["code"], json!(code), "{out}");
    let text =
        format!("{} {}", document["msg"].as_str().unwrap_or(""), document["details"].as_str().unwrap_or(""));
    assert!(text.contains(names), "the message names {names:?}: {document}");
    let keys: Vec<_> = document.as_object().into_iter().flat_map(|keys| keys.keys()).collect();
    assert!(
        keys.iter().all(|key| ["cniVersion", "code", "msg", "details"].contains(&key.as_str())),
        "{keys:?}"
    );
    assert!(document["cniVersion"].is_string(), "{document}");
}

/// Refuses this configuration of a bridge, with this runtimeConfig.
#[track_caller]
fn bridge_refused(keys: Value, code: u64, names: &str) {
    let host = host_with(1);
    let mut chain = chain(&host, "/var/run/netns/pod1");
    for (key, value) in keys.as_object().into_iter().flatten() {
        chain.plugins[0][key] = value.clone();
    }
    refused(&chain.exec("ADD", 0, None), code, names);
}

#[test]
fn a_key_of_the_wrong_type() {
    bridge_refused(json!({"isGateway": "yes"}), 7, "isGateway");
    bridge_refused(json!({"mtu": "big"}), 7, "mtu");
    bridge_refused(json!({"mtu": -1}), 7, "mtu");
    bridge_refused(json!({"ipam": 7}), 7, "ipam");
    bridge_refused(json!({"bridge": ["br0"]}), 7, "bridge");
}

#[test]
fn an_address_outside_the_range() {
    let ranges = json!({"capabilities": {"ips": true}, "runtimeConfig": {"ips": ["10.9.9.9"]}});
    bridge_refused(ranges, 7, "10.9.9.9");
}

#[test]
fn a_bridge_name_of_sixteen_bytes() {
    bridge_refused(json!({"bridge": "bridge-name-1234"}), 7, "bridge-name-1234");
}

#[test]
fn a_port_of_70000() {
    let host = host_with(1);
    let mut chain = chain(&host, "/var/run/netns/pod1");
    let result = json!({"cniVersion": "1.0.0", "interfaces": [], "ips": [{"address": "10.1.2.3/24"}]});
    for (key, value) in
        [("hostPort", 70000), ("containerPort", 70000), ("hostPort", -1), ("containerPort", 0)]
    {
        let mut mapping = json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp"});
        mapping[key] = json!(value);
        chain.runtime = json!({"portMappings": [mapping]});
        refused(&chain.exec("ADD", 1, Some(&result)), 7, &value.to_string());
    }
}

#[test]
fn a_network_name_with_a_slash() {
    let host = host_with(1);
    let mut chain = chain(&host, "/var/run/netns/pod1");
    for name in ["a/b", "../etc", "", "-a", "a b"] {
        chain.name = name.into();
        refused(&chain.exec("ADD", 0, None), 7, "name");
    }
}

#[test]
fn a_container_id_with_a_slash() {
    let host = host_with(1);
    let mut chain = chain(&host, "/var/run/netns/pod1");
    for id in ["a/b", "../c", "", "a b"] {
        chain.container = id.into();
        refused(&chain.exec("ADD", 0, None), 4, "CNI_CONTAINERID");
    }
}

#[test]
fn an_interface_name_of_sixteen_bytes() {
    let host = host_with(1);
    let mut chain = chain(&host, "/var/run/netns/pod1");
    for name in ["sixteen-bytes-ab", "", "a/b", "a:b", "a b", ".", ".."] {
        chain.ifname = name.into();
        refused(&chain.exec("ADD", 0, None), 4, "CNI_IFNAME");
    }
}

#[test]
fn a_namespace_that_is_a_plain_file_or_missing_or_none_given() {
    let host = host_with(1);
    host.write("/run/plain", "no namespace");
    host.note_baseline();
    refused(&chain(&host, "/run/plain").exec("ADD", 0, None), 4, "/run/plain");
    refused(&chain(&host, "/run/no-such-file").exec("ADD", 0, None), 4, "/run/no-such-file");
    refused(&chain(&host, "/proc/1/ns/uts").exec("ADD", 0, None), 4, "/proc/1/ns/uts");
    let mut without = chain(&host, "");
    without.netns = None;
    refused(&without.exec("ADD", 0, None), 4, "CNI_NETNS");
}

#[test]
fn the_hosts_own_namespace() {
    let host = host_with(1);
    refused(&chain(&host, "/proc/1/ns/net").exec("ADD", 0, None), 4, "CNI_NETNS");
}

fn raw(host: &Host, stdin: &[u8]) -> Output {
    let env = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", "/var/run/netns/pod1"),
    ];
    host.cni_raw(&tests::weft_cni().join("bridge"), &env, stdin)
}

#[test]
fn truncated_json() {
    let host = host_with(1);
    let mut conf = bridge();
    conf["cniVersion"] = json!("1.0.0");
    conf["name"] = json!("testnet");
    let whole = conf.to_string();
    for length in [0, 1, whole.len() / 2, whole.len() - 1] {
        refused(&raw(&host, &whole.as_bytes()[..length]), 6, "");
    }
    refused(&raw(&host, b"[]"), 6, "");
    refused(&raw(&host, b"\xff\xfe{}"), 6, "");
}

#[test]
fn ten_megabytes_of_json() {
    let host = host_with(1);
    let much = format!("{{\"cniVersion\": \"1.0.0\", \"name\": \"{}\"}}", "x".repeat(10 << 20));
    refused(&raw(&host, much.as_bytes()), 6, "");
    let deep = format!("{{\"cniVersion\": \"1.0.0\", \"name\": \"a\", \"ipam\": {}", "[".repeat(1 << 20));
    refused(&raw(&host, deep.as_bytes()), 6, "");
}

#[test]
fn a_verb_that_does_not_exist_or_is_missing() {
    let host = host_with(1);
    let bridge = tests::weft_cni().join("bridge");
    let conf = br#"{"cniVersion": "1.0.0", "name": "testnet", "type": "bridge"}"#;
    refused(&host.cni_raw(&bridge, &[("CNI_COMMAND", "FETCH")], conf), 4, "CNI_COMMAND");
    refused(&host.cni_raw(&bridge, &[("CNI_COMMAND", "")], conf), 4, "CNI_COMMAND");
}

#[test]
fn a_version_that_is_none() {
    let host = host_with(1);
    let mut chain = chain(&host, "/var/run/netns/pod1");
    for version in ["1.2.0", "2.0.0", "1.0", "v1.0.0", "nonsense"] {
        chain.version = Some(version.into());
        refused(&chain.exec("ADD", 0, None), 1, version);
    }
}

#[test]
fn every_plugin_refuses_nonsense_with_one_document() {
    let host = host_with(1);
    for kind in
        ["bridge", "host", "none", "container", "loopback", "host-local", "overlay", "static", "portmap"]
    {
        let file = tests::weft_cni().join(kind);
        let env = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", "/var/run/netns/pod1"),
        ];
        refused(&host.cni_raw(&file, &env, b"nonsense"), 6, "");
        refused(
            &host.cni_raw(&file, &[("CNI_COMMAND", "ADD")], b"{\"cniVersion\":\"1.0.0\",\"name\":\"n\"}"),
            4,
            "CNI_",
        );
    }
}
