//! The agent on one host, with the store of that host alone: what it makes in the kernel, and what it leaves there.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod support;

use net::firewall::nft::{Content, Kind, NetnsMark, Nftables, Record, Records};
use net::firewall::{Firewall, PortMapping, Protocol, PublishOptions};
use ovl_api::wire::{Attach, NetworkCreate, ProblemKind};
use support::container::Container;
use support::{Host, eventually};

/// What the agent answers for in the kernel, without the links' numbers.
fn state(host: &Host) -> [String; 4] {
    [
        host.routes(),
        host.space.ok("ip -br addr show type vxlan"),
        host.space.ok("ip neigh show nud permanent | sort; ip -6 neigh show nud permanent | sort"),
        host.space.ok("nft list ruleset"),
    ]
}

#[test]
fn an_attachment_is_in_the_kernel_when_it_is_answered_and_goes_with_the_last_one() {
    let host = Host::alone("h1");
    let agent = host.ready(&[]);
    let network = host.create("ov", &["10.42.0.0/16", "fd42::/48"]);
    let device = ovl_api::names::device(&network.id);
    assert!(
        !host.space.run(&format!("ip link show {device}")).status.success(),
        "a device without a container"
    );
    let one = Container::new(&host, "ov", "one");
    assert_eq!(one.attached.mtu, 1450);
    let link = host.space.ok(&format!("ip -d link show {device}"));
    assert!(link.contains(&format!("vxlan id {} local 192.0.2.1", network.vni)), "{link}");
    let routes = host.routes();
    assert!(
        routes.contains("unreachable 10.42.0.0/16") && routes.contains("unreachable fd42::/48"),
        "{routes}"
    );
    let two = Container::new(&host, "ov", "two");
    assert!(one.reaches(&two) && two.reaches(&one));
    one.detach(&host);
    two.detach(&host);
    eventually("the device is gone", || !host.space.run(&format!("ip link show {device}")).status.success());
    eventually("the routes are gone", || host.routes().is_empty());
    let said = agent.said();
    assert!(said.contains(&format!("VXLAN device {device}")), "{said}");
    host.client().remove_network("ov").unwrap();
}

#[test]
fn what_somebody_deletes_is_back_after_a_sync() {
    let host = Host::alone("h1");
    let agent = host.ready(&[]);
    let network = host.create("ov", &["10.42.0.0/16", "fd42::/48"]);
    // The host's half of the containers' links was never there.
    let (one, two) = (Container::half(&host, "ov", "one"), Container::half(&host, "ov", "two"));
    host.sync();
    assert!(one.reaches(&two));
    let device = ovl_api::names::device(&network.id);
    for deed in [
        format!("ip link del {device}"),
        "ip route flush proto 87; ip -6 route flush proto 87".to_owned(),
        format!("ip neigh flush dev {} nud permanent", one.veth),
        "nft delete table inet weft-overlay".to_owned(),
    ] {
        let before = state(&host);
        // It would be back before one can look.
        agent.signal("STOP");
        host.space.ok(&deed);
        assert_ne!(before, state(&host), "{deed} did nothing");
        agent.signal("CONT");
        host.sync();
        assert!(one.reaches(&two) && two.reaches(&one), "after {deed}");
        assert_eq!(before, state(&host), "after {deed}");
    }
    assert!(agent.said().contains("was missing: restored"), "{}", agent.said());
    let metrics = support::curl(&host.socket(), &["http://a/metrics"]).1;
    let mended =
        metrics.lines().find_map(|line| line.strip_prefix("weft_overlay_kernel_drift_mended_total "));
    assert!(mended.unwrap().parse::<u64>().unwrap() > 4, "{metrics}");
}

#[test]
fn a_pass_over_a_kernel_as_it_should_be_changes_nothing_and_says_nothing() {
    let host = Host::alone("h1");
    let agent = host.ready(&[]);
    host.create("ov", &["10.42.0.0/16", "fd42::/48"]);
    let _one = Container::new(&host, "ov", "one");
    host.sync();
    let said = agent.said();
    for _ in 0..3 {
        host.sync();
    }
    assert_eq!(agent.said(), said);
}

