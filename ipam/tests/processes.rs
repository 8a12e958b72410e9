//! Many processes on one store, some of them killed in mid-work. The children are this executable again, told by the
//! environment what to do.
#![allow(clippy::unwrap_used)] // a failed unwrap is the report of the failed test
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::net::IpAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use ipam::{Ask, Attachment, Range, RangeSet, Store};

const ROLE: &str = "IPAM_TEST_ROLE";
const NAME: &str = "IPAM_TEST_NAME";
const DIR: &str = "IPAM_TEST_DIR";
/// How often the processes are killed; more finds more.
const ROUNDS: &str = "IPAM_TEST_ROUNDS";

fn give(store: &Store, network: &str, who: &str) -> IpAddr {
    let range = Range::new("10.1.0.0/16".parse().unwrap(), None, None, None).unwrap();
    let attachment = Attachment::new(who, "eth0");
    let sets = [RangeSet::new(vec![range]).unwrap()];
    let ask =
        Ask { network, attachment: &attachment, sets: &sets, requested: &[], reserved: &[], netns: None };
    store.allocate(&ask, &|_| true).unwrap()[0].address
}

fn spawn(role: &str, name: &str, dir: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--nocapture"]);
    command.env(ROLE, role).env(NAME, name).env(DIR, dir);
    command.stdout(Stdio::piped()).spawn().unwrap()
}

/// The lines a child has written, until its end.
fn lines(child: &mut Child) -> Vec<String> {
    let out = BufReader::new(child.stdout.take().unwrap());
    let lines = out.lines().map_while(Result::ok);
    // The test harness of the child begins a line of its own before the first one.
    lines.filter_map(|l| l.find(['+', '-']).map(|at| l[at..].to_owned())).collect()
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(line.as_bytes()).unwrap();
    out.flush().unwrap();
}

/// Not a test of its own: what the children run.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let (name, dir) = (std::env::var(NAME).unwrap(), std::env::var(DIR).unwrap());
    let dir = Path::new(&dir);
    match role.as_str() {
        "allocate" => {
            for i in 0..200 {
                let store = Store::open(dir, "boot").unwrap().store;
                let address = give(&store, "web", &format!("{name}-{i}"));
                say(&format!("+{address}\n"));
            }
        }
        "come and go" => {
            for round in 0.. {
                let who = format!("{name}-{}", round % 7);
                let store = Store::open(dir, "boot").unwrap().store;
                if round % 14 < 7 {
                    let address = give(&store, "web", &who);
                    say(&format!("+{who} {address}\n"));
                } else {
                    store.release("web", &Attachment::new(who.as_str(), "eth0")).unwrap();
                    say(&format!("-{who}\n"));
                }
            }
        }
        "leave nothing" => {
            for i in 0..100 {
                let opened = Store::open(dir, "boot").unwrap();
                assert_eq!(opened.notes, Vec::<String>::new());
                let store = opened.store;
                let address = give(&store, &name, &format!("{i}"));
                assert_eq!(store.leases(Some(&name)).unwrap()[0].address, address);
                assert_eq!(store.release(&name, &Attachment::new(format!("{i}"), "eth0")).unwrap().len(), 1);
                store.forget_network(&name).unwrap();
                drop(store);
                Store::remove_if_empty(dir).unwrap();
            }
            say("+done\n");
        }
        other => panic!("no role {other}"),
    }
}

#[test]
fn eight_processes_never_get_the_same_address() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("ipam");
    let mut children: Vec<Child> = (0..8).map(|i| spawn("allocate", &format!("p{i}"), &dir)).collect();
    let mut given = BTreeSet::new();
    for child in &mut children {
        given.extend(lines(child));
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(given.len(), 1600);
    let store = Store::open(&dir, "boot").unwrap().store;
    store.check().unwrap();
    assert_eq!(store.leases(Some("web")).unwrap().len(), 1600);
    // In order, so none was skipped.
    assert_eq!(store.leases(None).unwrap()[1599].address.to_string(), "10.1.6.65");
}

