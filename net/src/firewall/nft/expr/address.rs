//! Expressions about a packet's addresses.

use super::super::element::Map;
use super::{Meta, REG1, REG32, Rule, Side};
use ipnetwork::IpNetwork;
use std::net::IpAddr;

impl Rule {
    /// `ip saddr 10.1.0.0/16`
    pub fn address(self, side: Side, net: IpNetwork) -> Self {
        self.in_net(side, false, net)
    }

    /// `ip daddr != 10.1.0.0/16`
    pub fn not_address(self, side: Side, net: IpNetwork) -> Self {
        self.in_net(side, true, net)
    }

    /// Whole bytes are compared as such, as nft does; other lengths through a mask.
    fn in_net(self, side: Side, not: bool, net: IpNetwork) -> Self {
        let v6 = net.is_ipv6();
        let (addr, mask) = match (net.network(), net.mask()) {
            (IpAddr::V4(a), IpAddr::V4(m)) => (a.octets().to_vec(), m.octets().to_vec()),
            (IpAddr::V6(a), IpAddr::V6(m)) => (a.octets().to_vec(), m.octets().to_vec()),
            _ => return self,
        };
        let mut rule = self.family(v6);
        let offset = Self::offset(side, v6);
        if net.prefix() > 0 && net.prefix().is_multiple_of(8) {
            let len = net.prefix() as usize / 8;
            rule.payload(1, offset, len as u32, REG1);
            rule.compare(not, &addr[..len]);
        } else {
            rule.payload(1, offset, addr.len() as u32, REG1);
            rule.mask(&mask);
            rule.compare(not, &addr);
        }
        rule
    }

    /// `ip saddr != @set`
    pub fn address_not_in(self, side: Side, v6: bool, map: Map) -> Self {
        let mut rule = self.family(v6);
        rule.payload(1, Self::offset(side, v6), if v6 { 16 } else { 4 }, REG1);
        rule.lookup_not(map);
        rule
    }

    /// `ip saddr @set`
    pub fn address_in(self, side: Side, v6: bool, map: Map) -> Self {
        let mut rule = self.family(v6);
        rule.payload(1, Self::offset(side, v6), if v6 { 16 } else { 4 }, REG1);
        rule.lookup(map, None);
        rule
    }

    /// `ip saddr . ip daddr @set`
    pub fn pair_in(self, v6: bool, map: Map) -> Self {
        let mut rule = self.pair(v6);
        rule.lookup(map, None);
        rule
    }

    /// `ip saddr . ip daddr != @set`
    pub fn pair_not_in(self, v6: bool, map: Map) -> Self {
        let mut rule = self.pair(v6);
        rule.lookup_not(map);
        rule
    }

    fn pair(self, v6: bool) -> Self {
        let mut rule = self.family(v6);
        let words = if v6 { 4 } else { 1 };
        rule.payload(1, Self::offset(Side::Source, v6), words * 4, REG1);
        rule.payload(1, Self::offset(Side::Destination, v6), words * 4, REG32 + words);
        rule
    }

    /// `meta protocol ip`: the frame's type (ETH_P_…), behind a VLAN tag if there is one
    pub fn frame_type(mut self, ethertype: u16) -> Self {
        self.meta_to(Meta::Protocol, REG1);
        self.compare(false, &ethertype.to_be_bytes());
        self
    }

    /// `ether type != ip`: the frame's type, which is that of a VLAN tag if there is one
    pub fn not_frame_type(mut self, ethertype: u16) -> Self {
        self.payload(0, 12, 2, REG1);
        self.compare(true, &ethertype.to_be_bytes());
        self
    }

    /// `iifname . ip saddr != @set`, `iifname . arp saddr ip != @set` or `iifname . ip6 saddr != @set`, but the unspecified
    /// address, which no packet is answered or forwarded to. The frame's type must have been asked for.
    pub fn sender_not_in(mut self, sender: Sender, map: Map) -> Self {
        let (offset, len) = match sender {
            Sender::Ip => (12, 4),
            Sender::Arp => (14, 4),
            Sender::Ip6 => (8, 16),
        };
        self.payload(1, offset, len, REG1);
        self.compare(true, &vec![0; len as usize]);
        self.meta_to(Meta::Iifname, REG1);
        self.payload(1, offset, len, REG32 + 4);
        self.lookup_not(map);
        self
    }

    /// `icmpv6 type nd-neighbor-advert iifname . @th,64,128 != @set`: the target, behind ICMPv6's header of 8 bytes
    /// (RFC 4861, section 4.4)
    pub fn advertised_not_in(mut self, map: Map) -> Self {
        self.meta_to(Meta::L4proto, REG1);
        self.compare(false, &[58]);
        self.payload(2, 0, 1, REG1);
        self.compare(false, &[136]);
        self.meta_to(Meta::Iifname, REG1);
        self.payload(2, 8, 16, REG32 + 4);
        self.lookup_not(map);
        self
    }
}

/// Whose address a frame names as its sender's.
#[derive(Clone, Copy)]
pub enum Sender {
    Ip,
    Arp,
    Ip6,
}