#[test]
fn an_agent_that_ends_well_or_not_leaves_the_kernel_and_its_successor_mends_it() {
    let host = Host::alone("h1");
    let mut agent = host.ready(&[]);
    let network = host.create("ov", &["10.42.0.0/16", "fd42::/48"]);
    let (one, two) = (Container::new(&host, "ov", "one"), Container::new(&host, "ov", "two"));
    host.sync();
    let before = state(&host);
    for signal in ["TERM", "KILL"] {
        agent.end(signal);
        assert_eq!(state(&host), before, "after SIG{signal}");
        assert!(one.reaches(&two));
        agent = host.ready(&[]);
        assert_eq!(state(&host), before, "after the start that follows SIG{signal}");
    }
    agent.end("KILL");
    let device = ovl_api::names::device(&network.id);
    host.space.ok(&format!("ip link del {device}; ip route del {}", one.addresses()[0]));
    assert!(!two.reaches(&one));
    let _agent = host.ready(&[]);
    assert_eq!(state(&host), before);
    assert!(one.reaches(&two) && two.reaches(&one));
    // The same attachment is not given twice, also by the successor.
    let again = Attach {
        network: "ov".into(),
        container: "one".into(),
        ifname: "eth0".into(),
        veth: one.veth.clone(),
        ..Attach::default()
    };
    assert_eq!(host.client().attach(&again).unwrap_err().problem().unwrap().kind, ProblemKind::Duplicate);
}

#[test]
fn a_subnet_that_overlaps_a_route_of_the_host_is_refused_by_name() {
    let host = Host::alone("h1");
    let _agent = host.ready(&[]);
    host.space.ok("ip link add lan0 type veth peer name lan1; ip link set lan0 up; ip link set lan1 up");
    host.space.ok("ip route add 10.42.7.0/24 dev lan0");
    let create = |subnet: &str| {
        let create = NetworkCreate {
            name: "ov".into(),
            subnets: vec![subnet.parse().unwrap()],
            ..NetworkCreate::default()
        };
        host.client().create_network(&create)
    };
    for (subnet, words) in
        [("10.42.0.0/16", "route 10.42.7.0/24 on lan0"), ("192.0.2.0/24", "address 192.0.2.1/24 of eth0")]
    {
        let error = create(subnet).unwrap_err();
        let problem = error.problem().unwrap();
        assert_eq!(
            (problem.kind, problem.field.as_deref()),
            (ProblemKind::Taken, Some("--subnet")),
            "{problem}"
        );
        assert!(problem.message.contains(words) && problem.message.contains(subnet), "{problem}");
    }
    assert_eq!(host.client().networks().unwrap(), vec![]);
    // The route comes after the network: its first attachment here is refused, and holds nothing.
    host.space.ok("ip route del 10.42.7.0/24");
    create("10.42.0.0/16").unwrap();
    host.space.ok("ip route add 10.42.7.0/24 dev lan0");
    let ask = Attach {
        network: "ov".into(),
        container: "c".into(),
        ifname: "eth0".into(),
        veth: "vc".into(),
        ..Attach::default()
    };
    let error = host.client().attach(&ask).unwrap_err();
    let problem = error.problem().unwrap();
    assert_eq!(problem.kind, ProblemKind::Taken, "{problem}");
    assert!(problem.message.contains("route 10.42.7.0/24 on lan0"), "{problem}");
    assert_eq!(host.client().network_detail("ov").unwrap().endpoints, vec![]);
    host.space.ok("ip route del 10.42.7.0/24");
    host.client().attach(&ask).unwrap();
}

