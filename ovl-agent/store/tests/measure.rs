//! How long things take: `cargo test --release -p ovl-store --test measure -- --ignored --nocapture`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap here is the failure report")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::*;
use ovl_store::Kv;
use ovl_store::target::EtcdConf;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

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

    let mut times = Vec::new();
    for i in 0..50 {
        let from = format!("c/blocks/{:04}", i * 5);
        let since = Instant::now();
        let part = kv.part("c/", &from, 500).await.unwrap();
        times.push(since.elapsed());
        assert_eq!((part.count, part.keys.len()), (KEYS, 500));
    }
    told(&format!("{name}: count and 500 of {KEYS} keys"), times);

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

/// Passes everything on, and counts what the server sends.
async fn counting(server: &Server) -> (EtcdConf, Arc<AtomicU64>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (port, count) = (server.port(), Arc::new(AtomicU64::new(0)));
    let counter = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let to = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let ((mut up_from, mut down_to), (mut down_from, mut up_to)) =
                (client.into_split(), to.into_split());
            tokio::spawn(async move { tokio::io::copy(&mut up_from, &mut up_to).await });
            let counter = Arc::clone(&counter);
            tokio::spawn(async move {
                let mut buffer = vec![0; 64 << 10];
                while let Ok(read @ 1..) = down_from.read(&mut buffer).await {
                    counter.fetch_add(read as u64, Ordering::Relaxed);
                    down_to.write_all(&buffer[..read]).await.unwrap();
                }
            });
        }
    });
    (EtcdConf::new(&url).unwrap(), count)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures, proves nothing"]
async fn bytes_of_a_check_and_of_a_snapshot() {
    let server = Server::start();
    let (conf, count) = counting(&server).await;
    let kv = open(conf).await;
    let value = r#"{"host":"host1234.example.org","id":"0123456789abcdef0123456789abcdef","epoch":1}"#;
    for hundred in 0..KEYS / 100 {
        let keys =
            (0..100).map(|i| put(&format!("c/blocks/0123456789ab/4-{:08x}-26", hundred * 100 + i), value));
        kv.commit(then(keys.collect::<Vec<_>>())).await.unwrap();
    }
    let mut before = count.load(Ordering::Relaxed);
    let mut sent =
        || count.load(Ordering::Relaxed) - std::mem::replace(&mut before, count.load(Ordering::Relaxed));
    kv.part("c/", "c/blocks/0123456789ab/4-00001000", 500).await.unwrap();
    println!("count and 500 keys: {} bytes", sent());
    kv.snapshot("c/").await.unwrap();
    println!("snapshot of {KEYS} keys: {} bytes", sent());
}
