//! What goes wrong around etcd: endpoints that are dead or swallow everything, restarts, compaction, wiped data, silence.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap here is the failure report")]

mod common;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use common::*;
use ovl_store::etcd::{Etcd, Tuning};
use ovl_store::target::EtcdConf;
use ovl_store::{Error, Kv, PATIENCE, Txn};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener as AsyncListener, TcpStream};
use tokio::sync::watch;

/// More than [`PATIENCE`], on a machine with a load of 50 too: what this bounds would otherwise hang.
const BOUND: Duration = Duration::from_secs(60);

/// An endpoint that takes connections and never answers.
fn black_hole() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

/// An endpoint at which nobody listens.
fn dead() -> String {
    format!("http://127.0.0.1:{}", free_port())
}

/// What a [`Proxy`] does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Open,
    /// Connections are kept, and nothing gets through.
    Frozen,
    /// Connections are closed, and new ones at once.
    Cut,
}

/// A way to etcd that can go silent without closing anything.
struct Proxy {
    url: String,
    way: watch::Sender<Way>,
    task: tokio::task::JoinHandle<()>,
}

async fn is(now: &mut watch::Receiver<Way>, way: Way) {
    let _ = now.wait_for(|now| *now == way).await;
}

impl Proxy {
    async fn to(server: &Server) -> Proxy {
        let listener = AsyncListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (way, now) = watch::channel(Way::Open);
        let port = server.port();
        let task = tokio::spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                if *now.borrow() == Way::Cut {
                    continue;
                }
                let mut now = now.clone();
                tokio::spawn(async move {
                    let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
                    let mut also = now.clone();
                    tokio::select! {
                        _ = copy_bidirectional(&mut client, &mut server) => return,
                        () = is(&mut now, Way::Frozen) => {}
                        () = is(&mut also, Way::Cut) => return,
                    }
                    is(&mut now, Way::Cut).await;
                });
            }
        });
        Proxy { url, way, task }
    }

    fn set(&self, way: Way) {
        self.way.send_replace(way);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn conf(urls: &[&str]) -> EtcdConf {
    EtcdConf::new(&urls.join(",")).unwrap()
}

/// A store whose watches are asked for a word after a second.
fn curious(urls: &[&str]) -> Kv {
    Kv::Etcd(Etcd::tuned(&conf(urls), Tuning { quiet: Duration::from_secs(1), ..Tuning::default() }).unwrap())
}

/// That it fails in time, as unreachable, and names the endpoints.
async fn unreachable(kv: &Kv, urls: &[&str]) -> String {
    let since = Instant::now();
    let error = kv.commit(then([put("c/a", "")])).await.unwrap_err();
    assert!(since.elapsed() < BOUND, "{:?}", since.elapsed());
    assert!(matches!(error, Error::Unreachable { .. }) && error.is_temporary(), "{error:?}");
    let text = error.to_string();
    assert!(urls.iter().all(|url| text.contains(url)), "{text}");
    text
}

#[tokio::test]
async fn a_dead_endpoint_and_a_black_hole_are_unreachable_in_time_and_named() {
    let ((_hole, hole), dead) = (black_hole(), dead());
    let (dead, hole) = (dead.as_str(), hole.as_str());
    let refused = async {
        let text = unreachable(&open(conf(&[dead])).await, &[dead]).await;
        assert!(text.contains("refused"), "{text}");
    };
    let both = async {
        let text = unreachable(&open(conf(&[hole, dead])).await, &[hole, dead]).await;
        assert!(text.contains(&format!("{hole}: no answer in time")), "{text}");
    };
    let calls = async {
        let kv = open(conf(&[hole])).await;
        tokio::join!(kv.snapshot(""), kv.watch("", 0), kv.grant(PATIENCE), kv.keep_alive(1), kv.revoke(1))
    };
    let since = Instant::now();
    let ((), (), done) = tokio::join!(refused, both, calls);
    for error in [
        done.0.map(drop).unwrap_err(),
        done.1.map(drop).unwrap_err(),
        done.2.map(drop).unwrap_err(),
        done.3.map(drop).unwrap_err(),
        done.4.unwrap_err(),
    ] {
        assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    }
    assert!(since.elapsed() < BOUND);
}

#[tokio::test]
async fn refused_connections_fail_at_once() {
    let (one, two) = (dead(), dead());
    let kv = open(conf(&[&one, &two])).await;
    let since = Instant::now();
    for _ in 0..10 {
        unreachable(&kv, &[&one, &two]).await;
    }
    assert!(since.elapsed() < 5 * PATIENCE, "{:?}", since.elapsed());
}

#[tokio::test]
async fn many_calls_at_once_wait_no_longer_than_one() {
    let (_hole, hole) = black_hole();
    let kv = open(conf(&[&hole])).await;
    let since = Instant::now();
    let calls = (0..20).map(|_| {
        let kv = kv.clone();
        tokio::spawn(async move { kv.commit(Txn::default()).await })
    });
    for call in calls.collect::<Vec<_>>() {
        assert!(matches!(call.await.unwrap(), Err(Error::Unreachable { .. })));
    }
    assert!(since.elapsed() < BOUND, "{:?}", since.elapsed());
}

#[tokio::test]
async fn a_working_endpoint_is_found_behind_dead_ones_and_black_holes() {
    if !installed() {
        return;
    }
    let server = Server::start();
    let holes: Vec<_> = (0..5).map(|_| black_hole()).collect();
    let mut urls = vec![dead(), holes[0].1.clone()];
    urls.extend(holes[1..].iter().map(|(_, url)| url.clone()));
    urls.push(server.url());
    urls.push(dead());
    // Whichever is tried first.
    for turn in 0..urls.len() {
        urls.rotate_left(1);
        let conf = EtcdConf::new(&urls.join(",")).unwrap();
        set(&open(conf).await, "c/a", &turn.to_string()).await;
    }
}

#[tokio::test]
async fn a_connection_that_goes_silent_is_replaced_by_another_endpoint() {
    if !installed() {
        return;
    }
    let server = Server::start();
    let (one, two) = (Proxy::to(&server).await, Proxy::to(&server).await);
    let kv = open(conf(&[&one.url, &two.url])).await;
    set(&kv, "c/a", "1").await;
    one.set(Way::Frozen);
    // What can be repeated is, within the same call.
    assert_eq!(kv.snapshot("").await.unwrap().entries.len(), 1);
    set(&kv, "c/a", "2").await;
    one.set(Way::Open);
    two.set(Way::Frozen);
    assert_eq!(kv.snapshot("").await.unwrap().entries.len(), 1);
    set(&kv, "c/a", "3").await;
}

#[tokio::test]
async fn a_commit_goes_to_another_endpoint_when_its_own_is_gone() {
    if !installed() {
        return;
    }
    let server = Server::start();
    let (one, two) = (Proxy::to(&server).await, Proxy::to(&server).await);
    let kv = open(conf(&[&one.url, &two.url])).await;
    for round in 0..6 {
        let (gone, there) = if round % 2 == 0 { (&one, &two) } else { (&two, &one) };
        set(&kv, "c/a", "1").await;
        there.set(Way::Open);
        gone.set(Way::Cut);
        // So long that the connection is looked at before the next commit.
        tokio::time::sleep(Duration::from_millis(600)).await;
        set(&kv, "c/a", "2").await;
    }
}

#[tokio::test]
async fn a_commit_that_may_have_been_done_is_not_done_twice() {
    if !installed() {
        return;
    }
    let server = Server::start();
    let (one, two) = (Proxy::to(&server).await, Proxy::to(&server).await);
    let kv = open(conf(&[&one.url, &two.url])).await;
    let before = set(&kv, "c/a", "1").await.revision;
    one.set(Way::Frozen);
    two.set(Way::Frozen);
    let since = Instant::now();
    let error = kv.commit(then([put("c/a", "2")])).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert!(since.elapsed() < BOUND);
    one.set(Way::Open);
    two.set(Way::Open);
    let now = eventually(|| kv.snapshot("")).await;
    assert!(now.revision <= before + 1, "{now:?}");
}

#[tokio::test]
async fn a_silent_watch_is_noticed() {
    if !installed() {
        return;
    }
    let server = Server::start();
    let proxy = Proxy::to(&server).await;
    let kv = open(conf(&[&proxy.url])).await;
    let mut watch = kv.watch("", 0).await.unwrap();
    let at = set(&kv, "c/a", "1").await.revision;
    assert_eq!(changes(&mut watch).await[0].2, at);
    proxy.set(Way::Frozen);
    let error = soon(watch.next()).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains(&proxy.url), "{error}");
    // The same connection is not used again.
    proxy.set(Way::Open);
    let mut watch = kv.watch("", at + 1).await.unwrap();
    set(&kv, "c/a", "2").await;
    assert_eq!(changes(&mut watch).await[0].2, at + 1);
}

