//! Both stores behave alike: the same checks, and the same random transactions, on both.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap here is the failure report")]

mod common;

use std::time::Duration;

use common::*;
use ovl_store::target::EtcdConf;
use ovl_store::{Change, Compare, Error, Event, KeyValue, Kv, Op, Txn, range_end};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

/// Each check as a test of the local store, and all of them, each below a prefix of its own, on one etcd.
macro_rules! checks {
    ($($name:ident),* $(,)?) => {
        mod local {
            $(#[tokio::test]
            async fn $name() {
                let dir = tempfile::tempdir().unwrap();
                super::$name(&super::open_local(dir.path()).await).await;
            })*
        }

        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn etcd_behaves_alike() {
            if !installed() {
                return;
            }
            let server = Server::start();
            $({
                eprintln!("etcd: {}", stringify!($name));
                let prefix = format!("/weft/{}/", stringify!($name));
                $name(&open(EtcdConf { prefix, ..server.conf() }).await).await;
            })*
        }
    };
}

checks!(
    a_transaction_compares_and_changes_in_one_step,
    conditions_hold_as_they_say,
    get_sees_the_steps_before_it,
    the_revision_grows_only_when_something_changed,
    rewritten_key_keeps_the_revision_that_made_it,
    ranges_end_before_their_end,
    a_key_is_changed_once_in_a_transaction,
    what_is_not_allowed_is_refused_and_changes_nothing,
    a_snapshot_has_what_is_below_the_prefix,
    a_part_counts_everything_and_shows_some,
    a_watch_tells_whole_revisions_in_order,
    a_watch_begins_where_it_is_asked_to,
    a_watch_tells_only_what_is_below_its_prefix,
    a_watch_from_now_on_tells_nothing_old,
    a_watch_of_a_revision_to_come_is_refused,
    a_watch_that_is_given_up_in_between_loses_nothing,
    a_lease_takes_its_keys_along,
    what_is_left_of_a_keys_time_is_told,
    a_key_put_without_its_lease_stays,
    a_lease_that_ended_is_told_and_refused,
    many_claim_one_key_and_one_gets_it,
    values_of_any_bytes_come_back,
);

fn absent(key: &str) -> Compare {
    Compare::Absent(key.into())
}

fn entry(key: &str, value: &str, changed: i64) -> KeyValue {
    KeyValue { key: key.into(), value: value.into(), created: changed, changed }
}

async fn revision(kv: &Kv) -> i64 {
    kv.commit(Txn::default()).await.unwrap().revision
}

async fn a_transaction_compares_and_changes_in_one_step(kv: &Kv) {
    let claim = |owner: &str| when([absent("c/a")], [put("c/a", owner)], [get("c/a", "c/a\x7f")]);
    let first = kv.commit(claim("one")).await.unwrap();
    assert!(first.held && first.got.is_empty());
    let second = kv.commit(claim("two")).await.unwrap();
    assert!(!second.held);
    assert_eq!(second.got, [[entry("c/a", "one", first.revision)]]);
    assert_eq!(second.revision, first.revision);
}

async fn conditions_hold_as_they_say(kv: &Kv) {
    let at = set(kv, "c/b", "1").await.revision;
    for (compare, holds) in [
        (absent("c/a"), true),
        (absent("c/b"), false),
        (Compare::Present("c/b".into()), true),
        (Compare::Present("c/a".into()), false),
        (Compare::Unchanged("c/b".into(), at), true),
        (Compare::Unchanged("c/b".into(), at - 1), false),
        (Compare::Unchanged("c/a".into(), at), false),
        (Compare::Empty("c/a".into(), "c/b".into()), true),
        (Compare::Empty("c/a".into(), "c/c".into()), false),
        (Compare::Empty("c/b".into(), "c/c".into()), false),
        (Compare::Empty("c/c".into(), range_end("c/")), true),
        (Compare::Empty("".into(), range_end("")), false),
    ] {
        let done = kv.commit(when([compare.clone()], [], [])).await.unwrap();
        assert_eq!(done.held, holds, "{compare:?}");
    }
    let both = when([absent("c/a"), absent("c/b")], [put("c/a", "")], []);
    assert!(!kv.commit(both).await.unwrap().held, "all have to hold");
    set(kv, "c/b", "1").await;
    let since = when([Compare::Unchanged("c/b".into(), at)], [], []);
    assert!(!kv.commit(since).await.unwrap().held, "the same value is a change too");
}

