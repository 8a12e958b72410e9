//! Keys that someone deletes, or that a restored etcd does not have: nodes put their part back, and none loses a route.

use crate::agent::{Agent, conf, dir, eventually, quick, retry};
use crate::etcd::Etcd;
use ovl_store::{Kv, Op, Txn};

async fn agents(root: &std::path::Path, kv: &Kv) -> Vec<Agent> {
    let mut agents = Vec::new();
    for name in ["one", "two", "three"] {
        agents.push(Agent::ready(conf(root, name, kv, quick())).await);
    }
    agents
}

/// A node with a container in a network.
async fn with_container(root: &std::path::Path, kv: &Kv) -> Agent {
    let one = Agent::ready(conf(root, "one", kv, quick())).await;
    one.create("web", &["10.42.0.0/16"]).await;
    retry(|| one.attach("web", "c1")).await;
    retry(|| one.node.sync()).await;
    one
}

/// What each node's kernel is to show: the blocks' owners and the own containers.
fn views(agents: &[Agent]) -> Vec<(usize, usize, usize, usize)> {
    let view = |agent: &Agent| {
        agent.view(|view| (view.networks.len(), view.hosts.len(), view.owners.len(), view.endpoints.len()))
    };
    agents.iter().map(view).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_deleted_by_prefix_are_put_back_and_stay_in_force() {
    let Some(etcd) = Etcd::start().await else { return };
    let dir = dir();
    let kv = etcd.kv().await;
    let agents = agents(dir.path(), &kv).await;
    agents[0].create("web", &["10.42.0.0/16", "fd42::/64"]).await;
    for agent in &agents {
        retry(|| agent.attach("web", "c1")).await;
    }
    for agent in &agents {
        retry(|| agent.node.sync()).await;
    }
    let before = views(&agents);
    assert_eq!(before, [(1, 3, 6, 1); 3]);
    for prefix in ["c/hosts/", "c/networks/", "c/hosts/two", "c/hosts/", "c/networks/web"] {
        let delete = Op::DeleteRange(prefix.to_owned(), ovl_store::range_end(prefix));
        let keys =
            |entries: ovl_store::Snapshot| entries.entries.into_iter().map(|e| e.key).collect::<Vec<_>>();
        let there = keys(kv.snapshot("c/").await.unwrap());
        kv.commit(Txn { then: vec![delete], ..Txn::default() }).await.unwrap();
        let since = std::time::Instant::now();
        loop {
            assert_eq!(views(&agents), before, "{prefix}: traffic goes on");
            let status = |agent: &Agent| {
                let status = agent.node.status();
                status.connected && status.held_back.is_none() && status.held_records.is_empty()
            };
            if agents.iter().all(status) && keys(kv.snapshot("c/").await.unwrap()) == there {
                break;
            }
            assert!(since.elapsed() < crate::agent::EVENTUALLY, "{prefix} is not put back");
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }
    for agent in &agents {
        retry(|| agent.attach("web", "c2")).await;
    }
    eventually("all know of all", || views(&agents).iter().all(|view| view.0 == 1 && view.1 == 3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn own_block_that_is_deleted_in_use_is_claimed_again() {
    let Some(etcd) = Etcd::start().await else { return };
    let dir = dir();
    let kv = etcd.kv().await;
    let one = with_container(dir.path(), &kv).await;
    for _ in 0..3 {
        let before = kv.snapshot("c/blocks/").await.unwrap().entries;
        let delete = Op::DeleteRange("c/blocks/".to_owned(), ovl_store::range_end("c/blocks/"));
        kv.commit(Txn { then: vec![delete], ..Txn::default() }).await.unwrap();
        retry(|| async {
            assert_eq!(one.shown().len(), 1, "the container is not cut off");
            let now = kv.snapshot("c/blocks/").await.unwrap().entries;
            let missing = ovl_api::wire::Problem::new(ovl_api::wire::ProblemKind::NotReady, "not yet");
            let same = now.len() == before.len() && now.iter().zip(&before).all(|(a, b)| a.key == b.key);
            same.then_some(()).ok_or(missing)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn own_record_that_is_overwritten_is_put_back() {
    let Some(etcd) = Etcd::start().await else { return };
    let dir = dir();
    let kv = etcd.kv().await;
    let one = with_container(dir.path(), &kv).await;
    let record = || async { kv.snapshot("c/hosts/one").await.unwrap().entries.remove(0).value };
    let right = record().await;
    let text = String::from_utf8(right.clone()).unwrap();
    for wrong in [text.replace("192.0.2.", "198.51.100."), text.replace("4789", "\"4789\""), "{".to_owned()] {
        assert_ne!(wrong, text);
        let put = Op::Put("c/hosts/one".to_owned(), wrong.into_bytes(), None);
        kv.commit(Txn { then: vec![put], ..Txn::default() }).await.unwrap();
        retry(|| async {
            let missing = ovl_api::wire::Problem::new(ovl_api::wire::ProblemKind::NotReady, "not yet");
            (record().await == right).then_some(()).ok_or(missing)
        })
        .await;
        eventually("it follows", || one.node.status().connected).await;
        assert_eq!(one.shown().len(), 1);
    }
}
