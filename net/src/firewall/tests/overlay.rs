//! The overlay's table: VXLAN packets from known and unknown hosts, packets between networks, and what it costs to keep it.

use super::lab::{ask, join, serve};
use super::*;
use crate::Netns;
use crate::firewall::overlay::{OverlayTable, Rules};
use crate::testns;
use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

const PORT: u16 = 4789;
/// Device groups of two networks, of one without a way out, and of one that is routed directly.
pub(super) const WEB: u32 = 0x5700_002a;
const DB: u32 = 0x5700_002b;
const SHUT: u32 = 0x5700_002c;
pub(super) const DIRECT: u32 = 0x5700_002d;

pub(super) fn set<T: Ord>(items: impl IntoIterator<Item = T>) -> BTreeSet<T> {
    items.into_iter().collect()
}

pub(super) fn rules() -> Rules {
    Rules {
        port: PORT,
        vnis: set([42, 43, 44, 0xff_ffff]),
        vteps: set(["192.0.2.2", "2001:db8::2"].map(|ip| ip.parse().unwrap())),
        nodes: set(["192.0.2.2", "192.0.2.3", "2001:db8::2"].map(|ip| ip.parse().unwrap())),
        ports: set([PORT, 8472]),
        vtep: Some("192.0.2.1".parse().unwrap()),
        groups: set([WEB, DB, SHUT, DIRECT]),
        internal: set([SHUT]),
        routed: BTreeSet::new(),
        nets: BTreeSet::new(),
        direct: BTreeSet::new(),
        underlay: 1,
        stores: BTreeSet::new(),
        stores_here: BTreeSet::new(),
    }
}

fn index(link: &str) -> u32 {
    nix::net::if_::if_nametoindex(link).unwrap()
}

/// How many packets a link has taken.
fn received(link: &str) -> u64 {
    let shown = run(&format!("ip -s link show {link}"));
    let line = shown.lines().skip_while(|line| !line.trim_start().starts_with("RX:")).nth(1).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Sends a frame in VXLAN from an address of that namespace, and says whether the device `vx` took it.
fn forge(from: &Netns, source: &str, to: &str, vni: u32) -> bool {
    let before = received("vx");
    let mut packet = vec![0x08, 0, 0, 0];
    packet.extend_from_slice(&(vni << 8).to_be_bytes());
    packet.extend_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5]);
    packet.resize(packet.len() + 50, 0);
    from.run(|| {
        let socket = UdpSocket::bind((source.parse::<IpAddr>().unwrap(), 0)).unwrap();
        socket.send_to(&packet, SocketAddr::new(to.parse().unwrap(), PORT)).unwrap();
    })
    .unwrap();
    // A veth hands its packets on before send_to returns, or a moment later on another CPU.
    (0..20).any(|_| {
        std::thread::sleep(Duration::from_millis(5));
        received("vx") > before
    })
}

/// A neighbour host with two addresses of each family, and a VXLAN device here.
fn underlay(local: &str, vni: u32) -> Netns {
    let other =
        join("out", "eth0", &["192.0.2.2/24".into(), "2001:db8::2/64".into()], ["192.0.2.1", "2001:db8::1"]);
    other
        .run(|| {
            run("ip addr add 192.0.2.66/24 dev eth0");
            run("ip addr add 2001:db8::66/64 dev eth0 nodad");
        })
        .unwrap();
    run("ip addr add 192.0.2.1/24 dev out");
    run("ip addr add 2001:db8::1/64 dev out nodad");
    run(&format!(
        "ip link add vx address 02:00:00:00:00:01 type vxlan id {vni} dstport {PORT} local {local} nolearning"
    ));
    run("ip link set vx up");
    // The kernel tells IPv6 of a link's carrier up to a second late.
    for source in ["192.0.2.2", "192.0.2.66", "2001:db8::2", "2001:db8::66"] {
        let ping = || Command::new("ping").args(["-qc1", "-W1", source]).output().unwrap().status.success();
        assert!((0..5).any(|_| ping()), "{source} cannot be reached in the lab");
    }
    other
}

