//! `portIsolation` binds a container to its addresses: frames in a neighbour's name, or in the gateway's, do not pass.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Host, address, bridge, with};
use serde_json::{Value, json};

/// Sends frames: link, destination, and for each frame KIND/ADDRESS/TAGS/SOURCE. KIND is ip, arp (a reply), na (a neighbour
/// advertisement from the own link-local address, ADDRESS the target) or the number of an Ethernet type; TAGS are VLAN tags
/// of ID 0 around it; SOURCE the hardware address, by default the own one.
const FRAMES: &str = r#"
import ipaddress, socket, struct, sys
link, daddr = sys.argv[1:3]
out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
out.bind((link, 0))
own = out.getsockname()[4]
mac = lambda text: bytes.fromhex(text.replace(":", ""))
def csum(b):
    b += b"\0" * (len(b) % 2)
    t = sum(struct.unpack(f"!{len(b) // 2}H", b))
    while t >> 16: t = (t & 0xffff) + (t >> 16)
    return ~t & 0xffff
for frame in sys.argv[3:]:
    kind, addr, tags, source = frame.split("/")
    a = ipaddress.ip_address(addr)
    if kind == "ip" and a.version == 4:
        head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28, 1, 0, 64, 17, 0, a.packed, bytes([10, 5, 0, 1]))
        kind, body = 0x800, head[:10] + struct.pack("!H", csum(head)) + head[12:] + struct.pack("!HHHH", 9, 9, 8, 0)
    elif kind == "ip":
        to = ipaddress.ip_address("fd00:5::1").packed
        kind, body = 0x86dd, struct.pack("!IHBB16s16s", 6 << 28, 8, 17, 64, a.packed, to) + struct.pack("!HHHH", 9, 9, 8, 1)
    elif kind == "arp":
        kind, body = 0x806, struct.pack("!HHBBH6s4s6s4s", 1, 0x800, 6, 4, 2, own, a.packed, own, a.packed)
    elif kind == "na":
        ll = bytes.fromhex("fe80000000000000") + bytes([own[0] ^ 2]) + own[1:3] + b"\xff\xfe" + own[3:]
        to = ipaddress.ip_address("ff02::1").packed
        body = struct.pack("!BBHI16sBB6s", 136, 0, 0, 0x20000000, a.packed, 2, 1, own)
        pseudo = ll + to + struct.pack("!II", len(body), 58)
        body = body[:2] + struct.pack("!H", csum(pseudo + body)) + body[4:]
        kind, body = 0x86dd, struct.pack("!IHBB16s16s", 6 << 28, len(body), 58, 255, ll, to) + body
    else:
        kind, body = int(kind, 16), bytes(46)
    tagged = b"\x81\x00\x00\x00" * int(tags)
    out.send(mac(daddr) + (mac(source) if source else own) + tagged + struct.pack("!H", kind) + body)
"#;

/// A hardware address that no machine has.
const AWAY: &str = "02:00:00:00:be:ef";

fn isolated(more: Value) -> Value {
    let mut conf = with(&bridge("web", ""), json!({"portIsolation": true}));
    conf["ipam"]["ranges"] = json!([[{"subnet": "10.5.0.0/24"}], [{"subnet": "fd00:5::/64"}]]);
    with(&conf, more)
}

/// Counts the frames to [`AWAY`] that pass Weft's rules.
fn count(host: &Host) {
    host.sh(&format!(
        "nft 'add table bridge count; add chain bridge count c {{ type filter hook prerouting priority -200; }}; \
         add rule bridge count c ether daddr {AWAY} counter'"
    ));
}

/// How many of these frames pass.
fn passing(host: &Host, id: &str, frames: &[String]) -> usize {
    let packets = || -> usize {
        let text = host.sh("nft list table bridge count | grep -o 'packets [0-9]*' | cut -d' ' -f2");
        text.parse().unwrap()
    };
    let before = packets();
    let mut python = host.command("ip");
    python.args(["netns", "exec", id, "python3", "-c", FRAMES, "eth0", AWAY]).args(frames);
    let sent = python.output().unwrap();
    assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));
    packets() - before
}

/// The link-local address that is made from a link's hardware address.
fn link_local(host: &Host, id: &str) -> String {
    let mac = host.ip(&format!("-n {id} link show eth0"))[0]["address"].as_str().unwrap().to_owned();
    let octets: Vec<u8> = mac.split(':').map(|part| u8::from_str_radix(part, 16).unwrap()).collect();
    let [a, b, c, d, e, f] = octets[..] else { panic!("{mac}") };
    format!("fe80::{:02x}{b:02x}:{c:02x}ff:fe{d:02x}:{e:02x}{f:02x}", a ^ 2)
}

