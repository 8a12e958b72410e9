//! VXLAN devices (RFC 7348), as routed overlays use them: nothing is learned, no multicast group, the remote hosts entered
//! into the forwarding database by hand ([`Batch::fdb_remote`]).

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage};

use crate::addr::ip_of;
use crate::batch::Batch;
use crate::change::{LinkSet, On, start};
use crate::link::Link;
use crate::netlink::Netlink;
use crate::socket::emit;
use crate::wire::{self, u32_of};

/// A VXLAN device to be made.
///
/// UDP checksums are left to the kernel's defaults: it sends them, which costs nothing next to the checksums of the packets
/// inside (local checksum offload) and lets the receiver's hardware vouch for both. A device that *takes* IPv6 packets
/// without one (`zero_checksum6`) cannot share its port with one that does not, such as another product's.
#[derive(Debug, Clone, Copy)]
pub struct Vxlan<'a> {
    /// Its name.
    pub name: &'a str,
    /// The network's identifier, 1 to 16777215.
    pub vni: u32,
    /// The source address of what it sends; its family is the underlay's.
    pub local: IpAddr,
    /// The UDP port, here and, where the forwarding database says nothing else, at the remote hosts.
    pub port: u16,
    /// It learns which host a hardware address is behind from the packets that come in.
    pub learning: bool,
    /// On an IPv6 underlay: packets are sent, and taken, without UDP checksum (RFC 6935).
    pub zero_checksum6: bool,
    /// Hardware address; None: a random one.
    pub mac: Option<[u8; 6]>,
    /// MTU in bytes; None: the kernel's 1500, whatever the underlay carries.
    pub mtu: Option<u32>,
    /// Device group.
    pub group: u32,
    /// Alias.
    pub alias: Option<&'a str>,
    /// The kernel gives it no IPv6 link-local address (addr_gen_mode none). For hosts with IPv6 only: others refuse.
    pub no_link_local: bool,
    /// It is brought up.
    pub up: bool,
}

/// What a link of kind "vxlan" says of itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Vxlanning {
    /// The network's identifier.
    pub vni: u32,
    /// The source address of what it sends; None: as routed.
    pub local: Option<IpAddr>,
    /// The UDP port.
    pub port: u16,
    /// It learns.
    pub learning: bool,
    /// It gets its settings packet by packet (IFLA_VXLAN_COLLECT_METADATA), and has no VNI of its own.
    pub external: bool,
    /// An option differs from the kernel's default that [`Vxlan`] leaves there: another link below, a default remote host, TTL,
    /// TOS, flow label, DF, the number of forwarding entries.
    pub is_altered: bool,
}

impl Vxlanning {
    /// Reads IFLA_INFO_DATA.
    pub(crate) fn parse(data: &[u8]) -> Vxlanning {
        let flag = |kind| wire::find(data, kind).and_then(|value| value.first()).is_some_and(|on| *on != 0);
        let local = wire::find(data, ifla::LOCAL).or_else(|| wire::find(data, ifla::LOCAL6));
        let port = wire::find(data, ifla::PORT).and_then(|value| value.try_into().ok());
        Vxlanning {
            vni: wire::find(data, ifla::ID).and_then(u32_of).unwrap_or(0),
            local: local.and_then(ip_of).filter(|ip| !ip.is_unspecified()),
            port: port.map_or(0, u16::from_be_bytes),
            learning: flag(ifla::LEARNING),
            external: flag(ifla::COLLECT_METADATA),
            is_altered: ifla::LEFT
                .iter()
                .any(|kind| wire::find(data, *kind).is_some_and(|value| value.iter().any(|byte| *byte != 0))),
        }
    }
}

