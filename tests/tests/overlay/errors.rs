//! ICMP errors made by hand in containers: the kernel takes them from any source, and would lower the
//! MTU of the way between two nodes, and with it that of all their containers.

use crate::cluster::{Cluster, inside};
use crate::echo::checksum;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;

/// "Fragmentation needed" (RFC 792) or "packet too big" (RFC 4443) about a VXLAN packet from one node to another.
fn too_large(from: IpAddr, to: IpAddr, vni: u32, mtu: u16) -> Vec<u8> {
    let mut about = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut error = vec![3, 4, 0, 0, 0, 0];
            error.extend(mtu.to_be_bytes());
            // 1500 bytes; no fragment; 64 hops; UDP.
            error.extend([0x45, 0, 5, 220, 0, 1, 0x40, 0, 64, 17, 0, 0]);
            error.extend(from.octets());
            error.extend(to.octets());
            error
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut error = vec![2, 0, 0, 0, 0, 0];
            error.extend(mtu.to_be_bytes());
            error.extend([0x60, 0, 0, 0, 5, 180, 17, 64]);
            error.extend(from.octets());
            error.extend(to.octets());
            error
        }
        _ => panic!("{from}, {to}"),
    };
    // Ports, length and checksum of UDP, then VXLAN's header.
    about.extend([0x9c, 0x40, 0x12, 0xb5, 5, 180, 0, 0, 8, 0, 0, 0]);
    about.extend(&vni.to_be_bytes()[1..]);
    about.push(0);
    if from.is_ipv4() {
        let sum = checksum(&about);
        about[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    about
}

#[track_caller]
fn send(netns: &Path, to: IpAddr, packet: &[u8]) {
    let (family, protocol) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    let socket = inside(netns, || socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol));
    let socket = UdpSocket::from(socket.unwrap_or_else(|e| panic!("a raw socket: {e}")));
    // Some networks have no way there.
    let _ = socket.send_to(packet, SocketAddr::new(to, 0));
}

/// What containers of every kind on host1 say about the way between two nodes, which have the addresses `nodes`, is not
/// believed; what the other node says is.
#[track_caller]
fn nobody_lowers_the_mtu(lab: &Cluster, nodes: [IpAddr; 2], wrong: u16, right: u16) {
    let masquerade = "com.docker.network.bridge.enable_ip_masquerade";
    lab.network("--subnet 10.44.0.0/16 --subnet fd44::/64 blue");
    let hidden = "network create --subnet 10.70.0.0/24 --subnet fd70::/64 hidden";
    let open =
        format!("network create --subnet 10.71.0.0/24 --subnet fd71::/64 --opt {masquerade}=false open");
    lab.runtime("host1", hidden).ok();
    lab.runtime("host1", &open).ok();
    lab.run("host2", "b2", "--network blue");
    let containers = ["blue", "hidden", "open"]
        .map(|network| lab.run("host1", &format!("in-{network}"), &format!("--network {network}")));
    let about = lab.runtime("host1", "network inspect blue").ok().json();
    let vni = about[0]["Weft"]["VNI"].as_u64().unwrap_or_else(|| panic!("no VNI: {about}")) as u32;
    let ways = [("host1", nodes[0], nodes[1]), ("host2", nodes[1], nodes[0])];
    for container in &containers {
        for (_, from, to) in ways {
            send(&lab.netns_of(container), from, &too_large(from, to, vni, wrong));
        }
    }
    for (host, from, to) in ways {
        // Behind what the containers sent. A value that is not lower is not taken.
        let other = if host == "host1" { "host2" } else { "host1" };
        send(&lab.netns(other), from, &too_large(from, to, vni, right));
        let way = || lab.sh(host, &format!("ip route get {to}")).ok().stdout.clone();
        lab.soon("what the node says is taken", || way().contains(" mtu "));
        assert!(way().contains(&format!(" mtu {right} ")), "{host}: {}", way());
    }
}

#[test]
fn icmp_errors_of_containers_do_not_lower_mtu_between_nodes() {
    let lab = Cluster::bare(2);
    nobody_lowers_the_mtu(&lab, ["10.99.0.11", "10.99.0.12"].map(|ip| ip.parse().unwrap()), 600, 900);
    lab.down();
}

#[test]
fn icmpv6_errors_of_containers_do_not_lower_mtu_between_nodes() {
    let lab = Cluster::up("underlay: {ipv4: none}\nhosts: 2\n");
    nobody_lowers_the_mtu(&lab, ["fd99::11", "fd99::12"].map(|ip| ip.parse().unwrap()), 1280, 1400);
    lab.down();
}
