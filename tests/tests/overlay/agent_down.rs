//! An agent is killed, or somebody deletes what it made in the kernel: the others notice nothing, and it puts all back.

use crate::cluster::{Cluster, Member};
use crate::echo::Pinger;
use crate::flow::Flow;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// So long the agent is dead.
const DEAD: Duration = Duration::from_secs(60);
/// A running agent looks at the kernel once a minute at least; and some time for a busy machine.
const A_MINUTE: Duration = Duration::from_secs(75);
const PATIENCE: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_millis(400);

/// What host1's kernel shows, with no numbers of links: a device that is made anew has another.
#[track_caller]
fn shown(lab: &Cluster) -> BTreeSet<String> {
    let without = |line: &String| {
        let line = line.split_once(": ").map_or(line.as_str(), |(_, rest)| rest);
        let rest = line.split_once(": ").filter(|(number, _)| number.parse::<u32>().is_ok());
        rest.map_or(line, |(_, rest)| rest).to_owned()
    };
    lab.kernel_of(&["host1"]).iter().map(without).collect()
}

/// The device of the network `ov`.
#[track_caller]
fn device(lab: &Cluster) -> String {
    let about = lab.runtime("host1", "network inspect ov").ok().json();
    let device = about[0]["Weft"]["Device"].as_str().unwrap_or_default().to_owned();
    assert!(device.starts_with("vx-"), "{about}");
    device
}

/// Deletes host1's route to the block of a container, and the entry that says where its host is.
#[track_caller]
fn cut(lab: &Cluster, device: &str, to: &Member, vtep: &str) {
    lab.sh(
        "host1",
        &format!("ip route del $(ip route show match {} dev {device} | cut -d' ' -f1) dev {device}", to.v4),
    )
    .ok();
    let entry = format!("bridge fdb show dev {device} | grep 'dst {vtep} ' | cut -d' ' -f1");
    lab.sh("host1", &format!("bridge fdb del $({entry}) dev {device} dst {vtep}")).ok();
}

#[track_caller]
fn reach(lab: &Cluster, from: &Member, to: &Member, patience: Duration) -> bool {
    Pinger::new(&lab.netns_of(from)).silent(&to.ips(), patience).is_empty()
}

struct Site {
    lab: Cluster,
    members: Vec<Member>,
    flow: Flow,
}

impl Site {
    /// Three hosts with a container each, those of host2 and host3 ping each other.
    #[track_caller]
    fn set_up() -> Site {
        let lab = Cluster::bare(3);
        lab.network("--subnet 10.42.0.0/16 --ipv6 ov");
        let run = |at| lab.run(&format!("host{at}"), &format!("c{at}"), "--network ov");
        let members: Vec<Member> = (1..=3).map(run).collect();
        lab.exec("host1", "ovl-agent sync").ok();
        let flow = Flow::among(&lab, &[&members[1], &members[2]]);
        Site { lab, members, flow }
    }

    #[track_caller]
    fn finish(self) {
        println!("{} pings among the others, none lost", self.flow.none_lost());
        self.lab.remove(&self.members.iter().collect::<Vec<_>>());
        self.lab.runtime("host1", "network rm ov").ok();
        self.lab.down();
    }
}

#[test]
fn an_agent_that_was_dead_for_a_minute_puts_back_what_was_deleted_meanwhile() {
    let site = Site::set_up();
    let (lab, [one, two, three]) = (&site.lab, &site.members[..]) else { panic!("three containers") };
    let (before, device) = (shown(lab), device(lab));
    lab.host.weft().run("lab fail agent host1").ok();
    let began = Instant::now();
    assert!(reach(lab, one, two, PATIENCE) && reach(lab, three, one, PATIENCE), "nobody needs the agent");
    cut(lab, &device, two, "10.99.0.12");
    assert!(!reach(lab, one, two, SILENCE) && reach(lab, one, three, PATIENCE), "half of it is gone");
    lab.sh("host1", &format!("ip link del {device}")).ok();
    assert!(!reach(lab, one, three, SILENCE), "its device is gone");
    std::thread::sleep(DEAD.saturating_sub(began.elapsed()));
    assert!(before.difference(&shown(lab)).count() > 5, "nothing is put back without it");
    lab.host.weft().run("lab heal agent host1").ok();
    let healed = Instant::now();
    lab.soon("all is back", || shown(lab) == before);
    println!("all was back {:.2?} after `lab heal agent` returned", healed.elapsed());
    for (from, to) in [(one, two), (one, three), (two, one), (three, one)] {
        assert!(reach(lab, from, to, PATIENCE), "{} to {}", from.name, to.name);
    }
    site.finish();
}

#[test]
fn a_running_agent_puts_back_what_somebody_deletes() {
    let site = Site::set_up();
    let (lab, [one, two, three]) = (&site.lab, &site.members[..]) else { panic!("three containers") };
    let (before, device) = (shown(lab), device(lab));
    let back = |what: &str| {
        let began = Instant::now();
        while shown(lab) != before {
            assert!(began.elapsed() < A_MINUTE, "{what}: {:?}", before.symmetric_difference(&shown(lab)));
            std::thread::sleep(Duration::from_millis(50));
        }
        println!("{what}: back after {:.2?}", began.elapsed());
        for (from, to) in [(one, two), (one, three), (two, one), (three, one)] {
            assert!(reach(lab, from, to, PATIENCE), "{what}: {} to {}", from.name, to.name);
        }
    };
    cut(lab, &device, two, "10.99.0.12");
    back("a route and a forwarding entry");
    lab.sh("host1", &format!("ip link del {device}")).ok();
    back("the device");
    site.finish();
}
