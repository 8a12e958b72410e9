//! `--network none`, `host` and `container:NAME`.

use crate::Site;
use serde_json::Value;
use std::time::{Duration, Instant};
use tests::Host;

fn interfaces(json: &Value) -> Vec<&str> {
    json.as_array().into_iter().flatten().filter_map(|link| link["ifname"].as_str()).collect()
}

#[test]
fn network_none_has_loopback_alone() {
    let host = Host::new();
    let out = host.weft().run("run --rm --network none ip -j addr").ok();
    let links = out.json();
    assert_eq!(interfaces(&links), ["lo"]);
    assert_eq!(links[0]["addr_info"][0]["local"], "127.0.0.1", "loopback is up: {links}");
}

#[test]
fn network_host_sees_the_hosts_interfaces() {
    let host = Host::new();
    host.link_machine("outside");
    let out = host.weft().run("run --rm --network host ip -j addr").ok();
    assert_eq!(interfaces(&out.json()), ["lo", "uplink0"]);
}

#[test]
fn network_container_shares_address_and_server() {
    let site = Site::set_up();
    let www = site.www();
    let joined = site.host.weft().container("joined", "--network container:www sleep 1000");
    assert_eq!(joined.address(), www.address());
    crate::is_page(joined.sh(&crate::page("127.0.0.1:80")));
    joined.remove();
    crate::is_page(site.host.run(&crate::page("127.0.0.1:8080")));
    www.remove();
    site.finish();
}

#[test]
fn the_del_of_a_container_waits_for_those_that_share_its_network() {
    let site = Site::set_up();
    let www = site.www();
    let address = www.address();
    let joined = site.host.weft().container("joined", "--network container:www sleep 1000");
    www.remove();
    assert_eq!(joined.address(), address, "the address is still there");
    joined.sh("ping -c1 -W2 192.168.10.1").ok();
    let leases = site.host.weft().run("ipam ls").ok();
    assert!(leases.stdout.contains(&address), "the lease is still held: {leases}");
    joined.remove();
    // The supervisor of the container that went first does it, in the background.
    let start = Instant::now();
    while site.host.weft().run("ipam ls").ok().stdout.contains(&address) {
        assert!(start.elapsed() < Duration::from_secs(60), "the lease is not given back");
    }
    site.finish();
}

#[test]
fn network_container_of_nobody_fails() {
    let host = Host::new();
    let out = host.weft().run("run --rm --network container:nobody true").code(125);
    assert!(out.stderr.contains("nobody"), "{out}");
}
