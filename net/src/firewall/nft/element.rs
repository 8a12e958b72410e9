//! The elements: what an attachment is in the table. Their keys and values, and both ways of writing them.

pub use super::map::{Map, Scope, head, is_hosts, net_name, subnet, without_host_bits};
use super::wire::{Writer, attribute, attributes, comment_of, user_comment};
use crate::firewall::Protocol;
use ipnetwork::IpNetwork;
use std::net::{IpAddr, Ipv6Addr};

/// The last address of a network.
fn last(net: IpNetwork) -> IpAddr {
    match net {
        IpNetwork::V4(net) => net.broadcast().into(),
        IpNetwork::V6(net) => net.broadcast().into(),
    }
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

    /// A container's address in one of the sets of addresses: twice in those of pairs.
    pub fn address(map: Map, addr: IpAddr) -> Self {
        let one = octets(addr);
        let is_pair = matches!(map, Map::HairpinSelf4 | Map::HairpinSelf6);
        Key { map, bytes: if is_pair { one.repeat(2) } else { one } }
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

    /// A port of a bridge and the number of an address of its.
    pub fn address_of(name: &str, number: u32) -> Self {
        let mut key = Key::link(Map::AddressOf, name);
        key.bytes.extend_from_slice(&number.to_ne_bytes());
        key
    }

    /// A port of a bridge and an address, in `addresses4`, `addresses6` or `targets6`.
    pub fn port_address(map: Map, name: &str, addr: IpAddr) -> Self {
        let mut key = Key::link(map, name);
        key.bytes.extend_from_slice(&octets(addr));
        key
    }

    /// A bridge in one of the sets of bridges or, twice, in `bridge_pairs`.
    pub fn bridge(map: Map, name: &str) -> Self {
        let one = Key::link(map, name).bytes;
        let bytes = if map == Map::BridgePairs { one.repeat(2) } else { one };
        Key { map, bytes }
    }

    /// A link in `bridges`.
    pub fn index(map: Map, index: u32) -> Self {
        Key { map, bytes: index.to_ne_bytes().to_vec() }
    }

    /// A VNI, 24 bits.
    pub fn vni(vni: u32) -> Self {
        Key { map: Map::Vnis, bytes: vni.to_be_bytes()[1..].to_vec() }
    }

    /// A host's address in `vteps4` or `vteps6`.
    pub fn vtep(addr: IpAddr) -> Self {
        Key::address(if addr.is_ipv4() { Map::Vteps4 } else { Map::Vteps6 }, addr)
    }

    /// A node's address in `nodes4` or `nodes6`.
    pub fn node(addr: IpAddr) -> Self {
        Key::address(if addr.is_ipv4() { Map::Nodes4 } else { Map::Nodes6 }, addr)
    }

    /// A node's address in `paths4` or `paths6`.
    pub fn path(addr: IpAddr) -> Self {
        Key::address(if addr.is_ipv4() { Map::Paths4 } else { Map::Paths6 }, addr)
    }

    /// A port in `vxlan_ports`.
    pub fn vxlan_port(port: u16) -> Self {
        Key { map: Map::VxlanPorts, bytes: port.to_be_bytes().to_vec() }
    }

    /// An address and TCP port of the store.
    pub fn store(addr: IpAddr, port: u16) -> Self {
        let mut bytes = octets(addr);
        field(&mut bytes, &port.to_be_bytes());
        Key { map: if addr.is_ipv4() { Map::Stores4 } else { Map::Stores6 }, bytes }
    }

    /// A port in `stores_here`.
    pub fn store_here(port: u16) -> Self {
        Key { map: Map::StoresHere, bytes: port.to_be_bytes().to_vec() }
    }

    /// A device group, twice in `group_pairs`.
    pub fn group(map: Map, group: u32) -> Self {
        let one = group.to_ne_bytes();
        Key { map, bytes: if map == Map::GroupPairs { one.repeat(2) } else { one.to_vec() } }
    }

    /// The addresses of a subnet, with the group of its network.
    pub fn direct(net: IpNetwork, group: u32) -> Self {
        Key::range(if net.is_ipv4() { Map::Direct4 } else { Map::Direct6 }, net, &group.to_be_bytes())
    }

    /// The addresses of a subnet, with its family (NFPROTO_IPV4 or NFPROTO_IPV6).
    pub fn net(net: IpNetwork) -> Self {
        let (map, family) = if net.is_ipv4() { (Map::Nets4, 2) } else { (Map::Nets6, 10) };
        Key::range(map, net, &[family])
    }

    /// A container's address with a range of destinations.
    pub fn exception(of: IpNetwork, to: IpNetwork) -> Self {
        let ends = [to.network(), last(to)].map(|end| [octets(of.ip()), octets(end)].concat());
        Key { map: Map::Except(subnet(of)), bytes: ends.concat() }
    }

    /// Whether it is an exception of this container's address.
    pub fn is_exception_of(&self, address: IpAddr) -> bool {
        matches!(self.map, Map::Except(_)) && self.bytes.starts_with(&octets(address))
    }

    fn range(map: Map, net: IpNetwork, with: &[u8]) -> Self {
        let mut bytes = Vec::new();
        for addr in [net.network(), last(net)] {
            field(&mut bytes, &octets(addr));
            field(&mut bytes, with);
        }
        Key { map, bytes }
    }

    /// The protocol and port of a key of [`Map::is_ports`].
    pub fn parts(&self) -> Option<(Protocol, u16)> {
        let [proto, _, _, _, high, low, _, _] = *self.bytes.last_chunk::<8>()?;
        Some((Protocol::from_number(proto)?, u16::from_be_bytes([high, low])))
    }

    /// NFTA_SET_ELEM_KEY alone, within the list element; of a range NFTA_SET_ELEM_KEY_END too.
    fn write(&self, w: &mut Writer) {
        let first = if self.map.range().is_some() { self.bytes.len() / 2 } else { self.bytes.len() };
        w.nest(1, |w| w.bytes(1, &self.bytes[..first]));
        if first < self.bytes.len() {
            w.nest(10, |w| w.bytes(1, &self.bytes[first..]));
        }
    }
}

impl Value {
    /// The address that a port may send from.
    pub fn mac(mac: [u8; 6]) -> Self {
        Value::Bytes(mac.to_vec())
    }

    /// An address of a port, IPv4's mapped to IPv6.
    pub fn mapped(addr: IpAddr) -> Self {
        let addr = match addr {
            IpAddr::V4(addr) => addr.to_ipv6_mapped(),
            IpAddr::V6(addr) => addr,
        };
        Value::Bytes(addr.octets().to_vec())
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
                w.bytes(6, &user_comment(0, &self.tag));
            }
        });
    }

    /// The keys that an element of `source_of` or `address_of` leads to: a port with what it may send from.
    pub fn sources(&self) -> Vec<Key> {
        let Value::Bytes(value) = &self.value else { return Vec::new() };
        let port = self.key.bytes.get(..16).unwrap_or_default();
        let with = |map, bytes: &[u8]| {
            let mut key = Key { map, bytes: port.to_vec() };
            field(&mut key.bytes, bytes);
            key
        };
        match self.key.map {
            Map::SourceOf => vec![with(Map::Sources, value)],
            Map::AddressOf => {
                let addr = value.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets));
                match addr.and_then(|addr| addr.to_ipv4_mapped()) {
                    Some(addr) => vec![with(Map::Addresses4, &addr.octets())],
                    None => vec![with(Map::Addresses6, value), with(Map::Targets6, value)],
                }
            }
            _ => Vec::new(),
        }
    }

    /// Reads one list element of that map.
    fn parse(map: Map, attrs: &[u8]) -> Option<Self> {
        let mut bytes = attribute(attribute(attrs, 1)?, 1)?.to_vec();
        if map.range().is_some() {
            let last = attribute(attrs, 10).and_then(|last| attribute(last, 1));
            bytes.extend_from_slice(&last.map_or_else(|| bytes.clone(), <[u8]>::to_vec));
        }
        let value = match attribute(attrs, 2).and_then(|data| attribute(data, 1)) {
            None => Value::None,
            Some(bytes) => Value::Bytes(bytes.to_vec()),
        };
        Some(Element {
            key: Key { map, bytes },
            value,
            tag: attribute(attrs, 6).and_then(|user| comment_of(0, user)).unwrap_or_default(),
        })
    }

    /// Reads the elements of a NEWSETELEM.
    pub fn parse_all(map: Map, attrs: &[u8]) -> Vec<Self> {
        let list = attribute(attrs, 3).unwrap_or_default();
        attributes(list).filter(|(k, _)| *k == 1).filter_map(|(_, e)| Element::parse(map, e)).collect()
    }
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