fn each(kinds: &[&str], addresses: &[&str], rest: &str) -> Vec<String> {
    let pairs =
        kinds.iter().flat_map(|kind| addresses.iter().map(move |addr| format!("{kind}/{addr}/{rest}")));
    pairs.collect()
}

fn elements(host: &Host, id: &str) -> usize {
    host.sh("nft list ruleset").matches(&format!("\"web/{id}/eth0\"")).count()
}

#[test]
fn isolated_container_sends_from_own_addresses_alone() {
    let host = Host::new();
    for id in ["c1", "c2"] {
        host.netns(id);
        // The kernel's choice of a link-local address does not matter.
        host.sh(&format!("ip netns exec {id} sysctl -qw net.ipv6.conf.default.addr_gen_mode=3"));
        host.about("ADD", &isolated(json!({})), id).run().ok();
    }
    count(&host);
    let own = link_local(&host, "c1");
    let mac = host.sh("ip -n c2 -br link show eth0 | awk '{print $3}'");
    let passes = [
        each(&["ip", "arp"], &["10.5.0.2", "0.0.0.0"], "0/"),
        each(&["ip"], &["fd00:5::2", &own, "::"], "0/"),
        each(&["na"], &["fd00:5::2", &own], "0/"),
    ];
    for frame in passes.iter().flatten() {
        assert_eq!(passing(&host, "c1", std::slice::from_ref(frame)), 1, "{frame}");
    }
    let others4 = ["10.5.0.3", "10.5.0.1", "10.5.0.255", "192.0.2.9", "127.0.0.1", "224.0.0.1"];
    let others6 = ["fd00:5::3", "fd00:5::1", "fe80::1", "2001:db8::1", "::1", "::ffff:10.5.0.2"];
    let dropped = [
        each(&["ip", "arp"], &others4, "0/"),
        each(&["ip", "na"], &others6, "0/"),
        each(&["ip", "arp"], &["10.5.0.3"], "1/"),
        each(&["ip", "na"], &["fd00:5::3"], "1/"),
        // Within tags nothing is looked at.
        each(&["ip", "arp"], &["10.5.0.2", "10.5.0.3"], "2/"),
        each(&["ip"], &["fd00:5::2"], "2/"),
        each(&["88b5", "8864", "8847", "0100"], &["10.5.0.2"], "0/"),
        // Its own address, but not its hardware address.
        each(&["ip"], &["10.5.0.2"], &format!("0/{mac}")),
    ];
    for frame in dropped.iter().flatten() {
        assert_eq!(passing(&host, "c1", std::slice::from_ref(frame)), 0, "{frame}");
    }
    let gateway = host.sh("ip -6 -o addr show dev br0 scope link | awk '{print $4}' | cut -d/ -f1");
    for id in ["c1", "c2"] {
        host.sh(&format!("ip -n {id} neigh flush dev eth0; ip neigh flush dev br0"));
        for to in ["10.5.0.1", "fd00:5::1", &format!("{gateway}%eth0")] {
            host.sh(&format!("ip netns exec {id} ping -qc1 -W4 {to}"));
        }
    }
    host.sh("ip neigh flush dev br0; ping -qc1 -W4 10.5.0.2 && ping -qc1 -W4 fd00:5::2");
    for id in ["c1", "c2"] {
        host.about("DEL", &isolated(json!({})), id).run().ok();
        assert_eq!(elements(&host, id), 0);
    }
    host.eventually("! nft list table bridge weft 2>/dev/null");
}

#[test]
fn without_port_isolation_nothing_is_bound() {
    let host = Host::new();
    host.netns("c1");
    host.about("ADD", &isolated(json!({"portIsolation": false})), "c1").run().ok();
    count(&host);
    let frames = [
        each(&["ip", "arp"], &["10.5.0.3"], "0/"),
        each(&["ip", "na"], &["fd00:5::3"], "0/"),
        each(&["88b5"], &["10.5.0.2"], "0/"),
    ];
    assert_eq!(passing(&host, "c1", &frames.concat()), 5);
    host.sh("! nft list table bridge weft 2>/dev/null");
}

#[test]
fn ipv4_container_is_bound_in_ipv6_too() {
    let host = Host::new();
    host.netns("c1");
    let conf = with(&bridge("web", "10.5.0.0/24"), json!({"portIsolation": true}));
    let result = host.about("ADD", &conf, "c1").run().ok();
    assert_eq!(address(&result, 0), "10.5.0.2");
    count(&host);
    let frames = [each(&["ip"], &["fd00:5::2", "2001:db8::1"], "0/"), each(&["arp"], &["10.5.0.9"], "0/")];
    assert_eq!(passing(&host, "c1", &frames.concat()), 0);
    host.sh("ip netns exec c1 ping -qc1 -W4 10.5.0.1");
}

