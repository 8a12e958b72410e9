//! Watched containers: frames with false source addresses, and what stands in `bridge weft`.

use super::lab::Lab;
use super::*;
use crate::firewall::nft::Sent;
use crate::testns;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 0x66];

fn shown(port: &str) -> String {
    format!(
        r#"table bridge weft {{
	comment "Weft container networking"
	set watched {{
		type ifname
		elements = {{ "{port}" comment "web/a/eth0" }}
	}}

	set sources {{
		type ifname . ether_addr
		elements = {{ "{port}" . 02:00:00:00:00:07 comment "web/a/eth0" }}
	}}

	map source_of {{
		type ifname : ether_addr
		elements = {{ "{port}" comment "web/a/eth0" : 02:00:00:00:00:07 }}
	}}

	set bound {{
		type ifname
		comment "ports that send from their addresses alone"
	}}

	set bound6 {{
		type ifname
		comment "ports that send from their addresses alone"
	}}

	map address_of {{
		type ifname . mark : ipv6_addr
	}}

	set addresses4 {{
		type ifname . ipv4_addr
	}}

	set addresses6 {{
		type ifname . ipv6_addr
	}}

	set targets6 {{
		typeof iifname . @th,64,128
	}}

	chain prerouting {{
		type filter hook prerouting priority dstnat; policy accept;
		iifname @watched iifname . ether saddr != @sources drop
	}}

	chain addresses {{
		type filter hook prerouting priority dstnat + 1; policy accept;
		iifname @bound ip saddr != 0.0.0.0 iifname . ip saddr != @addresses4 drop
		iifname @bound arp saddr ip != 0.0.0.0 iifname . arp saddr ip != @addresses4 drop
		iifname @bound6 ip6 saddr != :: iifname . ip6 saddr != @addresses6 drop
		iifname @bound6 icmpv6 type nd-neighbor-advert iifname . @th,64,128 != @targets6 drop
		ether type != ip ether type != arp ether type != ip6 iifname @bound drop
	}}
}}
"#
    )
}

#[test]
fn a_watched_container_is_heard_from_its_own_address_alone() {
    testns::in_fresh(|| {
        let lab = Lab::new();
        let mut fw = Nftables::open().unwrap();
        // The ports get the names by which they are watched.
        let ports = [(&lab.a, "c3", owner("a")), (&lab.b, "c4", owner("b"))];
        for (_, name, owner) in &ports {
            run(&format!("ip link set {name} down"));
            run(&format!("ip link set {name} name {} up", owner.host_veth()));
        }
        let set_mac = |ns: &crate::Netns, mac: [u8; 6]| {
            let mac = crate::mac_text(mac);
            ns.run(|| run(&format!("ip link set eth0 address {mac}"))).unwrap();
            for side in [&lab.a, &lab.b] {
                side.run(|| run("ip neigh flush all")).unwrap();
            }
            run("ip neigh flush all");
            // IPv6's default route goes with the link's address change in some kernels.
            ns.run(|| run("ip -6 route replace default via fd00::1")).unwrap();
        };
        let hears = |from| {
            ["192.0.2.2:80", "[2001:db8::2]:80"]
                .map(|to| (0..3).any(|_| lab.ask(Some(from), to, Protocol::Udp).is_some()))
        };
        let learnt = || run("bridge fdb show br br0").contains(&crate::mac_text(OTHER));

        set_mac(&lab.a, MAC);
        fw.watch(&ports[0].2, MAC).unwrap();
        fw.check_watched(&ports[0].2, MAC).unwrap();
        assert_eq!(hears(&lab.a), [true, true], "its own address");
        assert!(lab.ask(Some(&lab.a), "10.1.0.4:80", Protocol::Tcp).is_some(), "to its neighbour");
        set_mac(&lab.a, OTHER);
        assert_eq!(hears(&lab.a), [false, false], "another address");
        assert!(lab.ask(Some(&lab.a), "10.1.0.4:80", Protocol::Tcp).is_none(), "to its neighbour");
        assert!(!learnt(), "the bridge must not take it for the place of that address");
        set_mac(&lab.a, MAC);
        assert_eq!(hears(&lab.a), [true, true], "its own address again");
        // Who is not watched may be anybody, even the watched one's neighbour with that very address.
        set_mac(&lab.b, OTHER);
        assert_eq!(hears(&lab.b), [true, true], "not watched");
        assert!(learnt());
        // Told of another address, that one counts, and the former one does not.
        fw.watch(&ports[1].2, MAC).unwrap();
        fw.watch(&ports[1].2, OTHER).unwrap();
        assert_eq!(hears(&lab.b), [true, true]);
        fw.unwatch(&ports[0].2).unwrap();
        set_mac(&lab.a, [2, 0, 0, 0, 0, 0x67]);
        assert_eq!(hears(&lab.a), [true, true], "not watched any more");
    });
}