async fn get_sees_the_steps_before_it(kv: &Kv) {
    let at = set(kv, "c/a", "1").await.revision;
    let all = || get("c/", &range_end("c/"));
    let steps = [all(), put("c/b", "2"), all(), del("c/a"), all(), put("c/c", "3")];
    let done = kv.commit(then(steps)).await.unwrap();
    assert_eq!(done.revision, at + 1);
    let (a, b) = (entry("c/a", "1", at), entry("c/b", "2", at + 1));
    assert_eq!(done.got, [vec![a.clone()], vec![a, b.clone()], vec![b]]);
}

async fn rewritten_key_keeps_the_revision_that_made_it(kv: &Kv) {
    let mut watch = kv.watch("", 0).await.unwrap();
    let at = set(kv, "c/a", "1").await.revision;
    set(kv, "c/a", "2").await;
    let rewritten = KeyValue { created: at, ..entry("c/a", "2", at + 1) };
    assert_eq!(kv.snapshot("").await.unwrap().entries, std::slice::from_ref(&rewritten));
    assert_eq!(kv.commit(then([get("c/a", "c/b")])).await.unwrap().got, [[rewritten]]);
    kv.commit(then([del("c/a")])).await.unwrap();
    set(kv, "c/a", "3").await;
    assert_eq!(kv.snapshot("").await.unwrap().entries, [entry("c/a", "3", at + 3)]);
    let mut created = Vec::new();
    while created.len() < 4 {
        if let Event::Changes(changes) = soon(watch.next()).await.unwrap() {
            created.extend(changes.into_iter().map(|change| change.created));
        }
    }
    assert_eq!(created, [at, at, 0, at + 3]);
}

async fn the_revision_grows_only_when_something_changed(kv: &Kv) {
    let at = set(kv, "c/a", "1").await.revision;
    for (steps, grows) in [
        (vec![], 0),
        (vec![get("c/", &range_end("c/"))], 0),
        (vec![del("c/b")], 0),
        (vec![Op::DeleteRange("c/b".into(), "c/z".into())], 0),
        (vec![put("c/a", "1")], 1),
        (vec![put("c/a", "2"), put("c/b", "2"), put("c/c", "2")], 1),
        (vec![del("c/a"), Op::DeleteRange("c/".into(), range_end("c/"))], 1),
    ] {
        let before = revision(kv).await;
        let done = kv.commit(then(steps.clone())).await.unwrap();
        assert_eq!(done.revision, before + grows, "{steps:?}");
        assert_eq!(revision(kv).await, before + grows, "{steps:?}");
    }
    assert_eq!(revision(kv).await, at + 3);
}

async fn ranges_end_before_their_end(kv: &Kv) {
    let keys = ["c/a", "c/aa", "c/b", "d"].map(|key| put(key, ""));
    kv.commit(then(keys)).await.unwrap();
    let names = |got: &[KeyValue]| got.iter().map(|kv| kv.key.clone()).collect::<Vec<_>>();
    let done =
        kv.commit(then([get("c/a", "c/b"), get("c/", &range_end("c/")), get("c/b", "c/ba")])).await.unwrap();
    assert_eq!(names(&done.got[0]), ["c/a", "c/aa"]);
    assert_eq!(names(&done.got[1]), ["c/a", "c/aa", "c/b"]);
    assert_eq!(names(&done.got[2]), ["c/b"]);
    kv.commit(then([Op::DeleteRange("c/a".into(), "c/b".into())])).await.unwrap();
    assert_eq!(names(&kv.snapshot("").await.unwrap().entries), ["c/b", "d"]);
}

async fn refused(kv: &Kv, txn: Txn) {
    let before = kv.snapshot("").await.unwrap();
    let error = kv.commit(txn.clone()).await.unwrap_err();
    assert!(matches!(error, Error::Refused(_)), "{txn:?}: {error}");
    assert_eq!(kv.snapshot("").await.unwrap(), before, "{txn:?}");
}

async fn a_key_is_changed_once_in_a_transaction(kv: &Kv) {
    let range = |from: &str, to: &str| Op::DeleteRange(from.into(), to.into());
    for steps in [
        vec![put("c/a", "1"), put("c/a", "2")],
        vec![put("c/a", "1"), del("c/a")],
        vec![del("c/a"), put("c/a", "1")],
        vec![put("c/a", "1"), range("c/", "d")],
        vec![range("c/a", "c/b"), put("c/a", "1")],
    ] {
        refused(kv, then(steps.clone())).await;
        refused(kv, when([absent("c/x")], [], steps)).await;
    }
    let apart = then([put("c/b", ""), range("c/a", "c/b"), del("c/c"), del("c/c")]);
    kv.commit(apart).await.unwrap();
    kv.commit(when([], [put("c/a", "")], [put("c/a", "")])).await.unwrap();
}

