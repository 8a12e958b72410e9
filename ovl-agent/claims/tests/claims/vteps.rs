//! Nodes that have the same VTEP: every reader of the store prefers the same one.

use crate::agent::{Agent, Dir, EVENTUALLY, conf, dir, quick, retry};
use crate::etcd::Etcd;
use ovl_claims::NodeConf;
use ovl_store::Kv;
use std::net::IpAddr;
use std::time::{Duration, Instant};

const SHARED: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 250));

/// A node with the VTEP that several have.
fn sharing(dir: &Dir, name: &str, kv: &Kv) -> NodeConf {
    NodeConf { vtep: SHARED, ..conf(dir.path(), name, kv, quick()) }
}

/// Waits until a reader has the VTEP from this node alone, and holds back the records of the others.
async fn prefers(reader: &Agent, first: &str, others: &[&str]) {
    let state = || {
        let with = |view: &ovl_api::model::View| {
            let with = view.hosts.values().filter(|host| host.vtep == SHARED);
            with.map(|host| host.name.clone()).collect::<Vec<_>>()
        };
        let held = reader.node.status().held_records.into_iter().map(|held| held.key).collect::<Vec<_>>();
        (reader.view(with), held)
    };
    let others: Vec<_> = others.iter().map(|name| format!("c/hosts/{name}")).collect();
    let since = Instant::now();
    loop {
        let (with, held) = state();
        if with == [first] && held == others {
            return;
        }
        assert!(
            since.elapsed() < EVENTUALLY,
            "{first} should be preferred to {others:?}: {with:?}, held {held:?}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_of_shared_vtep_prefer_the_same_node_after_restarts() {
    let Some(etcd) = Etcd::start().await else { return };
    let dir = dir();
    let kv = etcd.kv().await;
    // It is registered first, and has the VTEP last; its name is the first of all.
    let aaa = Agent::ready(conf(dir.path(), "aaa", &kv, quick())).await;
    let reader = Agent::ready(conf(dir.path(), "reader", &kv, quick())).await;
    let zoe = Agent::ready(sharing(&dir, "zoe", &kv)).await;
    let abe = Agent::ready(sharing(&dir, "abe", &kv)).await;
    prefers(&reader, "zoe", &["abe"]).await;
    // Each writes its record anew as it starts.
    zoe.kill().await;
    let zoe = Agent::ready(sharing(&dir, "zoe", &kv)).await;
    abe.kill().await;
    let abe = Agent::ready(sharing(&dir, "abe", &kv)).await;
    zoe.kill().await;
    let zoe = Agent::ready(sharing(&dir, "zoe", &kv)).await;
    let late = Agent::ready(conf(dir.path(), "late", &kv, quick())).await;
    prefers(&late, "zoe", &["abe"]).await;
    prefers(&reader, "zoe", &["abe"]).await;
    // One that comes to the address of others is behind them, however old its record is.
    aaa.node.set_vtep(SHARED, None);
    prefers(&late, "zoe", &["aaa", "abe"]).await;
    prefers(&reader, "zoe", &["aaa", "abe"]).await;
    reader.kill().await;
    let reader = Agent::ready(conf(dir.path(), "reader", &kv, quick())).await;
    prefers(&reader, "zoe", &["aaa", "abe"]).await;
    // The first goes, and comes back last.
    zoe.node.set_vtep([192, 0, 2, 251].into(), None);
    prefers(&reader, "abe", &["aaa"]).await;
    zoe.node.set_vtep(SHARED, None);
    prefers(&reader, "abe", &["aaa", "zoe"]).await;
    let later = Agent::ready(conf(dir.path(), "later", &kv, quick())).await;
    prefers(&later, "abe", &["aaa", "zoe"]).await;
    prefers(&late, "abe", &["aaa", "zoe"]).await;
    retry(|| abe.node.sync()).await;
}

/// The store has whole records only; one that was spoiled or lost is written again with what it said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_whose_record_was_spoiled_keeps_its_rank() {
    let Some(etcd) = Etcd::start().await else { return };
    let dir = dir();
    let kv = etcd.kv().await;
    let reader = Agent::ready(conf(dir.path(), "reader", &kv, quick())).await;
    let zoe = Agent::ready(sharing(&dir, "zoe", &kv)).await;
    let abe = Agent::ready(sharing(&dir, "abe", &kv)).await;
    prefers(&reader, "zoe", &["abe"]).await;
    let record = || async {
        let entries = kv.snapshot("c/hosts/zoe").await.unwrap().entries;
        String::from_utf8(entries[0].value.clone()).unwrap()
    };
    let before = record().await;
    for wrong in ["{".to_owned(), before.replace("192.0.2.250", "192.0.2.249")] {
        let put = ovl_store::Op::Put("c/hosts/zoe".to_owned(), wrong.clone().into_bytes(), None);
        kv.commit(ovl_store::Txn { then: vec![put], ..Default::default() }).await.unwrap();
        let restored = || async {
            let is = record().await;
            (is == before)
                .then_some(())
                .ok_or_else(|| ovl_api::wire::Problem::new(ovl_api::wire::ProblemKind::NotReady, is))
        };
        retry(restored).await;
        let late = Agent::ready(conf(dir.path(), "late", &kv, quick())).await;
        prefers(&late, "zoe", &["abe"]).await;
        prefers(&reader, "zoe", &["abe"]).await;
        late.kill().await;
    }
    retry(|| zoe.node.sync()).await;
    retry(|| abe.node.sync()).await;
}
