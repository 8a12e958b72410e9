//! What somebody breaks by hand is put back by what the kernel tells of it, without reading all; what the agent itself takes
//! away, and what is not wanted any more, is not.
#![allow(clippy::unwrap_used)] // a failed unwrap in a test's helper is the failure report, too

mod common;

use std::collections::BTreeMap;

use common::scene::{Scene, pretty_same, scene};
use common::*;
use net::{Monitor, Told};
use ovl_api::model::Delta;
use ovl_api::names::ROUTE_PROTOCOL;
use ovl_kernel::Restored;
use ovl_kernel::drift::{Piece, Seen};

/// The kernel's word about host a.
struct Ears {
    monitors: [Monitor; 2],
}

impl Ears {
    fn new(scene: &Scene) -> Ears {
        let open = || [Monitor::open(ROUTE_PROTOCOL).unwrap(), Monitor::tables().unwrap()];
        Ears { monitors: scene.host.netns.run(open).unwrap() }
    }

    fn told(&mut self) -> Vec<Told> {
        self.monitors.iter_mut().flat_map(|monitor| monitor.read().unwrap()).collect()
    }

    /// What was told of what may be the overlay's.
    fn pieces(&mut self, scene: &Scene) -> BTreeMap<Piece, Seen> {
        let watched = scene.host.reconciler.watched();
        let mut pieces = BTreeMap::new();
        for (piece, seen) in self.told().into_iter().filter_map(|told| watched.piece(told)) {
            if !matches!(pieces.get(&piece), Some(Seen::Down | Seen::New { .. })) {
                pieces.insert(piece, seen);
            }
        }
        pieces
    }
}

fn restore(scene: &mut Scene, pieces: &BTreeMap<Piece, Seen>) -> Restored {
    let reconciler = &mut scene.host.reconciler;
    scene.host.netns.run(|| reconciler.restore(pieces)).unwrap().unwrap()
}

/// Does harm, and has it mended by what is told of it. A line of the log has to begin with `line`, and there has to be no other.
fn puts_back(scene: &mut Scene, ears: &mut Ears, harm: &str, line: &str) {
    let before = scene.all();
    ears.told();
    scene.host.sh(harm);
    assert_ne!(scene.all(), before, "{harm}: did nothing");
    let pieces = ears.pieces(scene);
    let restored = restore(scene, &pieces);
    assert!(!restored.look, "{harm}: {restored:#?}");
    pretty_same(&before, &scene.all(), harm);
    let lines = &restored.changes.lines;
    assert!(lines.len() == 1 && lines[0].starts_with(line), "{harm}: {lines:#?}");
    assert_eq!((restored.changes.changed, restored.changes.mended, restored.pieces.len()), (1, 1, 1));
    // What that told is as it should be.
    let pieces = ears.pieces(scene);
    let again = restore(scene, &pieces);
    assert!(again.changes.is_empty() && !again.look, "{harm}: {again:#?}");
    let full = scene.host.full(&scene.view);
    assert!(full.is_empty(), "{harm}: a full pass found something to do: {full:#?}");
}

#[test]
fn routes() {
    scene(&network(), |mut scene| {
        let mut ears = Ears::new(&scene);
        let mut harm = |harm: &str, line: &str| puts_back(&mut scene, &mut ears, harm, line);
        harm(
            "ip route del 10.42.0.64/26",
            "route 10.42.0.64/26 via 10.42.0.64 on vx-0123456789ab was missing",
        );
        harm("ip -6 route del fd42::80/122", "route fd42::80/122 via fe80::");
        harm(
            "ip route del 10.42.0.9/32",
            "route 10.42.0.9/32 via 10.42.0.128 on vx-0123456789ab was missing",
        );
        harm("ip route del unreachable 10.42.0.0/16", "route 10.42.0.0/16 unreachable was missing");
        harm("ip -6 route del unreachable fd42::/64", "route fd42::/64 unreachable was missing");
        harm("ip route del 10.42.0.5", "route 10.42.0.5/32 on vethone was missing: restored");
        harm("ip -6 route del fd42::5", "route fd42::5/128 on vethone was missing: restored");
        // Another takes the place.
        let other = "via 192.0.2.9 dev eth0 onlink metric 87";
        for protocol in [87, 4] {
            harm(
                &format!("ip route replace 10.42.0.64/26 {other} proto {protocol}"),
                "route 10.42.0.64/26 via 10.42.0.64 on vx-0123456789ab was changed: restored",
            );
            harm(
                &format!("ip -6 route replace fd42::40/122 via fe80::9 dev eth0 metric 87 proto {protocol}"),
                "route fd42::40/122 via fe80::",
            );
        }
    });
}

