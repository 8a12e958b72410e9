//! Agents on several hosts with a real etcd: containers reach each other, also while parts fail.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod support;

use ovl_api::wire::{NetworkCreate, ProblemKind};
use std::process::Command;
use support::container::Container;
use support::eventually;
use support::lan::{ETCD, Lan};

const FLAGS: [&str; 2] = ["--etcd", ETCD];

#[test]
fn containers_on_two_hosts_reach_each_other_at_the_first_ping() {
    let mut lan = Lan::new(2);
    lan.start_etcd();
    let [h1, h2] = &lan.hosts[..] else { panic!() };
    let agents = [h1.ready(&FLAGS), h2.ready(&FLAGS)];
    h1.create("ov", &["10.42.0.0/16", "fd42::/48"]);
    h2.sync();
    let one = Container::new(h1, "ov", "one");
    // No waiting: the answer to an attachment says that the others can reach it.
    for number in 0..5 {
        let other = Container::new(h2, "ov", &format!("two{number}"));
        assert!(one.reaches(&other), "{}", agents.each_ref().map(|agent| agent.said()).join("\n"));
        assert!(other.reaches(&one));
    }
    let nodes = h1.client().nodes().unwrap();
    assert_eq!(nodes.iter().map(|node| node.host.name.as_str()).collect::<Vec<_>>(), ["h1", "h2"]);
    eventually("all containers are in the store", || {
        h1.client().network_detail("ov").is_ok_and(|detail| detail.endpoints.len() == 6)
    });
}

#[test]
fn with_etcd_away_traffic_and_attachments_go_on_also_after_a_restart() {
    let mut lan = Lan::new(2);
    lan.start_etcd();
    let mut agents = [lan.hosts[0].ready(&FLAGS), lan.hosts[1].ready(&FLAGS)];
    lan.hosts[0].create("ov", &["10.42.0.0/16", "fd42::/48"]);
    lan.hosts[1].sync();
    let one = Container::new(&lan.hosts[0], "ov", "one");
    let two = Container::new(&lan.hosts[1], "ov", "two");
    assert!(one.reaches(&two));
    lan.stop_etcd();
    let h1 = &lan.hosts[0];
    eventually("the loss is noticed", || h1.client().status(None).is_ok_and(|status| !status.connected));
    let output = h1.ovl_agent(&["node", "ls"]).output().unwrap();
    let (told, warned) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && told.contains("h2"), "{told}{warned}");
    assert!(warned.contains("as this host last saw them") && warned.contains("192.0.2.200:2379"), "{warned}");
    let three = Container::new(h1, "ov", "three");
    assert!(three.reaches(&two) && one.reaches(&two));
    let create = NetworkCreate { name: "more".into(), ..NetworkCreate::default() };
    let error = h1.client().create_network(&create).unwrap_err();
    assert_eq!(error.problem().unwrap().kind, ProblemKind::Store, "{error}");
    assert!(error.to_string().contains("192.0.2.200:2379"), "{error}");
    // A restart in the middle of it: nothing is lost, and addresses are given on.
    let routes = h1.routes();
    let blocks = h1.client().network_detail("ov").unwrap().blocks;
    let view = ovl_api::names::agent_root(&h1.root()).join("view.json");
    eventually("the view is in its file", || {
        let text = std::fs::read_to_string(&view).unwrap_or_default();
        blocks.iter().all(|block| text.contains(&block.block.to_string()) || block.host == "h1")
    });
    agents[0].end("KILL");
    h1.space.ok("ip route flush proto 87");
    assert!(!one.reaches(&two));
    agents[0] = h1.start(&FLAGS);
    if !support::within(|| h1.routes() == routes) {
        panic!("the routes are not back: {routes}; now {}\n{}", h1.routes(), agents[0].said());
    }
    assert!(one.reaches(&two));
    let four = Container::new(h1, "ov", "four");
    assert!(four.reaches(&two));
    assert!(h1.client().healthz().is_err());
    lan.start_etcd();
    let [h1, h2] = &lan.hosts[..] else { panic!() };
    eventually("both agents are with the store", || {
        [h1, h2]
            .iter()
            .all(|host| host.client().status(None).is_ok_and(|status| status.connected && status.ready))
    });
    h1.create("more", &["10.43.0.0/16"]);
    eventually("all containers are in the store", || {
        h2.client().network_detail("ov").is_ok_and(|detail| detail.endpoints.len() == 4)
    });
    // Lost and regained, a line each.
    let said = agents[1].said();
    assert_eq!(said.matches("the store cannot be reached").count(), 1, "{said}");
    assert_eq!(said.matches("connected to etcd").count(), 2, "{said}");
}

#[test]
fn an_agent_that_starts_before_etcd_is_ready_when_that_is_there() {
    let mut lan = Lan::new(1);
    let agent = lan.hosts[0].start(&FLAGS);
    eventually("it says what is missing", || {
        let status = lan.hosts[0].client().status(None);
        status.is_ok_and(|status| status.store_error.is_some_and(|why| why.contains("192.0.2.200:2379")))
    });
    assert!(lan.hosts[0].client().healthz().is_err());
    lan.start_etcd();
    eventually("it is ready", || lan.hosts[0].client().healthz().is_ok());
    drop(agent);
}

