//! Neighbours (which hardware address an IP address has on a link) and the forwarding database of bridges and VXLAN
//! devices (behind which port, or remote host, a hardware address is).

use std::net::IpAddr;

use netlink_packet_core::{Emitable, NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourHeader, NeighbourMessage, NeighbourState,
};

use crate::addr::{family_of, ip_of};
use crate::batch::{Batch, Ticket};
use crate::error::Result;
use crate::link::mac_text;
use crate::netlink::Netlink;
use crate::socket::emit;
use crate::wire;

/// NDA_* of linux/neighbour.h.
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_VLAN: u16 = 5;
const NDA_PORT: u16 = 6;
const NDA_VNI: u16 = 7;
const NDA_IFINDEX: u16 = 8;

/// A neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neigh {
    /// The index of the link.
    pub index: u32,
    /// Its address.
    pub ip: IpAddr,
    /// Its hardware address; None while it is not known.
    pub mac: Option<[u8; 6]>,
    /// Entered for good (NUD_PERMANENT), not learned.
    pub permanent: bool,
}

/// An entry of a forwarding database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fdb {
    /// The index of the bridge port, or of the VXLAN device.
    pub index: u32,
    /// The hardware address.
    pub mac: [u8; 6],
    /// Of a VXLAN device: the remote host.
    pub dst: Option<IpAddr>,
    /// Of a VXLAN device: the remote host's UDP port, where it is not the device's own.
    pub port: Option<u16>,
    /// Of a VXLAN device: packets go by a VNI, or a link, that is not the device's own.
    pub is_diverted: bool,
    /// The VLAN.
    pub vlan: Option<u16>,
    /// Entered for good, not learned.
    pub permanent: bool,
}

impl Neigh {
    /// Reads the body of a message; None when it is of another kind.
    pub(crate) fn parse(body: &[u8]) -> Option<Neigh> {
        let header = NeighbourHeader::parse(body).ok()?;
        Neigh::of(&header, body.get(header.buffer_len()..)?)
    }

    fn of(header: &NeighbourHeader, attributes: &[u8]) -> Option<Neigh> {
        let ip = wire::find(attributes, NDA_DST).and_then(ip_of)?;
        let mac = wire::find(attributes, NDA_LLADDR).and_then(|mac| mac.try_into().ok());
        let permanent = is_permanent(header);
        Some(Neigh { index: header.ifindex, ip, mac, permanent })
    }
}

impl Fdb {
    /// Reads the body of a message; None when it is of another kind.
    pub(crate) fn parse(body: &[u8]) -> Option<Fdb> {
        let header = NeighbourHeader::parse(body).ok()?;
        Fdb::of(&header, body.get(header.buffer_len()..)?)
    }

    fn of(header: &NeighbourHeader, attributes: &[u8]) -> Option<Fdb> {
        let mac = wire::find(attributes, NDA_LLADDR).and_then(|mac| mac.try_into().ok())?;
        let port = wire::find(attributes, NDA_PORT).and_then(|port| port.try_into().ok());
        Some(Fdb {
            index: header.ifindex,
            mac,
            dst: wire::find(attributes, NDA_DST).and_then(ip_of),
            port: port.map(u16::from_be_bytes),
            is_diverted: [NDA_VNI, NDA_IFINDEX].iter().any(|kind| wire::find(attributes, *kind).is_some()),
            vlan: wire::find(attributes, NDA_VLAN).and_then(wire::u16_of),
            permanent: is_permanent(header),
        })
    }
}

/// NUD_PERMANENT is set, alone or, as `bridge` does it, with NUD_NOARP.
fn is_permanent(header: &NeighbourHeader) -> bool {
    u16::from(header.state) & libc::NUD_PERMANENT != 0
}

fn neighbour(family: AddressFamily, index: u32, mac: Option<[u8; 6]>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family;
    message.header.ifindex = index;
    message.attributes.extend(mac.map(|mac| NeighbourAttribute::LinkLayerAddress(mac.to_vec())));
    message
}

impl Batch {
    /// Enters a neighbour for good, in the place of what is known of it.
    pub fn neigh_replace(&mut self, index: u32, ip: IpAddr, mac: [u8; 6]) -> &mut Batch {
        let mut message = neighbour(family_of(ip), index, Some(mac));
        message.header.state = NeighbourState::Permanent;
        message.attributes.push(NeighbourAttribute::Destination(ip.into()));
        let what = format!("set neighbour {ip} ({}) on {}", mac_text(mac), self.name_of(index));
        self.push(what, libc::RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, |bytes| emit(bytes, &message))
    }

