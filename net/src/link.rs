//! Links (network interfaces) as the kernel shows them: read by name, by index, or all.

use netlink_packet_core::Emitable;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkHeader, LinkMessage};

use crate::error::{Error, Result};
use crate::netlink::Netlink;
use crate::socket::Outgoing;
use crate::vxlan::Vxlanning;
use crate::wire::{self, u16_of, u32_of};

/// A network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// Its number in the namespace, from 1.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address, when that has the six bytes of Ethernet.
    pub mac: Option<[u8; 6]>,
    /// Its largest packet, in bytes.
    pub mtu: Option<u32>,
    /// The index of the bridge (bond, VRF …) that it is a port of.
    pub master: Option<u32>,
    /// Its device group (0: the default group).
    pub group: u32,
    /// Its kind: "veth", "bridge", "vxlan" …; None for hardware.
    pub kind: Option<String>,
    /// Administratively up (IFF_UP).
    pub up: bool,
    /// Up and with carrier (IFF_RUNNING).
    pub running: bool,
    /// It has no carrier because a program says so (IFLA_PROTO_DOWN).
    pub proto_down: bool,
    /// The loopback interface (IFF_LOOPBACK).
    pub loopback: bool,
    /// Set to take all packets (IFF_PROMISC, as asked for by a user).
    pub promisc: bool,
    /// Its alias (IFLA_IFALIAS).
    pub alias: Option<String>,
    /// IFLA_LINK: of a veth the other end's index (in that end's namespace), of a VLAN the lower device's.
    pub peer_index: Option<u32>,
    /// The number under which this namespace knows the one of `peer_index`; None when that is this one.
    pub peer_netnsid: Option<i32>,
    /// Its settings below net.ipv4.conf and net.ipv6.conf.
    pub conf: LinkConf,
    /// What it is as a bridge.
    pub bridge: Option<Bridging>,
    /// What it is as a port of a bridge.
    pub port: Option<Port>,
    /// What it is as a VXLAN device.
    pub vxlan: Option<Vxlanning>,
}

/// Settings of an interface; None: the kernel has no such setting for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkConf {
    /// net.ipv4.conf.IF.forwarding
    pub forwarding4: Option<bool>,
    /// net.ipv4.conf.IF.route_localnet
    pub localnet: Option<bool>,
    /// net.ipv6.conf.IF.accept_ra or autoconf is not 0.
    pub hears_routers: Option<bool>,
    /// net.ipv6.conf.IF.disable_ipv6
    pub ipv6_off: Option<bool>,
}

impl LinkConf {
    /// Reads IFLA_AF_SPEC: numbers in the order of IPV4_DEVCONF_* (from 1) and DEVCONF_* of linux/ip.h and linux/ipv6.h.
    fn parse(spec: &[u8]) -> LinkConf {
        const IFLA_INET_CONF: u16 = 1;
        const IFLA_INET6_CONF: u16 = 2;
        let of = |family: i32, kind| wire::find(spec, family as u16).and_then(|of| wire::find(of, kind));
        let (conf4, conf6) = (of(libc::AF_INET, IFLA_INET_CONF), of(libc::AF_INET6, IFLA_INET6_CONF));
        let value = |conf: Option<&[u8]>, at: usize| {
            conf.and_then(|conf| conf.get(at * 4..)).and_then(u32_of).map(|value| value != 0)
        };
        LinkConf {
            forwarding4: value(conf4, 0),
            localnet: value(conf4, 25),
            hears_routers: value(conf6, 3)
                .zip(value(conf6, 5))
                .map(|(accept_ra, autoconf)| accept_ra || autoconf),
            ipv6_off: value(conf6, 26),
        }
    }
}

/// What a link of kind "bridge" says of itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bridging {
    /// VLAN filtering is on; None when this kernel has no bridge VLAN filtering.
    pub vlan_filtering: Option<bool>,
    /// The VLAN of untagged packets on a new port (0: none).
    pub default_pvid: Option<u16>,
    /// The spanning tree protocol is on.
    pub stp: bool,
    /// Its frames pass through the firewall for IP (br_netfilter), whatever `net.bridge.bridge-nf-call-ip*tables` say.
    pub ip_firewall: bool,
}