#[test]
fn neighbours_forwarding_and_the_packet_filter() {
    scene(&network(), |mut scene| {
        let mut ears = Ears::new(&scene);
        let mut harm = |harm: String, line: &str| puts_back(&mut scene, &mut ears, &harm, line);
        harm(format!("ip neigh del 10.42.0.64 dev {DEV}"), "neighbour 10.42.0.64 (");
        let next = "$(ip -6 route show fd42::40/122 | awk '{print $3}')";
        harm(format!("ip -6 neigh del {next} dev {DEV}"), "neighbour fe80::");
        harm("ip neigh del 10.42.0.5 dev vethone".to_owned(), "neighbour 10.42.0.5 (");
        harm("ip -6 neigh del fd42::5 dev vethone".to_owned(), "neighbour fd42::5 (");
        let to_other =
            format!("ip neigh replace 10.42.0.64 lladdr 02:00:00:00:00:09 dev {DEV} nud permanent");
        harm(to_other, "neighbour 10.42.0.64 (");
        let mac = format!("$(bridge fdb show dev {DEV} | awk '/198.51.100.3/ {{print $1}}')");
        harm(format!("bridge fdb del {mac} dev {DEV}"), "forwarding of ");
        harm(format!("bridge fdb replace {mac} dev {DEV} dst 192.0.2.77"), "forwarding of ");
        for deed in [
            "delete table inet weft-overlay",
            "flush ruleset",
            "flush set inet weft-overlay vteps4",
            "delete element inet weft-overlay vnis '{ 4711 }'",
            "add element inet weft-overlay vteps4 '{ 203.0.113.1 }'",
            "flush chain inet weft-overlay prerouting",
            "delete rule inet weft-overlay forward handle $(nft -a list chain inet weft-overlay forward | awk '/handle/ { h = $NF } END { print h }')",
            "add rule inet weft-overlay forward drop",
            "delete chain inet weft-overlay arrive 2>/dev/null || nft add chain inet weft-overlay other",
        ] {
            harm(
                format!("nft {deed}"),
                "packet filter (nftables table inet weft-overlay) was changed: restored",
            );
        }
    });
}

/// A device that is not as it should be is a case for a full pass, which is asked for; one that is as it should be, whatever
/// was told of it, is not.
#[test]
fn a_device_is_looked_at() {
    scene(&network(), |mut scene| {
        let mut ears = Ears::new(&scene);
        for (deed, look) in [
            (format!("ip link set {DEV} promisc on; ip link set {DEV} promisc off"), false),
            (format!("ip addr add 203.0.113.7/32 dev {DEV}; ip addr del 203.0.113.7/32 dev {DEV}"), false),
            (format!("ip link set {DEV} mtu 1400"), true),
            (format!("ip addr del 10.42.0.1/32 dev {DEV}"), true),
            (format!("ip link set {DEV} down"), true),
            (format!("ip link del {DEV}"), true),
        ] {
            ears.told();
            scene.host.sh(&deed);
            let pieces = ears.pieces(&scene);
            assert!(pieces.keys().any(|piece| matches!(piece, Piece::Device(_))), "{deed}: {pieces:?}");
            let restored = restore(&mut scene, &pieces);
            assert_eq!(restored.look, look, "{deed}: {restored:#?}");
            assert!(restored.changes.is_empty(), "{deed}: {restored:#?}");
            assert_ne!(scene.host.full(&scene.view).is_empty(), look, "{deed}");
        }
    });
}

