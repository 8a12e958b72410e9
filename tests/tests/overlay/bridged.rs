//! Containers of ordinary bridges, on nodes with and without a part in a network: none gets into the network, neither in VXLAN
//! made by hand nor in the name of its node.

use crate::cluster::{Cluster, Member, udp};
use crate::echo::Pinger;
use crate::forge::Forged;
use std::net::SocketAddr;
use std::time::Duration;

/// The VTEPs of the lab's first hosts, and an address that the tests add to host1.
const VTEP1: &str = "10.99.0.11";
const VTEP2: &str = "10.99.0.12";
const SECOND: &str = "10.99.0.177";

/// On each host a container of a bridge that masquerades and one of a bridge that does not, and each has host2's VTEP too.
#[track_caller]
fn bridged(lab: &Cluster, hosts: &[&str]) -> Vec<Member> {
    let masquerade = "com.docker.network.bridge.enable_ip_masquerade";
    let mut members = Vec::new();
    for (at, host) in hosts.iter().enumerate() {
        lab.runtime(host, &format!("network create --subnet 10.70.{at}.0/24 hidden")).ok();
        let open = format!("network create --subnet 10.71.{at}.0/24 --opt {masquerade}=false open");
        lab.runtime(host, &open).ok();
        for network in ["hidden", "open"] {
            let member = lab.run(host, &format!("{network}{at}"), &format!("--network {network}"));
            lab.sh_in(&member, &format!("ip addr add {VTEP2}/32 dev eth0")).ok();
            members.push(member);
        }
    }
    members
}

#[test]
fn forged_vxlan_of_bridge_containers_reaches_no_network() {
    let lab = Cluster::bare(3);
    lab.network("--subnet 10.44.0.0/16 blue");
    let [b1, b2] = [("host1", "b1"), ("host2", "b2")].map(|(on, name)| lab.run(on, name, "--network blue"));
    // host3 has no part in any network.
    let bridged = bridged(&lab, &["host1", "host2", "host3"]);
    lab.sh("host1", &format!("ip addr add {SECOND}/24 dev eth0")).ok();
    let known = udp(&lab.netns("host2"), "0.0.0.0:0");
    let to_vtep = Forged::new(&lab, "blue", &b1, &b2, VTEP1);
    assert!(to_vtep.passes(&known, "known"), "the packet itself is good");
    for member in &bridged {
        for source in [VTEP2.parse().unwrap(), member.v4] {
            let socket = udp(&lab.netns_of(member), &SocketAddr::new(source, 0).to_string());
            let word = format!("{} of {} as {source}", member.name, member.on);
            assert!(!to_vtep.passes(&socket, &word), "{word}, to the VTEP");
            // The kernel's socket takes VXLAN packets at every address of the host.
            let sent = to_vtep.passes_to(SECOND.parse().unwrap(), &socket, &word);
            assert!(!sent, "{word}, to another address of host1");
        }
    }
    assert!(to_vtep.passes(&known, "known again"));
    lab.down();
}

#[test]
fn foreign_containers_reach_no_direct_network_as_their_node() {
    let lab = Cluster::bare(3);
    lab.network("--subnet 10.42.0.0/16 --opt encap=direct dir");
    lab.network("--subnet 10.43.0.0/16 red");
    let [d1, d2] = [("host1", "d1"), ("host2", "d2")].map(|(on, name)| lab.run(on, name, "--network dir"));
    // host3 knows host1 by another network.
    let [_, r3, r2] = [("host1", "r1"), ("host3", "r3"), ("host2", "r2")]
        .map(|(on, name)| lab.run(on, name, "--network red"));
    let mut foreign = bridged(&lab, &["host2", "host3"]);
    // Those of another network are masqueraded, too.
    foreign.extend([r2, r3]);
    // Whoever can change the routes of a host is trusted; the site may have such a route for other reasons.
    lab.sh("host3", "ip route add 10.42.0.0/16 via 10.99.0.11").ok();
    let to = SocketAddr::new(d1.v4, 7777);
    let listener = udp(&lab.netns_of(&d1), &to.to_string());
    let heard = |socket: std::net::UdpSocket, word: &str| {
        socket.send_to(word.as_bytes(), to).unwrap_or_else(|e| panic!("{word}: {e}"));
        let mut buffer = [0; 200];
        while let Ok((len, _)) = listener.recv_from(&mut buffer) {
            if &buffer[..len] == word.as_bytes() {
                return true;
            }
        }
        false
    };
    // A node's own programs may: that is how kube-proxy's masqueraded connections and probes come.
    assert!(heard(udp(&lab.netns("host2"), "0.0.0.0:0"), "host2"), "the node itself");
    assert!(heard(udp(&lab.netns_of(&d2), "0.0.0.0:0"), "d2"), "the network's own");
    for member in &foreign {
        let socket = udp(&lab.netns_of(member), &SocketAddr::new(member.v4, 0).to_string());
        assert!(!heard(socket, &member.name), "{} of {}", member.name, member.on);
    }
    let silent = Pinger::new(&lab.netns_of(&d2)).silent(&[d1.v4], Duration::from_secs(5));
    assert!(silent.is_empty(), "{silent:?}");
    lab.down();
}
