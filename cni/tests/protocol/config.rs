//! Configurations: the well-known keys, a plugin's own keys, and lists in files.

use cni::Version;
use cni::config::{ConfList, NetConf, ValidAttachment, parse_object};
use serde::Deserialize;
use serde_json::json;
use std::fs;

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
struct Own {
    bridge: Option<String>,
    #[serde(default)]
    is_gateway: bool,
    mtu: Option<u32>,
}

#[test]
fn the_well_known_keys_are_read() {
    let conf = NetConf::from_value(json!({
        "cniVersion": "1.1.0", "name": "net", "type": "bridge", "ipam": {"type": "host-local"},
        "dns": {"nameservers": ["1.1.1.1"]}, "runtimeConfig": {"mac": "02:00:00:00:00:01"},
        "args": {"cni": {"ips": ["10.0.0.1"]}}, "cni.dev/valid-attachments": [{"containerID": "a", "ifname": "eth0"}],
        "prevResult": {"ips": [{"address": "10.0.0.5/24"}]},
    }))
    .unwrap();
    assert_eq!((conf.version, conf.name.as_str(), conf.kind.as_str()), (Version::V1_1_0, "net", "bridge"));
    assert_eq!(conf.ipam_kind(), Some("host-local"));
    assert_eq!(conf.dns.nameservers, ["1.1.1.1"]);
    assert_eq!(conf.capability::<String>("mac").unwrap().as_deref(), Some("02:00:00:00:00:01"));
    assert_eq!(conf.args_cni["ips"], json!(["10.0.0.1"]));
    assert_eq!(conf.require_prev_result().unwrap().ips.len(), 1);
    let valid = ValidAttachment { container_id: "a".into(), ifname: "eth0".into() };
    assert_eq!(conf.valid_attachments, Some(vec![valid]));
}

#[test]
fn null_is_as_absent_everywhere() {
    let conf = NetConf::from_value(json!({
        "cniVersion": null, "name": "net", "type": null, "ipam": null, "dns": null, "runtimeConfig": null, "args": null,
        "prevResult": null, "mtu": null, "isGateway": null,
    }))
    .unwrap();
    assert_eq!(conf.version, Version::V0_1_0);
    assert!(conf.ipam.is_none() && conf.prev_result.is_none() && conf.valid_attachments.is_none());
    assert_eq!(conf.parse::<Own>().unwrap(), Own { bridge: None, is_gateway: false, mtu: None });
    assert_eq!(conf.require_prev_result().unwrap_err().code, 7);
}

#[test]
fn null_list_of_valid_attachments_is_empty() {
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        let conf = NetConf::from_value(json!({"name": "n", key: null})).unwrap();
        assert_eq!(conf.valid_attachments, Some(Vec::new()), "{key}");
    }
}

#[test]
fn an_empty_ipam_means_no_ipam() {
    for ipam in [json!({}), json!({"type": ""})] {
        assert_eq!(NetConf::from_value(json!({"name": "n", "ipam": ipam})).unwrap().ipam_kind(), None);
    }
}

#[test]
fn the_older_key_for_valid_attachments_is_taken_when_the_newer_is_absent() {
    let a = json!([{"containerID": "a", "ifname": "e"}]);
    let old = NetConf::from_value(json!({"name": "n", "cni.dev/attachments": a})).unwrap();
    assert_eq!(old.valid_attachments.unwrap().len(), 1);
    let both =
        NetConf::from_value(json!({"name": "n", "cni.dev/attachments": a, "cni.dev/valid-attachments": []}));
    assert_eq!(both.unwrap().valid_attachments, Some(vec![]));
}

#[test]
fn a_wrong_type_of_a_well_known_key_is_named() {
    for (key, value) in [
        ("name", json!(3)),
        ("name", json!("a/b")),
        ("name", json!("")),
        ("type", json!({})),
        ("cniVersion", json!(1.0)),
        ("ipam", json!("host-local")),
        ("dns", json!([])),
        ("runtimeConfig", json!([])),
        ("args", json!("x")),
        ("cni.dev/valid-attachments", json!({})),
        ("cni.dev/valid-attachments", json!([{"ifname": "e"}])),
    ] {
        let mut conf = json!({"name": "n"});
        conf[key] = value;
        let error = NetConf::from_value(conf.clone()).unwrap_err();
        assert!(error.code == 7 && error.to_string().contains(key), "{conf}: {error}");
    }
}

#[test]
fn a_plugins_own_keys_are_reported_with_value_and_what_is_allowed() {
    let conf = NetConf::from_value(json!({"name": "n", "bridge": "b", "mtu": "big", "zzz": 1})).unwrap();
    for error in [conf.parse::<Own>().unwrap_err(), conf.get::<u32>("mtu").unwrap_err()] {
        assert_eq!(error.code, 7);
        assert_eq!(
            error.to_string(),
            r#"invalid "mtu" in the network configuration: mtu is "big"; allowed: a whole number, not below 0"#
        );
    }
    assert_eq!(conf.get::<String>("bridge").unwrap().as_deref(), Some("b"));
    assert_eq!(conf.get::<String>("absent").unwrap(), None);
}