#[test]
fn vxlan_is_taken_from_known_hosts_only_and_others_vnis_are_left_alone() {
    for (known, unknown, local) in
        [("192.0.2.2", "192.0.2.66", "192.0.2.1"), ("2001:db8::2", "2001:db8::66", "2001:db8::1")]
    {
        testns::in_fresh(|| {
            let other = underlay(local, 42);
            assert!(forge(&other, unknown, local, 42), "{unknown}: the kernel takes it, without us");
            let mut table = OverlayTable::open().unwrap();
            let vtep = Some(local.parse().unwrap());
            let rules = || Rules { underlay: index("out"), vtep, ..rules() };
            assert!(table.apply(&rules()).unwrap());
            assert!(!forge(&other, unknown, local, 42), "{unknown} is unknown");
            assert!(forge(&other, known, local, 42), "{known} is known");
            let mut takes = |vni, from: &str| table.takes(vni, from.parse().unwrap()).unwrap();
            assert_eq!((takes(42, known), takes(42, unknown)), (Some(true), Some(false)));
            assert_eq!(takes(77, unknown), Some(true));
            // What becomes known is taken at once, and the other way round.
            let more = Rules { vteps: set([unknown.parse().unwrap()]), ..rules() };
            assert!(table.apply(&more).unwrap());
            assert!(forge(&other, unknown, local, 42), "{unknown} is known now");
            assert!(!forge(&other, known, local, 42), "{known} is unknown now");
            table.remove().unwrap();
            assert!(forge(&other, known, local, 42), "the table is gone");
            assert_eq!(table.takes(42, known.parse().unwrap()).unwrap(), None);
        });
        testns::in_fresh(|| {
            let other = underlay(local, 77);
            OverlayTable::open().unwrap().apply(&rules()).unwrap();
            assert!(forge(&other, unknown, local, 77), "77 is not a VNI of ours");
        });
    }
}

/// Binds a socket. The one that was there before is closed, but a process that another test starts may have it until its exec.
fn bind(at: SocketAddr) -> UdpSocket {
    let start = std::time::Instant::now();
    loop {
        match UdpSocket::bind(at) {
            Err(e) if e.kind() == std::io::ErrorKind::AddrInUse && start.elapsed().as_secs() < 30 => {
                std::thread::sleep(Duration::from_millis(5));
            }
            bound => return bound.unwrap(),
        }
    }
}

/// Sends a word from an address of a namespace to port 4789 of another, and says whether it got there.
fn gets_to(from: &Netns, source: &str, other: &Netns, to: &str) -> bool {
    let to = SocketAddr::new(to.parse().unwrap(), PORT);
    let heard = other.run(|| bind(to)).unwrap();
    heard.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    from.run(|| UdpSocket::bind((source, 0)).unwrap().send_to(b"forged", to).unwrap()).unwrap();
    heard.recv(&mut [0; 10]).is_ok()
}

/// As [`gets_to`], sooner or later.
fn gets_there(from: &Netns, source: &str, other: &Netns, to: &str) -> bool {
    (0..50).any(|_| gets_to(from, source, other, to))
}

#[test]
fn containers_send_no_vxlan_to_hosts() {
    testns::in_fresh(|| {
        for sysctl in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            std::fs::write(format!("/proc/sys/net/{sysctl}"), "1").unwrap();
        }
        let other = join(
            "out",
            "eth0",
            &["192.0.2.2/24".into(), "2001:db8::2/64".into()],
            ["192.0.2.1", "2001:db8::1"],
        );
        other.run(|| run("ip addr add 192.0.2.66/24 dev eth0")).unwrap();
        run("ip addr add 192.0.2.1/24 dev out");
        run("ip addr add 2001:db8::1/64 dev out nodad");
        // One of an overlay network, one of another, and one of it that has a host's address, too.
        let (one, foreign) = (container(1, 1, WEB), container(2, 1, 0));
        one.run(|| run("ip addr add 192.0.2.9/32 dev eth0")).unwrap();
        run("ip route add 192.0.2.9 dev c1-1");
        let all = [
            (&one, "10.1.1.2", "192.0.2.2"),
            (&one, "fd00:1:1::2", "2001:db8::2"),
            (&one, "192.0.2.9", "192.0.2.2"),
            (&foreign, "10.2.1.2", "192.0.2.2"),
            (&foreign, "fd00:2:1::2", "2001:db8::2"),
        ];
        for (from, source, to) in &all {
            // The kernel tells IPv6 of a link's carrier up to a second late, and much later when it is busy.
            assert!(gets_there(from, source, &other, to), "{source}: without us");
        }
        let mut table = OverlayTable::open().unwrap();
        let hosts = ["192.0.2.2", "192.0.2.9", "2001:db8::2"].map(|ip| ip.parse().unwrap());
        // They are nodes, whether they have a part in a network of this one or not.
        let (nodes, underlay) = (set(hosts), index("out"));
        table.apply(&Rules { vteps: BTreeSet::new(), nodes, underlay, ..rules() }).unwrap();
        for (from, source, to) in &all {
            assert!(!gets_to(from, source, &other, to), "{source}");
            if *source == "192.0.2.9" {
                assert!(!gets_to(from, source, &other, "192.0.2.66"), "{source}: another node's address");
            } else if !source.contains(':') {
                assert!(gets_there(from, source, &other, "192.0.2.66"), "{source}: to no host");
            }
        }
        // Nor to the one that it is on.
        run(&format!(
            "ip link add vx address 02:00:00:00:00:01 type vxlan id 42 dstport {PORT} local 192.0.2.1 nolearning"
        ));
        run("ip link set vx up");
        for source in ["10.1.1.2", "192.0.2.9"] {
            assert!(!forge(&one, source, "192.0.2.1", 42), "{source}");
        }
        // A node's address by a link that is not the underlay's: an ordinary bridge's container may have any.
        run("ip link set c1-1 group 0");
        assert!(!forge(&one, "192.0.2.9", "192.0.2.1", 42));
        assert!(!gets_to(&one, "192.0.2.9", &other, "192.0.2.2"));
    });
}

