//! Whose a name and an identity are, when machine, address and state directory come apart.

use crate::agent::{Agent, Dir, conf, dir, eventually, local_store, quick};
use ovl_api::wire::ProblemKind;
use ovl_claims::{NodeConf, TakeOver};
use ovl_store::Kv;
use std::net::IpAddr;

/// Node `one` on a machine, with its last octet of the VTEP.
fn on(dir: &Dir, kv: &Kv, machine: &str, vtep: u8) -> NodeConf {
    let vtep = IpAddr::from([192, 0, 2, vtep]);
    NodeConf { machine: Some(machine.to_owned()), vtep, ..conf(dir.path(), "one", kv, quick()) }
}

/// The node on machine `aa` with container `c1` in network `web`.
async fn with_container(dir: &Dir, kv: &Kv) -> Agent {
    let one = Agent::ready(on(dir, kv, "aa", 1)).await;
    one.create("web", &["10.42.0.0/16"]).await;
    one.attach("web", "c1").await.unwrap();
    one
}

async fn stop(agent: Agent) {
    let node = agent.node.clone();
    agent.kill().await;
    node.stop().await;
}

async fn refusal(agent: &Agent, part: &str) -> String {
    eventually(part, || agent.node.status().error.is_some_and(|error| error.contains(part))).await;
    let problem = agent.attach("web", "more").await.unwrap_err();
    assert_eq!(problem.kind, ProblemKind::NotReady);
    assert!(problem.message.contains(part), "{problem}");
    problem.message
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn state_of_another_machine_is_refused_unless_taken_over() {
    let dir = dir();
    let kv = local_store(&dir).await;
    let one = with_container(&dir, &kv).await;
    stop(one).await;
    let moved = Agent::start(on(&dir, &kv, "bb", 2));
    let why = refusal(&moved, "on another machine (VTEP 192.0.2.1)").await;
    assert!(why.contains("--take-over") && why.contains("--node-name"), "{why}");
    assert_eq!(moved.shown().len(), 1, "the container keeps its network");
    moved.kill().await;
    // At its old address it is the same node, with another ID.
    let same = Agent::ready(on(&dir, &kv, "cc", 1)).await;
    stop(same).await;
    let forced = NodeConf { take_over: TakeOver::Always, ..on(&dir, &kv, "dd", 3) };
    stop(Agent::ready(forced).await).await;
    // It is this machine's now, and moves with it to another address.
    let same = Agent::ready(on(&dir, &kv, "dd", 4)).await;
    assert_eq!(same.shown().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn name_of_dead_node_is_taken_over_at_its_address() {
    let dir = dir();
    let kv = local_store(&dir).await;
    let one = with_container(&dir, &kv).await;
    let anew = |vtep, take_over| {
        let root = dir.path().join("anew");
        NodeConf { root, take_over, ..on(&dir, &kv, "bb", vtep) }
    };
    // While it lives, nothing takes its name.
    let taker = Agent::start(anew(1, TakeOver::Always));
    refusal(&taker, "another host is registered as one").await;
    taker.kill().await;
    stop(one).await;
    let taker = Agent::start(anew(2, TakeOver::SameAddress));
    refusal(&taker, "--take-over").await;
    taker.kill().await;
    let taker = Agent::ready(anew(1, TakeOver::SameAddress)).await;
    taker.attach("web", "c2").await.unwrap();
    assert_eq!(kv.snapshot("c/blocks/").await.unwrap().entries.len(), 1, "the old blocks are free");
}

fn names(agent: &Agent) -> Vec<String> {
    agent.view(|view| view.hosts.keys().cloned().collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_renamed_by_a_reboot_withdraws_its_old_record() {
    let dir = dir();
    let kv = local_store(&dir).await;
    let one = with_container(&dir, &kv).await;
    stop(one).await;
    let renamed = |name: &str, boot: &str, vtep| NodeConf {
        name: name.to_owned(),
        boot_id: boot.to_owned(),
        ..on(&dir, &kv, "aa", vtep)
    };
    let two = Agent::ready(renamed("two", "boot-2", 1)).await;
    assert_eq!((names(&two), two.node.status().name.as_str()), (vec!["two".to_owned()], "two"));
    assert_eq!(two.node.status().notice, None);
    assert_eq!(kv.snapshot("c/blocks/").await.unwrap().entries.len(), 0, "the old blocks are free");
    two.attach("web", "c2").await.unwrap();
    stop(two).await;
    // With another address, too, it may be a clone of a node that is down: that keeps its record.
    let three = Agent::ready(renamed("three", "boot-3", 3)).await;
    assert_eq!(names(&three), ["three", "two"]);
    three.attach("web", "c2").await.unwrap();
    let ids: Vec<String> = three.view(|view| view.hosts.values().map(|host| host.id.clone()).collect());
    assert_ne!(ids[0], ids[1]);
}
