//! What is in the table when: repeated and missing things, garbage collection, tidying, others' tables.

use super::*;
use crate::firewall::nft::{BridgeRules, Content, NetnsMark, Record, Records};
use crate::{Netlink, names, testns};
use std::os::unix::fs::MetadataExt;

fn lines_with(what: &str) -> usize {
    ruleset().lines().filter(|line| line.contains(what)).count()
}

#[test]
fn everything_can_be_repeated_and_removed_without_being_there() {
    testns::in_fresh(|| {
        let mut fw = Nftables::open().unwrap();
        let ports = [tcp(None, 8080, 80), udp(None, 8080, 80)];
        for _ in 0..2 {
            fw.unmasquerade(&owner("a"), &addrs(3)).unwrap();
            fw.unpublish(&owner("a"), &ports).unwrap();
            fw.unpublish(&owner("a"), &[]).unwrap();
            fw.unguard("br0").unwrap();
            assert_eq!(fw.gc("web", What::Ports, &|_, _| false).unwrap(), 0);
            fw.tidy().unwrap();
            assert_eq!(ruleset(), "", "nothing is made by what removes");
        }
        for _ in 0..3 {
            fw.masquerade(&owner("a"), &addrs(3)).unwrap();
            fw.publish(&owner("a"), &addrs(3), &ports, &plain()).unwrap();
        }
        let before = ruleset();
        fw.attach(&owner("a"), &addrs(3), &ports, &plain()).unwrap();
        assert_eq!(ruleset(), before);
        // Other ports of the same owner come in their place when they are published under the same key.
        fw.publish(&owner("a"), &addrs(3), &[tcp(None, 8080, 81)], &plain()).unwrap();
        assert_eq!(lines_with("tcp . 8080 comment \"web/a/eth0\" : 10.1.0.3 . 81"), 1, "{}", ruleset());
        // Nothing to do is nothing done.
        fw.publish(&owner("a"), &addrs(3), &[], &plain()).unwrap();
        fw.masquerade(&owner("a"), &[]).unwrap();
    });
}

#[test]
fn two_networks_of_a_container_do_not_touch_each_other() {
    testns::in_fresh(|| {
        let mut fw = Nftables::open().unwrap();
        let (web, db) = (owner("a"), Owner::new("db", "a", "eth1"));
        let others: Vec<IpNetwork> = vec!["10.2.0.3/24".parse().unwrap()];
        fw.attach(&web, &addrs(3), &[tcp(None, 8080, 80)], &plain()).unwrap();
        let alone = ruleset();
        fw.attach(&db, &others, &[tcp(None, 5432, 5432)], &plain()).unwrap();
        fw.unpublish(&db, &[tcp(None, 5432, 5432)]).unwrap();
        fw.unmasquerade(&db, &others).unwrap();
        // By a hint that names another's, nothing is taken.
        fw.unpublish(&db, &[tcp(None, 8080, 80)]).unwrap();
        fw.unmasquerade(&db, &addrs(3)).unwrap();
        assert!(lines_with("10.2.0") > 0, "chains of the subnet wait for tidy");
        fw.tidy().unwrap();
        assert_eq!(ruleset(), alone);
        fw.unpublish(&web, &[]).unwrap();
        fw.unmasquerade(&web, &[]).unwrap();
        fw.tidy().unwrap();
        assert_eq!(ruleset(), "");
    });
}

#[test]
fn check_tells_what_is_missing() {
    testns::in_fresh(|| {
        let mut fw = Nftables::open().unwrap();
        let ports = [tcp(None, 8080, 80)];
        let message = |result: Result<()>| result.unwrap_err().to_string();
        let text = message(fw.check_publish(&owner("a"), &addrs(3), &ports, &plain()));
        assert!(text.contains("has 0 of its 3 rules"), "{text}");
        fw.attach(&owner("a"), &addrs(3), &ports, &plain()).unwrap();
        fw.check_masquerade(&owner("a"), &addrs(3)).unwrap();
        let text = message(fw.check_masquerade(&owner("a"), &addrs(4)));
        assert!(text.contains("masq-10.1.0.0/16") && text.contains("missing, that of web/a/eth0"), "{text}");
        let text = message(fw.check_publish(&owner("b"), &addrs(3), &ports, &plain()));
        assert!(text.contains("belongs to web/a/eth0"), "{text}");
        let text = message(fw.check_publish(&owner("a"), &addrs(3), &[tcp(None, 8080, 81)], &plain()));
        assert!(text.contains("ports4"), "{text}");
        run("nft flush chain inet weft output");
        let text = message(fw.check_masquerade(&owner("a"), &addrs(3)));
        assert!(text.contains("output") && text.contains("0 of its 1 rules"), "{text}");
    });
}

