//! Much data: snapshots in pages are of one revision, whatever is written or compacted meanwhile; long histories are told.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap here is the failure report")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::*;
use ovl_store::etcd::{Etcd, Tuning};
use ovl_store::{Error, Event, Kv};

fn paged(server: &Server, page: i64) -> Kv {
    Kv::Etcd(Etcd::tuned(&server.conf(), Tuning { page, ..Tuning::default() }).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_in_pages_is_of_one_revision_while_others_write() {
    if !installed() {
        return;
    }
    let server = Server::start();
    let kv = server.open().await;
    for hundred in 0..3 {
        let keys = (0..100).map(|i| put(&format!("c/{hundred}{i:02}"), "0"));
        kv.commit(then(keys.collect::<Vec<_>>())).await.unwrap();
    }
    // Every transaction sets two keys that are far apart to the same value, and adds and removes some.
    let writer = {
        let kv = kv.clone();
        tokio::spawn(async move {
            for round in 1.. {
                let value = round.to_string();
                let extra = format!("c/1x{}", round % 7);
                let odd = if round % 2 == 0 { put(&extra, "") } else { del(&extra) };
                let steps = [put("c/000", &value), put("c/299", &value), odd];
                if kv.commit(then(steps)).await.is_err() {
                    break;
                }
            }
        })
    };
    for page in [1, 7, 100, 1000] {
        let paged = paged(&server, page);
        for _ in 0..if page == 1 { 2 } else { 10 } {
            let snapshot = soon(paged.snapshot("c/")).await.unwrap();
            let value = |key: &str| snapshot.entries.iter().find(|e| e.key == key).unwrap().value.clone();
            assert_eq!(value("c/000"), value("c/299"), "page of {page}");
            assert!(snapshot.entries.iter().all(|e| e.changed <= snapshot.revision));
            assert!(snapshot.entries.windows(2).all(|w| w[0].key < w[1].key));
            assert!((300..=307).contains(&snapshot.entries.len()));
            // The changes from there on lead to what is there later.
            assert_eq!(snapshot.revision, snapshot.entries.iter().map(|e| e.changed).max().unwrap());
        }
    }
    writer.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_begins_anew_when_it_is_compacted_away() {
    if !installed() {
        return;
    }
    let server = Server::start();
    let kv = server.open().await;
    let keys = (0..100).map(|i| put(&format!("c/{i:02}"), "0"));
    kv.commit(then(keys.collect::<Vec<_>>())).await.unwrap();
    let mut raw = server.raw().await;
    // On a loaded machine a snapshot may take long: the pauses between compactions grow until one fits in.
    let pause = Arc::new(AtomicU64::new(40));
    let compactor = {
        let (kv, pause) = (kv.clone(), pause.clone());
        tokio::spawn(async move {
            loop {
                let at = set(&kv, "c/00", "1").await.revision;
                raw.compact(at, None).await.unwrap();
                tokio::time::sleep(Duration::from_millis(pause.load(Ordering::Relaxed))).await;
            }
        })
    };
    let paged = paged(&server, 2);
    let (mut whole, mut compacted) = (0, 0_u32);
    for _ in 0..20 {
        match soon(paged.snapshot("c/")).await {
            Ok(snapshot) => {
                assert_eq!(snapshot.entries.len(), 100);
                whole += 1;
            }
            Err(Error::Compacted(_)) => {
                compacted += 1;
                pause.store(40 << u32::min(compacted, 12), Ordering::Relaxed);
            }
            Err(other) => panic!("{other}"),
        }
    }
    compactor.abort();
    eprintln!("{whole} whole, {compacted} given up");
    assert!(whole > 0);
}

#[tokio::test]
async fn a_watch_of_much_history_tells_it_all() {
    if !installed() {
        return;
    }
    let server = Server::start();
    let kv = server.open().await;
    let big = "x".repeat(100_000);
    let mut from = 0;
    for i in 0..120 {
        // 12 MB: more than the 4 MiB that the library takes by itself.
        let at = set(&kv, &format!("c/{i}"), &big).await.revision;
        from = if from == 0 { at } else { from };
    }
    let mut watch = kv.watch("c/", from).await.unwrap();
    let mut told = 0;
    while told < 120 {
        told += changes(&mut watch).await.len();
    }
    assert_eq!(kv.snapshot("c/").await.unwrap().entries.len(), 120);
    let all = kv.commit(then([get("c/", "d")])).await.unwrap();
    assert_eq!(all.got[0].len(), 120);
    assert!(!matches!(watch, ovl_store::Watch::Local(_)));
    let quiet = tokio::time::timeout(Duration::from_millis(50), watch.next()).await;
    assert!(matches!(quiet, Err(_) | Ok(Ok(Event::Progress(_)))), "{quiet:?}");
}
