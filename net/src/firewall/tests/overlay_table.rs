//! The overlay's table as a text, what is mended in it, and what it costs to keep it.

use super::overlay::{DIRECT, WEB, rules, set};
use super::*;
use crate::firewall::overlay::{OverlayTable, Rules};
use crate::testns;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Instant;

const FULL: &str = r#"table inet weft-overlay {
	comment "Weft overlay networks, frame NUMBER"
	set vnis {
		typeof @th,96,24
		comment "VNIs of overlay networks"
		elements = { 0x2a, 0x2b,
			     0x2c, 0xffffff }
	}

	set vteps4 {
		type ipv4_addr
		comment "hosts whose VXLAN packets are taken"
		elements = { 192.0.2.2 }
	}

	set vteps6 {
		type ipv6_addr
		comment "hosts whose VXLAN packets are taken"
		elements = { 2001:db8::2 }
	}

	set nodes4 {
		type ipv4_addr
		comment "all nodes, to which no container sends VXLAN packets"
		elements = { 192.0.2.2, 192.0.2.3 }
	}

	set nodes6 {
		type ipv6_addr
		comment "all nodes, to which no container sends VXLAN packets"
		elements = { 2001:db8::2 }
	}

	set paths4 {
		typeof @th,192,32
		comment "nodes, about packets to which no container sends ICMP errors"
		elements = { 0xc0000201, 0xc0000202, 0xc0000203 }
	}

	set paths6 {
		typeof @th,256,128
		comment "nodes, about packets to which no container sends ICMP errors"
		elements = { 0x20010db8000000000000000000000002 }
	}

	set vxlan_ports {
		type inet_service
		comment "ports at which nodes take VXLAN packets"
		elements = { 4789, 8472 }
	}

	set groups {
		type devgroup
		comment "link groups of overlay networks"
		elements = { 1459617834, 1459617835,
			     1459617836, 1459617837 }
	}

	set group_pairs {
		type devgroup . devgroup
		comment "the same link group, in and out"
		elements = { 1459617834 . 1459617834,
			     1459617835 . 1459617835,
			     1459617836 . 1459617836,
			     1459617837 . 1459617837 }
	}

	set internal {
		type devgroup
		comment "groups of networks without a way out"
		elements = { 1459617836 }
	}

	set routed {
		type devgroup
		comment "groups of networks with a way in for all that is routed here"
		elements = { 1459617834 }
	}

	set direct4 {
		type ipv4_addr . devgroup
		flags interval
		comment "subnets whose packets other hosts may send as they are"
		elements = { 10.9.0.0/16 . 1459617837 }
	}

	set direct6 {
		type ipv6_addr . devgroup
		flags interval
		comment "subnets whose packets other hosts may send as they are"
		elements = { fd00:9::/32 . 1459617837 }
	}

	set nets4 {
		type ipv4_addr . nf_proto
		flags interval
		comment "subnets of overlay networks, with their family"
		elements = { 10.9.0.0/16 . ipv4 }
	}

	set nets6 {
		type ipv6_addr . nf_proto
		flags interval
		comment "subnets of overlay networks, with their family"
		elements = { fd00:9::/32 . ipv6 }
	}

	set stores4 {
		type ipv4_addr . inet_service
		comment "the cluster's store, to which no container connects"
	}

	set stores6 {
		type ipv6_addr . inet_service
		comment "the cluster's store, to which no container connects"
	}

	set stores_here {
		type inet_service
		comment "ports of the cluster's store on this node"
	}

	chain prerouting {
		type filter hook prerouting priority raw; policy accept;
		meta l4proto icmp iif != "lo" iif != "lo" jump errors4 comment "ICMP by another link"
		meta l4proto ipv6-icmp iif != "lo" iif != "lo" jump errors6 comment "ICMP by another link, IPv6"
		iifgroup != "default" meta iifkind "veth" iifgroup @groups goto sources comment "from a container"
		iif "lo" udp dport 4789 ip saddr @vteps4 return comment "VXLAN of another node"
		iif "lo" udp dport 4789 ip6 saddr @vteps6 return comment "VXLAN of another node, IPv6"
		iif != "lo" fib saddr . iif oif 0 jump astray comment "by another link than the way back"
	}

	chain input {
		type filter hook input priority filter - 10; policy accept;
		udp dport 4789 @th,96,24 @vnis jump arrive comment "VXLAN of ours"
		iifgroup @internal jump services comment "from a network without a way out"
	}

	chain forward {
		type filter hook forward priority filter - 10; policy accept;
		udp dport @vxlan_ports jump vxlan comment "VXLAN"
		oif "lo" ct state established,related iifgroup @groups iifgroup != @internal accept comment "of a connection that has got out"
		iif "lo" ct state established,related oifgroup != @internal accept comment "of a connection that has got in"
		iifgroup . oifgroup @group_pairs accept comment "within a network"
		iif "lo" ip saddr @vteps4 oifgroup @groups oifgroup != @internal accept comment "from a node"
		iif "lo" ip6 saddr @vteps6 oifgroup @groups oifgroup != @internal accept comment "from a node, IPv6"
		iif "lo" ip saddr . oifgroup @direct4 accept comment "from another host, as it is"
		oif "lo" ip daddr . iifgroup @direct4 accept comment "to another host, as it is"
		iif "lo" ip6 saddr . oifgroup @direct6 accept comment "from another host, as it is, IPv6"
		oif "lo" ip6 daddr . iifgroup @direct6 accept comment "to another host, as it is, IPv6"
		iifgroup @internal drop comment "no way out"
		oifgroup @internal drop comment "no way in"
		oifgroup @groups jump inward comment "from outside"
		iif != "lo" oif "lo" jump outward comment "to outside"
	}

	chain services {
		socket mark 0x10000000 drop comment "to a service of Weft"
	}

	chain sources {
		fib saddr . iif oif 0 jump foreign comment "from an address that is not the container's"
	}

	chain astray {
		ip saddr . meta nfproto @nets4 drop comment "a network's address by another link"
		ip6 saddr . meta nfproto @nets6 drop comment "a network's address by another link, IPv6"
	}

	chain foreign {
		ip6 saddr fe80::/10 return comment "neighbours on the link, IPv6"
		drop comment "another's address"
	}

	chain errors4 {
		@th,0,8 0x8 return comment "an echo request"
		@th,0,8 0x0 return comment "an echo reply"
		@th,192,32 @paths4 drop comment "about packets to a node"
	}

	chain errors6 {
		@th,0,8 & 0x80 == 0x80 return comment "no error"
		@th,256,128 @paths6 drop comment "about packets to a node"
	}

	chain arrive {
		iif != "lo" drop comment "by another link than the underlay's"
		ip saddr != @vteps4 drop comment "from a host that is none of ours"
		ip6 saddr != @vteps6 drop comment "from a host that is none of ours, IPv6"
		ip daddr 192.0.2.1 return comment "to this node's VTEP"
		drop comment "to another address of this node"
	}

	chain vxlan {
		iif != "lo" ip daddr @nodes4 drop comment "by another link than the underlay's to a node"
		iif != "lo" ip6 daddr @nodes6 drop comment "by another link than the underlay's to a node, IPv6"
		iif != "lo" ip saddr @nodes4 drop comment "by another link than the underlay's from a node"
		iif != "lo" ip6 saddr @nodes6 drop comment "by another link than the underlay's from a node, IPv6"
		ip saddr != @vteps4 ip daddr @vteps4 drop comment "from none of ours to a host"
		ip6 saddr != @vteps6 ip6 daddr @vteps6 drop comment "from none of ours to a host, IPv6"
	}

	chain inward {
		ct state established,related accept comment "answers"
		ct status dnat accept comment "published ports"
		iif "lo" oifgroup @routed accept comment "routed from outside"
		drop comment "the rest"
	}

	chain outward {
		ct state established,related accept comment "of a connection that has got out"
		ip daddr . meta nfproto @nets4 jump inward comment "to a network by the underlay"
		ip6 daddr . meta nfproto @nets6 jump inward comment "to a network by the underlay, IPv6"
	}
}
"#;