/// A bridge port's flags (IFLA_BRPORT_*).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Port {
    /// The state by the spanning tree: 0 disabled, 1 listening, 2 learning, 3 forwarding, 4 blocking.
    pub state: u8,
    /// Packets may leave by the port that they came from.
    pub hairpin: bool,
    /// No packets between isolated ports.
    pub isolated: bool,
    /// It learns addresses.
    pub learning: bool,
    /// It gets packets for unknown addresses.
    pub flood: bool,
}

impl Link {
    /// Reads the body of an RTM_NEWLINK message; None when it is not one.
    pub(crate) fn parse(body: &[u8]) -> Option<Link> {
        let header = LinkHeader::parse(body).ok()?;
        let flags = header.flags.bits();
        let is_set = |flag: i32| flags & flag as u32 != 0;
        let mut link = Link {
            index: header.index,
            up: is_set(libc::IFF_UP),
            running: is_set(libc::IFF_RUNNING),
            loopback: is_set(libc::IFF_LOOPBACK),
            promisc: is_set(libc::IFF_PROMISC),
            ..Link::default()
        };
        for (kind, value) in wire::attributes(body.get(header.buffer_len()..)?) {
            match kind {
                libc::IFLA_IFNAME => link.name = wire::str_of(value),
                libc::IFLA_ADDRESS => link.mac = value.try_into().ok(),
                libc::IFLA_MTU => link.mtu = u32_of(value),
                libc::IFLA_MASTER => link.master = u32_of(value),
                libc::IFLA_GROUP => link.group = u32_of(value).unwrap_or(0),
                libc::IFLA_IFALIAS => {
                    link.alias = Some(wire::str_of(value)).filter(|alias| !alias.is_empty())
                }
                libc::IFLA_LINK => link.peer_index = u32_of(value).filter(|index| *index != 0),
                libc::IFLA_LINK_NETNSID => link.peer_netnsid = u32_of(value).map(|id| id as i32),
                libc::IFLA_PROTO_DOWN => link.proto_down = value.first().is_some_and(|down| *down != 0),
                libc::IFLA_LINKINFO => link.read_info(value),
                libc::IFLA_AF_SPEC => link.conf = LinkConf::parse(value),
                _ => {}
            }
        }
        Some(link)
    }

    fn read_info(&mut self, info: &[u8]) {
        self.kind = wire::find(info, libc::IFLA_INFO_KIND).map(wire::str_of);
        let of_bridge = |kind| wire::find(info, kind).map(wire::str_of).as_deref() == Some("bridge");
        if of_bridge(libc::IFLA_INFO_KIND) {
            let data = wire::find(info, libc::IFLA_INFO_DATA).unwrap_or_default();
            let default_pvid = wire::find(data, br::VLAN_DEFAULT_PVID).and_then(u16_of);
            let is_on = |kind| wire::find(data, kind).and_then(|value| value.first()) == Some(&1);
            let filtering = is_on(br::VLAN_FILTERING);
            self.bridge = Some(Bridging {
                // A kernel without it shows "off", but no default VLAN (br_fill_info() of net/bridge/br_netlink.c).
                vlan_filtering: default_pvid.map(|_| filtering),
                default_pvid,
                stp: wire::find(data, br::STP_STATE).and_then(u32_of).is_some_and(|state| state != 0),
                ip_firewall: is_on(br::NF_CALL_IPTABLES) || is_on(br::NF_CALL_IP6TABLES),
            });
        }
        if self.kind.as_deref() == Some("vxlan") {
            let data = wire::find(info, libc::IFLA_INFO_DATA).unwrap_or_default();
            self.vxlan = Some(Vxlanning::parse(data));
        }
        if of_bridge(libc::IFLA_INFO_SLAVE_KIND) {
            let data = wire::find(info, libc::IFLA_INFO_SLAVE_DATA).unwrap_or_default();
            let byte = |kind| wire::find(data, kind).and_then(|value| value.first()).copied().unwrap_or(0);
            self.port = Some(Port {
                state: byte(brport::STATE),
                hairpin: byte(brport::MODE) != 0,
                isolated: byte(brport::ISOLATED) != 0,
                learning: byte(brport::LEARNING) != 0,
                flood: byte(brport::UNICAST_FLOOD) != 0,
            });
        }
    }

    /// The hardware address in the usual writing, `02:42:ac:11:00:02`.
    pub fn mac_text(&self) -> Option<String> {
        self.mac.map(mac_text)
    }
}