/// A container behind a veth of a device group, 10.NET.N.2 and fd00:NET:N::2, which serves port 80.
fn container(net: u8, n: u8, group: u32) -> Netns {
    let (v4, v6) = (format!("10.{net}.{n}"), format!("fd00:{net}:{n}:"));
    let link = format!("c{net}-{n}");
    let ns = join(
        &link,
        "eth0",
        &[format!("{v4}.2/24"), format!("{v6}:2/64")],
        [&format!("{v4}.1"), &format!("{v6}:1")],
    );
    run(&format!("ip addr add {v4}.1/24 dev {link}"));
    run(&format!("ip addr add {v6}:1/64 dev {link} nodad"));
    run(&format!("ip link set {link} group {group}"));
    serve(&ns, &format!("{v4}.2"));
    serve(&ns, &format!("{v6}:2"));
    ns
}

fn at(net: u8, n: u8) -> [String; 2] {
    [format!("10.{net}.{n}.2:80"), format!("[fd00:{net}:{n}::2]:80")]
}

struct Networks {
    web: Netns,
    web_too: Netns,
    db: Netns,
    shut: Netns,
    shut_too: Netns,
    direct: Netns,
    out: Netns,
}

impl Networks {
    fn new() -> Networks {
        for (key, value) in [
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv6/conf/default/accept_dad", "0"),
        ] {
            std::fs::write(format!("/proc/sys/net/{key}"), value).unwrap();
        }
        let all = Networks {
            web: container(1, 1, WEB),
            web_too: container(1, 2, WEB),
            db: container(2, 1, DB),
            shut: container(3, 1, SHUT),
            shut_too: container(3, 2, SHUT),
            direct: container(4, 1, DIRECT),
            out: container(9, 1, 0),
        };
        for (net, n) in [(1, 1), (1, 2), (2, 1), (3, 1), (3, 2), (4, 1), (9, 1)] {
            for to in at(net, n) {
                let reached = (0..20).any(|_| ask(None, &to, Protocol::Udp).is_some());
                assert!(reached, "{to} cannot be reached in the lab");
            }
        }
        all
    }
}

fn reaches(from: &Netns, to: [String; 2]) -> [bool; 4] {
    let each = |protocol| [&to[0], &to[1]].map(|to| ask(Some(from), to, protocol).is_some());
    let ([tcp4, tcp6], [udp4, udp6]) = (each(Protocol::Tcp), each(Protocol::Udp));
    [tcp4, tcp6, udp4, udp6]
}

const YES: [bool; 4] = [true; 4];
const NO: [bool; 4] = [false; 4];

#[test]
fn networks_do_not_reach_each_other_and_an_internal_one_nothing() {
    testns::in_fresh(|| {
        let lab = Networks::new();
        assert_eq!(reaches(&lab.web, at(2, 1)), YES, "without the table");
        let mut table = OverlayTable::open().unwrap();
        table.apply(&rules()).unwrap();
        assert_eq!(reaches(&lab.web, at(1, 2)), YES, "within a network");
        assert_eq!(reaches(&lab.shut, at(3, 2)), YES, "within an internal network");
        assert_eq!(reaches(&lab.shut_too, at(3, 1)), YES, "within an internal network");
        assert_eq!(reaches(&lab.web, at(2, 1)), NO, "to another network");
        assert_eq!(reaches(&lab.db, at(1, 2)), NO, "to another network");
        assert_eq!(reaches(&lab.web, at(3, 1)), NO, "into an internal network");
        assert_eq!(reaches(&lab.shut, at(1, 1)), NO, "out of an internal network");
        assert_eq!(reaches(&lab.shut, at(9, 1)), NO, "out of an internal network");
        assert_eq!(reaches(&lab.out, at(3, 1)), NO, "into an internal network");
        assert_eq!(reaches(&lab.web_too, at(9, 1)), YES, "to the outside");
        assert_eq!(reaches(&lab.out, at(1, 2)), NO, "from the outside");
        // The network is not internal any more.
        table.apply(&Rules { internal: BTreeSet::new(), ..rules() }).unwrap();
        assert_eq!(reaches(&lab.shut, at(9, 1)), YES);
    });
}

