//! Links, addresses, routes and neighbours against the running kernel, each test in network namespaces of its own.

#![allow(clippy::unwrap_used)] // a failed unwrap in a helper of a test is the failure report, too
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use net::route::{LOCAL, MAIN_TABLE, UNREACHABLE};
use net::*;

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A bridge `br0` in this namespace.
fn bridge(netlink: &mut Netlink) -> Link {
    let mac = Some([2, 0, 0, 0, 0, 1]);
    netlink
        .create_bridge(&Bridge {
            name: "br0",
            mac,
            alias: Some(names::BRIDGE_ALIAS),
            up: true,
            ..Bridge::default()
        })
        .unwrap()
}

#[test]
fn an_attachment_takes_one_send_on_each_side() {
    testns::in_fresh(|| {
        let mut host = Netlink::open().unwrap();
        let br0 = bridge(&mut host);
        assert_eq!(
            (br0.kind.as_deref(), br0.alias.as_deref(), br0.up),
            (Some("bridge"), Some("weft:bridge"), true)
        );
        assert_eq!(br0.mac_text().as_deref(), Some("02:00:00:00:00:01"));

        let container = testns::another();
        let owner = Owner::new("pods", "c1", "eth0");
        let (name, alias) = (owner.host_veth(), owner.alias());
        let mut veth = Veth::new(&name, "eth0", &container);
        veth.mac = Some([2, 0, 0, 0, 0, 2]);
        veth.peer_mac = Some([2, 0, 0, 0, 0, 3]);
        veth.mtu = Some(1400);
        veth.master = Some(br0.index);
        veth.group = Some(77);
        veth.alias = Some(&alias);
        veth.port = PortSet { hairpin: Some(true), isolated: Some(true), ..PortSet::default() };
        let near = host.create_veth(&veth).unwrap();
        assert_eq!(near.name, name);
        assert_eq!(
            (near.mac, near.mtu, near.master, near.group),
            (veth.mac, Some(1400), Some(br0.index), 77)
        );
        assert_eq!(near.alias.as_deref().and_then(Owner::parse_alias), Some(owner));
        let port = near.port.unwrap();
        assert!(near.up && port.hairpin && port.isolated && port.learning && port.flood);
        assert_eq!(host.links_of_master(br0.index).unwrap(), std::slice::from_ref(&near));
        assert_eq!(host.links_of_group(77).unwrap(), std::slice::from_ref(&near));

        let mut inside = Netlink::open_in(&container).unwrap();
        let index = near.peer_index.unwrap();
        let mut batch = Batch::new();
        batch
            .set(index, &LinkSet { up: Some(true), arp_notify: Some(true), ..LinkSet::default() })
            .addr_add(index, &NewAddr::new(net("10.1.0.5/16")))
            .addr_add(index, &NewAddr::new(net("fd00::5/64")))
            .route_add(&Route::via(net("0.0.0.0/0"), ip("10.1.0.1"), index))
            .route_add(&Route::via(net("::/0"), ip("fd00::1"), index));
        let ticket = batch.lookup("eth0");
        let eth0 = inside.run(batch).unwrap().link(ticket).unwrap();
        assert_eq!((eth0.index, eth0.mac, eth0.mtu, eth0.up), (index, veth.peer_mac, Some(1400), true));
        assert_eq!(eth0.peer_index, Some(near.index));
        assert_eq!(container.run(|| sysctl::get("net/ipv4/conf/eth0/arp_notify")).unwrap().unwrap(), "1");

        let addrs = inside.addrs(Some(index)).unwrap();
        let ours: Vec<_> = addrs.iter().filter(|addr| addr.scope == 0).collect();
        assert_eq!(
            ours.iter().map(|addr| addr.net).collect::<Vec<_>>(),
            [net("10.1.0.5/16"), net("fd00::5/64")]
        );
        assert!(ours.iter().all(|addr| !addr.is_tentative()), "usable at once");
        let default = inside.default_route(Family::V4).unwrap().unwrap();
        assert_eq!((default.gw, default.oif), (Some(ip("10.1.0.1")), Some(index)));
        assert_eq!(inside.default_route(Family::V6).unwrap().unwrap().gw, Some(ip("fd00::1")));
        assert_eq!(inside.default_link().unwrap().unwrap().name, "eth0");
        assert_eq!(host.default_link().unwrap(), None);

        host.delete(near.index).unwrap();
        host.delete(&*name).unwrap();
        assert_eq!(inside.link("eth0").unwrap(), None);
    });
}

