//! The ways that packets take: direct routing, addresses that were asked for, published ports, an underlay of IPv6.

use crate::cluster::{Cluster, Member};
use crate::echo::Pinger;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;
use tests::Output;

/// So long may an answer take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Has the underlay's bridge count the VXLAN packets between the hosts.
#[track_caller]
fn count_vxlan(lab: &Cluster) {
    lab.sh(
        "underlay",
        "set -e; nft add table bridge count
         nft add chain bridge count forward '{ type filter hook forward priority 0; }'
         nft add rule bridge count forward udp dport 4789 counter",
    )
    .ok();
}

/// How many went by so far.
#[track_caller]
fn counted(lab: &Cluster) -> u64 {
    let shown = lab.sh("underlay", "nft -j list chain bridge count forward").ok().json();
    let all = shown["nftables"].as_array().cloned().unwrap_or_default();
    let mut counters =
        all.iter().flat_map(|object| object["rule"]["expr"].as_array().cloned().unwrap_or_default());
    let counter = counters.find_map(|expr| expr["counter"]["packets"].as_u64());
    counter.unwrap_or_else(|| panic!("no counter in {shown}"))
}

#[track_caller]
fn assert_all_reach_all(lab: &Cluster, members: &[Member], ips: impl Fn(&Member) -> Vec<IpAddr>) {
    let all: Vec<IpAddr> = members.iter().flat_map(&ips).collect();
    for from in members {
        let silent = Pinger::new(&lab.netns_of(from)).silent(&all, PATIENCE);
        let why = || lab.host.weft().run("lab check -W 0.3");
        assert!(silent.is_empty(), "{} does not reach {silent:?}: {}", from.name, why());
    }
}

#[track_caller]
fn on_each(lab: &Cluster, prefix: &str, flags: &str) -> Vec<Member> {
    (1..=3).map(|at| lab.run(&format!("host{at}"), &format!("{prefix}{at}"), flags)).collect()
}

/// What an HTTP-less server of the lab says at an address of a host, asked from a machine or a container.
#[track_caller]
fn ask(lab: &Cluster, netns: &str, at: &str) -> Output {
    let traffic = tests::traffic().display().to_string();
    lab.host.exec("nsenter", &[&format!("--net={netns}"), &traffic, "tcp", at, "3000"])
}

fn netns_in(member: &Member) -> String {
    format!("/proc/{}/ns/net", member.pid)
}

#[test]
fn direct_routing_sends_packets_as_they_are() {
    for (underlay, v6) in [("", false), ("underlay: {ipv4: none}\n", true)] {
        // Without IPv4, VTEPs have IPv6, and so have the packets that go as they are.
        let etcd = if v6 { "" } else { "etcd: 1\n" };
        let lab = Cluster::up(&format!("{underlay}{etcd}hosts: 3\n"));
        lab.network("--subnet 10.42.0.0/16 --subnet fd42::/48 --opt encap=direct --opt mtu=1500 direct");
        lab.network("--subnet 10.43.0.0/16 --subnet fd43::/48 tunnel");
        let direct = on_each(&lab, "d", "--network direct");
        let tunnel = on_each(&lab, "t", "--network tunnel");
        count_vxlan(&lab);
        let of_family = |want: bool| {
            move |member: &Member| member.ips().into_iter().filter(|ip| ip.is_ipv6() == want).collect()
        };
        assert_all_reach_all(&lab, &direct, of_family(v6));
        assert_eq!(counted(&lab), 0, "packets of the direct network are encapsulated");
        // As large as the underlay carries.
        let far = if v6 { direct[2].v6.map(|ip| ip.to_string()) } else { Some(direct[2].v4.to_string()) };
        let size = 1500 - if v6 { 48 } else { 28 };
        lab.sh_in(&direct[0], &format!("ping -c 1 -W 5 -M do -s {size} {}", far.unwrap_or_default())).ok();
        assert_eq!(counted(&lab), 0);
        // The other family cannot go so on this underlay, and a network without the option does not.
        assert_all_reach_all(&lab, &direct, of_family(!v6));
        let other_family = counted(&lab);
        assert!(other_family > 0);
        assert_all_reach_all(&lab, &tunnel, Member::ips);
        assert!(counted(&lab) > other_family);
        // What comes as it is, comes into its own network alone.
        let silent =
            Pinger::new(&lab.netns_of(&direct[0])).silent(&tunnel[2].ips(), Duration::from_millis(300));
        assert_eq!(silent.len(), 2, "{silent:?}");
        lab.down();
    }
}

