//! Accepting in forward chains of others whose policy is drop, as packets, nft and iptables see it.

use super::lab::Lab;
use super::*;
use crate::firewall::forward;
use crate::firewall::forward::{Traffic, Undeclared, accept, declare, dropping, withdraw};
use crate::testns;

const CHAINS: &str = "add table inet hard
add chain inet hard forward { type filter hook forward priority 0; policy drop; }
add chain inet hard open { type filter hook forward priority 5; policy accept; }
add chain inet hard input { type filter hook input priority 0; policy drop; }";

fn load(rules: &str) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), rules).unwrap();
    run(&format!("nft -f {}", file.path().display()));
}

#[test]
fn forward_policy_drop_lets_accepted_link_pass() {
    testns::in_fresh(|| {
        let lab = Lab::new();
        assert!(!accept("br0", &[Traffic::Link("br0".into())]).unwrap(), "no chain drops yet");
        assert_eq!(ruleset(), "");
        load(
            "add table inet hard\nadd chain inet hard f { type filter hook forward priority 0; policy drop; }",
        );
        let reaches = |to| lab.ask(Some(&lab.a), to, Protocol::Udp).is_some();
        assert!(!reaches("192.0.2.2:80") && !reaches("[2001:db8::2]:80"));
        for _ in 0..2 {
            assert!(accept("br0", &[Traffic::Link("br0".into())]).unwrap());
        }
        assert!(reaches("192.0.2.2:80") && reaches("[2001:db8::2]:80"));
        assert_eq!(lab.ask(Some(&lab.other), "10.1.0.3:80", Protocol::Udp), None, "as the policy has it");
        assert_eq!(ruleset().matches("weft: forward br0").count(), 3, "{}", ruleset());
        assert_eq!(withdraw("br").unwrap(), 0);
        assert_eq!(withdraw("br0").unwrap(), 3);
        assert!(!reaches("192.0.2.2:80"));
    });
}

#[test]
fn forward_accept_of_subnets_goes_to_their_family() {
    testns::in_fresh(|| {
        load(CHAINS);
        let before = ruleset();
        let nets: Vec<_> =
            ["10.9.0.0/17", "fd09::/64"].map(|net| Traffic::Subnet(net.parse().unwrap())).into();
        assert!(accept("pods", &nets).unwrap());
        assert_eq!(
            dropping().unwrap().iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["inet hard forward"]
        );
        let text = ruleset();
        assert!(text.contains("ip saddr 10.9.0.0/17 counter packets 0 bytes 0 accept"), "{text}");
        assert!(text.contains("ip6 daddr fd09::/64 counter packets 0 bytes 0 accept"), "{text}");
        run("nft add rule inet hard forward counter");
        assert_eq!(withdraw("pods").unwrap(), 4);
        run("nft flush chain inet hard forward");
        assert_eq!(ruleset(), before);
    });
}

#[test]
fn refusing_chains_are_those_without_rule_for_packet() {
    testns::in_fresh(|| {
        load(CHAINS);
        load(
            "add table ip6 filter\nadd chain ip6 filter FORWARD { type filter hook forward priority 0; policy drop; }",
        );
        let ip = |text: &str| text.parse().unwrap();
        let refusing = |from: &str, to: &str| forward::refusing(&[ip(from)], ip(to)).unwrap();
        assert_eq!(refusing("10.9.0.1", "10.9.0.2"), ["inet hard forward"]);
        assert_eq!(refusing("fd09::1", "fd09::2").len(), 2);
        accept("overlay/ov", &[Traffic::Subnet("10.9.0.0/17".parse().unwrap())]).unwrap();
        assert!(refusing("10.9.0.1", "192.0.2.1").is_empty() && refusing("192.0.2.1", "10.9.0.1").is_empty());
        assert_eq!(refusing("10.9.200.1", "192.0.2.1"), ["inet hard forward"]);
        assert_eq!(refusing("fd09::1", "fd09::2"), ["inet hard forward", "ip6 filter FORWARD"]);
    });
}