/// Whatever is done to the device, to what leads by it and to the packet filter is reported, and restored without waiting for the
/// regular pass.
#[test]
fn device_or_entry_that_is_changed_in_any_way_is_as_it_was() {
    scene(&network(), |mut scene| {
        let mut ears = Ears::new(&scene);
        scene.host.sh("ip link add br9 up type bridge");
        // The kernel labels an IPv4 address anew with a renamed link, and not back.
        let state = |scene: &Scene| {
            let text = scene.all();
            let label = |word: &str| {
                if word.starts_with("vx-0123456789:") { DEV.to_owned() } else { word.to_owned() }
            };
            let line = |line: &str| {
                line.split(' ')
                    .map(|word| word.split('\\').map(label).collect::<Vec<_>>().join("\\"))
                    .collect::<Vec<_>>()
                    .join(" ")
            };
            text.lines().map(|text| line(text) + "\n").collect::<String>()
        };
        let mac = format!("$(bridge fdb show dev {DEV} | awk '/198.51.100.3/ {{print $1}}')");
        for harm in [
            format!("ip link set {DEV} down; ip link set {DEV} name other0; ip link set other0 up"),
            format!("ip link set {DEV} group 7"),
            format!("ip link set {DEV} alias other"),
            format!("ip link set {DEV} address 02:00:00:00:00:77"),
            format!("ip link set {DEV} mtu 1400"),
            format!("ip link set {DEV} master br9"),
            format!("ip link set {DEV} type vxlan learning"),
            format!("ip addr del 10.42.0.1/32 dev {DEV}; ip addr add 10.42.0.1/32 dev {DEV}"),
            format!("ip addr flush dev {DEV}"),
            format!("sysctl -qw net.ipv4.conf.{DEV}.forwarding=0"),
            format!("sysctl -qw net.ipv6.conf.{DEV}.disable_ipv6=1"),
            format!("ip neigh replace 10.42.0.64 lladdr 02:00:00:00:00:09 dev {DEV} nud permanent"),
            format!("ip neigh replace 10.42.0.64 lladdr 02:00:00:00:00:09 dev {DEV} nud reachable"),
            format!("ip neigh change 10.42.0.64 dev {DEV} nud stale"),
            "ip neigh change 10.42.0.5 dev vethone nud stale".to_owned(),
            format!("bridge fdb replace {mac} dev {DEV} dst 198.51.100.3 dynamic"),
            format!("bridge fdb replace {mac} dev {DEV} dst 192.0.2.77 dynamic"),
            format!("ip neigh flush dev {DEV} nud permanent; bridge fdb flush dev {DEV}"),
            "ip route change 10.42.0.64/26 via 192.0.2.9 dev eth0 metric 87 proto 87".to_owned(),
            "ip route replace 10.42.0.64/26 via 192.0.2.9 dev eth0 metric 87 proto static".to_owned(),
            "ip route replace blackhole 10.42.0.0/16 metric 87000000 proto 87".to_owned(),
            "nft destroy chain inet weft-overlay other; nft add chain inet weft-overlay other".to_owned(),
            "nft chain inet weft-overlay forward '{ policy drop; }'".to_owned(),
        ] {
            scene.wait_while("ip -6 addr show tentative | grep inet6");
            let before = state(&scene);
            ears.told();
            scene.host.sh(&harm);
            let mut again = ears.pieces(&scene);
            assert!(!again.is_empty(), "{harm}: nothing is reported");
            for _ in 0..3 {
                if restore(&mut scene, &again).look {
                    assert!(scene.host.full(&scene.view).is_complete(), "{harm}");
                }
                again = ears.pieces(&scene);
            }
            scene.wait_while("ip -6 addr show tentative | grep inet6");
            pretty_same(&before, &state(&scene), &harm);
            let full = scene.host.full(&scene.view);
            assert!(full.is_empty(), "{harm}: {full:#?}");
        }
    });
}