#[test]
fn the_table_reads_well_and_goes_with_the_last() {
    testns::in_fresh(|| {
        if !has("nft") {
            return;
        }
        let mut fw = Nftables::open().unwrap();
        let (a, text) = (owner("a"), shown(&owner("a").host_veth()));
        for _ in 0..2 {
            fw.unwatch(&a).unwrap();
            assert_eq!(fw.gc_watched("web", &|_, _| false).unwrap(), 0);
            fw.tidy().unwrap();
            assert_eq!(ruleset(), "", "nothing is made by what removes");
        }
        let missing = fw.check_watched(&a, MAC).unwrap_err().to_string();
        assert!(missing.contains("table bridge weft has 0 of its 1 rules"), "{missing}");
        fw.watch(&a, OTHER).unwrap();
        for _ in 0..2 {
            fw.watch(&a, MAC).unwrap();
            assert_eq!(ruleset(), text, "the former address has gone");
        }
        let wrong = fw.check_watched(&a, OTHER).unwrap_err().to_string();
        assert!(wrong.contains("missing") || wrong.contains("leads elsewhere"), "{wrong}");

        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &text).unwrap();
        run("nft flush ruleset");
        run(&format!("nft -f {}", file.path().display()));
        assert_eq!(ruleset(), text);
        fw.check_watched(&a, MAC).unwrap();
        // Neither table is in the other's way.
        fw.attach(&a, &addrs(3), &[tcp(None, 8080, 80)], &plain()).unwrap();
        fw.tidy().unwrap();
        assert!(ruleset().contains(&text));
        fw.unpublish(&a, &[]).unwrap();
        fw.unmasquerade(&a, &[]).unwrap();
        fw.tidy().unwrap();
        assert_eq!(ruleset(), text);
        fw.watch(&owner("b"), MAC).unwrap();
        for _ in 0..2 {
            fw.unwatch(&owner("b")).unwrap();
            fw.tidy().unwrap();
            assert_eq!(ruleset(), text);
        }
        fw.unwatch(&a).unwrap();
        fw.tidy().unwrap();
        assert_eq!(ruleset(), "");
    });
}

#[test]
fn garbage_collection_takes_the_stale_of_one_network_only() {
    testns::in_fresh(|| {
        let mut fw = Nftables::open().unwrap();
        let others = Owner::new("db", "dead", "eth0");
        for owner in [&owner("live"), &owner("dead"), &others] {
            fw.watch(owner, MAC).unwrap();
        }
        assert_eq!(fw.gc_watched("web", &|container, _| container == "live").unwrap(), 3);
        fw.check_watched(&owner("live"), MAC).unwrap();
        fw.check_watched(&others, MAC).unwrap();
        assert!(fw.check_watched(&owner("dead"), MAC).is_err());
        assert_eq!(
            fw.gc_watched("web", &|_, _| false).unwrap() + fw.gc_watched("db", &|_, _| false).unwrap(),
            6
        );
        fw.tidy().unwrap();
        assert_eq!(ruleset(), "");
    });
}

#[test]
fn a_watch_costs_the_same_however_many_there_are() {
    testns::in_fresh(|| {
        let mut fw = Nftables::open().unwrap();
        let cost = |fw: &mut Nftables, work: &dyn Fn(&mut Nftables)| {
            let before = fw.sent();
            work(fw);
            let after = fw.sent();
            Sent {
                calls: after.calls - before.calls,
                messages: after.messages - before.messages,
                bytes: after.bytes - before.bytes,
            }
        };
        let watch = |fw: &mut Nftables| fw.watch(&owner("me"), MAC).unwrap();
        let unwatch = |fw: &mut Nftables| fw.unwatch(&owner("me")).unwrap();
        // The frame and the elements go in one transaction, too.
        assert_eq!(cost(&mut fw, &|fw| fw.watch(&owner("first"), MAC).unwrap()).calls, 2);
        let alone = [cost(&mut fw, &watch), cost(&mut fw, &unwatch)];
        // A look (generation, table, three elements), and the elements of three sets.
        assert_eq!((alone[0].calls, alone[0].messages), (2, 5 + 3), "{alone:?}");
        assert_eq!(alone[1].calls, 4, "{alone:?}");
        for n in 0..1000 {
            fw.watch(&owner(&format!("c{n}")), MAC).unwrap();
        }
        assert_eq!([cost(&mut fw, &watch), cost(&mut fw, &unwatch)], alone);
    });
}

#[test]
fn who_comes_while_others_tidy_is_watched() {
    testns::in_fresh(|| {
        std::thread::scope(|scope| {
            for n in 0..4 {
                scope.spawn(move || {
                    let mut fw = Nftables::open().unwrap();
                    let me = owner(&format!("c{n}"));
                    for _ in 0..15 {
                        fw.watch(&me, MAC).unwrap();
                        fw.check_watched(&me, MAC).unwrap();
                        fw.unwatch(&me).unwrap();
                        fw.tidy().unwrap();
                    }
                });
            }
        });
        assert_eq!(ruleset(), "");
    });
}

/// Run by hand: `cargo test --release -p net -- --ignored --nocapture how_long_a_watch`
#[test]
#[ignore = "measures, and says so"]
fn how_long_a_watch_takes() {
    testns::in_fresh(|| {
        let mut keep = Nftables::open().unwrap();
        keep.watch(&owner("first"), MAC).unwrap();
        let mut there = 0;
        for crowd in [0, 1000, 10_000] {
            for n in there..crowd {
                keep.watch(&owner(&format!("c{n}")), MAC).unwrap();
            }
            there = crowd;
            let (mut watches, mut unwatches, mut sockets) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..200 {
                let start = std::time::Instant::now();
                let mut fw = Nftables::open().unwrap();
                fw.watch(&owner("me"), MAC).unwrap();
                watches.push(start.elapsed());
                sockets.push(fw);
                let start = std::time::Instant::now();
                let mut fw = Nftables::open().unwrap();
                fw.unwatch(&owner("me")).unwrap();
                unwatches.push(start.elapsed());
                sockets.push(fw);
            }
            watches.sort();
            unwatches.sort();
            println!(
                "beside {crowd}: open+watch p50 {:?}, open+unwatch p50 {:?}",
                watches[100], unwatches[100]
            );
        }
    });
}