#[test]
fn what_an_attachment_costs() {
    testns::in_fresh(|| {
        let mut host = Netlink::open().unwrap();
        let br0 = bridge(&mut host);
        let mut times = Vec::new();
        let containers: Vec<_> = (0..100).map(|_| testns::another()).collect();
        for (n, container) in containers.iter().enumerate() {
            let owner = Owner::new("pods", n.to_string(), "eth0");
            let start = Instant::now();
            let (name, alias) = (owner.host_veth(), owner.alias());
            let mut veth =
                Veth { master: Some(br0.index), mtu: Some(1450), ..Veth::new(&name, "eth0", container) };
            veth.alias = Some(&alias);
            let index = host.create_veth(&veth).unwrap().peer_index.unwrap();
            let mut batch = Batch::new();
            batch
                .set(index, &LinkSet { up: Some(true), arp_notify: Some(true), ..LinkSet::default() })
                .addr_add(index, &NewAddr::new(net(&format!("10.1.0.{}/16", n + 2))))
                .route_add(&Route::via(net("0.0.0.0/0"), ip("10.1.0.1"), index));
            Netlink::open_in(container).unwrap().run(batch).unwrap();
            times.push(start.elapsed());
        }
        times.sort();
        println!("an attachment, 50 % and 99 %: {:?} {:?}", times[50], times[99]);
        assert_eq!(host.links_of_master(br0.index).unwrap().len(), 100);
    });
}

#[test]
fn the_first_refusal_is_reported_and_the_rest_is_tried() {
    testns::in_fresh(|| {
        let mut netlink = Netlink::open().unwrap();
        let br0 = bridge(&mut netlink);
        let mut batch = Batch::new();
        batch
            .call(br0.index, "br0")
            .addr_add(br0.index, &NewAddr::new(net("10.1.0.1/16")))
            .addr_add(br0.index, &NewAddr::new(net("10.1.0.1/16")))
            .route_add(&Route::via(net("10.9.0.0/16"), ip("192.0.2.1"), br0.index))
            .addr_add(br0.index, &NewAddr::new(net("10.2.0.1/16")));
        let error = netlink.run(batch).unwrap_err();
        assert!(error.is_existing(), "{error}");
        assert!(error.to_string().starts_with("add address 10.1.0.1/16 to br0: "), "{error}");
        assert_eq!(
            netlink.addrs(Some(br0.index)).unwrap().iter().filter(|addr| addr.net.is_ipv4()).count(),
            2
        );

        let mut batch = Batch::new();
        batch.addr_add(br0.index, &NewAddr::new(net("10.1.0.1/16"))).or_existing();
        batch.addr_del(br0.index, net("10.3.0.1/16")).or_missing();
        batch.link_del("nothing").or_missing();
        netlink.run(batch).unwrap();

        let mut batch = Batch::new();
        batch.route_add(&Route::via(net("10.9.0.0/16"), ip("192.0.2.1"), br0.index));
        let error = netlink.run(batch).unwrap_err().to_string();
        assert!(error.contains("route to 10.9.0.0/16 via 192.0.2.1") && error.contains("gateway"), "{error}");
        let again = netlink.create_bridge(&Bridge { name: "br0", ..Bridge::default() }).unwrap_err();
        assert!(again.is_existing());
        netlink.run(Batch::new()).unwrap();
    });
}