#[test]
fn published_ports_get_in_from_everywhere_but_into_an_internal_network() {
    testns::in_fresh(|| {
        let lab = Networks::new();
        OverlayTable::open().unwrap().apply(&rules()).unwrap();
        let mut nft = Nftables::open().unwrap();
        let nets = |net: u8| -> Vec<IpNetwork> {
            vec![format!("10.{net}.1.2/24").parse().unwrap(), format!("fd00:{net}:1::2/64").parse().unwrap()]
        };
        let ports = |port| [tcp(None, port, 80), udp(None, port, 80)];
        nft.publish(&owner("db"), &nets(2), &ports(8080), &plain()).unwrap();
        nft.publish(&owner("shut"), &nets(3), &ports(8081), &plain()).unwrap();
        let host = |port: u16| [format!("10.9.1.1:{port}"), format!("[fd00:9:1::1]:{port}")];
        assert_eq!(reaches(&lab.out, host(8080)), YES, "from the outside");
        assert_eq!(reaches(&lab.web, host(8080)), YES, "from another network");
        assert_eq!(reaches(&lab.out, host(8081)), NO, "an internal network has no way in");
        assert_eq!(reaches(&lab.out, at(2, 1)), NO, "past the published port");
    });
}

#[test]
fn with_direct_routing_a_networks_own_packets_come_by_the_underlay() {
    testns::in_fresh(|| {
        let lab = Networks::new();
        let mut table = OverlayTable::open().unwrap();
        let subnets = ["10.9.0.0/16", "fd00:9::/32"].map(|net| (net.parse().unwrap(), DIRECT));
        let direct =
            Rules { direct: set(subnets), internal: set([SHUT, DIRECT]), underlay: index("c9-1"), ..rules() };
        table.apply(&Rules { underlay: index("c2-1"), ..direct.clone() }).unwrap();
        assert_eq!(reaches(&lab.out, at(4, 1)), NO, "by another link");
        table.apply(&Rules { direct: BTreeSet::new(), ..direct.clone() }).unwrap();
        assert_eq!(reaches(&lab.out, at(4, 1)), NO, "no subnet is direct");
        table.apply(&direct).unwrap();
        assert_eq!(reaches(&lab.out, at(4, 1)), YES, "in");
        assert_eq!(reaches(&lab.direct, at(9, 1)), YES, "out, although it is internal");
        assert_eq!(reaches(&lab.out, at(1, 1)), NO, "into a network of another subnet");
        assert_eq!(reaches(&lab.web, at(9, 1)), YES, "out of another network, and the answers in");
        assert_eq!(reaches(&lab.shut, at(9, 1)), NO, "out of an internal network of another subnet");
        table.apply(&Rules { direct: set([("10.9.2.0/24".parse().unwrap(), DIRECT)]), ..direct }).unwrap();
        assert_eq!(reaches(&lab.out, at(4, 1)), NO, "not from this subnet");
    });
}

/// Gives a container addresses that are another's.
fn steal(container: &Netns, addresses: &[&str]) {
    let add = |ip: &&str| {
        run(&format!("ip addr add {ip} dev eth0 {}", if ip.contains(':') { "nodad" } else { "" }))
    };
    container.run(|| addresses.iter().for_each(|ip| drop(add(ip)))).unwrap();
}

