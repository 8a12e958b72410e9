//! What the watch told is checked against a real etcd, and a watch that broke off goes on, without reading everything again.

use crate::agent::{Agent, conf, dir, eventually, quick};
use crate::etcd::{Etcd, Proxy, lossy};
use ovl_api::model::Network;
use ovl_claims::Timing;
use ovl_store::{Kv, Op, Txn};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Checks all the time, and seldom reads everything unless it has to.
fn checking() -> Timing {
    let ms = Duration::from_millis;
    Timing { check: ms(20), lag: ms(500), relist: Duration::from_secs(3600), ..quick() }
}

async fn commit(kv: &Kv, then: Vec<Op>) -> i64 {
    // On a loaded machine etcd may not answer in time; what is written here may be written twice.
    let mut tries = 0;
    loop {
        match kv.commit(Txn { then: then.clone(), ..Txn::default() }).await {
            Ok(done) => return done.revision,
            Err(error) if tries == 10 => panic!("{error}"),
            Err(_) => tries += 1,
        }
    }
}

fn put(key: &str, value: &str) -> Op {
    Op::Put(key.to_owned(), value.as_bytes().to_vec(), None)
}

fn block_key(network: &Network, number: u32) -> String {
    let address = u32::from(Ipv4Addr::new(10, 42, 128, 0)) + 64 * number;
    format!("c/blocks/{}/4-{address:08x}-26", network.id)
}