#[test]
fn settings_of_links_change_and_change_back() {
    testns::in_fresh(|| {
        let mut netlink = Netlink::open().unwrap();
        let br0 = bridge(&mut netlink);
        let on = LinkSet {
            promisc: Some(true),
            alias: Some("x"),
            group: Some(5),
            mtu: Some(1300),
            ..LinkSet::default()
        };
        netlink.set("br0", &on).unwrap();
        let link = netlink.link_at(br0.index).unwrap().unwrap();
        assert_eq!(
            (link.promisc, link.alias.as_deref(), link.group, link.mtu),
            (true, Some("x"), 5, Some(1300))
        );
        let off = LinkSet { promisc: Some(false), alias: Some(""), up: Some(false), ..LinkSet::default() };
        netlink.set(br0.index, &off).unwrap();
        let link = netlink.need_link("br0").unwrap();
        assert_eq!((link.promisc, link.alias, link.up), (false, None, false));
        netlink.set(br0.index, &LinkSet { name: Some("br1"), ..LinkSet::default() }).unwrap();
        assert_eq!(netlink.need_link("br1").unwrap().index, br0.index);

        let far = testns::another();
        let near = netlink.create_veth(&Veth::new("v0", "eth0", &far)).unwrap();
        netlink.set(near.index, &LinkSet { master: Some(br0.index), ..LinkSet::default() }).unwrap();
        let mut batch = Batch::new();
        batch
            .bridge_port("v0", &PortSet { hairpin: Some(true), learning: Some(false), ..PortSet::default() });
        netlink.run(batch).unwrap();
        let port = netlink.need_link("v0").unwrap().port.unwrap();
        assert!(port.hairpin && !port.learning && !port.isolated);
        netlink.set("v0", &LinkSet { master: Some(0), ..LinkSet::default() }).unwrap();
        let link = netlink.need_link("v0").unwrap();
        assert_eq!((link.master, link.port), (None, None));
        assert!(
            netlink
                .set("nothing", &LinkSet { up: Some(true), ..LinkSet::default() })
                .unwrap_err()
                .is_missing()
        );
    });
}

#[test]
fn routes_are_added_listed_found_and_removed() {
    testns::in_fresh(|| {
        let mut netlink = Netlink::open().unwrap();
        let br0 = bridge(&mut netlink);
        let mut special = Route::via(net("10.5.0.0/16"), ip("10.1.0.9"), br0.index);
        special.priority = Some(50);
        special.table = Some(1000);
        special.mtu = Some(1280);
        special.advmss = Some(1000);
        special.src = Some(ip("10.1.0.1"));
        let mut nowhere = Route::to(net("10.6.0.0/16"));
        nowhere.kind = UNREACHABLE;
        let onlink = Route { onlink: true, ..Route::via(net("10.7.0.0/16"), ip("192.0.2.1"), br0.index) };
        let mut batch = Batch::new();
        batch
            .addr_add(br0.index, &NewAddr::new(net("10.1.0.1/16")))
            .addr_add(br0.index, &NewAddr { noprefixroute: true, ..NewAddr::new(net("10.2.0.1/16")) })
            .route_add(&special)
            .route_add(&nowhere)
            .route_replace(&onlink)
            .route_replace(&onlink);
        netlink.run(batch).unwrap();

        let table = RouteFilter { table: Some(1000), ..RouteFilter::default() };
        let found = netlink.routes(table).unwrap();
        assert_eq!(found, [Route { scope: Some(0), ..special.clone() }]);
        let filter = RouteFilter {
            family: Some(Family::V4),
            table: Some(MAIN_TABLE),
            oif: Some(br0.index),
            ..RouteFilter::default()
        };
        let mut destinations: Vec<_> =
            netlink.routes(filter).unwrap().into_iter().map(|route| route.dst).collect();
        destinations.sort();
        assert_eq!(destinations, [net("10.1.0.0/16"), net("10.7.0.0/16")]);

        assert_eq!(netlink.route_towards(ip("10.1.2.3")).unwrap().unwrap().oif, Some(br0.index));
        assert_eq!(netlink.route_towards(ip("10.6.2.3")).unwrap(), None);
        assert_eq!(netlink.route_towards(ip("203.0.113.1")).unwrap(), None);
        assert_eq!(netlink.route_towards(ip("2001:db8::1")).unwrap(), None);

        let mut batch = Batch::new();
        batch.route_del(&special).route_del(&nowhere).route_del(&onlink);
        batch.route_del(&onlink).or_missing();
        netlink.run(batch).unwrap();
        assert_eq!(netlink.routes(table).unwrap(), []);
    });
}