#[tokio::test]
async fn a_silent_watch_is_noticed_by_its_answers_missing_before_the_connection_is() {
    if !installed() {
        return;
    }
    let server = Server::start();
    let proxy = Proxy::to(&server).await;
    let kv = curious(&[&proxy.url]);
    let mut watch = kv.watch("", 0).await.unwrap();
    proxy.set(Way::Frozen);
    let error = soon(watch.next()).await.unwrap_err();
    assert!(matches!(&error, Error::Unreachable { why, .. } if why.contains("silent")), "{error:?}");
}

#[tokio::test]
async fn a_quiet_watch_lives_on() {
    if !installed() {
        return;
    }
    let server = Server::start();
    let kv = curious(&[&server.url()]);
    let mut watch = kv.watch("c/", 0).await.unwrap();
    // Longer than a quiet watch is left alone, and than it is waited for.
    let quiet = tokio::time::timeout(Duration::from_secs(5), watch.next()).await;
    assert!(!matches!(quiet, Ok(Err(_))), "{quiet:?}");
    let at = set(&kv, "c/a", "1").await.revision;
    assert_eq!(changes(&mut watch).await[0].2, at);
}

#[tokio::test]
async fn etcd_is_killed_and_started_again_while_it_is_watched() {
    if !installed() {
        return;
    }
    let mut server = Server::start();
    let kv = server.open().await;
    let mut watch = kv.watch("c/", 0).await.unwrap();
    let lease = kv.grant(Duration::from_secs(60)).await.unwrap();
    let at = set(&kv, "c/a", "1").await.revision;
    assert_eq!(changes(&mut watch).await[0].2, at);
    server.kill();
    let error = soon(watch.next()).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    unreachable(&kv, &[&server.url()]).await;
    server.restart();
    let mut watch = eventually(|| kv.watch("c/", at + 1)).await;
    assert!(eventually(|| kv.keep_alive(lease)).await);
    set(&kv, "c/a", "2").await;
    assert_eq!(changes(&mut watch).await, [("c/a".to_owned(), Some("2".to_owned()), at + 1)]);
}

