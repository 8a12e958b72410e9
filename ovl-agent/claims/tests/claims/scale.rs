//! 5,000 hosts and 20,000 blocks.

use crate::agent::{Agent, conf, dir, eventually, local_store, quick};
use ovl_claims::Timing;
use ovl_store::{Op, Txn};
use std::time::{Duration, Instant};

/// The resident memory of this process, in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_hosts_are_followed_change_by_change() {
    let dir = dir();
    let kv = local_store(&dir).await;
    let one = Agent::ready(conf(dir.path(), "one", &kv, quick())).await;
    let network = one.create("web", &["10.0.0.0/8"]).await;
    one.kill().await;
    let mut puts = Vec::new();
    for host in 0..5000u32 {
        let record = serde_json::json!({
            "name": format!("host{host:04}"), "id": format!("{host:032x}"), "epoch": 1,
            "vtep": format!("172.16.{}.{}", host / 250, host % 250 + 1), "port": 4789
        });
        puts.push(Op::Put(format!("c/hosts/host{host:04}"), serde_json::to_vec(&record).unwrap(), None));
        let claim =
            serde_json::json!({"host": format!("host{host:04}"), "id": format!("{host:032x}"), "epoch": 1});
        for block in 0..4 {
            let number = (10 << 24) + ((host * 4 + block) << 6);
            let key = format!("c/blocks/{}/4-{number:08x}-26", network.id);
            puts.push(Op::Put(key, serde_json::to_vec(&claim).unwrap(), None));
        }
    }
    for some in puts.chunks(100) {
        kv.commit(Txn { then: some.to_vec(), ..Txn::default() }).await.unwrap();
    }
    drop(puts);
    let before = resident();
    let started = Instant::now();
    let one =
        Agent::ready(conf(dir.path(), "one", &kv, Timing { save: Duration::from_secs(60), ..quick() })).await;
    let first = started.elapsed();
    assert_eq!(one.view(|view| (view.hosts.len(), view.owners.len())), (5001, 20_000));
    let after = resident();
    let changes = 200;
    let started = Instant::now();
    for i in 0..changes {
        let key = format!("c/blocks/{}/4-{:08x}-26", network.id, (10 << 24) + ((30_000 + i) << 6));
        let claim = serde_json::json!({"host": "host0001", "id": format!("{:032x}", 1), "epoch": 1});
        let put = Op::Put(key, serde_json::to_vec(&claim).unwrap(), None);
        kv.commit(Txn { then: vec![put], ..Txn::default() }).await.unwrap();
        one.node.with_view(|_, delta| assert!(!delta.all));
    }
    eventually("all changes are seen", || one.view(|view| view.owners.len()) == 20_000 + changes).await;
    let each = started.elapsed() / changes as u32;
    eprintln!(
        "5,000 hosts, 20,000 blocks: first sync {first:?}, a change {each:?}, memory {} MiB more (with the test's store)",
        (after.saturating_sub(before)) / 1024
    );
    // A free block is found among all those, and claimed.
    let grant = one.attach("web", "c1").await.unwrap();
    assert_eq!(grant.addresses.len(), 1);
    assert!(after.saturating_sub(before) < 64 * 1024, "{} KiB", after - before);
}
