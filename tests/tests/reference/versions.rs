//! Every version of the specification that the reference of Debian 12 knows, and none at all.

use crate::{bridge, bridge_with, dual};
use serde_json::json;
use tests::compare::Case;

fn gateway() -> Case {
    let ipam = json!({"type": "host-local", "subnet": "10.1.0.0/16",
                      "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.1.0.9"}]});
    Case::of(bridge_with(json!({"isGateway": true, "dns": {"nameservers": ["10.1.0.1"]}}), ipam))
}

#[test]
fn version_0_1_0() {
    gateway().version("0.1.0").same();
}

#[test]
fn version_0_2_0() {
    gateway().version("0.2.0").same();
}

#[test]
fn version_0_2_0_dual_stack() {
    Case::of(bridge_with(json!({"isGateway": true}), dual())).version("0.2.0").same();
}

#[test]
fn version_0_3_0() {
    gateway().version("0.3.0").same();
}

#[test]
fn version_0_3_1() {
    gateway().version("0.3.1").same();
}

#[test]
fn version_0_4_0() {
    gateway().version("0.4.0").same();
}

#[test]
fn version_0_4_0_dual_stack() {
    Case::of(bridge_with(json!({"isGateway": true}), dual())).version("0.4.0").same();
}

#[test]
fn version_1_0_0() {
    gateway().version("1.0.0").same();
}

#[test]
fn no_version_is_0_1_0() {
    Case::of(bridge(json!({"isGateway": true}))).no_version().same();
}

#[test]
fn host_local_alone_in_every_version() {
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
        Case::ipam("host-local", dual()).version(version).same();
    }
}

#[test]
fn static_alone_in_every_version() {
    let ipam = json!({"type": "static", "routes": [{"dst": "0.0.0.0/0"}], "addresses": [
        {"address": "10.6.0.7/24", "gateway": "10.6.0.1"}, {"address": "fd00:6::7/64", "gateway": "fd00:6::1"}]});
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
        Case::ipam("static", ipam.clone()).version(version).same();
    }
}

#[test]
fn loopback_alone() {
    Case::of(json!({"type": "loopback"})).version("1.0.0").same();
}