#[test]
fn killed_processes_leave_a_consistent_store_and_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    let rounds = std::env::var(ROUNDS).map_or(60, |r| r.parse().unwrap());
    for round in 0..rounds {
        let name = |i: u64| format!("r{round}p{i}");
        let mut children: Vec<Child> = (0..3).map(|i| spawn("come and go", &name(i), dir.path())).collect();
        std::thread::sleep(Duration::from_micros(4_000 + round * 7_013 % 25_000));
        let mut unsure = BTreeSet::new();
        for (i, child) in children.iter_mut().enumerate() {
            child.kill().unwrap(); // SIGKILL
            let mut last = None;
            for line in lines(child) {
                // A line is written after the deed; the last deed may lack its line, or a part of it.
                if let Some((who, address)) = line.strip_prefix('+').and_then(|l| l.split_once(' ')) {
                    known.insert(who.to_owned(), address.to_owned());
                } else if let Some(who) = line.strip_prefix('-') {
                    known.remove(who);
                }
                last = Some(line);
            }
            child.wait().unwrap();
            let next = (0..7).map(|n| format!("{}-{n}", name(i as u64)));
            // What it did after its last line: the next name's turn.
            let turn = match last {
                None => 0,
                Some(line) => {
                    let who = line[1..].split(' ').next().unwrap().to_owned();
                    (who.rsplit('-').next().unwrap().parse::<usize>().unwrap() + 1) % 7
                }
            };
            unsure.extend(next.skip(turn).take(1));
        }
        let opened = Store::open(dir.path(), "boot").unwrap();
        assert_eq!(opened.notes, Vec::<String>::new());
        opened.store.check().unwrap();
        let mut held = BTreeMap::new();
        for lease in opened.store.leases(None).unwrap() {
            held.insert(lease.attachment.container, lease.address.to_string());
        }
        for who in &unsure {
            match held.get(who) {
                Some(address) => known.insert(who.clone(), address.clone()),
                None => known.remove(who),
            };
        }
        let only = |a: &BTreeMap<String, String>, b: &BTreeMap<String, String>| {
            a.iter().filter(|e| b.get(e.0) != Some(e.1)).map(|e| format!("{e:?}")).collect::<Vec<_>>()
        };
        assert_eq!((only(&held, &known), only(&known, &held)), (vec![], vec![]), "round {round}");
    }
    assert!(!known.is_empty());
}

#[test]
fn openers_and_removers_do_not_trip_over_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("ipam");
    let mut children: Vec<Child> = (0..6).map(|i| spawn("leave nothing", &format!("n{i}"), &place)).collect();
    for child in &mut children {
        assert_eq!(lines(child), ["+done"]);
        assert!(child.wait().unwrap().success());
    }
    assert!(Store::remove_if_empty(&place).unwrap());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn processes_of_two_c_libraries_use_the_store_in_turns() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let address = give(&Store::open(dir, "boot").unwrap().store, "web", "a");
    let (link, lock) = (dir.join("boot"), dir.join("lock.mdb"));
    let own = std::fs::read_link(&link).unwrap();
    // As if a process of the other library used it now: its mark, its lock on the directory.
    let other = if cfg!(target_env = "musl") { "boot" } else { "boot musl" };
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(other, &link).unwrap();
    let user = Flock::lock(std::fs::File::open(dir).unwrap(), FlockArg::LockShared).unwrap();
    std::fs::write(&lock, "mutexes of the other library").unwrap();
    std::thread::scope(|scope| {
        let opening = scope.spawn(|| Store::open(dir, "boot").unwrap());
        std::thread::sleep(Duration::from_millis(300));
        assert!(!opening.is_finished());
        assert_eq!(std::fs::read(&lock).unwrap(), b"mutexes of the other library");
        drop(user);
        let opened = opening.join().unwrap();
        assert_eq!(opened.notes, Vec::<String>::new());
        assert_eq!(opened.store.leases(None).unwrap()[0].address, address);
    });
    assert_eq!(std::fs::read_link(&link).unwrap(), own);
}

#[test]
fn a_store_that_is_kept_open_is_opened_again_and_not_removed() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), "boot").unwrap().store;
    give(&store, "web", "a");
    store.keep_open();
    let store = Store::open(dir.path(), "boot").unwrap().store;
    assert_eq!(store.release("web", &Attachment::new("a", "eth0")).unwrap().len(), 1);
    drop(store);
    assert!(!Store::remove_if_empty(dir.path()).unwrap());
}

#[test]
fn threads_of_one_process_share_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let given = std::sync::Mutex::new(BTreeSet::new());
    std::thread::scope(|scope| {
        for t in 0..4 {
            let (dir, given) = (dir.path(), &given);
            scope.spawn(move || {
                for i in 0..50 {
                    let store = Store::open(dir, "boot").unwrap().store;
                    given.lock().unwrap().insert(give(&store, "web", &format!("t{t}-{i}")));
                }
            });
        }
    });
    assert_eq!(given.lock().unwrap().len(), 200);
    Store::open(dir.path(), "boot").unwrap().store.check().unwrap();
}