/// Whatever is done to a container's link is seen by what the kernel reports of it, and a full pass, which that calls for,
/// restores it.
#[test]
fn containers_link_that_is_changed_is_as_it_was() {
    scene(&network(), |mut scene| {
        let mut ears = Ears::new(&scene);
        // The kernel's own link-local address is not the plugin's.
        let state = |scene: &Scene| {
            scene.wait_while(
                "ip link show vethone | grep NO-CARRIER || ip -6 addr show tentative | grep inet6",
            );
            let own = |line: &&str| !line.starts_with("vethone    inet6") || line.contains("fe80::1/");
            scene.all().lines().filter(own).map(|line| format!("{line}\n")).collect::<String>()
        };
        scene.host.sh("ip link add br9 up type bridge");
        for harm in [
            "ip link set vethone down",
            "ip link set vethone down; ip link set vethone up",
            "ip link set vethone name other0",
            "ip link set vethone down; ip link set vethone name other0; ip link set other0 up alias x",
            "ip link set vethone group 7",
            "ip link set vethone address 02:00:00:00:00:77",
            "ip link set vethone mtu 1300",
            "ip link set vethone alias x",
            "ip link set vethone master br9",
            "ip addr del fe80::1/64 dev vethone",
            "sysctl -qw net.ipv4.conf.vethone.forwarding=0",
            "sysctl -qw net.ipv6.conf.vethone.disable_ipv6=1",
        ] {
            let before = state(&scene);
            ears.told();
            scene.host.sh(harm);
            let pieces = ears.pieces(&scene);
            let restored = restore(&mut scene, &pieces);
            assert!(restored.look && !restored.causes.is_empty(), "{harm}: {pieces:#?} {restored:#?}");
            let changes = scene.host.full(&scene.view);
            assert!(changes.is_complete() && changes.mended > 0, "{harm}: {changes:#?}");
            pretty_same(&before, &state(&scene), harm);
            let pieces = ears.pieces(&scene);
            let again = restore(&mut scene, &pieces);
            assert!(!again.look || again.causes.len() == 1, "{harm}: {again:#?}");
            let full = scene.host.full(&scene.view);
            assert!(full.is_empty(), "{harm}: {full:#?}");
            assert!((0..20).any(|_| scene.host.ping("10.42.0.5").is_ok()), "{harm}");
        }
    });
}

/// A link that the agent has not seen before counts by what it was made with.
#[test]
fn containers_link_that_is_changed_as_soon_as_made_is_as_it_was() {
    scene(&network(), |mut scene| {
        let mut ears = Ears::new(&scene);
        scene.host.sh("ip link del vethone");
        assert!(scene.host.full(&scene.view).is_empty());
        ears.told();
        let one = scene.view.endpoints["vethone"].clone();
        scene.host.attach(&network(), &one);
        let before = scene.host.sh("ip -o link show vethone | grep -o 'link/ether [0-9a-f:]*'");
        scene.host.sh("ip link set vethone address 02:00:00:00:00:77");
        let pieces = ears.pieces(&scene);
        let restored = restore(&mut scene, &pieces);
        assert_eq!(restored.new.len(), 1, "{pieces:#?} {restored:#?}");
        let again = restored.new.into_iter().map(|piece| (piece, Seen::Gone)).collect();
        assert!(restore(&mut scene, &again).look);
        assert!(scene.host.full(&scene.view).is_complete());
        assert_eq!(scene.host.sh("ip -o link show vethone | grep -o 'link/ether [0-9a-f:]*'"), before);
    });
}

#[test]
fn link_seen_before_it_has_its_alias_keeps_the_one_that_it_gets() {
    scene(&network(), |mut scene| {
        scene.host.sh("ip link del vethone");
        assert!(scene.host.full(&scene.view).is_empty());
        let one = scene.view.endpoints["vethone"].clone();
        scene.host.attach(&network(), &one);
        let alias =
            scene.host.sh("ip -o -json link show vethone | grep -o '\"ifalias\":\"[^\"]*' | cut -d'\"' -f4");
        let alias = alias.trim();
        assert!(!alias.is_empty());
        // As between the two messages by which the plugin makes it.
        scene.host.sh("ip link set vethone alias ''");
        assert!(scene.host.full(&scene.view).is_complete());
        scene.host.sh(&format!("ip link set vethone alias '{alias}'"));
        for _ in 0..2 {
            assert!(scene.host.full(&scene.view).is_complete());
            assert!(scene.host.sh("ip -o link show vethone").contains(alias));
        }
    });
}