#[test]
fn errors_name_no_type_of_rust() {
    #[derive(Debug, Deserialize)]
    #[allow(dead_code)]
    struct Inner {
        id: Option<i64>,
    }
    #[derive(Debug, Deserialize)]
    #[serde(default)]
    #[derive(Default)]
    #[allow(dead_code)]
    struct Keys {
        whole: i64,
        byte: u8,
        port: u16,
        big: u64,
        part: f64,
        list: Vec<Inner>,
        pair: Option<(u8, u8)>,
        map: std::collections::BTreeMap<String, String>,
    }
    for (key, value, expected) in [
        ("whole", json!("x"), "a whole number"),
        ("whole", json!(1e30), "a whole number"),
        ("byte", json!(300), "a whole number from 0 to 255"),
        ("port", json!(-1), "a whole number from 0 to 65535"),
        ("big", json!({}), "a whole number, not below 0"),
        ("part", json!([]), "a number"),
        ("list", json!("x"), "a list"),
        ("list", json!([7]), "an object"),
        ("list", json!([{"id": "x"}]), "a whole number"),
        ("pair", json!([1]), "a list"),
        ("map", json!([1]), "an object"),
    ] {
        let conf = NetConf::from_value(json!({"name": "n", key: value})).unwrap();
        let error = conf.parse::<Keys>().unwrap_err();
        assert_eq!(error.details, format!("{key} is {value}; allowed: {expected}"));
    }
}

#[test]
fn keys_of_an_inner_object_are_reported_with_their_path() {
    #[derive(Debug, Deserialize)]
    struct Ipam {
        #[allow(dead_code)]
        subnet: String,
    }
    let ipam = |value: serde_json::Value| value.as_object().unwrap().clone();
    let wrong = parse_object::<Ipam>(&ipam(json!({"subnet": 1})), "ipam").unwrap_err();
    assert!(wrong.code == 7 && wrong.details.contains("ipam.subnet is 1"), "{wrong}");
    let missing = parse_object::<Ipam>(&ipam(json!({"type": "x"})), "ipam").unwrap_err();
    assert!(missing.code == 7 && missing.msg.contains("missing field `subnet`"), "{missing}");
}

#[test]
fn a_list_speaks_the_newest_version_that_it_names() {
    let list = |versions: serde_json::Value| {
        let mut list = versions;
        list["name"] = json!("n");
        list["plugins"] = json!([{"type": "x"}]);
        ConfList::from_slice(list.to_string().as_bytes()).map(|list| list.version)
    };
    assert_eq!(list(json!({})).unwrap(), Version::V0_1_0);
    assert_eq!(list(json!({"cniVersion": "0.4.0"})).unwrap(), Version::V0_4_0);
    assert_eq!(
        list(json!({"cniVersion": "0.4.0", "cniVersions": ["1.0.0", "0.3.1"]})).unwrap(),
        Version::V1_0_0
    );
    assert_eq!(list(json!({"cniVersions": ["1.0.0", "9.0.0"]})).unwrap(), Version::V1_0_0);
    assert_eq!(list(json!({"cniVersion": "9.0.0"})).unwrap_err().code, 1);
}

