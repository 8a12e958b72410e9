//! Containers that are bound to their addresses, and what stands in `bridge weft` for them. What passes is tested through
//! the plugin (plugins/tests/sources.rs).

use super::*;
use crate::firewall::nft::Sources;
use crate::testns;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

fn sources(addresses: &[IpNetwork]) -> Sources<'_> {
    Sources { mac: MAC, addresses, ipv6: true }
}

/// How many elements the tag has in the whole ruleset.
fn count(tag: &str) -> usize {
    ruleset().matches(&format!("comment \"{tag}\"")).count()
}

#[test]
fn bound_table_reads_well_and_loads_again() {
    testns::in_fresh(|| {
        if !has("nft") {
            return;
        }
        let mut fw = Nftables::open().unwrap();
        let (a, port) = (owner("a"), owner("a").host_veth());
        fw.bind(&a, &sources(&addrs(3))).unwrap();
        let text = ruleset();
        for line in [
            "iifname @bound ip saddr != 0.0.0.0 iifname . ip saddr != @addresses4 drop",
            "arp saddr ip != 0.0.0.0 iifname . arp saddr ip != @addresses4 drop",
            "iifname @bound6 ip6 saddr != :: iifname . ip6 saddr != @addresses6 drop",
            "icmpv6 type nd-neighbor-advert iifname . @th,64,128 != @targets6 drop",
            "ether type != ip ether type != arp ether type != ip6 iifname @bound drop",
            &format!("\"{port}\" . 10.1.0.3 comment \"web/a/eth0\""),
            &format!("\"{port}\" . fe80::ff:fe00:7 comment \"web/a/eth0\""),
            &format!("\"{port}\" . 0x00000000 comment \"web/a/eth0\" : ::ffff:10.1.0.3"),
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &text).unwrap();
        run("nft flush ruleset");
        run(&format!("nft -f {}", file.path().display()));
        assert_eq!(ruleset(), text);
        fw.check_bound(&a, &sources(&addrs(3))).unwrap();
        assert!(fw.check_bound(&a, &sources(&addrs(4))).is_err());
        fw.unwatch(&a).unwrap();
        fw.tidy().unwrap();
        assert_eq!(ruleset(), "");
    });
}

#[test]
fn binding_again_forgets_former_addresses() {
    testns::in_fresh(|| {
        let mut fw = Nftables::open().unwrap();
        let a = owner("a");
        let many: Vec<IpNetwork> = (1..=20).flat_map(addrs).collect();
        for addresses in [&many, &addrs(3), &addrs(4), &many, &addrs(4)[..1].to_vec()] {
            fw.bind(&a, &sources(addresses)).unwrap();
            fw.check_bound(&a, &sources(addresses)).unwrap();
            let v4 = addresses.iter().filter(|net| net.is_ipv4()).count();
            // With the link-local one.
            let v6 = addresses.len() - v4 + 1;
            assert_eq!(count("web/a/eth0"), 5 + 2 * v4 + 3 * v6);
        }
        let only4 = Sources { ipv6: false, ..sources(&[]) };
        fw.bind(&a, &only4).unwrap();
        assert_eq!(count("web/a/eth0"), 4, "no IPv6 is looked at any more");
        fw.watch(&a, MAC).unwrap();
        fw.bind(&owner("b"), &sources(&many)).unwrap();
        fw.unwatch(&a).unwrap();
        assert_eq!((count("web/a/eth0"), count("web/b/eth0")), (0, 5 + 40 + 63));
        assert_eq!(fw.gc_watched("web", &|_, _| false).unwrap(), 5 + 40 + 63);
        fw.tidy().unwrap();
        assert_eq!(ruleset(), "");
    });
}

#[test]
fn binding_costs_the_same_however_many_there_are() {
    testns::in_fresh(|| {
        let mut fw = Nftables::open().unwrap();
        fw.watch(&owner("first"), MAC).unwrap();
        let cost = |fw: &mut Nftables| {
            let before = fw.sent();
            fw.bind(&owner("me"), &sources(&addrs(3))).unwrap();
            let between = fw.sent();
            fw.unwatch(&owner("me")).unwrap();
            let after = fw.sent();
            [
                (between.calls - before.calls, between.bytes - before.bytes),
                (after.calls - between.calls, after.bytes - between.bytes),
            ]
        };
        let alone = cost(&mut fw);
        for n in 0..300 {
            fw.bind(&owner(&format!("c{n}")), &sources(&addrs(n + 10))).unwrap();
        }
        assert_eq!(cost(&mut fw), alone);
    });
}

/// The table as it was when only hardware addresses were checked.
#[test]
fn table_of_earlier_version_is_made_anew() {
    testns::in_fresh(|| {
        if !has("nft") {
            return;
        }
        let (old, a) = (owner("old"), owner("a"));
        let port = old.host_veth();
        let text = format!(
            "table bridge weft {{
                comment \"Weft container networking\"
                set watched {{ type ifname; elements = {{ \"{port}\" comment \"web/old/eth0\" }}; }}
                set sources {{ type ifname . ether_addr
                    elements = {{ \"{port}\" . 02:00:00:00:00:07 comment \"web/old/eth0\" }}; }}
                map source_of {{ type ifname : ether_addr
                    elements = {{ \"{port}\" comment \"web/old/eth0\" : 02:00:00:00:00:07 }}; }}
                chain prerouting {{
                    type filter hook prerouting priority dstnat; policy accept;
                    iifname @watched iifname . ether saddr != @sources drop
                }}
            }}"
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &text).unwrap();
        run(&format!("nft -f {}", file.path().display()));
        let mut fw = Nftables::open().unwrap();
        fw.check_watched(&old, MAC).unwrap();
        fw.unwatch(&a).unwrap();
        fw.bind(&a, &sources(&addrs(3))).unwrap();
        fw.check_bound(&a, &sources(&addrs(3))).unwrap();
        fw.check_watched(&old, MAC).unwrap();
        fw.unwatch(&a).unwrap();
        fw.unwatch(&old).unwrap();
        fw.tidy().unwrap();
        assert_eq!(ruleset(), "");
    });
}