#[test]
fn forward_declare_keeps_rules_of_its_prefix_alone() {
    testns::in_fresh(|| {
        let net = |name: &str, nets: &[&str]| {
            let nets = nets.iter().map(|net| Traffic::Subnet(net.parse().unwrap()));
            (format!("overlay/{name}"), nets.collect::<Vec<_>>())
        };
        let one = net("one", &["10.9.0.0/17", "fd09::/64"]);
        let two = net(&"two".repeat(30), &["10.10.0.0/17"]);
        let go = |nets: &[(String, Vec<Traffic>)]| declare("overlay/", nets, Undeclared::Go).unwrap();
        assert_eq!(go(&[one.clone(), two.clone()]), 0, "no chain drops yet");
        assert_eq!(ruleset(), "");
        load(CHAINS);
        let before = ruleset();
        accept("br0", &[Traffic::Link("br0".into())]).unwrap();
        let bridge = ruleset();
        assert_eq!((go(&[one.clone(), two.clone()]), go(&[one.clone(), two.clone()])), (6, 0));
        let changed = net("one", &["10.11.0.0/16"]);
        assert_eq!(declare("overlay/", std::slice::from_ref(&changed), Undeclared::Stay).unwrap(), 2);
        assert_eq!(go(&[changed, two]), 4);
        // The policy is accept by now, and the rules go all the same.
        run("nft add chain inet hard forward { policy accept ; }");
        assert_eq!(go(&[one]), 4);
        run("nft add chain inet hard forward { policy drop ; }");
        assert_eq!(ruleset(), bridge);
        assert_eq!(withdraw("br0").unwrap(), 3);
        assert_eq!(ruleset(), before);
    });
}

#[test]
fn forward_accept_stays_readable_to_iptables() {
    if !has("iptables") || !has("ip6tables") {
        return;
    }
    testns::in_fresh(|| {
        run("iptables -P FORWARD DROP");
        run("ip6tables -P FORWARD DROP");
        if dropping().unwrap().is_empty() {
            println!("skipped: iptables is not of nftables here");
            return;
        }
        let nets: Vec<_> =
            ["10.9.0.0/17", "fd09::/64"].map(|net| Traffic::Subnet(net.parse().unwrap())).into();
        accept("pods", &nets).unwrap();
        accept("br0", &[Traffic::Link("br0".into())]).unwrap();
        let (v4, v6) = (run("iptables -S FORWARD"), run("ip6tables -S FORWARD"));
        for (text, of) in [(&v4, "-s 10.9.0.0/17"), (&v4, "-i br0"), (&v6, "-d fd09::/64"), (&v6, "-o br0")] {
            assert!(text.contains(&format!("-A FORWARD {of}")), "{of}: {text}");
            assert!(text.contains("weft: forward"), "{text}");
        }
        run("iptables -A FORWARD -s 10.0.0.1 -j ACCEPT");
        assert_eq!((withdraw("pods").unwrap(), withdraw("br0").unwrap()), (4, 4));
        assert_eq!(run("iptables -S FORWARD").trim(), "-P FORWARD DROP\n-A FORWARD -s 10.0.0.1/32 -j ACCEPT");
    });
}

#[test]
fn forward_accept_reaches_legacy_iptables() {
    testns::in_fresh(|| {
        let legacy = |args: &str| {
            let output = Command::new("iptables-legacy").args(args.split(' ')).output().ok()?;
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let lab = Lab::new();
        if legacy("-P FORWARD DROP").is_none() {
            println!("skipped: no iptables-legacy, or a kernel without it");
            return;
        }
        let reaches = || lab.ask(Some(&lab.a), "192.0.2.2:80", Protocol::Udp).is_some();
        assert!(!reaches());
        for _ in 0..2 {
            assert!(accept("br0", &[Traffic::Link("br0".into())]).unwrap());
        }
        assert!(reaches(), "{:?}", legacy("-S FORWARD"));
        assert!(
            lab.ask(Some(&lab.other), "10.1.0.4:80", Protocol::Udp).is_none(),
            "new connections from outside"
        );
        assert_eq!(legacy("-S FORWARD").unwrap().matches("weft: forward br0").count(), 2);
        let refusing = |to: &str| forward::refusing(&[], to.parse().unwrap()).unwrap();
        assert!(refusing("10.9.0.1").is_empty(), "a link may be anything's");
        assert_eq!(withdraw("br0").unwrap(), 2);
        assert_eq!(refusing("10.9.0.1"), ["iptables-legacy filter FORWARD"]);
        assert!(refusing("fd09::1").is_empty());
        let net = ("overlay/ov".to_owned(), vec![Traffic::Subnet("10.1.0.0/24".parse().unwrap())]);
        for count in [2, 0] {
            let net = std::slice::from_ref(&net);
            assert_eq!(declare("overlay/", net, Undeclared::Go).unwrap(), count);
        }
        assert!(reaches(), "{:?}", legacy("-S FORWARD"));
        assert_eq!(declare("overlay/", &[], Undeclared::Go).unwrap(), 2);
        assert_eq!(legacy("-S FORWARD").unwrap().trim(), "-P FORWARD DROP");
    });
}