#[test]
fn forwarding_and_local_routes_that_go_are_restored() {
    scene(&network(), |mut scene| {
        let mut ears = Ears::new(&scene);
        for key in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
            ears.told();
            scene.host.sh(&format!("sysctl -qw {key}=0"));
            let pieces = ears.pieces(&scene);
            let restored = restore(&mut scene, &pieces);
            assert_eq!(restored.changes.lines, [format!("setting {key} was 0: restored")]);
            assert_eq!(restored.pieces, [Piece::Forwarding]);
            assert!(!restored.look, "{restored:#?}");
            assert_eq!(scene.host.sh(&format!("sysctl -n {key}")).trim(), "1");
        }
        for harm in [
            format!("ip route flush table local dev {DEV}"),
            "ip -6 route del local fd42::1 table local".to_owned(),
            format!("bridge fdb flush dev {DEV}"),
            "ip route flush table all".to_owned(),
        ] {
            let before = scene.all();
            ears.told();
            scene.host.sh(&harm);
            assert_ne!(scene.all(), before, "{harm}");
            let pieces = ears.pieces(&scene);
            if restore(&mut scene, &pieces).look {
                assert!(scene.host.full(&scene.view).is_complete());
            }
            pretty_same(&before, &scene.all(), &harm);
            assert!(scene.host.full(&scene.view).is_empty(), "{harm}");
        }
    });
}

/// A node without containers filters too, and has nothing else to restore.
#[test]
fn packet_filter_of_a_node_without_containers_is_restored() {
    scene(&network(), |mut scene| {
        scene.view.endpoints.clear();
        scene.host.sh("ip link del vethone");
        assert!(scene.host.full(&scene.view).is_complete());
        let mut ears = Ears::new(&scene);
        puts_back(
            &mut scene,
            &mut ears,
            "nft flush ruleset",
            "packet filter (nftables table inet weft-overlay) was changed: restored",
        );
        scene.host.sh("sysctl -qw net.ipv4.ip_forward=0");
        assert_eq!(ears.pieces(&scene), BTreeMap::new());
    });
}

/// What is gone with everything else that is told at once, in any order.
#[test]
fn many_at_once() {
    scene(&network(), |mut scene| {
        let mut ears = Ears::new(&scene);
        let before = scene.all();
        scene.host.sh(&format!(
            "ip route flush proto 87; ip -6 route flush proto 87; ip neigh flush dev {DEV} nud permanent; \
             for mac in $(bridge fdb show dev {DEV} | awk '{{print $1}}'); do bridge fdb del $mac dev {DEV}; done; \
             ip neigh flush dev vethone nud permanent; nft flush ruleset"
        ));
        let pieces = ears.pieces(&scene);
        let restored = restore(&mut scene, &pieces);
        assert!(!restored.look, "{restored:#?}");
        pretty_same(&before, &scene.all(), "all at once");
        assert!(scene.host.full(&scene.view).is_empty());
        scene.host.ping("10.42.0.5").unwrap();
    });
}

/// The agent's own changes are told to it like all others.
#[test]
fn what_the_agent_itself_does_is_not_undone() {
    scene(&network(), |mut scene| {
        let mut ears = Ears::new(&scene);
        let mut calm = |scene: &mut Scene, what: &str| {
            let pieces = ears.pieces(scene);
            let before = scene.all();
            let restored = restore(scene, &pieces);
            assert!(restored.changes.is_empty() && !restored.look, "{what}: {restored:#?}");
            assert_eq!(before, scene.all(), "{what}");
        };
        let blocks = ["10.42.0.64/26", "fd42::40/122"].map(|block| (ID.to_owned(), prefix(block)));
        let delta = Delta { blocks: blocks.clone().into(), ..Delta::default() };
        let (whole, mut view) = (scene.view.clone(), scene.view.clone());
        view.owners.retain(|key, _| !blocks.contains(key));
        for view in [&view, &whole] {
            assert_ne!(scene.host.delta(view, &delta).changed, 0);
            calm(&mut scene, "a host loses its blocks, or gets them");
        }
        view = whole.clone();
        view.hosts.get_mut("b").unwrap().vtep = ip("192.0.2.55");
        let delta = Delta { hosts: ["b".to_owned()].into(), ..Delta::default() };
        assert_ne!(scene.host.delta(&view, &delta).changed, 0);
        calm(&mut scene, "a host has another address");
        view.endpoints.clear();
        let delta = Delta { networks: [ID.to_owned()].into(), ..Delta::default() };
        assert_ne!(scene.host.delta(&view, &delta).changed, 0);
        calm(&mut scene, "the network's part here ends");
        assert_ne!(scene.host.full(&whole).changed, 0);
        calm(&mut scene, "the network is made anew");
    });
}

