//! Configurations of `bridge`.

use crate::{bridge, bridge_with, dual};
use serde_json::json;
use tests::compare::Case;

#[test]
fn a_bridge_without_gateway() {
    Case::of(bridge(json!({}))).same();
}

#[test]
fn a_bridge_with_the_default_name() {
    Case::of(
        json!({"type": "bridge", "isGateway": true, "ipam": {"type": "host-local", "subnet": "10.7.0.0/24"}}),
    )
    .same();
}

#[test]
fn a_bridge_that_is_the_gateway() {
    Case::of(bridge(json!({"isGateway": true})))
        .probe(Some("pod1"), "ping -c1 -W2 10.1.0.1 >/dev/null")
        .same();
}

#[test]
fn a_bridge_that_is_the_default_gateway() {
    Case::of(bridge(json!({"isDefaultGateway": true}))).same();
}

#[test]
fn a_bridge_that_is_the_default_gateway_of_both_families() {
    let ipam =
        json!({"type": "host-local", "ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00:1:2::/64"}]]});
    Case::of(bridge_with(json!({"isDefaultGateway": true}), ipam))
        .probe(Some("pod1"), "ping -6 -c1 -W2 fd00:1:2::1 >/dev/null")
        .same();
}

#[test]
fn a_gateway_with_a_default_route_from_ipam() {
    let ipam = json!({"type": "host-local", "subnet": "10.1.0.0/16", "routes": [{"dst": "0.0.0.0/0"}]});
    Case::of(bridge_with(json!({"isGateway": true}), ipam)).same();
}

#[test]
fn dual_stack_with_default_routes() {
    Case::of(bridge_with(json!({"isGateway": true}), dual()))
        .probe(Some("pod1"), "ping -c1 -W2 10.1.2.1 >/dev/null && ping -6 -c1 -W2 fd00:1:2::1 >/dev/null")
        .same();
}

#[test]
fn ipv6_alone() {
    // The reference's CHECK does not find a route that was given without a gateway.
    let ipam = json!({"type": "host-local", "ranges": [[{"subnet": "fd00:1:2::/64", "gateway": "fd00:1:2::99"}]],
                      "routes": [{"dst": "2001:db8::/32"}]});
    Case::of(bridge_with(json!({"isGateway": true}), ipam)).reference_check_fails().same();
}

#[test]
fn three_containers_on_one_bridge_reach_each_other() {
    Case::of(bridge(json!({"isGateway": true})))
        .containers(3)
        .probe(Some("pod1"), "ping -c1 -W2 10.1.0.3 >/dev/null && ping -c1 -W2 10.1.0.4 >/dev/null")
        .same();
}

#[test]
fn an_mtu() {
    Case::of(bridge(json!({"isGateway": true, "mtu": 1400}))).same();
}

#[test]
fn a_jumbo_mtu() {
    Case::of(bridge(json!({"mtu": 9000}))).same();
}

#[test]
fn hairpin_mode() {
    Case::of(bridge(json!({"isGateway": true, "hairpinMode": true}))).same();
}

#[test]
fn promiscuous_mode() {
    Case::of(bridge(json!({"isGateway": true, "promiscMode": true}))).same();
}

#[test]
fn a_mac_from_cni_args() {
    Case::of(bridge(json!({}))).args("IgnoreUnknown=1;MAC=02:11:22:33:44:55").keep_mac().same();
}

#[test]
fn a_mac_from_args_cni() {
    Case::of(bridge(json!({"args": {"cni": {"mac": "02:11:22:33:44:66"}}}))).keep_mac().same();
}

#[test]
fn a_mac_from_the_runtime() {
    Case::of(bridge(json!({"capabilities": {"mac": true}})))
        .runtime(json!({"mac": "02:11:22:33:44:77"}))
        .keep_mac()
        .same();
}

#[test]
fn of_three_macs_the_runtimes_wins() {
    Case::of(bridge(json!({"capabilities": {"mac": true}, "args": {"cni": {"mac": "02:11:22:33:44:66"}}})))
        .runtime(json!({"mac": "02:11:22:33:44:77"}))
        .args("IgnoreUnknown=1;MAC=02:11:22:33:44:55")
        .keep_mac()
        .same();
}

#[test]
fn a_bridge_without_ipam() {
    // The reference's CHECK looks for an IPAM plugin all the same. Only Weft has the container announce its MAC then.
    Case::of(json!({"type": "bridge", "bridge": "br-test", "ipam": {}}))
        .reference_check_fails()
        .but("arp_notify")
        .same();
}

#[test]
fn dns_of_the_network() {
    let dns = json!({"nameservers": ["10.1.0.1"], "domain": "example.net", "search": ["a.example.net"], "options": ["ndots:2"]});
    Case::of(bridge(json!({"dns": dns}))).same();
}

#[test]
fn force_address_replaces_the_bridges_address() {
    Case::of(bridge(json!({"isGateway": true, "forceAddress": true})))
        .prepare(
            "ip link add br-test type bridge; ip addr add 10.1.0.77/16 dev br-test; ip link set br-test up",
        )
        .same();
}

#[test]
fn a_bridge_that_is_already_there() {
    Case::of(bridge(json!({"isGateway": true})))
        .prepare(
            "ip link add br-test type bridge; ip addr add 10.1.0.1/16 dev br-test; ip link set br-test up",
        )
        .same();
}

#[test]
fn masquerade_hides_the_container_from_another_machine() {
    Case::of(bridge_with(json!({"isGateway": true, "ipMasq": true}), dual()))
        .prepare(&tests::link_line("outside"))
        .probe(
            None,
            "ip netns exec outside TRAFFIC tcp-serve 192.0.2.2:7000 outside >/dev/null & p=$!; for _ in $(seq 200); do ip netns exec outside ss -Htuln 'sport = :7000' | grep -q . && break; sleep 0.05; done; \
             ip netns exec pod1 TRAFFIC tcp 192.0.2.2:7000; kill $p",
        )
        .probe(
            None,
            "ip netns exec outside TRAFFIC tcp-serve [2001:db8:ffff::2]:7000 outside >/dev/null & p=$!; for _ in $(seq 200); do ip netns exec outside ss -Htuln 'sport = :7000' | grep -q . && break; sleep 0.05; done; \
             ip netns exec pod1 TRAFFIC tcp [2001:db8:ffff::2]:7000; kill $p",
        )
        .same();
}

#[test]
fn masquerade_leaves_the_networks_own_addresses_visible() {
    Case::of(bridge(json!({"isGateway": true, "ipMasq": true})))
        .containers(2)
        .probe(
            None,
            "ip netns exec pod2 TRAFFIC tcp-serve 10.1.0.3:7000 two >/dev/null & p=$!; for _ in $(seq 200); do ip netns exec pod2 ss -Htuln 'sport = :7000' | grep -q . && break; sleep 0.05; done; \
             ip netns exec pod1 TRAFFIC tcp 10.1.0.3:7000; kill $p",
        )
        .same();
}
