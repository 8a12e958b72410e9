//! Configurations that both sides refuse, with one error document.

use crate::{bridge, bridge_with};
use serde_json::{Value, json};
use tests::compare::Case;

fn host_local(ipam: Value) -> Case {
    Case::ipam("host-local", ipam)
}

#[test]
fn hairpin_with_promiscuous_mode() {
    Case::of(bridge(json!({"hairpinMode": true, "promiscMode": true}))).both_refuse();
}

#[test]
fn a_vlan_above_4094() {
    Case::of(bridge(json!({"vlan": 5000}))).both_refuse();
}

#[test]
fn an_unsupported_version() {
    Case::of(bridge(json!({}))).version("9.9.9").both_refuse();
}

#[test]
fn an_ipam_plugin_that_does_not_exist() {
    Case::of(bridge_with(json!({}), json!({"type": "no-such-ipam"}))).both_refuse();
}

#[test]
fn an_unknown_key_in_cni_args() {
    host_local(json!({"type": "host-local", "subnet": "10.3.0.0/24"})).args("COLOUR=red").both_refuse();
}

#[test]
fn a_subnet_that_is_none() {
    host_local(json!({"type": "host-local", "subnet": "10.3.0.0/99"})).both_refuse();
}

#[test]
fn a_subnet_too_small() {
    host_local(json!({"type": "host-local", "subnet": "10.3.0.0/31"})).both_refuse();
}

#[test]
fn a_range_outside_its_subnet() {
    host_local(json!({"type": "host-local", "subnet": "10.3.0.0/24", "rangeStart": "10.4.0.1"}))
        .both_refuse();
}

#[test]
fn ranges_that_overlap() {
    let sets = json!([[{"subnet": "10.3.0.0/24"}], [{"subnet": "10.3.0.128/25"}]]);
    host_local(json!({"type": "host-local", "ranges": sets})).both_refuse();
}

#[test]
fn a_range_set_of_two_families() {
    host_local(
        json!({"type": "host-local", "ranges": [[{"subnet": "10.3.0.0/24"}, {"subnet": "fd00::/64"}]]}),
    )
    .both_refuse();
}

#[test]
fn no_range_at_all() {
    host_local(json!({"type": "host-local"})).both_refuse();
}

#[test]
fn a_requested_address_outside_the_range() {
    host_local(json!({"type": "host-local", "subnet": "10.3.0.0/24"})).args("IP=10.9.0.1").both_refuse();
}

#[test]
fn a_static_address_without_a_mask() {
    Case::ipam("static", json!({"type": "static", "addresses": [{"address": "10.6.0.7"}]})).both_refuse();
}

#[test]
fn static_with_a_route_without_destination() {
    let ipam = json!({"type": "static", "addresses": [{"address": "10.6.0.7/24"}], "routes": [{"dst": "somewhere"}]});
    Case::ipam("static", ipam).both_refuse();
}

#[test]
fn portmap_without_prev_result() {
    let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
    let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
    Case::of(portmap).runtime(json!({"portMappings": ports})).both_refuse();
}

#[test]
fn a_condition_of_another_protocol_than_portmap_knows() {
    let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
    let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "icmp"}]);
    Case::chain(&[bridge(json!({"isGateway": true})), portmap])
        .runtime(json!({"portMappings": ports}))
        .both_refuse();
}

#[test]
fn a_mac_that_is_none() {
    Case::of(bridge(json!({"args": {"cni": {"mac": "not-a-mac"}}}))).both_refuse();
}
