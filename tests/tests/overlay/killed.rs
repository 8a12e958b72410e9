//! An agent is killed while containers come and go: what was asked for again is there once, what went is free again.

use crate::cluster::{Cluster, Member};
use crate::echo::Pinger;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// So many containers come at once.
const COUNT: usize = 12;
/// So many times the agent is killed in the midst of that.
const ROUNDS: u32 = 6;

/// What a host has of the overlay, each thing a line; what the last pass of its agent leaves.
#[track_caller]
fn looks(lab: &Cluster, host: &str) -> BTreeSet<String> {
    let line =
        "ip -br link; ip route; ip -6 route show proto 87; ip neigh show nud permanent; bridge fdb show
                nft -s list ruleset";
    let shown = lab.sh(host, line).ok().stdout;
    shown.lines().map(|line| line.trim().split("metadata").next().unwrap_or_default().to_owned()).collect()
}

/// The containers that the store knows to be on a host.
#[track_caller]
fn known(lab: &Cluster, on: &str, of: &str) -> BTreeSet<String> {
    let about = lab.runtime(on, "network inspect ov").ok().json();
    let all = about[0]["Weft"]["Endpoints"].as_array().cloned().unwrap_or_default();
    let of = all.iter().filter(|endpoint| endpoint["Host"] == of);
    of.map(|endpoint| endpoint["Container"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn an_agent_killed_in_the_midst_of_attachments_loses_and_doubles_nothing() {
    let lab = Cluster::bare(2);
    lab.network("--subnet 10.42.0.0/16 --opt block-size=28 --ipv6 ov");
    let far = lab.run("host2", "far", "--network ov");
    let pinger = Pinger::new(&lab.netns_of(&far));
    let agent = |what: &str| lab.host.weft().run(&format!("lab {what} agent host1")).ok();
    // The network has been on host1 before, so that what stays of it is no leak.
    let first = lab.run("host1", "first", "--network ov");
    lab.remove(&[&first]);
    lab.exec("host1", "ovl-agent sync").ok();
    let before = looks(&lab, "host1");
    let mut failed = 0;
    for round in 0..ROUNDS {
        let healed = AtomicBool::new(false);
        let members: Vec<Member> = std::thread::scope(|scope| {
            let come_and_go = |at: usize| {
                let (lab, healed) = (&lab, &healed);
                scope.spawn(move || {
                    let name = format!("c{round}-{at}");
                    let line = format!("run -d --name {name} --network ov sleep 1000");
                    let (mut failed, start) = (0, Instant::now());
                    // Until after the agent is back, so that it is killed in the midst of it whatever the machine's speed.
                    loop {
                        let last = healed.load(Ordering::SeqCst);
                        while lab.runtime("host1", &line).code != 0 {
                            assert!(start.elapsed() < Duration::from_secs(40), "{name} never runs");
                            failed += 1;
                            std::thread::sleep(Duration::from_millis(50));
                        }
                        if last {
                            return (failed, lab.member("host1", &name));
                        }
                        lab.runtime("host1", &format!("rm -f {name}")).ok();
                    }
                })
            };
            let threads: Vec<_> = (0..COUNT).map(come_and_go).collect();
            std::thread::sleep(Duration::from_millis(60 + 70 * u64::from(round)));
            agent("fail");
            std::thread::sleep(Duration::from_millis(100));
            agent("heal");
            healed.store(true, Ordering::SeqCst);
            let ended =
                threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| panic!("a run failed")));
            ended
                .map(|(times, member)| {
                    failed += times;
                    member
                })
                .collect()
        });
        let ips: Vec<IpAddr> = members.iter().flat_map(Member::ips).collect();
        assert_eq!(ips.iter().collect::<BTreeSet<_>>().len(), COUNT * 2, "each once: {ips:?}");
        lab.soon("all are reachable", || pinger.silent(&ips, Duration::from_millis(500)).is_empty());
        lab.soon_or(
            "the store knows of these",
            || known(&lab, "host2", "host1").len() == COUNT,
            || {
                let names = lab.runtime("host1", "ps -a --no-trunc").stdout;
                format!("it knows {:#?}, of\n{names}", known(&lab, "host2", "host1"))
            },
        );
        // Half of them go while the agent is down.
        let (some, others) = members.split_at(COUNT / 2);
        lab.remove(&some.iter().collect::<Vec<_>>());
        agent("fail");
        lab.remove(&others.iter().collect::<Vec<_>>());
        agent("heal");
        lab.soon("the store knows of none", || known(&lab, "host2", "host1").is_empty());
        lab.soon("nothing of them is left", || looks(&lab, "host1") == before);
    }
    println!("{failed} runs failed and were tried again");
    assert!(failed > 0, "the agent was killed in the midst of nothing");
    lab.remove(&[&far]);
    lab.runtime("host1", "network rm ov").ok();
    lab.down();
}

#[test]
fn an_address_whose_container_went_while_the_agent_was_down_is_free_again() {
    let lab = Cluster::bare(1);
    // Two blocks of one host, with three addresses for containers.
    lab.network("--subnet 10.42.0.0/29 --opt block-size=30 ov");
    let agent = |what: &str| lab.host.weft().run(&format!("lab {what} agent host1")).ok();
    let all = || (0..3).map(|at| lab.run("host1", &format!("c{at}"), "--network ov")).collect::<Vec<_>>();
    let addresses = |of: &[Member]| of.iter().map(|member| member.v4).collect::<BTreeSet<_>>();
    let before = all();
    let full = lab.runtime("host1", "run -d --name more --network ov sleep 1000");
    assert!(full.code != 0 && full.stderr.contains("no free address"), "{full}");
    agent("fail");
    let absent = lab.runtime("host1", "run -d --name more --network ov sleep 1000");
    assert!(absent.code != 0 && absent.stderr.contains("ovl-agent run"), "{absent}");
    lab.remove(&before.iter().collect::<Vec<_>>());
    agent("heal");
    // All of them are, and none is there twice.
    let again = all();
    assert_eq!(addresses(&again), addresses(&before));
    let pinger = Pinger::new(&lab.netns("host1"));
    let ips: Vec<IpAddr> = again.iter().map(|member| member.v4).collect();
    assert!(pinger.silent(&ips, Duration::from_secs(3)).is_empty(), "{ips:?}");
    // One by one, each time with another agent.
    for member in &again {
        agent("fail");
        lab.remove(&[member]);
        agent("heal");
        let next = lab.run("host1", &member.name, "--network ov");
        assert_eq!(next.v4, member.v4);
    }
    lab.remove(&again.iter().collect::<Vec<_>>());
    lab.runtime("host1", "network rm ov").ok();
    lab.down();
}