#[test]
fn addresses_of_foreign_ipam_are_bound() {
    let host = Host::new();
    let file = host.bin.path().join("like-dhcp");
    let script = "#!/bin/sh\n[ \"$CNI_COMMAND\" = ADD ] || exit 0\n\
                  echo '{\"cniVersion\":\"1.1.0\",\"ips\":[{\"address\":\"10.5.0.7/24\",\"gateway\":\"10.5.0.1\"}]}'\n";
    std::fs::write(&file, script).unwrap();
    host.sh(&format!("chmod +x {}", file.display()));
    host.netns("c1");
    let conf = isolated(json!({"ipam": {"type": "like-dhcp"}}));
    let result = host.about("ADD", &conf, "c1").run().ok();
    count(&host);
    let of = |kind: &str, addr: &str| passing(&host, "c1", &each(&[kind], &[addr], "0/"));
    assert_eq!((of("ip", "10.5.0.7"), of("ip", "10.5.0.8"), of("arp", "10.5.0.8")), (1, 0, 0));
    // A router may have given it any.
    assert_eq!(of("ip", "2001:db8::7"), 1);
    host.sh("ip netns exec c1 ping -qc1 -W4 10.5.0.1");
    host.about("CHECK", &with(&conf, json!({"prevResult": result})), "c1").run().ok();
    host.about("DEL", &conf, "c1").run().ok();
    assert_eq!(elements(&host, "c1"), 0);
}

#[test]
fn bound_addresses_are_checked_and_removed() {
    let host = Host::new();
    host.netns("c1");
    let fixed: Vec<Value> = (10..30)
        .flat_map(|n| [format!("10.5.0.{n}/24"), format!("fd00:5::{n}/64")])
        .map(|address| json!({"address": address}))
        .collect();
    let many = isolated(json!({"isDefaultGateway": false, "ipam": {"type": "static", "addresses": fixed}}));
    let few = isolated(json!({}));
    for conf in [&many, &few] {
        let result = host.about("ADD", conf, "c1").run().ok();
        let check = with(conf, json!({"prevResult": result}));
        host.about("CHECK", &check, "c1").run().ok();
        host.sh("nft flush set bridge weft addresses4");
        assert_eq!(host.about("CHECK", &check, "c1").run().code(), 105);
        host.about("DEL", conf, "c1").run().ok();
        assert_eq!(elements(&host, "c1"), 0);
        host.eventually("! nft list table bridge weft 2>/dev/null");
    }
    // A DEL that never came: the former addresses count no more.
    host.about("ADD", &many, "c1").run().ok();
    host.sh("ip netns del c1");
    host.eventually("test $(ip -o link show type veth | wc -l) = 0");
    host.netns("c1");
    let own = address(&host.about("ADD", &few, "c1").run().ok(), 0);
    count(&host);
    let of = |addr: &str| passing(&host, "c1", &each(&["ip"], &[addr], "0/"));
    assert_eq!((of(&own), of("10.5.0.12"), of("fd00:5::12")), (1, 0, 0));
    host.call("GC", &with(&few, json!({"cni.dev/valid-attachments": []}))).run().ok();
    host.sh("! nft list table bridge weft 2>/dev/null");

    let mut fails = isolated(json!({}));
    fails["ipam"]["routes"] = json!([{"dst": "192.0.2.0/24", "gw": "203.0.113.1"}]);
    host.netns("c2");
    assert!(!host.about("ADD", &fails, "c2").run().success);
    host.sh("nft delete table bridge count; test -z \"$(nft list ruleset)\"");
}

#[test]
fn bound_addresses_are_restored_after_flush() {
    let host = Host::new();
    for id in ["c1", "c2"] {
        host.netns(id);
    }
    host.about("ADD", &isolated(json!({})), "c1").run().ok();
    let before = elements(&host, "c1");
    host.sh("nft flush ruleset");
    host.about("ADD", &isolated(json!({})), "c2").run().ok();
    assert_eq!(elements(&host, "c1"), before);
    count(&host);
    let of = |addr: &str| passing(&host, "c1", &each(&["ip"], &[addr], "0/"));
    assert_eq!((of("10.5.0.2"), of("10.5.0.3"), of("fd00:5::3")), (1, 0, 0));
}