#[test]
fn an_address_that_is_asked_for_may_be_anywhere_in_the_subnet() {
    let lab = Cluster::bare(3);
    lab.network("--subnet 10.42.0.0/16 --subnet fd42::/48 ov");
    let members = on_each(&lab, "c", "--network ov");
    // In the middle of host3's block, of its own one, and of none.
    let IpAddr::V4(third) = members[2].v4 else { panic!("{members:?}") };
    let [a, b, c, d] = third.octets();
    let borrowed = format!("{a}.{b}.{c}.{}", d + 20);
    let own = members[0].v4.to_string();
    let free = "10.42.250.9";
    for (name, ip) in [("borrowed", borrowed.as_str()), ("free", free)] {
        let asked = lab.run("host1", name, &format!("--network ov --ip {ip}"));
        assert_eq!(asked.v4.to_string(), ip);
        for from in &members {
            let silent = Pinger::new(&lab.netns_of(from)).silent(&asked.ips(), PATIENCE);
            assert!(silent.is_empty(), "{name}: {} does not reach {silent:?}", from.name);
        }
        // Nobody else gets it, on whichever host.
        for on in ["host1", "host2", "host3"] {
            let out = lab.runtime(on, &format!("run --rm --network ov --ip {ip} true")).code(125);
            assert!(out.stderr.contains(ip), "{out}");
        }
        lab.remove(&[&asked]);
        lab.runtime("host3", &format!("run --rm --network ov --ip {ip} true")).ok();
        lab.runtime("host1", &format!("run --rm --network ov --ip {ip} true")).ok();
    }
    for (on, ip) in [("host3", own.as_str()), ("host1", members[2].v4.to_string().as_str())] {
        let out = lab.runtime(on, &format!("run --rm --network ov --ip {ip} true")).code(125);
        assert!(out.stderr.contains(ip), "it is a container's: {out}");
    }
    let six = lab.run("host2", "six", "--network ov --ip6 fd42::abcd:7");
    assert_eq!(six.v6.map(|ip| ip.to_string()).as_deref(), Some("fd42::abcd:7"));
    assert_all_reach_all(&lab, &[members[0].clone(), members[2].clone(), six.clone()], Member::ips);
    lab.remove(&[&six, &members[0], &members[1], &members[2]]);
    lab.runtime("host2", "network rm ov").ok();
    lab.down();
}