/// While a container is detached its link goes first, and then it is not wanted any more.
#[test]
fn a_container_that_goes_is_let_go() {
    scene(&network(), |mut scene| {
        let mut ears = Ears::new(&scene);
        // As the plugin does it.
        let retire = "ip link set vethone down; ip link set vethone name dead7 group 0xdead0 alias ''";
        for (deed, told) in [(retire, true), ("ip link del dead7", false)] {
            scene.host.sh(deed);
            let pieces = ears.pieces(&scene);
            assert_ne!(pieces.is_empty(), told, "{deed}: {pieces:#?}");
            let restored = restore(&mut scene, &pieces);
            assert!(restored.changes.is_empty() && !restored.look, "{deed}: {restored:#?}");
        }
        // It comes back, and is not wanted any more when the word of it is read.
        let one = scene.view.endpoints["vethone"].clone();
        scene.host.attach(&network(), &one);
        scene.host.full(&scene.view);
        scene.host.sh("ip route del 10.42.0.5; ip neigh del 10.42.0.5 dev vethone");
        let pieces = ears.pieces(&scene);
        let mut view = scene.view.clone();
        view.endpoints.clear();
        let delta = Delta { networks: [ID.to_owned()].into(), ..Delta::default() };
        scene.host.delta(&view, &delta);
        let restored = restore(&mut scene, &pieces);
        assert!(restored.changes.is_empty() && !restored.look, "{restored:#?}");
    });
}

/// What others do on the same host is of no concern.
#[test]
fn what_is_not_ours_is_left() {
    scene(&network(), |mut scene| {
        let mut ears = Ears::new(&scene);
        scene.host.sh(
            "ip route add 10.42.77.0/24 via 192.0.2.9 dev eth0 proto 87; ip route del 10.42.77.0/24; \
             ip route add 10.42.0.64/26 via 192.0.2.9 dev eth0; ip route replace 10.42.0.64/26 via 192.0.2.8 dev eth0 metric 0; \
             ip neigh add 10.42.200.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent; ip neigh del 10.42.200.9 dev eth0; \
             ip neigh add 10.42.0.5 lladdr 02:00:00:00:00:09 dev eth0 nud permanent; ip neigh del 10.42.0.5 dev eth0",
        );
        scene.host.sh(&format!("bridge fdb add 02:00:00:00:00:09 dev {DEV} dst 192.0.2.78"));
        let (pieces, before) = (ears.pieces(&scene), scene.all());
        let routes = scene.host.sh("ip route");
        assert!(pieces.len() > 4, "{pieces:#?}");
        let restored = restore(&mut scene, &pieces);
        assert!(restored.changes.is_empty() && !restored.look, "{restored:#?}");
        assert_eq!((before, routes), (scene.all(), scene.host.sh("ip route")));
    });
}

/// Before the store was read nothing is put in the place of another, so a pass has to look first.
#[test]
fn an_old_view_has_a_pass_look_first() {
    scene(&network(), |mut scene| {
        let reconciler = &mut scene.host.reconciler;
        scene.host.netns.run(|| reconciler.mend(&scene.view)).unwrap().unwrap();
        let mut ears = Ears::new(&scene);
        scene.host.sh("ip route del 10.42.0.64/26");
        let pieces = ears.pieces(&scene);
        let restored = restore(&mut scene, &pieces);
        assert!(restored.look && restored.changes.is_empty(), "{restored:#?}");
    });
}
