//! The underlay's address leaves and returns, changes, or moves to another interface. Needs root and etcd.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod support;

use std::net::IpAddr;
use std::time::{Duration, SystemTime};
use support::container::Container;
use support::lan::{ETCD, ETCD6, Lan};
use support::pings::Pings;
use support::{Host, eventually, within};

const FLAGS: [&str; 2] = ["--etcd", ETCD];
/// How long an outage may last when the underlay's address is back.
const RETURNS: Duration = Duration::from_secs(2);
/// The same when the underlay is another interface.
const MOVES: Duration = Duration::from_secs(3);
/// On a machine that is busy with other things it is more: so many times as long as the simplest repair takes there.
const TIMES: u32 = 20;

#[track_caller]
fn assert_in_time(host: &Host, what: &str, outage: Duration, expected: Duration) {
    let bound = expected + TIMES * host.restoring("10.42.0.0/16");
    println!("{what}: {outage:?} of {bound:?}");
    assert!(outage <= bound, "{what}: {outage:?} of {bound:?}");
}

fn vtep(host: &Host) -> Option<IpAddr> {
    host.client().status(None).ok()?.vtep
}

/// Two hosts with both families, and a default route of each.
fn lan() -> Lan {
    let mut lan = Lan::new(2);
    lan.start_etcd();
    for host in &lan.hosts {
        host.space.ok("ip -6 route add default via 2001:db8::ff dev eth0");
    }
    lan
}

#[test]
fn ipv4_underlay_address_that_returns_keeps_the_vtep() {
    let lan = lan();
    let h1 = &lan.hosts[0];
    let (_agents, [one, two]) = lan.pair();
    let first: IpAddr = "192.0.2.1".parse().unwrap();
    assert_eq!(vtep(h1), Some(first));
    let pings = Pings::new(&one, two.addresses()[0]);
    for away in [100, 1500, 3000] {
        h1.space.ok("ip addr del 192.0.2.1/24 dev eth0");
        std::thread::sleep(Duration::from_millis(away));
        assert_eq!(vtep(h1), Some(first), "the cluster uses IPv4");
        h1.space.ok("ip addr add 192.0.2.1/24 dev eth0");
        let outage = pings.outage(SystemTime::now());
        assert_in_time(h1, &format!("after {away} ms away"), outage, RETURNS);
        assert_eq!(vtep(h1), Some(first));
    }
}

#[test]
fn underlay_address_that_flaps_three_times_is_used_when_it_is_back() {
    let lan = lan();
    let h1 = &lan.hosts[0];
    let (agents, [one, two]) = lan.pair();
    let pings = Pings::new(&one, two.addresses()[0]);
    let said = |what: &str| agents[0].said().matches(what).count();
    for flaps in ["addr del 192.0.2.1/24 dev eth0", "link set eth0 down"] {
        for _ in 0..3 {
            let noticed = said("waiting for it");
            h1.space.ok(&format!("ip {flaps}"));
            // With its link down the address is there.
            assert!(!flaps.starts_with("addr") || within(|| said("waiting for it") > noticed));
            h1.space.ok("ip addr replace 192.0.2.1/24 dev eth0; ip link set eth0 up");
        }
        let outage = pings.outage(SystemTime::now());
        assert_in_time(h1, flaps, outage, RETURNS);
        assert_eq!(vtep(h1), Some("192.0.2.1".parse().unwrap()));
    }
}

#[test]
fn underlay_whose_interface_goes_down_moves_to_the_new_default_route() {
    for down in ["ip link set eth0 down", "the carrier"] {
        let lan = lan();
        let h2 = &lan.hosts[1];
        let (_agents, [one, two]) = lan.pair();
        let pings = Pings::new(&one, two.addresses()[0]);
        lan.add_interface(2, "eth1");
        h2.space.ok("ip addr add 192.0.2.77/24 dev eth1 && ip link set eth1 up");
        // The address stays on the interface that is down, and says nothing.
        match down {
            "the carrier" => lan.plug(2, "down"),
            line => drop(h2.space.ok(line)),
        }
        h2.space
            .ok("ip route del 192.0.2.0/24 dev eth0 || :; ip route replace default via 192.0.2.254 dev eth1");
        let outage = pings.outage(SystemTime::now());
        eventually("it is known there", || vtep(h2) == Some("192.0.2.77".parse().unwrap()));
        eventually("the other reaches it", || two.reaches(&one));
        assert_in_time(h2, down, outage, MOVES);
        // When the old one is back, nothing moves again.
        lan.plug(2, "up");
        h2.space.ok("ip link set eth0 up");
        h2.sync();
        assert_eq!(vtep(h2), Some("192.0.2.77".parse().unwrap()));
    }
}

