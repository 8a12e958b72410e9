//! What `nft list ruleset` shows of the table, and that nft can read it back.

use super::*;
use crate::firewall::nft::BridgeRules;
use crate::testns;

const FULL: &str = r#"table inet weft {
	comment "Weft container networking"
	set bridges {
		type iface_index
		comment "links of bridges with attachments"
		elements = { "br0" }
	}

	set bridges_strict {
		type ifname
		comment "bridges that bring only sources behind them"
		elements = { "br0" }
	}

	set localnet {
		type ifname
		comment "links with route_localnet set by Weft"
	}

	map ports4 {
		type inet_proto . inet_service : ipv4_addr . inet_service
		elements = { tcp . 8080 comment "web/abc/eth0" : 10.1.0.3 . 80 }
	}

	map ports4_at {
		type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service
		elements = { 127.0.0.1 . udp . 53 comment "web/abc/eth0" : 10.1.0.3 . 5353 }
	}

	map ports6 {
		type inet_proto . inet_service : ipv6_addr . inet_service
		elements = { tcp . 8080 comment "web/abc/eth0" : fd00::3 . 80 }
	}

	map ports6_at {
		type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service
		elements = { 2001:db8::1 . 132 . 9000 comment "web/abc/eth0" : fd00::3 . 9001 }
	}

	set guarded {
		type ifname
		elements = { "br0" }
	}

	set bridges_closed {
		type ifname
		comment "bridges without a way in or out"
	}

	set bridges_sealed {
		type ifname
		comment "bridges that reach no service of Weft on the host"
	}

	set bridges_isolated {
		type ifname
		comment "bridges whose containers do not see each other"
		elements = { "br0" }
	}

	set bridges_proxied {
		type ifname
		comment "bridges that reach published ports by their proxies"
		elements = { "br0" }
	}

	set bridge_pairs {
		type ifname . ifname
		comment "the same bridge, in and out"
		elements = { "br0" . "br0" }
	}

	set masq-10.1.0.0/16 {
		type ipv4_addr
		elements = { 10.1.0.3 comment "web/abc/eth0" }
	}

	set hairpin-10.1.0.0/16 {
		type ipv4_addr
		elements = { 10.1.0.3 comment "web/abc/eth0" }
	}

	set masq-fd00__/64 {
		type ipv6_addr
		elements = { fd00::3 comment "web/abc/eth0" }
	}

	set hairpin-fd00__/64 {
		type ipv6_addr
		elements = { fd00::3 comment "web/abc/eth0" }
	}

	chain raw {
		type filter hook prerouting priority raw; policy accept;
		iif != "lo" ip daddr 127.0.0.0/8 drop
		iif != "lo" ip saddr 127.0.0.0/8 drop
		fib saddr . iif oif 0 jump foreign
	}

	chain foreign {
		ip6 saddr fe80::/10 return
		ip6 saddr :: return
		ip saddr 0.0.0.0 return
		iifname @bridges_strict drop
		fib saddr oif @bridges drop
	}

	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		fib daddr type local iifname @bridges_proxied jump proxied
		fib daddr type local jump publish
	}

	chain proxied {
		socket mark 0x10000000 accept
	}

	chain output {
		type nat hook output priority -100; policy accept;
		fib daddr type local jump publish
	}

	chain publish {
		meta nfproto ipv4 ct label set 87 dnat ip to ip daddr . meta l4proto . th dport map @ports4_at
		meta nfproto ipv4 ct label set 87 dnat ip to meta l4proto . th dport map @ports4
		ip6 daddr ::1 return
		meta nfproto ipv6 ct label set 87 dnat ip6 to ip6 daddr . meta l4proto . th dport map @ports6_at
		meta nfproto ipv6 ct label set 87 dnat ip6 to meta l4proto . th dport map @ports6
	}

	chain forward {
		type filter hook forward priority filter; policy accept;
		iifname . oifname @bridge_pairs jump within
		iifname @bridges_closed drop
		oifname @bridges_closed drop
		ct state invalid jump untranslated
		oifname @guarded jump guard
	}

	chain input {
		type filter hook input priority filter; policy accept;
		iifname @bridges_sealed jump services
	}

	chain services {
		socket mark 0x10000000 drop comment "to a service of Weft"
	}

	chain untranslated {
		ip saddr @masq-10.1.0.0/16 ip daddr != 10.1.0.0/16 ip daddr != 224.0.0.0/4 drop comment "10.1.0.0/16"
		ip6 saddr @masq-fd00__/64 ip6 daddr != fd00::/64 ip6 daddr != ff00::/8 drop comment "fd00::/64"
	}

	chain within {
		iifname @bridges_isolated ct status ! dnat drop
		accept
	}

	chain guard {
		ct state established,related accept
		ct status dnat accept
		drop
	}

	chain subnet-10.1.0.0/16 {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr @masq-10.1.0.0/16 ip daddr != 10.1.0.0/16 ip daddr != 224.0.0.0/4 masquerade
		ct status dnat ct label 87 ip saddr 10.1.0.0/16 ip daddr @hairpin-10.1.0.0/16 masquerade
		ct status dnat ct label 87 ip saddr 127.0.0.0/8 ip daddr @hairpin-10.1.0.0/16 masquerade
	}

	chain subnet-fd00__/64 {
		type nat hook postrouting priority srcnat; policy accept;
		ip6 saddr @masq-fd00__/64 ip6 daddr != fd00::/64 ip6 daddr != ff00::/8 masquerade
		ct status dnat ct label 87 ip6 saddr fd00::/64 ip6 daddr @hairpin-fd00__/64 masquerade
	}
}
"#;

