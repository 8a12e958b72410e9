//! Host-local's directories, as the reference plugin writes them.
#![allow(clippy::unwrap_used)] // a failed unwrap is the report of the failed test
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use ipam::{Ask, Attachment, Range, RangeSet, Store};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn next(store: &Store, who: &str) -> IpAddr {
    let range = Range::new("10.1.0.0/29".parse().unwrap(), None, None, None).unwrap();
    let attachment = Attachment::new(who, "eth0");
    let sets = [RangeSet::new(vec![range]).unwrap()];
    let ask = Ask {
        network: "web",
        attachment: &attachment,
        sets: &sets,
        requested: &[],
        reserved: &[],
        netns: None,
    };
    let given = store.allocate(&ask, &|_| true).unwrap()[0].address;
    store.check().unwrap();
    given
}

fn old(path: &Path) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000)).unwrap();
}

#[test]
fn host_locals_leases_and_its_place_in_the_round_are_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("ipam"), "boot-1").unwrap().store;
    let data = dir.path().join("networks");
    assert_eq!(store.import("web", &data).unwrap(), []);
    let web = data.join("web");
    fs::create_dir_all(&web).unwrap();
    fs::write(web.join("10.1.0.4"), "c1\r\neth0").unwrap();
    fs::write(web.join("10.1.0.2"), "c2").unwrap();
    fs::write(web.join("fd00::2"), "c3\r\nnet1").unwrap();
    fs::write(web.join("fd00__3"), "c4\r\neth0").unwrap();
    fs::write(web.join("10.1.0.3"), "").unwrap();
    fs::write(web.join("last_reserved_ip.0"), "10.1.0.4").unwrap();
    fs::write(web.join("lock"), "").unwrap();
    old(&web.join("10.1.0.2"));
    let mut taken = store.import("web", &data).unwrap();
    store.check().unwrap();
    taken.sort_by_key(|l| l.address);
    let known: Vec<(IpAddr, &str, &str, &str)> = taken
        .iter()
        .map(|l| (l.address, l.attachment.container.as_str(), l.attachment.ifname.as_str(), l.boot.as_str()))
        .collect();
    assert_eq!(
        known,
        [
            (ip("10.1.0.2"), "c2", "", ""),
            (ip("10.1.0.4"), "c1", "eth0", "boot-1"),
            (ip("fd00::2"), "c3", "net1", "boot-1"),
            (ip("fd00::3"), "c4", "eth0", "boot-1"),
        ]
    );
    assert!(!web.exists());
    assert_eq!(store.import("web", &data).unwrap(), []);
    // 10.1.0.4 was the last one; after the end it goes on at the start, past what is held.
    assert_eq!(["d1", "d2", "d3"].map(|w| next(&store, w)), ["10.1.0.5", "10.1.0.6", "10.1.0.3"].map(ip));
    // A lease that names no interface is its container's, whatever the interface.
    assert_eq!(store.find("web", &Attachment::new("c2", "eth0")).unwrap().len(), 1);
    assert_eq!(store.release("web", &Attachment::new("c2", "eth7")).unwrap().len(), 1);
    assert_eq!(next(&store, "d4"), ip("10.1.0.2"));
}

#[test]
fn an_interrupted_take_over_is_finished_and_our_own_leases_stay() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("ipam"), "boot-1").unwrap().store;
    let web = dir.path().join("web");
    fs::create_dir(&web).unwrap();
    assert_eq!(next(&store, "ours"), ip("10.1.0.2"));
    fs::write(web.join("10.1.0.2"), "theirs\r\neth0").unwrap();
    fs::write(web.join("notes.txt"), "kept").unwrap();
    assert_eq!(store.import("web", dir.path()).unwrap(), []);
    assert_eq!(store.holder("web", ip("10.1.0.2")).unwrap().unwrap().attachment.container, "ours");
    assert!(!web.join("10.1.0.2").exists());
    assert!(web.join("notes.txt").exists());
    store.check().unwrap();
}