fn block(network: &Network, number: u32, host: &str) -> Op {
    put(&block_key(network, number), &format!(r#"{{"host":"{host}","id":"00","epoch":1}}"#))
}

fn host(name: &str, vtep: &str) -> Op {
    let value = format!(r#"{{"name":"{name}","id":"00","epoch":1,"vtep":"{vtep}","port":4789}}"#);
    put(&format!("c/hosts/{name}"), &value)
}

/// The owners of the blocks that these tests make.
fn owners(agent: &Agent) -> Vec<String> {
    agent.view(|view| view.owners.values().filter(|owner| *owner != "one").cloned().collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checks_agree_while_thousands_of_keys_change_and_nothing_is_read_again() {
    let Some(etcd) = Etcd::start().await else { return };
    let dir = dir();
    let direct = etcd.kv().await;
    let counted = lossy(etcd.address(), |_| false);
    let timing = Timing { check: Duration::from_millis(3), lag: Duration::from_secs(30), ..checking() };
    let one = Agent::ready(conf(dir.path(), "one", &Kv::Etcd(counted.clone()), timing)).await;
    let network = one.create("web", &["10.42.0.0/16"]).await;
    commit(&direct, vec![host("two", "192.0.2.2"), host("three", "192.0.2.3")]).await;
    // More than one check looks at.
    for some in (0..600).collect::<Vec<u32>>().chunks(100) {
        let some = some.iter().map(|i| put(&format!("c/other/{i}"), "x")).collect();
        commit(&direct, some).await;
    }
    let (pages, parts) = counted.reads();
    let writers = (0..4_u32).map(|writer| {
        let (kv, network) = (direct.clone(), network.clone());
        tokio::spawn(async move {
            for round in 0..1000_u32 {
                let number = 50 * writer + round.wrapping_mul(2_654_435_761) % 50;
                let name = format!("other{number}");
                let ops = match round.wrapping_mul(40_503) % 7 {
                    0 | 1 => vec![block(&network, number, "two"), put("e/elsewhere", "x")],
                    2 => vec![Op::Delete(block_key(&network, number))],
                    3 => vec![host(&name, "192.0.2.99"), put(&format!("c/live/{name}"), "")],
                    4 => vec![Op::Delete(format!("c/live/{name}")), block(&network, number, "three")],
                    5 => vec![put("e/elsewhere", "y")],
                    _ => vec![put(&format!("c/other/{number}"), "y")],
                };
                commit(&kv, ops).await;
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let done = counted.reads().1;
    eventually("there are more checks", || counted.reads().1 > done + 10).await;
    one.node.sync().await.unwrap();
    let (read, checks) = counted.reads();
    eprintln!("{} checks", checks - parts);
    assert_eq!(read, pages, "nothing was read again");
    let there = direct.snapshot(&format!("c/blocks/{}/", network.id)).await.unwrap();
    assert_eq!(one.view(|view| view.owners.len()), there.entries.len());
    assert!(one.node.status().connected);
}

static LOSES: AtomicBool = AtomicBool::new(false);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_watch_does_not_tell_is_noticed_and_mended() {
    let Some(etcd) = Etcd::start().await else { return };
    let dir = dir();
    let direct = etcd.kv().await;
    let counted = lossy(etcd.address(), |_| LOSES.load(Ordering::SeqCst));
    let one = Agent::ready(conf(dir.path(), "one", &Kv::Etcd(counted.clone()), checking())).await;
    let network = one.create("web", &["10.42.0.0/16"]).await;
    // So many that an update is not among those that the next check looks at.
    for some in (0..1000).collect::<Vec<u32>>().chunks(100) {
        commit(&direct, some.iter().map(|i| put(&format!("c/filler/{i}"), "")).collect()).await;
    }
    commit(&direct, vec![host("two", "192.0.2.2"), host("three", "192.0.2.3")]).await;
    commit(&direct, vec![block(&network, 1, "two"), block(&network, 2, "two")]).await;
    eventually("both blocks are known", || owners(&one) == ["two", "two"]).await;
    one.node.sync().await.unwrap();
    // Each is lost; with a word of something later, and without.
    let lost = [
        (block(&network, 3, "two"), vec!["two", "two", "two"]),
        (Op::Delete(block_key(&network, 3)), vec!["two", "two"]),
        (block(&network, 2, "three"), vec!["two", "three"]),
        (block(&network, 1, "three"), vec!["three", "three"]),
    ];
    for (i, (op, then)) in lost.into_iter().enumerate() {
        let pages = counted.reads().0;
        LOSES.store(true, Ordering::SeqCst);
        let at = commit(&direct, vec![op]).await;
        // It is lost for sure when a watch of the same store, made later, is past it.
        let seen = direct.watch("c/", at).await.unwrap().next().await;
        assert!(seen.is_ok());
        tokio::time::sleep(Duration::from_millis(100)).await;
        LOSES.store(false, Ordering::SeqCst);
        if i % 2 == 0 {
            commit(&direct, vec![put("c/filler/0", "again")]).await;
        }
        eventually("it is mended", || owners(&one) == then).await;
        eventually("it follows again", || one.node.status().connected).await;
        assert!(counted.reads().0 > pages, "everything was read again");
    }
    // And then it is quiet again.
    let (pages, parts) = counted.reads();
    eventually("there were checks", || counted.reads().1 > parts + 10).await;
    assert_eq!(counted.reads().0, pages);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_broke_off_goes_on_where_it_was() {
    let Some(mut etcd) = Etcd::start().await else { return };
    let dir = dir();
    let direct = etcd.kv().await;
    let proxy = Proxy::start(etcd.address()).await;
    let counted = lossy(proxy.address, |_| false);
    let one = Agent::ready(conf(dir.path(), "one", &Kv::Etcd(counted.clone()), quick())).await;
    let network = one.create("web", &["10.42.0.0/16"]).await;
    one.attach("web", "c1").await.unwrap();
    let hosts = (2..9).map(|i| host(&format!("two{i}"), "192.0.2.9")).collect();
    commit(&direct, hosts).await;
    commit(&direct, vec![block(&network, 1, "two2"), block(&network, 2, "two2")]).await;
    eventually("both blocks are known", || owners(&one) == ["two2", "two2"]).await;
    let pages = counted.reads().0;
    for round in 0..3 {
        if round == 1 {
            etcd.kill();
            etcd.restart().await;
        } else {
            proxy.cut();
        }
        eventually("it has noticed", || round == 1 || !one.node.status().connected).await;
        let owner = format!("two{}", round + 3);
        crate::agent::retry(|| async {
            let then = vec![Op::Delete(block_key(&network, 1)), block(&network, 2, &owner), put("e/x", "")];
            let txn = Txn { then, ..Txn::default() };
            direct
                .commit(txn)
                .await
                .map_err(|e| ovl_api::wire::Problem::new(ovl_api::wire::ProblemKind::Store, e.to_string()))
        })
        .await;
        for _ in 0..1200 {
            commit(&direct, vec![put("c/x", "")]).await;
        }
        commit(&direct, vec![Op::Delete("c/x".into()), Op::Delete("c/hosts/two8".into())]).await;
        proxy.heal();
        eventually("it is connected", || one.node.status().connected).await;
        eventually("what was missed is known", || owners(&one) == [owner.as_str()]).await;
        eventually("the host is gone", || one.view(|view| !view.hosts.contains_key("two8"))).await;
        commit(&direct, vec![block(&network, 1, &owner), host("two8", "192.0.2.8")]).await;
        eventually("it follows", || owners(&one) == [owner.as_str(), owner.as_str()]).await;
        crate::agent::retry(|| one.node.sync()).await;
    }
    assert_eq!(counted.reads().0, pages, "nothing was read again");
    assert_eq!(one.shown().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_that_vanished_one_by_one_while_the_store_was_away_are_held_back() {
    let Some(etcd) = Etcd::start().await else { return };
    let dir = dir();
    let direct = etcd.kv().await;
    let proxy = Proxy::start(etcd.address()).await;
    let counted = lossy(proxy.address, |_| false);
    let one = Agent::ready(conf(dir.path(), "one", &Kv::Etcd(counted), quick())).await;
    commit(&direct, (0..9).map(|i| host(&format!("two{i}"), "192.0.2.9")).collect()).await;
    eventually("all are seen", || one.view(|view| view.hosts.len()) == 10).await;
    proxy.cut();
    eventually("it has noticed", || !one.node.status().connected).await;
    for i in 0..5 {
        commit(&direct, vec![Op::Delete(format!("c/hosts/two{i}"))]).await;
        // etcd tells no more than 1,000 revisions at once.
        for _ in 0..1100 {
            commit(&direct, vec![put("c/x", "")]).await;
        }
    }
    proxy.heal();
    eventually("it is held back", || one.node.status().held_back.is_some()).await;
    let why = one.node.status().held_back.unwrap();
    assert!(why.starts_with("5 of 10 hosts vanished"), "{why}");
    assert_eq!(one.view(|view| view.hosts.len()), 10);
    one.node.accept();
    eventually("it goes on", || one.view(|view| view.hosts.len()) == 5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_was_set_back_and_went_on_is_read_anew() {
    let Some(mut etcd) = Etcd::start().await else { return };
    let dir = dir();
    let proxy = Proxy::start(etcd.address()).await;
    let counted = lossy(proxy.address, |_| false);
    let one = Agent::ready(conf(
        dir.path(),
        "one",
        &Kv::Etcd(counted.clone()),
        Timing { check: Duration::from_secs(300), ..checking() },
    ))
    .await;
    let network = one.create("web", &["10.42.0.0/16"]).await;
    crate::agent::retry(|| one.node.sync()).await;
    commit(&etcd.kv().await, vec![host("two", "192.0.2.2"), host("three", "192.0.2.3")]).await;
    etcd.kill();
    etcd.keep();
    etcd.restart().await;
    let direct = etcd.kv().await;
    eventually("it is connected", || one.node.status().connected).await;
    let last = crate::agent::retry(|| async {
        let txn = Txn { then: vec![block(&network, 5, "two")], ..Txn::default() };
        let done = direct.commit(txn).await;
        done.map_err(|e| ovl_api::wire::Problem::new(ovl_api::wire::ProblemKind::Store, e.to_string()))
    })
    .await;
    eventually("the block is known", || owners(&one) == ["two"]).await;
    proxy.cut();
    etcd.kill();
    etcd.set_back();
    etcd.restart().await;
    // As many keys as before, and more revisions.
    let other = etcd.kv().await;
    commit(&other, vec![block(&network, 4, "three")]).await;
    while commit(&other, vec![put("e/x", "")]).await < last.revision + 20 {}
    let pages = counted.reads().0;
    proxy.heal();
    eventually("it is as the store has it", || owners(&one) == ["three"]).await;
    assert!(counted.reads().0 > pages);
}
