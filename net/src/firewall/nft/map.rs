//! The sets and maps of the tables: their names, the types of their keys and values, and how they are made.

mod frames;
mod listing;

use super::table::Table;
use super::wire::{Writer, user_comment};
use ipnetwork::IpNetwork;
use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// nftables' datatype numbers (libnftables, enum datatypes); a concatenation has six bits for each part.
mod datatype {
    pub const NFPROTO: u32 = 2;
    pub const INTEGER: u32 = 4;
    pub const IPADDR: u32 = 7;
    pub const IP6ADDR: u32 = 8;
    pub const ETHERADDR: u32 = 9;
    pub const INET_PROTO: u32 = 12;
    pub const INET_SERVICE: u32 = 13;
    pub const MARK: u32 = 19;
    pub const IFINDEX: u32 = 20;
    pub const DEVGROUP: u32 = 35;
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
    /// bridges by which nothing is forwarded in or out
    Closed,
    /// those of them that do not reach the host's services of Weft either. A set of its own, so that a table that was made
    /// without it is made anew.
    Sealed,
    /// bridges that forward nothing back to themselves, but published ports
    Isolated,
    /// those of them from which a published port is reached by its proxy on the host, where it has one
    Proxied,
    /// each of these bridges twice: in and out
    BridgePairs,
    /// links of bridges with attachments: no other link brings a source that is routed to one of them
    Bridges,
    /// those of them that bring no source that is routed elsewhere
    Strict,
    /// links whose `route_localnet` was set for published ports. No rule asks for it.
    Localnet,
    /// addresses in this subnet whose outgoing traffic is masqueraded
    Masq(IpNetwork),
    /// addresses in this subnet whose outgoing traffic is masqueraded but for some destinations
    MasqExcept(IpNetwork),
    /// such an address . a range of these destinations
    Except(IpNetwork),
    /// addresses in this subnet with published ports
    Hairpin(IpNetwork),
    /// of containers without a subnet (/32) that have published ports: the address twice, as source and destination
    HairpinSelf4,
    /// the same for IPv6 (/128)
    HairpinSelf6,
    /// ports of bridges whose frames' source addresses are looked at
    Watched,
    /// such a port . the address that it may send from
    Sources,
    /// such a port : that address. No rule asks for it: by it the pair is found without being told the address, which a
    /// DEL may not know.
    SourceOf,
    /// ports of bridges that send from certain addresses alone
    Bound,
    /// those of them that do so with IPv6 too
    Bound6,
    /// such a port . a number from 0 : an address of its, IPv4's mapped to IPv6. No rule asks for it: by it the following are
    /// found.
    AddressOf,
    /// such a port . an address that it may send from, in IPv4 and ARP
    Addresses4,
    Addresses6,
    /// such a port . an address that it may say it has (neighbour advertisements)
    Targets6,
    /// VNIs of overlay networks
    Vnis,
    /// addresses of hosts from which VXLAN packets are taken
    Vteps4,
    Vteps6,
    /// addresses of all nodes, to which no container sends VXLAN packets
    Nodes4,
    Nodes6,
    /// the same addresses and this node's, as the destination of the packet that an ICMP error is about
    Paths4,
    Paths6,
    /// the ports at which nodes take VXLAN packets
    VxlanPorts,
    /// device groups of overlay networks
    Groups,
    /// such a group twice: in and out
    GroupPairs,
    /// groups of networks without a way out
    Internal,
    /// groups of networks into which what is routed to this node from outside gets
    Routed,
    /// subnet . group of networks whose packets come unencapsulated too
    Direct4,
    Direct6,
    /// subnets of overlay networks . their family
    Nets4,
    Nets6,
    /// addresses . TCP ports of the cluster's store
    Stores4,
    Stores6,
    /// TCP ports of the store on this very node
    StoresHere,
}

/// What the table gets with the first element that needs it: sets, chains and rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// For published ports, masquerading, and bridges that are guarded, closed or isolated: their rules ask connection tracking,
    /// which takes a microsecond of each packet and is not switched on without them. The other scopes need this one, which
    /// therefore comes first. It goes with the table.
    Tracked,
    /// For masquerading and published ports.
    Subnet(IpNetwork),
    /// For masquerading with exceptions.
    Excepting(IpNetwork),
    /// For published ports all of whose traffic is masqueraded. It is no part of the frame: wherever there is a rule that
    /// masquerades, the kernel goes through all connections at each link that goes down and at each address that is removed
    /// (nf_nat_masquerade.c), for which a DEL waits.
    All,
}

