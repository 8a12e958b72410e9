//! Files that a power cut, a full disk or a clumsy hand has damaged: never trusted, never fatal, set aside with a note.
#![allow(clippy::unwrap_used)] // a failed unwrap is the report of the failed test
use std::fs::{self, File};
use std::net::IpAddr;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use ipam::{Ask, Attachment, Error, Range, RangeSet, Store};

fn give(store: &Store, who: &str) -> Result<IpAddr, Error> {
    let range = Range::new("10.0.0.0/8".parse().unwrap(), None, None, None).unwrap();
    let attachment = Attachment::new(format!("{who:0>64}"), "eth0");
    let sets = [RangeSet::new(vec![range]).unwrap()];
    let ask = Ask {
        network: "web",
        attachment: &attachment,
        sets: &sets,
        requested: &[],
        reserved: &[],
        netns: None,
    };
    Ok(store.allocate(&ask, &|_| true)?.remove(0).address)
}

/// A store with so many leases given one by one, some of which were released.
fn fill(dir: &Path, count: usize) {
    let store = Store::open(dir, "boot-1").unwrap().store;
    for i in 0..count {
        give(&store, &format!("c{i}")).unwrap();
        if i % 3 == 0 {
            store.release("web", &Attachment::new(format!("{:0>64}", format!("c{i}")), "eth0")).unwrap();
        }
    }
}

fn asides(dir: &Path) -> usize {
    let names = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(|n| n.starts_with("damaged-")).count()
}

/// Numbers that look random and are the same every time (xorshift64*).
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % end
    }
}

#[test]
fn a_damaged_file_is_set_aside_and_the_store_begins_anew() {
    for count in [20, 2000] {
        let source = tempfile::tempdir().unwrap();
        fill(source.path(), count);
        let whole = fs::read(source.path().join("data.mdb")).unwrap();
        let garbage: Vec<u8> = (0..whole.len()).map(|i| (i * 7 + i / 251) as u8).collect();
        let half = whole.len() / 2;
        let head_gone = [&garbage[..8192], &whole[8192..]].concat();
        let damaged: [(&str, Vec<u8>); 9] = [
            ("emptied", Vec::new()),
            ("a few bytes", whole[..100].to_vec()),
            ("one head", whole[..4096].to_vec()),
            ("both heads", whole[..8192].to_vec()),
            ("half", whole[..half].to_vec()),
            ("without its end", whole[..whole.len() / 8 * 7].to_vec()),
            ("zeroed", vec![0; whole.len()]),
            ("garbage", garbage.clone()),
            ("without a head", head_gone),
        ];
        for (what, content) in damaged {
            let dir = tempfile::tempdir().unwrap();
            drop(Store::open(dir.path(), "boot-1").unwrap());
            fs::write(dir.path().join("data.mdb"), content).unwrap();
            let opened = Store::open(dir.path(), "boot-1").unwrap();
            assert_eq!(opened.notes.len(), 1, "{what} of {count}");
            assert!(opened.rebuild);
            assert!(opened.notes[0].contains("was damaged"), "{}", opened.notes[0]);
            assert_eq!(asides(dir.path()), 1);
            assert_eq!(give(&opened.store, "a").unwrap().to_string(), "10.0.0.2");
            drop(opened);
            let again = Store::open(dir.path(), "boot-1").unwrap();
            assert_eq!(again.notes, Vec::<String>::new());
            assert!(again.rebuild, "nobody has told it yet what is in use");
            assert_eq!(again.store.leases(None).unwrap().len(), 1);
            assert_eq!(again.store.rebuild([]).unwrap(), 0);
            drop(again);
            assert!(!Store::open(dir.path(), "boot-1").unwrap().rebuild);
        }
    }
}

#[test]
fn sound_files_of_every_size_pass_the_examination_after_a_reboot() {
    let dir = tempfile::tempdir().unwrap();
    let mut leases = 0;
    for boot in 0..12 {
        let boot = format!("boot-{boot}");
        let opened = Store::open(dir.path(), &boot).unwrap();
        assert_eq!(opened.notes, Vec::<String>::new());
        assert_eq!(opened.store.leases(None).unwrap().len(), leases);
        for i in 0..1 << boot[5..].parse::<u32>().unwrap().min(9) {
            give(&opened.store, &format!("{boot}-{i}")).unwrap();
            leases += 1;
        }
        opened.store.check().unwrap();
        if leases > 700 {
            let gone = opened.store.retain("web", &|a| a.container.ends_with('7')).unwrap();
            leases -= gone.len();
        }
    }
}