#[test]
fn a_networks_container_sends_from_its_own_addresses_alone() {
    testns::in_fresh(|| {
        let lab = Networks::new();
        // Of another container of the same network, of one of another, and of nobody.
        steal(
            &lab.web,
            &["10.1.2.77/32", "fd00:1:2::77/128", "10.2.1.77/32", "fd00:2:1::77/128", "198.51.100.7/32"],
        );
        let forged = [
            ("10.1.2.77", "10.1.2.2"),
            ("fd00:1:2::77", "fd00:1:2::2"),
            ("10.2.1.77", "10.1.2.2"),
            ("fd00:2:1::77", "fd00:1:2::2"),
            ("198.51.100.7", "10.1.2.2"),
        ];
        for (source, to) in forged {
            assert!(gets_there(&lab.web, source, &lab.web_too, to), "{source}: without us");
        }
        OverlayTable::open().unwrap().apply(&rules()).unwrap();
        for (source, to) in forged {
            assert!(!gets_to(&lab.web, source, &lab.web_too, to), "{source} to {to}");
            // Nor to the host itself.
            let host = if to.contains(':') { "fd00:1:1::1" } else { "10.1.1.1" };
            let here = Netns::current().unwrap();
            assert!(!gets_to(&lab.web, source, &here, host), "{source} to the host");
        }
        for (source, to) in [("10.1.1.2", "10.1.2.2"), ("fd00:1:1::2", "fd00:1:2::2")] {
            assert!(gets_there(&lab.web, source, &lab.web_too, to), "{source}: its own");
        }
        // Those of no network of ours may have any.
        steal(&lab.out, &["198.51.100.8/32"]);
        assert!(gets_there(&lab.out, "198.51.100.8", &Netns::current().unwrap(), "10.9.1.1"));
        // What is on the link is found from link-local addresses, also where the host has no route for those.
        run("ip -6 addr add fe80::1/128 dev c1-1 nodad");
        run("ip -6 route del fe80::/64 dev c1-1");
        let found = || {
            Command::new("ping").args(["-6", "-qc1", "-W1", "fe80::1%eth0"]).output().unwrap();
            run("ip -6 neigh show dev eth0")
                .lines()
                .any(|line| line.starts_with("fe80::1 ") && line.contains("lladdr"))
        };
        assert!(lab.web.run(|| (0..5).any(|_| found())).unwrap(), "a neighbour from a link-local address");
    });
}

#[test]
fn nobody_else_on_the_host_sends_from_a_networks_subnet() {
    testns::in_fresh(|| {
        let lab = Networks::new();
        // The second is within the first, as it may be while one is taken for the other.
        let nets = ["10.4.0.0/16", "10.4.1.0/24", "fd00:4::/32"].map(|net| net.parse().unwrap());
        let direct = set(nets.map(|net| (net, DIRECT)).into_iter().skip(1));
        let wanted = Rules { direct, nets: nets.into(), underlay: index("c9-1"), ..rules() };
        // A container of a bridge, say, that has another's address.
        let bridged = container(8, 1, 0);
        steal(&bridged, &["10.4.1.77/32", "fd00:4:1::77/128"]);
        let forged = [("10.4.1.77", "10.9.1.2"), ("fd00:4:1::77", "fd00:9:1::2")];
        let mut table = OverlayTable::open().unwrap();
        table.apply(&Rules { nets: BTreeSet::new(), ..wanted.clone() }).unwrap();
        for (source, to) in forged {
            assert!(gets_there(&bridged, source, &lab.out, to), "{source}: no network has it");
        }
        // By the underlay and by any other link.
        for underlay in ["c9-1", "c2-1"] {
            table.apply(&Rules { underlay: index(underlay), ..wanted.clone() }).unwrap();
            for (source, to) in forged {
                assert!(!gets_to(&bridged, source, &lab.out, to), "{source}, underlay {underlay}");
            }
            for (source, to) in [("10.8.1.2", "10.9.1.2"), ("fd00:8:1::2", "fd00:9:1::2")] {
                assert!(gets_there(&bridged, source, &lab.out, to), "{source}: its own");
            }
            for (source, to) in [("10.4.1.2", "10.9.1.2"), ("fd00:4:1::2", "fd00:9:1::2")] {
                assert!(gets_there(&lab.direct, source, &lab.out, to), "{source}: the network's own");
            }
        }
        // Another node's by the underlay, once a route leads there: an address of a container on this node is forged.
        table.apply(&Rules { underlay: index("c8-1"), ..wanted }).unwrap();
        for (source, to) in [("10.4.1.77", "10.4.1.2"), ("fd00:4:1::77", "fd00:4:1::2")] {
            assert!(!gets_to(&bridged, source, &lab.direct, to), "{source} by the underlay without a route");
        }
        run("ip route add 10.4.1.77 dev c8-1");
        run("ip -6 route add fd00:4:1::77 dev c8-1");
        for (source, to) in [("10.4.1.77", "10.4.1.2"), ("fd00:4:1::77", "fd00:4:1::2")] {
            assert!(gets_there(&bridged, source, &lab.direct, to), "{source} by the underlay");
        }
    });
}
