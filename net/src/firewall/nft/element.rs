//! The elements: what an attachment is in the table. Which maps there are, their keys and values, and both ways of
//! writing them.

use super::table::Table;
use super::wire::{Writer, attribute, attributes, text};
use crate::firewall::Protocol;
use ipnetwork::IpNetwork;
use std::borrow::Cow;
use std::net::IpAddr;

/// nftables' datatype numbers (libnftables, enum datatypes); a concatenation has six bits for each part.
mod datatype {
    pub const IPADDR: u32 = 7;
    pub const IP6ADDR: u32 = 8;
    pub const ETHERADDR: u32 = 9;
    pub const INET_PROTO: u32 = 12;
    pub const INET_SERVICE: u32 = 13;
    pub const IFNAME: u32 = 41;
}

/// The sets and maps of the tables. A verdict in a map's elements would be handier in places, but the kernel goes through
/// all of such a map whenever an element is added (nft_lookup_validate).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Map {
    /// protocol . host port : container address . port
    Ports4,
    /// the same for one address of the host
    Ports4At,
    Ports6,
    Ports6At,
    /// addresses of containers all of whose published ports' traffic is masqueraded
    HairpinAll4,
    HairpinAll6,
    /// bridges that only let in what is theirs
    Guarded,
    /// such a bridge twice: in and out
    GuardedPairs,
    /// addresses in this subnet whose outgoing traffic is masqueraded
    Masq(IpNetwork),
    /// addresses in this subnet with published ports
    Hairpin(IpNetwork),
    /// ports of bridges whose frames' source addresses are looked at
    Watched,
    /// such a port . the address that it may send from
    Sources,
    /// such a port : that address. No rule asks for it: by it the pair is found without being told the address, which a
    /// DEL may not know.
    SourceOf,
}

impl Map {
    /// Those of the bridge table.
    pub const BRIDGE_FRAME: [Map; 3] = [Map::Watched, Map::Sources, Map::SourceOf];

    /// Those of the frame of the table for IP.
    pub const FRAME: [Map; 8] = [
        Map::Ports4,
        Map::Ports4At,
        Map::Ports6,
        Map::Ports6At,
        Map::HairpinAll4,
        Map::HairpinAll6,
        Map::Guarded,
        Map::GuardedPairs,
    ];

    /// The table that has it.
    pub fn table(self) -> Table {
        if Map::BRIDGE_FRAME.contains(&self) { Table::Bridge } else { Table::Inet }
    }