async fn what_is_not_allowed_is_refused_and_changes_nothing(kv: &Kv) {
    let keys = |n: usize| (0..n).map(|i| put(&format!("c/{i}"), "")).collect::<Vec<_>>();
    refused(kv, then(keys(101))).await;
    refused(kv, when([], [], keys(101))).await;
    refused(kv, when(vec![absent("c/a"); 101], [], [])).await;
    refused(kv, then([put("", "")])).await;
    refused(kv, then([put("c/\u{7f}", "")])).await;
    refused(kv, then([put("c/ä", "")])).await;
    refused(kv, then([put("c/\n", "")])).await;
    refused(kv, then([put(&"k".repeat(501), "")])).await;
    refused(kv, then([put("c/a", &"v".repeat(1 << 20))])).await;
    refused(kv, then([get("c/b", "c/a")])).await;
    refused(kv, then([Op::DeleteRange("c/b".into(), "c/b".into())])).await;
    refused(kv, when([Compare::Empty("c/b".into(), "".into())], [], [])).await;
    kv.commit(then(keys(100))).await.unwrap();
    kv.commit(then([put(&"k".repeat(500), &"v".repeat((1 << 20) - 500))])).await.unwrap();
    assert_eq!(kv.snapshot("").await.unwrap().entries.len(), 101);
}

async fn a_snapshot_has_what_is_below_the_prefix(kv: &Kv) {
    let empty = kv.snapshot("").await.unwrap();
    assert!(empty.entries.is_empty() && empty.revision > 0 && empty.cluster != 0);
    let first = set(kv, "c/b", "2").await.revision;
    kv.commit(then([put("c/a", "1"), put("a", "0"), put("d", "3")])).await.unwrap();
    let below = kv.snapshot("c/").await.unwrap();
    assert_eq!(below.entries, [entry("c/a", "1", first + 1), entry("c/b", "2", first)]);
    assert_eq!((below.revision, below.cluster), (first + 1, empty.cluster));
    let all = kv.snapshot("").await.unwrap();
    let names: Vec<_> = all.entries.iter().map(|e| e.key.as_str()).collect();
    assert_eq!(names, ["a", "c/a", "c/b", "d"]);
    assert!(kv.snapshot("x").await.unwrap().entries.is_empty());
}

async fn a_part_counts_everything_and_shows_some(kv: &Kv) {
    let part = async |from: &str, limit| {
        let part = kv.part("c/", from, limit).await.unwrap();
        (part.revision, part.count, part.keys, part.more)
    };
    let at = revision(kv).await;
    assert_eq!(part("", 5).await, (at, 0, vec![], false));
    kv.commit(then([put("c/a", "1"), put("c/b", "1"), put("c/c", "1"), put("b", "1"), put("d", "1")]))
        .await
        .unwrap();
    set(kv, "c/b", "2").await;
    let now = set(kv, "d", "2").await.revision;
    assert_eq!(now, at + 3);
    let key = |key: &str, changed| (key.to_owned(), changed);
    let all = [key("c/a", at + 1), key("c/b", at + 2), key("c/c", at + 1)];
    assert_eq!(part("", 3).await, (now, 3, all.to_vec(), false));
    assert_eq!(part("", 2).await, (now, 3, all[..2].to_vec(), true));
    assert_eq!(part("c/b", 1).await, (now, 3, all[1..2].to_vec(), true));
    assert_eq!(part("c/b\0", 9).await, (now, 3, all[2..].to_vec(), false));
    assert_eq!(part("c/x", 9).await, (now, 3, vec![], false));
    let now = kv.commit(then([del("c/a"), put("e", "1")])).await.unwrap().revision;
    assert_eq!(part("c/a", 1).await, (now, 2, vec![all[1].clone()], true));
}

fn told(key: &str, value: Option<&str>, revision: i64) -> (String, Option<String>, i64) {
    (key.into(), value.map(Into::into), revision)
}

async fn a_watch_tells_whole_revisions_in_order(kv: &Kv) {
    let at = revision(kv).await;
    let mut watch = kv.watch("c/", at + 1).await.unwrap();
    kv.commit(then([put("c/b", "1"), put("c/a", "1")])).await.unwrap();
    set(kv, "c/a", "2").await;
    kv.commit(then([Op::DeleteRange("c/".into(), range_end("c/")), put("d", "")])).await.unwrap();
    let mut all = Vec::new();
    while all.len() < 5 {
        all.extend(changes(&mut watch).await);
    }
    assert_eq!(
        all,
        [
            told("c/b", Some("1"), at + 1),
            told("c/a", Some("1"), at + 1),
            told("c/a", Some("2"), at + 2),
            told("c/a", None, at + 3),
            told("c/b", None, at + 3),
        ]
    );
}

