//! Leases are released when the disk is full.
#![allow(clippy::unwrap_used)] // a failed unwrap is the report of the failed test
use std::fs::{self, File};
use std::io::Write;
use std::net::IpAddr;
use std::path::Path;

use ipam::{Ask, Attachment, Error, Range, RangeSet, Store};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

/// Runs `test` with a disk of its own of 4 MB, which this thread alone sees.
fn with_small_disk(test: impl FnOnce(&Path)) {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    let dir = tempfile::tempdir().unwrap();
    mount(Some("none"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some("size=4m")).unwrap();
    test(dir.path());
    umount2(dir.path(), MntFlags::MNT_DETACH).unwrap();
}

fn fill(disk: &Path) {
    let mut file = File::create(disk.join("fill")).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
}

fn lease(store: &Store, number: u32) -> Result<IpAddr, Error> {
    let range = Range::new("10.0.0.0/8".parse().unwrap(), None, None, None).unwrap();
    let attachment = Attachment::new(format!("container-{number}"), "eth0");
    let ask = Ask {
        network: "web",
        attachment: &attachment,
        sets: &[RangeSet::new(vec![range]).unwrap()],
        requested: &[],
        reserved: &[],
        netns: Some("/run/netns/x"),
    };
    store.allocate(&ask, &|_| true).map(|leases| leases[0].address)
}

#[test]
fn release_on_a_full_disk_frees_every_lease() {
    for count in [1, 2, 50, 2000] {
        with_small_disk(|disk| {
            let dir = disk.join("ipam");
            let store = Store::open(&dir, "boot-1").unwrap().store;
            for number in 0..count {
                lease(&store, number).unwrap();
            }
            drop(store);
            fill(disk);
            for number in 0..count {
                // As a DEL does, which opens it each time.
                let store = Store::open(&dir, "boot-1").unwrap().store;
                let attachment = Attachment::new(format!("container-{number}"), "eth0");
                assert_eq!(store.release("web", &attachment).unwrap().len(), 1, "{number} of {count}");
            }
            fs::remove_file(disk.join("fill")).unwrap();
            let store = Store::open(&dir, "boot-1").unwrap().store;
            store.check().unwrap();
            lease(&store, 0).unwrap();
        });
    }
}