#[test]
fn many_attachments_at_once_are_all_in_the_kernel_and_distinct() {
    let host = Host::alone("h1");
    let _agent = host.ready(&[]);
    host.create("ov", &["10.42.0.0/16"]);
    let attach = |number: usize| {
        let ask = Attach {
            network: "ov".into(),
            container: format!("c{number}"),
            ifname: "eth0".into(),
            veth: format!("v{number}"),
            ..Attach::default()
        };
        host.client().attach(&ask).unwrap().addresses[0]
    };
    let mut given: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|t| scope.spawn(move || (t * 20..t * 20 + 20).map(attach).collect::<Vec<_>>()))
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    given.sort();
    given.dedup();
    assert_eq!(given.len(), 160);
}

#[test]
fn an_attachment_that_the_kernel_does_not_take_is_refused_and_undone() {
    let host = Host::alone("h1");
    let agent = host.ready(&[]);
    let network = host.create("ov", &["10.42.0.0/16"]);
    // The VNI is another product's on this host.
    let vni = network.vni;
    host.space.ok(&format!(
        "ip link add foreign type vxlan id {vni} local 192.0.2.1 dstport 4789 && ip link set foreign up"
    ));
    let ask = Attach {
        network: "ov".into(),
        container: "c".into(),
        ifname: "eth0".into(),
        veth: "vc".into(),
        ..Attach::default()
    };
    let error = host.client().attach(&ask).unwrap_err();
    let problem = error.problem().unwrap();
    assert_eq!(problem.kind, ProblemKind::NotReady, "{problem}");
    assert!(problem.message.contains("network ov") && problem.message.contains("kernel"), "{problem}");
    assert_eq!(host.client().network_detail("ov").unwrap().endpoints, vec![]);
    assert!(
        host.space.ok("ip -d link show foreign").contains(&format!("vxlan id {vni}")),
        "it is left alone"
    );
    // Another network is not held up by it, and this one works when the other product is gone.
    host.create("other", &["10.43.0.0/16"]);
    let other = Container::new(&host, "other", "o");
    host.space.ok("ip link del foreign");
    let attached = support::within(|| host.client().attach(&ask).is_ok());
    assert!(attached, "{}", agent.said());
    drop(other);
}

#[test]
fn flushed_rules_of_plugins_are_back_at_once() {
    let host = Host::alone("h1");
    let _agent = host.ready(&[]);
    let path = host.space.path();
    let netns = net::Netns::open(&path).unwrap();
    let owner = |id: &str| net::Owner::new("web", id, "eth0");
    // What portmap does in an ADD.
    let publish = |id: &str, host_port: u16| {
        let records = Records::below(&host.run_dir().join("rules")).unwrap();
        let addresses = vec!["10.5.0.2/24".parse().unwrap()];
        let ports =
            vec![PortMapping { host_ip: None, host_port, container_port: 80, protocol: Protocol::Tcp }];
        let content = Content::Ports {
            addresses: addresses.clone(),
            ports: ports.clone(),
            snat: true,
            masq_all: false,
        };
        let mark = NetnsMark { path: path.clone(), id: netns.id() };
        records.put(&Record { owner: owner(id), netns: Some(mark), content }).unwrap();
        let mut nft = Nftables::open().unwrap().with_records(records.clone());
        nft.publish(&owner(id), &addresses, &ports, &PublishOptions::default()).unwrap();
        records
    };
    let records = netns.run(|| publish("c1", 8080)).unwrap();
    let before = host.space.ok("nft list table inet weft");
    for removal in ["nft flush ruleset", "nft flush table inet weft", "nft delete table inet weft"] {
        host.space.ok(removal);
        eventually(removal, || host.space.run("nft list table inet weft").stdout == before.as_bytes());
    }
    // What has ended stays away.
    netns.run(|| publish("c2", 8081)).unwrap();
    records.remove(&owner("c1"), Kind::Ports);
    host.space.ok("nft flush ruleset");
    let ports = || String::from_utf8(host.space.run("nft list map inet weft ports4").stdout).unwrap();
    eventually("the other's port", || ports().contains("8081"));
    assert!(!ports().contains("8080"), "{}", ports());
}
