//! What does not get into a network: other networks, forged routes, forged packets, the outside.

use crate::cluster::{Cluster, Member, answers, udp};
use crate::echo::Pinger;
use crate::forge::Forged;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// So long may an answer take that has to come, and one that must not.
const PATIENCE: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_millis(300);

/// A machine on the underlay that is no host, with an address of each family.
#[track_caller]
fn stranger(lab: &Cluster) {
    lab.host.netns_add("stranger");
    lab.sh(
        "underlay",
        "set -e; ip link add stranger type veth peer name eth0 netns /run/netns/stranger
         ip link set stranger master underlay up",
    )
    .ok();
    lab.host
        .run_in(
            "stranger",
            "set -e; ip link set lo up; ip link set eth0 up; ip addr add 10.99.0.200/24 dev eth0
             ip -6 addr add fd99::200/64 dev eth0 nodad",
        )
        .ok();
}

/// It goes with its link.
#[track_caller]
fn stranger_leaves(lab: &Cluster) {
    lab.host.netns_del("stranger");
}

/// Neither a ping nor a connection gets from somewhere to these addresses.
#[track_caller]
fn assert_shut(netns: &Path, to: &[IpAddr], how: &str) {
    let silent = Pinger::new(netns).silent(to, SILENCE);
    assert_eq!(silent.len(), to.len(), "{how}: of {to:?} only {silent:?} do not answer a ping");
    for ip in to {
        let said = answers(netns, *ip, SILENCE);
        assert!(said.is_none(), "{how}: {ip} answers {said:?}");
    }
}

/// All of some containers reach none of others, and the other way round.
#[track_caller]
fn assert_apart(lab: &Cluster, some: &[Member], others: &[Member], how: &str) {
    let ips = |of: &[Member]| of.iter().flat_map(Member::ips).collect::<Vec<IpAddr>>();
    let (to_some, to_others) = (ips(some), ips(others));
    let from_some = some.iter().map(|from| (from, &to_others));
    std::thread::scope(|scope| {
        for (from, to) in from_some.chain(others.iter().map(|from| (from, &to_some))) {
            let how = format!("{how}: from {}", from.name);
            scope.spawn(move || assert_shut(&lab.netns_of(from), to, &how));
        }
    });
}

#[track_caller]
fn assert_together_by_ping(lab: &Cluster, from: &Member, to: &Member) {
    let silent = Pinger::new(&lab.netns_of(from)).silent(&to.ips(), PATIENCE);
    let why = || lab.host.weft().run("lab check -W 0.3");
    assert!(silent.is_empty(), "{} does not reach {silent:?}: {}", from.name, why());
}

#[track_caller]
fn assert_together(lab: &Cluster, from: &Member, to: &Member) {
    assert_together_by_ping(lab, from, to);
    for ip in to.ips() {
        let said = answers(&lab.netns_of(from), ip, PATIENCE).unwrap_or_default();
        assert!(said.starts_with(&format!("{} ", to.name)), "{} hears {said:?} of {ip}", from.name);
    }
}

#[test]
fn two_networks_do_not_reach_each_other_whatever_routes_say() {
    let lab = Cluster::bare(3);
    lab.network("--subnet 10.43.0.0/16 --subnet fd43::/48 red");
    lab.network("--subnet 10.44.0.0/16 --subnet fd44::/48 blue");
    // host1 has both, host2 red alone, host3 blue alone.
    let red = [("host1", "r1"), ("host2", "r2")].map(|(on, name)| lab.server(on, name, "--network red"));
    let blue = [("host1", "b1"), ("host3", "b3")].map(|(on, name)| lab.server(on, name, "--network blue"));
    for same in [&red, &blue] {
        assert_together(&lab, &same[0], &same[1]);
        assert_together(&lab, &same[1], &same[0]);
    }
    assert_apart(&lab, &red, &blue, "as it is");

    // Routes to the other network forged in the containers: through the gateway, through every address of the host that
    // answers there, and at random.
    for member in red.iter().chain(&blue) {
        let (gateway, own, subnet, subnet6) = match member.name.starts_with('r') {
            true => ("10.43.0.1", "10.43.0.2", "10.44.0.0/16", "fd44::/48"),
            false => ("10.44.0.1", "10.44.0.2", "10.43.0.0/16", "fd43::/48"),
        };
        lab.sh_in(
            member,
            &format!(
                "set -e; ip route add {subnet} via {gateway} dev eth0 onlink
                 ip route add {subnet} via {own} dev eth0 onlink metric 5; ip -6 route add {subnet6} via fe80::1 dev eth0"
            ),
        )
        .ok();
    }
    assert_apart(&lab, &red, &blue, "with forged routes");

    // A host that has no part in blue, and a stranger, send by way of the host that has: they, and red through them.
    stranger(&lab);
    let routes = |via: &str, via6: &str| {
        format!(
            "set -e; ip route add 10.44.0.0/16 via {via} dev eth0; ip -6 route add fd44::/48 via {via6} dev eth0"
        )
    };
    lab.sh("host2", &routes("10.99.0.13", "fd99::13")).ok();
    lab.host.run_in("stranger", &routes("10.99.0.13", "fd99::13")).ok();
    let reachable = |ip: &str| ip.parse::<IpAddr>().unwrap();
    let netns = [lab.netns("host2"), lab.host.path("/run/netns/stranger")];
    for netns in &netns {
        let pinger = Pinger::new(netns);
        let next_hop = pinger.silent(&[reachable("10.99.0.13"), reachable("fd99::13")], PATIENCE);
        assert!(next_hop.is_empty(), "{}: the way there is no way: {next_hop:?}", netns.display());
        assert_shut(netns, &blue[1].ips(), &format!("from {}", netns.display()));
    }
    assert_apart(&lab, &red[1..], &blue[1..], "by its host's routes");
    // After all that, what belongs together still is.
    assert_together(&lab, &red[0], &red[1]);
    assert_together(&lab, &blue[1], &blue[0]);
    stranger_leaves(&lab);
    lab.down();
}

