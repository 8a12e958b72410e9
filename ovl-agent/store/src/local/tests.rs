//! What only the embedded store does: closing, damage, the second process, the bound of its history.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::*;
use crate::{Compare, Event, KeyValue, Op};

fn put(key: &str, value: &str) -> Txn {
    Txn { then: vec![Op::Put(key.into(), value.into(), None)], ..Txn::default() }
}

fn data(dir: &Path) -> PathBuf {
    dir.join("data.mdb")
}

/// A store with two keys at revision 3, closed.
fn filled() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let store = Local::open(dir.path()).unwrap();
    store.commit(&put("c/a", "1")).unwrap();
    store.commit(&put("c/b", "2")).unwrap();
    dir
}

#[test]
fn what_was_committed_is_there_after_closing_with_its_revisions_and_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let store = Local::open(dir.path()).unwrap();
    store.commit(&put("c/a", "1")).unwrap();
    store.commit(&put("c/b", "2")).unwrap();
    let before = store.snapshot("").unwrap();
    drop(store);
    let store = Local::open(dir.path()).unwrap();
    assert!(store.notes().is_empty());
    assert_eq!(store.snapshot("").unwrap(), before);
    assert_eq!(before.entries[1], KeyValue { key: "c/b".into(), value: b"2".into(), created: 3, changed: 3 });
    assert_eq!(store.commit(&put("c/c", "3")).unwrap().revision, 4);
}

#[test]
fn leases_end_with_the_process_and_take_their_keys_along() {
    let dir = tempfile::tempdir().unwrap();
    let store = Local::open(dir.path()).unwrap();
    let lease = store.grant().unwrap();
    let leased = |key: &str| Op::Put(key.into(), vec![], Some(lease));
    let then = vec![leased("c/live/a"), leased("c/live/b"), Op::Put("c/a".into(), vec![], None)];
    let revision = store.commit(&Txn { then, ..Txn::default() }).unwrap().revision;
    drop(store);
    let store = Local::open(dir.path()).unwrap();
    let now = store.snapshot("").unwrap();
    assert_eq!(now.entries.iter().map(|e| e.key.as_str()).collect::<Vec<_>>(), ["c/a"]);
    assert_eq!(now.revision, revision + 1, "their end is a change");
    assert!(!store.holds(lease));
    let again = store.commit(&Txn { then: vec![leased("c/live/a")], ..Txn::default() });
    assert!(matches!(again, Err(Error::Refused(_))), "{again:?}");
    drop(store);
    assert_eq!(Local::open(dir.path()).unwrap().snapshot("").unwrap(), now, "no second end");
}

#[test]
fn a_second_opening_says_which_process_has_the_store() {
    let dir = filled();
    let store = Local::open(dir.path()).unwrap();
    let error = Local::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains(&format!("process {} (", std::process::id())), "{error}");
    assert!(error.contains(dir.path().to_str().unwrap()), "{error}");
    store.commit(&put("c/c", "3")).unwrap();
    drop(store);
    Local::open(dir.path()).unwrap();
}

#[test]
fn a_truncated_store_is_set_aside_and_a_new_one_begun() {
    let dir = filled();
    let before = Local::open(dir.path()).unwrap().snapshot("").unwrap();
    let file = File::options().write(true).open(data(dir.path())).unwrap();
    file.set_len(9000).unwrap();
    let store = Local::open(dir.path()).unwrap();
    let now = store.snapshot("").unwrap();
    assert!(now.entries.is_empty());
    assert_ne!(now.cluster, before.cluster, "it is another store");
    let [note] = store.notes() else { panic!("{:?}", store.notes()) };
    let aside = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path());
    let aside = aside.filter(|p| p.to_str().unwrap().contains("damaged-")).collect::<Vec<_>>();
    assert_eq!(aside.len(), 1);
    assert!(note.contains(aside[0].to_str().unwrap()), "{note}");
    assert_eq!(fs::metadata(&aside[0]).unwrap().len(), 9000);
}

#[test]
fn damage_anywhere_in_the_file_is_never_a_panic() {
    let dir = filled();
    let sound = fs::read(data(dir.path())).unwrap();
    let mut noticed = 0;
    for at in (0..sound.len()).step_by(331) {
        let mut bytes = sound.clone();
        bytes[at..(at + 8).min(sound.len())].fill(0xff);
        fs::write(data(dir.path()), bytes).unwrap();
        let store = Local::open(dir.path()).unwrap_or_else(|e| panic!("byte {at}: {e}"));
        noticed += store.notes().len();
        store.commit(&put("c/d", "4")).unwrap();
        store.snapshot("").unwrap();
    }
    assert!(noticed > 0);
}

#[test]
fn what_a_killed_maker_left_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(data(dir.path()), b"").unwrap();
    assert!(Local::open(dir.path()).unwrap().notes().is_empty());
    let dir = tempfile::tempdir().unwrap();
    drop(Lmdb::open(dir.path()).unwrap());
    assert!(Local::open(dir.path()).unwrap().notes().is_empty());
}

#[test]
fn a_newer_version_is_refused_and_left_as_it_is() {
    let dir = filled();
    let lmdb = Lmdb::open(dir.path()).unwrap();
    lmdb.overwrite(record::HEAD, &[9, 1, 2, 3]).unwrap();
    drop(lmdb);
    let before = fs::read(data(dir.path())).unwrap();
    let error = Local::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("newer version"), "{error}");
    assert!(fs::read(data(dir.path())).unwrap() == before);
}