/// With the frame's number blotted out, and a set's elements in order (a hash has none).
fn canonical(text: &str) -> String {
    let mut lines = Vec::new();
    let mut elements: Option<Vec<String>> = None;
    for line in text.lines() {
        let line = match line.split_once(", frame ") {
            Some((before, _)) => format!("{before}, frame NUMBER\""),
            None => line.to_owned(),
        };
        if let Some(rest) = line.trim_start().strip_prefix("elements = { ") {
            elements = Some(Vec::new());
            read_elements(rest, &mut elements, &mut lines);
        } else if elements.is_some() {
            read_elements(line.trim(), &mut elements, &mut lines);
        } else {
            lines.push(line);
        }
    }
    lines.join("\n")
}

fn read_elements(part: &str, elements: &mut Option<Vec<String>>, lines: &mut Vec<String>) {
    let all = elements.as_mut().unwrap();
    let words = part.trim_end_matches('}').split(',').map(str::trim).filter(|word| !word.is_empty());
    all.extend(words.map(str::to_owned));
    if part.ends_with('}') {
        all.sort();
        lines.push(format!("elements = {}", all.join(", ")));
        *elements = None;
    }
}

fn full() -> Rules {
    let subnets = ["10.9.0.0/16", "fd00:9::/32"].map(|net| (net.parse().unwrap(), DIRECT));
    let nets = subnets.map(|(net, _)| net).into();
    Rules { nets, direct: set(subnets), routed: set([WEB]), ..rules() }
}

