//! A node's name, identity, state directory and machine come apart: running containers keep their network, no address is given
//! twice, and the error of an attachment says what is wrong and what helps.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod support;

use ovl_api::wire::{Attach, Problem, ProblemKind};
use std::process::Command;
use support::container::Container;
use support::lan::{ETCD, Lan};
use support::{Host, eventually};

const FLAGS: [&str; 2] = ["--etcd", ETCD];

/// The flags of an agent with another name than its host's.
fn named(name: &str) -> Vec<&str> {
    [&FLAGS[..], &["--node-name", name]].concat()
}

/// The error of an attachment on a host where it cannot succeed.
#[track_caller]
fn refused(host: &Host, network: &str) -> Problem {
    let ask = Attach {
        network: network.into(),
        container: "more".into(),
        ifname: "eth0".into(),
        veth: "vmore".into(),
        ..Attach::default()
    };
    host.client().attach(&ask).unwrap_err().problem().unwrap().clone()
}

/// Copies the state directory of one host's agent to another, as a cloned disk has it.
fn copy_state(from: &Host, to: &Host) {
    let done = Command::new("cp").arg("-a").args([from.root(), to.root()]).status().unwrap();
    assert!(done.success());
}

fn refusal(host: &Host) -> String {
    host.client().status(None).ok().and_then(|status| status.store_error).unwrap_or_default()
}

#[test]
fn cloned_state_is_refused_while_the_original_runs() {
    let mut lan = Lan::new(3);
    lan.start_etcd();
    let [h1, h2, h3] = &lan.hosts[..] else { panic!() };
    let (mut first, _third) = (h1.ready(&FLAGS), h3.ready(&FLAGS));
    h1.create("ov", &["10.42.0.0/16"]);
    h3.sync();
    let (one, three) = (Container::new(h1, "ov", "one"), Container::new(h3, "ov", "three"));
    copy_state(h1, h2);
    let _second = h2.start(&named("h1"));
    eventually("the copy is refused", || refusal(h2).contains("another running agent has the identity"));
    let problem = refused(h2, "ov");
    assert_eq!(problem.kind, ProblemKind::NotReady);
    for part in ["identity of node h1", "VTEP 192.0.2.1", "copied", "--node-name", "stop the agent there"] {
        assert!(problem.message.contains(part), "{part}: {}", problem.message);
    }
    assert!(h2.client().healthz().is_err());
    assert!(one.reaches(&three) && three.reaches(&one));
    // The original goes on, through a restart too, and is not disturbed by the copy that waits.
    first.end("KILL");
    let mut first = h1.ready(&FLAGS);
    let more = Container::new(h1, "ov", "four");
    assert!(more.reaches(&three) && one.reaches(&three));
    assert!(refusal(h2).contains("another running agent has the identity"), "{}", refusal(h2));
    // Once it has ended, the copy has the identity, and the original is the one that is refused.
    first.end("TERM");
    eventually("the copy has taken over", || h2.client().healthz().is_ok());
    let _first = h1.start(&FLAGS);
    eventually("the original is refused", || refusal(h1).contains("VTEP 192.0.2.2"));
}

#[test]
fn reinstalled_node_takes_its_name_back_when_no_container_can_be_alive() {
    let mut lan = Lan::new(2);
    lan.start_etcd();
    let h2 = &lan.hosts[1];
    let ([_first, mut second], [one, _two]) = lan.pair();
    let reinstall = || {
        std::fs::remove_dir_all(h2.root()).unwrap();
        h2.space.run("ip link del vtwo");
    };
    // At its old address nothing has to be said.
    second.end("TERM");
    reinstall();
    let mut second = h2.ready(&FLAGS);
    let three = Container::new(h2, "ov", "three");
    assert!(one.reaches(&three) && three.reaches(&one));
    three.detach(h2);
    // At another one it may be another machine.
    second.end("TERM");
    reinstall();
    h2.space.ok("ip addr del 192.0.2.2/24 dev eth0; ip addr add 192.0.2.22/24 dev eth0");
    h2.space.ok("ip route replace default via 192.0.2.254 dev eth0");
    let mut second = h2.start(&FLAGS);
    eventually("the name is refused", || refusal(h2).contains("--take-over"));
    let problem = refused(h2, "ov");
    assert_eq!(problem.kind, ProblemKind::NotReady);
    assert!(problem.message.contains("another host is registered as h2 (VTEP 192.0.2.2)"), "{problem}");
    assert!(problem.message.contains("--take-over") && problem.message.contains("node rm h2"), "{problem}");
    second.end("TERM");
    let _second = h2.ready(&[&FLAGS[..], &["--take-over"]].concat());
    let four = Container::new(h2, "ov", "four");
    assert!(one.reaches(&four) && four.reaches(&one));
}