#[test]
fn neighbours_are_entered_and_forgotten() {
    testns::in_fresh(|| {
        let mut netlink = Netlink::open().unwrap();
        let br0 = bridge(&mut netlink);
        let mac = [2, 0, 0, 0, 0, 9];
        let mut batch = Batch::new();
        batch.addr_add(br0.index, &NewAddr::new(net("10.1.0.1/16")));
        for address in ["10.1.0.9", "fe80::9"] {
            batch.neigh_replace(br0.index, ip(address), mac).neigh_replace(br0.index, ip(address), mac);
        }
        batch.fdb_replace(br0.index, mac, None);
        netlink.run(batch).unwrap();
        let mut found = netlink.neighs(Some(br0.index)).unwrap();
        found.retain(|neigh| neigh.permanent && neigh.mac == Some(mac));
        assert_eq!(found.iter().map(|neigh| neigh.ip).collect::<Vec<_>>(), [ip("10.1.0.9"), ip("fe80::9")]);
        assert!(
            netlink.fdb(Some(br0.index)).unwrap().iter().any(|entry| entry.mac == mac && entry.permanent)
        );
        let mut batch = Batch::new();
        batch.neigh_del(br0.index, ip("10.1.0.9")).fdb_del(br0.index, mac, None);
        batch.neigh_del(br0.index, ip("10.1.0.9")).or_missing();
        netlink.run(batch).unwrap();
        assert!(
            !netlink.neighs(None).unwrap().iter().any(|neigh| neigh.ip == ip("10.1.0.9") && neigh.permanent)
        );
    });
}

#[test]
fn duplicate_address_detection_is_waited_for() {
    testns::in_fresh(|| {
        let mut netlink = Netlink::open().unwrap();
        let far = testns::another();
        let near = netlink.create_veth(&Veth::new("v0", "eth0", &far)).unwrap();
        let mut inside = Netlink::open_in(&far).unwrap();
        let eth0 = near.peer_index.unwrap();
        inside.set(eth0, &LinkSet { up: Some(true), ..LinkSet::default() }).unwrap();
        let twice = |nodad| NewAddr { nodad, ..NewAddr::new(net("fd00::1/64")) };
        let mut batch = Batch::new();
        batch.addr_add(near.index, &twice(true));
        netlink.run(batch).unwrap();
        let mut batch = Batch::new();
        batch.addr_add(eth0, &twice(false));
        inside.run(batch).unwrap();
        assert!(
            inside.wait_for_dad(eth0, Duration::ZERO).unwrap_err().to_string().contains("took more than")
        );
        let error = inside.wait_for_dad(eth0, Duration::from_secs(5)).unwrap_err().to_string();
        assert!(error.contains("another machine on the link has the address fd00::1/64"), "{error}");
        netlink.wait_for_dad(near.index, Duration::from_secs(5)).unwrap();
    });
}

