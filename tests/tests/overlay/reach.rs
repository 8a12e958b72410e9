//! Containers of a network reach each other on whichever host they are, from the first packet on.

use crate::cluster::Cluster;
use crate::echo::Pinger;
use std::net::IpAddr;
use std::time::Duration;

/// So long may an answer take. A packet that was lost is not sent again.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many times the first ping is looked at.
const TIMES: usize = 20;

#[test]
fn every_container_reaches_every_other_by_ipv4_and_ipv6() {
    let lab = Cluster::bare(3);
    lab.network("--subnet 10.42.0.0/16 ov");
    lab.network("--subnet 10.52.0.0/16 --ipv6 six");
    for network in ["ov", "six"] {
        let start = |at: usize| {
            // Two on a host: the way to a neighbour is another one than that to a host.
            let on = format!("host{}", at / 2 + 1);
            lab.run(&on, &format!("{network}{at}"), &format!("--network {network}"))
        };
        let members: Vec<_> = (0..6).map(start).collect();
        let all: Vec<IpAddr> = members.iter().flat_map(|member| member.ips()).collect();
        assert_eq!(all.len(), if network == "six" { 12 } else { 6 }, "{members:?}");
        for from in &members {
            let silent = Pinger::new(&lab.netns_of(from)).silent(&all, PATIENCE);
            assert!(silent.is_empty(), "{network}: {} does not reach {silent:?}", from.name);
        }
        // So does their host, and the user's ping.
        let far = &members[5];
        for ip in far.ips() {
            lab.runtime("host1", &format!("exec {network}0 ping -c 1 -W 2 {ip}")).ok();
            lab.sh("host3", &format!("ping -c 1 -W 2 {ip}")).ok();
        }
        lab.remove(&members.iter().collect::<Vec<_>>());
    }
    lab.runtime("host3", "network rm ov six").ok();
    lab.down();
}

#[test]
fn a_container_answers_the_first_ping_sent_after_run_returned() {
    let lab = Cluster::bare(3);
    lab.network("--subnet 10.42.0.0/16 --ipv6 ov");
    let one = lab.run("host1", "one", "--network ov");
    let pinger = Pinger::new(&lab.netns_of(&one));
    let mut lost = Vec::new();
    for round in 0..TIMES {
        let late = lab.run("host3", "late", "--network ov");
        let silent = pinger.silent(&late.ips(), PATIENCE);
        if !silent.is_empty() {
            // What the kernels know then tells why; later it does not.
            println!("round {round}: {silent:?}; again: {:?}", pinger.silent(&late.ips(), PATIENCE));
            let known = "ip addr; ip -6 route; ip neigh; ip -6 neigh; nstat -as | grep -v ' 0 '";
            println!("late: {}\none: {}", lab.sh_in(&late, known).stdout, lab.sh_in(&one, known).stdout);
            for host in ["host1", "host3"] {
                println!(
                    "{host}: {}\n{}",
                    lab.sh(host, known).stdout,
                    lab.exec(host, "ovl-agent status").stdout
                );
            }
        }
        lost.extend(silent.into_iter().map(|ip| (round, ip)));
        lab.remove(&[&late]);
    }
    assert!(lost.is_empty(), "{lost:?}");
    // The same addresses again and again, on one host and on another: what was known of them is out of date.
    for round in 0..TIMES {
        let on = ["host2", "host3", "host3"][round % 3];
        lab.runtime(
            on,
            "run -d --name same --network ov --ip 10.42.77.7 --mac-address 02:00:00:00:77:07 sleep 1000",
        )
        .ok();
        let ip = "10.42.77.7".parse().unwrap();
        lost.extend(pinger.silent(&[ip], PATIENCE).into_iter().map(|ip| (round, ip)));
        lab.runtime(on, "rm -f same").ok();
    }
    assert!(lost.is_empty(), "the same address: {lost:?}");
    lab.remove(&[&one]);
    lab.down();
}

#[test]
fn the_first_container_of_a_host_answers_the_first_ping() {
    let lab = Cluster::bare(3);
    let flags: Vec<String> = (0..TIMES)
        .map(|at| {
            lab.network(&format!("--subnet 10.{}.0.0/16 --subnet fd42:{at:x}::/48 n{at}", 100 + at));
            format!("--network n{at}")
        })
        .collect();
    // One on all of them.
    let one = lab.run("host1", "one", &flags.join(" "));
    let pinger = Pinger::new(&lab.netns_of(&one));
    let mut lost = Vec::new();
    for (at, network) in flags.iter().enumerate() {
        // host3 has no block there yet. An address that was asked for needs no look at the container in between.
        let asked = format!("10.{}.9.9", 100 + at);
        let (flags, ips) = match at % 2 {
            0 => (network.clone(), None),
            _ => (format!("{network} --ip {asked}"), Some(vec![asked.parse().unwrap()])),
        };
        let name = format!("late{at}");
        lab.runtime("host3", &format!("run -d --name {name} {flags} sleep 1000")).ok();
        let ips = ips.unwrap_or_else(|| lab.member("host3", &name).ips());
        lost.extend(pinger.silent(&ips, PATIENCE));
    }
    assert!(lost.is_empty(), "{lost:?}");
    lab.down();
}

#[test]
fn two_hosts_that_begin_at_the_same_moment_reach_each_other() {
    let lab = Cluster::bare(3);
    let mut lost = Vec::new();
    for at in 0..TIMES / 2 {
        lab.network(&format!("--subnet 10.{}.0.0/16 --ipv6 n{at}", 100 + at));
        let start = &|on: &str| lab.run(on, &format!("{on}-{at}"), &format!("--network n{at}"));
        let members = std::thread::scope(|scope| {
            let each = ["host2", "host3"].map(|on| scope.spawn(move || start(on)));
            each.map(|thread| thread.join().unwrap())
        });
        for (from, to) in [(0, 1), (1, 0)] {
            let pinger = Pinger::new(&lab.netns_of(&members[from]));
            lost.extend(pinger.silent(&members[to].ips(), PATIENCE).into_iter().map(|ip| (at, from, ip)));
        }
    }
    assert!(lost.is_empty(), "{lost:?}");
    lab.down();
}