/// IFLA_VXLAN_* of linux/if_link.h.
mod ifla {
    pub const ID: u16 = 1;
    pub const LOCAL: u16 = 4;
    pub const LEARNING: u16 = 7;
    pub const PORT: u16 = 15;
    pub const LOCAL6: u16 = 17;
    pub const COLLECT_METADATA: u16 = 25;
    /// GROUP, LINK, TTL, TOS, LIMIT, GROUP6, LABEL and DF: what can be changed later, and is 0 or missing by default.
    pub const LEFT: [u16; 8] = [2, 3, 5, 6, 9, 16, 26, 29];
}

fn info(settings: Vec<InfoVxlan>) -> LinkAttribute {
    LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(settings))])
}

impl Batch {
    /// Creates a VXLAN device; refused with EEXIST when there is one with that name, or with that VNI and port.
    ///
    /// Alias and address generation follow in a second message, and only a third one brings it up: the kernel takes neither
    /// at creation, and generates the link-local address when the device comes up.
    pub fn vxlan(&mut self, vxlan: &Vxlan<'_>) -> &mut Batch {
        let mut settings = vec![InfoVxlan::Id(vxlan.vni)];
        settings.push(match vxlan.local {
            IpAddr::V4(ip) => InfoVxlan::Local(ip),
            IpAddr::V6(ip) => InfoVxlan::Local6(ip),
        });
        settings.push(InfoVxlan::Port(vxlan.port));
        settings.push(InfoVxlan::Learning(vxlan.learning));
        if vxlan.zero_checksum6 {
            settings.push(InfoVxlan::UDPZeroCsumTX(true));
            settings.push(InfoVxlan::UDPZeroCsumRX(true));
        }
        let mut message = start(On::Name(vxlan.name));
        message.attributes.extend(vxlan.mtu.map(LinkAttribute::Mtu));
        message.attributes.extend(vxlan.mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
        message.attributes.push(LinkAttribute::Group(vxlan.group));
        message.attributes.push(info(settings));
        let what = format!("create VXLAN device {} for VNI {}", vxlan.name, vxlan.vni);
        self.push(what, libc::RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, |bytes| emit(bytes, &message))
            .of_kind("vxlan");
        if vxlan.alias.is_some() || vxlan.no_link_local {
            let no_link_local = vxlan.no_link_local.then_some(true);
            self.set(vxlan.name, &LinkSet { alias: vxlan.alias, no_link_local, ..LinkSet::default() });
        }
        if vxlan.up {
            self.set(vxlan.name, &LinkSet { up: Some(true), ..LinkSet::default() });
        }
        self
    }

    /// Switches learning of a VXLAN device.
    pub fn vxlan_learning<'a>(&mut self, on: impl Into<On<'a>>, learning: bool) -> &mut Batch {
        let on = on.into();
        let mut message: LinkMessage = start(on);
        message.attributes.push(info(vec![InfoVxlan::Learning(learning)]));
        let what = format!("switch learning of {}", self.told(on));
        self.push(what, libc::RTM_NEWLINK, 0, |bytes| emit(bytes, &message))
    }
}

impl Netlink {
    /// Creates a VXLAN device and returns it: one exchange.
    pub fn create_vxlan(&mut self, vxlan: &Vxlan<'_>) -> crate::Result<Link> {
        let mut batch = Batch::new();
        batch.vxlan(vxlan);
        self.create_and_look(batch, vxlan.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Fdb, probe, testns};
    use proptest::prelude::*;

    fn device(local: &str) -> Vxlan<'static> {
        Vxlan {
            name: "vx-one",
            vni: 4711,
            local: local.parse().unwrap(),
            port: 4789,
            learning: false,
            zero_checksum6: false,
            mac: Some([2, 0, 0, 0, 0, 1]),
            mtu: Some(1450),
            group: 0x5700_1267,
            alias: Some("weft:overlay:one"),
            no_link_local: true,
            up: true,
        }
    }

    /// Whether this kernel has VXLAN; a test that needs it says that it was skipped.
    fn there() -> bool {
        let there = probe::link_kind("vxlan").unwrap();
        if !there {
            println!("skipped: this kernel has no vxlan devices");
        }
        there
    }