#[test]
fn an_ipv6_address_is_taken_here_once_it_was_waited_for_however_busy_the_kernel_is() {
    testns::in_fresh(|| {
        let busy = AtomicBool::new(true);
        let mut netlink = Netlink::open().unwrap();
        let link =
            netlink.create_bridge(&Bridge { name: "br0", up: true, ..Bridge::default() }).unwrap().index;
        std::thread::scope(|scope| {
            // Others make and delete links, for which the kernel has one lock.
            for at in 0..3 {
                let busy = &busy;
                scope.spawn(move || {
                    let name = format!("busy{at}");
                    let mut netlink = Netlink::open().unwrap();
                    while busy.load(Ordering::Relaxed) {
                        let made =
                            netlink.create_bridge(&Bridge { name: &name, up: true, ..Bridge::default() });
                        netlink.delete(made.unwrap().index).unwrap();
                    }
                });
            }
            let taken = (1..=200u16).map(|at| {
                let address: IpNetwork = format!("fd00::{at:x}/128").parse().unwrap();
                let mut batch = Batch::new();
                batch.addr_add(link, &NewAddr { nodad: true, ..NewAddr::new(address) });
                netlink.run(batch).unwrap();
                let in_time = netlink.wait_until_local([address.ip()], Duration::from_secs(20)).unwrap();
                in_time
                    && netlink.route_towards(address.ip()).unwrap().is_some_and(|route| route.kind == LOCAL)
            });
            let taken: Vec<bool> = taken.collect();
            busy.store(false, Ordering::Relaxed);
            assert!(taken.iter().all(|taken| *taken), "{taken:?}");
        });
        let nobodys = netlink.wait_until_local([ip("fd00::ffff")], Duration::from_millis(20)).unwrap();
        assert!(!nobodys, "an address that is not there");
        assert!(
            netlink.wait_until_local([ip("10.1.1.1")], Duration::ZERO).unwrap(),
            "IPv4's is there at once"
        );
    });
}

#[test]
fn vlans_of_a_bridge_port() {
    testns::in_fresh(|| {
        let mut netlink = Netlink::open().unwrap();
        let filtering = Bridge {
            name: "br0",
            vlan_filtering: true,
            default_pvid: Some(0),
            up: true,
            ..Bridge::default()
        };
        let br0 = match netlink.create_bridge(&filtering) {
            Err(error @ Error::Unsupported(_)) => {
                assert_eq!(error.to_string(), "this kernel has no bridge VLAN filtering");
                println!("skipped: {error}");
                return without_vlans(&mut netlink);
            }
            bridge => bridge.unwrap(),
        };
        let far = testns::another();
        let port = Veth { master: Some(br0.index), ..Veth::new("v0", "eth0", &far) };
        let port = netlink.create_veth(&port).unwrap();
        let mut batch = Batch::new();
        batch.vlan_add(port.index, &Vlans::access(5), false).unwrap();
        batch.vlan_add(port.index, &Vlans::tagged(100, 102), false).unwrap();
        batch.vlan_add(br0.index, &Vlans::access(5), true).unwrap();
        netlink.run(batch).unwrap();
        assert_eq!(br0.bridge.unwrap().vlan_filtering, Some(true));
        let vlans = netlink.vlans(port.index).unwrap();
        let tagged = [100, 101, 102].map(|id| Vlans::tagged(id, id));
        assert_eq!(vlans, [vec![Vlans::access(5)], tagged.to_vec()].concat());
        let mut batch = Batch::new();
        batch.vlan_del(port.index, &Vlans::tagged(100, 102), false).unwrap();
        netlink.run(batch).unwrap();
        assert_eq!(netlink.vlans(port.index).unwrap(), [Vlans::access(5)]);
    });
}

/// What remains to be said on a kernel that has no VLANs on bridges.
fn without_vlans(netlink: &mut Netlink) {
    let far = testns::another();
    let br0 = bridge(netlink);
    assert_eq!(br0.bridge.unwrap().vlan_filtering, None);
    let port =
        netlink.create_veth(&Veth { master: Some(br0.index), ..Veth::new("v0", "eth0", &far) }).unwrap();
    let mut batch = Batch::new();
    batch.vlan_add(port.index, &Vlans::access(5), false).unwrap();
    let error = netlink.run(batch).unwrap_err();
    assert_eq!(error.to_string(), "this kernel has no bridge VLAN filtering");
    assert_eq!(netlink.vlans(port.index).unwrap(), []);
}