/// A hardware address in the usual writing, `02:42:ac:11:00:02`.
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Reads a hardware address written with `:` or `-`.
///
/// # Errors
/// [`Error::Invalid`] when it is not six bytes in hex, or a multicast address, which no interface can have.
pub fn parse_mac(text: &str) -> Result<[u8; 6]> {
    let invalid =
        |why: &str| Error::Invalid { what: "hardware address", value: text.to_owned(), why: why.to_owned() };
    let byte = |part: &str| (part.len() == 2).then(|| u8::from_str_radix(part, 16).ok()).flatten();
    let bytes: Option<Vec<u8>> = text.split([':', '-']).map(byte).collect();
    let mac: Option<[u8; 6]> = bytes.and_then(|bytes| bytes.try_into().ok());
    let mac = mac.ok_or_else(|| invalid("must be six bytes in hex, as in 02:42:ac:11:00:02"))?;
    if mac[0] & 1 == 1 { Err(invalid("is a multicast address")) } else { Ok(mac) }
}

/// IFLA_BR_* of linux/if_link.h.
pub(crate) mod br {
    pub const STP_STATE: u16 = 5;
    pub const VLAN_FILTERING: u16 = 7;
    pub const NF_CALL_IPTABLES: u16 = 36;
    pub const NF_CALL_IP6TABLES: u16 = 37;
    pub const VLAN_DEFAULT_PVID: u16 = 39;
}

/// IFLA_BRPORT_* of linux/if_link.h.
pub(crate) mod brport {
    pub const STATE: u16 = 1;
    pub const MODE: u16 = 4;
    pub const LEARNING: u16 = 8;
    pub const UNICAST_FLOOD: u16 = 9;
    pub const ISOLATED: u16 = 33;
}

/// A request for links: by index or name, or, with neither, for a dump. The statistics are left out of the answer.
pub(crate) fn request(index: u32, name: Option<&str>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.interface_family = AddressFamily::Unspec;
    message.header.index = index;
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    message.attributes.extend(name.map(|name| LinkAttribute::IfName(name.to_owned())));
    message
}