#[test]
fn a_list_is_refused_for_what_is_wrong_in_it() {
    for (list, code, part) in [
        ("", 6, "decode"),
        ("[]", 6, "a list"),
        (r#"{"plugins":[{"type":"x"}]}"#, 7, "name"),
        (r#"{"name":"n"}"#, 7, "no plugins"),
        (r#"{"name":"n","plugins":[]}"#, 7, "empty"),
        (r#"{"name":"n","plugins":{}}"#, 7, "plugins"),
        (r#"{"name":"n","plugins":[3]}"#, 7, "plugins[0]"),
        (r#"{"name":"n","plugins":[{"type":"x"},{}]}"#, 7, "plugins[1]"),
        (r#"{"name":"n","plugins":[{"type":"../x"}]}"#, 7, "type"),
        (r#"{"name":"n","plugins":[{"type":"x"}],"disableCheck":1}"#, 7, "disableCheck"),
    ] {
        let error = ConfList::from_slice(list.as_bytes()).unwrap_err();
        assert!(error.code == code && error.to_string().contains(part), "{list}: {error}");
    }
}

#[test]
fn flags_may_be_strings() {
    let list = ConfList::from_slice(
        br#"{"name":"n","plugins":[{"type":"x"}],"disableCheck":"True","disableGC":true,"loadOnlyInlinedPlugins":"false"}"#,
    )
    .unwrap();
    assert_eq!((list.disable_check, list.disable_gc, list.load_only_inlined_plugins), (true, true, false));
}

#[test]
fn a_directory_gives_its_lists_and_single_configurations_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    write("20-b.conf", r#"{"cniVersion":"0.4.0","name":"b","type":"ptp"}"#);
    write("10-a.conflist", r#"{"name":"a","plugins":[{"type":"x"}]}"#);
    write("30-c.json", "{");
    write("40-d.json", r#"{"name":"d","plugins":[{"type":"x"}]}"#);
    write("readme.txt", "no");
    let loaded = ConfList::load_dir(dir.path());
    let names: Vec<Option<&str>> =
        loaded.iter().map(|(_, list)| list.as_ref().ok().map(|list| list.name.as_str())).collect();
    assert_eq!(names, [Some("a"), Some("b"), None, Some("d")]);
    let single = loaded[1].1.as_ref().unwrap();
    assert_eq!((single.version, single.plugins[0]["type"].as_str()), (Version::V0_4_0, Some("ptp")));
    let error = loaded[2].1.as_ref().unwrap_err();
    assert!(error.code == 6 && error.msg.contains("30-c.json"), "{error}");
    assert!(ConfList::load_dir(&dir.path().join("absent")).is_empty());
}

#[test]
fn plugins_in_the_directory_of_the_networks_name_are_added() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("net")).unwrap();
    fs::write(dir.path().join("net/20.conf"), r#"{"type":"second"}"#).unwrap();
    fs::write(dir.path().join("net/10.conf"), r#"{"type":"first"}"#).unwrap();
    let file = dir.path().join("net.conflist");
    let kinds = |text: &str| {
        fs::write(&file, text).unwrap();
        let list = ConfList::from_file(&file).unwrap();
        let kinds: Vec<String> =
            list.plugins.iter().map(|p| p["type"].as_str().unwrap().to_owned()).collect();
        assert_eq!(list.to_value()["plugins"].as_array().unwrap().len(), kinds.len());
        kinds
    };
    assert_eq!(kinds(r#"{"name":"net","plugins":[{"type":"inline"}]}"#), ["inline", "first", "second"]);
    assert_eq!(kinds(r#"{"name":"net"}"#), ["first", "second"]);
    assert_eq!(
        kinds(r#"{"name":"net","loadOnlyInlinedPlugins":true,"plugins":[{"type":"inline"}]}"#),
        ["inline"]
    );
}

#[test]
fn keys_are_found_in_any_case_as_containerd_writes_them() {
    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(rename_all = "camelCase")]
    struct Mapping {
        host_port: i64,
        #[serde(rename = "hostIP")]
        host_ip: Option<String>,
    }
    let conf = NetConf::from_value(json!({
        "cniversion": "1.0.0", "Name": "net", "type": "bridge", "IsGateway": true, "MTU": 1400, "IPAM": {"Type": "x"},
        "runtimeConfig": {"portMappings": [{"HostPort": 8080, "HostIP": "192.0.2.1"}, {"hostPort": 1, "HOSTIP": null}]},
    }))
    .unwrap();
    assert_eq!((conf.version, conf.name.as_str(), conf.ipam_kind()), (Version::V1_0_0, "net", Some("x")));
    assert_eq!(conf.parse::<Own>().unwrap(), Own { bridge: None, is_gateway: true, mtu: Some(1400) });
    assert_eq!(conf.get::<u32>("mtu").unwrap(), Some(1400));
    let mappings: Vec<Mapping> = conf.capability("portMappings").unwrap().unwrap();
    let first = Mapping { host_port: 8080, host_ip: Some("192.0.2.1".into()) };
    assert_eq!(mappings, [first, Mapping { host_port: 1, host_ip: None }]);
}

#[test]
fn a_key_in_its_own_spelling_goes_before_one_in_another() {
    let conf = json!({"name": "n", "MTU": 1, "mtu": 2, "Mtu": 3});
    let conf = NetConf::from_value(conf).unwrap();
    assert_eq!(conf.parse::<Own>().unwrap().mtu, Some(2));
    assert_eq!(conf.get::<u32>("mtu").unwrap(), Some(2));
}

#[test]
fn an_error_names_a_key_as_it_was_written() {
    let error = NetConf::from_value(json!({"name": "n", "MTU": "big"})).unwrap().parse::<Own>().unwrap_err();
    assert!(error.code == 7 && error.to_string().contains("MTU"), "{error}");
}

/// A runtime that knows 1.1.0 asks STATUS; one that does not takes the plain key.
#[test]
fn shipped_conflists_offer_version_1_1_beside_1_0() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/examples");
    let lists = ConfList::load_dir(std::path::Path::new(dir));
    assert_eq!(lists.len(), 2, "{lists:?}");
    for (path, list) in lists {
        let list = list.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(list.version, Version::V1_1_0, "{}", path.display());
        let text: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(text["cniVersion"], "1.0.0", "{}", path.display());
    }
}