/// A rule that masquerades makes each DEL wait for a walk through all connections.
#[test]
fn rules_that_masquerade_are_there_while_they_are_needed() {
    testns::in_fresh(|| {
        if !has("nft") {
            return;
        }
        let mut fw = Nftables::open().unwrap();
        let masquerading = || ruleset().matches(" masquerade\n").count();
        run("ip link add br0 type bridge");
        fw.guard("br0").unwrap();
        let guarded = ruleset();
        assert_eq!(masquerading(), 0, "{guarded}");
        let all = PublishOptions { masq_all: true, ..plain() };
        fw.publish(&owner("a"), &addrs(3), &[tcp(None, 8080, 80)], &all).unwrap();
        assert!(ruleset().contains("ip daddr @hairpin4_all masquerade"), "{}", ruleset());
        fw.check_publish(&owner("a"), &addrs(3), &[tcp(None, 8080, 80)], &all).unwrap();
        run("nft flush chain inet weft postrouting");
        let text =
            fw.check_publish(&owner("a"), &addrs(3), &[tcp(None, 8080, 80)], &all).unwrap_err().to_string();
        assert!(text.contains("postrouting") && text.contains("0 of its 2 rules"), "{text}");
        fw.unpublish(&owner("a"), &[tcp(None, 8080, 80)]).unwrap();
        fw.tidy().unwrap();
        assert_eq!(ruleset(), guarded);
        fw.publish(&owner("b"), &addrs(4), &[tcp(None, 8080, 80)], &plain()).unwrap();
        assert!(!ruleset().contains("hairpin4_all"), "{}", ruleset());
    });
}

/// Tracking takes a microsecond of each packet of the namespace.
#[test]
fn plain_bridge_tracks_no_connections() {
    testns::in_fresh(|| {
        if !has("nft") {
            return;
        }
        run("ip link set lo up");
        run("ip link add br0 type bridge");
        let index = Netlink::open().unwrap().need_link("br0").unwrap().index;
        let rules = BridgeRules {
            link: "br0".into(),
            index,
            protected: true,
            strict: true,
            ..BridgeRules::default()
        };
        let mut fw = Nftables::open().unwrap();
        fw.attach_bridge(&owner("a"), &[], &rules).unwrap();
        fw.check_bridge(&owner("a"), &[], &rules).unwrap();
        let untracked = ruleset();
        for word in ["\tct ", "nat", "masquerade", "dnat", "hook forward", "hook input"] {
            assert!(!untracked.contains(word), "{word}: {untracked}");
        }
        assert!(untracked.contains("iifname @bridges_strict drop"), "{untracked}");
        let tracked = || {
            let count = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap();
            count.trim().parse::<usize>().unwrap()
        };
        run("ping -c 1 -w 5 127.0.0.1");
        assert_eq!(tracked(), 0);
        // With the first port and the first masquerading they are, whichever comes first, and never made twice.
        fw.publish(&owner("a"), &addrs(3), &[tcp(None, 8080, 80)], &plain()).unwrap();
        fw.attach_bridge(&owner("a"), &addrs(3), &rules).unwrap();
        fw.check_bridge(&owner("a"), &addrs(3), &rules).unwrap();
        let whole = ruleset();
        assert_eq!(whole.matches("hook forward").count(), 1, "{whole}");
        assert!(whole.contains("ct state invalid jump untranslated"), "{whole}");
        run("ping -c 1 -w 5 127.0.0.1");
        assert!(tracked() > 0);
    });
}