#[test]
fn vxlan_packets_are_taken_from_known_hosts_alone() {
    let lab = Cluster::bare(3);
    lab.network("--subnet 10.43.0.0/16 red");
    lab.network("--subnet 10.44.0.0/16 blue");
    let [b1, b2] = [("host1", "b1"), ("host2", "b2")].map(|(on, name)| lab.run(on, name, "--network blue"));
    let [r2, r3] = [("host2", "r2"), ("host3", "r3")].map(|(on, name)| lab.run(on, name, "--network red"));
    // On the bridge of its host alone.
    let x3 = lab.run("host3", "x3", "");
    stranger(&lab);
    let forged = Forged::new(&lab, "blue", &b1, &b2, "10.99.0.11");
    let from = |netns: &Path| udp(netns, "0.0.0.0:0");
    let known = from(&lab.netns("host2"));
    assert!(forged.passes(&known, "known 1"), "the packet itself is good");
    assert!(!forged.passes(&from(&lab.host.path("/run/netns/stranger")), "stranger"), "a stranger's packet");
    assert!(!forged.passes(&from(&lab.netns("etcd1")), "etcd"), "etcd's machine is no host");
    assert!(!forged.passes(&from(&lab.netns("host3")), "host3"), "a host that has no part in the network");
    assert!(forged.passes(&known, "known 2"));
    // What containers send to the outside has their hosts' addresses.
    for member in [&r2, &r3, &x3, &b2] {
        let sent = from(&lab.netns_of(member));
        assert!(!forged.passes(&sent, &member.name), "a packet of {}, by way of {}", member.name, member.on);
    }
    // Nor does it get to the host that they are on.
    let near = Forged::new(&lab, "blue", &b2, &b1, "10.99.0.12");
    assert!(near.passes(&from(&lab.netns("host1")), "known 3"));
    for member in [&r2, &b2] {
        assert!(!near.passes(&from(&lab.netns_of(member)), "near"), "{}", member.name);
    }
    // A host that comes to have a part is known at once.
    let b3 = lab.run("host3", "b3", "--network blue");
    assert!(forged.passes(&from(&lab.netns("host3")), "host3"));
    assert!(!forged.passes(&from(&lab.netns_of(&x3)), "x3"), "a packet of x3, by way of a host with a part");
    assert!(!forged.passes(&from(&lab.netns_of(&b3)), "b3"), "a packet of b3");
    assert!(forged.passes(&known, "known 4"));
    stranger_leaves(&lab);
    lab.down();
}

#[test]
fn an_internal_network_has_no_way_out_and_none_in() {
    let lab = Cluster::bare(3);
    lab.network("--internal --subnet 10.42.0.0/16 --subnet fd42::/48 in");
    lab.network("--subnet 10.43.0.0/16 --subnet fd43::/48 out");
    stranger(&lab);
    let serve = tests::traffic().display().to_string();
    let mut far = lab
        .host
        .spawn("ip", &["netns", "exec", "stranger", serve.as_str(), "tcp-serve", "[::]:7000", "stranger"]);
    far.until("listening");
    let [one, three] = ["host1", "host3"].map(|on| lab.server(on, on, "--network in"));
    assert_together(&lab, &one, &three);
    let other = lab.run("host1", "other", "--network out");
    let outside: Vec<IpAddr> = ["10.99.0.200", "fd99::200", "10.99.0.12", "fd99::12", "10.99.0.1"]
        .iter()
        .map(|ip| ip.parse().unwrap())
        .collect();
    // Another network has a way to all of these.
    let silent = Pinger::new(&lab.netns_of(&other)).silent(&outside, PATIENCE);
    assert!(silent.is_empty(), "{silent:?}");
    assert!(
        answers(&lab.netns_of(&other), outside[0], PATIENCE)
            .is_some_and(|said| said.starts_with("stranger "))
    );

    assert_eq!(lab.sh_in(&one, "ip route show default; ip -6 route show default").ok().text(), "");
    assert_shut(&lab.netns_of(&one), &outside, "as it is");
    // A forged default route does not help.
    lab.sh_in(
        &one,
        "set -e; ip route add default via 10.42.0.1 dev eth0 onlink; ip -6 route add default via fe80::1 dev eth0",
    )
    .ok();
    assert_shut(&lab.netns_of(&one), &outside, "with a forged default route");
    // Nor is there a way in.
    lab.host
        .run_in(
            "stranger",
            "ip route add 10.42.0.0/16 via 10.99.0.13; ip -6 route add fd42::/48 via fd99::13",
        )
        .ok();
    assert_shut(&lab.host.path("/run/netns/stranger"), &three.ips(), "from outside");
    let refused = lab.runtime("host1", "run --rm --network in -p 8080:80 true").code(125);
    assert!(refused.stderr.contains("--publish"), "{refused}");
    assert_together(&lab, &one, &three);
    drop(far);
    stranger_leaves(&lab);
    lab.down();
}