#[test]
fn store_of_version_1_is_read_and_written() {
    let dir = filled();
    let lmdb = Lmdb::open(dir.path()).unwrap();
    let head = [&[1][..], &3i64.to_be_bytes(), &7u64.to_be_bytes()].concat();
    lmdb.overwrite(record::HEAD, &head).unwrap();
    let old = [&3i64.to_be_bytes()[..], &0i64.to_be_bytes(), b"2"].concat();
    lmdb.overwrite(&record::named("c/b"), &old).unwrap();
    drop(lmdb);
    let store = Local::open(dir.path()).unwrap();
    assert!(store.notes().is_empty(), "{:?}", store.notes());
    let entry = |created, changed| KeyValue { key: "c/b".into(), value: b"2".into(), created, changed };
    assert_eq!(store.snapshot("").unwrap().entries[1], entry(3, 3));
    store.commit(&put("c/b", "2")).unwrap();
    drop(store);
    let store = Local::open(dir.path()).unwrap();
    assert_eq!(store.snapshot("").unwrap().entries[1], entry(3, 4));
}

#[test]
fn a_directory_that_cannot_be_used_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, b"").unwrap();
    let error = Local::open(&file).unwrap_err();
    assert!(matches!(&error, Error::Local { .. }) && error.to_string().contains("/file"), "{error}");
}

#[tokio::test]
async fn a_watch_from_before_the_opening_is_compacted() {
    let dir = filled();
    let store = Local::open(dir.path()).unwrap();
    let compacted = store.watch("", 3).unwrap().next().await;
    assert!(matches!(compacted, Err(Error::Compacted(3))), "{compacted:?}");
    let mut watch = store.watch("", 4).unwrap();
    store.commit(&put("c/c", "3")).unwrap();
    let Event::Changes(changes) = watch.next().await.unwrap() else { panic!() };
    assert_eq!((changes[0].key.as_str(), changes[0].revision), ("c/c", 4));
}

#[tokio::test]
async fn a_watch_that_falls_behind_the_history_is_compacted_and_others_are_not() {
    let history_bytes = 4 << 20;
    let dir = tempfile::tempdir().unwrap();
    let store = Local::open(dir.path()).unwrap();
    let (mut slow, mut fast) = (store.watch("", 0).unwrap(), store.watch("", 0).unwrap());
    let big = "x".repeat(1 << 19);
    for round in 0..history_bytes / big.len() + 2 {
        let revision = store.commit(&put("c/a", &big)).unwrap().revision;
        let told = fast.next().await.unwrap();
        let Event::Changes(told) = told else { panic!("{told:?}") };
        assert_eq!((told.len(), told[0].revision), (1, revision), "round {round}");
    }
    assert!(matches!(slow.next().await, Err(Error::Compacted(2))));
    assert!(matches!(slow.next().await, Err(Error::Compacted(2))), "it stays so");
}

#[tokio::test]
async fn a_watch_keeps_the_store_open_and_goes_on_after_its_handle_is_dropped() {
    let dir = filled();
    let store = Local::open(dir.path()).unwrap();
    let mut watch = store.watch("", 0).unwrap();
    drop(store);
    Local::open(dir.path()).unwrap_err();
    assert!(tokio::time::timeout(Duration::from_millis(20), watch.next()).await.is_err());
    drop(watch);
    Local::open(dir.path()).unwrap();
}

#[test]
fn a_transaction_that_fails_half_way_changes_nothing() {
    let dir = filled();
    let store = Local::open(dir.path()).unwrap();
    let before = store.snapshot("").unwrap();
    let then = vec![Op::Put("c/z".into(), vec![], None), Op::Put("c/y".into(), vec![], Some(5))];
    assert!(store.commit(&Txn { then, ..Txn::default() }).is_err());
    assert_eq!(store.snapshot("").unwrap(), before);
    let held = Txn { when: vec![Compare::Absent("c/z".into())], ..Txn::default() };
    assert!(store.commit(&held).unwrap().held);
}

const KILLED: &str = "OVL_STORE_TEST_KILLED";

/// Not a test of its own: the process that the test below kills.
#[test]
fn commit_until_killed() {
    let Ok(dir) = std::env::var(KILLED) else { return };
    let store = Local::open(Path::new(&dir)).unwrap();
    for round in 0.. {
        let value = round.to_string();
        let put = |key: &str| Op::Put(key.into(), value.clone().into(), None);
        let extra = Op::Put(format!("c/{round}"), vec![7; 3000], None);
        let then = vec![put("c/a"), extra, Op::Delete(format!("c/{}", round - 3)), put("c/z")];
        let revision = store.commit(&Txn { then, ..Txn::default() }).unwrap().revision;
        println!("done {revision}");
    }
}

#[test]
fn a_process_that_is_killed_loses_nothing_that_it_was_told_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let mut last = 0;
    for round in 0..5 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "local::tests::commit_until_killed", "--nocapture"])
            .env(KILLED, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let revision = |line: &str| line.strip_prefix("done ").and_then(|r| r.parse::<i64>().ok());
        for line in lines.by_ref().take(20 + round * 17) {
            last = revision(&line.unwrap()).unwrap_or(last);
        }
        child.kill().unwrap();
        // What it said before it died counts too; the last line can be cut off.
        let rest: Vec<_> = lines.map_while(std::result::Result::ok).collect();
        last = rest.iter().rev().skip(1).find_map(|line| revision(line)).unwrap_or(last);
        child.wait().unwrap();
        let store = Local::open(dir.path()).unwrap();
        assert!(store.notes().is_empty(), "{:?}", store.notes());
        let now = store.snapshot("").unwrap();
        assert!(now.revision >= last && last > 0, "{} after {last}", now.revision);
        let value = |key: &str| now.entries.iter().find(|e| e.key == key).map(|e| e.value.clone());
        assert_eq!(value("c/a"), value("c/z"), "a transaction is whole");
    }
}
