//! Deletion without the wait, with its cost against the kernel's own.

#![allow(clippy::unwrap_used)] // a failed unwrap in a helper of a test is the failure report, too

use std::time::{Duration, Instant};

use net::*;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

/// The label of every pair.
const ALIAS: &str = "weft:n/c/eth0";

struct Pair {
    host: Netlink,
    container: Netns,
    inside: Netlink,
    name: String,
}

/// `count` containers on a bridge, each with an address.
fn pairs(count: u32) -> Vec<Pair> {
    let mut host = Netlink::open().unwrap();
    let br0 = host.create_bridge(&Bridge { name: "br0", up: true, ..Bridge::default() }).unwrap();
    (0..count)
        .map(|n| {
            let container = testns::another();
            let name = format!("veth{n}");
            let veth =
                Veth { master: Some(br0.index), alias: Some(ALIAS), ..Veth::new(&name, "eth0", &container) };
            let eth0 = host.create_veth(&veth).unwrap().peer_index.unwrap();
            let mut inside = Netlink::open_in(&container).unwrap();
            let mut batch = Batch::new();
            batch
                .set(eth0, &LinkSet { up: Some(true), ..LinkSet::default() })
                .addr_add(eth0, &NewAddr::new("10.1.0.5/16".parse().unwrap()))
                .addr_add(eth0, &NewAddr::new("fd00::5/64".parse().unwrap()))
                .route_add(&Route::via("0.0.0.0/0".parse().unwrap(), "10.1.0.1".parse().unwrap(), eth0));
            inside.run(batch).unwrap();
            Pair { host: Netlink::open().unwrap(), container, inside, name }
        })
        .collect()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[test]
fn detached_names_and_addresses_are_free_at_once() {
    testns::in_fresh(|| {
        let mut pair = pairs(1).remove(0);
        assert!(dead::detach(&mut pair.host, &pair.name, ALIAS, Some(&pair.container), "eth0").unwrap());
        assert_eq!(pair.host.link(&pair.name).unwrap(), None);
        let dead = pair.host.links_of_group(DEAD_GROUP).unwrap().remove(0);
        assert_eq!((dead.up, dead.master, dead.alias), (false, None, None));
        assert_eq!(pair.inside.link("eth0").unwrap(), None);
        let far = pair.inside.links_of_group(DEAD_GROUP).unwrap().remove(0);
        assert!(!far.up);
        assert_eq!(pair.inside.addrs(Some(far.index)).unwrap(), []);
        assert_eq!(
            pair.inside.routes(RouteFilter { oif: Some(far.index), ..RouteFilter::default() }).unwrap(),
            []
        );

        // The same again, while the dead are still about.
        let again = Veth { alias: Some(ALIAS), ..Veth::new(&pair.name, "eth0", &pair.container) };
        let near = pair.host.create_veth(&again).unwrap();
        let mut batch = Batch::new();
        batch.addr_add(near.peer_index.unwrap(), &NewAddr::new("10.1.0.5/16".parse().unwrap()));
        pair.inside.run(batch).unwrap();

        assert!(dead::remain(&mut pair.host).unwrap());
        dead::reap(&mut pair.host).unwrap();
        assert!(!dead::remain(&mut pair.host).unwrap());
        dead::reap(&mut pair.host).unwrap();
        assert_eq!(pair.host.links_of_group(DEAD_GROUP).unwrap(), []);
        assert_eq!(pair.inside.links_of_group(DEAD_GROUP).unwrap(), []);
        assert!(pair.inside.link("eth0").unwrap().is_some());
        // What is missing is no error, and what is not ours is left alone.
        assert!(!dead::detach(&mut pair.host, &pair.name, "weft:n/other/eth0", None, "eth0").unwrap());
        assert!(pair.host.link(&pair.name).unwrap().is_some_and(|link| link.up || link.group == 0));
        assert!(dead::detach(&mut pair.host, &pair.name, ALIAS, None, "eth0").unwrap());
        assert!(!dead::detach(&mut pair.host, &pair.name, ALIAS, Some(&pair.container), "eth0").unwrap());
        assert!(pair.inside.link("eth0").unwrap().is_some());
        dead::reap(&mut pair.host).unwrap();
    });
}

#[test]
fn a_detach_is_far_below_the_kernels_wait() {
    testns::in_fresh(|| {
        let mut pairs = pairs(60);
        let time = |run: &mut dyn FnMut()| {
            let start = Instant::now();
            run();
            start.elapsed()
        };
        let (slow, fast) = pairs.split_at_mut(20);
        let plain = median(slow.iter_mut().map(|p| time(&mut || p.host.delete(&*p.name).unwrap())).collect());
        let detach = |p: &mut Pair| {
            time(&mut || {
                assert!(dead::detach(&mut p.host, &p.name, ALIAS, Some(&p.container), "eth0").unwrap())
            })
        };
        let detached = median(fast.iter_mut().map(detach).collect());
        let reaped = time(&mut || dead::reap(&mut Netlink::open().unwrap()).unwrap());
        println!("plain deletion {plain:?}; detach {detached:?}; reaping {} dead {reaped:?}", fast.len());
        assert!(detached < plain, "detach {detached:?}, plain {plain:?}");
        assert_eq!(Netlink::open().unwrap().links_of_group(DEAD_GROUP).unwrap(), []);
    });
}

#[test]
fn one_child_deletes_what_many_leave_and_holds_nothing_open() {
    testns::in_fresh(|| {
        let mut pairs = pairs(10);
        let (read, write) = nix::unistd::pipe().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (mark, go) = (dir.path().join("mark"), dir.path().join("go"));
        // A child that had the pipe open would keep the read below waiting until its alarm ends it.
        let housekeeping = || {
            while !go.exists() {
                std::thread::sleep(Duration::from_millis(1));
            }
            std::fs::write(&mark, "kept house").unwrap();
        };
        let mut children = Vec::new();
        for pair in &mut pairs {
            assert!(dead::detach(&mut pair.host, &pair.name, ALIAS, Some(&pair.container), "eth0").unwrap());
            children.extend(dead::reap_soon(housekeeping).unwrap());
        }
        drop(write);
        let mut end = [0];
        assert_eq!(nix::unistd::read(&read, &mut end).unwrap(), 0);
        std::fs::write(&go, "").unwrap();
        // One, as a rule; more where this machine is so slow that the first has gathered before the last detach.
        assert!(!children.is_empty());
        for child in children {
            let pid = Pid::from_raw(child as i32);
            assert_eq!(waitpid(pid, None).unwrap(), WaitStatus::Exited(pid, 0));
        }
        assert_eq!(Netlink::open().unwrap().links_of_group(DEAD_GROUP).unwrap(), []);
        assert_eq!(std::fs::read_to_string(&mark).unwrap(), "kept house");
    });
}

#[test]
fn a_stranger_on_the_lock_does_not_stop_the_deletion() {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, socket};
    use std::os::fd::AsRawFd;
    testns::in_fresh(|| {
        // A socket that lets nobody in.
        let squatter = socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None).unwrap();
        bind(squatter.as_raw_fd(), &UnixAddr::new_abstract(b"weft-reaper").unwrap()).unwrap();
        let mut pair = pairs(1).remove(0);
        assert!(dead::detach(&mut pair.host, &pair.name, ALIAS, Some(&pair.container), "eth0").unwrap());
        assert_eq!(dead::reap_soon(|| ()).unwrap(), None);
        assert_eq!(pair.host.links_of_group(DEAD_GROUP).unwrap(), []);
    });
}