/// What the state directory is after a disaster.
#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    /// A backup, in its place.
    Restored,
    /// A backup, in the same directory.
    Overwritten,
    /// Not there.
    Lost,
}

fn backup(host: &Host) -> std::path::PathBuf {
    host.dir.path().join("backup")
}

fn save(host: &Host) {
    let done = Command::new("cp").arg("-a").args([host.root(), backup(host)]).status().unwrap();
    assert!(done.success());
}

fn restore(host: &Host, state: State) {
    let root = host.root();
    match state {
        State::Overwritten => assert!(
            Command::new("find").arg(&root).args(["-mindepth", "1", "-delete"]).status().unwrap().success()
        ),
        State::Restored | State::Lost => std::fs::remove_dir_all(&root).unwrap(),
    }
    if state != State::Lost {
        let done = Command::new("cp").arg("-aT").args([backup(host), root]).status().unwrap();
        assert!(done.success());
    }
}

fn keeps_containers(state: State) {
    let mut lan = Lan::new(2);
    lan.start_etcd();
    let [h1, h2] = &lan.hosts[..] else { panic!() };
    let (_first, mut second) = (h1.ready(&FLAGS), h2.ready(&FLAGS));
    h1.create("ov", &["10.42.0.0/16", "fd42::/48"]);
    h2.sync();
    let (one, two) = (Container::new(h1, "ov", "one"), Container::new(h2, "ov", "two"));
    let gone = Container::new(h2, "ov", "gone");
    save(h2);
    h1.create("late", &["10.43.0.0/16"]);
    h2.sync();
    gone.detach(h2);
    let (three, four) = (Container::new(h2, "ov", "three"), Container::new(h2, "late", "four"));
    let far = Container::new(h1, "late", "far");
    let connected = || one.reaches(&two) && three.reaches(&one) && two.reaches(&three) && far.reaches(&four);
    assert!(connected());
    second.end("TERM");
    restore(h2, state);
    let mut second = h2.ready(&FLAGS);
    h2.sync();
    assert!(connected(), "{state:?}");
    let more: Vec<Container> =
        (0..5).map(|number| Container::new(h2, "ov", &format!("more{number}"))).collect();
    let all: Vec<_> = [&two, &three].into_iter().chain(&more).flat_map(Container::addresses).collect();
    let different: std::collections::BTreeSet<_> = all.iter().collect();
    assert_eq!(different.len(), all.len(), "{state:?}: {all:?}");
    assert!(connected() && more.iter().all(|more| more.reaches(&one)), "{state:?}");
    // They are known as before, and end as others do.
    second.end("KILL");
    let _second = h2.ready(&FLAGS);
    assert!(connected(), "{state:?}");
    three.detach(h2);
    four.detach(h2);
    eventually("the containers are known", || {
        let detail = h1.client().network_detail("ov").unwrap();
        let on = detail.endpoints.into_iter().filter(|endpoint| endpoint.host == "h2");
        let names: Vec<String> = on.map(|endpoint| endpoint.container).collect();
        names.contains(&"two".to_owned()) && !names.contains(&"three".to_owned())
    });
    assert_eq!(names(h1), ["h1", "h2"]);
}

#[test]
fn restored_state_directory_keeps_containers_that_it_does_not_know() {
    keeps_containers(State::Restored);
}

#[test]
fn overwritten_state_directory_keeps_containers_that_it_does_not_know() {
    keeps_containers(State::Overwritten);
}

#[test]
fn lost_state_directory_is_made_anew_from_running_containers() {
    keeps_containers(State::Lost);
}