#[tokio::test]
async fn a_restart_between_two_commits_is_not_seen() {
    if !installed() {
        return;
    }
    let mut server = Server::start();
    let kv = server.open().await;
    set(&kv, "c/a", "1").await;
    server.kill();
    server.restart();
    // So long that the connection is looked at before the next commit.
    tokio::time::sleep(Duration::from_millis(600)).await;
    set(&kv, "c/a", "2").await;
}

#[tokio::test]
async fn a_compaction_while_away_is_told_and_a_snapshot_helps() {
    if !installed() {
        return;
    }
    let server = Server::start();
    let kv = server.open().await;
    let at = set(&kv, "c/a", "1").await.revision;
    for i in 0..5 {
        set(&kv, "c/a", &i.to_string()).await;
    }
    server.raw().await.compact(at + 4, None).await.unwrap();
    let old = async { kv.watch("c/", at + 1).await?.next().await };
    let error = soon(old).await.unwrap_err();
    assert!(matches!(error, Error::Compacted(r) if r == at + 1) && error.is_temporary(), "{error:?}");
    let snapshot = kv.snapshot("c/").await.unwrap();
    let mut watch = kv.watch("c/", snapshot.revision + 1).await.unwrap();
    set(&kv, "c/a", "x").await;
    assert_eq!(changes(&mut watch).await[0].2, snapshot.revision + 1);
}