#[test]
fn a_host_that_gets_another_address_tells_the_others() {
    let mut lan = Lan::new(2);
    lan.start_etcd();
    let [h1, h2] = &lan.hosts[..] else { panic!() };
    let agents = [h1.ready(&FLAGS), h2.ready(&FLAGS)];
    h1.create("ov", &["10.42.0.0/16"]);
    h2.sync();
    let (one, two) = (Container::new(h1, "ov", "one"), Container::new(h2, "ov", "two"));
    assert!(one.reaches(&two));
    h2.space.ok("ip addr add 192.0.2.77/24 dev eth0; ip addr del 192.0.2.2/24 dev eth0; ip addr replace 192.0.2.77/24 dev eth0");
    h2.space.ok("ip route replace default via 192.0.2.254 dev eth0");
    // A full pass notices; the connection to etcd has to be made anew, which fails one request or two.
    eventually("the record is new", || {
        let _ = h2.client().sync();
        h2.client().status(None).is_ok_and(|status| status.vtep == Some("192.0.2.77".parse().unwrap()))
    });
    h2.sync();
    h1.sync();
    eventually("they reach each other", || one.reaches(&two) && two.reaches(&one));
    assert!(agents[1].said().contains("192.0.2.2 is gone, it is 192.0.2.77 now"), "{}", agents[1].said());
}

/// The kernel takes the routes by a link away when that goes down.
#[test]
fn direct_routes_come_back_with_the_underlays_link() {
    let mut lan = Lan::new(2);
    lan.start_etcd();
    let [h1, h2] = &lan.hosts[..] else { panic!() };
    let agents = [h1.ready(&FLAGS), h2.ready(&FLAGS)];
    let create = NetworkCreate {
        name: "ov".into(),
        subnets: vec!["10.42.0.0/16".parse().unwrap()],
        encap: ovl_api::model::Encap::Direct,
        ..NetworkCreate::default()
    };
    h1.client().create_network(&create).unwrap();
    h2.sync();
    let (one, two) = (Container::new(h1, "ov", "one"), Container::new(h2, "ov", "two"));
    assert!(one.reaches(&two));
    let route = || h1.routes().contains("via 192.0.2.2 dev eth0");
    assert!(route(), "{}", h1.routes());
    let passes = || agents[0].said().matches("was missing").count();
    let before = passes();
    h1.space.ok("ip link set eth0 down");
    assert!(!route());
    h1.space.ok("ip link set eth0 up");
    eventually("the route is back", route);
    eventually("they reach each other", || one.reaches(&two));
    assert!(passes() > before, "{}", agents[0].said());
}

#[test]
fn the_vtep_can_be_ipv6_and_the_mtu_follows() {
    let mut lan = Lan::new(2);
    lan.start_etcd();
    let [h1, h2] = &lan.hosts[..] else { panic!() };
    let _agents = [
        h1.ready(&["--etcd", ETCD, "--advertise", "2001:db8::1"]),
        h2.ready(&["--etcd", ETCD, "--advertise", "2001:db8::2"]),
    ];
    h1.create("ov", &["10.42.0.0/16", "fd42::/48"]);
    h2.sync();
    let (one, two) = (Container::new(h1, "ov", "one"), Container::new(h2, "ov", "two"));
    assert_eq!(one.attached.mtu, 1430);
    assert!(one.reaches(&two) && two.reaches(&one));
}

#[test]
fn a_stopped_agent_is_no_longer_alive_and_comes_back_with_its_blocks() {
    let mut lan = Lan::new(2);
    lan.start_etcd();
    let [h1, h2] = &lan.hosts[..] else { panic!() };
    let (_one, mut two) = (h1.ready(&FLAGS), h2.ready(&FLAGS));
    h1.create("ov", &["10.42.0.0/16"]);
    h2.sync();
    let container = Container::new(h2, "ov", "two");
    let alive = |name: &str| {
        let nodes = h1.client().nodes().unwrap();
        let node = nodes.into_iter().find(|node| node.host.name == name).unwrap();
        (node.alive, node.blocks)
    };
    eventually("both are alive", || alive("h2").0);
    let blocks = alive("h2").1;
    assert!(two.end("TERM").success());
    // Revoked, not run out: far sooner than the lease's 30 s.
    eventually("the stopped one is suspect", || !alive("h2").0);
    assert_eq!(alive("h2").1, blocks);
    let output: std::process::Output = h1.ovl_agent(&["node", "rm", "h1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "a living host is not removed without --force");
    let _two = h2.ready(&FLAGS);
    eventually("it is alive again", || alive("h2").0);
    let other = Container::new(h1, "ov", "one");
    assert!(other.reaches(&container));
}

#[test]
fn a_host_that_has_just_failed_is_not_said_to_be_alive() {
    let mut lan = Lan::new(2);
    lan.start_etcd();
    let [h1, h2] = &lan.hosts[..] else { panic!() };
    let (_one, mut two) = (h1.ready(&FLAGS), h2.ready(&FLAGS));
    eventually("it is heard of", || {
        h1.client().nodes().unwrap().iter().any(|node| node.host.name == "h2" && node.alive)
    });
    two.end("KILL");
    let remove = |name: &str| {
        let output = h1.ovl_agent(&["node", "rm", name]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let error = remove("h2");
    assert!(error.contains("host h2 may be alive, it was heard of "), "{error}");
    assert!(error.contains("try again in ") && error.contains("--force"), "{error}");
    assert!(remove("h1").contains("host h1 is this one"));
}

#[test]
fn etcd_is_there() {
    let output = Command::new("etcd").arg("--version").output();
    assert!(
        output.is_ok_and(|output| output.status.success()),
        "these tests need etcd (Debian: etcd-server)"
    );
}