#[test]
fn large_batches_and_dumps() {
    testns::in_fresh(|| {
        let mut netlink = Netlink::open().unwrap();
        let br0 = bridge(&mut netlink);
        let mut batch = Batch::new();
        for n in 0..5000u32 {
            let address = IpAddr::from((0x0a01_0000 + n).to_be_bytes());
            batch.route_add(&Route { oif: Some(br0.index), ..Route::to(address.into()) });
        }
        netlink.run(batch).unwrap();
        let filter = RouteFilter {
            oif: Some(br0.index),
            table: Some(MAIN_TABLE),
            family: Some(Family::V4),
            ..RouteFilter::default()
        };
        assert_eq!(netlink.routes(filter).unwrap().len(), 5000);
        // Thousands of refusals do not get in the way of the report, nor of the next exchange.
        let mut batch = Batch::new();
        for n in 0..5000u32 {
            let address = IpAddr::from((0x0a02_0000 + n).to_be_bytes());
            batch.route_del(&Route { oif: Some(br0.index), ..Route::to(address.into()) });
        }
        let error = netlink.run(batch).unwrap_err();
        assert!(error.is_missing() && error.to_string().contains("10.2.0.0/32"), "{error}");
        let mut batch = Batch::new();
        let tickets: Vec<_> = (0..300).map(|_| batch.lookup("br0")).collect();
        let outcome = netlink.run(batch).unwrap();
        assert!(tickets.iter().all(|ticket| outcome.link(*ticket).is_some()));
    });
}

#[test]
fn a_batch_tells_every_refusal_and_does_the_rest() {
    testns::in_fresh(|| {
        let mut host = Netlink::open().unwrap();
        let br0 = bridge(&mut host).index;
        let mut batch = Batch::new();
        batch
            .addr_add(br0, &NewAddr::new(net("10.1.0.1/24")))
            .route_add(&Route::via(net("10.7.0.0/24"), ip("192.0.2.1"), br0))
            .route_add(&Route::via(net("10.8.0.0/24"), ip("10.1.0.2"), br0))
            .neigh_del(br0, ip("10.1.0.9"))
            .or_missing()
            .addr_add(4711, &NewAddr::new(net("10.2.0.1/24")));
        let (_, refused) = host.run_each(batch).unwrap();
        let refused: Vec<_> = refused.iter().map(|(number, error)| (*number, error.errno())).collect();
        assert_eq!(refused, [(1, Some(libc::ENETUNREACH)), (4, Some(libc::ENODEV))]);
        let to = |dst| move |route: &Route| route.dst == net(dst);
        assert!(host.routes(RouteFilter::default()).unwrap().iter().any(to("10.8.0.0/24")));
    });
}

#[test]
fn routes_are_listed_by_who_made_them() {
    testns::in_fresh(|| {
        let mut host = Netlink::open().unwrap();
        let br0 = bridge(&mut host).index;
        let made = |dst: &str, protocol| Route { oif: Some(br0), protocol, ..Route::to(net(dst)) };
        let mut batch = Batch::new();
        for (dst, protocol) in [("10.1.0.0/24", 87), ("10.2.0.0/24", 4), ("fd01::/64", 87), ("fd02::/64", 4)]
        {
            batch.route_replace(&made(dst, protocol));
        }
        let nowhere = Route { kind: UNREACHABLE, protocol: 87, ..Route::to(net("10.3.0.0/24")) };
        batch.route_replace(&nowhere);
        host.run(batch).unwrap();
        let filter = RouteFilter { protocol: Some(87), table: Some(MAIN_TABLE), ..RouteFilter::default() };
        let found = host.routes(filter).unwrap();
        let found: Vec<_> = found.iter().map(|route| (route.dst, route.kind)).collect();
        let (one, three) = ((net("10.1.0.0/24"), 1), (net("10.3.0.0/24"), UNREACHABLE));
        assert_eq!(found, [one, three, (net("fd01::/64"), 1)]);
    });
}
