//! Destinations to which nothing is masqueraded: `--opt non-masquerade-cidrs=…`.

use crate::cluster::{Cluster, inside};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

/// So long may a connection take.
const PATIENCE: Duration = Duration::from_secs(10);

/// As whom a listener at port 7777 sees who connects from a namespace.
#[track_caller]
fn seen(listener: &TcpListener, from: &Path, to: &str) -> IpAddr {
    let ip: IpAddr = to.parse().unwrap_or_else(|e| panic!("{to}: {e}"));
    let stream = inside(from, || TcpStream::connect_timeout(&SocketAddr::new(ip, 7777), PATIENCE));
    stream.unwrap_or_else(|e| panic!("{} to {to}: {e}", from.display()));
    let (_, peer) = listener.accept().unwrap_or_else(|e| panic!("{to}: {e}"));
    peer.ip().to_canonical()
}

#[test]
fn exceptions_of_network_see_containers_on_every_node() {
    let lab = Cluster::bare(2);
    let option = "--opt non-masquerade-cidrs=10.99.0.1/32,fd99::1/128";
    lab.network(&format!("--subnet 10.42.0.0/16 --subnet fd42::/48 {option} ov"));
    lab.network("--subnet 10.43.0.0/16 --subnet fd43::/48 plain");
    lab.sh(
        "underlay",
        "ip addr add 10.99.0.200/24 dev underlay; ip addr add fd99::200/64 dev underlay nodad",
    )
    .ok();
    let listener = inside(&lab.netns("underlay"), || TcpListener::bind("[::]:7777"));
    let listener = listener.unwrap_or_else(|e| panic!("{e}"));
    for (host, v4, v6) in [("host1", "10.99.0.11", "fd99::11"), ("host2", "10.99.0.12", "fd99::12")] {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap_or_else(|e| panic!("{text}: {e}"));
        let member = lab.run(host, &format!("ov-{host}"), "--network ov");
        let own6 = member.v6.unwrap_or_else(|| panic!("{} has no IPv6", member.name));
        // The way back of what is not masqueraded.
        lab.sh(
            "underlay",
            &format!("ip route replace {}/32 via {v4}; ip -6 route replace {own6}/128 via {v6}", member.v4),
        )
        .ok();
        let from = lab.netns_of(&member);
        assert_eq!(seen(&listener, &from, "10.99.0.1"), member.v4, "{host}");
        assert_eq!(seen(&listener, &from, "10.99.0.200"), ip(v4), "{host}");
        assert_eq!(seen(&listener, &from, "fd99::1"), own6, "{host}");
        assert_eq!(seen(&listener, &from, "fd99::200"), ip(v6), "{host}");
        let plain = lab.run(host, &format!("plain-{host}"), "--network plain");
        assert_eq!(seen(&listener, &lab.netns_of(&plain), "10.99.0.1"), ip(v4), "{host}: another network");
        lab.remove(&[&member, &plain]);
        lab.soon("nothing is left", || {
            !lab.sh(host, "nft list ruleset").stdout.contains("table inet weft {")
        });
    }
    let bridge = format!("network create --subnet 10.44.0.0/16 --ipv6 {option} br");
    lab.runtime("host1", &bridge).ok();
    let member = lab.run("host1", "br", "--network br");
    lab.sh("underlay", &format!("ip route replace {}/32 via 10.99.0.11", member.v4)).ok();
    assert_eq!(seen(&listener, &lab.netns_of(&member), "10.99.0.1"), member.v4, "bridge");
    assert_eq!(seen(&listener, &lab.netns_of(&member), "10.99.0.200").to_string(), "10.99.0.11", "bridge");
    lab.remove(&[&member]);
    lab.runtime("host1", "network rm br").ok();
    let refused = lab.runtime("host1", &format!("network create --internal {option} no"));
    assert!(refused.code != 0 && refused.stderr.contains("internal network"), "{refused}");
    for (option, said) in [
        ("non-masquerade-cidrs=10.0.0.1/8", "\"10.0.0.1/8\": expected a CIDR without host bits"),
        ("non-masquerade-cidrs=10.0.0.0/8,x", "\"x\": expected a CIDR"),
    ] {
        let refused = lab.runtime("host1", &format!("network create --driver overlay --opt {option} no"));
        let said = format!("--opt {option}: {said}");
        assert!(refused.code != 0 && refused.stderr.contains(&said), "{refused}");
    }
    lab.down();
}
