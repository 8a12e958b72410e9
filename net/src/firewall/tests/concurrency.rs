//! Several processes at work in one namespace (here: threads with sockets of their own).

use super::*;
use crate::{Netns, testns};

/// Runs `work` on threads that share the caller's namespace.
fn together(threads: u16, work: impl Fn(u16) + Sync) {
    let ns = Netns::current().unwrap();
    std::thread::scope(|scope| {
        for n in 0..threads {
            let (ns, work) = (&ns, &work);
            scope.spawn(move || ns.run(|| work(n)).unwrap());
        }
    });
}

#[test]
fn nothing_is_lost_between_adding_and_tidying() {
    testns::in_fresh(|| {
        together(8, |n| {
            let mut fw = Nftables::open().unwrap();
            for round in 0..40 {
                let owner = owner(&format!("c{n}-{round}"));
                // Some share a subnet, some have one that comes and goes.
                let other: IpNetwork = format!("10.{}.0.{}/24", 50 + n % 3, n + 2).parse().unwrap();
                let addrs = if round % 2 == 0 { vec![other] } else { addrs(256 * n + round + 2) };
                let ports = [tcp(None, 1000 + n, 80), udp(Some("127.0.0.1"), 1000 + n, 80)];
                fw.masquerade(&owner, &addrs).unwrap();
                fw.publish(&owner, &addrs, &ports, &plain()).unwrap();
                fw.check_masquerade(&owner, &addrs).unwrap();
                fw.check_publish(&owner, &addrs, &ports, &plain()).unwrap();
                if round % 3 == 0 {
                    fw.tidy().unwrap();
                    fw.check_publish(&owner, &addrs, &ports, &plain()).unwrap();
                }
                fw.unpublish(&owner, &ports).unwrap();
                fw.unmasquerade(&owner, &addrs).unwrap();
                fw.tidy().unwrap();
            }
        });
        Nftables::open().unwrap().tidy().unwrap();
        assert_eq!(ruleset(), "");
    });
}

#[test]
fn of_those_that_want_one_port_one_gets_it() {
    testns::in_fresh(|| {
        for n in 0..8 {
            make_alive(&owner(&format!("c{n}")));
        }
        let got = std::sync::Mutex::new(Vec::new());
        together(8, |n| {
            let owner = owner(&format!("c{n}"));
            let result =
                Nftables::open().unwrap().publish(&owner, &addrs(n + 2), &[tcp(None, 80, 80)], &plain());
            match result {
                Ok(()) => got.lock().unwrap().push(owner.tag()),
                Err(Error::PortTaken { holder, .. }) => assert_ne!(holder, owner.tag()),
                Err(e) => panic!("{e}"),
            }
        });
        let got = got.into_inner().unwrap();
        assert_eq!(got.len(), 1, "{got:?}");
        assert!(ruleset().contains(&got[0]));
    });
}

#[test]
fn garbage_collection_does_not_take_what_is_being_added() {
    testns::in_fresh(|| {
        together(4, |n| {
            let mut fw = Nftables::open().unwrap();
            let mine = owner(&format!("live{n}"));
            let dead = owner(&format!("dead{n}"));
            for _ in 0..30 {
                fw.attach(&dead, &addrs(n + 2), &[tcp(None, 80 + n, 80)], &plain()).unwrap();
                // Takes the dead one's place while others collect it.
                fw.attach(&mine, &addrs(n + 2), &[tcp(None, 80 + n, 80)], &plain()).unwrap();
                fw.gc("web", What::Ports, &|c, _| c.starts_with("live")).unwrap();
                fw.gc("web", What::Masquerade, &|c, _| c.starts_with("live")).unwrap();
                fw.check_masquerade(&mine, &addrs(n + 2)).unwrap();
                fw.check_publish(&mine, &addrs(n + 2), &[tcp(None, 80 + n, 80)], &plain()).unwrap();
                fw.unpublish(&mine, &[]).unwrap();
                fw.unmasquerade(&mine, &[]).unwrap();
            }
            fw.tidy().unwrap();
        });
        Nftables::open().unwrap().tidy().unwrap();
        assert_eq!(ruleset(), "");
    });
}