impl Map {
    /// The table that has it.
    pub fn table(self) -> Table {
        if Map::OVERLAY_FRAME.contains(&self) {
            return Table::Overlay;
        }
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
            Map::HairpinSelf4 => "hairpin4_self",
            Map::HairpinSelf6 => "hairpin6_self",
            Map::Guarded => "guarded",
            Map::Closed => "bridges_closed",
            Map::Sealed => "bridges_sealed",
            Map::Isolated => "bridges_isolated",
            Map::Proxied => "bridges_proxied",
            Map::BridgePairs => "bridge_pairs",
            Map::Bridges => "bridges",
            Map::Strict => "bridges_strict",
            Map::Localnet => "localnet",
            Map::Watched => "watched",
            Map::Sources => "sources",
            Map::SourceOf => "source_of",
            Map::Bound => "bound",
            Map::Bound6 => "bound6",
            Map::AddressOf => "address_of",
            Map::Addresses4 => "addresses4",
            Map::Addresses6 => "addresses6",
            Map::Targets6 => "targets6",
            Map::Vnis => "vnis",
            Map::Vteps4 => "vteps4",
            Map::Vteps6 => "vteps6",
            Map::Nodes4 => "nodes4",
            Map::Nodes6 => "nodes6",
            Map::Paths4 => "paths4",
            Map::Paths6 => "paths6",
            Map::VxlanPorts => "vxlan_ports",
            Map::Groups => "groups",
            Map::GroupPairs => "group_pairs",
            Map::Internal => "internal",
            Map::Routed => "routed",
            Map::Direct4 => "direct4",
            Map::Direct6 => "direct6",
            Map::Nets4 => "nets4",
            Map::Nets6 => "nets6",
            Map::Stores4 => "stores4",
            Map::Stores6 => "stores6",
            Map::StoresHere => "stores_here",
            Map::Masq(net) => return Cow::Owned(format!("masq-{}", net_name(net))),
            Map::MasqExcept(net) => return Cow::Owned(format!("masq_except-{}", net_name(net))),
            Map::Except(net) => return Cow::Owned(format!("exceptions-{}", net_name(net))),
            Map::Hairpin(net) => return Cow::Owned(format!("hairpin-{}", net_name(net))),
        })
    }

    /// The set or map of that name in a table.
    pub fn named(table: Table, name: &str) -> Option<Map> {
        let net = |text: &str| match text {
            HOSTS4 => Some(hosts(false)),
            HOSTS6 => Some(hosts(true)),
            text => text.replace('_', ":").parse().ok(),
        };
        let hairpins = [Map::HairpinSelf4, Map::HairpinSelf6, Map::HairpinAll4, Map::HairpinAll6];
        let of_scope = Map::TRACKED.into_iter().chain(hairpins).find(|map| map.name() == name);
        if table == Table::Inet && of_scope.is_some() {
            return of_scope;
        }
        match name.split_once('-') {
            Some(("masq", text)) => net(text).map(Map::Masq),
            Some(("masq_except", text)) => net(text).map(Map::MasqExcept),
            Some(("exceptions", text)) => net(text).map(Map::Except),
            Some(("hairpin", text)) => net(text).map(Map::Hairpin),
            _ => table.frame().iter().copied().find(|map| map.name() == name),
        }
    }

    /// Is it one where a key is a port of the host?
    pub fn is_ports(self) -> bool {
        matches!(self, Map::Ports4 | Map::Ports4At | Map::Ports6 | Map::Ports6At)
    }

    /// Does what is in it lead to what a port of a bridge may send from?
    pub fn is_of_sources(self) -> bool {
        matches!(self, Map::SourceOf | Map::AddressOf)
    }

    /// Does what is in it belong to published ports?
    pub fn is_of_ports(self) -> bool {
        self.is_ports() || self.is_of_hairpin()
    }

    /// Does what is in it belong to the masquerading of published ports' traffic?
    fn is_of_hairpin(self) -> bool {
        use Map::{Hairpin, HairpinAll4, HairpinAll6, HairpinSelf4, HairpinSelf6};
        matches!(self, HairpinAll4 | HairpinAll6 | HairpinSelf4 | HairpinSelf6 | Hairpin(_))
    }

    /// Those that are made with a scope.
    pub fn of_scope(scope: Scope) -> Vec<Map> {
        match scope {
            Scope::Subnet(net) => {
                let mut maps = vec![Map::Masq(net), Map::Hairpin(net)];
                maps.extend(is_hosts(net).then(|| Map::hairpin_self(net.is_ipv6())));
                maps
            }
            Scope::Excepting(net) => vec![Map::MasqExcept(net), Map::Except(net)],
            Scope::All => vec![Map::HairpinAll4, Map::HairpinAll6],
            Scope::Tracked => Map::TRACKED.into(),
        }
    }

    /// The scope that it is made with, if it is one of those.
    pub fn scope(self) -> Option<Scope> {
        match self {
            Map::Masq(net) | Map::Hairpin(net) => Some(Scope::Subnet(net)),
            Map::MasqExcept(net) | Map::Except(net) => Some(Scope::Excepting(net)),
            Map::HairpinSelf4 => Some(Scope::Subnet(hosts(false))),
            Map::HairpinSelf6 => Some(Scope::Subnet(hosts(true))),
            Map::HairpinAll4 | Map::HairpinAll6 => Some(Scope::All),
            map => Map::TRACKED.contains(&map).then_some(Scope::Tracked),
        }
    }

    /// The set of a subnet, which may be given with host bits.
    pub fn masq(net: IpNetwork) -> Map {
        Map::Masq(subnet(net))
    }

    /// The set of a subnet, which may be given with host bits.
    pub fn masq_except(net: IpNetwork) -> Map {
        Map::MasqExcept(subnet(net))
    }

    /// The set of a subnet, which may be given with host bits.
    pub fn hairpin(net: IpNetwork) -> Map {
        Map::Hairpin(subnet(net))
    }

    pub fn hairpin_self(v6: bool) -> Map {
        if v6 { Map::HairpinSelf6 } else { Map::HairpinSelf4 }
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
            Map::Masq(net) | Map::MasqExcept(net) | Map::Hairpin(net) if net.is_ipv4() => (IPADDR, 4),
            Map::Masq(_) | Map::MasqExcept(_) | Map::Hairpin(_) => (IP6ADDR, 16),
            Map::HairpinAll4 => (IPADDR, 4),
            Map::HairpinAll6 => (IP6ADDR, 16),
            Map::HairpinSelf4 | Map::Except(IpNetwork::V4(_)) => (IPADDR << 6 | IPADDR, 8),
            Map::HairpinSelf6 | Map::Except(IpNetwork::V6(_)) => (IP6ADDR << 6 | IP6ADDR, 32),
            Map::Bridges => (IFINDEX, 4),
            Map::Guarded | Map::Closed | Map::Sealed | Map::Isolated | Map::Proxied | Map::Strict => {
                (IFNAME, 16)
            }
            Map::Localnet | Map::Watched | Map::SourceOf | Map::Bound | Map::Bound6 => (IFNAME, 16),
            Map::AddressOf => (IFNAME << 6 | MARK, 20),
            Map::Addresses4 => (IFNAME << 6 | IPADDR, 20),
            Map::Addresses6 => (IFNAME << 6 | IP6ADDR, 32),
            Map::Targets6 => (IFNAME << 6 | INTEGER, 32),
            Map::Sources => (IFNAME << 6 | ETHERADDR, 24),
            Map::BridgePairs => (IFNAME << 6 | IFNAME, 32),
            Map::Vnis => (INTEGER, 3),
            Map::Paths4 => (INTEGER, 4),
            Map::Paths6 => (INTEGER, 16),
            Map::Vteps4 | Map::Nodes4 => (IPADDR, 4),
            Map::Vteps6 | Map::Nodes6 => (IP6ADDR, 16),
            Map::VxlanPorts | Map::StoresHere => (INET_SERVICE, 2),
            Map::Stores4 => (IPADDR << 6 | INET_SERVICE, 8),
            Map::Stores6 => (IP6ADDR << 6 | INET_SERVICE, 20),
            Map::Groups | Map::Internal | Map::Routed => (DEVGROUP, 4),
            Map::GroupPairs => (DEVGROUP << 6 | DEVGROUP, 8),
            Map::Direct4 => (IPADDR << 6 | DEVGROUP, 8),
            Map::Direct6 => (IP6ADDR << 6 | DEVGROUP, 20),
            Map::Nets4 => (IPADDR << 6 | NFPROTO, 8),
            Map::Nets6 => (IP6ADDR << 6 | NFPROTO, 20),
        }
    }

    /// The data's datatype and length, when it is a map.
    fn data(self) -> Option<(u32, u32)> {
        use datatype::*;
        match self {
            Map::Ports4 | Map::Ports4At => Some((IPADDR << 6 | INET_SERVICE, 8)),
            Map::Ports6 | Map::Ports6At => Some((IP6ADDR << 6 | INET_SERVICE, 20)),
            Map::SourceOf => Some((ETHERADDR, 6)),
            Map::AddressOf => Some((IP6ADDR, 16)),
            _ => None,
        }
    }

    /// The lengths of the parts of a key that is a range of concatenations.
    pub fn range(self) -> Option<[u32; 2]> {
        match self {
            Map::Except(IpNetwork::V4(_)) => Some([4, 4]),
            Map::Except(IpNetwork::V6(_)) => Some([16, 16]),
            Map::Direct4 => Some([4, 4]),
            Map::Direct6 => Some([16, 4]),
            Map::Nets4 => Some([4, 1]),
            Map::Nets6 => Some([16, 1]),
            _ => None,
        }
    }

    /// The attributes of the NEWSET that makes it (enum nft_set_attributes).
    pub fn write(self, id: u32, w: &mut Writer) {
        let ((key_type, key_len), data) = (self.key(), self.data());
        head(w, self);
        // NFT_SET_MAP; NFT_SET_INTERVAL and NFT_SET_CONCAT
        w.u32(3, if data.is_some() { 8 } else { self.range().map_or(0, |_| 0x84) });
        w.u32(4, key_type);
        w.u32(5, key_len);
        if let Some((data_type, data_len)) = data {
            w.u32(6, data_type);
            w.u32(7, data_len);
        }
        if let Some(lengths) = self.range() {
            // NFTA_SET_DESC_CONCAT
            w.nest(9, |w| w.nest(2, |w| lengths.iter().for_each(|length| w.nest(1, |w| w.u32(1, *length)))));
        }
        w.u32(10, id);
        let mut user = vec![0, 4];
        user.extend_from_slice(&self.byte_order().to_ne_bytes());
        if data.is_some() {
            // That of a map's data: the network's, or that of a concatenation.
            user.extend_from_slice(&[1, 4]);
            user.extend_from_slice(
                &(if matches!(self, Map::SourceOf | Map::AddressOf) { 2u32 } else { 0 }).to_ne_bytes(),
            );
        }
        user.extend_from_slice(&self.typeof_key());
        if let Some(comment) = self.comment() {
            user.extend_from_slice(&user_comment(7, comment));
        }
        w.bytes(13, &user);
    }
}

