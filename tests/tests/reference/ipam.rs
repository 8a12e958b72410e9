//! Configurations of `host-local` and `static`, alone and behind a bridge.

use crate::{bridge_with, dual};
use serde_json::json;
use tests::compare::Case;

#[test]
fn host_local_with_a_range_and_a_gateway() {
    let range = json!({"subnet": "10.3.0.0/24", "rangeStart": "10.3.0.20", "rangeEnd": "10.3.0.50", "gateway": "10.3.0.254"});
    Case::ipam("host-local", json!({"type": "host-local", "ranges": [[range]]})).containers(3).same();
}

#[test]
fn host_local_legacy_keys() {
    let ipam = json!({"type": "host-local", "subnet": "10.3.0.0/24", "rangeStart": "10.3.0.20", "rangeEnd": "10.3.0.50",
                      "gateway": "10.3.0.254", "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.8.0.0/16", "gw": "10.3.0.9"}]});
    Case::ipam("host-local", ipam).same();
}

#[test]
fn host_local_legacy_keys_come_before_ranges() {
    let ipam =
        json!({"type": "host-local", "subnet": "10.3.0.0/24", "ranges": [[{"subnet": "fd00:3::/64"}]]});
    Case::ipam("host-local", ipam).same();
}

#[test]
fn host_local_with_two_ranges_in_a_set() {
    let set = json!([[{"subnet": "10.3.0.0/30"}, {"subnet": "10.4.0.0/29", "rangeStart": "10.4.0.3"}]]);
    Case::ipam("host-local", json!({"type": "host-local", "ranges": set})).containers(4).same();
}

#[test]
fn host_local_with_three_sets_gives_three_addresses() {
    let sets = json!([[{"subnet": "10.3.0.0/24"}], [{"subnet": "10.4.0.0/24"}], [{"subnet": "fd00:3::/64"}]]);
    Case::ipam("host-local", json!({"type": "host-local", "ranges": sets})).containers(2).same();
}

#[test]
fn host_local_with_a_subnet_of_host_bits() {
    Case::ipam("host-local", json!({"type": "host-local", "ranges": [[{"subnet": "10.3.0.0/30"}]]})).same();
}

#[test]
fn host_local_gives_the_address_of_cni_args() {
    Case::ipam("host-local", json!({"type": "host-local", "subnet": "10.3.0.0/24"}))
        .args("IgnoreUnknown=true;IP=10.3.0.77")
        .same();
}

#[test]
fn host_local_gives_the_address_of_args_cni() {
    let plugin = json!({"type": "bridge", "exec": "host-local", "args": {"cni": {"ips": ["10.3.0.78"]}},
                        "ipam": {"type": "host-local", "subnet": "10.3.0.0/24"}});
    Case::of(plugin).same();
}

