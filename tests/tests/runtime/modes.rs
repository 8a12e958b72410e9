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

#[test]
fn one_that_joined_is_an_endpoint_of_the_network() {
    let site = Site::set_up();
    let weft = site.host.weft();
    let www = site.www();
    let address = www.address();
    let joined = weft.container("joined", "--network container:www sleep 1000");
    let names = || -> Vec<String> {
        let inspected = weft.run("network inspect testbridge").ok().json();
        let all = inspected[0]["Containers"].as_object().unwrap().values();
        let of = |each: &Value| {
            format!("{} {}", each["Name"].as_str().unwrap(), each["IPv4Address"].as_str().unwrap())
        };
        let mut names: Vec<String> = all.map(of).collect();
        names.sort();
        names
    };
    assert_eq!(names(), [format!("joined {address}/24"), format!("www {address}/24")]);
    for (end, left) in [("stop -t 0 www", "joined"), ("rm -f www", "joined")] {
        weft.run(end).ok();
        assert_eq!(names(), [format!("{left} {address}/24")], "after {end}");
        for line in ["network rm testbridge", "network rm -f testbridge"] {
            let out = weft.run(line).code(1);
            assert!(out.stderr.contains("joined") && !out.stderr.contains("www"), "{out}");
        }
        weft.run("network prune -f").ok();
        joined.sh("ping -c1 -W2 192.168.10.1").ok();
    }
    joined.remove();
    let start = Instant::now();
    while weft.run("network rm testbridge").code != 0 {
        assert!(start.elapsed() < Duration::from_secs(60), "the network cannot be removed");
    }
    site.host.assert_as_before();
}

#[test]
fn ports_of_one_that_ended_are_free_while_its_network_is_shared() {
    for end in ["rm -f www", "stop -t 0 www", "kill -9 the supervisor"] {
        let site = Site::set_up();
        let weft = site.host.weft();
        let www = site.www();
        let joined = weft.container("joined", "--network container:www sleep 1000");
        if end.starts_with("kill") {
            let parent =
                site.host.run(&format!("awk '/^PPid/ {{print $2}}' /proc/{}/status", www.pid())).ok();
            site.host.run(&format!("kill -9 {}", parent.text())).ok();
            let start = Instant::now();
            while weft.run("ps").ok().stdout.contains("www") {
                assert!(start.elapsed() < Duration::from_secs(60), "www still runs");
            }
        } else {
            weft.run(end).ok();
        }
        let next = weft.container("next", &format!("--network testbridge -p 8080:80 {}", crate::WWW));
        next.until_listening(80);
        crate::is_page(site.outside(&crate::page(&format!("{}:8080", crate::HOST))));
        joined.remove();
        // The rest of the first one's network goes, and the port stays the second one's.
        let start = Instant::now();
        while weft.run("ipam ls").ok().stdout.matches("192.168.10.").count() > 1 {
            assert!(start.elapsed() < Duration::from_secs(60), "the lease is not given back");
        }
        crate::is_page(site.outside(&crate::page(&format!("{}:8080", crate::HOST))));
        next.remove();
        weft.run("rm -f www").ok();
        site.finish();
    }
}
