//! Two that want the same port or address, and options that do not fit.

use super::*;
use crate::firewall::ipt::Iptables;
use crate::testns;

fn with_each(test: impl Fn(&mut dyn Firewall, &dyn Fn() -> String) + Sync) {
    testns::in_fresh(|| test(&mut Nftables::open().unwrap(), &ruleset));
    if has("iptables") && has("ip6tables") {
        let save = || run("iptables-save -t nat") + &run("ip6tables-save -t nat");
        testns::in_fresh(|| test(&mut Iptables::new().unwrap(), &save));
    }
}

#[test]
fn a_living_holder_keeps_its_port_and_a_dead_one_is_replaced() {
    with_each(|fw, listing| {
        let ports = [udp(None, 8080, 80), tcp(Some("10.1.0.1"), 8080, 80)];
        fw.publish(&owner("a"), &addrs(3), &ports, &plain()).unwrap();
        make_alive(&owner("a"));
        // tcp/8080 of all addresses is another thing than that of one.
        fw.publish(&owner("b"), &addrs(4), &[tcp(None, 8080, 80)], &plain()).unwrap();
        let wanted = [tcp(None, 9090, 80), udp(None, 8080, 80)];
        match fw.publish(&owner("c"), &addrs(5), &wanted, &plain()) {
            Err(Error::PortTaken { port: 8080, protocol, holder }) => {
                assert_eq!((protocol.as_str(), holder.as_str()), ("udp", "web/a/eth0"));
            }
            other => panic!("{other:?}"),
        }
        assert!(!listing().contains("web/c/eth0"), "all or nothing: {}", listing());
        assert!(fw.attach(&owner("c"), &addrs(5), &wanted, &plain()).is_err());
        assert!(!listing().contains("web/c/eth0"), "all or nothing: {}", listing());

        run(&format!("ip link del {}", owner("a").host_veth()));
        fw.publish(&owner("c"), &addrs(5), &wanted, &plain()).unwrap();
        fw.check_publish(&owner("c"), &addrs(5), &wanted, &plain()).unwrap();
        // The dead one's late DEL does not take what is another's now.
        fw.unpublish(&owner("a"), &ports).unwrap();
        fw.check_publish(&owner("c"), &addrs(5), &wanted, &plain()).unwrap();
        assert!(!listing().contains("web/a/eth0"), "{}", listing());
    });
}

#[test]
fn an_address_belongs_to_whom_it_was_given_last() {
    testns::in_fresh(|| {
        let mut fw = Nftables::open().unwrap();
        fw.attach(&owner("old"), &addrs(3), &[tcp(None, 80, 80)], &plain()).unwrap();
        make_alive(&owner("old"));
        fw.attach(&owner("new"), &addrs(3), &[tcp(None, 81, 80)], &plain()).unwrap();
        fw.unmasquerade(&owner("old"), &addrs(3)).unwrap();
        fw.unpublish(&owner("old"), &[tcp(None, 80, 80)]).unwrap();
        fw.check_masquerade(&owner("new"), &addrs(3)).unwrap();
        fw.check_publish(&owner("new"), &addrs(3), &[tcp(None, 81, 80)], &plain()).unwrap();
        assert!(!ruleset().contains("web/old"));
    });
}

#[test]
fn a_port_given_twice_is_an_error_only_with_different_targets() {
    with_each(|fw, listing| {
        let error =
            fw.publish(&owner("a"), &addrs(3), &[tcp(None, 80, 1), tcp(None, 80, 2)], &plain()).unwrap_err();
        assert!(error.to_string().contains("80/tcp"), "{error}");
        assert!(!listing().contains("web/a"));
        fw.publish(&owner("a"), &addrs(3), &[tcp(None, 80, 1), tcp(None, 80, 1)], &plain()).unwrap();
        // A family in which the container has no address is passed over.
        fw.publish(&owner("b"), &addrs(4)[..1], &[tcp(None, 81, 1), tcp(Some("::"), 82, 1)], &plain())
            .unwrap();
        assert!(!listing().contains("82"), "{}", listing());
    });
}

#[test]
fn what_is_iptables_language_is_refused_by_name() {
    testns::in_fresh(|| {
        let mut fw = Nftables::open().unwrap();
        for (what, options) in [
            ("conditionsV4", PublishOptions { conditions_v4: vec!["!".into(), "-s".into()], ..plain() }),
            ("conditionsV6", PublishOptions { conditions_v6: vec!["-i".into()], ..plain() }),
            ("externalSetMarkChain", PublishOptions { external_set_mark_chain: Some("K".into()), ..plain() }),
        ] {
            let error =
                fw.publish(&owner("a"), &addrs(3), &[tcp(None, 1, 1)], &options).unwrap_err().to_string();
            assert!(error.contains(what) && error.contains("iptables"), "{error}");
        }
        assert_eq!(ruleset(), "");
    });
}

#[test]
fn a_holder_whose_name_is_clipped_counts_as_alive() {
    testns::in_fresh(|| {
        let mut fw = Nftables::open().unwrap();
        let long = owner(&"c".repeat(100));
        fw.publish(&long, &addrs(3), &[tcp(None, 80, 80)], &plain()).unwrap();
        let result = fw.publish(&owner("b"), &addrs(4), &[tcp(None, 80, 80)], &plain());
        assert!(matches!(result, Err(Error::PortTaken { .. })), "{result:?}");
        fw.unpublish(&long, &[tcp(None, 80, 80)]).unwrap();
        fw.publish(&owner("b"), &addrs(4), &[tcp(None, 80, 80)], &plain()).unwrap();
    });
}

#[test]
fn a_containers_ports_may_be_published_in_each_of_its_networks() {
    with_each(|fw, listing| {
        let (first, second) = (owner("a"), Owner::new("db", "a", "eth1"));
        let ports = [tcp(None, 8080, 80), udp(Some("0.0.0.0"), 53, 53)];
        // The first network has IPv4 alone, so that IPv6 is left for the second.
        fw.publish(&first, &addrs(3)[..1], &ports, &plain()).unwrap();
        make_alive(&first);
        for _ in 0..2 {
            fw.publish(&second, &addrs(4), &ports, &plain()).unwrap();
            make_alive(&second);
            fw.check_publish(&second, &addrs(4), &ports, &plain()).unwrap();
            fw.check_publish(&first, &addrs(3)[..1], &ports, &plain()).unwrap();
            assert!(listing().contains("fd00::4"), "{}", listing());
            fw.unpublish(&second, &ports).unwrap();
            assert!(!listing().contains("db/a/eth1"), "{}", listing());
            run(&format!("ip link del {}", second.host_veth()));
        }
        fw.check_publish(&first, &addrs(3)[..1], &ports, &plain()).unwrap();
        fw.attach(&second, &addrs(4), &ports, &plain()).unwrap();
        make_alive(&second);
        fw.unpublish(&first, &ports).unwrap();
        fw.unpublish(&second, &ports).unwrap();
        fw.unmasquerade(&second, &addrs(4)).unwrap();
        fw.tidy().unwrap();
        assert!(!listing().contains("/a/eth"), "{}", listing());
        // Another container is refused as ever.
        fw.publish(&second, &addrs(4), &ports, &plain()).unwrap();
        assert!(fw.publish(&owner("b"), &addrs(5), &ports, &plain()).is_err());
        assert!(fw.check_publish(&first, &addrs(3)[..1], &[tcp(None, 81, 80)], &plain()).is_err());
    });
}
