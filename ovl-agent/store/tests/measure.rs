//! How long things take: `cargo test --release -p ovl-store --test measure -- --ignored --nocapture`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap here is the failure report")]

mod common;

use std::time::{Duration, Instant};

use common::*;
use ovl_store::Kv;

/// What there is with 5,000 hosts with 20,000 blocks.
const KEYS: usize = 25_000;

fn told(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!("{what}: p50 {:.2?}, p99 {:.2?}, most {:.2?}", at(50), at(99), at(100));
}

async fn measure(name: &str, kv: &Kv) {
    let mut times = Vec::new();
    for i in 0..500 {
        let since = Instant::now();
        set(kv, &format!("a/{}", i % 10), "value").await;
        times.push(since.elapsed());
    }
    told(&format!("{name}: commit"), times);

    let value = "v".repeat(120);
    for hundred in 0..KEYS / 100 {
        let keys = (0..100).map(|i| put(&format!("c/blocks/{hundred:04}/{i:02}"), &value));
        kv.commit(then(keys.collect::<Vec<_>>())).await.unwrap();
    }
    let mut times = Vec::new();
    for _ in 0..10 {
        let since = Instant::now();
        let snapshot = kv.snapshot("c/").await.unwrap();
        times.push(since.elapsed());
        assert_eq!(snapshot.entries.len(), KEYS);
    }
    told(&format!("{name}: snapshot of {KEYS} keys"), times);

    let mut watch = kv.watch("c/", 0).await.unwrap();
    let mut times = Vec::new();
    for _ in 0..200 {
        let writer = kv.clone();
        let writer = tokio::spawn(async move { set(&writer, "c/x", "1").await });
        let since = Instant::now();
        changes(&mut watch).await;
        times.push(since.elapsed());
        writer.await.unwrap();
    }
    told(&format!("{name}: commit until it is told to a watch"), times);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures, proves nothing"]
async fn times() {
    let dir = tempfile::tempdir().unwrap();
    let since = Instant::now();
    let local = open_local(dir.path()).await;
    println!("local: opening an empty one: {:.2?}", since.elapsed());
    measure("local", &local).await;
    drop(local);
    let since = Instant::now();
    drop(open_local(dir.path()).await);
    println!("local: opening with {KEYS} keys: {:.2?}", since.elapsed());
    if installed() {
        let server = Server::start();
        let since = Instant::now();
        let kv = server.open().await;
        set(&kv, "a", "").await;
        println!("etcd: connection and first commit: {:.2?}", since.elapsed());
        measure("etcd", &kv).await;
    }
}