#[test]
fn the_overlays_table_reads_well_and_can_be_loaded_again() {
    testns::in_fresh(|| {
        if !has("nft") {
            return;
        }
        let mut table = OverlayTable::open().unwrap();
        table.apply(&full()).unwrap();
        let text = ruleset();
        assert_eq!(canonical(&text), canonical(FULL), "{text}");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &text).unwrap();
        run("nft flush ruleset");
        run(&format!("nft -f {}", file.path().display()));
        table.forget();
        assert!(
            !table.apply(&full()).unwrap(),
            "what nft has loaded is as good as what we made: {}",
            ruleset()
        );
        table.remove().unwrap();
        table.remove().unwrap();
        assert_eq!(ruleset(), "");
    });
}

/// A cluster's store at two addresses, one of them this node's.
fn stores() -> Rules {
    let stores = [("192.0.2.9", 2379), ("2001:db8::9", 2380)].map(|(ip, port)| (ip.parse().unwrap(), port));
    Rules { stores: set(stores), stores_here: set([2379]), ..full() }
}

#[test]
fn store_rules_come_first_and_read_as_they_were_written() {
    testns::in_fresh(|| {
        if !has("nft") {
            return;
        }
        let mut table = OverlayTable::open().unwrap();
        table.apply(&full()).unwrap();
        assert!(table.apply(&stores()).unwrap());
        let text = ruleset();
        for line in [
            "elements = { 192.0.2.9 . 2379 }",
            "elements = { 2001:db8::9 . 2380 }",
            "elements = { 2379 }",
            "ip daddr . tcp dport @stores4 drop comment \"to the store\"",
            "ip6 daddr . tcp dport @stores6 drop comment \"to the store, IPv6\"",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        for hook in ["prerouting", "input", "forward"] {
            let chain = text.split(&format!("chain {hook} {{")).nth(1).unwrap();
            let first = chain.lines().nth(2).unwrap();
            assert!(
                first.contains("iifgroup 1459617792/8 ") && first.contains("jump stores"),
                "{hook}: {first}"
            );
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &text).unwrap();
        run("nft flush ruleset");
        run(&format!("nft -f {}", file.path().display()));
        assert_eq!(canonical(&ruleset()), canonical(&text));
        table.forget();
        assert!(!table.apply(&stores()).unwrap(), "what nft has loaded is as good: {}", ruleset());
        run("nft delete element inet weft-overlay stores4 { 192.0.2.9 . 2379 }");
        table.forget();
        assert!(table.apply(&stores()).unwrap());
        assert_eq!(canonical(&ruleset()), canonical(&text));
        // A store that moves is a change of elements, not of the frame.
        let before = table.sent().messages;
        assert!(table.apply(&Rules { stores_here: set([2380]), ..stores() }).unwrap());
        assert_eq!(table.sent().messages - before, 2);
        assert!(table.apply(&full()).unwrap());
        assert_eq!(canonical(&ruleset()), canonical(FULL));
    });
}

#[test]
fn whatever_was_done_to_the_table_by_hand_is_mended() {
    testns::in_fresh(|| {
        if !has("nft") {
            return;
        }
        let mut table = OverlayTable::open().unwrap();
        table.apply(&full()).unwrap();
        let whole = canonical(&ruleset());
        for harm in [
            "nft flush ruleset",
            "nft delete table inet weft-overlay",
            "nft flush chain inet weft-overlay inward",
            "nft insert rule inet weft-overlay forward accept",
            "nft chain inet weft-overlay forward { policy drop; }",
            "nft add chain inet weft-overlay more",
            "nft add table inet weft-overlay { flags dormant; }",
            "nft delete element inet weft-overlay vteps4 { 192.0.2.2 }",
            "nft add element inet weft-overlay vteps4 { 192.0.2.66 }",
            "nft delete element inet weft-overlay direct4 { 10.9.0.0/16 . 0x5700002d }",
            "nft add element inet weft-overlay direct6 { fd00:8::/32 . 0x5700002d }",
            "nft delete element inet weft-overlay nodes4 { 192.0.2.3 }",
            "nft add element inet weft-overlay vxlan_ports { 53 }",
            "nft flush set inet weft-overlay routed",
            "nft flush set inet weft-overlay vnis",
            "nft add element inet weft-overlay group_pairs { 0x5700002a . 0x5700002b }",
        ] {
            run(harm);
            assert_ne!(canonical(&ruleset()), whole, "{harm}");
            assert!(!table.apply(&full()).unwrap(), "{harm}: it is not looked for without a reason");
            table.forget();
            assert!(table.apply(&full()).unwrap(), "{harm}");
            assert_eq!(canonical(&ruleset()), whole, "{harm}");
            table.forget();
            assert!(!table.apply(&full()).unwrap(), "{harm}: nothing is left to mend");
        }
    });
}

#[test]
fn a_change_that_the_kernel_refuses_has_the_table_read_again() {
    testns::in_fresh(|| {
        let mut table = OverlayTable::open().unwrap();
        table.apply(&full()).unwrap();
        run("nft delete table inet weft-overlay");
        let more = Rules { vnis: set([42, 50]), ..full() };
        assert!(table.apply(&more).unwrap());
        table.forget();
        assert!(!table.apply(&more).unwrap());
        run("nft delete element inet weft-overlay vteps4 { 192.0.2.2 }");
        let less = Rules { vteps: BTreeSet::new(), ..more };
        assert!(table.apply(&less).unwrap());
        table.forget();
        assert!(!table.apply(&less).unwrap());
    });
}

#[test]
fn another_port_or_underlay_replaces_the_frame_and_keeps_foreign_tables() {
    testns::in_fresh(|| {
        run("nft add table inet other");
        let mut table = OverlayTable::open().unwrap();
        table.apply(&full()).unwrap();
        assert!(table.apply(&Rules { port: 8472, ..full() }).unwrap());
        assert!(ruleset().contains("udp dport 8472 @th,96,24") && !ruleset().contains("dport 4789"));
        assert!(table.apply(&Rules { vtep: None, ..full() }).unwrap());
        assert!(!ruleset().contains("to this node's VTEP"));
        assert!(table.apply(&Rules { underlay: 0, ..full() }).unwrap());
        assert!(!ruleset().contains("iif \"lo\""));
        // Another agent's table, with other rules, is taken over.
        assert!(OverlayTable::open().unwrap().apply(&full()).unwrap());
        assert_eq!(canonical(&run("nft list table inet weft-overlay")), canonical(FULL));
        table.remove().unwrap();
        assert_eq!(ruleset(), "table inet other {\n}\n");
    });
}

#[test]
fn many_hosts_are_many_elements_and_one_more_is_one_message() {
    testns::in_fresh(|| {
        let many: BTreeSet<IpAddr> =
            (0..5000u32).map(|n| IpAddr::from(Ipv4Addr::from(0x0a00_0000 + n * 3))).collect();
        let rules = Rules { vteps: many, ..full() };
        let mut table = OverlayTable::open().unwrap();
        table.apply(&rules).unwrap();
        let more = Rules {
            vteps: rules.vteps.iter().copied().chain(["192.0.2.9".parse().unwrap()]).collect(),
            ..rules.clone()
        };
        let before = table.sent();
        let start = Instant::now();
        assert!(table.apply(&more).unwrap());
        println!("one more of 5,001 hosts: {:?}", start.elapsed());
        assert_eq!(table.sent().messages - before.messages, 1);
        let start = Instant::now();
        table.forget();
        assert!(!table.apply(&more).unwrap());
        println!("reading and comparing 5,001 hosts: {:?}", start.elapsed());
        assert!(table.apply(&rules).unwrap());
        assert!(!ruleset().contains("192.0.2.9"));
    });
}
