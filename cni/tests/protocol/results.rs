//! What results look like in each version, key by key and in order.

use cni::Version;
use cni::types::{AddResult, Dns, Interface, IpConfig, Route};
use serde_json::json;

fn route(dst: &str) -> Route {
    Route::new(dst.parse().unwrap(), None)
}

/// A result that uses all that 1.1.0 can say.
fn full() -> AddResult {
    AddResult {
        interfaces: vec![
            Interface { name: "br0".into(), mac: Some("02:00:00:00:00:01".into()), ..Interface::default() },
            Interface {
                name: "eth0".into(),
                mac: Some("02:00:00:00:00:02".into()),
                mtu: Some(1450),
                sandbox: Some("/run/netns/c".into()),
                socket_path: Some("/run/s".into()),
                pci_id: Some("0000:00:1f.6".into()),
            },
        ],
        ips: vec![
            IpConfig {
                interface: Some(1),
                address: "10.1.2.3/24".parse().unwrap(),
                gateway: Some("10.1.2.1".parse().unwrap()),
            },
            IpConfig { interface: Some(1), address: "10.9.9.9/16".parse().unwrap(), gateway: None },
            IpConfig { interface: Some(1), address: "fd00::2/64".parse().unwrap(), gateway: None },
        ],
        routes: vec![
            Route {
                gw: Some("10.1.2.1".parse().unwrap()),
                mtu: Some(1400),
                advmss: Some(1360),
                priority: Some(10),
                table: Some(0),
                scope: Some(0),
                ..route("0.0.0.0/0")
            },
            Route { gw: Some("fd00::1".parse().unwrap()), ..route("::/0") },
            route("10.8.0.0/16"),
        ],
        dns: Dns {
            nameservers: vec!["10.1.2.1".into()],
            domain: Some("a.example".into()),
            search: vec!["b.example".into()],
            options: vec!["ndots:2".into()],
        },
    }
}

fn print(result: &AddResult, version: Version) -> String {
    result.to_json(version).unwrap().to_string()
}

#[test]
fn a_1_1_0_result_says_everything() {
    assert_eq!(
        print(&full(), Version::V1_1_0),
        concat!(
            r#"{"cniVersion":"1.1.0","interfaces":[{"name":"br0","mac":"02:00:00:00:00:01"},"#,
            r#"{"name":"eth0","mac":"02:00:00:00:00:02","mtu":1450,"sandbox":"/run/netns/c","socketPath":"/run/s","pciID":"0000:00:1f.6"}],"#,
            r#""ips":[{"interface":1,"address":"10.1.2.3/24","gateway":"10.1.2.1"},"#,
            r#"{"interface":1,"address":"10.9.9.9/16"},{"interface":1,"address":"fd00::2/64"}],"#,
            r#""routes":[{"dst":"0.0.0.0/0","gw":"10.1.2.1","mtu":1400,"advmss":1360,"priority":10,"table":0,"scope":0},"#,
            r#"{"dst":"::/0","gw":"fd00::1"},{"dst":"10.8.0.0/16"}],"#,
            r#""dns":{"nameservers":["10.1.2.1"],"domain":"a.example","search":["b.example"],"options":["ndots:2"]}}"#
        )
    );
}

#[test]
fn a_1_0_0_result_leaves_out_what_1_1_0_added() {
    assert_eq!(
        print(&full(), Version::V1_0_0),
        concat!(
            r#"{"cniVersion":"1.0.0","interfaces":[{"name":"br0","mac":"02:00:00:00:00:01"},"#,
            r#"{"name":"eth0","mac":"02:00:00:00:00:02","sandbox":"/run/netns/c"}],"#,
            r#""ips":[{"interface":1,"address":"10.1.2.3/24","gateway":"10.1.2.1"},"#,
            r#"{"interface":1,"address":"10.9.9.9/16"},{"interface":1,"address":"fd00::2/64"}],"#,
            r#""routes":[{"dst":"0.0.0.0/0","gw":"10.1.2.1","mtu":1400,"advmss":1360,"priority":10,"table":0,"scope":0},{"dst":"::/0","gw":"fd00::1"},{"dst":"10.8.0.0/16"}],"#,
            r#""dns":{"nameservers":["10.1.2.1"],"domain":"a.example","search":["b.example"],"options":["ndots:2"]}}"#
        )
    );
}

#[test]
fn results_from_0_3_0_to_0_4_0_name_the_version_of_each_address() {
    for version in ["0.3.0", "0.3.1", "0.4.0"] {
        let expected = concat!(
            r#"{"cniVersion":"VERSION","interfaces":[{"name":"br0","mac":"02:00:00:00:00:01"},"#,
            r#"{"name":"eth0","mac":"02:00:00:00:00:02","sandbox":"/run/netns/c"}],"#,
            r#""ips":[{"version":"4","interface":1,"address":"10.1.2.3/24","gateway":"10.1.2.1"},"#,
            r#"{"version":"4","interface":1,"address":"10.9.9.9/16"},{"version":"6","interface":1,"address":"fd00::2/64"}],"#,
            r#""routes":[{"dst":"0.0.0.0/0","gw":"10.1.2.1","mtu":1400,"advmss":1360,"priority":10,"table":0,"scope":0},{"dst":"::/0","gw":"fd00::1"},{"dst":"10.8.0.0/16"}],"#,
            r#""dns":{"nameservers":["10.1.2.1"],"domain":"a.example","search":["b.example"],"options":["ndots:2"]}}"#
        );
        assert_eq!(print(&full(), version.parse().unwrap()), expected.replace("VERSION", version));
    }
}

