//! Masquerading with exceptions, by both backends.

use super::lab::{Lab, serve};
use super::*;
use crate::firewall::ipt::Iptables;
use crate::testns;

fn nets(texts: &[&str]) -> Vec<IpNetwork> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// A lab whose other host has 192.0.2.3 and 2001:db8::3 too.
fn lab() -> Lab {
    let lab = Lab::new();
    lab.other
        .run(|| {
            run("ip addr add 192.0.2.3/24 dev eth0");
            run("ip addr add 2001:db8::3/64 dev eth0 nodad");
        })
        .unwrap();
    serve(&lab.other, "192.0.2.3");
    serve(&lab.other, "2001:db8::3");
    lab
}

fn with_each(test: impl Fn(&Lab, &mut dyn Firewall) + Sync) {
    testns::in_fresh(|| test(&lab(), &mut Nftables::open().unwrap()));
    if has("iptables") && has("ip6tables") {
        testns::in_fresh(|| test(&lab(), &mut Iptables::new().unwrap()));
    }
}

/// As whom container `a` is seen at the first and the second address of the other host, IPv4 first.
fn seen(lab: &Lab) -> [String; 4] {
    ["192.0.2.2:80", "192.0.2.3:80", "[2001:db8::2]:80", "[2001:db8::3]:80"].map(|to| answer(lab, &lab.a, to))
}

/// On a busy machine an answer may be late.
fn answer(lab: &Lab, from: &crate::Netns, to: &str) -> String {
    let answer = (0..25).find_map(|_| lab.ask(Some(from), to, Protocol::Udp));
    answer.unwrap_or_else(|| panic!("no answer from {to}"))
}

#[test]
fn masquerade_exceptions_see_containers_own_address() {
    with_each(|lab, fw| {
        let (me, addrs) = (owner("a"), addrs(3));
        let own = ["10.1.0.3", "10.1.0.3", "fd00::3", "fd00::3"];
        for (except, expected) in [
            (&["192.0.2.2/32", "2001:db8::2/128"][..], ["10.1.0.3", "192.0.2.1", "fd00::3", "2001:db8::1"]),
            // One lies in the other.
            (&["192.0.2.2/32", "192.0.2.0/24"], ["10.1.0.3", "10.1.0.3", "2001:db8::1", "2001:db8::1"]),
            (&["2001:db8::2/127"], ["192.0.2.1", "192.0.2.1", "fd00::3", "fd00::3"]),
            (&["0.0.0.0/0", "::/0"], own),
        ] {
            let except = nets(except);
            fw.masquerade_except(&me, &addrs, &except).unwrap();
            assert_eq!(seen(lab), expected, "{except:?}");
            fw.check_masquerade_except(&me, &addrs, &except).unwrap();
            fw.unmasquerade(&me, &addrs).unwrap();
            assert_eq!(seen(lab), own, "{except:?}");
            fw.tidy().unwrap();
            assert_eq!(ruleset().matches("web/a").count(), 0, "{}", ruleset());
        }
        // Published ports answer in their own subnet all the same.
        fw.masquerade_except(&me, &addrs, &nets(&["0.0.0.0/0", "::/0"])).unwrap();
        fw.publish(&me, &addrs, &[udp(None, 8080, 80)], &plain()).unwrap();
        for to in ["192.0.2.1:8080", "[2001:db8::1]:8080"] {
            answer(lab, &lab.b, to);
        }
    });
}

/// What a container left that went without a DEL.
#[test]
fn leftovers_of_same_address_are_no_exceptions() {
    testns::in_fresh(|| {
        let (lab, mut fw) = (lab(), Nftables::open().unwrap());
        let (me, addrs) = (owner("a"), addrs(3));
        fw.masquerade_except(&owner("old"), &addrs, &nets(&["192.0.2.3/32", "198.51.100.0/24"])).unwrap();
        fw.masquerade_except(&me, &addrs, &nets(&["192.0.2.2/31", "198.51.0.0/16"])).unwrap();
        assert_eq!(seen(&lab), ["10.1.0.3", "10.1.0.3", "2001:db8::1", "2001:db8::1"]);
        fw.masquerade_except(&owner("new"), &addrs, &nets(&["192.0.2.2/32"])).unwrap();
        assert_eq!(seen(&lab), ["10.1.0.3", "192.0.2.1", "2001:db8::1", "2001:db8::1"]);
        assert_eq!((ruleset().matches("web/old").count(), ruleset().matches("web/a").count()), (0, 0));
        // Masqueraded without exceptions before.
        fw.unmasquerade(&owner("new"), &[]).unwrap();
        fw.masquerade(&owner("old"), &addrs).unwrap();
        fw.masquerade_except(&me, &addrs, &nets(&["192.0.2.2/32"])).unwrap();
        assert_eq!(seen(&lab), ["10.1.0.3", "192.0.2.1", "2001:db8::1", "2001:db8::1"]);
        fw.check_masquerade(&me, &addrs).unwrap();
        assert!(fw.check_masquerade_except(&me, &addrs, &nets(&["192.0.2.3/32"])).is_err());
        // As nft shows it, it can be loaded.
        let text = ruleset();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &text).unwrap();
        run("nft flush ruleset");
        run(&format!("nft -f {}", file.path().display()));
        assert_eq!(ruleset(), text);
        assert!(fw.gc("web", What::Masquerade, &|_, _| false).unwrap() > 0);
        fw.tidy().unwrap();
        // The table stays while the lab's bridge has route_localnet set.
        let text = ruleset();
        assert!(
            !["exception", "except-", "subnet-", "web/"].iter().any(|word| text.contains(word)),
            "{text}"
        );
    });
}
