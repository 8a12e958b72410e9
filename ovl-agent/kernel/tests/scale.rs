//! How long passes take with 5,000 hosts and 20,000 blocks in one network, and what they keep in memory:
//! `cargo test -p ovl-kernel --release --test scale -- --ignored --nocapture`
#![allow(clippy::unwrap_used)] // a failed unwrap in a test's helper is the failure report, too

mod common;

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use common::*;
use ipnetwork::IpNetwork;
use ovl_api::model::{Delta, Network, Subnet, View};

const HOSTS: u32 = 5_000;
const BLOCKS_EACH: u32 = 4;

fn block(number: u32) -> IpNetwork {
    let first = u32::from(Ipv4Addr::new(10, 64, 0, 0)) + 64 * number;
    IpNetwork::new(IpAddr::from(Ipv4Addr::from(first)), 26).unwrap()
}

fn name(number: u32) -> String {
    format!("host{number}")
}

fn big_view() -> View {
    let subnet = Subnet { subnet: prefix("10.64.0.0/10"), gateway: ip("10.64.0.1"), block: 26 };
    let network = Network { subnets: vec![subnet], ..network() };
    let one = endpoint("one", &["10.64.0.5"]);
    let mut view = view("host0", &[], &[network], &[], &[one]);
    for number in 0..HOSTS {
        let vtep = Ipv4Addr::from(u32::from(Ipv4Addr::new(172, 16, 0, 1)) + number);
        view.hosts.insert(name(number), host(&name(number), &vtep.to_string(), None));
        for piece in 0..BLOCKS_EACH {
            view.owners.insert((ID.into(), block(number + piece * HOSTS)), name(number));
        }
    }
    view
}

/// (VmRSS, VmHWM) in KiB.
fn memory() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    (field("VmRSS:"), field("VmHWM:"))
}

fn timed<T>(what: &str, f: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = f();
    println!("{what}: {:.2} ms", start.elapsed().as_secs_f64() * 1e3);
    result
}

#[test]
#[ignore = "measures, and says so"]
fn scale() {
    if !kernel_has_vxlan() {
        return;
    }
    net::testns::in_fresh(|| {
        let mut host0 = TestHost::new("host0", &["172.16.0.1/12"]);
        let mut view = big_view();
        println!("before the first pass: RSS {} KiB", memory().0);
        let changes = timed("first full pass, empty kernel", || host0.full(&view));
        assert!(changes.is_complete(), "{changes:#?}");
        let (rss, peak) = memory();
        println!("after it: RSS {rss} KiB, peak {peak} KiB; {} lines", changes.lines.len());
        assert!(timed("full pass with nothing to do", || host0.full(&view)).is_empty());
        let count: usize = host0.sh("ip route show proto 87 | wc -l").trim().parse().unwrap();
        assert_eq!(count, ((HOSTS - 1) * BLOCKS_EACH + 1) as usize);

        for round in 0..5 {
            let new = block(HOSTS * BLOCKS_EACH + round);
            view.owners.insert((ID.into(), new), name(77));
            let delta = Delta { blocks: [(ID.into(), new)].into(), ..Delta::default() };
            let changes = timed("a block more", || host0.delta(&view, &delta));
            assert_eq!(changes.lines.len(), 1, "{changes:#?}");
        }
        let moved = block(HOSTS * BLOCKS_EACH);
        view.owners.insert((ID.into(), moved), name(78));
        let delta = Delta { blocks: [(ID.into(), moved)].into(), ..Delta::default() };
        let changes = timed("a block moves to another host", || host0.delta(&view, &delta));
        assert_eq!(changes.lines.len(), 1, "{changes:#?}");

        let newcomer = host("newcomer", "172.20.0.1", None);
        view.hosts.insert("newcomer".into(), newcomer);
        let new = block(HOSTS * BLOCKS_EACH + 9);
        view.owners.insert((ID.into(), new), "newcomer".into());
        let delta = Delta {
            hosts: ["newcomer".to_owned()].into(),
            blocks: [(ID.into(), new)].into(),
            ..Delta::default()
        };
        let changes = timed("a host more, with a block", || host0.delta(&view, &delta));
        assert_eq!(changes.lines.len(), 4, "{changes:#?}");
        view.hosts.remove("newcomer");
        view.owners.remove(&(ID.into(), new));
        let changes = timed("that host goes", || host0.delta(&view, &delta));
        assert_eq!(changes.lines.len(), 4, "{changes:#?}");
        assert!(timed("full pass with nothing to do", || host0.full(&view)).is_empty());

        let two = endpoint("two", &["10.64.0.6"]);
        view.endpoints.insert(two.veth.clone(), two);
        let delta = Delta { networks: [ID.to_owned()].into(), ..Delta::default() };
        assert!(timed("a container more", || host0.delta(&view, &delta)).is_empty());
        host0.sh(&format!("ip link del {DEV}"));
        let changes = timed("full pass, the device deleted by hand", || host0.full(&view));
        assert!(changes.is_complete());
        view.endpoints.clear();
        let changes = timed("the last container goes", || host0.delta(&view, &delta));
        assert!(changes.is_complete());
        assert_eq!(host0.sh("ip route show proto 87"), "");
        let (rss, peak) = memory();
        println!("at the end: RSS {rss} KiB, peak {peak} KiB");
    });
}