    /// The name. Colons cannot be in a name that nft reads back, so IPv6's are written `_`.
    pub fn name(self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Map::Ports4 => "ports4",
            Map::Ports4At => "ports4_at",
            Map::Ports6 => "ports6",
            Map::Ports6At => "ports6_at",
            Map::HairpinAll4 => "hairpin4_all",
            Map::HairpinAll6 => "hairpin6_all",
            Map::Guarded => "guarded",
            Map::GuardedPairs => "guarded_pairs",
            Map::Watched => "watched",
            Map::Sources => "sources",
            Map::SourceOf => "source_of",
            Map::Masq(net) => return Cow::Owned(format!("masq-{}", net_name(net))),
            Map::Hairpin(net) => return Cow::Owned(format!("hairpin-{}", net_name(net))),
        })
    }

    /// The set or map of that name in a table.
    pub fn named(table: Table, name: &str) -> Option<Map> {
        let net = |text: &str| text.replace('_', ":").parse().ok();
        match name.split_once('-') {
            Some(("masq", text)) => net(text).map(Map::Masq),
            Some(("hairpin", text)) => net(text).map(Map::Hairpin),
            _ => table.frame().iter().copied().find(|map| map.name() == name),
        }
    }

    /// Is it one where a key is a port of the host?
    pub fn is_ports(self) -> bool {
        matches!(self, Map::Ports4 | Map::Ports4At | Map::Ports6 | Map::Ports6At)
    }

    /// Does what is in it belong to published ports?
    pub fn is_of_ports(self) -> bool {
        self.is_ports() || matches!(self, Map::HairpinAll4 | Map::HairpinAll6 | Map::Hairpin(_))
    }

    /// The set of a subnet, which may be given with host bits.
    pub fn masq(net: IpNetwork) -> Map {
        Map::Masq(subnet(net))
    }

    /// The set of a subnet, which may be given with host bits.
    pub fn hairpin(net: IpNetwork) -> Map {
        Map::Hairpin(subnet(net))
    }

    pub fn hairpin_all(v6: bool) -> Map {
        if v6 { Map::HairpinAll6 } else { Map::HairpinAll4 }
    }

    /// The key's datatype and length.
    fn key(self) -> (u32, u32) {
        use datatype::*;
        let port = INET_PROTO << 6 | INET_SERVICE;
        match self {
            Map::Ports4 | Map::Ports6 => (port, 8),
            Map::Ports4At => (IPADDR << 12 | port, 12),
            Map::Ports6At => (IP6ADDR << 12 | port, 24),
            Map::HairpinAll4 | Map::Masq(IpNetwork::V4(_)) | Map::Hairpin(IpNetwork::V4(_)) => (IPADDR, 4),
            Map::HairpinAll6 | Map::Masq(IpNetwork::V6(_)) | Map::Hairpin(IpNetwork::V6(_)) => (IP6ADDR, 16),
            Map::Guarded | Map::Watched | Map::SourceOf => (IFNAME, 16),
            Map::Sources => (IFNAME << 6 | ETHERADDR, 24),
            Map::GuardedPairs => (IFNAME << 6 | IFNAME, 32),
        }
    }

    /// The data's datatype and length, when it is a map.
    fn data(self) -> Option<(u32, u32)> {
        use datatype::*;
        match self {
            Map::Ports4 | Map::Ports4At => Some((IPADDR << 6 | INET_SERVICE, 8)),
            Map::Ports6 | Map::Ports6At => Some((IP6ADDR << 6 | INET_SERVICE, 20)),
            Map::SourceOf => Some((ETHERADDR, 6)),
            _ => None,
        }
    }

    /// The byte order of the key as nft wants it in a set's user data (0 for a concatenation, 1 the host's, 2 the
    /// network's), without which it prints the elements of some types wrongly.
    fn byte_order(self) -> u32 {
        match self {
            Map::HairpinAll4 | Map::HairpinAll6 | Map::Masq(_) | Map::Hairpin(_) => 2,
            Map::Guarded | Map::Watched | Map::SourceOf => 1,
            _ => 0,
        }
    }

    /// The attributes of the NEWSET that makes it (enum nft_set_attributes).
    pub fn write(self, id: u32, w: &mut Writer) {
        let ((key_type, key_len), data) = (self.key(), self.data());
        head(w, self);
        w.u32(3, if data.is_some() { 8 } else { 0 });
        w.u32(4, key_type);
        w.u32(5, key_len);
        if let Some((data_type, data_len)) = data {
            w.u32(6, data_type);
            w.u32(7, data_len);
        }
        w.u32(10, id);
        let mut user = vec![0, 4];
        user.extend_from_slice(&self.byte_order().to_ne_bytes());
        if data.is_some() {
            // That of a map's data: the network's, or that of a concatenation.
            user.extend_from_slice(&[1, 4]);
            user.extend_from_slice(&(if self == Map::SourceOf { 2u32 } else { 0 }).to_ne_bytes());
        }
        w.bytes(13, &user);
    }
}

/// A network without host bits.
pub fn subnet(net: IpNetwork) -> IpNetwork {
    IpNetwork::new(net.network(), net.prefix()).unwrap_or(net)
}

/// A network in the name of a set or chain.
pub fn net_name(net: IpNetwork) -> String {
    subnet(net).to_string().replace(':', "_")
}

/// Where an element leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A set's element has none.
    None,
    /// A map's: container address . port, or a hardware address.
    Bytes(Vec<u8>),
}

/// Which element: the map and the key in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub map: Map,
    pub bytes: Vec<u8>,
}

/// An element with its owner's tag, which nft shows as its comment (empty: none).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    pub key: Key,
    pub value: Value,
    pub tag: String,
}

