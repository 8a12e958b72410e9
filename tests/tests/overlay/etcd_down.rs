//! etcd is killed and stays away: what runs goes on, hosts give addresses from the blocks they own, what needs the store says
//! so at once, and when etcd is back nobody has to do anything.

use crate::cluster::{Cluster, Member};
use crate::echo::Pinger;
use crate::flow::Flow;
use std::time::{Duration, Instant};

/// So long it is away. The hosts' leases (30 s) run out meanwhile.
const AWAY: Duration = Duration::from_secs(60);
/// A first ping may take so long; it is not sent again.
const PATIENCE: Duration = Duration::from_secs(5);
/// What needs the store fails within this time.
const AT_ONCE: Duration = Duration::from_secs(3);

const HOSTS: [&str; 3] = ["host1", "host2", "host3"];

/// `lab fail` or `lab heal`.
#[track_caller]
fn lab_does(lab: &Cluster, what: &str) {
    lab.host.weft().run(&format!("lab {what}")).ok();
}

/// A container of each host in the network `ov`.
#[track_caller]
fn one_on_each(lab: &Cluster, prefix: &str) -> Vec<Member> {
    let run = |on: &&str| lab.run(on, &format!("{prefix}-{on}"), "--network ov");
    HOSTS.iter().map(run).collect()
}

/// New containers on all hosts answer their first ping, sent from each of these.
#[track_caller]
fn newcomers(lab: &Cluster, prefix: &str, known: &[Member]) -> Vec<Member> {
    let pingers: Vec<_> = known.iter().map(|from| Pinger::new(&lab.netns_of(from))).collect();
    let mut all = Vec::new();
    for on in HOSTS {
        let one = lab.run(on, &format!("{prefix}-{on}"), "--network ov");
        for (from, pinger) in known.iter().zip(&pingers) {
            let silent = pinger.silent(&one.ips(), PATIENCE);
            assert!(silent.is_empty(), "{prefix}: {} does not reach {silent:?} on {on}", from.name);
        }
        all.push(one);
    }
    all
}

/// `network create` on each host fails in time, and names one of these endpoints.
#[track_caller]
fn creation_fails(lab: &Cluster, endpoints: &[&str]) {
    for on in HOSTS {
        let began = Instant::now();
        let refused = lab.runtime(on, "network create --driver overlay --subnet 10.77.0.0/16 late");
        let took = began.elapsed();
        assert!(refused.code != 0, "there is no store to create it in: {refused}");
        assert!(endpoints.iter().any(|endpoint| refused.stderr.contains(endpoint)), "{refused}");
        assert!(took < AT_ONCE, "{on}: {took:?}: {refused}");
        let listed = lab.runtime(on, "network ls --format '{{.Name}}'").ok().stdout;
        assert!(!listed.contains("late"), "nothing of it is there: {listed}");
    }
}

/// All that must be so some time after etcd's return, with nobody doing anything: the hosts are alive, every host knows of
/// every container, and there can be networks again.
#[track_caller]
fn all_is_well(lab: &Cluster, all: &[&Member]) {
    for on in HOSTS {
        lab.soon("all hosts are alive", || {
            let nodes = lab.exec(on, "ovl-agent node ls").stdout;
            nodes.lines().filter(|line| line.contains(" alive")).count() == HOSTS.len()
        });
        lab.soon("it knows of all containers", || {
            let about = lab.runtime(on, "network inspect ov").ok().json();
            let known = about[0]["Weft"]["Endpoints"].as_array().cloned().unwrap_or_default();
            let names = |member: &&Member| {
                known.iter().any(|endpoint| {
                    endpoint["Host"] == *member.on && endpoint.to_string().contains(&member.v4.to_string())
                })
            };
            known.len() == all.len() && all.iter().all(names)
        });
    }
    lab.soon("there can be networks", || {
        lab.runtime("host2", "network create --driver overlay after").code == 0
    });
    let (one, other) =
        (lab.run("host1", "after1", "--network after"), lab.run("host3", "after3", "--network after"));
    let silent = Pinger::new(&lab.netns_of(&one)).silent(&other.ips(), PATIENCE);
    assert!(silent.is_empty(), "a network made after it: {silent:?}");
    lab.remove(&[&one, &other]);
    lab.runtime("host3", "network rm after").ok();
}

#[track_caller]
fn finish(lab: Cluster, all: &[&Member]) {
    lab.remove(all);
    lab.runtime("host2", "network rm ov").ok();
    lab.down();
}

#[test]
fn a_minute_without_the_only_etcd_stops_nothing_that_runs() {
    let lab = Cluster::bare(3);
    lab.network("--subnet 10.42.0.0/16 --ipv6 ov");
    let first = one_on_each(&lab, "first");
    let flow = Flow::among(&lab, &first.iter().collect::<Vec<_>>());
    lab_does(&lab, "fail etcd");
    let began = Instant::now();
    // Nobody may have noticed yet, and later all have.
    creation_fails(&lab, &["10.99.0.2:2379"]);
    let early = newcomers(&lab, "early", &first);
    // What ends meanwhile ends.
    lab.remove(&[&early[0]]);
    std::thread::sleep((AWAY / 2).saturating_sub(began.elapsed()));
    creation_fails(&lab, &["10.99.0.2:2379"]);
    let late = newcomers(&lab, "late", &first);
    std::thread::sleep(AWAY.saturating_sub(began.elapsed()));
    lab_does(&lab, "heal etcd");
    let all: Vec<&Member> = first.iter().chain(&early[1..]).chain(&late).collect();
    all_is_well(&lab, &all);
    println!("{} pings, none lost", flow.none_lost());
    finish(lab, &all);
}

#[test]
fn one_of_three_etcds_is_enough_to_lose_and_two_stop_nothing_that_runs() {
    let lab = Cluster::up("hosts: 3\netcd: 3\n");
    lab.network("--subnet 10.42.0.0/16 --ipv6 ov");
    let first = one_on_each(&lab, "first");
    let flow = Flow::among(&lab, &first.iter().collect::<Vec<_>>());
    // It may be the leader, and the others need a moment to choose another.
    lab_does(&lab, "fail etcd 1");
    let between = "network create --driver overlay --subnet 10.43.0.0/16 between";
    lab.soon("two of three are a store", || lab.runtime("host3", between).code == 0);
    for on in HOSTS {
        lab.soon("every host knows of it", || lab.runtime(on, "network inspect between").code == 0);
    }
    let early = newcomers(&lab, "early", &first);
    lab_does(&lab, "fail etcd 2");
    let began = Instant::now();
    creation_fails(&lab, &["10.99.0.2:2379", "10.99.0.3:2379", "10.99.0.4:2379"]);
    let late = newcomers(&lab, "late", &first);
    std::thread::sleep(AWAY.saturating_sub(began.elapsed()));
    lab_does(&lab, "heal etcd");
    let all: Vec<&Member> = first.iter().chain(&early).chain(&late).collect();
    all_is_well(&lab, &all);
    println!("{} pings, none lost", flow.none_lost());
    lab.runtime("host1", "network rm between").ok();
    finish(lab, &all);
}