#[test]
fn a_published_port_is_reached_from_other_hosts_and_their_containers() {
    for (underlay, host1) in [("etcd: 1\n", "10.99.0.11"), ("underlay: {ipv4: none}\n", "[fd99::11]")] {
        let lab = Cluster::up(&format!("{underlay}hosts: 3\n"));
        lab.network("--subnet 10.42.0.0/16 --subnet fd42::/48 ov");
        lab.network("--subnet 10.43.0.0/16 --subnet fd43::/48 --opt encap=direct direct");
        for (network, port) in [("ov", 8080), ("direct", 8081)] {
            let server = lab.server(
                "host1",
                &format!("www-{network}"),
                &format!("--network {network} -p {port}:7000"),
            );
            let near = lab.run("host1", &format!("near-{network}"), &format!("--network {network}"));
            let far = lab.run("host3", &format!("far-{network}"), &format!("--network {network}"));
            let at = format!("{host1}:{port}");
            let says = |netns: &str, who: &str| {
                let said = ask(&lab, netns, &at);
                assert!(said.code == 0 && said.text().starts_with("www-"), "{network}: from {who}: {said}");
                said.text().rsplit(' ').next().unwrap_or_default().to_owned()
            };
            let from = says("/run/weft/labs/lab/netns/host2", "another host");
            assert!(
                from.ends_with("99.0.12") || from.ends_with("99::12"),
                "the client's own address: {from}"
            );
            says("/run/weft/labs/lab/netns/host1", "its host");
            says(&netns_in(&near), "a container beside it");
            says(&netns_in(&far), "a container of another host");
            says(&netns_in(&server), "itself");
            // Not published, but in the network: from within it.
            let inside = std::net::SocketAddr::new(server.v4, 7000).to_string();
            assert!(ask(&lab, &netns_in(&far), &inside).ok().text().starts_with("www-"));
            assert!(ask(&lab, "/run/weft/labs/lab/netns/etcd1", &inside).code != 0);
            let other = ask(&lab, &netns_in(&far), &format!("{host1}:8089"));
            assert!(other.code != 0, "{other}");
            lab.remove(&[&server]);
            assert!(
                ask(&lab, "/run/weft/labs/lab/netns/host2", &at).code != 0,
                "it is closed with its container"
            );
        }
        lab.down();
    }
}

#[test]
fn a_port_of_a_container_with_one_family_answers_both() {
    let lab = Cluster::bare(2);
    lab.network("--ipv6 --subnet fd45::/64 six");
    lab.network("--subnet 10.45.0.0/16 four");
    let traffic = tests::traffic();
    let dir = traffic.parent().unwrap_or(&traffic).display().to_string();
    for (network, port) in [("six", 8090), ("four", 8092)] {
        let ports = format!("-p {port}:7000 -p 10.99.0.11:{0}:7000 -p [fd99::11]:{0}:7000", port + 1);
        let serve = format!("-v {dir}:/traffic:ro /traffic/weft-traffic tcp-serve [::]:7000 www-{network}");
        lab.runtime("host1", &format!("run -d --name www --network {network} {ports} {serve}")).ok();
        let host2 = "/run/weft/labs/lab/netns/host2";
        for at in [port, port + 1] {
            for host1 in ["10.99.0.11", "[fd99::11]"] {
                let at = format!("{host1}:{at}");
                lab.soon(&format!("{network} answers at {at}"), || {
                    ask(&lab, host2, &at).text().starts_with("www-")
                });
            }
        }
        lab.runtime("host1", "rm -f www").ok();
    }
    lab.down();
}

#[test]
fn an_underlay_of_ipv6_carries_both_families() {
    let lab = Cluster::up("underlay: {ipv4: none}\nhosts: 3\n");
    lab.network("--subnet 10.42.0.0/16 --ipv6 ov");
    let members = on_each(&lab, "c", "--network ov");
    assert_all_reach_all(&lab, &members, Member::ips);
    let mtu = lab.sh_in(&members[0], "ip -o link show eth0").ok().stdout;
    assert!(mtu.contains("mtu 1430"), "{mtu}");
    lab.sh_in(&members[0], &format!("ping -c 1 -W 5 -M do -s 1402 {}", members[2].v4)).ok();
    let forged = crate::forge::Forged::new(&lab, "ov", &members[0], &members[1], "fd99::11");
    let from = |netns: &Path| crate::cluster::udp(netns, "[::]:0");
    assert!(forged.passes(&from(&lab.netns("host2")), "known"));
    assert!(!forged.passes(&from(&lab.netns("etcd1")), "etcd"), "a stranger's packet");
    assert!(!forged.passes(&from(&lab.netns_of(&members[1])), "c2"), "a container's packet");
    lab.down();
}