#[test]
fn tracked_chains_are_restored_where_records_need_them() {
    testns::in_fresh(|| {
        if !has("nft") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let records = Records::below(dir.path()).unwrap();
        run("ip link add br0 type bridge");
        let here = "/proc/thread-self/ns/net";
        let meta = std::fs::metadata(here).unwrap();
        let netns = NetnsMark { path: here.into(), id: (meta.dev(), meta.ino()) };
        let rules =
            BridgeRules { link: "br0".into(), protected: true, strict: true, ..BridgeRules::default() };
        let link = |masqueraded: &[IpNetwork]| Record {
            owner: owner("a"),
            netns: Some(netns.clone()),
            content: Content::Link {
                masqueraded: masqueraded.to_vec(),
                except: Vec::new(),
                bridge: Some(rules.clone()),
                forward: false,
            },
        };
        let mut fw = Nftables::open().unwrap();
        records.put(&link(&[])).unwrap();
        assert!(fw.restore_if_lost(&records).unwrap().is_any());
        let plain = ruleset();
        assert!(!plain.contains("hook forward") && plain.contains("\"br0\""), "{plain}");
        assert!(!fw.restore_if_lost(&records).unwrap().is_any());
        records.put(&link(&addrs(3))).unwrap();
        assert!(fw.restore(&records, false).unwrap().is_any());
        let whole = ruleset();
        assert!(whole.contains("hook forward"), "{whole}");
        for damage in ["flush chain inet weft forward", "delete table inet weft"] {
            run(&format!("nft {damage}"));
            assert!(fw.restore_if_lost(&records).unwrap().is_any(), "{damage}");
            assert_eq!(ruleset(), whole, "{damage}");
        }
        assert!(!fw.restore_if_lost(&records).unwrap().is_any());
    });
}

/// Another program deleted a chain, and left the sets that go with it.
#[test]
fn deleted_chain_is_made_anew_by_next_attachment() {
    testns::in_fresh(|| {
        if !has("nft") {
            return;
        }
        run("ip link add br0 type bridge");
        let all = PublishOptions { masq_all: true, ..plain() };
        for chain in ["forward", "postrouting", "subnet-10.1.0.0/16"] {
            let mut fw = Nftables::open().unwrap();
            fw.guard("br0").unwrap();
            fw.attach(&owner("a"), &addrs(3), &[tcp(None, 8080, 80)], &all).unwrap();
            let whole = ruleset();
            run(&format!("nft flush chain inet weft {chain}"));
            run(&format!("nft delete chain inet weft {chain}"));
            // The same again, and something new.
            fw.guard("br0").unwrap();
            fw.attach(&owner("a"), &addrs(3), &[tcp(None, 8080, 80)], &all).unwrap();
            assert_eq!(sorted(&ruleset()), sorted(&whole), "{chain}");
            run(&format!("nft flush chain inet weft {chain}"));
            run(&format!("nft delete chain inet weft {chain}"));
            fw.attach(&owner("b"), &addrs(4), &[tcp(None, 8081, 80)], &all).unwrap();
            assert!(ruleset().contains(&format!("chain {chain} ")), "{chain}");
            run("nft delete table inet weft");
        }
    });
}

/// An earlier version adds a subnet to a table that this one made without connection tracking.
#[test]
fn subnet_of_earlier_version_gets_tracked_chains() {
    testns::in_fresh(|| {
        if !has("nft") {
            return;
        }
        let mut fw = Nftables::open().unwrap();
        fw.masquerade(&owner("a"), &addrs(3)).unwrap();
        let whole = ruleset();
        // What that version makes: the subnet's sets and chain alone.
        let chains = "prerouting output forward input within untranslated guard proxied publish services";
        for command in ["flush", "delete"] {
            for chain in chains.split(' ') {
                run(&format!("nft {command} chain inet weft {chain}"));
            }
        }
        for set in ["ports4", "ports4_at", "ports6", "ports6_at"] {
            run(&format!("nft delete map inet weft {set}"));
        }
        for set in [
            "guarded",
            "bridges_closed",
            "bridges_sealed",
            "bridges_isolated",
            "bridges_proxied",
            "bridge_pairs",
        ] {
            run(&format!("nft delete set inet weft {set}"));
        }
        fw.masquerade(&owner("b"), &addrs(4)).unwrap();
        fw.check_masquerade(&owner("b"), &addrs(4)).unwrap();
        fw.unmasquerade(&owner("b"), &addrs(4)).unwrap();
        assert_eq!(sorted(&ruleset()), sorted(&whole));
    });
}

/// The lines, in an order that does not tell which chain was made first.
fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    lines
}