#[tokio::test]
async fn wiped_data_is_told_once_and_then_used() {
    if !installed() {
        return;
    }
    let mut server = Server::start();
    let kv = server.open().await;
    let mut watch = kv.watch("", 0).await.unwrap();
    for i in 0..5 {
        set(&kv, "c/a", &i.to_string()).await;
    }
    let before = kv.snapshot("").await.unwrap();
    server.kill();
    server.wipe();
    server.restart();
    assert!(matches!(
        async {
            loop {
                watch.next().await?;
            }
        }
        .await,
        Err::<(), _>(Error::Unreachable { .. })
    ));
    let error = loop {
        match soon(kv.watch("", before.revision + 1)).await {
            Err(Error::Unreachable { .. }) => tokio::time::sleep(Duration::from_millis(50)).await,
            other => break other.map(drop).unwrap_err(),
        }
    };
    assert!(matches!(&error, Error::OtherCluster { .. }) && error.is_temporary(), "{error:?}");
    assert!(error.to_string().contains(&server.url()), "{error}");
    let now = kv.snapshot("").await.unwrap();
    assert!(now.entries.is_empty() && now.revision < before.revision);
    set(&kv, "c/b", "").await;
    assert_eq!(kv.snapshot("").await.unwrap().entries.len(), 1);
}

#[tokio::test]
async fn another_cluster_behind_the_endpoints_is_told_once_by_a_snapshot() {
    if !installed() {
        return;
    }
    let (mut first, second) = (Server::start(), Server::start());
    let kv = open(conf(&[&first.url(), &second.url()])).await;
    let (one, two) = (first.open().await, second.open().await);
    set(&one, "c/one", "").await;
    for _ in 0..9 {
        set(&two, "c/two", "").await;
    }
    let before = kv.snapshot("").await.unwrap();
    // Whichever was taken, the other one is left.
    let mut second = second;
    let gone = if before.entries[0].key == "c/one" { &mut first } else { &mut second };
    gone.kill();
    let error = loop {
        match soon(kv.snapshot("")).await {
            Err(Error::Unreachable { .. }) => tokio::time::sleep(Duration::from_millis(50)).await,
            other => break other.map(drop).unwrap_err(),
        }
    };
    assert!(matches!(error, Error::OtherCluster { .. }), "{error:?}");
    let after = kv.snapshot("").await.unwrap();
    assert_ne!(after.cluster, before.cluster);
    assert_ne!(after.entries, before.entries);
}

#[tokio::test]
async fn a_lease_that_is_not_kept_alive_ends() {
    if !installed() {
        return;
    }
    let server = Server::start();
    let kv = server.open().await;
    let lease = kv.grant(Duration::from_millis(900)).await.unwrap();
    let mut watch = kv.watch("", 0).await.unwrap();
    let put = ovl_store::Op::Put("c/live/a".into(), vec![], Some(lease));
    kv.commit(then([put])).await.unwrap();
    assert_eq!(changes(&mut watch).await[0].1, Some(String::new()));
    assert_eq!(changes(&mut watch).await[0].1, None);
    assert!(!kv.keep_alive(lease).await.unwrap());
}
