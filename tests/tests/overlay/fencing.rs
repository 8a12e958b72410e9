//! A host that was declared gone comes back: what was its own is another's now, and it keeps off.

use crate::cluster::{Cluster, Member, answers};
use crate::echo::Pinger;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_millis(400);
/// A host's lease is 30 s.
const SUSPECT: Duration = Duration::from_secs(60);

#[track_caller]
fn nodes(lab: &Cluster) -> String {
    lab.exec("host1", "ovl-agent node ls").ok().stdout
}

#[track_caller]
fn endpoints(lab: &Cluster, on: &str) -> Vec<serde_json::Value> {
    let about = lab.runtime(on, "network inspect ov").ok().json();
    about[0]["Weft"]["Endpoints"].as_array().cloned().unwrap_or_default()
}

#[test]
fn a_host_removed_and_back_leaves_its_addresses_to_whom_they_were_given() {
    let lab = Cluster::bare(3);
    // Four blocks of four addresses. The gateway and each host's own address are not given away.
    lab.network("--subnet 10.42.0.0/28 --opt block-size=30 ov");
    let old = lab.server("host3", "old", "--network ov");
    let one = lab.server("host1", "one", "--network ov");
    let refused = lab.exec("host1", "ovl-agent node rm host3");
    assert!(refused.code != 0 && refused.stderr.contains("host3"), "a living host: {refused}");
    assert!(!nodes(&lab).contains("removed"), "nothing has changed");

    // Cut off, with its container running.
    let lab_does = |what: &str| lab.host.weft().run(&format!("lab {what}")).ok();
    lab_does("fail link host3");
    lab_does("fail agent host3");
    let began = Instant::now();
    while !nodes(&lab).contains("suspect") {
        assert!(began.elapsed() < SUSPECT, "host3 is never suspect: {}", nodes(&lab));
        std::thread::sleep(Duration::from_millis(200));
    }
    let blocks =
        |on: &str| lab.runtime(on, "network inspect ov").ok().json()[0]["Weft"]["Blocks"].to_string();
    assert!(blocks("host1").contains("host3"), "a suspect keeps its blocks: {}", blocks("host1"));
    lab.exec("host1", "ovl-agent node rm host3").ok();
    lab.soon("host3 is removed", || nodes(&lab).contains("removed") || !nodes(&lab).contains("host3"));

    // The others take all there is.
    let mut taken: Vec<Member> = Vec::new();
    for number in 0.. {
        let on = ["host1", "host2"][number % 2];
        let name = format!("n{number}");
        let more = format!("run -d --name {name} --network ov sleep 1000");
        if lab.runtime(on, &more).code != 0 {
            break;
        }
        taken.push(lab.member(on, &name));
    }
    let heir = taken.iter().find(|member| member.v4 == old.v4).cloned();
    let heir = heir.unwrap_or_else(|| panic!("nobody got {}: {taken:?}", old.v4));
    let all: BTreeSet<IpAddr> = taken.iter().map(|member| member.v4).collect();
    assert_eq!(all.len(), taken.len(), "each once: {taken:?}");
    // It says who it is.
    lab.remove(&[&heir]);
    let heir = lab.server(&heir.on, "heir", &format!("--network ov --ip {}", old.v4));
    let said = answers(&lab.netns_of(&one), old.v4, PATIENCE).unwrap_or_default();
    assert!(said.starts_with("heir "), "{said}");

    lab_does("heal link host3");
    lab_does("heal agent host3");
    lab.soon("host3 is back", || {
        nodes(&lab).lines().any(|line| line.starts_with("host3") && line.contains("alive"))
    });
    lab.exec("host3", "ovl-agent sync").ok();
    for from in [&lab.netns_of(&one), &lab.netns("host2")] {
        let said = answers(from, old.v4, PATIENCE).unwrap_or_default();
        assert!(said.starts_with("heir "), "from {}: {said}", from.display());
    }
    let fenced =
        |on: &str| endpoints(&lab, on).iter().any(|one| one["Host"] == "host3" && one["Fenced"] == true);
    lab.soon("the old container is shown as fenced", || fenced("host3") && fenced("host1"));
    let silent = Pinger::new(&lab.netns_of(&old)).silent(&[one.v4], SILENCE);
    assert_eq!(silent, [one.v4], "the old container is cut off");

    // New containers of host3 get what is nobody's.
    let full = lab.runtime("host3", "run -d --name late --network ov sleep 1000");
    assert!(full.code != 0 && full.stderr.contains("no free address"), "{full}");
    let gone = taken.iter().find(|member| member.v4 != old.v4).cloned();
    let gone = gone.unwrap_or_else(|| panic!("{taken:?}"));
    lab.remove(&[&gone]);
    lab.soon("the address that was given back is free", || {
        let run = lab.runtime("host3", "run -d --name late --network ov sleep 1000");
        assert!(run.code == 0 || run.stderr.contains("no free address"), "{run}");
        run.code == 0
    });
    let late = lab.member("host3", "late");
    assert_eq!(late.v4, gone.v4);
    let silent = Pinger::new(&lab.netns_of(&one)).silent(&[late.v4, heir.v4], PATIENCE);
    assert!(silent.is_empty(), "{silent:?}");
    // Host3 has both on it now, the fenced one and one that has a part in the network.
    let said = answers(&lab.netns_of(&late), old.v4, PATIENCE).unwrap_or_default();
    assert!(said.starts_with("heir "), "on its old host: {said}");
    let silent = Pinger::new(&lab.netns_of(&old)).silent(&[one.v4, late.v4], SILENCE);
    assert_eq!(
        silent,
        [one.v4, late.v4].into_iter().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>()
    );
    lab.remove(&[&old]);
    lab.soon("what was fenced is gone", || !fenced("host1"));
    let silent = Pinger::new(&lab.netns_of(&one)).silent(&[heir.v4], PATIENCE);
    assert!(silent.is_empty(), "the heir keeps the address that the fenced one had");
    lab.down();
}