#[test]
fn garbage_collection_takes_the_stale_of_one_network_only() {
    testns::in_fresh(|| {
        let mut fw = Nftables::open().unwrap();
        let long = "n".repeat(60);
        for (network, container, n) in [
            ("web", "live", 3),
            ("web", "dead", 4),
            ("db", "dead", 5),
            (&long, "dead", 6),
            (&long, "live", 7),
        ] {
            let owner = Owner::new(network, container, "eth0");
            fw.attach(&owner, &addrs(n), &[tcp(None, 8000 + n, 80)], &plain()).unwrap();
        }
        run("nft add element inet weft masq-10.1.0.0/16 { 10.1.9.9 }");
        let valid = |container: &str, ifname: &str| container == "live" && ifname == "eth0";
        assert_eq!(fw.gc("web", What::Masquerade, &valid).unwrap(), 2);
        assert_eq!(lines_with("web/dead/eth0"), 4, "ports and hairpins are left");
        assert_eq!(fw.gc("web", What::Ports, &valid).unwrap(), 4);
        assert_eq!(lines_with("web/dead/eth0"), 0);
        assert_eq!(fw.gc(&long, What::Ports, &valid).unwrap(), 4);
        assert_eq!(fw.gc(&long, What::Ports, &valid).unwrap(), 0);
        let text = ruleset();
        for left in
            ["web/live/eth0", "db/dead/eth0", "10.1.9.9", &format!("{}/live", names::clip_network(&long))]
        {
            assert!(text.contains(left), "{left}: {text}");
        }
    });
}

#[test]
fn tidy_removes_chains_and_table_only_when_unused_and_nothing_foreign() {
    testns::in_fresh(|| {
        run("nft add table inet other");
        run("nft add chain inet other c { type nat hook prerouting priority -100; }");
        run("nft add rule inet other c tcp dport 1 dnat ip to 10.0.0.1");
        run("nft add table ip weft");
        run("nft add chain ip weft subnet-10.1.0.0/16");
        let foreign = ruleset();
        let mut fw = Nftables::open().unwrap();
        fw.masquerade(&owner("a"), &addrs(3)).unwrap();
        let one = ruleset();
        fw.masquerade(&owner("b"), &["10.77.0.3/24".parse().unwrap()]).unwrap();
        fw.tidy().unwrap();
        assert!(ruleset().contains("masq-10.77.0.0/24"));
        fw.unmasquerade(&owner("b"), &[]).unwrap();
        fw.tidy().unwrap();
        assert_eq!(ruleset(), one);
        fw.unmasquerade(&owner("a"), &addrs(3)).unwrap();
        // A guard of a bridge that is there holds the table; that of one which is gone does not.
        run("ip link add br7 type bridge");
        fw.guard("br7").unwrap();
        fw.guard("br8").unwrap();
        fw.tidy().unwrap();
        assert_eq!((lines_with("\"br7\""), lines_with("\"br8\"")), (2, 0));
        run("ip link del br7");
        fw.tidy().unwrap();
        assert_eq!(ruleset(), foreign);
    });
}

#[test]
fn a_broken_table_is_reported() {
    testns::in_fresh(|| {
        run("nft add table inet weft");
        let mut fw = Nftables::open().unwrap();
        let error = fw.publish(&owner("a"), &addrs(3), &[tcp(None, 1, 1)], &plain()).unwrap_err().to_string();
        assert!(error.contains("nft delete table inet weft"), "{error}");
    });
}

/// A node's Weft is replaced while containers run: the table of the version before is made anew, with what is in it.
#[test]
fn table_of_earlier_version_is_made_anew() {
    testns::in_fresh(|| {
        if !has("nft") {
            return;
        }
        let mut fw = Nftables::open().unwrap();
        let ports = [tcp(None, 8080, 80)];
        let options = PublishOptions { localnet: Some("br0".into()), ..plain() };
        fw.attach(&owner("a"), &addrs(3), &ports, &options).unwrap();
        fw.guard("br0").unwrap();
        let now = ruleset();
        // That of release 7af79f7 had neither these sets nor the rules that ask them.
        for chain in ["raw", "foreign", "prerouting", "forward", "within"] {
            run(&format!("nft flush chain inet weft {chain}"));
        }
        for set in [
            "localnet",
            "bridges",
            "bridges_strict",
            "bridges_closed",
            "bridges_isolated",
            "bridges_proxied",
            "bridge_pairs",
        ] {
            run(&format!("nft delete set inet weft {set}"));
        }
        fw.publish(&owner("b"), &addrs(4), &[tcp(None, 8081, 80)], &options).unwrap();
        fw.check_publish(&owner("b"), &addrs(4), &[tcp(None, 8081, 80)], &options).unwrap();
        fw.check_publish(&owner("a"), &addrs(3), &ports, &plain()).unwrap();
        fw.check_masquerade(&owner("a"), &addrs(3)).unwrap();
        fw.unpublish(&owner("b"), &[]).unwrap();
        fw.tidy().unwrap();
        fw.guard("br0").unwrap();
        assert_eq!(ruleset(), now);
    });
}