#[test]
fn restored_state_directory_gives_nothing_before_the_store_was_read() {
    for state in [State::Restored, State::Overwritten] {
        let mut lan = Lan::new(2);
        lan.start_etcd();
        let mut second = lan.hosts[1].ready(&FLAGS);
        lan.hosts[1].create("ov", &["10.42.0.0/16"]);
        let one = Container::new(&lan.hosts[1], "ov", "one");
        save(&lan.hosts[1]);
        let two = Container::new(&lan.hosts[1], "ov", "two");
        lan.hosts[1].create("other", &["10.43.0.0/16"]);
        let three = Container::new(&lan.hosts[1], "other", "three");
        second.end("TERM");
        lan.stop_etcd();
        restore(&lan.hosts[1], state);
        let _second = lan.hosts[1].start(&FLAGS);
        eventually("it answers", || lan.hosts[1].client().status(None).is_ok());
        eventually("it has begun", || !refusal(&lan.hosts[1]).is_empty());
        let problem = refused(&lan.hosts[1], "ov");
        assert!(matches!(problem.kind, ProblemKind::NotReady | ProblemKind::Store), "{problem}");
        assert!(one.reaches(&two) && two.reaches(&one), "{state:?}");
        lan.start_etcd();
        eventually("it is ready", || lan.hosts[1].client().healthz().is_ok());
        let four = Container::new(&lan.hosts[1], "ov", "four");
        assert!(four.addresses() != one.addresses() && four.addresses() != two.addresses());
        let five = Container::new(&lan.hosts[1], "other", "five");
        assert!(four.reaches(&one) && four.reaches(&two) && five.reaches(&three), "{state:?}");
    }
}

fn names(host: &Host) -> Vec<String> {
    host.client().nodes().unwrap().into_iter().map(|node| node.host.name).collect()
}

#[test]
fn renamed_node_keeps_its_name_until_its_last_container_ends() {
    let mut lan = Lan::new(2);
    lan.start_etcd();
    let [h1, h2] = &lan.hosts[..] else { panic!() };
    let ([_first, mut second], [one, two]) = lan.pair();
    second.end("TERM");
    let mut second = h2.ready(&named("new2"));
    let status = h2.sync();
    assert_eq!(status.host, "h2");
    let notice = status.notice.unwrap();
    assert!(notice.contains("renamed to new2") && notice.contains("--node-name h2"), "{notice}");
    assert!(one.reaches(&two) && two.reaches(&one));
    let three = Container::new(h2, "ov", "three");
    assert!(three.reaches(&one) && three.reaches(&two));
    // Nor is it forgotten by a restart in the midst of it.
    second.end("KILL");
    let _second = h2.ready(&named("new2"));
    assert!(one.reaches(&two) && one.reaches(&three));
    two.detach(h2);
    assert_eq!(h2.sync().host, "h2");
    assert!(three.reaches(&one));
    three.detach(h2);
    eventually("the node has its new name", || {
        h2.client().status(None).is_ok_and(|status| status.host == "new2" && status.notice.is_none())
    });
    eventually("the other node knows it", || names(h1) == ["h1", "new2"]);
    let four = Container::new(h2, "ov", "four");
    assert!(one.reaches(&four) && four.reaches(&one));
    let detail = h1.client().network_detail("ov").unwrap();
    assert!(detail.blocks.iter().all(|block| block.host != "h2"), "{detail:?}");
}

#[test]
fn renamed_node_goes_on_when_another_has_its_new_name() {
    let mut lan = Lan::new(2);
    lan.start_etcd();
    let [h1, h2] = &lan.hosts[..] else { panic!() };
    let (_first, mut second) = (h1.ready(&FLAGS), h2.ready(&FLAGS));
    h1.create("ov", &["10.42.0.0/16"]);
    h2.sync();
    let one = Container::new(h1, "ov", "one");
    second.end("TERM");
    let _second = h2.ready(&named("h1"));
    let notice = h2.sync().notice.unwrap();
    for part in ["keeps the name h2", "another node is registered as h1 (VTEP 192.0.2.1)", "--node-name"] {
        assert!(notice.contains(part), "{part}: {notice}");
    }
    let two = Container::new(h2, "ov", "two");
    assert!(one.reaches(&two) && two.reaches(&one));
    assert_eq!(names(h1), ["h1", "h2"]);
}

#[test]
fn cloned_state_with_another_name_becomes_a_node_of_its_own() {
    let mut lan = Lan::new(2);
    lan.start_etcd();
    let [h1, h2] = &lan.hosts[..] else { panic!() };
    let mut first = h1.ready(&FLAGS);
    h1.create("ov", &["10.42.0.0/16"]);
    let one = Container::new(h1, "ov", "one");
    copy_state(h1, h2);
    let _second = h2.ready(&FLAGS);
    h2.sync();
    assert_eq!(names(h1), ["h1", "h2"]);
    let two = Container::new(h2, "ov", "two");
    assert!(one.reaches(&two) && two.reaches(&one));
    assert_ne!(one.addresses(), two.addresses());
    first.end("KILL");
    let _first = h1.ready(&FLAGS);
    assert!(h1.sync().notice.is_none());
    let three = Container::new(h1, "ov", "three");
    assert!(one.reaches(&two) && two.reaches(&three));
}
