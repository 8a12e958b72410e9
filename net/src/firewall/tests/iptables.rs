//! What the iptables backend makes, and that nothing of it remains.

use super::*;
use crate::firewall::ipt::Iptables;
use crate::testns;

fn saved() -> String {
    let both = run("iptables-save") + &run("ip6tables-save");
    both.lines()
        .filter(|line| line.starts_with("-A") || line.contains("WEFT"))
        .map(|l| format!("{l}\n"))
        .collect()
}

fn with_iptables(test: impl FnOnce(&mut Iptables) + Send) {
    if has("iptables") && has("ip6tables") {
        testns::in_fresh(|| test(&mut Iptables::new().unwrap()));
    }
}

#[test]
fn the_rules_are_as_expected() {
    with_iptables(|fw| {
        let v4 = &addrs(3)[..1];
        fw.attach(&owner("abc"), v4, &[tcp(None, 8080, 80)], &plain()).unwrap();
        let nat = run("iptables -t nat -S");
        let expected = "\
-P PREROUTING ACCEPT
-P INPUT ACCEPT
-P OUTPUT ACCEPT
-P POSTROUTING ACCEPT
-N WEFT-DNAT
-N WEFT-HAIRPIN
-N WEFT-POSTROUTING
-A PREROUTING -m addrtype --dst-type LOCAL -j WEFT-DNAT
-A OUTPUT -m addrtype --dst-type LOCAL -j WEFT-DNAT
-A POSTROUTING -j WEFT-POSTROUTING
-A POSTROUTING -j WEFT-HAIRPIN
-A WEFT-DNAT -s 10.1.0.0/16 -p tcp -m tcp --dport 8080 -m comment --comment \"web/abc/eth0\" -j MARK --set-xmark 0x2000/0x2000
-A WEFT-DNAT -s 127.0.0.0/8 -p tcp -m tcp --dport 8080 -m comment --comment \"web/abc/eth0\" -j MARK --set-xmark 0x2000/0x2000
-A WEFT-DNAT -p tcp -m tcp --dport 8080 -m comment --comment \"web/abc/eth0\" -j DNAT --to-destination 10.1.0.3:80
-A WEFT-HAIRPIN -d 10.1.0.3/32 -m mark --mark 0x2000/0x2000 -m comment --comment \"web/abc/eth0\" -j MASQUERADE
-A WEFT-POSTROUTING -s 10.1.0.3/32 -d 10.1.0.0/16 -m comment --comment \"web/abc/eth0\" -j RETURN
-A WEFT-POSTROUTING -s 10.1.0.3/32 ! -d 224.0.0.0/4 -m comment --comment \"web/abc/eth0\" -j MASQUERADE
";
        let sorted = |text: &str| {
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert_eq!(sorted(&nat), sorted(expected));
        let hairpin = nat.find("-A POSTROUTING -j WEFT-HAIRPIN").unwrap();
        assert!(hairpin < nat.find("-A POSTROUTING -j WEFT-POSTROUTING").unwrap(), "{nat}");
        assert!(run("iptables -t raw -S").contains("-A WEFT-LOOPBACK -d 127.0.0.0/8 ! -i lo -j DROP"));
        assert!(!run("iptables -S").contains("WEFT"), "FORWARD lets everything through here");
        assert!(!run("ip6tables -t nat -S").contains("WEFT"));
    });
}

#[test]
fn all_of_it_goes_and_what_is_not_ours_stays() {
    with_iptables(|fw| {
        run("iptables -t nat -A PREROUTING -p tcp --dport 9 -j DNAT --to-destination 10.9.9.9");
        run("iptables -P FORWARD DROP");
        let before = saved();
        let (a, b) = (owner("a"), Owner::new("db", "a", "eth1"));
        let ports = [tcp(None, 8080, 80), udp(Some("127.0.0.1"), 53, 53)];
        fw.masquerade(&a, &addrs(3)).unwrap();
        fw.publish(&a, &addrs(3), &ports, &plain()).unwrap();
        fw.check_masquerade(&a, &addrs(3)).unwrap();
        fw.check_publish(&a, &addrs(3), &ports, &plain()).unwrap();
        let one = saved();
        assert!(run("iptables -S").contains("-A WEFT-FORWARD -s 10.1.0.3/32"), "{one}");
        assert!(!run("ip6tables -S").contains("WEFT-FORWARD"), "its policy is ACCEPT");
        fw.attach(&b, &addrs(4), &[tcp(None, 81, 80)], &plain()).unwrap();
        fw.tidy().unwrap();
        fw.unpublish(&b, &[]).unwrap();
        fw.unmasquerade(&b, &[]).unwrap();
        fw.tidy().unwrap();
        assert_eq!(saved(), one);
        // Again is the same.
        fw.publish(&a, &addrs(3), &ports, &plain()).unwrap();
        assert_eq!(fw.gc("web", What::Ports, &|_, _| true).unwrap(), 0);
        assert!(fw.gc("web", What::Ports, &|_, _| false).unwrap() > 0);
        assert!(fw.check_publish(&a, &addrs(3), &ports, &plain()).is_err());
        assert_eq!(fw.gc("db", What::Masquerade, &|_, _| false).unwrap(), 0);
        assert!(fw.gc("web", What::Masquerade, &|_, _| false).unwrap() > 0);
        run("ip link add br7 type bridge");
        fw.guard("br7").unwrap();
        fw.guard("br7").unwrap();
        fw.tidy().unwrap();
        assert_eq!(run("iptables -S WEFT-GUARD").lines().count(), 5);
        run("ip link del br7");
        for _ in 0..2 {
            fw.tidy().unwrap();
            fw.unguard("br7").unwrap();
            assert_eq!(saved(), before);
        }
    });
}

#[test]
fn marks_conditions_and_foreign_chains_are_as_the_reference_has_them() {
    with_iptables(|fw| {
        let ports = [tcp(None, 8080, 80)];
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let options = PublishOptions {
            mark_bit: 14,
            external_set_mark_chain: Some("KUBE-MARK-MASQ".into()),
            conditions_v4: words("! -s 10.8.0.0/16"),
            conditions_v6: words("-i eth9"),
            ..plain()
        };
        let error = fw.publish(&owner("a"), &addrs(3), &ports, &options).unwrap_err().to_string();
        assert!(error.contains("KUBE-MARK-MASQ"), "{error}");
        assert_eq!(saved(), "", "a failed publish leaves no chain");
        run("iptables -t nat -N KUBE-MARK-MASQ");
        run("ip6tables -t nat -N KUBE-MARK-MASQ");
        let options = PublishOptions { masq_all: true, ..options };
        fw.publish(&owner("a"), &addrs(3), &ports, &options).unwrap();
        fw.check_publish(&owner("a"), &addrs(3), &ports, &options).unwrap();
        let text = saved();
        let rule = "! -s 10.8.0.0/16 -p tcp -m tcp --dport 8080 -m comment --comment \"web/a/eth0\" -j KUBE-MARK-MASQ";
        assert!(text.contains(rule), "{text}");
        assert!(!text.contains("-j MASQUERADE"), "that is the foreign chain's business: {text}");
        assert!(text.contains("-A WEFT-DNAT -i eth9 -p tcp"), "{text}");
        let bit = PublishOptions { mark_bit: 14, ..plain() };
        fw.publish(&owner("a"), &addrs(3), &ports, &bit).unwrap();
        assert!(saved().contains("--mark 0x4000/0x4000"), "{}", saved());
        let bit = PublishOptions { mark_bit: 32, ..plain() };
        assert!(fw.publish(&owner("a"), &addrs(3), &ports, &bit).is_err());
    });
}

#[test]
fn several_processes_take_turns() {
    with_iptables(|fw| {
        let ns = crate::Netns::current().unwrap();
        std::thread::scope(|scope| {
            for n in 0..4 {
                let ns = &ns;
                scope.spawn(move || {
                    ns.run(|| {
                        let mut fw = Iptables::new().unwrap();
                        let (owner, ports) = (owner(&format!("c{n}")), [tcp(None, 8000 + n, 80)]);
                        for _ in 0..3 {
                            fw.publish(&owner, &addrs(n + 2), &ports, &plain()).unwrap();
                            fw.check_publish(&owner, &addrs(n + 2), &ports, &plain()).unwrap();
                            fw.unpublish(&owner, &ports).unwrap();
                            fw.tidy().unwrap();
                        }
                    })
                    .unwrap();
                });
            }
        });
        fw.tidy().unwrap();
        assert_eq!(saved(), "");
    });
}

/// Run by the next one, where no program is to be found.
#[test]
#[ignore = "needs a PATH without iptables"]
fn without_iptables() {
    let error = Iptables::new().err().unwrap().to_string();
    assert!(error.contains("this host has no iptables"), "{error}");
}

#[test]
fn a_host_without_iptables_is_told_so() {
    let child = Command::new(std::env::current_exe().unwrap())
        .env("PATH", "/nonexistent")
        .args(["--ignored", "--exact", "firewall::tests::iptables::without_iptables"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && text.contains("1 passed"), "{text}");
}