/// Appends a field of a concatenation: each is padded to a register of four bytes.
fn field(to: &mut Vec<u8>, bytes: &[u8]) {
    to.extend_from_slice(bytes);
    to.resize(to.len().next_multiple_of(4), 0);
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

impl Key {
    /// A published port, of one address of the host or of all of a family's.
    pub fn port(at: Option<IpAddr>, v6: bool, protocol: Protocol, port: u16) -> Self {
        let map = match (at.is_some(), v6) {
            (false, false) => Map::Ports4,
            (true, false) => Map::Ports4At,
            (false, true) => Map::Ports6,
            (true, true) => Map::Ports6At,
        };
        let mut bytes = at.map(octets).unwrap_or_default();
        field(&mut bytes, &[protocol.number()]);
        field(&mut bytes, &port.to_be_bytes());
        Key { map, bytes }
    }

    /// A container's address in one of the sets of addresses.
    pub fn address(map: Map, addr: IpAddr) -> Self {
        Key { map, bytes: octets(addr) }
    }

    /// A port of a bridge in `watched` or `source_of`.
    pub fn link(map: Map, name: &str) -> Self {
        let mut bytes = name.as_bytes().to_vec();
        bytes.resize(16, 0);
        Key { map, bytes }
    }

    /// A port of a bridge and the address that it may send from.
    pub fn source(name: &str, mac: [u8; 6]) -> Self {
        let mut key = Key::link(Map::Sources, name);
        field(&mut key.bytes, &mac);
        key
    }

    /// A bridge in `guarded` or, twice, in `guarded_pairs`.
    pub fn bridge(map: Map, name: &str) -> Self {
        let one = Key::link(map, name).bytes;
        let bytes = if map == Map::GuardedPairs { one.repeat(2) } else { one };
        Key { map, bytes }
    }

    /// The protocol and port of a key of [`Map::is_ports`].
    pub fn parts(&self) -> Option<(Protocol, u16)> {
        let [proto, _, _, _, high, low, _, _] = *self.bytes.last_chunk::<8>()?;
        Some((Protocol::from_number(proto)?, u16::from_be_bytes([high, low])))
    }

    /// NFTA_SET_ELEM_KEY alone, within the list element.
    fn write(&self, w: &mut Writer) {
        w.nest(1, |w| w.bytes(1, &self.bytes));
    }
}

impl Value {
    /// The address that a port may send from.
    pub fn mac(mac: [u8; 6]) -> Self {
        Value::Bytes(mac.to_vec())
    }

    /// Container address and port, as dnat takes them from the map.
    pub fn target(addr: IpAddr, port: u16) -> Self {
        let mut bytes = octets(addr);
        field(&mut bytes, &port.to_be_bytes());
        Value::Bytes(bytes)
    }

    /// The container's address of a [`Value::target`].
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Value::Bytes(b) if b.len() == 8 => Some(IpAddr::from(*b.first_chunk::<4>()?)),
            Value::Bytes(b) => Some(IpAddr::from(*b.first_chunk::<16>()?)),
            _ => None,
        }
    }

    fn write(&self, w: &mut Writer) {
        match self {
            Value::None => {}
            Value::Bytes(bytes) => w.nest(2, |w| w.bytes(1, bytes)),
        }
    }
}

impl Element {
    pub fn write(&self, w: &mut Writer) {
        w.nest(1, |w| {
            self.key.write(w);
            self.value.write(w);
            if !self.tag.is_empty() {
                // One TLV: type 0 (comment), length with the NUL, which libnftables wants at most 128.
                let mut user = vec![0, (self.tag.len() + 1) as u8];
                user.extend_from_slice(self.tag.as_bytes());
                user.push(0);
                w.bytes(6, &user);
            }
        });
    }

    /// The pair in `sources` that an element of `source_of` tells of.
    pub fn source(&self) -> Option<Key> {
        match &self.value {
            Value::Bytes(mac) if self.key.map == Map::SourceOf => {
                let mut key = Key { map: Map::Sources, bytes: self.key.bytes.clone() };
                field(&mut key.bytes, mac);
                Some(key)
            }
            _ => None,
        }
    }

    /// Reads one list element of that map.
    fn parse(map: Map, attrs: &[u8]) -> Option<Self> {
        let bytes = attribute(attribute(attrs, 1)?, 1)?.to_vec();
        let value = match attribute(attrs, 2).and_then(|data| attribute(data, 1)) {
            None => Value::None,
            Some(bytes) => Value::Bytes(bytes.to_vec()),
        };
        Some(Element {
            key: Key { map, bytes },
            value,
            tag: attribute(attrs, 6).map(comment).unwrap_or_default(),
        })
    }

    /// Reads the elements of a NEWSETELEM.
    pub fn parse_all(map: Map, attrs: &[u8]) -> Vec<Self> {
        let list = attribute(attrs, 3).unwrap_or_default();
        attributes(list).filter(|(k, _)| *k == 1).filter_map(|(_, e)| Element::parse(map, e)).collect()
    }
}

/// The comment in an element's user data.
fn comment(mut user: &[u8]) -> String {
    while let [kind, len, rest @ ..] = user {
        let (value, next) = rest.split_at((*len as usize).min(rest.len()));
        if *kind == 0 {
            return text(value);
        }
        user = next;
    }
    String::new()
}

/// Writes the set of a message about it, after the table.
pub fn head(w: &mut Writer, map: Map) {
    w.str(2, &map.name());
}

/// A question for one element, or for deleting it.
pub fn list_of_key(w: &mut Writer, key: &Key) {
    head(w, key.map);
    w.nest(3, |w| w.nest(1, |w| key.write(w)));
}

/// The list element of a key, to be put into a list by the caller.
pub fn key_element(key: &Key, w: &mut Writer) {
    w.nest(1, |w| key.write(w));
}
