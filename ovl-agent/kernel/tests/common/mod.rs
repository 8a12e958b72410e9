//! Hosts and containers for tests: network namespaces on a bridge, made by hand as the overlay plugin makes them.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)] // each test uses its part; a failed unwrap is the report

pub mod model;
pub mod scene;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::Command;

use ipnetwork::IpNetwork;
use net::route::SCOPE_LINK;
use net::*;
use ovl_api::model::{Delta, Encap, Endpoint, Host, Network, Subnet, View};
use ovl_api::names;
use ovl_kernel::{Changes, Reconciler, find_underlay};

pub const ID: &str = "0123456789ab";
pub const DEV: &str = "vx-0123456789ab";

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn prefix(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

/// A network with IPv4 and IPv6.
pub fn network() -> Network {
    Network {
        id: ID.into(),
        name: "web".into(),
        vni: 4711,
        subnets: vec![
            Subnet { subnet: prefix("10.42.0.0/16"), gateway: ip("10.42.0.1"), block: 26 },
            Subnet { subnet: prefix("fd42::/64"), gateway: ip("fd42::1"), block: 122 },
        ],
        mtu: None,
        encap: Encap::Vxlan,
        internal: false,
        labels: BTreeMap::new(),
        options: BTreeMap::new(),
        created: "2025-01-01T00:00:00Z".into(),
        removing: false,
    }
}

pub fn host(name: &str, vtep: &str, segment: Option<&str>) -> Host {
    Host {
        name: name.into(),
        id: format!("{name:0>32}"),
        epoch: 0,
        vtep: ip(vtep),
        vtep_since: 1,
        segment: segment.map(prefix),
        port: names::VXLAN_PORT,
        removed: false,
    }
}

/// A container's interface; the name of its host's end is `veth` and the container's.
pub fn endpoint(container: &str, addresses: &[&str]) -> Endpoint {
    let addresses: Vec<IpAddr> = addresses.iter().map(|text| ip(text)).collect();
    Endpoint {
        network: ID.into(),
        container: container.into(),
        ifname: "eth0".into(),
        veth: format!("veth{container}"),
        mac: mac_text(names::container_mac(ID, addresses[0])),
        addresses,
    }
}

/// What host `me` sees of these.
pub fn view(
    me: &str,
    hosts: &[Host],
    networks: &[Network],
    owners: &[(&str, &str)],
    endpoints: &[Endpoint],
) -> View {
    View {
        me: me.into(),
        hosts: hosts.iter().map(|host| (host.name.clone(), host.clone())).collect(),
        networks: networks.iter().map(|network| (network.id.clone(), network.clone())).collect(),
        owners: owners.iter().map(|(block, host)| ((ID.into(), prefix(block)), (*host).into())).collect(),
        endpoints: endpoints.iter().map(|of| (of.veth.clone(), of.clone())).collect(),
        links: endpoints.iter().map(|of| of.veth.clone()).collect(),
    }
}

/// A host: a namespace with an agent's reconciler.
pub struct TestHost {
    pub netns: Netns,
    pub netlink: Netlink,
    pub reconciler: Reconciler,
    pub containers: BTreeMap<String, Netns>,
}

impl TestHost {
    /// On bridge `br0` of this thread's namespace, which is made if need be, with these addresses.
    pub fn new(name: &str, addresses: &[&str]) -> TestHost {
        let mut switch = Netlink::open().unwrap();
        let bridge = match switch.link("br0").unwrap() {
            Some(bridge) => bridge,
            None => switch.create_bridge(&Bridge { name: "br0", up: true, ..Bridge::default() }).unwrap(),
        };
        let netns = testns::another();
        let near = format!("to-{name}");
        let mut veth = Veth::new(&near, "eth0", &netns);
        veth.master = Some(bridge.index);
        switch.create_veth(&veth).unwrap();
        let mut netlink = Netlink::open_in(&netns).unwrap();
        netlink.loopback_up().unwrap();
        let eth0 = netlink.need_link("eth0").unwrap().index;
        let mut batch = Batch::new();
        batch.set(eth0, &LinkSet { up: Some(true), ..LinkSet::default() });
        for address in addresses {
            batch.addr_add(eth0, &NewAddr::new(prefix(address)));
        }
        netlink.run(batch).unwrap();
        let reconciler = netns
            .run(|| {
                let (underlay, ..) = find_underlay(Some("eth0"), None).unwrap();
                Reconciler::new(underlay).unwrap()
            })
            .unwrap();
        TestHost { netns, netlink, reconciler, containers: BTreeMap::new() }
    }

    pub fn full(&mut self, view: &View) -> Changes {
        let reconciler = &mut self.reconciler;
        self.netns.run(|| reconciler.full(view)).unwrap().unwrap()
    }

    pub fn delta(&mut self, view: &View, delta: &Delta) -> Changes {
        let reconciler = &mut self.reconciler;
        self.netns.run(|| reconciler.delta(view, delta)).unwrap().unwrap()
    }

    /// What the overlay plugin does at ADD.
    pub fn attach(&mut self, network: &Network, endpoint: &Endpoint) {
        let container = testns::another();
        let near = self.veth(network, endpoint, &container);
        let mut batch = Batch::new();
        batch.addr_replace(near.index, &NewAddr::new(prefix("fe80::1/64")));
        let mac = parse_mac(&endpoint.mac).unwrap();
        for address in &endpoint.addresses {
            let scope = address.is_ipv4().then_some(SCOPE_LINK);
            let route = Route::to(IpNetwork::from(*address));
            let protocol = names::ROUTE_PROTOCOL;
            batch.route_replace(&Route { oif: Some(near.index), protocol, scope, ..route });
            batch.neigh_replace(near.index, *address, mac);
        }
        self.netlink.run(batch).unwrap();
        self.inside(network, endpoint, &container, near.mac.unwrap());
        self.containers.insert(endpoint.container.clone(), container);
    }

    /// The pair alone.
    pub fn veth(&mut self, network: &Network, endpoint: &Endpoint, container: &Netns) -> Link {
        let mut veth = Veth::new(&endpoint.veth, "eth0", container);
        veth.peer_mac = Some(parse_mac(&endpoint.mac).unwrap());
        veth.group = Some(names::group(network.vni));
        veth.mtu = Some(1430);
        let alias = Owner::new(&network.name, &*endpoint.container, "eth0").alias();
        veth.alias = Some(&alias);
        let link = self.netlink.create_veth(&veth).unwrap();
        self.netns.run(|| sysctl::ignore_routers(&endpoint.veth)).unwrap().unwrap();
        link
    }

    fn inside(&self, network: &Network, endpoint: &Endpoint, container: &Netns, gateway_mac: [u8; 6]) {
        let mut netlink = Netlink::open_in(container).unwrap();
        netlink.loopback_up().unwrap();
        let eth0 = netlink.need_link("eth0").unwrap().index;
        let mut batch = Batch::new();
        batch.set(eth0, &LinkSet { up: Some(true), ..LinkSet::default() });
        for address in &endpoint.addresses {
            let Subnet { subnet, gateway, .. } = *network.subnet(address.is_ipv6()).unwrap();
            let net = IpNetwork::new(*address, subnet.prefix()).unwrap();
            batch.addr_add(eth0, &NewAddr { noprefixroute: true, ..NewAddr::new(net) });
            let next = if address.is_ipv4() { gateway } else { ip("fe80::1") };
            batch.neigh_replace(eth0, next, gateway_mac);
            if address.is_ipv4() {
                batch.route_add(&Route { oif: Some(eth0), ..Route::to(IpNetwork::from(gateway)) });
            }
            batch.route_add(&Route::via(subnet, next, eth0));
            let all = Family::of(*address).default_net();
            batch.route_add(&Route::via(all, next, eth0));
        }
        netlink.run(batch).unwrap();
    }

    /// Pings from a container.
    pub fn ping_from(&self, container: &str, to: &str) -> Result<(), String> {
        ping(&self.containers[container], to)
    }

    /// Pings from the host itself.
    pub fn ping(&self, to: &str) -> Result<(), String> {
        ping(&self.netns, to)
    }

    /// The MTU of an interface of the host.
    pub fn mtu(&self, name: &str) -> u32 {
        Netlink::open_in(&self.netns).unwrap().need_link(name).unwrap().mtu.unwrap()
    }

    /// What `COMMAND` prints on the host.
    pub fn sh(&self, command: &str) -> String {
        sh(&self.netns, command)
    }
}

/// Two packets, of which none may be lost.
pub fn ping(netns: &Netns, to: &str) -> Result<(), String> {
    ping_with(netns, &["-i", "0.05", "-c", "2", to])
}

/// One packet: the kernel does not tell the sender of each one that was in vain.
pub fn ping_once(netns: &Netns, to: &str) -> Result<(), String> {
    ping_with(netns, &["-c", "1", to])
}

fn ping_with(netns: &Netns, args: &[&str]) -> Result<(), String> {
    let run = || Command::new("ping").args(["-n", "-W", "2"]).args(args).output();
    let output = netns.run(run).unwrap().expect("ping is on the machine");
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() && text.contains(" 0% packet loss") { Ok(()) } else { Err(text) }
}

pub fn sh(netns: &Netns, command: &str) -> String {
    let output = netns.run(|| Command::new("sh").args(["-c", command]).output()).unwrap().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Whether this kernel has what the tests need; they say that they were skipped.
pub fn kernel_has_vxlan() -> bool {
    let has = probe::link_kind("vxlan").unwrap();
    if !has {
        println!("skipped: this kernel has no vxlan devices");
    }
    has
}