async fn a_watch_begins_where_it_is_asked_to(kv: &Kv) {
    let at = set(kv, "c/a", "1").await.revision;
    set(kv, "c/a", "2").await;
    let mut watch = kv.watch("c/", at + 1).await.unwrap();
    assert_eq!(changes(&mut watch).await, [told("c/a", Some("2"), at + 1)]);
    set(kv, "c/a", "3").await;
    assert_eq!(changes(&mut watch).await, [told("c/a", Some("3"), at + 2)]);
}

async fn a_watch_tells_only_what_is_below_its_prefix(kv: &Kv) {
    let at = revision(kv).await;
    let mut watch = kv.watch("c/", at + 1).await.unwrap();
    for key in ["b", "c", "c0", "d/a", "a/c/"] {
        set(kv, key, "").await;
    }
    set(kv, "c/a", "1").await;
    assert_eq!(changes(&mut watch).await, [told("c/a", Some("1"), at + 6)]);
}

async fn a_watch_from_now_on_tells_nothing_old(kv: &Kv) {
    set(kv, "c/a", "1").await;
    let mut watch = kv.watch("", 0).await.unwrap();
    let at = set(kv, "c/b", "2").await.revision;
    assert_eq!(changes(&mut watch).await, [told("c/b", Some("2"), at)]);
}

async fn a_watch_of_a_revision_to_come_is_refused(kv: &Kv) {
    let at = revision(kv).await;
    kv.watch("", at + 1).await.unwrap();
    let refused = kv.watch("", at + 2).await;
    assert!(matches!(refused, Err(Error::OtherCluster { .. })), "{refused:?}");
}

async fn a_watch_that_is_given_up_in_between_loses_nothing(kv: &Kv) {
    let mut watch = kv.watch("c/", 0).await.unwrap();
    for round in 0..20_u64 {
        let writer = {
            let kv = kv.clone();
            tokio::spawn(async move { set(&kv, "c/a", &round.to_string()).await.revision })
        };
        let value = loop {
            let next = tokio::time::timeout(Duration::from_micros(round * 100), watch.next()).await;
            if let Event::Changes(changes) = next.unwrap_or(Ok(Event::Progress(0))).unwrap() {
                break changes[0].value.clone();
            }
        };
        assert_eq!(value, Some(round.to_string().into_bytes()));
        soon(writer).await.unwrap();
    }
}

async fn what_is_left_of_a_keys_time_is_told(kv: &Kv) {
    let lease = kv.grant(Duration::from_secs(600)).await.unwrap();
    kv.commit(then([Op::Put("c/a".into(), vec![], Some(lease)), put("c/b", "")])).await.unwrap();
    let left = kv.remaining("c/a").await.unwrap();
    match kv {
        // It ends with the process.
        Kv::Local(_) => assert_eq!(left, None),
        Kv::Etcd(_) => assert!((1..=600).contains(&left.unwrap().as_secs()), "{left:?}"),
    }
    for other in ["c/b", "c/none"] {
        assert_eq!(kv.remaining(other).await.unwrap(), None);
    }
}

async fn a_lease_takes_its_keys_along(kv: &Kv) {
    let lease = kv.grant(Duration::from_secs(60)).await.unwrap();
    let other = kv.grant(Duration::from_secs(60)).await.unwrap();
    assert!(lease != other && lease > 0);
    let leased = |key: &str, lease| Op::Put(key.into(), vec![], Some(lease));
    let steps =
        [leased("c/live/b", lease), leased("c/live/a", lease), leased("c/live/c", other), put("c/x", "")];
    let at = kv.commit(then(steps)).await.unwrap().revision;
    assert!(kv.keep_alive(lease).await.unwrap());
    let mut watch = kv.watch("c/", at + 1).await.unwrap();
    kv.revoke(lease).await.unwrap();
    let gone = changes(&mut watch).await;
    assert_eq!(gone, [told("c/live/a", None, at + 1), told("c/live/b", None, at + 1)]);
    assert!(!kv.keep_alive(lease).await.unwrap());
    assert!(kv.keep_alive(other).await.unwrap());
    kv.revoke(lease).await.unwrap();
    kv.revoke(other).await.unwrap();
    assert_eq!(kv.snapshot("").await.unwrap().entries.len(), 1);
    let empty = kv.grant(Duration::from_secs(60)).await.unwrap();
    let at = revision(kv).await;
    kv.revoke(empty).await.unwrap();
    assert_eq!(revision(kv).await, at, "no keys, no change");
}