/// What stands for the subnet of all containers whose address has none, as Calico's /32: with a set and a chain each, a
/// packet's way would grow with their number.
pub fn hosts(v6: bool) -> IpNetwork {
    match v6 {
        false => IpAddr::V4(Ipv4Addr::UNSPECIFIED).into(),
        true => IpAddr::V6(Ipv6Addr::UNSPECIFIED).into(),
    }
}

const HOSTS4: &str = "hosts4";
const HOSTS6: &str = "hosts6";

/// Whether it is what [`hosts`] returns.
pub fn is_hosts(net: IpNetwork) -> bool {
    net == hosts(net.is_ipv6())
}

/// The subnet of a container's address, without host bits.
pub fn subnet(net: IpNetwork) -> IpNetwork {
    let hosts = hosts(net.is_ipv6());
    if net.prefix() == hosts.prefix() { hosts } else { without_host_bits(net) }
}

/// The network that an address with a prefix length is in.
pub fn without_host_bits(net: IpNetwork) -> IpNetwork {
    IpNetwork::new(net.network(), net.prefix()).unwrap_or(net)
}

/// A network in the name of a set or chain.
pub fn net_name(net: IpNetwork) -> String {
    match net {
        net if !is_hosts(net) => without_host_bits(net).to_string().replace(':', "_"),
        IpNetwork::V4(_) => HOSTS4.to_owned(),
        IpNetwork::V6(_) => HOSTS6.to_owned(),
    }
}

/// Writes the set of a message about it, after the table.
pub fn head(w: &mut Writer, map: Map) {
    w.str(2, &map.name());
}