#[test]
fn results_below_0_3_0_have_the_first_address_of_each_family_with_its_routes() {
    for version in ["0.1.0", "0.2.0"] {
        let expected = concat!(
            r#"{"cniVersion":"VERSION","#,
            r#""ip4":{"ip":"10.1.2.3/24","gateway":"10.1.2.1","routes":[{"dst":"0.0.0.0/0","gw":"10.1.2.1","mtu":1400,"advmss":1360,"priority":10,"table":0,"scope":0},{"dst":"10.8.0.0/16"}]},"#,
            r#""ip6":{"ip":"fd00::2/64","routes":[{"dst":"::/0","gw":"fd00::1"}]},"#,
            r#""dns":{"nameservers":["10.1.2.1"],"domain":"a.example","search":["b.example"],"options":["ndots:2"]}}"#
        );
        assert_eq!(print(&full(), version.parse().unwrap()), expected.replace("VERSION", version));
    }
}

#[test]
fn an_empty_dns_is_printed_below_1_0_0_only() {
    let result = AddResult { ips: full().ips, ..AddResult::default() };
    for &version in Version::ALL {
        let printed = result.to_json(version).unwrap();
        let expected = (version < Version::V1_0_0).then(|| json!({}));
        assert_eq!(printed.get("dns"), expected.as_ref(), "{version}");
    }
}

#[test]
fn empty_lists_are_left_out() {
    assert_eq!(print(&AddResult::default(), Version::V1_1_0), r#"{"cniVersion":"1.1.0"}"#);
    assert_eq!(print(&AddResult::default(), Version::V0_4_0), r#"{"cniVersion":"0.4.0","dns":{}}"#);
}

#[test]
fn below_0_3_0_a_result_needs_an_address() {
    let result = AddResult { interfaces: full().interfaces, routes: full().routes, ..AddResult::default() };
    for version in [Version::V0_1_0, Version::V0_2_0] {
        let error = result.to_json(version).unwrap_err();
        assert!(error.code == 1 && error.msg.contains("IP address"), "{error}");
        assert_eq!(result.check_version(version), Err(error));
    }
    assert!(result.to_json(Version::V0_3_0).is_ok());
}

#[test]
fn a_result_without_a_version_is_read_in_the_one_it_is_asked_for_in() {
    let new = json!({"ips": [{"address": "10.0.0.5/24"}]});
    assert_eq!(AddResult::from_json_or(&new, Version::V1_0_0).unwrap().ips.len(), 1);
    let old = json!({"ip4": {"ip": "10.0.0.5/24"}});
    assert_eq!(AddResult::from_json(&old).unwrap().ips.len(), 1);
}

#[test]
fn a_results_own_version_wins() {
    let old = json!({"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.5/24", "gateway": "10.0.0.1", "routes": [{"dst": "10.0.0.0/8"}]}});
    let result = AddResult::from_json_or(&old, Version::V1_1_0).unwrap();
    assert_eq!(
        print(&result, Version::V1_1_0),
        r#"{"cniVersion":"1.1.0","ips":[{"address":"10.0.0.5/24","gateway":"10.0.0.1"}],"routes":[{"dst":"10.0.0.0/8"}]}"#
    );
}

#[test]
fn null_and_empty_strings_are_as_absent() {
    let value = json!({
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "mac": "", "sandbox": null, "mtu": 0}],
        "ips": [{"address": "10.0.0.5/24", "gateway": "", "interface": null}],
        "routes": null,
        "dns": null,
    });
    assert_eq!(
        print(&AddResult::from_json(&value).unwrap(), Version::V1_1_0),
        r#"{"cniVersion":"1.1.0","interfaces":[{"name":"eth0"}],"ips":[{"address":"10.0.0.5/24"}]}"#
    );
}

#[test]
fn what_is_no_result_is_refused_with_the_place_that_is_wrong() {
    for (value, place) in [
        (json!([]), "it is []"),
        (json!({"ips": {}}), "ips is"),
        (json!({"ips": [3]}), "ips[0] is 3"),
        (json!({"ips": [{"address": "10.0.0.5"}]}), "ips[0].address"),
        (json!({"ips": [{"address": "10.0.0.5/255.255.255.0"}]}), "ips[0].address"),
        (json!({"ips": [{"address": "10.0.0.5/33"}]}), "ips[0].address"),
        (json!({"ips": [{}]}), "ips[0].address"),
        (json!({"ips": [{"address": "::1/64", "gateway": "x"}]}), "ips[0].gateway"),
        (json!({"ips": [{"address": "::1/64", "interface": -1}]}), "ips[0].interface"),
        (json!({"interfaces": [{"name": 1}]}), "interfaces[0].name"),
        (json!({"routes": [{}, {"dst": "::/0", "scope": 256}]}), "routes[0].dst"),
        (json!({"routes": [{"dst": "::/0", "scope": 256}]}), "routes[0].scope"),
        (json!({"dns": {"nameservers": [1]}}), "dns.nameservers"),
        (json!({"dns": []}), "dns is []"),
    ] {
        let error = AddResult::from_json_or(&value, Version::V1_1_0).unwrap_err();
        assert!(error.code == 6 && error.details.contains(place), "{value}: {error}");
    }
    assert_eq!(AddResult::from_json(&json!({"cniVersion": "2.0.0"})).unwrap_err().code, 1);
}