async fn a_key_put_without_its_lease_stays(kv: &Kv) {
    let lease = kv.grant(Duration::from_secs(60)).await.unwrap();
    kv.commit(then([Op::Put("c/a".into(), vec![], Some(lease))])).await.unwrap();
    let at = set(kv, "c/a", "1").await.revision;
    kv.revoke(lease).await.unwrap();
    assert_eq!(
        kv.snapshot("").await.unwrap().entries,
        [KeyValue { created: at - 1, ..entry("c/a", "1", at) }]
    );
}

async fn a_lease_that_ended_is_told_and_refused(kv: &Kv) {
    let lease = kv.grant(Duration::from_secs(60)).await.unwrap();
    kv.revoke(lease).await.unwrap();
    assert!(!kv.keep_alive(lease).await.unwrap());
    refused(kv, then([put("c/b", ""), Op::Put("c/a".into(), vec![], Some(lease))])).await;
}

async fn many_claim_one_key_and_one_gets_it(kv: &Kv) {
    let claims = (0..16).map(|i| {
        let kv = kv.clone();
        tokio::spawn(async move {
            let claim = when([absent("c/one")], [put("c/one", &i.to_string())], []);
            (i, kv.commit(claim).await.unwrap().held)
        })
    });
    let mut winners = Vec::new();
    for claim in claims.collect::<Vec<_>>() {
        let (i, held) = soon(claim).await.unwrap();
        winners.extend(held.then_some(i));
    }
    assert_eq!(winners.len(), 1);
    let snapshot = kv.snapshot("").await.unwrap();
    assert_eq!(snapshot.entries[0].value, winners[0].to_string().into_bytes());
}

async fn values_of_any_bytes_come_back(kv: &Kv) {
    let value: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    kv.commit(then([Op::Put("c/a".into(), value.clone(), None)])).await.unwrap();
    assert!(kv.snapshot("c/").await.unwrap().entries[0].value == value);
    set(kv, "c/a", "").await;
    assert_eq!(kv.snapshot("c/").await.unwrap().entries[0].value, b"");
}

fn txn() -> impl Strategy<Value = Txn> {
    let ops = || prop::collection::vec(op(), 0..4);
    (prop::collection::vec(compare(), 0..2), ops(), ops()).prop_map(|(when, then, otherwise)| Txn {
        when,
        then,
        otherwise,
    })
}

/// With revisions counted from `base`.
fn shifted(txn: &Txn, base: i64) -> Txn {
    let mut txn = txn.clone();
    for compare in &mut txn.when {
        if let Compare::Unchanged(_, revision) = compare
            && *revision > 0
        {
            *revision += base;
        }
    }
    txn
}

/// What came of a transaction, with revisions counted from `base`.
async fn outcome(kv: &Kv, txn: &Txn, base: i64) -> String {
    match kv.commit(shifted(txn, base)).await {
        Ok(mut done) => {
            done.revision -= base;
            done.got
                .iter_mut()
                .flatten()
                .for_each(|kv| (kv.created, kv.changed) = (kv.created - base, kv.changed - base));
            format!("{done:?}")
        }
        Err(e) => e.to_string(),
    }
}

/// All changes up to a revision, counted from `base`.
async fn history(kv: &Kv, base: i64, last: i64) -> Vec<Change> {
    let mut watch = kv.watch("", base + 1).await.unwrap();
    let mut all: Vec<Change> = Vec::new();
    while all.last().is_none_or(|c| c.revision < last) {
        if let Event::Changes(changes) = soon(watch.next()).await.unwrap() {
            all.extend(changes.into_iter().map(|c| {
                let created = if c.created > 0 { c.created - base } else { 0 };
                Change { created, revision: c.revision - base, ..c }
            }));
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_transactions_have_the_same_outcome_on_both() {
    if !installed() {
        return;
    }
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let (etcd, local) = (server.open().await, open_local(dir.path()).await);
    let (on_etcd, on_local) = (revision(&etcd).await, revision(&local).await);
    let mut runner = TestRunner::default();
    let strategy = txn();
    for round in 0..400 {
        let txn = strategy.new_tree(&mut runner).unwrap().current();
        let (a, b) = (outcome(&etcd, &txn, on_etcd).await, outcome(&local, &txn, on_local).await);
        assert_eq!(a, b, "round {round}: {txn:?}");
    }
    set(&etcd, "end", "").await;
    let last = set(&local, "end", "").await.revision - on_local;
    assert_eq!(history(&etcd, on_etcd, last).await, history(&local, on_local, last).await);
}