/// Some `nft` versions name what others give as numbers.
fn canonical(text: &str) -> String {
    text.replace(" . sctp . ", " . 132 . ").replace("priority filter - 300", "priority raw")
}

#[test]
fn the_table_reads_well_and_can_be_loaded_again() {
    testns::in_fresh(|| {
        if !has("nft") {
            return;
        }
        let mut fw = Nftables::open().unwrap();
        fw.probe().unwrap();
        let sctp = PortMapping { protocol: Protocol::Sctp, ..tcp(Some("2001:db8::1"), 9000, 9001) };
        let ports = [tcp(None, 8080, 80), udp(Some("127.0.0.1"), 53, 5353), sctp];
        fw.attach(&owner("abc"), &addrs(3), &ports, &plain()).unwrap();
        run("ip link add br0 type bridge");
        let index = nix::net::if_::if_nametoindex("br0").unwrap();
        let rules = BridgeRules {
            link: "br0".into(),
            index,
            protected: true,
            strict: true,
            guarded: true,
            isolated: true,
            proxied: true,
            closed: false,
            except: Vec::new(),
        };
        assert!(fw.attach_bridge(&owner("abc"), &addrs(3), &rules).unwrap());
        assert!(!fw.attach_bridge(&owner("abc"), &addrs(3), &rules).unwrap(), "all is there");
        let text = ruleset();
        assert_eq!(canonical(&text), canonical(FULL));

        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        run("nft flush ruleset");
        run(&format!("nft -f {}", file.path().display()));
        assert_eq!(canonical(&ruleset()), canonical(FULL));
        // What nft has loaded is as good as what we made.
        fw.check_masquerade(&owner("abc"), &addrs(3)).unwrap();
        fw.check_publish(&owner("abc"), &addrs(3), &ports, &plain()).unwrap();
        fw.unpublish(&owner("abc"), &ports).unwrap();
        fw.unmasquerade(&owner("abc"), &[]).unwrap();
        fw.tidy().unwrap();
        assert!(ruleset().contains("br0"), "a guarded bridge stays so");
        run("ip link del br0");
        fw.tidy().unwrap();
        assert_eq!(ruleset(), "");
    });
}
