//! Where Weft does better than Debian's reference on purpose: the listed differences.

use crate::{bridge, bridge_with};
use serde_json::{Value, json};
use std::path::Path;
use tests::{Host, REFERENCE, weft_cni};

/// Runs the ADD of one plugin on a machine of its own, and looks at the outcome.
fn add(dir: &Path, plugin: Value, version: &str, look: impl Fn(&Host, Result<Value, Value>)) {
    let host = Host::new();
    host.tolerate(""); // only the ADD is of interest here
    let netns = host.netns_add("pod1");
    let mut chain = host.cni(dir, &netns, vec![plugin]);
    chain.version = Some(version.into());
    look(&host, chain.add().map_err(|failure| json!(failure.output.stdout)));
}

/// The specification requires `version` in `ips` below 1.0.0; the reference's loopback leaves it out.
#[test]
fn loopback_gives_the_version_of_its_addresses_below_1_0_0() {
    for version in ["0.3.0", "0.3.1", "0.4.0"] {
        let versions = |result: Result<Value, Value>| {
            let result = result.unwrap_or_else(|error| panic!("ADD: {error}"));
            (result["ips"][0]["version"].clone(), result["ips"][1]["version"].clone())
        };
        let plugin = || json!({"type": "loopback"});
        add(Path::new(REFERENCE), plugin(), version, |_, result| {
            assert_eq!(versions(result), (json!(null), json!(null)))
        });
        add(&weft_cni(), plugin(), version, |_, result| {
            assert_eq!(versions(result), (json!("4"), json!("6")))
        });
    }
}

/// With `isDefaultGateway` and a default route from IPAM the reference fails with "file exists"; they are one route.
#[test]
fn a_default_gateway_and_a_default_route_are_one() {
    let ipam = json!({"type": "host-local", "subnet": "10.1.0.0/16", "routes": [{"dst": "0.0.0.0/0"}]});
    let plugin = || bridge_with(json!({"isDefaultGateway": true}), ipam.clone());
    add(Path::new(REFERENCE), plugin(), "1.0.0", |_, result| assert!(result.is_err(), "{result:?}"));
    add(&weft_cni(), plugin(), "1.0.0", |host, result| {
        assert!(result.is_ok(), "{result:?}");
        let routes = host.run("ip -n pod1 -j route show default").ok().json();
        assert_eq!(routes.as_array().map(Vec::len), Some(1), "{routes}");
        assert_eq!(routes[0]["gateway"], "10.1.0.1");
    });
}

/// The reference answers in 1.1.0 with "incompatible CNI versions"; Weft knows the version.
#[test]
fn version_1_1_0_is_known() {
    add(Path::new(REFERENCE), bridge(json!({})), "1.1.0", |_, result| assert!(result.is_err(), "{result:?}"));
    add(&weft_cni(), bridge(json!({})), "1.1.0", |_, result| assert!(result.is_ok(), "{result:?}"));
}

/// The reference says 999 for nearly everything, and no version.
#[test]
fn errors_have_a_version_and_a_code_of_the_specification() {
    let plugin = || bridge(json!({"hairpinMode": true, "promiscMode": true}));
    add(&weft_cni(), plugin(), "1.0.0", |_, result| {
        let text = result.expect_err("refused");
        let document: Value = serde_json::from_str(text.as_str().unwrap_or_default()).unwrap();
        assert_eq!((&document["cniVersion"], &document["code"]), (&json!("1.0.0"), &json!(7)), "{document}");
    });
}

/// The reference of Debian 12 drops what IPAM says of DNS; newer ones keep it when the network says nothing itself.
#[test]
fn dns_of_ipam_is_kept_when_the_network_has_none() {
    let ipam = json!({"type": "host-local", "subnet": "10.1.0.0/16", "resolvConf": "/run/netns/resolv.conf"});
    for (dir, expected) in
        [(Path::new(REFERENCE), json!({})), (&weft_cni(), json!({"nameservers": ["10.9.9.9"]}))]
    {
        let host = Host::new();
        host.tolerate("");
        host.write("/run/netns/resolv.conf", "nameserver 10.9.9.9\n");
        let netns = host.netns_add("pod1");
        let result = host.cni(dir, &netns, vec![bridge_with(json!({}), ipam.clone())]).add_ok();
        assert_eq!(result["dns"], expected, "{}", dir.display());
    }
}
