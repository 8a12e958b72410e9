//! Many hosts vanish at once: nothing is changed until they are back, or somebody says so.

use crate::agent::{Agent, conf, dir, eventually, local_store, quick, retry};
use ovl_api::model::Network;
use ovl_api::wire::{Problem, ProblemKind};
use ovl_store::{Kv, Op, Txn};

async fn fake_hosts(kv: &Kv, count: usize) {
    for i in 0..count {
        let host = serde_json::json!({
            "name": format!("fake{i}"), "id": format!("{i:032x}"), "epoch": 1, "vtep": format!("192.0.2.{i}"), "port": 4789
        });
        let put = Op::Put(format!("c/hosts/fake{i}"), serde_json::to_vec(&host).unwrap(), None);
        kv.commit(Txn { then: vec![put], ..Txn::default() }).await.unwrap();
    }
}

async fn delete(kv: &Kv, keys: &[&str]) {
    let then = keys.iter().map(|key| Op::Delete((*key).to_owned())).collect();
    kv.commit(Txn { then, ..Txn::default() }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_hosts_that_vanish_at_once_are_kept_until_accepted_or_back() {
    let dir = dir();
    let kv = local_store(&dir).await;
    let one = Agent::ready(conf(dir.path(), "one", &kv, quick())).await;
    one.create("web", &["10.42.0.0/16"]).await;
    fake_hosts(&kv, 9).await;
    eventually("all are seen", || one.view(|view| view.hosts.len()) == 10).await;
    // Three of ten are not too many, but four of seven are.
    delete(&kv, &["c/hosts/fake0", "c/hosts/fake1", "c/hosts/fake2"]).await;
    eventually("three are gone", || one.view(|view| view.hosts.len()) == 7).await;
    delete(&kv, &["c/hosts/fake3", "c/hosts/fake4", "c/hosts/fake5", "c/hosts/fake6"]).await;
    eventually("it is held back", || one.node.status().held_back.is_some()).await;
    let why = one.node.status().held_back.unwrap();
    assert!(why.starts_with("4 of 7 hosts vanished"), "{why}");
    assert_eq!(one.view(|view| view.hosts.len()), 7);
    // Addresses are given meanwhile, for what is own is not in doubt.
    one.attach("web", "c1").await.unwrap();
    // Two are back: two of seven are few enough.
    fake_hosts(&kv, 5).await;
    eventually("it goes on", || one.node.status().held_back.is_none()).await;
    eventually("two are gone", || one.view(|view| !view.hosts.contains_key("fake6"))).await;
    // A restart does not make it forget whom it saw.
    let hosts = one.view(|view| view.hosts.len());
    eventually("the view is written", || {
        let file = std::fs::read(dir.path().join("one/view.json")).unwrap_or_default();
        let file: serde_json::Value = serde_json::from_slice(&file).unwrap_or_default();
        file["hosts"].as_array().is_some_and(|seen| seen.len() == hosts)
    })
    .await;
    one.kill().await;
    let keys: Vec<String> = (0..9).map(|i| format!("c/hosts/fake{i}")).collect();
    delete(&kv, &keys.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let one = Agent::start(conf(dir.path(), "one", &kv, quick()));
    eventually("it is held back", || one.node.status().held_back.is_some()).await;
    assert!(!one.node.synced());
    one.node.accept();
    eventually("it goes on", || one.node.status().connected).await;
    assert_eq!(one.view(|view| view.hosts.len()), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_that_were_removed_one_by_one_are_no_fault() {
    let dir = dir();
    let kv = local_store(&dir).await;
    let one = Agent::ready(conf(dir.path(), "one", &kv, quick())).await;
    fake_hosts(&kv, 3).await;
    for i in 0..3 {
        one.node.remove_node(&format!("fake{i}"), false).await.unwrap();
    }
    eventually("they are gone", || one.view(|view| view.hosts.len()) == 1).await;
    assert_eq!(one.node.status().held_back, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_wiped_store_lost_is_put_back_by_those_who_know() {
    let dir = dir();
    let kv = local_store(&dir).await;
    let mut agents = Vec::new();
    for name in ["one", "two", "three"] {
        agents.push(Agent::ready(conf(dir.path(), name, &kv, quick())).await);
    }
    let network = agents[0].create("web", &["10.42.0.0/16"]).await;
    let mut before = Vec::new();
    for agent in &agents {
        retry(|| agent.attach("web", "c1")).await;
        before.push(agent.shown());
    }
    // Everything in one revision, as a wipe does it.
    let wipe = vec![Op::DeleteRange("c/".into(), "c0".into())];
    kv.commit(Txn { then: wipe, ..Txn::default() }).await.unwrap();
    // Nobody may have noticed yet, so it is the store that is asked first.
    retry(|| is_back(&agents[1], &network)).await;
    for (agent, before) in agents.iter().zip(&before) {
        retry(|| agent.node.sync()).await;
        assert_eq!(agent.shown(), *before, "no container was cut off");
    }
    for agent in &agents {
        retry(|| agent.attach("web", "c2")).await;
    }
}

/// Whether the store has the network, and nothing else.
pub async fn is_back(agent: &Agent, network: &Network) -> Result<(), Problem> {
    let networks = agent.node.networks().await?;
    let none = Problem::new(ProblemKind::NotReady, format!("the store has {networks:?}"));
    (networks == std::slice::from_ref(network)).then_some(()).ok_or(none)
}