/// A network namespace, and whose it is.
type Netns = (PathBuf, String);

/// Sends a word from an address and port of a network namespace to a listener, and says whether it is heard.
#[track_caller]
fn heard(from: &Netns, source: SocketAddr, listener: &UdpSocket, to: SocketAddr) -> bool {
    let (netns, who) = from;
    let word = format!("{who} as {source}");
    let sent = udp(netns, &source.to_string()).send_to(word.as_bytes(), to);
    assert!(sent.is_ok(), "{word}: {sent:?}");
    let mut buffer = [0; 200];
    while let Ok((len, _)) = listener.recv_from(&mut buffer) {
        if &buffer[..len] == word.as_bytes() {
            return true;
        }
    }
    false
}

#[test]
fn nobody_gets_into_a_network_by_an_address_of_it() {
    let lab = Cluster::bare(2);
    lab.network("--subnet 10.42.0.0/16 --subnet fd42::/48 --opt encap=direct dir");
    lab.network("--subnet 10.43.0.0/16 --subnet fd43::/48 red");
    lab.runtime("host1", "network create --subnet 10.70.0.0/24 --subnet fd70::/64 br").ok();
    let [d1, d2] = [("host1", "d1"), ("host2", "d2")].map(|(on, name)| lab.run(on, name, "--network dir"));
    let [red, bridged] = ["red", "br"].map(|net| lab.run("host1", net, &format!("--network {net}")));
    assert_together_by_ping(&lab, &d1, &d2);
    let netns = |member: &Member| (lab.netns_of(member), member.name.clone());
    let host = (lab.netns("host1"), "host1".to_owned());
    // IPv4 goes as it is, IPv6 in VXLAN: the lab's hosts know each other by IPv4.
    for (at, own, nobodys) in [(d2.v4, d1.v4, "10.42.200.200"), (d2.ips()[1], d1.ips()[1], "fd42::ffff:200")]
    {
        let (to, own) = (SocketAddr::new(at, 7777), SocketAddr::new(own, 6666));
        let nobodys = SocketAddr::new(nobodys.parse().unwrap(), 6666);
        let listener = udp(&lab.netns_of(&d2), &to.to_string());
        let steal = |ip: IpAddr, link: &str| {
            let (bits, flag) = if ip.is_ipv6() { (128, "nodad") } else { (32, "") };
            format!("ip addr add {ip}/{bits} dev {link} {flag}")
        };
        // Connections that are known of, too: the datagrams of d1 were answered.
        assert!(heard(&netns(&d1), own, &listener, to), "{own}: the network's own");
        assert!(listener.send_to(b"answer", own).is_ok());
        for thief in [&red, &bridged] {
            for source in [own, nobodys] {
                lab.sh_in(thief, &steal(source.ip(), "eth0")).ok();
                assert!(!heard(&netns(thief), source, &listener, to), "{} as {source} to {to}", thief.name);
            }
        }
        // Its own containers, too, send from no address but their own.
        lab.sh_in(&d1, &steal(nobodys.ip(), "eth0")).ok();
        assert!(!heard(&netns(&d1), nobodys, &listener, to), "d1 as {nobodys} to {to}");
        assert!(heard(&netns(&d1), own, &listener, to), "{own}: the network's own");
        // What the node's own programs send is not looked at where it starts. An address of the node's own block shows that
        // the packet itself is good; one of no block is dropped where it arrives, for no route leads back.
        if let IpAddr::V4(of_block) = own.ip() {
            let [a, b, c, d] = of_block.octets();
            let spare = SocketAddr::new([a, b, c, (d & 0xc0) | 50].into(), 6666);
            lab.sh("host1", &steal(spare.ip(), "lo")).ok();
            assert!(heard(&host, spare, &listener, to), "the other node takes it for the network's");
            lab.sh("host1", &steal(nobodys.ip(), "lo")).ok();
            assert!(!heard(&host, nobodys, &listener, to), "{nobodys} by the underlay");
        }
    }
    lab.down();
}
