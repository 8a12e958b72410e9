//! A container's interface, made by hand the way the plugin makes it.

use super::{Host, Space};
use ovl_api::wire::{Attach, Attached, Detach};
use std::net::IpAddr;

/// A container with an interface in an overlay network.
pub struct Container {
    pub space: Space,
    pub attached: Attached,
    pub name: String,
    pub veth: String,
}

impl Container {
    /// Attaches one and makes the veth, but not the host's half: that is for the agent to restore.
    #[track_caller]
    pub fn half(host: &Host, network: &str, name: &str) -> Container {
        Container::make(host, network, name, false)
    }

    /// Attaches one and makes all of it.
    #[track_caller]
    pub fn new(host: &Host, network: &str, name: &str) -> Container {
        Container::make(host, network, name, true)
    }

    #[track_caller]
    fn make(host: &Host, network: &str, name: &str, whole: bool) -> Container {
        let veth = format!("v{name}");
        let ask = Attach {
            network: network.into(),
            container: name.into(),
            ifname: "eth0".into(),
            veth: veth.clone(),
            ..Attach::default()
        };
        let attached = host.client().attach(&ask).unwrap_or_else(|error| panic!("{name}: {error}"));
        let container = Container { space: Space::new(), attached, name: name.to_owned(), veth };
        let Attached { mac, mtu, group, .. } = &container.attached;
        let (veth, pid) = (&container.veth, container.space.pid());
        // By one process, as the plugin does it: the agent looks at a new link a second later.
        let mut lines = format!(
            "link add {veth} up group {group} mtu {mtu} type veth peer name eth0 netns {pid} address {mac} mtu {mtu}\n"
        );
        lines += &format!("link set {veth} alias weft:{network}/{name}/eth0\n");
        for address in container.addresses().into_iter().filter(|_| whole) {
            let (gateway, full) = if address.is_ipv6() {
                (format!("addr replace fe80::1/64 dev {veth} nodad\n"), 128)
            } else {
                (String::new(), 32)
            };
            lines += &format!(
                "{gateway}route replace {address}/{full} dev {veth} proto 87\n\
                 neigh replace {address} lladdr {mac} dev {veth} nud permanent\n"
            );
        }
        host.space.ok(&format!(
            "for key in accept_ra autoconf; do echo 0 > /proc/sys/net/ipv6/conf/default/$key; done; \
             printf '{lines}' | ip -batch -"
        ));
        container.inside(host);
        // The kernel acts on a new carrier in the background; asked for the link, it does so first.
        host.space.ok(&format!("ip link show {}", container.veth));
        container
    }

    fn inside(&self, host: &Host) {
        let mac = host.space.ok(&format!(
            "cat /sys/class/net/{0}/address 2>/dev/null || ip -br link show {0} | awk '{{print $3}}'",
            self.veth
        ));
        let mac = mac.trim();
        self.space.ok("ip link set eth0 up");
        for (address, subnet) in self.attached.addresses.iter().zip(&self.attached.network.subnets) {
            let (six, via) = if address.is_ipv6() {
                ("-6", "fe80::1".to_owned())
            } else {
                ("-4", subnet.gateway.to_string())
            };
            let onlink = if address.is_ipv6() { "" } else { "onlink" };
            let nodad = if address.is_ipv6() { "nodad" } else { "" };
            self.space.ok(&format!(
                "ip addr add {address} dev eth0 noprefixroute {nodad} && \
                 ip neigh replace {via} lladdr {mac} dev eth0 nud permanent && \
                 ip {six} route replace {} via {via} dev eth0 {onlink}",
                subnet.subnet
            ));
        }
    }

    pub fn addresses(&self) -> Vec<IpAddr> {
        self.attached.addresses.iter().map(|address| address.ip()).collect()
    }

    /// Whether it reaches all addresses of another one: a ping each, and no second try.
    pub fn reaches(&self, other: &Container) -> bool {
        let pings = other.addresses();
        pings.iter().all(|address| self.space.run(&format!("ping -c 1 -W 1 {address}")).status.success())
    }

    /// Ends the attachment, and the veth with the namespace.
    #[track_caller]
    pub fn detach(self, host: &Host) {
        let network = self.attached.network.name.clone();
        let detach = Detach { network, container: self.name.clone(), ifname: "eth0".into() };
        host.client().detach(&detach).unwrap();
        host.space.ok(&format!("ip link del {}", self.veth));
    }
}