    #[test]
    fn a_device_is_what_it_was_made_to_be() {
        if !there() {
            return;
        }
        for local in ["192.0.2.1", "2001:db8::1"] {
            testns::in_fresh(|| {
                let mut netlink = Netlink::open().unwrap();
                let wanted = device(local);
                let link = netlink.create_vxlan(&wanted).unwrap();
                assert_eq!((link.kind.as_deref(), link.up, link.mtu), (Some("vxlan"), true, Some(1450)));
                assert_eq!((link.mac, link.group), (wanted.mac, wanted.group));
                assert_eq!(link.alias.as_deref(), wanted.alias);
                let vxlan = link.vxlan.unwrap();
                let local = Some(wanted.local);
                let expected = Vxlanning { vni: 4711, local, port: 4789, ..Vxlanning::default() };
                assert_eq!(vxlan, expected);
                assert_eq!(netlink.addrs(Some(link.index)).unwrap(), [], "it has a link-local address");

                netlink.run_one(|batch| batch.vxlan_learning(link.index, true)).unwrap();
                let changed = netlink.need_link("vx-one").unwrap().vxlan.unwrap();
                assert_eq!(changed, Vxlanning { learning: true, ..vxlan });

                let error = netlink.create_vxlan(&Vxlan { name: "vx-two", ..wanted }).unwrap_err();
                assert!(error.is_existing() && error.to_string().contains("vx-two"), "{error}");
            });
        }
    }

    #[test]
    fn without_ado_a_device_gets_a_link_local_address() {
        if !there() {
            return;
        }
        testns::in_fresh(|| {
            let mut netlink = Netlink::open().unwrap();
            let wanted = Vxlan { no_link_local: false, zero_checksum6: true, ..device("2001:db8::1") };
            let link = netlink.create_vxlan(&wanted).unwrap();
            assert_eq!(netlink.addrs(Some(link.index)).unwrap().len(), 1);
        });
    }

    #[test]
    fn the_forwarding_database_of_one_device() {
        if !there() {
            return;
        }
        testns::in_fresh(|| {
            let mut netlink = Netlink::open().unwrap();
            let one = netlink.create_vxlan(&device("192.0.2.1")).unwrap().index;
            let second = Vxlan { name: "vx-two", vni: 4712, ..device("192.0.2.1") };
            let two = netlink.create_vxlan(&second).unwrap().index;
            let mac = |last| [2, 0, 0, 0, 9, last];
            let ip = |last| IpAddr::from([192, 0, 2, last]);
            let mut batch = Batch::new();
            batch.fdb_remote(one, mac(1), ip(11), None).fdb_remote(one, mac(2), ip(12), Some(8472));
            batch.fdb_remote(two, mac(3), ip(13), Some(4789));
            netlink.run(batch).unwrap();
            let entry = |index, last, dst, port| {
                let (mac, dst) = (mac(last), Some(ip(dst)));
                Fdb { index, mac, dst, port, is_diverted: false, vlan: None, permanent: true }
            };
            let sorted = |mut found: Vec<Fdb>| {
                found.sort_by_key(|entry| entry.mac);
                found
            };
            let of_one = [entry(one, 1, 11, None), entry(one, 2, 12, Some(8472))];
            assert_eq!(sorted(netlink.fdb(Some(one)).unwrap()), of_one);
            // The device's own port goes without saying.
            assert_eq!(netlink.fdb(Some(two)).unwrap(), [entry(two, 3, 13, None)]);

            let mut batch = Batch::new();
            batch.fdb_remote(one, mac(1), ip(21), None).fdb_remote_del(one, mac(2), ip(12), Some(8472));
            netlink.run(batch).unwrap();
            assert_eq!(netlink.fdb(Some(one)).unwrap(), [entry(one, 1, 21, None)]);
        });
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_settings(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Vxlanning::parse(&bytes);
        }
    }
}