#[test]
fn host_local_gives_the_addresses_of_the_runtime() {
    let plugin = json!({"type": "bridge", "exec": "host-local", "capabilities": {"ips": true},
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.3.0.0/24"}], [{"subnet": "fd00:3::/64"}]]}});
    Case::of(plugin).runtime(json!({"ips": ["10.3.0.79", "fd00:3::79/64"]})).same();
}

#[test]
fn host_local_with_ranges_of_the_runtime() {
    let plugin = json!({"type": "bridge", "exec": "host-local", "capabilities": {"ipRanges": true},
                        "ipam": {"type": "host-local"}});
    let ranges = json!([[{"subnet": "10.5.0.0/24", "rangeStart": "10.5.0.9"}], [{"subnet": "fd00:5::/64"}]]);
    Case::of(plugin).runtime(json!({"ipRanges": ranges})).containers(2).same();
}

#[test]
fn host_local_with_ranges_of_runtime_and_network() {
    let plugin = json!({"type": "bridge", "exec": "host-local", "capabilities": {"ipRanges": true},
                        "ipam": {"type": "host-local", "subnet": "10.3.0.0/24"}});
    Case::of(plugin).runtime(json!({"ipRanges": [[{"subnet": "10.5.0.0/24"}]]})).same();
}

#[test]
fn host_local_with_resolv_conf() {
    let ipam = json!({"type": "host-local", "subnet": "10.3.0.0/24", "resolvConf": "/etc/cni/resolv.conf"});
    Case::ipam("host-local", ipam)
        .prepare("printf '# a comment\\nnameserver 10.9.9.9\\nnameserver fd00::9\\ndomain d.test\\nsearch a.test b.test\\n\
                  options ndots:3 edns0\\n' > /etc/cni/resolv.conf")
        .same();
}

#[test]
fn host_local_with_its_own_data_directory() {
    let ipam = json!({"type": "host-local", "subnet": "10.3.0.0/24", "dataDir": "/var/lib/cni/elsewhere"});
    Case::ipam("host-local", ipam).containers(2).same();
}

#[test]
fn a_bridge_with_routes_of_host_local() {
    // The reference's CHECK does not find a route that was given without a gateway.
    let ipam = json!({"type": "host-local", "subnet": "10.3.0.0/24", "routes": [
        {"dst": "0.0.0.0/0"}, {"dst": "192.168.0.0/16", "gw": "10.3.0.200"}, {"dst": "172.16.5.0/24"}]});
    Case::of(bridge_with(json!({"isGateway": true}), ipam)).reference_check_fails().same();
}

#[test]
fn static_with_one_address() {
    let ipam = json!({"type": "static", "addresses": [{"address": "10.6.0.7/24", "gateway": "10.6.0.1"}]});
    Case::ipam("static", ipam).same();
}

#[test]
fn static_with_addresses_routes_and_dns() {
    let ipam = json!({"type": "static",
        "addresses": [{"address": "10.6.0.7/24", "gateway": "10.6.0.254"}, {"address": "fd00:6::7/64", "gateway": "fd00:6::1"},
                      {"address": "10.6.1.7/24"}],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "192.168.0.0/16", "gw": "10.6.0.3"}, {"dst": "::/0", "gw": "fd00:6::1"}],
        "dns": {"nameservers": ["10.6.0.254"], "domain": "d.test", "search": ["s.test"], "options": ["rotate"]}});
    Case::ipam("static", ipam).same();
}

#[test]
fn static_adds_the_addresses_of_cni_args() {
    let ipam = json!({"type": "static", "addresses": [{"address": "10.6.0.7/24", "gateway": "10.6.0.1"}]});
    Case::ipam("static", ipam).args("IP=10.6.0.8/24,fd00:6::8/64;GATEWAY=10.6.0.1").same();
}

#[test]
fn static_takes_the_addresses_of_args_cni_instead() {
    let plugin = json!({"type": "bridge", "exec": "static", "args": {"cni": {"ips": ["10.6.0.9/24"]}},
        "ipam": {"type": "static", "addresses": [{"address": "10.6.0.7/24"}], "routes": [{"dst": "10.0.0.0/8", "gw": "10.6.0.1"}]}});
    Case::of(plugin).same();
}

#[test]
fn static_takes_the_addresses_of_the_runtime_instead() {
    let plugin = json!({"type": "bridge", "exec": "static", "capabilities": {"ips": true},
        "ipam": {"type": "static", "addresses": [{"address": "10.6.0.7/24"}]}});
    Case::of(plugin).runtime(json!({"ips": ["10.6.0.10/24", "fd00:6::10/64"]})).same();
}

#[test]
fn a_bridge_with_several_static_addresses() {
    let ipam = json!({"type": "static",
        "addresses": [{"address": "10.6.0.7/24", "gateway": "10.6.0.1"}, {"address": "10.6.0.8/24", "gateway": "10.6.0.1"},
                      {"address": "fd00:6::7/64", "gateway": "fd00:6::1"}],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]});
    Case::of(bridge_with(json!({"isGateway": true}), ipam)).same();
}

#[test]
fn a_bridge_with_the_address_of_the_runtime() {
    let keys = json!({"isGateway": true, "capabilities": {"ips": true}});
    Case::of(bridge_with(keys, dual())).runtime(json!({"ips": ["10.1.2.200", "fd00:1:2::200"]})).same();
}

#[test]
fn host_local_with_an_ipv6_gateway_of_an_ipv4_subnet() {
    let range = json!({"subnet": "10.3.0.0/24", "gateway": "fd00:3::1"});
    let ipam = json!({"type": "host-local", "ranges": [[range]]});
    Case::ipam("host-local", ipam.clone()).same();
    Case::of(bridge_with(json!({}), ipam)).same();
}