#[test]
fn after_a_reboot_flipped_bytes_are_found_or_harmless() {
    let source = tempfile::tempdir().unwrap();
    fill(source.path(), 1500);
    let whole = fs::read(source.path().join("data.mdb")).unwrap();
    let before = Store::open(source.path(), "boot-1").unwrap().store.leases(None).unwrap();
    let mut dice = Dice(42);
    let (mut found, rounds) = (0, 250);
    for round in 0..rounds {
        let dir = tempfile::tempdir().unwrap();
        let mut content = whole.clone();
        // A byte or two, a sector, or a page of a neighbour's content.
        match round % 4 {
            0 | 1 => {
                let at = dice.below(content.len() as u64) as usize;
                content[at] ^= 1 << dice.below(8);
            }
            2 => {
                let at = dice.below(content.len() as u64 / 512) as usize * 512;
                content[at..at + 512].fill(dice.below(256) as u8);
            }
            _ => {
                let pages = content.len() as u64 / 4096;
                let (to, from) = (dice.below(pages) as usize * 4096, dice.below(pages) as usize * 4096);
                content.copy_within(from..from + 4096, to);
            }
        }
        fs::write(dir.path().join("data.mdb"), &content).unwrap();
        let opened = Store::open(dir.path(), "boot-2").unwrap();
        opened.store.check().unwrap();
        if opened.notes.is_empty() {
            assert_eq!(opened.store.leases(None).unwrap(), before);
        } else {
            found += 1;
        }
        give(&opened.store, "after").unwrap();
        opened.store.check().unwrap();
    }
    assert!(found > rounds / 4, "{found} of {rounds}");
}

#[test]
fn damage_that_is_met_while_running_is_repaired_by_the_next_opening() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path(), 2000);
    let path = dir.path().join("data.mdb");
    let file = File::options().write(true).open(&path).unwrap();
    // All but the heads and the roots: the kind of damage that opening does not look for within a boot.
    let whole = fs::read(&path).unwrap();
    let zeroes = [0; 4096];
    let mut roots = Vec::new();
    for head in [0, 4096] {
        for tree in [24, 72] {
            let at = head + 16 + tree + 40;
            roots.push(u64::from_ne_bytes(whole[at..at + 8].try_into().unwrap()));
        }
    }
    for page in (2..file.metadata().unwrap().size() / 4096).filter(|p| !roots.contains(p)) {
        file.write_at(&zeroes, page * 4096).unwrap();
    }
    let opened = Store::open(dir.path(), "boot-1").unwrap();
    assert_eq!(opened.notes, Vec::<String>::new());
    let error = give(&opened.store, "a").unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    assert!(error.is_temporary());
    drop(opened);
    let opened = Store::open(dir.path(), "boot-1").unwrap();
    assert!(opened.rebuild, "{:?}", opened.notes);
    assert_eq!(give(&opened.store, "a").unwrap().to_string(), "10.0.0.2");
}

#[test]
fn reading_creates_nothing_and_removing_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("deep/ipam");
    assert!(Store::open_existing(&place, "boot-1").unwrap().is_none());
    assert!(!place.exists());
    assert!(Store::remove_if_empty(&place).unwrap());
    let store = Store::open(&place, "boot-1").unwrap().store;
    give(&store, "a").unwrap();
    assert!(!Store::remove_if_empty(&place).unwrap(), "it is open");
    let twice = Store::open_existing(&place, "boot-1").unwrap().unwrap().store;
    assert_eq!(twice.leases(None).unwrap().len(), 1);
    drop((store, twice));
    assert!(!Store::remove_if_empty(&place).unwrap(), "it holds a lease");
    let store = Store::open_existing(&place, "boot-1").unwrap().unwrap().store;
    store.release("web", &Attachment::new(format!("{:0>64}", "a"), "eth0")).unwrap();
    drop(store);
    assert!(!Store::remove_if_empty(&place).unwrap(), "it knows the network's next address");
    Store::open(&place, "boot-1").unwrap().store.forget_network("web").unwrap();
    assert!(Store::remove_if_empty(&place).unwrap());
    assert!(!place.exists());
}
