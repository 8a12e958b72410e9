//! Chains of `bridge` and `portmap`, compared by the traffic that arrives.

use crate::{bridge_with, dual};
use serde_json::{Value, json};
use tests::compare::Case;

fn chain(portmap: Value, ports: Value) -> Case {
    chain_on(json!({"isGateway": true, "ipMasq": true}), portmap, ports)
}

fn chain_on(bridge: Value, mut portmap: Value, ports: Value) -> Case {
    portmap["type"] = json!("portmap");
    portmap["capabilities"] = json!({"portMappings": true});
    // The reference's CHECK looks for IPv4 addresses in the IPv6 rules (and the other way round) of dual-stack containers.
    let fails = ports.as_array().is_some_and(|ports| !ports.is_empty());
    let case = if fails { Case::reference_check_fails } else { |case| case };
    case(Case::chain(&[bridge_with(bridge, dual()), portmap]))
        .runtime(json!({"portMappings": ports}))
        .prepare(&tests::link_line("outside"))
}

/// A server in the container on `port` while the client's line runs on the machine.
fn served(protocol: &str, port: u16, client: &str) -> String {
    format!(
        "ip netns exec pod1 TRAFFIC {protocol}-serve [::]:{port} pod1 >/dev/null & p=$!; \
         for _ in $(seq 200); do ip netns exec pod1 ss -Htuln 'sport = :{port}' | grep -q . && break; sleep 0.05; done; {client}; \
         r=$?; kill $p; exit $r"
    )
}

#[test]
fn a_tcp_port_from_another_machine() {
    chain(json!({}), json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]))
        .probe(None, &served("tcp", 80, "ip netns exec outside TRAFFIC tcp 192.0.2.1:8080"))
        .same();
}

#[test]
fn a_tcp_port_from_another_machine_over_ipv6() {
    chain(json!({}), json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]))
        .probe(None, &served("tcp", 80, "ip netns exec outside TRAFFIC tcp [2001:db8:ffff::1]:8080"))
        .same();
}

#[test]
fn a_tcp_port_from_the_machines_loopback() {
    chain(json!({}), json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]))
        .probe(None, &served("tcp", 80, "TRAFFIC tcp 127.0.0.1:8080"))
        .same();
}

#[test]
fn a_tcp_port_from_the_machines_own_address() {
    chain(json!({}), json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]))
        .probe(None, &served("tcp", 80, "TRAFFIC tcp 192.0.2.1:8080"))
        .same();
}

#[test]
fn a_tcp_port_from_the_container_itself() {
    // The reference needs hairpin mode for this where bridged packets pass netfilter.
    let bridge = json!({"isGateway": true, "ipMasq": true, "hairpinMode": true});
    chain_on(bridge, json!({}), json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]))
        .probe(None, &served("tcp", 80, "ip netns exec pod1 TRAFFIC tcp 192.0.2.1:8080"))
        .same();
}

#[test]
fn a_tcp_port_from_another_container() {
    chain(json!({}), json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]))
        .containers(1)
        .probe(
            None,
            &served(
                "tcp",
                80,
                "ip netns add other; ip link add vo type veth peer name eth0 netns other; ip link set vo master br-test up; \
                 ip -n other addr add 10.1.2.99/24 dev eth0; ip -n other link set eth0 up; \
                 ip -n other route add default via 10.1.2.1; ip netns exec other TRAFFIC tcp 192.0.2.1:8080; r=$?; \
                 ip netns delete other; ip link delete vo; (exit $r)",
            ),
        )
        .same();
}

#[test]
fn a_udp_port_from_another_machine() {
    chain(json!({}), json!([{"hostPort": 5353, "containerPort": 53, "protocol": "udp"}]))
        .probe(None, &served("udp", 53, "ip netns exec outside TRAFFIC udp 192.0.2.1:5353"))
        .same();
}

#[test]
fn several_ports_of_both_protocols() {
    let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
                       {"hostPort": 8081, "containerPort": 81, "protocol": "tcp"},
                       {"hostPort": 8080, "containerPort": 82, "protocol": "udp"}]);
    chain(json!({}), ports)
        .probe(None, &served("tcp", 81, "ip netns exec outside TRAFFIC tcp 192.0.2.1:8081"))
        .probe(None, &served("udp", 82, "ip netns exec outside TRAFFIC udp 192.0.2.1:8080"))
        .same();
}

#[test]
fn a_port_on_one_address_of_the_machine() {
    let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"}]);
    chain(json!({}), ports)
        .probe(None, &served("tcp", 80, "ip netns exec outside TRAFFIC tcp 192.0.2.1:8080"))
        .probe_fails(None, &served("tcp", 80, "TRAFFIC tcp 127.0.0.1:8080"))
        .same();
}

#[test]
fn a_port_without_source_nat() {
    chain(json!({"snat": false}), json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]))
        .probe(None, &served("tcp", 80, "ip netns exec outside TRAFFIC tcp 192.0.2.1:8080"))
        .same();
}

#[test]
fn a_port_for_some_sources_only() {
    let conditions = json!(["-s", "192.0.2.0/24"]);
    chain(
        json!({"conditionsV4": conditions}),
        json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]),
    )
    .probe(None, &served("tcp", 80, "ip netns exec outside TRAFFIC tcp 192.0.2.1:8080"))
    .same();
}

#[test]
fn a_port_whose_conditions_exclude_the_client() {
    let conditions = json!(["!", "-s", "192.0.2.0/24"]);
    chain(
        json!({"conditionsV4": conditions}),
        json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]),
    )
    .probe_fails(None, &served("tcp", 80, "ip netns exec outside TRAFFIC tcp 192.0.2.1:8080"))
    .same();
}

#[test]
fn no_ports_at_all() {
    chain(json!({}), json!([])).same();
}

#[test]
fn ports_in_versions_0_4_0_and_1_0_0() {
    for version in ["0.4.0", "1.0.0"] {
        chain(json!({}), json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]))
            .version(version)
            .probe(None, &served("tcp", 80, "ip netns exec outside TRAFFIC tcp 192.0.2.1:8080"))
            .same();
    }
}

#[test]
fn ports_in_version_0_3_1() {
    let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
    let bridge =
        bridge_with(json!({"isGateway": true}), json!({"type": "host-local", "subnet": "10.1.2.0/24"}));
    Case::chain(&[bridge, portmap])
        .runtime(json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}))
        .prepare(&tests::link_line("outside"))
        .version("0.3.1")
        .probe(None, &served("tcp", 80, "TRAFFIC tcp 127.0.0.1:8080"))
        .same();
}
