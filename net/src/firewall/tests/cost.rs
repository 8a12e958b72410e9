//! What an attachment costs: system calls, messages and bytes, on an empty table and beside thousands of ports.

use super::*;
use crate::firewall::nft::Sent;
use crate::testns;

fn cost(fw: &mut Nftables, work: impl FnOnce(&mut Nftables)) -> Sent {
    let before = fw.sent();
    work(fw);
    let after = fw.sent();
    Sent {
        calls: after.calls - before.calls,
        messages: after.messages - before.messages,
        bytes: after.bytes - before.bytes,
    }
}

fn add(fw: &mut Nftables, name: &str, n: u16, ports: &[PortMapping]) {
    fw.attach(&owner(name), &addrs(n), ports, &plain()).unwrap();
}

fn del(fw: &mut Nftables, name: &str, n: u16, ports: &[PortMapping]) {
    fw.unpublish(&owner(name), ports).unwrap();
    fw.unmasquerade(&owner(name), &addrs(n)).unwrap();
    fw.tidy().unwrap();
}

#[test]
fn an_attachment_costs_the_same_however_many_there_are() {
    testns::in_fresh(|| {
        let mut fw = Nftables::open().unwrap();
        let ports = [tcp(None, 50_000, 80), udp(None, 50_000, 80)];
        // The first makes the frame and the subnets' chains as well, in two system calls too.
        let first = cost(&mut fw, |fw| add(fw, "first", 2, &[]));
        assert_eq!(first.calls, 2, "{first:?}");
        // One to look (generation, table, the tracked scope, two subnets, eight elements), one for a transaction with a message for each of
        // the two maps of ports, two sets of masqueraded addresses and two of hairpins.
        let alone = cost(&mut fw, |fw| add(fw, "me", 3, &ports));
        assert_eq!((alone.calls, alone.messages), (2, 13 + 6), "{alone:?}");
        let alone_del = cost(&mut fw, |fw| del(fw, "me", 3, &ports));

        let many: Vec<_> = (0..1000).map(|n| tcp(None, 10_000 + n, 80)).collect();
        let all = cost(&mut fw, |fw| add(fw, "crowd", 5, &many));
        assert_eq!(all.calls, 2, "{all:?}");
        assert!(all.messages <= 5 + 4 + 2 * 4, "{all:?}");
        for n in 0..500 {
            add(&mut fw, &format!("c{n:03}"), 1000 + n, &[udp(None, 20_000 + n, 80)]);
        }
        assert_eq!(cost(&mut fw, |fw| add(fw, "me", 3, &ports)), alone);
        let crowded_del = cost(&mut fw, |fw| del(fw, "me", 3, &ports));
        assert_eq!(crowded_del, alone_del);

        // Without hints everything is gone through, and found.
        fw.unpublish(&owner("crowd"), &[]).unwrap();
        fw.unpublish(&owner("c007"), &many).unwrap();
        assert!(!ruleset().contains("web/crowd/eth0\" : "));
        assert_eq!(fw.gc("web", What::Ports, &|_, _| false).unwrap(), 499 * 4);
    });
}

/// Run by hand: `cargo test --release -p net -- --ignored --nocapture how_long`
#[test]
#[ignore = "measures, and says so"]
fn how_long_it_takes() {
    testns::in_fresh(|| {
        let ports = [tcp(None, 50_000, 80), udp(None, 50_000, 80)];
        let mut keep = Nftables::open().unwrap();
        add(&mut keep, "first", 2, &[tcp(None, 1, 1)]);
        for crowd in [0u16, 1000, 10_000] {
            let from = if crowd == 10_000 { 1000 } else { 0 };
            for n in from..crowd {
                add(&mut keep, &format!("c{n}"), 1000 + n, &[tcp(None, 2000 + n, 80)]);
            }
            let (mut adds, mut dels) = (Vec::new(), Vec::new());
            for _ in 0..200 {
                let start = std::time::Instant::now();
                let mut fw = Nftables::open().unwrap();
                add(&mut fw, "me", 3, &ports);
                adds.push(start.elapsed());
                let start = std::time::Instant::now();
                let mut fw = Nftables::open().unwrap();
                del(&mut fw, "me", 3, &ports);
                dels.push(start.elapsed());
            }
            adds.sort();
            dels.sort();
            println!("beside {crowd}: open+attach p50 {:?}, open+detach+tidy p50 {:?}", adds[100], dels[100]);
        }
        let many: Vec<_> = (0..1000).map(|n| udp(None, 10_000 + n, 80)).collect();
        let start = std::time::Instant::now();
        add(&mut keep, "crowd", 5, &many);
        println!("1,000 ports of one container: {:?}", start.elapsed());
        let start = std::time::Instant::now();
        keep.unpublish(&owner("crowd"), &many).unwrap();
        println!("and gone: {:?}", start.elapsed());
    });
}
