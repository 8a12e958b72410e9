//! Networks into which a router outside of the cluster sends: `--opt ingress=routed`.

use crate::cluster::{Cluster, Member, answers};
use std::path::PathBuf;
use std::time::Duration;

/// So long may an answer take that has to come, and one that must not.
const PATIENCE: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_millis(400);

/// A machine on the underlay that is no node and has routes to the networks, all by way of host1.
#[track_caller]
fn outsider(lab: &Cluster, subnets: &[&str]) -> PathBuf {
    lab.host.netns_add("outsider");
    lab.sh(
        "underlay",
        "set -e; ip link add outsider type veth peer name eth0 netns /run/netns/outsider
         ip link set outsider master underlay up",
    )
    .ok();
    let up = "set -e; ip link set lo up; ip link set eth0 up; ip addr add 10.99.0.200/24 dev eth0
              ip -6 addr add fd99::200/64 dev eth0 nodad";
    lab.host.run_in("outsider", up).ok();
    for subnet in subnets {
        let via = if subnet.contains(':') {
            "-6 route add SUBNET via fd99::11"
        } else {
            "route add SUBNET via 10.99.0.11"
        };
        lab.host.run_in("outsider", &format!("ip {}", via.replace("SUBNET", subnet))).ok();
    }
    lab.host.path("/run/netns/outsider")
}

#[test]
fn outsiders_reach_containers_of_routed_networks_alone() {
    let lab = Cluster::bare(2);
    lab.network("--subnet 10.42.0.0/16 --subnet fd42::/48 --opt ingress=routed open");
    lab.network("--subnet 10.43.0.0/16 --subnet fd43::/48 --opt ingress=routed --opt encap=direct direct");
    lab.network("--subnet 10.44.0.0/16 --subnet fd44::/48 shut");
    let subnets = ["10.42.0.0/16", "fd42::/48", "10.43.0.0/16", "fd43::/48", "10.44.0.0/16", "fd44::/48"];
    let outsider = outsider(&lab, &subnets);
    let servers = |network: &str| -> Vec<Member> {
        let run =
            |host: &str| lab.server(host, &format!("{network}-{host}"), &format!("--network {network}"));
        ["host1", "host2"].map(run).into()
    };
    let [open, direct, shut] = ["open", "direct", "shut"].map(servers);
    // By host1, to its own containers and on to those of host2.
    for member in open.iter().chain(&direct) {
        for ip in member.ips() {
            let said = answers(&outsider, ip, PATIENCE).unwrap_or_default();
            assert!(said.starts_with(&format!("{} ", member.name)), "{ip} of {}: {said:?}", member.name);
        }
    }
    for ip in shut.iter().flat_map(Member::ips) {
        assert_eq!(answers(&outsider, ip, SILENCE), None, "{ip}");
    }
    // It is no way from one network into another, nor from a bridge.
    let bridged = lab.run("host1", "bridged", "");
    for from in [&shut[0], &shut[1], &bridged] {
        for ip in open.iter().chain(&direct).map(|member| member.v4) {
            assert_eq!(answers(&lab.netns_of(from), ip, SILENCE), None, "from {} to {ip}", from.name);
        }
    }
    let refused = lab.runtime("host1", "network create --driver overlay --internal --opt ingress=routed no");
    assert!(refused.code != 0 && refused.stderr.contains("ingress=routed"), "{refused}");
    lab.host.netns_del("outsider");
    lab.down();
}