    /// Asks whether there is an entry of this neighbour, known or not: [`crate::Outcome::is_unknown`].
    pub fn neigh_lookup(&mut self, index: u32, ip: IpAddr) -> Ticket {
        let mut message = neighbour(family_of(ip), index, None);
        message.attributes.push(NeighbourAttribute::Destination(ip.into()));
        let what = format!("look up neighbour {ip} on {}", self.name_of(index));
        self.push_lookup(what, libc::RTM_GETNEIGH, |bytes| emit(bytes, &message))
    }

    /// Forgets a neighbour.
    pub fn neigh_del(&mut self, index: u32, ip: IpAddr) -> &mut Batch {
        let mut message = neighbour(family_of(ip), index, None);
        message.attributes.push(NeighbourAttribute::Destination(ip.into()));
        let what = format!("remove neighbour {ip} from {}", self.name_of(index));
        self.push(what, libc::RTM_DELNEIGH, 0, |bytes| emit(bytes, &message))
    }

    /// Enters a hardware address into the device's own forwarding database (`self`): of a VXLAN device with the remote
    /// host.
    pub fn fdb_replace(&mut self, index: u32, mac: [u8; 6], dst: Option<IpAddr>) -> &mut Batch {
        let message = forwarding(index, mac, dst, None);
        let what = format!("set forwarding of {} on {}", mac_text(mac), self.name_of(index));
        self.push(what, libc::RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, |bytes| emit(bytes, &message))
    }

    /// Takes a hardware address out of the device's own forwarding database.
    pub fn fdb_del(&mut self, index: u32, mac: [u8; 6], dst: Option<IpAddr>) -> &mut Batch {
        let message = forwarding(index, mac, dst, None);
        let what = format!("remove forwarding of {} from {}", mac_text(mac), self.name_of(index));
        self.push(what, libc::RTM_DELNEIGH, 0, |bytes| emit(bytes, &message))
    }

    /// Enters a hardware address into the forwarding database of a VXLAN device: it is behind the remote host `dst`, which
    /// takes packets at `port`, or with None at the device's own.
    pub fn fdb_remote(&mut self, index: u32, mac: [u8; 6], dst: IpAddr, port: Option<u16>) -> &mut Batch {
        let message = forwarding(index, mac, Some(dst), port);
        let what = format!("set forwarding of {} to {dst} on {}", mac_text(mac), self.name_of(index));
        self.push(what, libc::RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, |bytes| emit(bytes, &message))
    }

    /// Takes what [`Self::fdb_remote`] entered out again.
    pub fn fdb_remote_del(&mut self, index: u32, mac: [u8; 6], dst: IpAddr, port: Option<u16>) -> &mut Batch {
        let message = forwarding(index, mac, Some(dst), port);
        let what = format!("remove forwarding of {} to {dst} from {}", mac_text(mac), self.name_of(index));
        self.push(what, libc::RTM_DELNEIGH, 0, |bytes| emit(bytes, &message))
    }
}

fn forwarding(index: u32, mac: [u8; 6], dst: Option<IpAddr>, port: Option<u16>) -> NeighbourMessage {
    let mut message = neighbour(AddressFamily::Bridge, index, Some(mac));
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message.attributes.extend(dst.map(|dst| NeighbourAttribute::Destination(dst.into())));
    message.attributes.extend(port.map(NeighbourAttribute::Port));
    message
}

impl Netlink {
    /// The neighbours on the link with that index, or on all; the kernel picks them.
    pub fn neighs(&mut self, index: Option<u32>) -> Result<Vec<Neigh>> {
        self.entries("list the neighbours", AddressFamily::Unspec, index, Neigh::of)
    }

    /// The forwarding databases of all bridges and VXLAN devices, or the entries of the port or device with that index; the
    /// kernel picks them.
    pub fn fdb(&mut self, index: Option<u32>) -> Result<Vec<Fdb>> {
        self.entries("list the forwarding database", AddressFamily::Bridge, index, Fdb::of)
    }

    fn entries<T>(
        &mut self,
        what: &str,
        family: AddressFamily,
        index: Option<u32>,
        take: impl Fn(&NeighbourHeader, &[u8]) -> Option<T>,
    ) -> Result<Vec<T>> {
        let mut message = neighbour(family, 0, None);
        message.attributes.extend(index.map(NeighbourAttribute::IfIndex));
        let mut body = Vec::new();
        emit(&mut body, &message);
        self.channel.strict();
        self.channel.dump(what, libc::RTM_GETNEIGH, &body, |kind, body| {
            let header = NeighbourHeader::parse(body).ok().filter(|_| kind == libc::RTM_NEWNEIGH)?;
            // Older kernels ignore the filter.
            if index.is_some_and(|index| index != header.ifindex) {
                return None;
            }
            take(&header, body.get(header.buffer_len()..)?)
        })
    }
}
