//! What a bridge without a way out reaches on the host.

use super::lab::Lab;
use super::*;
use crate::firewall::nft::{BridgeRules, Services};
use crate::{Netns, testns};

const TO: [&str; 4] = ["10.1.0.1", "[fd00::1]", "192.0.2.1", "[2001:db8::1]"];
const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

fn closed(fw: &mut Nftables) -> bool {
    let index = nix::net::if_::if_nametoindex("br0").unwrap();
    let rules = BridgeRules { link: "br0".into(), index, closed: true, ..BridgeRules::default() };
    fw.attach_bridge(&owner("a"), &[], &rules).unwrap()
}

/// Whether port 8080 (Weft's) and port 9090 (another's) of the host answer at each of its addresses.
#[track_caller]
fn assert_answers(lab: &Lab, from: Option<&Netns>, weft: bool, other: bool) {
    for protocol in BOTH {
        for to in TO {
            for (port, answers) in [(8080, weft), (9090, other)] {
                let answer = lab.ask(from, &format!("{to}:{port}"), protocol);
                assert_eq!(answer.is_some(), answers, "{to}:{port} {protocol}");
            }
        }
    }
}

fn lab() -> Lab {
    let lab = Lab::new();
    for at in TO {
        lab.serve_weft_on_host(&format!("{at}:8080"));
        lab.serve_on_host(&format!("{at}:9090"));
    }
    lab
}

#[test]
fn closed_bridge_reaches_no_service_of_weft() {
    testns::in_fresh(|| {
        let (lab, mut fw) = (lab(), Nftables::open().unwrap());
        fw.masquerade(&owner("b"), &addrs(4)).unwrap();
        assert_answers(&lab, Some(&lab.a), true, true);
        closed(&mut fw);
        assert_answers(&lab, Some(&lab.a), false, true);
        assert_answers(&lab, Some(&lab.other), true, true);
        assert_answers(&lab, None, true, true);
    });
}

/// A kernel without CONFIG_NFT_SOCKET.
#[test]
fn closed_bridge_without_socket_marks_reaches_no_service() {
    testns::in_fresh(|| {
        let (lab, mut fw) = (lab(), Nftables::open().unwrap());
        fw.services = Services::All;
        closed(&mut fw);
        assert_answers(&lab, Some(&lab.a), false, false);
        assert_answers(&lab, Some(&lab.other), true, true);
        lab.a.run(|| run("ping -c1 -W5 10.1.0.1")).unwrap();
        // The host's own connections to its containers.
        assert!(lab.ask(None, "10.1.0.3:80", Protocol::Tcp).is_some());
        assert!(lab.ask(None, "[fd00::3]:80", Protocol::Udp).is_some());
    });
}

#[test]
fn table_of_earlier_version_gets_rules_for_services() {
    testns::in_fresh(|| {
        if !has("nft") {
            return;
        }
        run("ip link add br0 type bridge");
        let mut fw = Nftables::open().unwrap();
        fw.attach(&owner("b"), &addrs(3), &[tcp(None, 8080, 80)], &plain()).unwrap();
        closed(&mut fw);
        let before = ruleset();
        for what in ["chain inet weft input", "chain inet weft services", "set inet weft bridges_sealed"] {
            run(&format!("nft delete {what}"));
        }
        closed(&mut fw);
        assert_eq!(ruleset(), before);
    });
}