#[test]
fn underlay_address_that_moves_to_another_interface_stays_the_vtep() {
    let lan = lan();
    let [h1, h2] = &lan.hosts[..] else { panic!() };
    let (_agents, [one, two]) = lan.pair();
    let pings = Pings::new(&one, two.addresses()[0]);
    lan.add_interface(2, "eth1");
    h2.space
        .ok("ip addr del 192.0.2.2/24 dev eth0 && ip addr add 192.0.2.2/24 dev eth1 && ip link set eth1 up");
    h2.space.ok("ip route replace default via 192.0.2.254 dev eth1");
    // As a program that moves an address announces it on the segment.
    h1.space.ok("ip neigh flush all");
    assert_in_time(h2, "the address moves", pings.outage(SystemTime::now()), MOVES);
    eventually("the other reaches it", || two.reaches(&one));
    assert_eq!(vtep(h2), Some("192.0.2.2".parse().unwrap()));
    // VXLAN is taken by the new interface alone.
    eventually("the filter knows the interface", || h2.space.ok("nft list ruleset").contains("\"eth1\""));
}

#[test]
fn underlay_that_moves_to_another_interface_is_followed_at_once() {
    let lan = lan();
    let h2 = &lan.hosts[1];
    let (agents, [one, two]) = lan.pair();
    let pings = Pings::new(&one, two.addresses()[0]);
    // Of two interfaces on one segment each answers for its own addresses.
    h2.space.ok("sysctl -qw net.ipv4.conf.all.arp_ignore=1");
    h2.space.ok("ip link add link eth0 name eth1 type macvlan mode bridge");
    h2.space.ok("ip addr flush dev eth0 scope global");
    h2.space.ok("ip addr add 192.0.2.77/24 dev eth1 && ip link set eth1 up");
    eventually("it is noticed", || agents[1].said().contains("waiting for it"));
    // Only now is the interface that of the underlay, which no address tells.
    h2.space.ok("ip route add default via 192.0.2.254 dev eth1");
    let outage = pings.outage(SystemTime::now());
    eventually("it is known there", || vtep(h2) == Some("192.0.2.77".parse().unwrap()));
    eventually("the other reaches it", || two.reaches(&one));
    assert_in_time(h2, "another interface", outage, MOVES);
    // Another name is not another interface, and no reason to do anything.
    h2.space.ok("ip link set eth1 down && ip link set eth1 name wan && ip link set wan up");
    h2.space.ok("ip route replace default via 192.0.2.254 dev wan");
    let outage = pings.outage(SystemTime::now());
    assert_in_time(h2, "another name", outage, RETURNS);
    let problems = h2.sync().problems;
    assert!(problems.is_empty(), "{problems:?}");
}

/// What is sent from the old address, as to etcd, gets no answer and no error.
#[test]
fn underlay_address_that_changes_is_known_to_others_at_once() {
    let lan = lan();
    let h2 = &lan.hosts[1];
    let (_agents, [one, two]) = lan.pair();
    let pings = Pings::new(&one, two.addresses()[0]);
    for (old, new) in [("192.0.2.2", "192.0.2.77"), ("192.0.2.77", "192.0.2.2")] {
        h2.space.ok(&format!("ip addr del {old}/24 dev eth0; ip addr add {new}/24 dev eth0"));
        h2.space.ok("ip route replace default via 192.0.2.254 dev eth0");
        let outage = pings.outage(SystemTime::now());
        eventually("it is known there", || vtep(h2) == Some(new.parse().unwrap()));
        assert_in_time(h2, new, outage, MOVES);
    }
}

/// As when DHCP is slower than the agent.
#[test]
fn node_that_started_with_ipv6_alone_returns_to_ipv4_when_that_comes() {
    let lan = lan();
    let [h1, h2] = &lan.hosts[..] else { panic!() };
    let _first = h1.ready(&FLAGS);
    h1.create("ov", &["10.42.0.0/16"]);
    let one = Container::new(h1, "ov", "one");
    h2.space.ok("ip addr del 192.0.2.2/24 dev eth0");
    let second = h2.ready(&["--etcd", ETCD6]);
    assert_eq!(vtep(h2), Some("2001:db8::2".parse().unwrap()));
    let two = Container::new(h2, "ov", "two");
    // The address comes before the default route that tells which one it is.
    h2.space.ok("ip addr add 192.0.2.2/24 dev eth0");
    h2.sync();
    h2.space.ok("ip route replace default via 192.0.2.254 dev eth0");
    let returned = within(|| vtep(h2) == Some("192.0.2.2".parse().unwrap()));
    assert!(returned, "the node is not registered by IPv4: {}", second.said());
    eventually("they reach each other", || one.reaches(&two) && two.reaches(&one));
}