impl Netlink {
    /// The link of that name, by one request, not a dump.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>> {
        if name.is_empty() || name.len() > 15 {
            return Ok(None);
        }
        self.one_link(request(0, Some(name)), || format!("look up interface {name}"))
    }

    /// The link of that name, which must exist.
    ///
    /// # Errors
    /// [`Error::NoLink`].
    pub fn need_link(&mut self, name: &str) -> Result<Link> {
        self.link(name)?.ok_or_else(|| Error::NoLink(name.to_owned()))
    }

    /// The link of that index.
    pub fn link_at(&mut self, index: u32) -> Result<Option<Link>> {
        self.one_link(request(index, None), || format!("look up interface number {index}"))
    }

    fn one_link(&mut self, message: LinkMessage, what: impl Fn() -> String) -> Result<Option<Link>> {
        let mut out = Outgoing::new();
        out.lookup(libc::RTM_GETLINK, 0, |bytes| crate::socket::emit(bytes, &message));
        let answers = self.channel.exchange(out)?;
        match answers.refusal(0) {
            Some(refusal) if refusal.errno == libc::ENODEV => Ok(None),
            Some(refusal) => Err(Error::Kernel { what: what(), refusal: refusal.clone() }),
            None => match answers.reply(0).and_then(Link::parse) {
                Some(link) => Ok(Some(link)),
                None => Err(Error::Decode { what: what(), why: "it is no link".into() }),
            },
        }
    }

    /// All links of the namespace.
    pub fn links(&mut self) -> Result<Vec<Link>> {
        self.links_where(request(0, None), |_| true)
    }

    /// The ports of the bridge (bond, VRF …) with that index.
    pub fn links_of_master(&mut self, master: u32) -> Result<Vec<Link>> {
        let mut message = request(0, None);
        message.attributes.push(LinkAttribute::Controller(master));
        self.links_where(message, |link| link.master == Some(master))
    }

    /// Tells whether a port of the bridge with that index is as asked for. It reads the list to the first port that is, so that
    /// it takes as long with a thousand ports as with one. The socket is closed: the kernel takes no other request for a list
    /// before the first one is read to its end. Without a mask (IFLA_EXT_MASK) the kernel does not look at all links first to
    /// see how long an answer may be (rtnl_calcit of net/core/rtnetlink.c).
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn any_link_of_master(
        self,
        master: u32,
        mut is_asked_for: impl FnMut(&Link) -> bool,
    ) -> Result<bool> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::Controller(master));
        let mut body = Vec::new();
        crate::socket::emit(&mut body, &message);
        self.channel.strict();
        self.channel.any("list the ports of a bridge", libc::RTM_GETLINK, &body, |kind, body| {
            let link = Link::parse(body).filter(|link| link.master == Some(master));
            kind == libc::RTM_NEWLINK && link.is_some_and(|link| is_asked_for(&link))
        })
    }

    /// The links of a device group.
    pub fn links_of_group(&mut self, group: u32) -> Result<Vec<Link>> {
        self.links_where(request(0, None), |link| link.group == group)
    }

    fn links_where(&mut self, message: LinkMessage, wanted: impl Fn(&Link) -> bool) -> Result<Vec<Link>> {
        let mut body = Vec::new();
        crate::socket::emit(&mut body, &message);
        self.channel.strict();
        self.channel.dump("list the network interfaces", libc::RTM_GETLINK, &body, |kind, body| {
            Link::parse(body).filter(|link| kind == libc::RTM_NEWLINK && wanted(link))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testns;
    use proptest::prelude::*;

    #[test]
    fn loopback_is_found_by_name_by_index_and_in_the_list() {
        testns::in_fresh(|| {
            let mut netlink = Netlink::open().unwrap();
            let lo = netlink.need_link("lo").unwrap();
            assert!(lo.loopback && lo.up && lo.running);
            assert_eq!((lo.index, lo.mtu, lo.mac), (1, Some(65536), Some([0; 6])));
            assert_eq!(netlink.link_at(1).unwrap(), Some(lo.clone()));
            assert!(netlink.links().unwrap().contains(&lo));
            assert_eq!(netlink.link("nothing").unwrap(), None);
            assert_eq!(netlink.link("a-name-of-more-than-15-bytes").unwrap(), None);
            assert_eq!(netlink.link_at(4711).unwrap(), None);
            assert!(matches!(netlink.need_link("nothing"), Err(Error::NoLink(_))));
        });
    }

    #[test]
    fn any_link_of_master_reads_to_first_match() {
        testns::in_fresh(|| {
            let mut netlink = Netlink::open().unwrap();
            let mut batch = crate::Batch::new();
            for name in ["br0", "br1"] {
                batch.bridge(&crate::Bridge { name, ..Default::default() });
            }
            netlink.run(batch).unwrap();
            let (first, second) = (netlink.need_link("br0").unwrap(), netlink.need_link("br1").unwrap());
            let other_end = crate::Netns::current().unwrap();
            for number in 0..40 {
                let (name, peer) = (format!("port{number}"), format!("peer{number}"));
                let master = Some(first.index);
                netlink
                    .create_veth(&crate::Veth { master, ..crate::Veth::new(&name, &peer, &other_end) })
                    .unwrap();
            }
            let any = |master, name: &str| {
                Netlink::open().unwrap().any_link_of_master(master, |link| link.name == name).unwrap()
            };
            assert!(any(first.index, "port0") && any(first.index, "port39"));
            assert!(!any(first.index, "peer0") && !any(first.index, "br0"));
            assert!(!any(second.index, "port0") && !any(4711, "port0"));
            // Read no further than to the first: what the kernel sends at once is less than half of the list.
            let mut seen = 0;
            let is_first = |_: &Link| {
                seen += 1;
                true
            };
            assert!(Netlink::open().unwrap().any_link_of_master(first.index, is_first).unwrap());
            assert_eq!(seen, 1);
        });
    }

    #[test]
    fn hardware_addresses() {
        assert_eq!(parse_mac("02:42:ac:11:00:02").unwrap(), [2, 0x42, 0xac, 0x11, 0, 2]);
        assert_eq!(mac_text([2, 0x42, 0xac, 0x11, 0, 2]), "02:42:ac:11:00:02");
        for wrong in
            ["", "02:42", "02:42:ac:11:00:0g", "02:42:ac:11:00:02:03", "01:00:5e:00:00:01", "2:42:ac:11:0:2"]
        {
            assert!(parse_mac(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_a_link(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Link::parse(&bytes);
        }
    }
}
