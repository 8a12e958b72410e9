//! etcd is closed to the containers of every node that runs an agent, and open to hosts.

use crate::cluster::{Cluster, inside};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

/// The lab's etcd, and another server beside it.
const ETCD: ([u8; 4], u16) = ([10, 99, 0, 2], 2379);
const OTHER: ([u8; 4], u16) = ([10, 99, 0, 2], 2999);

fn connects(netns: &Path, to: ([u8; 4], u16)) -> bool {
    inside(netns, || TcpStream::connect_timeout(&SocketAddr::from(to), Duration::from_secs(1)).is_ok())
}

#[test]
fn containers_of_all_networks_are_kept_from_etcd() {
    let lab = Cluster::up("hosts: [host1, host2, {name: host3, agent: --allow-store-from-containers}]\n");
    let _other = inside(&lab.netns("etcd1"), || TcpListener::bind(SocketAddr::from(OTHER)))
        .unwrap_or_else(|e| panic!("{e}"));
    lab.network("--subnet 10.42.0.0/16 ov");
    lab.network("--subnet 10.43.0.0/16 --opt encap=direct dir");
    let masquerade = "com.docker.network.bridge.enable_ip_masquerade";
    for host in ["host1", "host2", "host3"] {
        lab.runtime(host, "network create hidden").ok();
        lab.runtime(host, &format!("network create --opt {masquerade}=false open")).ok();
    }
    // host2 has no part in any network.
    let closed = [("host1", "ov"), ("host1", "dir"), ("host1", "hidden"), ("host2", "hidden")]
        .map(|(host, network)| lab.run(host, network, &format!("--network {network}")));
    let allowed = [("host3", "ov"), ("host3", "hidden")]
        .map(|(host, network)| lab.run(host, network, &format!("--network {network}")));
    let reaches = |netns: &Path, to| (0..10).any(|_| connects(netns, to));
    for member in &closed {
        let (netns, who) = (lab.netns_of(member), format!("{} of {}", member.name, member.on));
        assert!(reaches(&netns, OTHER), "{who} reaches the machine");
        assert!(!connects(&netns, ETCD), "{who} reaches etcd");
    }
    for member in &allowed {
        assert!(reaches(&lab.netns_of(member), ETCD), "{} of {}", member.name, member.on);
    }
    for host in ["host1", "host2", "host3"] {
        assert!(reaches(&lab.netns(host), ETCD), "{host}");
        lab.exec(host, "ovl-agent sync").ok();
    }
    // Its answers would not find the way back; that it is not sent at all is what counts.
    let open = lab.run("host1", "open", "--network open");
    lab.sh("etcd1", &format!("ip route add {}/32 via 10.99.0.11", open.v4)).ok();
    assert!(reaches(&lab.netns_of(&open), OTHER) && !connects(&lab.netns_of(&open), ETCD));
    lab.down();
}
